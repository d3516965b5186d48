"""What README and terminal show of the records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.core import record
from bench.report import names, plots, readme, regress, table
from bench.report.__main__ import add, main
from bench.report.page import PAGES, page
from benchkept import made_up

ROOT = Path(__file__).parents[2]


def test_report_takes_the_newest_run_that_has_a_time() -> None:
    old, new = made_up("2026-01-01", p50=2.0, samples=3), made_up("2026-01-02", p50=0.5, samples=3)
    later = made_up("2026-01-03", status="skipped", reason="no such CPU")
    assert table.latest([old, new, later]) == [[new]]
    assert table.latest([later]) == [[later]]


def test_report_prints_figures_in_their_units(tmp_path: Path) -> None:
    rows = [
        made_up("2026-01-01", p50=0.5, samples=3, unit="tokens/s", tokens=2558, aim="≤ 1 s",
                met=True),
        made_up("2026-01-01", p50=2.0, samples=3, unit="tokens/s", tokens=2558,
                candidate="Peer", ratio=4.0, aim="≥ 5×", met=False),
        made_up("2026-01-01", row="w", status="skipped", reason="awaits a CPU"),
    ]  # fmt: skip
    (tmp_path / "cpu.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    block = readme.markdown(tmp_path)
    folded = page(rows, "cpu")
    assert (
        "| Workload | m3fast | Other peers |\n| --- | --- | --- |\n"
        "| r | 5,116 tokens/s | 4.00× Peer |\n\n"
    ) in block
    assert block.endswith(
        "Every row and peer, sizes, samples, versions, what was not measured: "
        "[A CPU](docs/bench/cpu.md)."
    )
    assert "| r | 5,116 tokens/s |  |  |  | ≤ 1 s | yes |" in folded
    assert "| r | 5,116 tokens/s | Peer | 1,279 tokens/s | 4.00× | ≥ 5× | no |" in folded
    assert "*w*: not measured, awaits a CPU." in folded
    file = tmp_path / "README.md"
    file.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    for _ in range(2):
        main(["--readme", str(file), "--results", str(tmp_path),
                     "--plots", str(tmp_path / "plots")])  # fmt: skip
    assert [file.name for file in (tmp_path / "plots").iterdir()] == ["cpu.md"]
    assert (tmp_path / "plots" / "cpu.md").read_text() == folded
    assert file.read_text() == f"before\n{readme.BEGIN}\n{block}\n{readme.END}\nafter\n"
    assert readme.rewrite("no markers", block) is None


def test_a_run_of_some_rows_replaces_just_those() -> None:
    def ran(run: str, *rows: str) -> list[dict]:
        more = {"test": "bench_x.py::test_x", "suite": "x", "p50": 1.0, "samples": 3}
        return [made_up(run, row=row, **more) for row in rows]

    records = [*ran("1", "old", "a"), *ran("2", "a", "b"), *ran("3", "b")]
    shown = table.current(records, {"bench_x.py::test_x"})
    assert [(row[0]["row"], row[0]["run"]) for row in shown] == [("a", "2"), ("b", "3")]
    assert table.current(records, set()) == []


CARDS = ("NVIDIA H100 80GB HBM3, 132 SMs, sm_90", "NVIDIA H200, 132 SMs, sm_90")


def test_cards_share_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cards of one architecture: no file, table row, plot or regression check is of both."""
    more = {"row": "scaling, 16 tokens", "suite": "scaling", "unit": "tokens/s", "tokens": 100,
            "dtype": "bfloat16", "samples": 3, "test": "bench_x.py::test_x"}  # fmt: skip
    both = []
    for day, (card, seconds) in enumerate(zip(CARDS, (1.0, 2.0), strict=True)):
        about = {"device": card, "commit": str(day) * 40, "p50": seconds, **more}
        peer = about | {"candidate": "Peer", "p50": 4.0, "ratio": 4.0 / seconds}
        for length in (16, 32, 64):
            its = {"length": length, "row": f"scaling, {length} tokens"}
            both += [made_up(f"2026-01-0{1 + day}", **(r | its)) for r in (about, peer)]
    found = regress.check(both)
    assert found.rows == 0 and not found.slower, "an H200 that is slower is no regression"
    assert [row[0]["device"] for row in table.latest(both)] == [CARDS[0]] * 3 + [CARDS[1]] * 3
    assert all(len({r["device"] for r in row}) == 1 for row in table.latest(both))

    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(r) + "\n" for r in both))
    with pytest.raises(ValueError, match=r"mixed\.jsonl: expected one device, found NVIDIA"):
        readme.markdown(tmp_path)
    (tmp_path / "mixed.jsonl").unlink()
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    for r in both:
        record.append([r], r["device"])
    assert {f.stem for f in tmp_path.iterdir()} == {"nvidia-h100-80gb-hbm3", "nvidia-h200"}
    newer, older = readme.markdown(tmp_path, {"bench_x.py::test_x"}).split("\n\n**NVIDIA H100")
    assert "| 50 tokens/s | 2.00× Peer" in newer and "100 tokens/s" not in newer
    assert "| 100 tokens/s | 4.00× Peer" in older and "50 tokens/s" not in older
    for stem, records in table.read_results(tmp_path).items():
        plots.draw(table.current(records, {"bench_x.py::test_x"}), stem, tmp_path)
    assert len([*tmp_path.glob("*.svg")]) == 2
    other = tmp_path / "nvidia-h200-nvl-length.svg"
    other.write_text("another card's")
    plots.draw([], "nvidia-h200", tmp_path)
    assert {f.name for f in tmp_path.glob("*.svg")} == {
        "nvidia-h100-80gb-hbm3-length.svg", other.name
    }  # fmt: skip


