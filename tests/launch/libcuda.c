/* A libcuda.so.1 that executes nothing and checks arguments: what Triton's driver and launcher call.
 *
 * Devices are named by their compute capability: ordinal 80 is an A100, 90 an H100. A call that a
 * GPU's driver would refuse returns its error, and cuGetErrorString then says which rule was broken.
 * Rules: CUDA C++ programming guide, "Compute capabilities"; cuda.h, cuTensorMapEncodeTiled.
 */
#include <cuda.h>
#include <elf.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#undef cuLaunchKernelEx
#undef cuStreamIsCapturing

/* Read and written from outside. */
int fake_device = 90;
long fake_modules, fake_launches, fake_maps;

#define MOST_PARAMETERS 64
#define MAP_MARK 0x70616d20656b6166ull /* what an encoded map begins with */

typedef struct {
    char name[256];
    int device, registers, local, static_shared, dynamic_shared, most_threads;
    unsigned required[3]; /* threads of a block, 0 for any */
    int n_parameters, sizes[MOST_PARAMETERS];
} Function;

typedef struct {
    int device, n_functions;
    Function functions[];
} Module;

static _Thread_local char why[512] = "no error";

static CUresult refuse(CUresult error, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    return error;
}

#define INVALID(...) return refuse(CUDA_ERROR_INVALID_VALUE, __VA_ARGS__)
#define COUNT(counter) __atomic_fetch_add(&counter, 1, __ATOMIC_RELAXED)

CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = error == CUDA_SUCCESS ? "no error" : why;
    return CUDA_SUCCESS;
}

CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }

CUresult cuDriverGetVersion(int *version) {
    *version = 13000;
    return CUDA_SUCCESS;
}

/* ---- devices ---- */

static int opt_in_shared(CUdevice device) { return (device == 80 ? 163 : 227) << 10; }

/* None for whoever asks how many there are: this is no driver to choose by itself. */
CUresult cuDeviceGetCount(int *count) {
    *count = 0;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    *device = ordinal;
    if (ordinal != 80 && ordinal != 90)
        return refuse(CUDA_ERROR_INVALID_DEVICE, "cuDeviceGet: expected device 80 or 90, found %d",
                      ordinal);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    CUdevice known;
    CUresult found = cuDeviceGet(&known, device);
    if (found != CUDA_SUCCESS)
        return found;
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = opt_in_shared(device); break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
        *value = opt_in_shared(device) + 1024;
        break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = device == 80 ? 108 : 132; break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = device / 10; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = device % 10; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *value = 1410000; break;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: *value = 1593000; break;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *value = 5120; break;
    default: INVALID("cuDeviceGetAttribute: attribute %d is not known here", (int)attribute);
    }
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    CUdevice known;
    *context = (CUcontext)(intptr_t)device;
    return cuDeviceGet(&known, device);
}

CUresult cuCtxGetCurrent(CUcontext *context) {
    *context = (CUcontext)(intptr_t)fake_device;
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
    fake_device = (int)(intptr_t)context;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *device) {
    *device = fake_device;
    return CUDA_SUCCESS;
}

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
    *status = CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetLimit(size_t *value, CUlimit limit) {
    *value = 1 << 20;
    return CUDA_SUCCESS;
}

CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }

CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr pointer) {
    if (attribute != CU_POINTER_ATTRIBUTE_DEVICE_POINTER)
        INVALID("cuPointerGetAttribute: attribute %d is not known here", (int)attribute);
    *(CUdeviceptr *)data = pointer;
    return CUDA_SUCCESS;
}

/* ---- modules: what a cubin says of its kernels ---- */

enum { NV_MAX_THREADS = 0x05, NV_REQUIRED = 0x10, NV_FRAME = 0x11, NV_PARAMETER = 0x17,
       NV_REGISTERS = 0x2f };

typedef struct {
    const char *image;
    const Elf64_Ehdr *header;
    const Elf64_Shdr *sections;
    const char *names;
} Image;

