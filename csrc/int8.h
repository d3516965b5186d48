// Rows in eight bits: x ~ scale * (u - zero), u in [0, TOP], with one scale and one zero for every
// GROUP columns of a row, found while the row is in cache. 0 is one of the values, so small numbers
// beside a large one are not all moved to one side.
#pragma once
#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "elementwise.h"
#include "tile.h"

namespace m3::M3_ISA {

// A group's integer products stay below 2^24, so fp32 holds them exactly.
#if defined(__AVX2__) && !defined(__AVX512VNNI__) && !defined(__AVXVNNI__)
constexpr int ROW_BITS = 7;  // two products then fit in 16 bits
constexpr int64_t GROUP = 128;
#else
constexpr int ROW_BITS = 8;
constexpr int64_t GROUP = 512;
#endif
constexpr int TOP = (1 << ROW_BITS) - 1;

M3_INLINE int64_t groups_of(int64_t cols) { return (cols + GROUP - 1) / GROUP; }

// The low byte of every element.
M3_INLINE void store_bytes(uint8_t* to, vu v) {
#if defined(__AVX512F__)
  _mm512_mask_cvtepi32_storeu_epi8(to, 0xffff, (__m512i)v);
#elif defined(__AVX2__)
  const __m256i bytes = (__m256i)(v & 0xff);
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(bytes),
                                         _mm256_extracti128_si256(bytes, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(words, words));
#else
  for (int i = 0; i < VL; ++i) to[i] = static_cast<uint8_t>(v[i]);
#endif
}

template <class Fold>
M3_INLINE float folded(vf v, Fold fold) {
  float lanes[VL];
  store(lanes, v);
  for (int half = VL / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] = fold(lanes[i], lanes[i + half]);
  return lanes[0];
}

// n <= GROUP floats to bytes; scale and -scale * zero to made[0] and made[1]. What is not finite
// makes the latter NaN, and so every product with the row.
M3_INLINE void quantize_group(const float* x, int64_t n, uint8_t* to, float* made) {
  vf low{}, high{}, odd{};
  const auto look = [&](vf v) M3_LAMBDA_INLINE {
    low = min(low, v), high = max(high, v);
    odd += v * 0.f;
  };
  sweep(n, [&](int64_t c, int64_t m) M3_LAMBDA_INLINE { look(load(x + c, m)); });
  const float least = folded(low, [](float a, float b) { return a < b ? a : b; });
  const float most = folded(high, [](float a, float b) { return a > b ? a : b; });
  const float strange = folded(odd, [](float a, float b) { return a + b; });
  const float range = most - least, magic = 0x1.8p23f;  // as in exp2
  const bool flat = !(range > 1e-30f);                  // its inverse would be infinite
  const float inverse = flat ? 0 : TOP / range, scale = flat ? 0 : range / TOP;
  const float zero = -least * inverse + magic;  // magic + a whole number
  made[0] = scale;
  made[1] = strange - scale * (zero - magic);
  sweep(n, [=](int64_t c, int64_t m) M3_LAMBDA_INLINE {
    const vu u = (vu)min(load(x + c, m) * inverse + zero, splat(magic + TOP));
    if (m == VL) return store_bytes(to + c, u);
    uint8_t bytes[VL];
    store_bytes(bytes, u);
    std::memcpy(to + c, bytes, m);
  });
}

M3_INLINE void quantize_row(const float* x, int64_t cols, uint8_t* to, float* made) {
  for (int64_t c = 0; c < cols; c += GROUP, made += 2)
    quantize_group(x + c, std::min(GROUP, cols - c), to + c, made);
}

// Where rows go in eight bits: bytes [rows, stride], of which the last ones may be padding, and
// scales [rows, groups, 2].
struct ByteRows {
  ByteRows(const Matrix& q, const Matrix& scales, int64_t cols)
      : data(as<uint8_t>(q)),
        stride(q.cols),
        made(as<float>(scales)),
        step(2 * groups_of(cols)),
        cols(cols) {}
  M3_INLINE void put(const float* x, int64_t r) const {
    quantize_row(x, cols, data + r * stride, made + r * step);
  }
  uint8_t* data;
  int64_t stride;
  float* made;
  int64_t step, cols;
};

template <class T>
void quantize_rows(Matrix x, Matrix q, Matrix scales, int threads) {
  const ByteRows to(q, scales, x.cols);
  over_rows(x.rows, x.cols, threads, [&](int64_t first, int64_t last) {
    Buffer wide(x.cols);
    for (int64_t r = first; r < last; ++r) {
      const T* row = as<T>(x) + r * x.cols;
      if constexpr (sizeof(T) == sizeof(float)) {
        to.put(row, r);
        continue;
      }
      widen(row, wide, x.cols, 1.f);
      to.put(wide, r);
    }
  });
}

// As `add_layernorm`, and the result without `shift` in eight bits beside it.
template <class T>
void add_layernorm_int8(Matrix x, Matrix residual, Span<float> bias, Span<float> weight,
                        Span<float> shift, float eps, Matrix out, Matrix q, Matrix scales,
                        int threads) {
  const LayerNorm ln{weight.data, shift.data, eps, x.cols};
  const ByteRows to(q, scales, x.cols);
  over_rows(x.rows, ln.cols, threads, [&](int64_t first, int64_t last) {
    Buffer y(ln.cols);
    for (int64_t r = first; r < last; ++r) {
      const T *a = as<T>(x) + r * ln.cols, *b = as<T>(residual) + r * ln.cols;
      T* put = as<T>(out) + r * ln.cols;
      const float* more = bias.data;
      layernorm_row<true>(ln, y, put, [=](int64_t c, int64_t n) M3_LAMBDA_INLINE {
        const vf v = load(a + c, n) + load(b + c, n);
        return more ? v + load(more + c, n) : v;
      });
      to.put(y, r);
    }
  });
}

// As `embed_layernorm` of tables in eight bits with a scale for each row, in both forms likewise.
template <class T>
void embed_layernorm_int8(Span<int32_t> ids, Span<int32_t> positions, Matrix word,
                          Span<float> word_scale, Matrix position, Span<float> position_scale,
                          Span<float> type_row, Span<float> weight, Span<float> shift, float eps,
                          Matrix out, Matrix q, Matrix scales, int threads) {
  const LayerNorm ln{weight.data, shift.data, eps, out.cols};
  const ByteRows to(q, scales, out.cols);
  over_rows(out.rows, ln.cols, threads, [&](int64_t first, int64_t last) {
    Buffer y(ln.cols);
    for (int64_t r = first; r < last; ++r) {
      const int64_t id = ids.data[r], place = positions.data[r];
      const int8_t *w = as<int8_t>(word) + id * ln.cols, *p = as<int8_t>(position) + place * ln.cols;
      const float ws = word_scale.data[id], ps = position_scale.data[place];
      const float* type = type_row.data;
      layernorm_row<true>(
          ln, y, as<T>(out) + r * ln.cols, [=](int64_t c, int64_t n) M3_LAMBDA_INLINE {
            return load(w + c, n) * ws + load(p + c, n) * ps + load(type + c, n);
          });
      to.put(y, r);
    }
  });
}

}  // namespace m3::M3_ISA
