#include "tiles.h"

#include <algorithm>

#include "check.h"

namespace m3 {

std::vector<Tile> attention_tiles(const int32_t* cu_seqlens, int64_t texts, int32_t short_text,
                                  int32_t rows) {
  M3_CHECK(texts >= 0, "cu_seqlens: expected at least 1 entry, found none");
  M3_CHECK(short_text >= 0, "short: expected 0 or more, found ", short_text);
  M3_CHECK(rows > 0, "rows: expected 1 or more, found ", rows);
  check_offsets("cu_seqlens", cu_seqlens, texts, cu_seqlens[texts]);

  std::vector<Tile> tiles;
  bool open = false;  // whether the last tile is a group that may take another text
  for (int64_t i = 0; i < texts; ++i) {
    const int32_t start = cu_seqlens[i], length = cu_seqlens[i + 1] - start;
    if (length == 0) continue;
    if (length > short_text) {
      open = false;
      for (int32_t done = 0; done < length; done += std::min(rows, length - done))
        tiles.push_back({start + done, std::min(rows, length - done), start, length});
    } else if (open && length <= short_text - tiles.back().row_count) {
      tiles.back().row_count = tiles.back().key_count += length;
    } else {
      tiles.push_back({start, length, start, length});
      open = true;
    }
  }
  std::stable_sort(tiles.begin(), tiles.end(),
                   [](const Tile& a, const Tile& b) { return a.key_count > b.key_count; });
  return tiles;
}

}  // namespace m3
