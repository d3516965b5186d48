// 128-bit vectors: SSE2 on x86-64, NEON on aarch64.
#define M3_ISA base
#define M3_VECTOR_BYTES 16
#include "kernels_table.h"

const m3::Kernels* m3::kernels_base() {
  static const Kernels k = base::table("base");
  return &k;
}
