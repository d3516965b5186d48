// 256-bit vectors with FMA; compiled with -mavx2 -mfma -mf16c on x86-64.
#include "kernels.h"
#ifdef __AVX2__
#define M3_ISA avx2
#define M3_VECTOR_BYTES 32
#include "kernels_table.h"
#endif

const m3::Kernels* m3::kernels_avx2() {
#ifdef __AVX2__
  static const bool runs = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (!runs) return nullptr;
  static const Kernels k = avx2::table("avx2");
  return &k;
#else
  return nullptr;
#endif
}
