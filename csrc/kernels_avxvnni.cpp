// As kernels_avx2.cpp, with AVX-VNNI for products of eight bits: Alder Lake, Zen 5 and newer.
#include "kernels.h"
#ifdef __AVXVNNI__
#define M3_ISA avxvnni
#define M3_VECTOR_BYTES 32
#include "int8_table.h"
#endif

const m3::Kernels* m3::kernels_avxvnni() {
#ifdef __AVXVNNI__
  static const bool runs = kernels_avx2() && __builtin_cpu_supports("avxvnni");
  if (!runs) return nullptr;
  static const Kernels k = [] {
    Kernels other = *kernels_avx2();
    other.name = "avxvnni";
    avxvnni::use_int8(other);
    return other;
  }();
  return &k;
#else
  return nullptr;
#endif
}
