#include "pack.h"

#include <algorithm>

#include "check.h"

namespace m3 {

PackSize pack_size(const Texts& texts) {
  PackSize size{0, 0};
  for (int64_t n = 0; n < texts.packed; ++n) {
    const int64_t i = texts.order[n];
    M3_CHECK(0 <= i && i < texts.count, "order: texts 0 to ", texts.count - 1,
             " were expected, got ", i, " at ", n);
    const int64_t length = texts.offsets[i + 1] - texts.offsets[i];
    size.tokens += length;
    size.longest = std::max(size.longest, length);
  }
  M3_CHECK(size.tokens <= INT32_MAX, "ids: fewer than 2**31 tokens were expected, got ",
           size.tokens);
  return size;
}

void pack(const Texts& texts, std::optional<int32_t> pad_id, int64_t vocab_size,
          const PackLayout& at, int32_t* out) {
  int32_t *ids = out, *positions = out + at.positions;
  int32_t *owners = out + at.texts, *cu_seqlens = out + at.cu_seqlens;
  int32_t end = 0;
  cu_seqlens[0] = 0;
  for (int64_t n = 0; n < texts.packed; ++n) {
    const int64_t i = texts.order[n];
    int32_t next = pad_id ? *pad_id + 1 : 0;
    for (int64_t t = texts.offsets[i]; t < texts.offsets[i + 1]; ++t, ++end) {
      const int32_t id = texts.ids[t];
      M3_CHECK(0 <= id && id < vocab_size, "ids: 0 to ", vocab_size - 1, " was expected, got ", id,
               " in text ", i);
      ids[end] = id;
      positions[end] = pad_id && id == *pad_id ? *pad_id : next++;
      owners[end] = static_cast<int32_t>(n);
    }
    cu_seqlens[n + 1] = end;
  }
}

}  // namespace m3
