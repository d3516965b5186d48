// As kernels_avx512vnni.cpp, with AVX512_BF16 too, for products of bf16: Zen 4, Cooper Lake and newer.
#include "kernels.h"
#ifdef __AVX512BF16__
#define M3_ISA avx512bf16
#define M3_VECTOR_BYTES 64
#include "kernels_table.h"
#endif

const m3::Kernels* m3::kernels_avx512bf16() {
#ifdef __AVX512BF16__
  static const bool runs = kernels_avx512vnni() && __builtin_cpu_supports("avx512bf16");
  if (!runs) return nullptr;
  static const Kernels k = avx512bf16::table("avx512bf16");
  return &k;
#else
  return nullptr;
#endif
}
