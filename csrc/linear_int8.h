// y = x W^T + bias in eight bits: x as in int8.h, W a scale for each output. Products of bytes are
// summed in integers over a group, then in fp32:
//   y[n] = sum over g of (scale[g] * sum(u w[n]) + offset[g] * sum(w[n])), * scale of W[n] + bias[n].
// W is packed into panels [depth / 4][OUTS8][4]: the order that VNNI and AMX read.
#pragma once
#ifdef __x86_64__
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#include <utility>

#include "int8.h"
#include "tile.h"

namespace m3::M3_ISA {

constexpr int WIDTH8 = M3_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int OUTS8 = WIDTH8 * VL;                      // outputs of a panel
#ifdef __AVX512F__
constexpr int ROWS8 = 6;  // rows of a tile, as registers allow
#else
constexpr int ROWS8 = 5;
#endif
constexpr int64_t BLOCK8 = 96;                          // rows of a task
constexpr int64_t FEW8 = 24;                            // rows that wait for memory, not for VNNI
constexpr int64_t TASK_WEIGHTS8 = 1 << 19;              // bytes of the panels of one task, at most

M3_INLINE vi splat4(const uint8_t* p) { return load_as<int32_t>(p) - vi{}; }

// acc + the products of four neighbours, u8 times s8; without VNNI u has seven bits.
#if defined(__AVX512VNNI__)
M3_INLINE vi dot(vi acc, vi u, vi w) {
  return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)u, (__m512i)w);
}
#elif defined(__AVXVNNI__)
M3_INLINE vi dot(vi acc, vi u, vi w) {
  return (vi)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)u, (__m256i)w);
}
#elif defined(__AVX512BW__)
M3_INLINE vi dot(vi acc, vi u, vi w) {
  const __m512i pairs = _mm512_maddubs_epi16((__m512i)u, (__m512i)w);
  return acc + (vi)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
}
#elif defined(__AVX2__)
M3_INLINE vi dot(vi acc, vi u, vi w) {
  const __m256i pairs = _mm256_maddubs_epi16((__m256i)u, (__m256i)w);
  return acc + (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
#elif defined(__SSE2__)
M3_INLINE vi dot(vi acc, vi u, vi w) {
  const __m128i a = (__m128i)u, b = (__m128i)w;
  const __m128i even = _mm_madd_epi16(_mm_and_si128(a, _mm_set1_epi16(0xff)),
                                      _mm_srai_epi16(_mm_slli_epi16(b, 8), 8));
  const __m128i odd = _mm_madd_epi16(_mm_srli_epi16(a, 8), _mm_srai_epi16(b, 8));
  return acc + (vi)even + (vi)odd;
}
#elif defined(__ARM_FEATURE_DOTPROD)  // of signed bytes: u = s + 128
M3_INLINE vi dot(vi acc, vi u, vi w) {
  const int8x16_t b = (int8x16_t)w, s = (int8x16_t)(u ^ (vi)vdupq_n_u8(0x80));
  const int32x4_t more = vdotq_s32(vdotq_s32((int32x4_t)acc, s, b), vdupq_n_s8(64), b);
  return (vi)vdotq_s32(more, vdupq_n_s8(64), b);
}
#else
M3_INLINE vi dot(vi acc, vi u, vi w) {
  for (int i = 0; i < 4; ++i) acc += (u >> 8 * i & 0xff) * (w << (24 - 8 * i) >> 24);
  return acc;
}
#endif

// acc[r][w] = sum over k < depth of a[r * row + k] * b[k][w], b being [depth / 4][OUTS8][4].
template <int R>
M3_INLINE void multiply8(const uint8_t* a, int64_t row, const int8_t* b, int64_t depth,
                         vi (&acc)[R][WIDTH8], Ahead ahead) {
  vi t[R][WIDTH8] = {};
  for (int64_t k = 0; k < depth; k += 4, a += 4, b += 4 * OUTS8) {
    ahead.step();
    vi column[WIDTH8];
    for (int w = 0; w < WIDTH8; ++w) column[w] = load_as<vi>(b + 4 * w * VL);
    for (int r = 0; r < R; ++r) {
      const vi x = splat4(a + r * row);
      for (int w = 0; w < WIDTH8; ++w) t[r][w] = dot(t[r][w], x, column[w]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int w = 0; w < WIDTH8; ++w) acc[r][w] = t[r][w];
}

// put(r, w, sums) for every vector w of every row [0, n) of integer products, rows at `a`, a group's
// `depth` of a panel at `b`.
template <class Put>
M3_INLINE void row_product(const uint8_t* a, int64_t row, int64_t n, const int8_t* b,
                             int64_t depth, Ahead ahead, Put&& put) {
  const char* end = ahead.at + depth * OUTS8;
  over_tiles<ROWS8>(n, [&](auto count, int64_t r) M3_LAMBDA_INLINE {
    constexpr int R = decltype(count)::value;
    vi acc[R][WIDTH8];
    multiply8<R>(a + r * row, row, b, depth, acc, ahead);
    ahead.at += depth / 4 * ahead.lines * 64;
    if (ahead.at >= end) ahead.lines = 0;
    for (int i = 0; i < R; ++i)
      for (int w = 0; w < WIDTH8; ++w) put(r + i, w, acc[i][w]);
  });
}

#ifdef __AMX_INT8__
struct AmxTiles {  // for one thread: eight tiles of 16 rows of 64 bytes
  AmxTiles() {
    alignas(64) struct {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
  }
  ~AmxTiles() { _tile_release(); }
};

// The tiles' unit works by itself: while it multiplies one block of 32 rows and outputs, the vector
// units bring the one before to its place, some rows behind every step.
template <class Put>
M3_INLINE void group_product(const uint8_t* a, int64_t row, int64_t n, const int8_t* b,
                             int64_t depth, Ahead ahead, Put&& put) {
  if (n <= FEW8) return row_product(a, row, n, b, depth, ahead, put);
  static_assert(OUTS8 == 64, "two halves of two tiles");
  alignas(64) int32_t found[2][32][32];
  struct {
    const int32_t (*at)[32];
    int64_t first, last;  // rows left of it
    int vector;
  } before{found[0], 0, 0, 0};
  const auto place = [&](int64_t rows) M3_LAMBDA_INLINE {
    const int64_t last = std::min(before.last, before.first + rows);
    for (; before.first < last; ++before.first, ++before.at) {
      put(before.first, before.vector, load_as<vi>(*before.at));
      put(before.first, before.vector + 1, load_as<vi>(*before.at + VL));
    }
  };
  const int64_t share = (32 * 64 + depth - 1) / depth;
  int turn = 0;
  for (int half = 0; half < 2; ++half)  // one half of the panel stays in L1
    for (int64_t first = 0; first < n; first += 32, turn ^= 1) {
      const uint8_t* x = a + first * row;
      const int8_t *w = b + half * 128, *end = w + depth * OUTS8;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (; w < end; x += 64, w += 64 * OUTS8) {
        _tile_loadd(4, x, row);
        _tile_loadd(6, w, 4 * OUTS8);
        _tile_dpbusd(0, 4, 6);
        _tile_loadd(7, w + 64, 4 * OUTS8);
        _tile_dpbusd(1, 4, 7);
        if (n - first > 16) {
          _tile_loadd(5, x + 16 * row, row);
          _tile_dpbusd(2, 5, 6);
          _tile_dpbusd(3, 5, 7);
        }
        ahead.step();
        place(share);
      }
      int32_t(*to)[32] = found[turn];
      _tile_stored(0, to[0], 128);
      _tile_stored(1, to[0] + 16, 128);
      _tile_stored(2, to[16], 128);
      _tile_stored(3, to[16] + 16, 128);
      before = {to, first, std::min(n, first + 32), 2 * half};
    }
  place(32);
}
#else
struct AmxTiles {};

template <class... Args>
M3_INLINE void group_product(Args&&... args) {
  row_product(std::forward<Args>(args)...);
}
#endif

// gelu within 3e-5: eight bits hold no more. As `gelu`, with polynomials fitted likewise on [0, 5].
M3_INLINE vf gelu8(vf y) {
  const vf a = min((vf)((vu)y & 0x7fffffff), splat(5.f));
  vf g = 0.0041615425f * a + -0.0457353227f;
  g = g * a + -0.4649304622f;
  g = g * a + -1.1495668646f;
  g = g * a + -1.f;
  const float magic = 0x1.8p23f;
  const vf shifted = g + magic;
  const vf f = g - (shifted - magic);
  const vf power = ((0.0551717746f * f + 0.2426113724f) * f + 0.6932609700f) * f + 0.9999280273f;
  return max(vf{}, y) - a * (power * (vf)(((vu)shifted << 23) + 0x3f800000));
}

// W packed: bytes as above, scales [panels * OUTS8] and sums of its integers [groups][panels * OUTS8].
struct ByteWeight {
  ByteWeight(const Matrix& packed, Span<float> scale, Span<float> sums)
      : data(as<int8_t>(packed)),
        scale(scale.data),
        sums(sums.data),
        outs(scale.size),
        panels(outs / OUTS8),
        depth(packed.cols / std::max<int64_t>(outs, 1)) {}
  const int8_t* data;
  const float *scale, *sums;
  int64_t outs, panels, depth;  // outs: those of whole panels
};

// weight [outs, depth] of bytes with a scale for each row -> packed.
inline void pack_int8(Matrix weight, Span<float> scale, Matrix packed, Matrix scales, Matrix sums,
                      int threads) {
  const int64_t outs = weight.rows, depth = weight.cols;
  const int64_t all = scales.cols, padded = packed.cols / std::max<int64_t>(all, 1);
  parallel_for(all / OUTS8, threads, [=](Tasks& tasks) {
    for (int64_t p; tasks.next(p);) {
      const int64_t live = std::min<int64_t>(OUTS8, outs - p * OUTS8);
      const int8_t* rows = as<int8_t>(weight) + p * OUTS8 * depth;
      int8_t* to = as<int8_t>(packed) + p * OUTS8 * padded;
      for (int64_t k = 0; k < padded; k += 4)
        for (int64_t o = 0; o < OUTS8; ++o, to += 4) {
          int8_t four[4] = {};
          if (o < live && k + 4 <= depth)
            std::memcpy(four, rows + o * depth + k, 4);
          else if (o < live && k < depth)
            std::memcpy(four, rows + o * depth + k, depth - k);
          std::memcpy(to, four, 4);
        }
      for (int64_t o = 0; o < OUTS8; ++o) {
        const int64_t out = p * OUTS8 + o, there = o < live ? depth : 0;
        as<float>(scales)[out] = there ? scale.data[out] : 0;
        for (int64_t g = 0; g < groups_of(padded); ++g) {
          int32_t sum = 0;
          for (int64_t k = g * GROUP; k < std::min(there, (g + 1) * GROUP); ++k)
            sum += rows[o * depth + k];
          as<float>(sums)[g * all + out] = static_cast<float>(sum);
        }
      }
    }
  });
}

// y = W x of floats x.
inline void int8_times(Matrix weight, Span<float> scale, Span<float> x, Matrix y, int threads) {
  over_rows(weight.rows, weight.cols, threads, [=](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      const int8_t* row = as<int8_t>(weight) + r * weight.cols;
      vf total[4] = {};  // one alone would wait for its own additions
      int64_t c = 0;
      for (; c + 4 * VL <= weight.cols; c += 4 * VL)
        for (int i = 0; i < 4; ++i) total[i] += load(row + c + i * VL) * load(x.data + c + i * VL);
      for (; c < weight.cols; c += VL) {
        const int64_t n = std::min<int64_t>(VL, weight.cols - c);
        total[0] += load(row + c, n) * load(x.data + c, n);
      }
      as<float>(y)[r] = sum(total[0] + total[1] + (total[2] + total[3])) * scale.data[r];
    }
  });
}

// finish(r, w, y) for every vector w of every row [0, n) of panel p, without scale of W and bias.
template <class Finish>
M3_INLINE void panel_product(const uint8_t* x, int64_t stride, const float* made, int64_t n,
                             const ByteWeight& weight, int64_t p, float* sums, int lines,
                             Finish&& finish) {
  const int64_t depth = weight.depth, groups = groups_of(depth);
  const int8_t* panel = weight.data + p * OUTS8 * depth;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t k = g * GROUP, steps = std::min(GROUP, depth - k);
    const float* totals = weight.sums + g * weight.outs + p * OUTS8;
    // Few rows wait for weights from memory: while one group of them is used, the next comes.
    const Ahead ahead{reinterpret_cast<const char*>(panel + (k + steps) * OUTS8), lines};
    group_product(x + k, stride, n, panel + k * OUTS8, steps, ahead,
                  [&](int64_t r, int w, vi acc) M3_LAMBDA_INLINE {
                    const float* s = made + 2 * (r * groups + g);
                    vf v = __builtin_convertvector(acc, vf) * s[0] + load(totals + w * VL) * s[1];
                    float* sum = sums + r * OUTS8 + w * VL;
                    if (g) v += load(sum);
                    if (g + 1 == groups)
                      finish(r, w, v);
                    else
                      store(sum, v);
                  });
  }
}

// How rows and panels are shared out.
struct Blocks {
  explicit Blocks(int64_t rows) : rows(rows), count((rows + BLOCK8 - 1) / BLOCK8) {
    each = (rows + count - 1) / count;
    each = (each + 31) / 32 * 32;
  }
  int64_t rows, count, each;
};

// Lines to bring at every step: in all a group's weights, where one block of rows is all there is.
M3_INLINE int lines_ahead(int64_t rows) {
  int64_t tiles = (rows + ROWS8 - 1) / ROWS8, step = (OUTS8 * 4 + 63) / 64;
#ifdef __AMX_INT8__
  if (rows > FEW8) tiles = (rows + 31) / 32, step = 32;  // of half a panel and 64 in depth
#endif
  return rows > BLOCK8 ? 0 : static_cast<int>((step + tiles - 1) / tiles);
}

template <class T>
void linear_int8(Matrix q, Matrix scales, Matrix packed, int, Span<float> scale, Span<float> sums,
                 Span<float> bias, Matrix y, int threads) {
  const ByteWeight weight(packed, scale, sums);
  const int64_t rows = y.rows, outs = y.cols, panels = weight.panels;
  if (!rows || !outs) return;
  const Blocks blocks(rows);
  threads = threads_for(std::max<int64_t>(rows / 4, 16) * weight.depth * outs, threads);
  const int64_t fits = TASK_WEIGHTS8 / (OUTS8 * weight.depth);
  const int64_t group = std::max<int64_t>(
      1, std::min(fits, panels * blocks.count / (TASKS * threads)));  // panels of a task
  const int64_t groups = (panels + group - 1) / group, step = 2 * groups_of(weight.depth);
  const int lines = lines_ahead(rows);
  // Tasks that follow each other share their weights: two threads read them from L3 once.
  parallel_for(groups * blocks.count, threads, [=](Tasks& tasks) {
    Buffer sums(blocks.each * OUTS8);
    [[maybe_unused]] const AmxTiles tiles;
    for (int64_t t; tasks.next(t);) {
      const int64_t first = t % blocks.count * blocks.each;
      const int64_t n = std::min(blocks.each, rows - first);
      const int64_t begin = t / blocks.count * group, end = std::min(panels, begin + group);
      for (int64_t p = begin; p < end; ++p) {
        const float* factor = weight.scale + p * OUTS8;
        float shift[OUTS8] = {};
        const int64_t live = std::min<int64_t>(OUTS8, outs - p * OUTS8);
        if (bias.data) std::memcpy(shift, bias.data + p * OUTS8, live * sizeof(float));
        panel_product(as<uint8_t>(q) + first * q.cols, q.cols, as<float>(scales) + first * step, n,
                      weight, p, sums, lines,
                      [&](int64_t r, int w, vf v) M3_LAMBDA_INLINE {
                        v = v * load(factor + w * VL) + load(shift + w * VL);
                        T* to = as<T>(y) + (first + r) * outs + p * OUTS8 + w * VL;
                        const int64_t left = live - w * VL;
                        if (left >= VL)
                          store(to, v);
                        else if (left > 0)
                          store_first(to, v, left);
                      });
      }
    }
  });
}

// gelu of that, in eight bits itself. A task makes whole groups of a row's columns.
inline void linear_gelu_int8(Matrix q, Matrix scales, Matrix packed, int, Span<float> scale,
                             Span<float> sums, Span<float> bias, Matrix q_out, Matrix scales_out,
                             int threads) {
  const ByteWeight weight(packed, scale, sums);
  const int64_t step = 2 * groups_of(weight.depth), rows = scales.rows * scales.cols / step;
  const int64_t outs = bias.size;
  if (!rows || !outs) return;
  const Blocks blocks(rows);
  const ByteRows to(q_out, scales_out, outs);
  threads = threads_for(std::max<int64_t>(rows / 4, 16) * weight.depth * outs, threads);
  const int lines = lines_ahead(rows);
  parallel_for(groups_of(outs) * blocks.count, threads, [=](Tasks& tasks) {
    Buffer sums(blocks.each * OUTS8), made(blocks.each * GROUP);
    [[maybe_unused]] const AmxTiles tiles;
    for (int64_t t; tasks.next(t);) {
      const int64_t first = t % blocks.count * blocks.each;
      const int64_t n = std::min(blocks.each, rows - first);
      const int64_t g = t / blocks.count, begin = g * GROUP;
      const int64_t end = std::min(outs, begin + GROUP);
      for (int64_t p = begin / OUTS8; p * OUTS8 < end; ++p) {
        const float* factor = weight.scale + p * OUTS8;
        float shift[OUTS8] = {};
        std::memcpy(shift, bias.data + p * OUTS8,
                    std::min<int64_t>(OUTS8, outs - p * OUTS8) * sizeof(float));
        panel_product(as<uint8_t>(q) + first * q.cols, q.cols, as<float>(scales) + first * step, n,
                      weight, p, sums, lines,
                      [&](int64_t r, int w, vf v) M3_LAMBDA_INLINE {
                        v = gelu8(v * load(factor + w * VL) + load(shift + w * VL));
                        store(made + r * GROUP + (p * OUTS8 - begin) + w * VL, v);
                      });
      }
      for (int64_t r = 0; r < n; ++r)
        quantize_group(made + r * GROUP, end - begin, to.data + (first + r) * to.stride + begin,
                       to.made + (first + r) * to.step + 2 * g);
    }
  });
}

}  // namespace m3::M3_ISA
