// As kernels_avx512.cpp, with VNNI for products of eight bits: Cascade Lake, Ice Lake.
#include "kernels.h"
#ifdef __AVX512VNNI__
#define M3_ISA avx512vnni
#define M3_VECTOR_BYTES 64
#include "int8_table.h"
#endif

const m3::Kernels* m3::kernels_avx512vnni() {
#ifdef __AVX512VNNI__
  static const bool runs = kernels_avx512() && __builtin_cpu_supports("avx512vnni");
  if (!runs) return nullptr;
  static const Kernels k = [] {
    Kernels other = *kernels_avx512();
    other.name = "avx512vnni";
    avx512vnni::use_int8(other);
    return other;
  }();
  return &k;
#else
  return nullptr;
#endif
}
