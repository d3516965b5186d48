"""README's block: ten rows against peers, one plot, and where the rest is."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from bench.core.measure import OURS
from bench.core.paths import RESULTS
from bench.report import plots
from bench.report.names import SHOWN, is_peer, shown
from bench.report.table import (
    Record,
    cells,
    cosine,
    current,
    figure,
    grid,
    ours_of,
    percent,
    read_results,
)

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
REST = "Every row and peer, sizes, samples, versions, what was not measured"
ROWS = 10
# What a reader needs of a GPU and of a CPU, by the row's name. Losses are among them.
LABELS = {
    "encode on the GPU, passages, 24 layers, bf16": "32,768 tokens of passages, GPU time, bf16",
    "encode on the GPU, text to numpy, passages, 24 layers, bf16":
        "passages, text to numpy, bf16",
    "one query of 20 tokens in GPU time, 24 layers, bf16": "one query of 20 tokens, GPU time, bf16",
    "one query of 20 tokens, text to numpy on the GPU, 24 layers, bf16":
        "one query of 20 tokens, text to numpy, bf16",
    "attention, 1638 texts of 20 tokens, bf16": "attention: 1,638 texts of 20 tokens, bf16",
    "attention, 16 texts of 2048 tokens, bf16": "attention: 16 texts of 2,048 tokens, bf16",
    "MaxSim on the GPU, 1 query, 1000 documents, d = 1024, fp16":
        "MaxSim: 32 query tokens, 1,000 documents, 1,024 dimensions, fp16",
    "sparse to CSR, 556 texts": "token weights to sparse rows: 556 texts",
    "encode online, 24 texts, 24 layers, fp32": "a batch of 24 texts, 24 layers, fp32",
    "encode online, 24 texts, 24 layers, bf16": "a batch of 24 texts, 24 layers, bf16",
    "encode online, 24 texts, 24 layers, int8": "a batch of 24 texts, 24 layers, int8",
    "one query of 20 tokens, 24 layers, fp32": "one query of 20 tokens, 24 layers, fp32",
    "one query of 20 tokens, 24 layers, int8": "one query of 20 tokens, 24 layers, int8",
    "encode mixed, 2 layers, fp32": "texts of very mixed lengths, 2 layers, fp32",
    "bulk: 64 clients, 32 passages a request, fp32":
        "server: 64 clients, 32 passages a request, m3fast-tiny, fp32",
    "MaxSim, 32 query tokens, 300 documents, d = 128, fp32":
        "MaxSim: 32 query tokens, 300 documents, 128 dimensions, fp32",
    "sparse dicts, 256 x 512 tokens": "token weights to dicts: 256 texts of 512 tokens",
    "time to first embedding, m3fast-tiny, fp32": "start to first embedding, m3fast-tiny, fp32",
}  # fmt: skip
# Of a device that has none of these the first row of each.
SUITES = ("encode", "latency", "maxsim", "sparse", "attention", "memory", "packing", "scaling")
COLUMNS = ("FlagEmbedding", "ONNX Runtime", "OpenVINO", *[n for n in SHOWN if "compile" in n])
LEGEND = (
    "A peer's column says how many times as long as m3fast it takes: 2× is twice as long, below 1× "
    "the peer is faster. A dash stands where a peer cannot do the work or was not measured. The "
    "machine's limit is what its fastest matrix products and passes over memory would allow."
)
LEGEND_CPU = (
    " Rows of 2 and 24 layers have BGE-M3's width and random weights. FlagEmbedding computes in "
    "fp32 on a CPU. *packed torch.compile* is our own strong baseline, made of torch's best parts "
    "(`bench/peers/strong_cpu.py`)."
)
LEGEND_INT8 = (
    " *cos*, in rows of int8, is the cosine of dense vectors with those of fp32, 1st percentile / "
    "least of the texts; m3fast's is beside its figure, a peer's beside its ratio."
)
LEGEND_GPU = " On a GPU an encoder's rows have BGE-M3's 24 layers."


def markdown(results: Path = RESULTS, tests: Collection[str] | None = None) -> str:
    """The block without its markers, empty where nothing is recorded.

    Every GPU has its table, the newest first; of CPUs the one with the most of LABELS' rows, of
    equals the newest.
    """
    found = read_results(results)
    order = sorted(found, key=lambda stem: max(r["run"] for r in found[stem]))[::-1]
    gpus = [stem for stem in order if not _is_cpu(stem)]
    cpus = [stem for stem in order if _is_cpu(stem)]
    cpus.sort(key=lambda stem: -len({r["row"] for r in found[stem]} & LABELS.keys()))
    parts = [_device(found[stem], stem, tests) for stem in [*gpus, *cpus[:1]]]
    if parts:
        pages = ", ".join(f"[{found[stem][-1]['device']}](docs/bench/{stem}.md)" for stem in order)
        legend = LEGEND + LEGEND_CPU * bool(cpus)
        legend += LEGEND_INT8 * any("(cos " in part or ", cos " in part for part in parts)
        parts += [legend + LEGEND_GPU * bool(gpus), f"{REST}: {pages}."]
    return "\n\n".join(parts)


def rewrite(text: str, block: str) -> str | None:
    """`text` with the part between the markers replaced, or None without markers."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    inside = f"{block}\n" if block else ""
    return f"{head}{BEGIN}\n{inside}{END}{tail}" if begin and end else None


