// y = x W^T + bias, and GELU of it. W is packed once, into panels of OUTS outputs, [depth][OUTS] each:
// weights are then read in order, whole vectors at a time, for twenty rows as for twenty thousand.
#pragma once
#include <algorithm>

#include "elementwise.h"
#include "kernels.h"
#include "parallel.h"
#include "tile.h"

namespace m3::M3_ISA {

constexpr int WIDTH = M3_VECTOR_BYTES == 64 ? 4 : 2;  // 6 x 4 + 5 of 32 registers, 6 x 2 + 3 of 16
constexpr int OUTS = WIDTH * VL;                      // outputs of a panel
constexpr int64_t CHAIN_BYTES = 1 << 10;  // of x, summed in one chain: a longer one rounds more
constexpr int64_t BLOCK = 192;            // rows of a task: 192 KB of x for one chain, within L2
constexpr int64_t TASK_WEIGHTS = 1 << 20;  // bytes of the panels of one task, at most

// packed [ceil(outs / OUTS)][depth / PAIR][OUTS][PAIR]; outputs past the end are 0.
template <class T>
void pack_weight(Matrix weight, Matrix packed, int threads) {
  const int64_t outs = weight.rows, depth = weight.cols;
  parallel_for((outs + OUTS - 1) / OUTS, threads, [=](Tasks& tasks) {
    for (int64_t p; tasks.next(p);) {
      T* to = as<T>(packed) + p * OUTS * depth;
      for (int64_t k = 0; k < depth; k += PAIR<T>)
        for (int64_t o = p * OUTS; o < (p + 1) * OUTS; ++o)
          for (int64_t i = 0; i < PAIR<T>; ++i)
            *to++ = o < outs ? as<T>(weight)[o * depth + k + i] : T{};
    }
  });
}

// y[r][w] <- f(acc + shift) for R rows of one panel, of which the first `live` outputs exist.
template <int R, class T>
M3_INLINE void finish(const vf (&acc)[R][WIDTH], const float* shift, bool with_gelu, T* y,
                      int64_t row, int64_t live) {
  for (int r = 0; r < R; ++r)
    for (int w = 0; w < WIDTH; ++w) {
      const vf sum = acc[r][w] + load(shift + w * VL);
      const vf v = with_gelu ? gelu(sum) : sum;
      const int64_t left = live - w * VL;
      if (left >= VL)
        store(y + r * row + w * VL, v);
      else if (left > 0)
        store_first(y + r * row + w * VL, v, left);
    }
}

// The panel has been checked by the binding.
template <class T>
void linear(Matrix x, Matrix packed, int, Span<float> bias, bool with_gelu, Matrix y, int threads) {
  const int64_t rows = x.rows, depth = x.cols, outs = y.cols;
  if (!rows || !outs) return;
  constexpr int64_t CHAIN = CHAIN_BYTES / sizeof(T);
  // Of few rows the weights decide: they come from memory at the price of 16 rows or so.
  threads = threads_for(std::max<int64_t>(rows, 16) * depth * outs, threads);
  const int64_t panels = (outs + OUTS - 1) / OUTS, blocks = (rows + BLOCK - 1) / BLOCK;
  const int64_t fits = TASK_WEIGHTS / (OUTS * depth * int64_t{sizeof(T)});
  const int64_t group =
      std::max<int64_t>(1, std::min(fits, panels * blocks / (TASKS * threads)));  // panels of a task
  const int64_t groups = (panels + group - 1) / group;
  const T* packed_end = as<T>(packed) + panels * OUTS * depth;
  const int64_t tiles = (std::min(rows, BLOCK) + ROWS - 1) / ROWS;
  constexpr int64_t STEP_LINES = (OUTS * 4 + 63) / 64;  // of packed weights, for one step in depth
  const int lines = static_cast<int>((STEP_LINES + tiles - 1) / tiles);
  // Tasks that follow each other share their weights: two threads read them from L3 once.
  parallel_for(groups * blocks, threads, [=](Tasks& tasks) {
    Buffer sums(std::min(rows, BLOCK) * OUTS);
    for (int64_t t; tasks.next(t);) {
      const int64_t b = t % blocks, first = rows * b / blocks;
      const int64_t n = rows * (b + 1) / blocks - first;
      const int64_t begin = t / blocks * group, end = std::min(panels, begin + group);
      for (int64_t p = begin; p < end; ++p) {
        const T* panel = as<T>(packed) + p * OUTS * depth;
        const int64_t live = std::min<int64_t>(OUTS, outs - p * OUTS);
        float shift[OUTS] = {};
        if (bias.data) std::memcpy(shift, bias.data + p * OUTS, live * sizeof(float));
        for (int64_t k = 0; k < depth; k += CHAIN) {
          const int64_t steps = std::min(CHAIN, depth - k);
          // Few rows wait for weights from memory: while one chain of them is used, the next comes.
          const T* next = panel + (k + steps) * OUTS;
          const int64_t left = (packed_end - next) * int64_t{sizeof(T)};
          const char* from = reinterpret_cast<const char*>(next);
          const char* ahead_end = from + std::min<int64_t>(left, CHAIN * OUTS * sizeof(T));
          Ahead ahead{from, left > 0 ? lines : 0};
          over_tiles(n, [&](auto count, int64_t r) M3_LAMBDA_INLINE {
            constexpr int R = decltype(count)::value;
            vf acc[R][WIDTH];
            multiply<R, WIDTH>(as<T>(x) + (first + r) * depth + k, depth, PAIR<T>,
                               panel + k * OUTS, steps, acc, ahead);
            if (ahead.lines) {
              ahead.at += steps / PAIR<T> * ahead.lines * 64;
              if (ahead.at >= ahead_end) ahead.lines = 0;
            }
            float* sum = sums + r * OUTS;
            if (k)
              for (int i = 0; i < R; ++i)
                for (int w = 0; w < WIDTH; ++w) acc[i][w] += load(sum + i * OUTS + w * VL);
            if (k + steps == depth) {
              T* to = as<T>(y) + (first + r) * outs + p * OUTS;
              finish<R>(acc, shift, with_gelu, to, outs, live);
              return;
            }
            for (int i = 0; i < R; ++i)
              for (int w = 0; w < WIDTH; ++w) store(sum + i * OUTS + w * VL, acc[i][w]);
          });
        }
      }
    }
  });
}

}  // namespace m3::M3_ISA
