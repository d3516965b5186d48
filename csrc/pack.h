// Ragged token ids -> packed ids, positions and cu_seqlens, in one pass over the tokens.
#pragma once
#include <cstdint>
#include <optional>

namespace m3 {

// Texts as the caller has them: text i is ids[offsets[i] .. offsets[i + 1]).
struct Texts {
  const int32_t* ids;
  const int64_t* offsets;  // [count + 1], ascending
  int64_t count;
  const int64_t* order;  // [packed]: the texts to pack, in this order
  int64_t packed;
};

struct PackSize {
  int64_t tokens, longest;
};

// Checks the entries of `order` and that the tokens fit 32-bit offsets.
PackSize pack_size(const Texts&);

// Writes ids and positions [tokens] and cu_seqlens [packed + 1]. With a pad id, positions are those
// of XLM-R: cumsum(id != pad) * (id != pad) + pad; without, 0, 1, 2, ... Throws for an id outside
// [0, vocab_size), naming the text.
void pack(const Texts&, std::optional<int32_t> pad_id, int64_t vocab_size, int32_t* ids,
          int32_t* positions, int32_t* cu_seqlens);

}  // namespace m3