def test_rows_from_elsewhere_are_taken_over_once(tmp_path: Path) -> None:
    file, results = tmp_path / "records.jsonl", tmp_path / "results"
    results.mkdir()
    rows = [made_up("1", device=card, scale="quick", p50=1.0) for card in CARDS]
    others = [made_up("1", scale="smoke"), {"step": "build", "device": CARDS[0]}]
    others.append({"kernels": "query", "device": CARDS[0]})
    file.write_text("".join(json.dumps(r) + "\n" for r in [*rows, *others]))
    h100, h200 = (results / f"{record.slug(card)}.jsonl" for card in CARDS)
    kernels = results / "kernels" / h100.name
    assert add(file, results) == {h100: 1, h200: 1, kernels: 1}
    assert add(file, results) == {h100: 0, h200: 0, kernels: 0}
    assert table.read(h200) == rows[1:] and {*results.glob("*.jsonl")} == {h100, h200}
    assert table.read_kernels(results, h100.stem) == others[-1:]
    assert not table.read_kernels(results, h200.stem)
    assert readme.markdown(results).startswith(f"**{CARDS[1]}, 2 threads, short runs**")


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--add", str(tmp_path / "none"), "--readme", str(tmp_path / "README.md")])
    assert capsys.readouterr().err.splitlines()[-1].endswith(
        f"--add: expected a file of records, found {tmp_path / 'none'}"
    )
    assert not [*tmp_path.iterdir()]


def test_readme_shows_what_the_results_say() -> None:
    file = ROOT / "README.md"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if readme.BEGIN not in text:
        pytest.skip("README.md has no benchmark block")
    assert readme.rewrite(text, readme.markdown()) == text, "run: make report"
    for file in record.RESULTS.glob("*.jsonl"):
        shown = (PAGES / f"{file.stem}.md").read_text(encoding="utf-8")
        kernels = table.read_kernels(record.RESULTS, file.stem)
        its = page(table.read(file), file.stem, kernels=kernels)
        assert shown == its, "run: make report"


def test_committed_results_are_complete() -> None:
    for file in record.RESULTS.glob("*.jsonl"):
        for r in table.read(file):
            assert {"row", "run", "commit", "dirty", "device", "threads", "versions", "dtype",
                    "shape", "candidate", "status"} <= set(r)  # fmt: skip
            assert ("p50" in r) == (r["status"] == "ok")
            assert r["status"] == "ok" or r["reason"]
            assert record.slug(r["device"]) == file.stem


def test_device_slug() -> None:
    assert record.slug("AMD EPYC, 2 cores, AVX2") == "cpu-amd-epyc-2c-avx2"
    assert record.slug(record.device()).startswith("cpu-")
    assert record.slug("NVIDIA H100 80GB HBM3, 132 SMs, sm_90") == "nvidia-h100-80gb-hbm3"


def test_short_times_are_in_microseconds() -> None:
    shown = [table.figure({"p50": p50, "unit": "s"}) for p50 in (2.0, 0.0105, 0.0005, 1.234e-5)]
    assert shown == ["2 s", "10.5 ms", "500 µs", "12.3 µs"]


def test_readme_has_a_column_for_each_known_peer(tmp_path: Path) -> None:
    names = [*readme.LABELS][:2]
    shares = {"FlagEmbedding": 12.34, "packed, SDPA, torch.compile": 1.5, "infinity-emb": 0.12,
              "bare linears": 0.9}  # fmt: skip
    rows = [made_up("1", row=name, p50=1.0, share=0.5) for name in names]
    rows += [
        made_up("1", row=names[0], p50=1.0, candidate=peer, ratio=ratio, aim="≥ 9×", met=False)
        for peer, ratio in shares.items()
    ]
    rows += [made_up("1", row="of no headline", p50=1.0)]
    machines = {"cpu-new": ("A CPU", 2), "cpu-old": ("An older CPU", 1), "a-gpu": ("A GPU", 2),
                "cpu-poor": ("A CPU of one headline", 3)}  # fmt: skip
    for stem, (device, day) in machines.items():
        its = [r | {"device": device, "run": f"2026-01-0{day}"} for r in rows]
        its = [r for r in its if stem != "cpu-poor" or r["row"] != names[1]]
        (tmp_path / f"{stem}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in its))
    block = readme.markdown(tmp_path)
    first, second = (readme.LABELS[name] for name in names)
    assert block.count(
        "| Workload | m3fast | FlagEmbedding | packed torch.compile | Other peers | "
        "Of the machine's limit |\n| --- | --- | --- | --- | --- | --- |\n"
        f"| {first} | 1 s | 12× | 1.50× | 0.12× infinity-emb | 50 % |\n"
        f"| {second} | 1 s | — | — | — | 50 % |\n"
    ) == 2  # fmt: skip
    assert block.startswith("**A GPU") and "**A CPU" in block, "a GPU's table is the first"
    for stem in ("cpu-old", "cpu-poor"):
        device = machines[stem][0]
        assert f"**{device}" not in block and f"[{device}](docs/bench/{stem}.md)" in block
    assert "aim" not in block and "of no headline" not in block


def test_headlines_are_rows_of_the_record_machine() -> None:
    named = {r["row"] for file in record.RESULTS.glob("*.jsonl") for r in table.read(file)}
    unknown = readme.LABELS.keys() - named
    # Not measured yet; a label that no row has any more would hide here.
    assert unknown <= {
        "encode on the GPU, text to numpy, passages, 24 layers, bf16",
        "encode online, 24 texts, 24 layers, int8",
        "one query of 20 tokens, 24 layers, int8",
    }


def test_names_have_no_commas() -> None:
    seen = {r["candidate"] for file in record.RESULTS.glob("*.jsonl") for r in table.read(file)}
    assert not any("," in names.shown(name) for name in seen - {"10,000 texts"})
