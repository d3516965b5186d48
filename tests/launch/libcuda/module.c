/* Modules: what a cubin says of its kernels. */
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>

#include "libcuda.h"

typedef struct {
    int device, n_functions;
    Function functions[];
} Module;

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
