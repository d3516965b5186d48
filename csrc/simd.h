// Vectors of floats by the compiler's vector extensions, so one source serves SSE, AVX2, AVX-512
// and NEON. Included once per kernels_*.cpp, which sets M3_ISA (a namespace) and M3_VECTOR_BYTES.
#pragma once
#include <cstdint>
#include <cstring>
#include <new>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "views.h"

#define M3_INLINE inline __attribute__((always_inline))
#define M3_LAMBDA_INLINE __attribute__((always_inline))

namespace m3::M3_ISA {

constexpr int VL = M3_VECTOR_BYTES / 4;  // floats per vector
typedef float vf __attribute__((vector_size(M3_VECTOR_BYTES)));
typedef int32_t vi __attribute__((vector_size(M3_VECTOR_BYTES)));
typedef uint32_t vu __attribute__((vector_size(M3_VECTOR_BYTES)));
typedef uint16_t vh __attribute__((vector_size(M3_VECTOR_BYTES / 2)));
typedef int8_t vb __attribute__((vector_size(M3_VECTOR_BYTES / 4)));

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class T>
M3_INLINE T* as(const Matrix& m) {
  return static_cast<T*>(m.data);
}

M3_INLINE vf splat(float x) { return x - vf{}; }  // x + 0 would be an addition: -0 + 0 is 0

template <class V, class T>
M3_INLINE V load_as(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

M3_INLINE vf load(const float* p) { return load_as<vf>(p); }
M3_INLINE vf load(const bf16* p) { return (vf)(__builtin_convertvector(load_as<vh>(p), vu) << 16); }
M3_INLINE vf load(const f16* p) {
  const vu h = __builtin_convertvector(load_as<vh>(p), vu);
  // The bits moved into place are the number times 2^-112; what was infinite or NaN stays so.
  const vf scaled = (vf)((h & 0x7fff) << 13) * 0x1p112f;
  const vu special = (vu)((h & 0x7c00) == 0x7c00) & 0x7f800000;
  return (vf)((vu)scaled | special | (h & 0x8000) << 16);
}

M3_INLINE vf load(const int8_t* p) { return __builtin_convertvector(load_as<vb>(p), vf); }

M3_INLINE void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }
M3_INLINE void store(bf16* p, vf v) {
#ifdef __AVX512BF16__  // it makes zeros of subnormals, as the product of bf16 does
  const vh h = (vh)_mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &h, sizeof h);
#else
  const vu u = (vu)v;
  const vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;  // to nearest, ties to even
  const vu nan = (u >> 16) | 0x40;
  const vh h = __builtin_convertvector(v == v ? rounded : nan, vh);
  std::memcpy(p, &h, sizeof h);
#endif
}

// The first n < VL elements; the other lanes are 0.
template <class T>
M3_INLINE vf load_first(const T* p, int64_t n) {
  T padded[VL] = {};
  std::memcpy(padded, p, n * sizeof(T));
  return load(padded);
}
template <class T>
M3_INLINE void store_first(T* p, vf v, int64_t n) {
  T padded[VL];
  store(padded, v);
  std::memcpy(p, padded, n * sizeof(T));
}

// VL elements where n == VL (a constant in the main loop of `sweep`), else the first n.
template <class T>
M3_INLINE vf load(const T* p, int64_t n) {
  return n == VL ? load(p) : load_first(p, n);
}
template <class T>
M3_INLINE void store(T* p, vf v, int64_t n) {
  if (n == VL)
    store(p, v);
  else
    store_first(p, v, n);
}

// body(start, count) over [0, size): full vectors, then what is left.
template <class Body>
M3_INLINE void sweep(int64_t size, Body&& body) {
  int64_t c = 0;
  for (; c + VL <= size; c += VL) body(c, int64_t{VL});
  if (c < size) body(c, size - c);
}

M3_INLINE float sum(vf v) {
  float total = 0;
  for (int i = 0; i < VL; ++i) total += v[i];
  return total;
}

// A NaN in b comes through: the comparison is false then, as in maxps.
M3_INLINE vf max(vf a, vf b) { return a > b ? a : b; }
M3_INLINE vf min(vf a, vf b) { return a < b ? a : b; }

// 2^x for |x| <= 126, to 1.2e-7 of the value; NaN comes through.
// Minimax polynomial of 2^f on [-1/2, 1/2], fitted by linear programming (7.5e-8). Here and in gelu
// even and odd powers are summed apart: the length of one chain is what limits the speed.
M3_INLINE vf exp2(vf x) {
  const float magic = 0x1.8p23f;  // adding it rounds to the nearest integer, kept in the low bits
  const vf shifted = x + magic;
  const vf f = x - (shifted - magic);
  const vf ff = f * f;
  const vf odd = (0.0013276473781190503f * ff + 0.05550713268521696f) * ff + 0.6931469670663871f;
  const vf even = (0.009675541350916073f * ff + 0.24022119723812432f) * ff + 1.0000000716542718f;
  return (odd * f + even) * (vf)(((vu)shifted << 23) + 0x3f800000);
}

// Floats aligned to a cache line, for one thread's scratch.
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data_(static_cast<float*>(::operator new(size * sizeof(float), std::align_val_t(64)))) {}
  ~Buffer() { ::operator delete(data_, std::align_val_t(64)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  operator float*() const { return data_; }

 private:
  float* data_;
};

}  // namespace m3::M3_ISA
