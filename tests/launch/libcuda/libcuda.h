/* A libcuda.so.1 that executes nothing and checks arguments: what Triton's driver and launcher call.
 *
 * Devices are named by their compute capability: ordinal 80 is an A100, 90 an H100. A call that a
 * GPU's driver would refuse returns its error, and cuGetErrorString then says which rule was broken.
 * Rules: CUDA C++ programming guide, "Compute capabilities"; cuda.h, cuTensorMapEncodeTiled.
 */
#include <cuda.h>
#include <stdint.h>
#include <string.h>

/* Read and written from outside. */
extern int fake_device;
extern long fake_modules, fake_launches, fake_maps;

#define MOST_PARAMETERS 64
#define MAP_MARK 0x70616d20656b6166ull /* what an encoded map begins with */

/* What a cubin says of a kernel. */
typedef struct {
    char name[256];
    int device, registers, local, static_shared, dynamic_shared, most_threads;
    unsigned required[3]; /* threads of a block, 0 for any */
    int n_parameters, sizes[MOST_PARAMETERS];
} Function;

int opt_in_shared(CUdevice device); /* bytes of a block */
CUresult refuse(CUresult error, const char *format, ...);

#define INVALID(...) return refuse(CUDA_ERROR_INVALID_VALUE, __VA_ARGS__)
#define COUNT(counter) __atomic_fetch_add(&counter, 1, __ATOMIC_RELAXED)
