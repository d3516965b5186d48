// 128-bit vectors: SSE2 on x86-64, NEON on aarch64.
#define M3_ISA portable
#define M3_VECTOR_BYTES 16
#include "kernels_table.h"

const m3::Kernels* m3::kernels_portable() {
  static const Kernels k = portable::table("portable");
  return &k;
}
