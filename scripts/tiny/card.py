"""Write the figures of m3fast-tiny's model card, and draw its training, from the recorded runs.

    python scripts/tiny/card.py

Reads scripts/tiny/record/: training.jsonl is the log of the training run, trials.json the table of
trials, the others are what `m3fast eval --json` wrote (record.sh has the commands). Speed comes
from the last record of the row in bench/results/.
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
ACROSS = {name: title for name, title in MODES.items() if name != "sparse"}
# What was aimed at, R@1 in per cent: of EIGHT of XQuAD's languages on average, then of their
# questions and English paragraphs.
EIGHT = ("ar", "de", "en", "es", "ru", "th", "tr", "zh")
AIMS = {"dense": 75, "sparse": 78, "colbert": 83, "all": 88}
CROSS_AIMS = {"dense": 50, "all": 58}
SPEED_AIM = 6_000
HANDBOOK = "Held-out paragraphs of the Debian Administrator's Handbook"
HELP = "Held-out sections of LibreOffice's and GNOME's help"
SIZE_AIM = 32_000_000


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


def mean(found: dict[str, Any], mode: str) -> float:
    """R@1 in per cent, the mean of EIGHT, or of the seven of them that are not English."""
    rows = [r for r in found["results"] if r["name"].partition("→")[0] in EIGHT]
    return 100 * sum(r["values"][mode]["R@1"] for r in rows) / len(rows)


def aims(xquad: dict[str, Any], crossed: dict[str, Any], speed: dict[str, Any] | None) -> list[str]:
    """One line per aim, met or not."""
    lines = ["| aimed at | reached | |", "|---|---|---|"]
    for mode, aim in AIMS.items():
        name = f"{MODES[mode]} R@1, mean of XQuAD's {len(EIGHT)}"
        lines.append(row(name, f"≥ {aim}", mean(xquad, mode), aim))
    for mode, aim in CROSS_AIMS.items():
        name = f"{MODES[mode]} R@1, questions of seven, English paragraphs"
        lines.append(row(name, f"≥ {aim}", mean(crossed, mode), aim))
    best = max(mean(xquad, m) for m in ("dense", "sparse", "colbert"))
    lines.append(row("all above the best single mode, R@1", "> 0", mean(xquad, "all") - best, 1e-9))
    size = sum(file.stat().st_size for file in CARD.parent.rglob("*") if file.is_file())
    verdict_ = verdict(size <= SIZE_AIM)
    lines.append(f"| size ≤ {SIZE_AIM / 1e6:.0f} MB | {size / 1e6:.1f} MB | {verdict_} |")
    if speed is not None:
        value = speed["tokens"] / speed["p50"]
        name = f"tokens/s, all outputs, {speed['device']}, {speed['dtype']}"
        lines.append(f"| {name} ≥ {SPEED_AIM:,} | {value:,.0f} | {verdict(value >= SPEED_AIM)} |")
    return lines


def row(name: str, aim: str, value: float, least: float) -> str:
    return f"| {name} {aim} | {value:.1f} | {verdict(value >= least)} |"


def trials() -> list[str]:
    """What was tried, a line each, as record/trials.json has it."""
    lines = ["| | minutes | dense | sparse | multi-vector | all | dense, to English |"]
    lines.append("|---" * 7 + "|")
    for trial in read("trials"):
        cells = [f"{value:.1f}" for value in trial["R@1"]]
        lines.append(f"| {trial['what']} | {trial['minutes']:g} | {' | '.join(cells)} |")
    return lines


def verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def last_speed() -> dict[str, Any] | None:
    """The newest record of our own fp32 row of this model."""
    shape = json.loads((CARD.parent / "config.json").read_text(encoding="utf-8"))
    mine = f"{shape['num_hidden_layers']} x {shape['hidden_size']}"
    found: dict[str, Any] | None = None
    for file in (ROOT / "bench/results").glob("*.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            ours = record["candidate"] == "m3fast" and record["status"] == "ok"
            named = record["row"].startswith("m3fast-tiny, passages")
            fits = record["shape"].startswith(mine) and record["dtype"] == "float32"
            if ours and named and fits and (found is None or record["run"] > found["run"]):
                found = record
    return found


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
    weights = ", ".join(f"{w:g}" for w in xquad["weights"]["all"])
    builtin = read("builtin")["mean"]
    hard = ", ".join(per_cent(builtin[mode]["R@1"]) for mode in MODES)
    parts = [
        [f"Training: {training()}"],
        aims(xquad, crossed, last_speed()),
        ["XQuAD: 1,190 questions and 240 paragraphs per language, each question's to be found:"],
        table(xquad, MODES, ("R@1", "nDCG@10")),
        ["Questions in other languages, English paragraphs:"],
        table(crossed, ACROSS, ("R@1", "Recall@100")),
        [
            f"{HANDBOOK}, {handbook['results'][0]['queries']} per language, queries made "
            "of each paragraph's own words:"
        ],
        table(handbook, MODES, ("R@1",)),
        ["The same queries, English paragraphs:"],
        table(parallel, ACROSS, ("R@1",)),
        [
            f"{HELP}, {read('help')['results'][0]['queries']} per language, each to be found by "
            "its heading:"
        ],
        table(read("help"), MODES, ("R@1",)),
        [
            "The built-in set of `m3fast eval`, 24 texts in each of 8 languages, with questions "
            f"that avoid their words: R@1 {hard} for dense, sparse, multi-vector and all."
        ],
        ["Trials, and the final run, on the handbook's held-out paragraphs, mean R@1:"],
        trials(),
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
