"""MaxSim: each class of query tokens, every document dtype, tensor descriptors and pointers."""

from __future__ import annotations

import torch
from sass.compiling import Kernel

from m3fast.kernels._triton import maxsim
from m3fast.kernels._triton.maxsim_config import MaxsimConfig, default_config

NAMES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int8: "i8",
    torch.float8_e4m3fn: "fp8e4nv",
}
ALL = ("n_docs", "d_rows", "q_rows", "q_tiles")
PAIRS = ("n_queries", "n_docs", "q_rows", "d_rows", "width", "splits")
MEAN = ("n_rows", "n_queries", "n_docs", "q_rows", "d_rows", "first", "width")


def scores(
    arch: int, config: MaxsimConfig, doc: str, query: str, pairs: bool = False, dim: int = 1024
) -> Kernel:
    scaled = doc in ("i8", "fp8e4nv")
    tiles = {"docs": (doc, config.block_d), "queries": (query, config.block_q)}
    integers = PAIRS if pairs else ALL
    signature = dict.fromkeys((*integers, "doc_stride"), "i32") | {
        name: f"tensordesc<{dtype}[{rows}, {config.block_k}]>" if config.tma else f"*{dtype}"
        for name, (dtype, rows) in tiles.items()
    }
    signature |= {"d_offsets": "*i64", "best": "*i32"}
    constexprs = {
        "DIM": dim,
        "BLOCK_D": config.block_d,
        "BLOCK_Q": config.block_q,
        "BLOCK_K": config.block_k,
        "SCALED": scaled,
    }
    signature |= {"scales": "*fp32"} if scaled else {}
    constexprs |= {} if scaled else {"scales": None}
    if pairs:
        signature |= {"q_offsets": "*i64", "pairs": "*i64"}
    else:
        constexprs["TMA"] = config.tma
    how = "pairs" if pairs else "descriptors" if config.tma else "pointers"
    return Kernel(
        f"maxsim {how} {doc}·{query} {config.block_d}x{config.block_q} d {dim}",
        maxsim.maxsim_pairs_kernel if pairs else maxsim.maxsim_kernel,
        signature,
        constexprs,
        warps=config.warps,
        stages=config.stages,
        # a stride of 40 is no multiple of 16
        unaligned=integers if dim % 16 == 0 else (*integers, "doc_stride"),
        mma="" if doc == "fp32" else "HGMMA" if arch == 90 else "HMMA",
    )


def mean(pairs: bool) -> Kernel:
    signature = {"best": "*i32", "scores": "*fp32", "q_offsets": "*i64", "d_offsets": "*i64"}
    sizes = {"PAIRS": pairs, "ROWS": maxsim.MEAN_ROWS, "COLS": maxsim.MEAN_COLS}
    signature |= dict.fromkeys(MEAN, "i32") | ({"pairs": "*i64"} if pairs else {})
    return Kernel(
        f"maxsim mean {'of pairs' if pairs else 'of all'}",
        maxsim.maxsim_mean_kernel,
        signature,
        sizes | ({} if pairs else {"pairs": None}),
        warps=4,
        unaligned=MEAN,
    )


def kernels(arch: int) -> list[Kernel]:
    found = [mean(False), mean(True)]
    dtypes = [
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.int8, torch.float16),
        (torch.int8, torch.bfloat16),
    ]
    if arch >= 89:
        dtypes += [(torch.float8_e4m3fn, torch.float16), (torch.float8_e4m3fn, torch.bfloat16)]
    for doc, query in dtypes:
        names = (NAMES[doc], NAMES[query])
        for tokens in (32, 64, 2048):
            if doc == torch.bfloat16 and tokens == 64:
                continue  # as fp16
            pointers = default_config(arch, tokens, doc, tma=False)
            found.append(scores(arch, pointers, *names, pairs=True))
            if arch < 90 or doc == torch.float16:
                found.append(scores(arch, pointers, *names))
            if arch >= 90:
                found.append(scores(arch, default_config(arch, tokens, doc, tma=True), *names))
    odd = default_config(arch, 2048, torch.float16, tma=False)
    found += [scores(arch, odd, "fp16", "fp16", pairs, dim=40) for pairs in (False, True)]
    wide = default_config(arch, 32, torch.float32, tma=True)
    found += [scores(arch, wide, "fp32", "fp32", pairs) for pairs in (False, True)]
    return found
