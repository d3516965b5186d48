"""`m3fast` as a command: help, exit codes, one-line errors, env."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import m3fast
from m3fast.cli import main
from m3fast.cli.table import fit, table, width
from m3fast.kernels import dispatch, native, tuning

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("encode", "search", "score", "eval", "train", "quantize", "verify", "tune", "env")


def python(*args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [sys.executable, *args], env=env, capture_output=True, text=True, timeout=120
    )


def stopped(*argv: str) -> int | str | None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    return stop.value.code


@pytest.mark.parametrize("argv", [["--version"], ["--help"], ["encode", "--help"]])
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    code = (
        "import sys\n"
        "from m3fast.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print([m for m in ('torch', 'numpy', 'tqdm') if m in sys.modules])"
    )
    done = python("-c", code, *argv)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert stopped(command, "--help") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: m3fast {command}")
    assert command == "env" or f"  m3fast {command} " in shown  # an example


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert stopped("--version") == 0
    assert capsys.readouterr().out == f"m3fast {m3fast.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "COMMAND"),
        (["nonsense"], "nonsense"),
        (["encode", "a.txt"], "-o/--output"),
        (["encode", "a.txt", "-o", "b.npz", "--part-size", "0"], "--part-size"),
        (["search", "q", "--corpus", "a.txt", "-k", "-1"], "-k"),
        (["search", "q", "--corpus", "a.txt", "--mode", "bm25"], "--mode"),
    ],
)
def test_bad_usage_is_one_line_and_2(
    argv: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stopped(*argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("m3fast: error: ")
    assert error.count("\n") == 1
    assert named in error


@pytest.mark.parametrize(
    ("model", "named"),
    [(["--model", "no/such/model"], "no/such/model"), (["--device", "abacus"], "device"),
     (["--dtype", "int3"], "dtype"), (["--max-length", "2"], "max_length")],
)  # fmt: skip
def test_bad_model_arguments(
    model: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", "--query", "q", "--passage", "p", *model]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("m3fast: error: ")
    assert error.count("\n") == 1
    assert named in error


def test_interrupt_is_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("m3fast.cli.env.environment", interrupted)
    assert main(["env"]) == 130
    assert capsys.readouterr().err == "m3fast: error: interrupted\n"


def test_warnings_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["score", "--query", "q", "--passage", "p", "--max-length", "99999"]
    assert main(argv) == 0
    assert capsys.readouterr().err.startswith("m3fast: warning: max_length: 99999")


@pytest.mark.slow
def test_closed_pipe_is_silent() -> None:
    code = (
        "import os, sys\n"
        "read, write = os.pipe()\n"
        "os.close(read)\n"
        "os.dup2(write, 1)\n"
        "from m3fast.cli import main\n"
        "sys.exit(main(['env']))"
    )
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (141, "")


def test_module_runs_as_a_command() -> None:
    done = python("-m", "m3fast", "--version")
    assert done.stdout == f"m3fast {m3fast.__version__}\n"


def test_env_says_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["versions"]["m3fast"] == m3fast.__version__
    assert report["native extension"]["available"] == native.available
    bits = native.library().int8_bits() if native.available else 8
    assert report["operations"]["linear layers in int8"].endswith(f", {bits} bits")
    assert main(["env"]) == 0
    shown = capsys.readouterr().out
    for name in (*report["operations"], "openmp team" if native.available else "why"):
        assert name in shown


def test_env_without_the_extension(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "available", False)
    monkeypatch.setattr(native, "why", "it was not built")
    assert main(["env", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["native extension"] == {"available": False, "why": "it was not built"}
    assert not [path for path in report["operations"].values() if "native" in path]


@pytest.mark.parametrize(
    ("why", "attention", "gelu"),
    [
        ("", "Triton, sm_90, tuned nvidia-h200.json", "Triton, sm_90, default configs"),
        ("triton is not installed", *2 * ["torch on cuda: triton is not installed"]),
    ],
)
def test_env_on_a_gpu(
    why: str,
    attention: str,
    gelu: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "nvidia-h200.json"
    tuning.save(file, [{"op": "attention", "key": {}, "config": {}}])
    monkeypatch.setattr("m3fast.cli.env.pick_device", lambda _: torch.device("cuda:0"))
    monkeypatch.setattr("m3fast.cli.env.pick_dtype", lambda *_: torch.bfloat16)
    monkeypatch.setattr(tuning, "file_for", lambda _: file)
    monkeypatch.setattr(dispatch, "why_not", lambda _: why)
    monkeypatch.setattr(dispatch, "arch", lambda _: 90)
    monkeypatch.setattr(native, "why_no_cuda", lambda _: why and "there is no nvcc")
    assert main(["env", "--json"]) == 0
    operations = json.loads(capsys.readouterr().out)["operations"]
    assert operations["attention"] == attention
    assert {operations[name] for name in ("gelu", "layernorm", "maxsim", "sparse rows")} == {gelu}
    assert operations["vectors"] == gelu.removesuffix(", default configs")
    assert operations["linear layers"] == "torch on cuda"
    assert operations["linear layers in int8"] == "on a CPU only"
    padding = "torch on cuda: there is no nvcc" if why else "CUDA C++"
    assert operations["padded to packed"] == padding


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is something to tune")
def test_tune_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("m3fast: error: tune: expected a CUDA device, found none")
    assert error.count("\n") == 1


def test_table_aligns_wide_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = table(["n", "text"], [["1", "今天天气很好，" * 9], ["22", "a\x1b[31mb\nc"]], texts=1)
    assert lines.split("\n")[0] == " n  text"
    assert all(width(line) <= 40 for line in lines.split("\n"))
    assert lines.endswith("22  a [31mb c")  # no escape sequence of a text reaches the terminal


@pytest.mark.parametrize("text", ["", "abc", "a" * 10, "a" * 11, "今天天气很好", "e\u0301" * 10])
def test_fit(text: str) -> None:
    shown = fit(text, 10)
    assert width(shown) <= 10
    assert shown == text or (shown.endswith("…") and text.startswith(shown[:-1]))
    assert shown == text or width(text) > 10
