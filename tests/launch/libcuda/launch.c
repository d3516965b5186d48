/* Launches. */
#include "libcuda.h"

#undef cuLaunchKernelEx

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
            INVALID("cuLaunchKernelEx: %s: expected block %c of %u as compiled, found %u", f->name,
                    'x' + i, f->required[i], block[i]);
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