static const Elf64_Shdr *section(const Image *image, const char *prefix, const char *name) {
    size_t length = strlen(prefix);
    for (int i = 0; i < image->header->e_shnum; i++) {
        const char *its = image->names + image->sections[i].sh_name;
        if (!strncmp(its, prefix, length) && !strcmp(its + length, name))
            return image->sections + i;
    }
    return NULL;
}

/* The next record of .nv.info: format, attribute, then a value of 16 bits or so many bytes. */
static const char *record(const char *at, int *attribute, const uint32_t **payload, int *size) {
    uint16_t value;
    memcpy(&value, at + 2, 2);
    *attribute = (uint8_t)at[1];
    *size = at[0] == 4 ? value : 0;
    *payload = (const uint32_t *)(at + 4);
    return at + 4 + *size;
}

static void read_function(const Image *image, Function *f) {
    const Elf64_Shdr *shared = section(image, ".nv.shared.", f->name);
    const Elf64_Shdr *all = section(image, ".nv.info", ""), *own = section(image, ".nv.info.", f->name);
    const Elf64_Shdr *symbols = section(image, ".symtab", "");
    const char *strings = image->image + image->sections[symbols->sh_link].sh_offset;
    const Elf64_Sym *symbol = (const Elf64_Sym *)(image->image + symbols->sh_offset);
    const uint32_t *payload;
    int attribute, size;
    /* From sm_90 on the section holds the system's own KiB of a block too, which no limit counts. */
    f->static_shared = shared ? shared->sh_size - (f->device >= 90 ? 1024 : 0) : 0;
    const char *at = image->image + all->sh_offset, *end = at + all->sh_size;
    while (at < end) {
        at = record(at, &attribute, &payload, &size);
        if (size < 8 || strcmp(strings + symbol[payload[0]].st_name, f->name))
            continue;
        if (attribute == NV_REGISTERS)
            f->registers = payload[1];
        if (attribute == NV_FRAME)
            f->local = payload[1];
    }
    f->most_threads = 1024;
    if (f->registers) { /* eight at a time to a thread, four warps at a time to a block */
        int fit = 65536 / ((f->registers + 7) / 8 * 8) / 128 * 128;
        f->most_threads = fit < 1024 ? fit : 1024;
    }
    at = own ? image->image + own->sh_offset : end;
    end = own ? at + own->sh_size : end;
    while (at < end) {
        at = record(at, &attribute, &payload, &size);
        if (attribute == NV_REQUIRED)
            memcpy(f->required, payload, sizeof f->required);
        if (attribute == NV_MAX_THREADS) {
            int most = payload[0] * payload[1] * payload[2];
            f->most_threads = most < f->most_threads ? most : f->most_threads;
        }
        if (attribute == NV_PARAMETER) { /* index; ordinal and offset of 16 bits; size << 18 */
            int ordinal = payload[1] & 0xffff;
            if (ordinal < MOST_PARAMETERS)
                f->sizes[ordinal] = payload[2] >> 18;
            if (ordinal >= f->n_parameters)
                f->n_parameters = ordinal + 1;
        }
    }
}

