/* Tensor maps, by which TMA loads. */
#include "libcuda.h"

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
