// What kernels and launchers share. tests/cuda/emulate.h takes its place where there is no GPU.
#ifndef M3_CUDA_DEVICE_CUH
#define M3_CUDA_DEVICE_CUH
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "launch.h"

namespace m3::cuda {

constexpr unsigned ALL_LANES = 0xffffffff;

// Words that the blocks of one launch share. Loads and stores order no other memory.
__device__ inline uint64_t load_relaxed(const uint64_t* p) {
  uint64_t v;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
}
__device__ inline void store_relaxed(uint64_t* p, uint64_t v) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}
__device__ inline uint64_t fetch_add_acq_rel(uint64_t* p, uint64_t v) {
  uint64_t old;
  asm volatile("atom.acq_rel.gpu.global.add.u64 %0, [%1], %2;"
               : "=l"(old)
               : "l"(p), "l"(v)
               : "memory");
  return old;
}

inline void check(const char* kernel, cudaError_t error) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(error));
}

template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), int64_t blocks, int threads,
            const Stream& stream, Args... args) {
  int before = 0;
  check(name, cudaGetDevice(&before));
  if (before != stream.device) check(name, cudaSetDevice(stream.device));
  kernel<<<static_cast<unsigned>(blocks), threads, 0, static_cast<cudaStream_t>(stream.handle)>>>(
      args...);
  const cudaError_t error = cudaGetLastError();
  if (before != stream.device) check(name, cudaSetDevice(before));
  check(name, error);
}

}  // namespace m3::cuda

#endif
