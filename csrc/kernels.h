// The vectorised CPU operations: a table of functions per instruction set, chosen at run time.
#pragma once
#include <cstdint>
#include <vector>

#include "views.h"

namespace m3 {

// Arithmetic is fp32. kernels/*.py has checked shapes and dtypes.
struct Kernels {
  const char* name;
  // x <- gelu(x + bias); f32, bf16
  void (*bias_gelu)(Matrix x, Span<float> bias, int threads);
  // out = LN(x + residual + bias), bias may be null, out may be x or residual; f32, bf16
  void (*add_layernorm)(Matrix x, Matrix residual, Span<float> bias, Span<float> weight,
                        Span<float> shift, float eps, Matrix out, int threads);
  // out[r] = LN(word[ids[r]] + position[positions[r]] + type_row); f32, bf16
  void (*embed_layernorm)(Span<int32_t> ids, Span<int32_t> positions, Matrix word, Matrix position,
                          Span<float> type_row, Span<float> weight, Span<float> shift, float eps,
                          Matrix out, int threads);
  // qkv [T, 3, heads, dim], cu_seqlens [texts + 1] -> out [T, heads * dim]; f32, bf16
  void (*attention)(Matrix qkv, Span<int32_t> cu_seqlens, int64_t longest, float scale, Matrix out,
                    int threads);
  // Outputs of a panel of packed weights, and whether there is a product of bf16.
  int panel;
  bool multiplies_bf16;
  // weight [outs, depth] -> packed [ceil(outs / panel) * panel * depth] in the order of `linear`
  void (*pack_weight)(Matrix weight, Matrix packed, int threads);
  // y [rows, outs] = x [rows, depth] weight^T + bias, which may be null, or GELU of that; f32, and
  // bf16 with even depth where it is multiplied
  void (*linear)(Matrix x, Matrix packed, int panel, Span<float> bias, bool with_gelu, Matrix y,
                 int threads);
  // In eight bits: bits of a row's bytes, columns that share a scale, outputs of a panel.
  int int8_bits, int8_group, int8_panel;
  // x [rows, cols] f32 or bf16 -> q u8 [rows, >= cols], scales f32 [rows, groups of cols, 2]
  void (*quantize_rows)(Matrix x, Matrix q, Matrix scales, int threads);
  // weight s8 [outs, depth], scale [outs] -> packed s8 [1, outs * depth], scales f32 [outs] and sums
  // f32 [groups, outs], outs being those of whole panels and depth a multiple of INT8_STEP
  void (*pack_int8)(Matrix weight, Span<float> scale, Matrix packed, Matrix scales, Matrix sums,
                    int threads);
  // weight s8 [outs, depth], scale [outs], x f32 [depth] -> y f32 [outs]
  void (*int8_times)(Matrix weight, Span<float> scale, Span<float> x, Matrix y, int threads);
  // y [rows, outs] f32 or bf16 = x W^T + bias, which may be null; q has a multiple of INT8_ROWS rows
  void (*linear_int8)(Matrix q, Matrix scales, Matrix packed, int panel, Span<float> scale,
                      Span<float> sums, Span<float> bias, Matrix y, int threads);
  // GELU of that in the form of q
  void (*linear_gelu_int8)(Matrix q, Matrix scales, Matrix packed, int panel, Span<float> scale,
                           Span<float> sums, Span<float> bias, Matrix q_out, Matrix scales_out,
                           int threads);
  // as the two of fp32, with the result less shift in the form of q too; word and position s8
  void (*add_layernorm_int8)(Matrix x, Matrix residual, Span<float> bias, Span<float> weight,
                             Span<float> shift, float eps, Matrix out, Matrix q, Matrix scales,
                             int threads);
  void (*embed_layernorm_int8)(Span<int32_t> ids, Span<int32_t> positions, Matrix word,
                               Span<float> word_scale, Matrix position, Span<float> position_scale,
                               Span<float> type_row, Span<float> weight, Span<float> shift,
                               float eps, Matrix out, Matrix q, Matrix scales, int threads);
  // queries [tokens, dim] f32, docs [tokens, dim] f32, bf16 or f16 -> out [queries, docs]
  void (*maxsim)(Span<float> queries, Span<int64_t> q_offsets, Matrix docs,
                 Span<int64_t> d_offsets, Matrix out, int threads);
  // pairs [P, 2] of (query, document) -> out [P]
  void (*maxsim_pairs)(Span<float> queries, Span<int64_t> q_offsets, Matrix docs,
                       Span<int64_t> d_offsets, Span<int64_t> pairs, Matrix out, int threads);
};

// Null where this build or this processor has not got the instructions.
const Kernels* kernels_portable();
const Kernels* kernels_avx2();
const Kernels* kernels_avxvnni();
const Kernels* kernels_avx512();
const Kernels* kernels_avx512vnni();
const Kernels* kernels_avx512bf16();
const Kernels* kernels_amx();

// The tables this processor runs, widest first.
std::vector<const Kernels*> runnable_kernels();
// The table in use: the widest, unless `use_kernels` has named another.
const Kernels& kernels();
void use_kernels(const char* name);

}  // namespace m3
