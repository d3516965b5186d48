// The entries in eight bits of one instruction set: some sets have them alone.
#pragma once
#include "linear_int8.h"

namespace m3::M3_ISA {

// body(T{}) with the element type, f32 or bf16.
template <class Body>
void by_dtype(Dtype dtype, Body body) {
  if (dtype == Dtype::bf16)
    body(bf16{});
  else
    body(0.f);
}

inline void use_int8(Kernels& k) {
  k.int8_bits = ROW_BITS;
  k.int8_group = GROUP;
  k.int8_panel = OUTS8;
  k.pack_int8 = pack_int8;
  k.int8_times = int8_times;
  k.linear_gelu_int8 = linear_gelu_int8;
  k.quantize_rows = [](auto x, auto... rest) {
    by_dtype(x.dtype, [&](auto e) { quantize_rows<decltype(e)>(x, rest...); });
  };
  k.linear_int8 = [](auto q, auto scales, auto packed, auto panel, auto scale, auto sums,
                     auto bias, auto y, auto threads) {
    by_dtype(y.dtype, [&](auto e) {
      linear_int8<decltype(e)>(q, scales, packed, panel, scale, sums, bias, y, threads);
    });
  };
  k.add_layernorm_int8 = [](auto x, auto... rest) {
    by_dtype(x.dtype, [&](auto e) { add_layernorm_int8<decltype(e)>(x, rest...); });
  };
  k.embed_layernorm_int8 = [](auto ids, auto positions, auto word, auto word_scale, auto position,
                              auto position_scale, auto type_row, auto weight, auto shift, auto eps,
                              auto out, auto... rest) {
    by_dtype(out.dtype, [&](auto e) {
      embed_layernorm_int8<decltype(e)>(ids, positions, word, word_scale, position, position_scale,
                                        type_row, weight, shift, eps, out, rest...);
    });
  };
}

}  // namespace m3::M3_ISA
