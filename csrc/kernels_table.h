// The table of one instruction set: from dtypes at run time to the templates.
#pragma once
#include "attention.h"
#include "elementwise.h"
#include "int8_table.h"
#include "linear.h"
#include "maxsim.h"

namespace m3::M3_ISA {

// As `by_dtype`, where bf16 is multiplied only by AVX512_BF16.
template <class Body>
void by_factor(Dtype dtype, Body body) {
#ifdef __AVX512BF16__
  by_dtype(dtype, body);
#else
  (void)dtype;
  body(0.f);
#endif
}

// As `by_dtype`, and f16.
template <class Body>
void by_document(Dtype dtype, Body body) {
  if (dtype == Dtype::f16)
    body(f16{});
  else
    by_dtype(dtype, body);
}

inline Kernels table(const char* name) {
  Kernels k{};
  k.name = name;
  k.panel = OUTS;
#ifdef __AVX512BF16__
  k.multiplies_bf16 = true;
#endif
  k.bias_gelu = [](auto x, auto... rest) {
    by_dtype(x.dtype, [&](auto e) { bias_gelu<decltype(e)>(x, rest...); });
  };
  k.add_layernorm = [](auto x, auto... rest) {
    by_dtype(x.dtype, [&](auto e) { add_layernorm<decltype(e)>(x, rest...); });
  };
  k.embed_layernorm = [](auto ids, auto positions, auto word, auto... rest) {
    by_dtype(word.dtype,
             [&](auto e) { embed_layernorm<decltype(e)>(ids, positions, word, rest...); });
  };
  k.attention = [](auto qkv, auto... rest) {
    by_dtype(qkv.dtype, [&](auto e) { attention<decltype(e)>(qkv, rest...); });
  };
  k.pack_weight = [](auto weight, auto... rest) {
    by_dtype(weight.dtype, [&](auto e) { pack_weight<decltype(e)>(weight, rest...); });
  };
  k.linear = [](auto x, auto... rest) {
    by_factor(x.dtype, [&](auto e) { linear<decltype(e)>(x, rest...); });
  };
  use_int8(k);
  k.maxsim = [](auto queries, auto q_offsets, auto docs, auto... rest) {
    by_document(docs.dtype,
                [&](auto e) { maxsim<decltype(e)>(queries, q_offsets, docs, rest...); });
  };
  k.maxsim_pairs = [](auto queries, auto q_offsets, auto docs, auto... rest) {
    by_document(docs.dtype,
                [&](auto e) { maxsim_pairs<decltype(e)>(queries, q_offsets, docs, rest...); });
  };
  return k;
}

}  // namespace m3::M3_ISA
