"""Write the figures of m3fast-tiny's model card, and draw its training, from the recorded runs.

    python scripts/tiny/card.py

Reads scripts/tiny/record/: training.jsonl is the log of the training run, the others are what
`m3fast eval --json` wrote (xquad, xquad-en, handbook, handbook-en, and builtin, made where no XQuAD
lies beside). Speed comes from the last record of the row in bench/results/.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from m3fast.train.plot import draw

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "scripts/tiny/record"
CARD = ROOT / "src/m3fast/data/m3fast-tiny/README.md"
BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"
MODES = {"dense": "dense", "sparse": "sparse", "colbert": "multi-vector", "all": "all"}
# What was aimed at, R@1 in per cent on average; a row's name and mode.
AIMS = {"all": 85, "sparse": 80, "colbert": 80, "dense": 50}
HANDBOOK = "Held-out paragraphs of the Debian Administrator's Handbook"
CROSS_AIM, SPEED_AIM = 35, 60_000


def read(name: str) -> dict[str, Any]:
    return json.loads((RECORD / f"{name}.json").read_text(encoding="utf-8"))


def per_cent(value: float) -> str:
    return f"{100 * value:.1f}"


def table(found: dict[str, Any], modes: dict[str, str], measures: tuple[str, ...]) -> list[str]:
    """Rows per language and their mean, a column per mode and measure."""
    heads = [f"{title} {m}" for m in measures for title in modes.values()]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    rows = [(r["name"], r["values"]) for r in found["results"]] + [("**mean**", found["mean"])]
    for name, values in rows:
        cells = [per_cent(values[mode][m]) for m in measures for mode in modes]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def aims(xquad: dict[str, Any], crossed: dict[str, Any], speed: dict[str, Any] | None) -> list[str]:
    """One line per aim, met or not."""
    lines = ["| aimed at | reached | |", "|---|---|---|"]
    for mode, aim in AIMS.items():
        value = 100 * xquad["mean"][mode]["R@1"]
        lines.append(row(f"{MODES[mode]} R@1, mean of XQuAD's 8", f"≥ {aim}", value, aim))
    for result in crossed["results"]:
        value = 100 * result["values"]["dense"]["R@1"]
        name = result["name"]
        if name[:2] in ("de", "es", "zh"):
            lines.append(row(f"dense R@1, {name}", f"≥ {CROSS_AIM}", value, CROSS_AIM))
    best = max(xquad["mean"][m]["R@1"] for m in ("dense", "sparse", "colbert"))
    gain = 100 * (xquad["mean"]["all"]["R@1"] - best)
    lines.append(row("all above the best single mode, R@1", "> 0", gain, 1e-9))
    if speed is not None:
        value = speed["tokens"] / speed["p50"]
        aim = f"≥ {SPEED_AIM:,}"
        name = f"tokens/s, all outputs, {speed['device']}, {speed['dtype']}"
        lines.append(f"| {name} {aim} | {value:,.0f} | {verdict(value >= SPEED_AIM)} |")
    return lines


def row(name: str, aim: str, value: float, least: float) -> str:
    return f"| {name} {aim} | {value:.1f} | {verdict(value >= least)} |"


def verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def last_speed() -> dict[str, Any] | None:
    """The newest record of our own bf16 row, or of the fp32 one where there is no bf16."""
    found: dict[str, dict[str, Any]] = {}
    for file in (ROOT / "bench/results").glob("*.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            ours = record["candidate"] == "m3fast" and record["status"] == "ok"
            if ours and record["row"].startswith("m3fast-tiny, passages"):
                key = record["dtype"]
                if key not in found or record["run"] > found[key]["run"]:
                    found[key] = record
    return found.get("bfloat16") or found.get("float32")


def log() -> list[dict[str, Any]]:
    lines = (RECORD / "training.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def training() -> str:
    last = log()[-1]
    million, minutes = last["tokens"] / 1e6, last["seconds"] / 60
    return (
        f"{last['step']:,} steps, {million:.1f} million tokens, {minutes:.0f} minutes on CPU cores "
        f"({last['tokens'] / last['seconds']:,.0f} tokens/s, beside other work). At the end the "
        f"cosine to the teacher was {1 - last['teacher_cosine']:.2f}."
    )


def figures() -> str:
    xquad, crossed = read("xquad"), read("xquad-en")
    handbook, parallel = read("handbook"), read("handbook-en")
    dense = {"dense": "dense", "colbert": "multi-vector", "all": "all"}
    weights = ", ".join(f"{w:g}" for w in xquad["weights"]["all"])
    builtin = read("builtin")["mean"]
    hard = ", ".join(per_cent(builtin[mode]["R@1"]) for mode in MODES)
    parts = [
        [f"Training: {training()}"],
        aims(xquad, crossed, last_speed()),
        ["XQuAD: 1,190 questions and 240 paragraphs per language, each question's to be found:"],
        table(xquad, MODES, ("R@1", "nDCG@10")),
        ["Questions in other languages, English paragraphs:"],
        table(crossed, dense, ("R@1", "Recall@100")),
        [
            f"{HANDBOOK}, {handbook['results'][0]['queries']} per language, queries made "
            "of each paragraph's own words:"
        ],
        table(handbook, MODES, ("R@1",)),
        ["The same queries, English paragraphs:"],
        table(parallel, dense, ("R@1",)),
        [
            "The built-in set of `m3fast eval`, 24 texts in each of 8 languages, with questions "
            f"that avoid their words: R@1 {hard} for dense, sparse, multi-vector and all."
        ],
        [
            f"`{xquad['command']}`, dtype {xquad['dtype']}, weights of all {weights} (dense, "
            "sparse, multi-vector), all documents scored. Figures are per cent."
        ],
    ]
    return "\n\n".join("\n".join(part) for part in parts)


def main() -> None:
    card = CARD.read_text(encoding="utf-8")
    head, rest = card.split(BEGIN)
    tail = rest.split(END)[1]
    CARD.write_text(f"{head}{BEGIN}\n\n{figures()}\n\n{END}{tail}", encoding="utf-8")
    draw(log(), "The training of m3fast-tiny", ROOT / "docs/tiny-training.png")


if __name__ == "__main__":
    main()
