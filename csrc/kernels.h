// The vectorised CPU operations: a table of functions per instruction set, chosen at run time.
#pragma once
#include <cstdint>
#include <vector>

namespace m3 {

enum class Dtype : int { f32 = 0, bf16 = 1, f16 = 2 };

struct LayerNorm {
  const float* weight;  // [cols]
  const float* shift;   // [cols]
  float eps;
  int64_t cols;
};

// Tensors are row-major and contiguous; parameters [cols] are always fp32; arithmetic is fp32.
struct Kernels {
  const char* name;
  // x[r] <- gelu(x[r] + bias); f32, bf16
  void (*bias_gelu)(void* x, const float* bias, int64_t rows, int64_t cols, Dtype, int threads);
  // out[r] = LN(x[r] + residual[r] + bias), bias may be null, out may be x or residual; f32, bf16
  void (*add_layernorm)(const void* x, const void* residual, const float* bias, const LayerNorm&,
                        void* out, int64_t rows, Dtype, int threads);
  // out[r] = LN(word[ids[r]] + position[positions[r]] + type_row); f32, bf16
  void (*embed_layernorm)(const int32_t* ids, const int32_t* positions, const void* word,
                          const void* position, const float* type_row, const LayerNorm&, void* out,
                          int64_t rows, Dtype, int threads);
  // qkv [T, 3, heads, dim], cu_seqlens [texts + 1] -> out [T, heads * dim]; f32, bf16
  void (*attention)(const void* qkv, const int32_t* cu_seqlens, int64_t texts, int64_t heads,
                    int64_t dim, float scale, void* out, Dtype, int threads);
  // Outputs of a panel of packed weights, and whether there is a product of bf16.
  int panel;
  bool multiplies_bf16;
  // weight [outs, depth] -> packed [ceil(outs / panel) * panel, depth] in the order `linear` reads
  void (*pack_weight)(const void* weight, int64_t outs, int64_t depth, void* packed, Dtype,
                      int threads);
  // y [rows, outs] = x [rows, depth] weight^T + bias, which may be null, or GELU of that; f32, and
  // bf16 with even depth where it is multiplied
  void (*linear)(const void* x, const void* packed, const float* bias, bool with_gelu, void* y,
                 int64_t rows, int64_t depth, int64_t outs, Dtype, int threads);
  // out [n_queries, n_docs]; queries fp32, docs of any dtype
  void (*maxsim)(const float* queries, const int64_t* q_offsets, int64_t n_queries,
                 const void* docs, const int64_t* d_offsets, int64_t n_docs, int64_t dim,
                 float* out, Dtype, int threads);
  // pairs [n_pairs, 2] of (query, document), out [n_pairs]
  void (*maxsim_pairs)(const float* queries, const int64_t* q_offsets, const void* docs,
                       const int64_t* d_offsets, const int64_t* pairs, int64_t n_pairs, int64_t dim,
                       float* out, Dtype, int threads);
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
