/* Errors, devices, contexts and pointers. */
#include <stdarg.h>
#include <stdio.h>

#include "libcuda.h"

#undef cuStreamIsCapturing

int fake_device = 90;
long fake_modules, fake_launches, fake_maps;

static _Thread_local char why[512] = "no error";

CUresult refuse(CUresult error, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    return error;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = error == CUDA_SUCCESS ? "no error" : why;
    return CUDA_SUCCESS;
}

CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }

CUresult cuDriverGetVersion(int *version) {
    *version = 13000;
    return CUDA_SUCCESS;
}

int opt_in_shared(CUdevice device) { return (device == 80 ? 163 : 227) << 10; }

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
