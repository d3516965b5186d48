import torch
from sass.compiling import Kernel

from m3fast.kernels._triton.attention import AttentionConfig, attention_kernel, default_config

NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


def kernel(arch: int, dtype: torch.dtype, dim: int, config: AttentionConfig, name: str) -> Kernel:
    element = NAMES[dtype]
    signature = {
        "qkv": f"*{element}", "out": f"*{element}", "tiles": "*i32", "texts": "*i32",
        "heads": "i32", "scale": "fp32",
    }  # fmt: skip
    constexprs = {
        "D": dim, "SHORT": config.short, "ROWS": config.rows, "KEYS": config.keys,
        "PRECISION": "ieee" if dtype == torch.float32 else "tf32",
    }  # fmt: skip
    if config.tma:
        signature["desc"] = f"tensordesc<{element}[{config.keys}, {dim}]>"
    else:
        constexprs["desc"] = None
    # A warp group of 4 and 64 rows are the least that wgmma takes.
    wide = arch >= 90 and config.warps >= 4 and config.short >= 64
    return Kernel(
        f"attention {element} D{dim} {name}", attention_kernel, signature, constexprs,
        config.warps, config.stages, ("heads", "tiles", "texts"),
        mma="" if dtype == torch.float32 else "HGMMA" if wide else "HMMA", tma=config.tma,
    )  # fmt: skip


def kernels(arch: int) -> list[Kernel]:
    found = [
        kernel(arch, dtype, dim, default_config(arch, dtype, dim, longest), longest)
        for dtype in (torch.float16, torch.bfloat16)
        for dim in (32, 64, 128)
        for longest in ("32", "64", "128", "longer")
    ]
    half = torch.float16
    found += [
        kernel(arch, half, 16, default_config(arch, half, 16, "longer"), "longer"),
        *(
            # One config for all lengths.
            kernel(arch, torch.float32, dim, default_config(arch, torch.float32, dim, "32"), "any")
            for dim in (16, 32, 64, 128)
        ),
    ]
    if arch >= 90:  # a tensor that TMA does not take
        found += [
            kernel(arch, half, dim, AttentionConfig(64, 128, 64, w, 3), "longer, pointers")
            for dim, w in ((32, 4), (64, 4), (128, 8))
        ]
    return found
