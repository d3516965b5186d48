// softmax(Q K^T scale) V per text and head, without padding and without the [L, L] matrix.
//
// Everything is kept transposed: a vector register holds one number for each of VL queries. Scores
// S^T [keys, queries], their maxima and sums, and the output O^T [dim, queries] then need neither
// sums across a vector nor masks, and any length and head size is exact: keys and dim are rows of
// register tiles, only queries are rounded up to a vector; lanes without a query are not written.
#pragma once
#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "tile.h"

namespace m3::M3_ISA {

// Keys per block: K and V take 18 KB each at dim 64. From 24 to 144 they measured alike.
constexpr int64_t KEYS = 72;
constexpr int64_t QUERIES = 384;  // most queries of one task: they share the copies of K and V

// Element of both products: bf16 where there are products of it, else everything is widened.
#ifdef __AVX512BF16__
template <class T>
using Factor = T;
#else
template <class T>
using Factor = float;
#endif

template <class T>
struct Heads {
  const T* qkv;  // [T, 3, heads, dim]
  int64_t heads, dim;
  float scale;  // log2(e) included: exponentials are of base 2
  T* out;       // [T, heads, dim]
};

// E is the element of both products. Where it is bf16, neighbours in depth lie side by side: those of
// dim in q and k, those of the keys in v and in what becomes of s.
template <class E>
struct Scratch {
  Scratch(int64_t dim, int64_t panels)
      : q(panels * PANEL * dim),
        o(panels * PANEL * dim),
        top(panels * PANEL),
        total(panels * PANEL),
        k(KEYS * dim),
        v(KEYS * dim),
        s(KEYS * PANEL),
        rows(PANEL * dim),
        zeros(dim) {
    std::fill_n(zeros + 0, dim, 0.f);
  }
  Buffer q, o;        // per panel [dim][lanes]
  Buffer top, total;  // per panel [lanes]: running maximum, sum of exponentials
  Buffer k, v;        // [KEYS][dim]
  Buffer s;           // [KEYS][lanes]
  Buffer rows;        // [PANEL][dim]
  Buffer zeros;       // [dim]: beside the last of an odd number of keys

