// The product of a few rows and a panel of columns, in registers: the core of attention and MaxSim.
#pragma once
#include "simd.h"

#if defined(__clang__) || __GNUC__ >= 12
#define M3_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else  // GCC 11, which Ubuntu 22.04 has
#define M3_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, i4{__VA_ARGS__})
#endif

namespace m3::M3_ISA {

constexpr int ROWS = 6;        // rows of a tile; 6 x 2 accumulators + 3 fit 16 vector registers
constexpr int PANEL = 2 * VL;  // columns of a full panel, two vectors

// Brings what is needed next from memory to L2: `lines` cache lines for every step of a product.
struct Ahead {
  const char* at = nullptr;
  int lines = 0;

  M3_INLINE void step() {
    for (int i = 0; i < lines; ++i, at += 64) __builtin_prefetch(at, 0, 2);
  }
};

// acc[r][w] = sum over k < depth of a[r * row + k * step] * b[k][w], b being [depth][W * VL].
template <int R, int W>
M3_INLINE void multiply(const float* a, int64_t row, int64_t step, const float* b, int64_t depth,
                        vf (&acc)[R][W], Ahead ahead = {}) {
  vf t[R][W] = {};
  for (int64_t k = 0; k < depth; ++k, a += step, b += W * VL) {
    ahead.step();
    vf column[W];
    for (int w = 0; w < W; ++w) column[w] = load(b + w * VL);
    for (int r = 0; r < R; ++r) {
      const vf x = splat(a[r * row]);
      for (int w = 0; w < W; ++w) t[r][w] += x * column[w];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int w = 0; w < W; ++w) acc[r][w] = t[r][w];
}

// Neighbours in depth that lie side by side in b, 4 bytes of them: what one instruction sums.
template <class T>
constexpr int64_t PAIR = sizeof(float) / sizeof(T);

#ifdef __AVX512BF16__
// The same for bf16: depth is even, b is [depth / 2][W * VL][2], step lies between pairs of a.
template <int R, int W>
M3_INLINE void multiply(const bf16* a, int64_t row, int64_t step, const bf16* b, int64_t depth,
                        vf (&acc)[R][W], Ahead ahead = {}) {
  __m512 t[R][W] = {};
  for (int64_t k = 0; k < depth; k += 2, a += step, b += 2 * W * VL) {
    ahead.step();
    __m512bh column[W];
    for (int w = 0; w < W; ++w) column[w] = (__m512bh)load_as<__m512i>(b + 2 * w * VL);
    for (int r = 0; r < R; ++r) {
      const __m512bh pair = (__m512bh)_mm512_set1_epi32(load_as<int32_t>(a + r * row));
      for (int w = 0; w < W; ++w) t[r][w] = _mm512_dpbf16_ps(t[r][w], pair, column[w]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int w = 0; w < W; ++w) acc[r][w] = (vf)t[r][w];
}
#endif

template <int N>
struct Count {
  static constexpr int value = N;
};

template <int MOST, class Body>
M3_INLINE void with_count(int64_t count, int64_t first, Body& body) {
  if constexpr (MOST > 1)
    if (count < MOST) return with_count<MOST - 1>(count, first, body);
  body(Count<MOST>{}, first);
}

// body(Count<R>, first): [0, n) in runs of R <= MOST rows, as equal as they come, since a run of
// one or two rows waits for its own additions.
template <int MOST = ROWS, class Body>
M3_INLINE void over_tiles(int64_t n, Body&& body) {
  const int64_t tiles = (n + MOST - 1) / MOST;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = n * t / tiles;
    with_count<MOST>(n * (t + 1) / tiles - first, first, body);
  }
}

// to[c][r] = from[r][c]; rows and columns beyond a multiple of 4 go one by one.
inline void transpose(const float* from, int64_t from_row, float* to, int64_t to_row, int64_t rows,
                      int64_t cols) {
  typedef float v4 __attribute__((vector_size(16)));
  typedef int32_t i4 __attribute__((vector_size(16), unused));
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    int64_t c = 0;
    for (; c + 4 <= cols; c += 4) {
      const float* f = from + r * from_row + c;
      const v4 a = load_as<v4>(f), b = load_as<v4>(f + from_row);
      const v4 d = load_as<v4>(f + 2 * from_row), e = load_as<v4>(f + 3 * from_row);
      const v4 ab = M3_SHUFFLE(a, b, 0, 4, 1, 5);
      const v4 de = M3_SHUFFLE(d, e, 0, 4, 1, 5);
      const v4 ab2 = M3_SHUFFLE(a, b, 2, 6, 3, 7);
      const v4 de2 = M3_SHUFFLE(d, e, 2, 6, 3, 7);
      const v4 out[4] = {M3_SHUFFLE(ab, de, 0, 1, 4, 5),
                         M3_SHUFFLE(ab, de, 2, 3, 6, 7),
                         M3_SHUFFLE(ab2, de2, 0, 1, 4, 5),
                         M3_SHUFFLE(ab2, de2, 2, 3, 6, 7)};
      for (int i = 0; i < 4; ++i) std::memcpy(to + (c + i) * to_row + r, &out[i], sizeof(v4));
    }
    for (; c < cols; ++c)
      for (int i = 0; i < 4; ++i) to[c * to_row + r + i] = from[(r + i) * from_row + c];
  }
  for (; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) to[c * to_row + r] = from[r * from_row + c];
}

// n elements of any dtype as floats times scale.
template <class T>
M3_INLINE void widen(const T* from, float* to, int64_t n, float scale) {
  sweep(n, [=](int64_t c, int64_t m)
               M3_LAMBDA_INLINE { store(to + c, load(from + c, m) * scale, m); });
}

}  // namespace m3::M3_ISA
