// y = x W^T + bias for few rows of x, such as one query: every weight is read once, where it lies,
// and libraries made for square products reach half of what the processor can do here.
#pragma once
#include <algorithm>

#include "kernels.h"
#include "parallel.h"
#include "tile.h"

namespace m3::M3_ISA {

constexpr int64_t CHAIN = 256;  // products summed in one chain: a longer one rounds more
constexpr int64_t TASK_WEIGHTS = 48 << 10;  // weights of one task: 192 KB, within L2

// One panel of W * VL rows of x against n rows of the weights: y[lane * outs + r].
template <int W>
void linear_panel(const float* weight, const float* bias, int64_t n, const float* panel,
                  int64_t depth, float* rows, float* y, int64_t outs, int64_t lanes) {
  over_tiles(n, [&](auto count, int64_t r) M3_LAMBDA_INLINE {
    constexpr int R = decltype(count)::value;
    vf acc[R][W] = {}, part[R][W];
    for (int64_t k = 0; k < depth; k += CHAIN) {
      const int64_t steps = std::min(CHAIN, depth - k);
      multiply<R, W>(weight + r * depth + k, depth, 1, panel + k * W * VL, steps, part);
      for (int i = 0; i < R; ++i)
        for (int w = 0; w < W; ++w) acc[i][w] += part[i][w];
    }
    for (int i = 0; i < R; ++i)
      for (int w = 0; w < W; ++w)
        store(rows + (r + i) * PANEL + w * VL, bias ? acc[i][w] + splat(bias[r + i]) : acc[i][w]);
  });
  transpose(rows, PANEL, y, outs, n, lanes);
}

inline void linear(const float* x, const float* weight, const float* bias, float* y, int64_t rows,
                   int64_t depth, int64_t outs, int threads) {
  const int64_t panels = (rows + PANEL - 1) / PANEL;
  const auto live = [=](int64_t p) { return std::min<int64_t>(PANEL, rows - p * PANEL); };
  Buffer columns(panels * PANEL * depth);  // x transposed, panel by panel [depth][width]
  std::fill_n(columns + (panels - 1) * PANEL * depth, PANEL * depth, 0.f);
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t width = live(p) <= VL ? VL : PANEL;
    transpose(x + p * PANEL * depth, depth, columns + p * PANEL * depth, width, live(p), depth);
  }
  const int64_t block = std::max<int64_t>(ROWS, TASK_WEIGHTS / depth / ROWS * ROWS);
  parallel_for((outs + block - 1) / block, threads, [&](Tasks& tasks) {
    Buffer scratch(block * PANEL);
    for (int64_t t; tasks.next(t);) {
      const int64_t first = t * block, n = std::min(block, outs - first);
      for (int64_t p = 0; p < panels; ++p) {
        const auto panel = live(p) <= VL ? linear_panel<1> : linear_panel<2>;
        panel(weight + first * depth, bias ? bias + first : nullptr, n,
              columns + p * PANEL * depth, depth, scratch, y + p * PANEL * outs + first, outs,
              live(p));
      }
    }
  });
}

}  // namespace m3::M3_ISA
