"""`m3fast encode` after a kill or an interrupt: parts go on, and the output appears whole."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from encoderuns import CORPUS, assert_fails, encode, encode_argv, left_behind

from m3fast.cli import main
from m3fast.cli.part_files import Parts
from m3fast.cli.store import read_npz

ROOT = Path(__file__).resolve().parents[2]


def test_killed_run_goes_on(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.npz"
    code = (
        "import sys, time\n"
        "import m3fast.engine.engine\n"
        "from m3fast.cli import main\n"
        "from m3fast.cli.part_files import Parts\n"
        "m3fast.engine.engine.WINDOW_TEXTS = 16\n"
        "save = Parts.save\n"
        "def save_and_wait(self, arrays):\n"
        "    save(self, arrays)\n"
        "    if len(self.files) == 2: time.sleep(600)\n"
        "Parts.save = save_and_wait\n"
        "main(sys.argv[1:])"
    )
    argv = encode_argv(corpus, "--part-size", 16, "-o", out)
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONSAFEPATH": "1"}
    child = subprocess.Popen([sys.executable, "-c", code, *argv], env=env)
    second = tmp_path / "out.npz.parts" / "000001.npz"
    while not second.exists() and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL  # it was still at work
    assert not out.exists()
    assert main(argv) == 0
    assert "108 texts (32 of them by an earlier run)" in capsys.readouterr().err
    assert encode(corpus, "-o", tmp_path / "whole.npz") == 0
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert left_behind(tmp_path, corpus.name, out.name, "whole.npz") == set()


@pytest.fixture
def interrupted(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Path:
    """OUT.parts/ with two parts of 32 texts, as Ctrl-C leaves it."""
    saved = Parts.save

    def save(self: Parts, arrays: dict[str, Any]) -> None:
        if len(self.files) == 2:
            raise KeyboardInterrupt
        saved(self, arrays)

    with monkeypatch.context() as patched:
        patched.setattr(Parts, "save", save)
        assert encode(corpus, "-o", tmp_path / "out.npz", "--part-size", 32) == 130
    assert "64 texts are done" in capsys.readouterr().err
    parts = tmp_path / "out.npz.parts"
    assert {path.name for path in parts.iterdir()} == {
        "000000.npz", "000001.npz", "manifest.json", "lock",
    }  # fmt: skip
    return parts


def test_resumed_run_reuses_parts(
    interrupted: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert encode(corpus, "-o", tmp_path / "out.npz", "--part-size", 32) == 0
    assert "108 texts (64 of them by an earlier run)" in capsys.readouterr().err
    assert encode(corpus, "-o", tmp_path / "whole.npz", "--part-size", 32) == 0
    assert (tmp_path / "out.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert not interrupted.exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--max-length", "32"], "max_length was 8192 and is 32"),
        (["--dense"], "outputs"),
        (["--colbert-dtype", "float32"], "colbert_dtype"),
        (["--dtype", "float16"], "dtype"),
    ],
)
def test_resuming_with_other_options_is_refused(
    interrupted: Path,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    named: str,
) -> None:
    before = {path.name: path.read_bytes() for path in interrupted.iterdir()}
    assert_fails(capsys, [corpus, "-o", tmp_path / "out.npz", *options], named, "--overwrite")
    assert {path.name: path.read_bytes() for path in interrupted.iterdir()} == before


def test_overwrite_discards_parts_of_another_run(
    interrupted: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    out = tmp_path / "out.npz"
    assert encode(corpus, "-o", out, "--dense", "--overwrite") == 0
    assert "earlier run" not in capsys.readouterr().err
    assert len(read_npz(str(out))[0]) == len(CORPUS)
    assert not interrupted.exists()


def test_resuming_with_another_input_is_refused(
    interrupted: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with corpus.open("a") as file:
        file.write("one more\n")
    assert_fails(capsys, [corpus, "-o", tmp_path / "out.npz"], "input_size")
    assert interrupted.exists()


def test_half_written_part_does_not_count(
    interrupted: Path, corpus: Path, tmp_path: Path
) -> None:
    (interrupted / "unfinished.tmp").write_bytes(b"PK half a part")
    assert encode(corpus, "-o", tmp_path / "out.npz", "--part-size", 32) == 0
    assert len(read_npz(str(tmp_path / "out.npz"))[0]) == len(CORPUS)


def test_second_run_at_the_same_time_is_refused(
    interrupted: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Parts.opened(tmp_path / "out.npz"):
        assert_fails(capsys, [corpus, "-o", tmp_path / "out.npz"], "another run")
    assert (interrupted / "000001.npz").exists()


def test_output_appears_at_once(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.npz"
    out.write_bytes(b"the old one")

    def full(_: object, file: io.BytesIO, __: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("m3fast.cli.encode.write_npz", full)
        assert_fails(capsys, [corpus, "-o", out, "--overwrite"], "No space left on device")
    assert out.read_bytes() == b"the old one"
    assert encode(corpus, "-o", out, "--overwrite") == 0  # its parts were kept
    assert "by an earlier run" in capsys.readouterr().err
    assert len(read_npz(str(out))[0]) == len(CORPUS)