  static E* as(float* p) { return reinterpret_cast<E*>(p); }
};

// to[2 * i] = even[i], to[2 * i + 1] = odd[i] for i < VL.
M3_INLINE void interleave(const bf16* even, const bf16* odd, bf16* to) {
  const vu low = __builtin_convertvector(load_as<vh>(even), vu);
  const vu high = __builtin_convertvector(load_as<vh>(odd), vu);
  const vu pairs = low | high << 16;
  std::memcpy(to, &pairs, sizeof pairs);
}

M3_INLINE void store_pair(bf16* to, vf even, vf odd) {
  bf16 halves[2 * VL];
  store(halves, even);
  store(halves + VL, odd);
  interleave(halves, halves + VL, to);
}

// One block of n keys for one panel of W * VL queries.
template <int W, class E>
void attend(const Scratch<E>& m, int64_t panel, int64_t dim, int64_t n, float scale,
            bool first_block) {
  constexpr int LANES = W * VL;
  const E* q = m.as(m.q) + panel * PANEL * dim;
  float* o = m.o + panel * PANEL * dim;
  float *tops = m.top + panel * PANEL, *totals = m.total + panel * PANEL;

  vf top[W], before[W], total[W] = {}, fade[W];
  for (int w = 0; w < W; ++w) top[w] = before[w] = load(tops + w * VL);
  over_tiles(n, [&](auto count, int64_t key) M3_LAMBDA_INLINE {
    constexpr int R = decltype(count)::value;
    vf acc[R][W];
    multiply<R, W>(m.as(m.k) + key * dim, dim, PAIR<E>, q, dim, acc);
    for (int r = 0; r < R; ++r)
      for (int w = 0; w < W; ++w) {
        acc[r][w] *= scale;
        top[w] = max(top[w], acc[r][w]);
        store(m.s + (key + r) * LANES + w * VL, acc[r][w]);
      }
  });
  const auto exponential = [&](int64_t key, int w) M3_LAMBDA_INLINE {
    const vf p = exp2(max(splat(-126.f), load(m.s + key * LANES + w * VL) - top[w]));
    total[w] += p;
    return p;
  };
  for (int64_t key = 0; key < n; key += PAIR<E>)
    for (int w = 0; w < W; ++w) {
      const vf p = exponential(key, w);
      if constexpr (PAIR<E> == 1)
        store(m.s + key * LANES + w * VL, p);
      else  // over row key / 2, which has been read
        store_pair(m.as(m.s) + key * LANES + 2 * w * VL, p,
                   key + 1 < n ? exponential(key + 1, w) : vf{});
    }
  for (int w = 0; w < W; ++w) {
    fade[w] = exp2(max(splat(-126.f), before[w] - top[w]));  // what earlier blocks shrink by
    store(tops + w * VL, top[w]);
    store(totals + w * VL, first_block ? total[w] : load(totals + w * VL) * fade[w] + total[w]);
  }
  const int64_t depth = (n + PAIR<E> - 1) / PAIR<E> * PAIR<E>;
  over_tiles(dim, [&](auto count, int64_t d) M3_LAMBDA_INLINE {
    constexpr int R = decltype(count)::value;
    vf acc[R][W];
    multiply<R, W>(m.as(m.v) + d * PAIR<E>, PAIR<E>, dim * PAIR<E>, m.as(m.s), depth, acc);
    for (int r = 0; r < R; ++r)
      for (int w = 0; w < W; ++w) {
        float* to = o + (d + r) * LANES + w * VL;
        store(to, first_block ? acc[r][w] : load(to) * fade[w] + acc[r][w]);
      }
  });
}

template <class E, class T>
M3_INLINE void copy_row(const T* from, E* to, int64_t dim) {
  if constexpr (sizeof(E) == sizeof(T))
    std::memcpy(to, from, dim * sizeof(T));
  else
    widen(from, to, dim, 1.f);
}

// Queries [first, first + count) of the text of `length` tokens that begins at token `start`.
template <class E, class T>
void attend_queries(const Heads<T>& a, const Scratch<E>& m, int64_t start, int64_t length,
                    int64_t head, int64_t first, int64_t count) {
  const int64_t dim = a.dim, width = a.heads * dim;
  const T* text = a.qkv + start * 3 * width + head * dim;
  const auto live = [=](int64_t panel) { return std::min<int64_t>(PANEL, count - panel * PANEL); };
  const auto lanes = [=](int64_t panel) { return live(panel) <= VL ? VL : PANEL; };
  const int64_t panels = (count + PANEL - 1) / PANEL;

  for (int64_t p = 0; p < panels; ++p) {
    for (int64_t i = 0; i < lanes(p); ++i)
      if (i < live(p))
        copy_row(text + (first + p * PANEL + i) * 3 * width, m.as(m.rows) + i * dim, dim);
      else
        std::fill_n(m.as(m.rows) + i * dim, dim, E{});
    const int64_t columns = dim / PAIR<E>;  // a pair moves as one float
    transpose(m.rows, columns, m.q + p * PANEL * columns, lanes(p), lanes(p), columns);
    std::fill_n(m.top + p * PANEL, PANEL, -__builtin_inff());
  }
  for (int64_t key = 0; key < length; key += KEYS) {
    const int64_t n = std::min(KEYS, length - key);
    for (int64_t j = 0; j < n; ++j) {
      const T* row = text + (key + j) * 3 * width + width;
      copy_row(row, m.as(m.k) + j * dim, dim);
      if constexpr (PAIR<E> == 1) copy_row(row + width, m.as(m.v) + j * dim, dim);
    }
    if constexpr (PAIR<E> == 2)
      for (int64_t j = 0; j < n; j += 2) {
        const E* even = text + (key + j) * 3 * width + 2 * width;
        const E* odd = j + 1 < n ? even + 3 * width : m.as(m.zeros);
        E* to = m.as(m.v) + j * dim;
        int64_t d = 0;
        for (; d + VL <= dim; d += VL) interleave(even + d, odd + d, to + 2 * d);
        for (; d < dim; ++d) to[2 * d] = even[d], to[2 * d + 1] = odd[d];
      }
    for (int64_t p = 0; p < panels; ++p)
      if (lanes(p) == VL)
        attend<1>(m, p, dim, n, a.scale, key == 0);
      else
        attend<2>(m, p, dim, n, a.scale, key == 0);
  }
  for (int64_t p = 0; p < panels; ++p) {
    transpose(m.o + p * PANEL * dim, lanes(p), m.rows, dim, dim, lanes(p));
    for (int64_t i = 0; i < live(p); ++i) {
      T* to = a.out + (start + first + p * PANEL + i) * width + head * dim;
      const float scale = 1 / m.total[p * PANEL + i];
      const float* row = m.rows + i * dim;
      sweep(dim, [=](int64_t c, int64_t n)
                     M3_LAMBDA_INLINE { store(to + c, load(row + c, n) * scale, n); });
    }
  }
}

template <class E, class T>
void attend_texts(const Heads<T>& a, Span<int32_t> cu_seqlens, int64_t longest, int threads) {
  struct Task {
    int64_t text, first, count;
  };
  const int32_t* ends = cu_seqlens.data;
  const auto length = [=](int64_t i) { return int64_t{ends[i + 1]} - ends[i]; };
  std::vector<int64_t> order(cu_seqlens.size - 1);
  std::iota(order.begin(), order.end(), 0);
  // Longest first, so that the last tasks to finish are small ones.
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t i, int64_t j) { return length(i) > length(j); });
  std::vector<Task> blocks;
  int64_t pairs = 0;
  for (int64_t i : order) {
    const int64_t parts = (length(i) + QUERIES - 1) / QUERIES;
    pairs += length(i) * length(i);
    for (int64_t p = 0; p < parts; ++p) {
      // In whole panels, as equal as they come.
      const int64_t all = (length(i) + PANEL - 1) / PANEL;
      const int64_t first = all * p / parts * PANEL;
      const int64_t last = std::min(length(i), all * (p + 1) / parts * PANEL);
      blocks.push_back({i, first, last - first});
    }
  }
  threads = threads_for(2 * pairs * a.heads * a.dim, threads);
  parallel_for(static_cast<int64_t>(blocks.size()) * a.heads, threads, [&](Tasks& tasks) {
    const Scratch<E> scratch(a.dim, (std::min(longest, QUERIES) + PANEL - 1) / PANEL);
    for (int64_t t; tasks.next(t);) {
      const Task& b = blocks[t / a.heads];
      attend_queries(a, scratch, ends[b.text], length(b.text), t % a.heads, b.first, b.count);
    }
  });
}

template <class T>
void attention(Matrix qkv, Span<int32_t> cu_seqlens, int64_t longest, float scale, Matrix out,
               int threads) {
  const float log2e = 1.44269504088896341f;
  const int64_t dim = qkv.cols;
  const Heads<T> heads{as<T>(qkv), out.cols / dim, dim, scale * log2e, as<T>(out)};
  if (dim % PAIR<Factor<T>> == 0)
    attend_texts<Factor<T>>(heads, cu_seqlens, longest, threads);
  else
    attend_texts<float>(heads, cu_seqlens, longest, threads);
}

}  // namespace m3::M3_ISA