def _is_cpu(stem: str) -> bool:
    return stem.startswith("cpu")


def _device(records: list[Record], stem: str, tests: Collection[str] | None) -> str:
    """A short table and a plot."""
    rows = current(records, tests)
    newest = max(records, key=lambda r: r["run"])
    short = {r.get("scale") for row in rows for r in row} & {"first", "quick"}
    drawn = plots.names(rows, stem)
    picture = {name: alt for name, alt in drawn.items() if name == f"{stem}-length.svg"}
    lines = [
        f"**{newest['device']}, {newest['threads']} threads{', short runs' if short else ''}**",
        "",
        *_table(_headlines([row for row in rows if cells(row)])),
        *(line for name, alt in picture.items() for line in ("", f"![{alt}](docs/bench/{name})")),
    ]
    return "\n".join(lines)


def _headlines(rows: list[list[Record]]) -> list[list[Record]]:
    """The rows of LABELS; where there is none of them, the first of each suite."""
    named = {row[0]["row"]: row for row in rows}
    chosen = [named[name] for name in LABELS if name in named]
    if not chosen:
        firsts: dict[str, list[Record]] = {}
        for row in rows:
            firsts.setdefault(row[0].get("suite", row[0]["row"]), row)
        order = [*(s for s in SUITES if s in firsts), *(s for s in firsts if s not in SUITES)]
        chosen = [firsts[suite] for suite in order]
    return chosen[:ROWS]


def _table(rows: list[list[Record]]) -> list[str]:
    """Markdown: workload, m3fast, those of COLUMNS with a figure, other peers, the limit."""
    columns = [name for name in COLUMNS if any(name in _ratios(row) for row in rows)]
    header = ["Workload", "m3fast", *map(shown, columns), "Other peers", "Of the machine's limit"]
    return grid(header, [_line(row, columns) for row in rows], absent="—")


def _ratios(row: list[Record]) -> dict[str, str]:
    return {r["candidate"]: _ratio(r) for r in row if r.get("ratio") is not None}


def _ratio(record: Record) -> str:
    return " ".join([_brief(record["ratio"]), *(f"({words})" for words in cosine(record))])


def _line(row: list[Record], columns: Collection[str]) -> list[str]:
    ours, ratios = ours_of(row), _ratios(row)
    others = [f"{words} {shown(name)}" for name, words in ratios.items()
              if name not in columns and name != OURS and is_peer(name)]  # fmt: skip
    return [
        LABELS.get(row[0]["row"], row[0]["row"]),
        figure(ours) if ours else "",
        *(ratios.get(name, "") for name in columns),
        ", ".join(others),
        percent((ours or {}).get("share")),
    ]


def _brief(ratio: float) -> str:
    return f"{ratio:.0f}×" if ratio >= 9.95 else f"{ratio:.2f}×"
