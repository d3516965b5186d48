// The work list of attention on the GPU: which query rows meet which keys. One per batch, used in
// every layer.
#pragma once
#include <cstdint>
#include <vector>

namespace m3 {

// Queries [row_begin, +row_count) see keys [key_begin, +key_count), all within one text; or both are
// one run of whole short texts, of which each query sees its own text only.
struct Tile {
  int32_t row_begin, row_count, key_begin, key_count;
};

// Consecutive texts of at most `short_text` tokens share a tile while they fit that many rows; a
// longer text gets a tile for every `rows` of its tokens. Empty texts get none. Most keys first,
// so that the last tiles to finish are small ones; equals stay in the order of the texts.
std::vector<Tile> attention_tiles(const int32_t* cu_seqlens, int64_t texts, int32_t short_text,
                                  int32_t rows);

}  // namespace m3