CUresult cuModuleLoadData(CUmodule *module, const void *data) {
    const char *text = ".text.";
    Image image = {data, data, NULL, NULL};
    const Elf64_Ehdr *header = data;
    if (memcmp(data, ELFMAG, SELFMAG) || header->e_machine != EM_CUDA)
        return refuse(CUDA_ERROR_INVALID_IMAGE, "cuModuleLoadData: expected a cubin");
    int arch = header->e_ident[EI_ABIVERSION] < 8 ? header->e_flags & 255 : header->e_flags >> 8 & 255;
    if (arch != fake_device)
        return refuse(CUDA_ERROR_NO_BINARY_FOR_GPU,
                      "cuModuleLoadData: expected a cubin for sm_%d, found sm_%d", fake_device, arch);
    image.sections = (const Elf64_Shdr *)(image.image + header->e_shoff);
    image.names = image.image + image.sections[header->e_shstrndx].sh_offset;
    Module *made = calloc(1, sizeof *made + header->e_shnum * sizeof(Function));
    made->device = fake_device;
    for (int i = 0; i < header->e_shnum; i++) {
        const char *name = image.names + image.sections[i].sh_name;
        if (strncmp(name, text, strlen(text)))
            continue;
        Function *f = made->functions + made->n_functions++;
        snprintf(f->name, sizeof f->name, "%s", name + strlen(text));
        f->device = made->device;
        read_function(&image, f);
    }
    COUNT(fake_modules);
    *module = (CUmodule)made;
    return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    Module *m = (Module *)module;
    for (int i = 0; i < m->n_functions; i++)
        if (!strcmp(m->functions[i].name, name)) {
            *function = (CUfunction)(m->functions + i);
            return CUDA_SUCCESS;
        }
    return refuse(CUDA_ERROR_NOT_FOUND, "cuModuleGetFunction: the module has no kernel %s", name);
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
    Function *f = (Function *)function;
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = f->registers; break;
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES: *value = f->local; break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = f->static_shared; break;
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = f->most_threads; break;
    default: INVALID("cuFuncGetAttribute: attribute %d is not known here", (int)attribute);
    }
    return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    Function *f = (Function *)function;
    int room = opt_in_shared(f->device) - f->static_shared;
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
        if (value < 0 || value > room)
            INVALID("cuFuncSetAttribute: %s: expected at most %d bytes of dynamic shared memory "
                    "on sm_%d, found %d", f->name, room, f->device, value);
        f->dynamic_shared = value;
        break;
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED: break;
    default: INVALID("cuFuncSetAttribute: attribute %d is not known here", (int)attribute);
    }
    return CUDA_SUCCESS;
}

CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }

CUresult cuOccupancyMaxActiveClusters(int *count, CUfunction function, const CUlaunchConfig *config) {
    *count = 1;
    return CUDA_SUCCESS;
}

/* ---- launches ---- */

CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction function, void **parameters,
                          void **extra) {
    Function *f = (Function *)function;
    const unsigned grid[] = {c->gridDimX, c->gridDimY, c->gridDimZ};
    const unsigned block[] = {c->blockDimX, c->blockDimY, c->blockDimZ};
    const unsigned most_grid[] = {0x7fffffff, 65535, 65535}, most_block[] = {1024, 1024, 64};
    if (f->device != fake_device)
        return refuse(CUDA_ERROR_INVALID_HANDLE, "cuLaunchKernelEx: %s was loaded on sm_%d, not sm_%d",
                      f->name, f->device, fake_device);
    for (int i = 0; i < 3; i++) {
        if (grid[i] < 1 || grid[i] > most_grid[i])
            INVALID("cuLaunchKernelEx: %s: expected grid %c of 1 to %u, found %u", f->name, 'x' + i,
                    most_grid[i], grid[i]);
        if (block[i] < 1 || block[i] > most_block[i])
            INVALID("cuLaunchKernelEx: %s: expected block %c of 1 to %u, found %u", f->name, 'x' + i,
                    most_block[i], block[i]);
        if (f->required[0] && block[i] != f->required[i])
            INVALID("cuLaunchKernelEx: %s: expected block %c of %u as compiled, found %u", f->name, 'x' + i,
                    f->required[i], block[i]);
    }
    int room = f->dynamic_shared > (48 << 10) - f->static_shared ? f->dynamic_shared
                                                                 : (48 << 10) - f->static_shared;
    if (c->sharedMemBytes > (unsigned)room)
        INVALID("cuLaunchKernelEx: %s: expected at most %d bytes of dynamic shared memory, found %u",
                f->name, room, c->sharedMemBytes);
    for (unsigned i = 0; i < c->numAttrs; i++) {
        const CUlaunchAttribute *a = c->attrs + i;
        if (a->id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE)
            continue;
        if (f->device < 90)
            INVALID("cuLaunchKernelEx: %s: attribute %d needs sm_90", f->name, (int)a->id);
        if (a->id != CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION)
            continue;
        const unsigned cluster[] = {a->value.clusterDim.x, a->value.clusterDim.y,
                                    a->value.clusterDim.z};
        for (int k = 0; k < 3; k++)
            if (cluster[k] < 1 || grid[k] % cluster[k])
                INVALID("cuLaunchKernelEx: %s: grid %c of %u is no multiple of the cluster's %u",
                        f->name, 'x' + k, grid[k], cluster[k]);
        if (cluster[0] * cluster[1] * cluster[2] > 16)
            INVALID("cuLaunchKernelEx: %s: expected a cluster of at most 16 blocks", f->name);
    }
    for (int i = 0; i < f->n_parameters && i < MOST_PARAMETERS; i++) {
        if (f->sizes[i] != sizeof(CUtensorMap))
            continue;
        if ((uintptr_t)parameters[i] % 64)
            INVALID("cuLaunchKernelEx: %s: parameter %d: expected a tensor map on 64 bytes", f->name,
                    i);
        if (*(uint64_t *)parameters[i] != MAP_MARK)
            INVALID("cuLaunchKernelEx: %s: parameter %d is no encoded tensor map", f->name, i);
    }
    COUNT(fake_launches);
    return CUDA_SUCCESS;
}

