// Ragged token ids of many callers -> packed ids, positions, text indices and cu_seqlens, in one
// pass over the tokens.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

namespace m3 {

// Some texts of one caller, in an order of their own: text i is ids[offsets[i] .. offsets[i + 1]).
struct Part {
  const int32_t* ids;
  int64_t n_ids;
  const int64_t* offsets;  // [count + 1]
  int64_t count;
  const int64_t* order;  // [packed]: the texts to pack
  int64_t packed;
};

// Of all parts together.
struct PackSize {
  int64_t tokens, texts, longest;
};

// Where ids, positions and text indices [tokens each] and cu_seqlens [texts + 1] are written.
// kernels/packing.py cuts them from one buffer.
struct PackRoom {
  int32_t *ids, *positions, *texts, *cu_seqlens;
  int64_t n_tokens, n_texts;
};

// Throws for offsets that are none, an entry of `order` without a text, and more tokens than 32-bit
// offsets hold.
PackSize pack_size(const std::vector<Part>&);

// Packs the texts of all parts end to end. With a pad id, positions are those of XLM-R:
// cumsum(id != pad) * (id != pad) + pad; without, 0, 1, 2, ... Throws as `pack_size`, for too
// little room, and for an id outside [0, vocab_size), naming its text, counted through all parts.
// Room that is left becomes tokens of id 0 at position 0 that belong to no text, and empty texts.
PackSize pack(const std::vector<Part>&, std::optional<int32_t> pad_id, int64_t vocab_size,
              const PackRoom&);

}  // namespace m3
