// As kernels_avx512bf16.cpp, with AMX for products of eight bits: Sapphire Rapids and newer.
#include "kernels.h"
#ifdef __AMX_INT8__
#define M3_ISA amx
#define M3_VECTOR_BYTES 64
#include "int8_table.h"
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

// Whether the processor has it, and the kernel grants this process its registers.
bool has_amx() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 24 & 1) || !(d >> 25 & 1)) return false;
  constexpr int REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

}  // namespace
#endif

const m3::Kernels* m3::kernels_amx() {
#ifdef __AMX_INT8__
  static const bool runs = kernels_avx512bf16() && has_amx();
  if (!runs) return nullptr;
  static const Kernels k = [] {
    Kernels other = *kernels_avx512bf16();
    other.name = "amx";
    // Processors with AMX take vdpbf16ps at half the rate of fma: attention widens bf16 instead.
    other.attention = kernels_avx512()->attention;
    amx::use_int8(other);
    return other;
  }();
  return &k;
#else
  return nullptr;
#endif
}
