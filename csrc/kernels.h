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
const Kernels* kernels_avx512();
const Kernels* kernels_avx512bf16();

// The tables this processor runs, widest first.
std::vector<const Kernels*> runnable_kernels();
// The table in use: the widest, unless `use_kernels` has named another.
const Kernels& kernels();
void use_kernels(const char* name);

}  // namespace m3
