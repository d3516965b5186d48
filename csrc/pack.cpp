#include "pack.h"

#include <algorithm>

#include "check.h"

namespace m3 {

PackSize pack_size(const std::vector<Part>& parts) {
  PackSize size{0, 0, 0};
  for (const Part& part : parts) {
    check_offsets("offsets", part.offsets, part.count, part.n_ids);
    for (int64_t n = 0; n < part.packed; ++n, ++size.texts) {
      const int64_t i = part.order[n];
      M3_CHECK(0 <= i && i < part.count, "order: expected texts 0 to ", part.count - 1, ", found ",
               i, " at ", size.texts);
      const int64_t length = part.offsets[i + 1] - part.offsets[i];
      size.tokens += length;
      size.longest = std::max(size.longest, length);
    }
  }
  M3_CHECK(size.tokens <= INT32_MAX, "ids: expected fewer than 2**31 tokens, found ", size.tokens);
  return size;
}

PackSize pack(const std::vector<Part>& parts, std::optional<int32_t> pad_id, int64_t vocab_size,
              const PackRoom& room) {
  const PackSize size = pack_size(parts);
  M3_CHECK(size.tokens <= room.n_tokens && size.texts <= room.n_texts, "out: expected room for ",
           size.tokens, " tokens and ", size.texts, " texts, found ", room.n_tokens, " and ",
           room.n_texts);
  int32_t text = 0, end = 0;
  int64_t before = 0;  // texts of the parts before this one
  room.cu_seqlens[0] = 0;
  for (const Part& part : parts) {
    for (int64_t n = 0; n < part.packed; ++n) {
      const int64_t i = part.order[n];
      int32_t next = pad_id ? *pad_id + 1 : 0;
      for (int64_t t = part.offsets[i]; t < part.offsets[i + 1]; ++t, ++end) {
        const int32_t id = part.ids[t];
        M3_CHECK(0 <= id && id < vocab_size, "ids: expected 0 to ", vocab_size - 1, ", found ", id,
                 " in text ", before + i);
        room.ids[end] = id;
        room.positions[end] = pad_id && id == *pad_id ? *pad_id : next++;
        room.texts[end] = text;
      }
      room.cu_seqlens[++text] = end;
    }
    before += part.count;
  }
  std::fill(room.ids + end, room.ids + room.n_tokens, 0);
  std::fill(room.positions + end, room.positions + room.n_tokens, 0);
  std::fill(room.texts + end, room.texts + room.n_tokens, static_cast<int32_t>(room.n_texts));
  std::fill(room.cu_seqlens + text + 1, room.cu_seqlens + room.n_texts + 1, end);
  return size;
}

}  // namespace m3