/* ---- tensor maps ---- */

#define MAP(...) INVALID("cuTensorMapEncodeTiled: " __VA_ARGS__)

CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank,
                                void *address, const cuuint64_t *dims, const cuuint64_t *strides,
                                const cuuint32_t *box, const cuuint32_t *steps,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
    static const unsigned sizes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
    static const unsigned spans[] = {0, 32, 64, 128, 128, 128, 128};
    if (fake_device < 90)
        return refuse(CUDA_ERROR_NOT_SUPPORTED, "cuTensorMapEncodeTiled: needs sm_90");
    if ((uintptr_t)map % 64)
        MAP("tensorMap: expected an address on 64 bytes");
    if ((unsigned)type >= sizeof sizes / sizeof *sizes)
        MAP("tensorDataType: expected 0 to 12, found %d", (int)type);
    if (rank < 1 || rank > 5)
        MAP("tensorRank: expected 1 to 5, found %u", rank);
    if (!address || (uintptr_t)address % 16)
        MAP("globalAddress: expected a multiple of 16, found %p", address);
    if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE)
        MAP("interleave: expected none, found %d", (int)interleave);
    if ((unsigned)swizzle >= sizeof spans / sizeof *spans)
        MAP("swizzle: expected 0 to 6, found %d", (int)swizzle);
    if ((unsigned)promotion > CU_TENSOR_MAP_L2_PROMOTION_L2_256B)
        MAP("l2Promotion: expected 0 to 3, found %d", (int)promotion);
    if ((unsigned)fill > CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA)
        MAP("oobFill: expected 0 or 1, found %d", (int)fill);
    if (fill && type < CU_TENSOR_MAP_DATA_TYPE_FLOAT16)
        MAP("oobFill: expected none for integers, found NaN");
    for (unsigned i = 0; i < rank; i++) {
        if (dims[i] < 1 || dims[i] > 1ull << 32)
            MAP("globalDim[%u]: expected 1 to 2^32, found %llu", i, (unsigned long long)dims[i]);
        if (box[i] < 1 || box[i] > 256)
            MAP("boxDim[%u]: expected 1 to 256, found %u", i, box[i]);
        if (steps[i] < 1 || steps[i] > 8)
            MAP("elementStrides[%u]: expected 1 to 8, found %u", i, steps[i]);
    }
    unsigned long long least = dims[0] * sizes[type];
    for (unsigned i = 0; i + 1 < rank; i++) {
        unsigned long long stride = strides[i];
        if (stride % 16 || stride >= 1ull << 40)
            MAP("globalStrides[%u]: expected a multiple of 16 below 2^40, found %llu", i, stride);
        if (stride < least)
            MAP("globalStrides[%u]: expected at least %llu, found %llu", i, least, stride);
        least = stride * dims[i + 1];
    }
    unsigned inner = box[0] * sizes[type];
    if (inner % 16)
        MAP("boxDim[0]: expected a multiple of 16 bytes, found %u", inner);
    if (swizzle && inner > spans[swizzle])
        MAP("boxDim[0]: expected at most the swizzle's %u bytes, found %u", spans[swizzle], inner);
    memset(map, 0, sizeof *map);
    *(uint64_t *)map = MAP_MARK;
    COUNT(fake_maps);
    return CUDA_SUCCESS;
}
