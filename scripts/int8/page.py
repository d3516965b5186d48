"""Write the tables of docs/int8.md from the recorded runs.

    python scripts/int8/page.py

Reads scripts/int8/record/MODEL-DATA-BITS.json, which scripts/int8/measure.sh has `m3fast eval
--dtype int8 --against float32 --json` write.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "scripts/int8/record"
PAGE = ROOT / "docs/int8.md"
BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"
MODELS = {
    "m3fast-tiny": "m3fast-tiny of 4 x 256",
    "minilm": "all-MiniLM-L6-v2",
    "e5-small": "e5-small",
}
DATA = {"xquad": "XQuAD", "handbook": "handbook"}
MODES = {"dense": "dense", "sparse": "sparse", "colbert": "multi-vector", "all": "all"}
BITS = (8, 7)
WHAT_RETRIEVAL = """\
nDCG@10 of fp32 in per cent, and its change in int8. Then the share of a query's ten best documents,
and of its first, that int8 has in common with fp32, in per cent."""
WHAT_VECTORS = """\
Cosines of vectors in int8 with those in fp32, 1st percentile and median: of documents, and of their
tokens. Sparse: rms of the weights' error over that of the weights. MaxSim: mean, greatest error."""

Run = dict[str, Any]  # a file


def runs(record: Path = RECORD) -> dict[tuple[str, str], dict[int, Run]]:
    """Model and data -> bits -> the run, of those that are there, in the order of the tables."""
    found: dict[tuple[str, str], dict[int, Run]] = {}
    for model in MODELS:
        for data in DATA:
            for bits in BITS:
                file = record / f"{model}-{data}-{bits}.json"
                if not file.exists():
                    continue
                run: Run = json.loads(file.read_text(encoding="utf-8"))
                if (run["int8_bits"], run["against"]["dtype"]) != (bits, "float32"):
                    raise SystemExit(
                        f"{file.name}: expected {bits} bits against float32, found "
                        f"{run['int8_bits']} against {run['against']['dtype']}"
                    )
                found.setdefault((model, data), {})[bits] = run
    return found


def retrieval(found: dict[tuple[str, str], dict[int, Run]]) -> list[str]:
    """nDCG@10 and what the rankings have in common: a row per head."""
    lines = [
        "| model | data | head | fp32 | int8, 8 bits | 7 bits | ten best, 8 bits | 7 bits "
        "| first, 8 bits | 7 bits |",
        "|---" * 3 + "|--:" * 7 + "|",
    ]
    for (model, data), its in found.items():
        first = next(iter(its.values()))
        for mode, title in MODES.items():
            if mode not in first["mean"]:
                continue
            cells = [f"{100 * first['against']['mean'][mode]['nDCG@10']:.1f}"]
            cells += each(its, lambda run, mode=mode: change(run, mode))
            for key in ("best", "first"):
                cells += each(its, lambda run, m=mode, k=key: agreement(run, m, k))
            lines.append(row(MODELS[model], title_of(data, first), title, *cells))
    return lines


def vectors(found: dict[tuple[str, str], dict[int, Run]]) -> list[str]:
    """How near the documents' vectors and weights are: a row per width."""
    lines = [
        "| model | data | bits | dense | multi-vector | sparse | MaxSim |",
        "|---" * 2 + "|--:" * 5 + "|",
    ]
    for (model, data), its in found.items():
        for bits, run in its.items():
            near = run["against"]["nearness"]
            cells = [cosine(near["dense"]["documents"]), "", "", ""]
            if "colbert" in near:
                late = near["colbert"]["maxsim"]
                cells[1] = cosine(near["colbert"]["documents"])
                cells[3] = f"{late['mean']:.4f}, {late['max']:.4f}"
            if "sparse" in near:
                cells[2] = f"{100 * near['sparse']['documents']['error']:.1f} %"
            lines.append(row(MODELS[model], title_of(data, run), str(bits), *cells))
    return lines


def each(its: dict[int, Run], cell: Any) -> list[str]:
    """A cell per width, a dash where it has not run."""
    return [cell(its[bits]) if bits in its else "–" for bits in BITS]


def change(run: Run, mode: str) -> str:
    ours, theirs = (m["mean"][mode]["nDCG@10"] for m in (run, run["against"]))
    text = f"{100 * (ours - theirs):+.2f}"
    return "0.00" if float(text) == 0 else text


def agreement(run: Run, mode: str, key: str) -> str:
    return f"{100 * run['against']['agreement']['mean'][mode][key]:.1f}"


def cosine(figures: dict[str, float]) -> str:
    return f"{figures['p1']:.4f}, {figures['median']:.4f}"


def title_of(data: str, run: Run) -> str:
    return f"{DATA[data]}, {' '.join(r['name'] for r in run['results'])}"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def figures(record: Path = RECORD) -> str:
    found = runs(record)
    some = next(iter(found.values()))
    newest = next(iter(some.values()))
    versions = ", ".join(f"{k} {newest['versions'][k]}" for k in ("m3fast", "torch"))
    parts = [
        WHAT_RETRIEVAL,
        "\n".join(retrieval(found)),
        WHAT_VECTORS,
        "\n".join(vectors(found)),
        f"Texts are cut at {newest['max_length']} tokens. {versions}.",
    ]
    return "\n\n".join(parts)


def rewritten(page: str, record: Path = RECORD) -> str:
    """The page with its figures anew."""
    head, rest = page.split(BEGIN)
    tail = rest.split(END)[1]
    return f"{head}{BEGIN}\n\n{figures(record)}\n\n{END}{tail}"


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
