// The table of one instruction set: from dtypes at run time to the templates.
#pragma once
#include "attention.h"
#include "elementwise.h"
#include "linear.h"
#include "maxsim.h"

namespace m3::M3_ISA {

template <class T>
const T* as(const void* p) {
  return static_cast<const T*>(p);
}
template <class T>
T* as(void* p) {
  return static_cast<T*>(p);
}

// body(T{}) with the element type; f16 only where `body` takes it.
template <class Body>
void by_dtype(Dtype dtype, Body body) {
  if (dtype == Dtype::bf16)
    body(bf16{});
  else
    body(0.f);
}

inline Kernels table(const char* name) {
  Kernels k{};
  k.name = name;
  k.bias_gelu = [](void* x, const float* bias, int64_t rows, int64_t cols, Dtype dtype,
                   int threads) {
    by_dtype(dtype, [=](auto e) { bias_gelu(as<decltype(e)>(x), bias, rows, cols, threads); });
  };
  k.add_layernorm = [](const void* x, const void* residual, const float* bias, const LayerNorm& ln,
                       void* out, int64_t rows, Dtype dtype, int threads) {
    by_dtype(dtype, [&](auto e) {
      using T = decltype(e);
      add_layernorm(as<T>(x), as<T>(residual), bias, ln, as<T>(out), rows, threads);
    });
  };
  k.embed_layernorm = [](const int32_t* ids, const int32_t* positions, const void* word,
                         const void* position, const float* type_row, const LayerNorm& ln,
                         void* out, int64_t rows, Dtype dtype, int threads) {
    by_dtype(dtype, [&](auto e) {
      using T = decltype(e);
      embed_layernorm(ids, positions, as<T>(word), as<T>(position), type_row, ln, as<T>(out), rows,
                      threads);
    });
  };
  k.attention = [](const void* qkv, const int32_t* cu_seqlens, int64_t texts, int64_t heads,
                   int64_t dim, float scale, void* out, Dtype dtype, int threads) {
    const float log2e = 1.44269504088896341f;
    by_dtype(dtype, [=](auto e) {
      using T = decltype(e);
      const Attention<T> given{as<T>(qkv), heads, dim, scale * log2e, as<T>(out)};
      if (dim % PAIR<Factor<T>> == 0)
        attention<Factor<T>>(given, cu_seqlens, texts, threads);
      else
        attention<float>(given, cu_seqlens, texts, threads);
    });
  };
  k.panel = OUTS;
#ifdef __AVX512BF16__
  k.multiplies_bf16 = true;
#endif
  k.pack_weight = [](const void* weight, int64_t outs, int64_t depth, void* packed, Dtype dtype,
                     int threads) {
    by_dtype(dtype, [=](auto e) {
      using T = decltype(e);
      pack_weight(as<T>(weight), outs, depth, as<T>(packed), threads);
    });
  };
  k.linear = [](const void* x, const void* packed, const float* bias, bool with_gelu, void* y,
                int64_t rows, int64_t depth, int64_t outs, Dtype dtype, int threads) {
    const auto body = [=](auto e) {
      using T = decltype(e);
      linear(as<T>(x), as<T>(packed), bias, with_gelu, as<T>(y), rows, depth, outs, threads);
    };
#ifdef __AVX512BF16__
    by_dtype(dtype, body);
#else
    (void)dtype;
    body(0.f);
#endif
  };
  k.maxsim = [](const float* queries, const int64_t* q_offsets, int64_t n_queries, const void* docs,
                const int64_t* d_offsets, int64_t n_docs, int64_t dim, float* out, Dtype dtype,
                int threads) {
    const auto body = [=](auto e) {
      maxsim(queries, q_offsets, n_queries, as<decltype(e)>(docs), d_offsets, n_docs, dim, out,
             threads);
    };
    dtype == Dtype::f16 ? body(f16{}) : by_dtype(dtype, body);
  };
  k.maxsim_pairs = [](const float* queries, const int64_t* q_offsets, const void* docs,
                      const int64_t* d_offsets, const int64_t* pairs, int64_t n_pairs, int64_t dim,
                      float* out, Dtype dtype, int threads) {
    const auto body = [=](auto e) {
      maxsim_pairs(queries, q_offsets, as<decltype(e)>(docs), d_offsets, pairs, n_pairs, dim, out,
                   threads);
    };
    dtype == Dtype::f16 ? body(f16{}) : by_dtype(dtype, body);
  };
  return k;
}

}  // namespace m3::M3_ISA
