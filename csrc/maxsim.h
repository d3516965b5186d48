// Mean over query tokens of the max over document tokens of their dot product.
#pragma once
#include <algorithm>
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "tile.h"

namespace m3::M3_ISA {

constexpr int64_t DOC_ROWS = 48;       // document tokens at a time: 192 KB at dim 1024, within L2
constexpr int64_t QUERY_TOKENS = 512;  // query tokens held transposed at a time: 2 MB at dim 1024

// Query tokens transposed into panels [dim][PANEL], and the best product of each so far.
struct QueryBlock {
  QueryBlock(int64_t tokens, int64_t dim_)
      : dim(dim_), panels((tokens + PANEL - 1) / PANEL), columns(panels * PANEL * dim_) {}
  // Panel p from rows [p * PANEL, ...) of `rows` [tokens, dim]; columns without a token are 0.
  void fill(int64_t p, const float* rows, int64_t tokens) {
    float* to = columns + p * PANEL * dim;
    const int64_t n = std::min<int64_t>(PANEL, tokens - p * PANEL);
    if (n < PANEL) std::fill_n(to, PANEL * dim, 0.f);
    transpose(rows + p * PANEL * dim, dim, to, PANEL, n, dim);
  }
  int64_t dim, panels;
  Buffer columns;
};

// best [panels * PANEL] <- max over the n rows of doc of their products with each query token.
template <class T>
void best_products(const QueryBlock& q, int64_t panels, const T* doc, int64_t n, float* wide,
                   float* best) {
  std::fill_n(best, panels * PANEL, -__builtin_inff());
  for (int64_t row = 0; row < n; row += DOC_ROWS) {
    const int64_t rows = std::min(DOC_ROWS, n - row);
    const float* a;
    if constexpr (sizeof(T) == sizeof(float)) {
      a = doc + row * q.dim;
    } else {
      widen(doc + row * q.dim, wide, rows * q.dim, 1.f);
      a = wide;
    }
    for (int64_t p = 0; p < panels; ++p) {
      float* to = best + p * PANEL;
      vf top[2] = {load(to), load(to + VL)};
      vi nan[2] = {top[0] != top[0], top[1] != top[1]};  // the maximum alone would forget a NaN
      over_tiles(rows, [&](auto count, int64_t r) M3_LAMBDA_INLINE {
        constexpr int R = decltype(count)::value;
        vf acc[R][2];
        multiply<R, 2>(a + r * q.dim, q.dim, 1, q.columns + p * PANEL * q.dim, q.dim, acc);
        for (int i = 0; i < R; ++i)
          for (int w = 0; w < 2; ++w) {
            top[w] = max(top[w], acc[i][w]);
            nan[w] |= acc[i][w] != acc[i][w];
          }
      });
      for (int w = 0; w < 2; ++w) store(to + w * VL, nan[w] ? splat(__builtin_nanf("")) : top[w]);
    }
  }
}

inline float mean_of(const float* values, int64_t n) {
  float total = 0;
  for (int64_t i = 0; i < n; ++i) total += values[i];
  return total / n;
}

template <class T>
void maxsim(Span<float> queries, Span<int64_t> q_offsets, Matrix docs, Span<int64_t> d_offsets,
            Matrix out, int threads) {
  const int64_t *q_ends = q_offsets.data, *d_ends = d_offsets.data;
  const int64_t n_queries = q_offsets.size - 1, n_docs = d_offsets.size - 1, dim = docs.cols;
  for (int64_t first = 0, last; first < n_queries; first = last) {
    last = first + 1;
    while (last < n_queries && q_ends[last + 1] - q_ends[first] <= QUERY_TOKENS) ++last;
    const int64_t start = q_ends[first], tokens = q_ends[last] - start;
    QueryBlock block(tokens, dim);
    const int64_t work = tokens * (d_ends[n_docs] - d_ends[0]) * dim;
    const int team = threads_for(work, threads);
    parallel_for(block.panels, team, [&](Tasks& tasks) {
      for (int64_t p; tasks.next(p);) block.fill(p, queries.data + start * dim, tokens);
    });
    parallel_for(n_docs, team, [&](Tasks& tasks) {
      Buffer wide(DOC_ROWS * dim), best(block.panels * PANEL);
      for (int64_t j; tasks.next(j);) {
        const int64_t n = d_ends[j + 1] - d_ends[j];
        best_products(block, block.panels, as<T>(docs) + d_ends[j] * dim, n, wide, best);
        for (int64_t i = first; i < last; ++i) {
          const int64_t size = q_ends[i + 1] - q_ends[i];
          const float mean = size && n ? mean_of(best + q_ends[i] - start, size) : 0.f;
          as<float>(out)[i * n_docs + j] = mean;
        }
      }
    });
  }
}

template <class T>
void maxsim_pairs(Span<float> queries, Span<int64_t> q_offsets, Matrix docs,
                  Span<int64_t> d_offsets, Span<int64_t> pairs, Matrix out, int threads) {
  const int64_t *q_ends = q_offsets.data, *d_ends = d_offsets.data, *of = pairs.data;
  const int64_t n_pairs = pairs.size / 2, dim = docs.cols;
  int64_t longest = 0, products = 0;
  for (int64_t p = 0; p < n_pairs; ++p) {
    const int64_t i = of[2 * p], j = of[2 * p + 1], tokens = q_ends[i + 1] - q_ends[i];
    longest = std::max(longest, tokens);
    products += tokens * (d_ends[j + 1] - d_ends[j]);
  }
  parallel_for(n_pairs, threads_for(products * dim, threads), [&](Tasks& tasks) {
    QueryBlock block(longest, dim);
    Buffer wide(DOC_ROWS * dim), best(block.panels * PANEL);
    int64_t held = -1;  // the query now in `block`: neighbours in the list often share one
    for (int64_t t; tasks.next(t);) {
      const int64_t i = of[2 * t], j = of[2 * t + 1];
      const int64_t tokens = q_ends[i + 1] - q_ends[i], n = d_ends[j + 1] - d_ends[j];
      const int64_t panels = (tokens + PANEL - 1) / PANEL;
      if (held != i)
        for (int64_t p = 0; p < panels; ++p) block.fill(p, queries.data + q_ends[i] * dim, tokens);
      held = i;
      best_products(block, panels, as<T>(docs) + d_ends[j] * dim, n, wide, best);
      as<float>(out)[t] = tokens && n ? mean_of(best, tokens) : 0.f;
    }
  });
}

}  // namespace m3::M3_ISA
