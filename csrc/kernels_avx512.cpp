// 512-bit vectors; compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma on x86-64.
#include "kernels.h"
#ifdef __AVX512F__
#define M3_ISA avx512
#define M3_VECTOR_BYTES 64
#include "kernels_table.h"
#endif

const m3::Kernels* m3::kernels_avx512() {
#ifdef __AVX512F__
  static const bool runs = __builtin_cpu_supports("avx512f") &&
                           __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!runs) return nullptr;
  static const Kernels k = avx512::table("avx512");
  return &k;
#else
  return nullptr;
#endif
}
