// Ragged token ids -> packed ids, positions, text indices and cu_seqlens, in one pass over the
// tokens.
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

// Where ids, positions, texts [tokens each] and cu_seqlens [texts + 1] lie in one int32 buffer: one
// after another, each from a multiple of 4 entries on, as 16-byte loads want it.
struct PackLayout {
  PackLayout(int64_t n_tokens, int64_t n_texts)
      : positions((n_tokens + 3) / 4 * 4),
        texts(2 * positions),
        cu_seqlens(3 * positions),
        entries(cu_seqlens + n_texts + 1) {}
  int64_t positions, texts, cu_seqlens, entries;
};

// Checks the entries of `order` and that the tokens fit 32-bit offsets.
PackSize pack_size(const Texts&);

// Fills a buffer of PackLayout::entries. With a pad id, positions are those of XLM-R:
// cumsum(id != pad) * (id != pad) + pad; without, 0, 1, 2, ... Throws for an id outside
// [0, vocab_size), naming the text.
void pack(const Texts&, std::optional<int32_t> pad_id, int64_t vocab_size, const PackLayout&,
          int32_t* out);

}  // namespace m3
