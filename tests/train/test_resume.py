"""Interrupts and kills at any moment, and what a run does not go on from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training import small_run

from m3fast.cli import main
from m3fast.errors import CheckpointError, InputError
from m3fast.train import loop, read_config, train
from m3fast.train.record import read_log


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    return train(read_config(small_run(folder, out)), show_progress=False)


def assert_same_run(one: Path, two: Path) -> None:
    a, b = (torch.load(out / "training.pt", weights_only=True)["model"] for out in (one, two))
    assert all(torch.equal(a[name], b[name]) for name in b)
    logs = [
        [{k: v for k, v in r.items() if "seconds" not in k and k != "tokens_per_s"} for r in rows]
        for rows in (read_log(out / "training.jsonl") for out in (one, two))
    ]
    assert logs[0] == logs[1] and len(logs[0]) == 3


@pytest.mark.parametrize("step", [0, 3, 5, 8])
def test_interrupted_at_a_step(
    folder: Path,
    tmp_path: Path,
    undisturbed: Path,
    step: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Checkpoints are of steps 4 and 8, log rows of 3, 6 and 9."""
    out, forward = tmp_path / "out", loop.forward_backward
    file = small_run(folder, out)
    calls = []

    def interrupted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) > step:
            raise KeyboardInterrupt
        return forward(*args)

    monkeypatch.setattr(loop, "forward_backward", interrupted)
    assert main(["train", str(file), "--no-progress"]) == 130
    shown, err = capsys.readouterr()
    assert err == "m3fast: error: interrupted\n"
    kept = step // 4 * 4
    where = f"from step {kept}, kept in {out}" if kept else "from the beginning"
    assert f"the same command goes on {where}" in shown
    monkeypatch.undo()
    assert main(["train", str(file), "--no-progress"]) == 0
    assert (f"going on from step {kept}" in capsys.readouterr().out) == (kept > 0)
    assert_same_run(out, undisturbed)


@pytest.mark.parametrize("save", [1, 2, 3])
def test_killed_while_saving(
    folder: Path, tmp_path: Path, undisturbed: Path, save: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a checkpoint is never met: the one before it stands until the new one is whole."""
    out, saving, calls = tmp_path / "out", torch.save, []

    def killed(state: Any, file: Path) -> None:
        calls.append(1)
        saving(state, file)
        if len(calls) == save:
            Path(file).write_bytes(Path(file).read_bytes()[:5000])
            raise SystemExit

    config = read_config(small_run(folder, out))
    monkeypatch.setattr(loop.torch, "save", killed)
    with pytest.raises(SystemExit):
        train(config, show_progress=False)
    monkeypatch.undo()
    lines: list[str] = []
    train(config, show_progress=False, report=lines.append)
    going = [line for line in lines if line.startswith("going on from step")]
    assert [line.split()[4].rstrip(",") for line in going] == (
        [str(4 * save - 4)] if save > 1 else []
    )
    assert_same_run(out, undisturbed)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 2e-3}, "lr: expected 0.001 as in the run of"),
        ({"steps": 10}, "steps: expected 9 as in the run of"),
        ({"seed": 1}, "seed: expected 0 as in"),
        ({"losses": {"dense": 2.0}}, "losses: expected {} as in"),
        ({"negatives": 1}, "negatives: expected 0 as in"),
        ({"model": "m3fast-tiny"}, "model: expected "),
    ],
)
def test_another_config_is_refused(
    folder: Path,
    undisturbed: Path,
    fails: Callable[..., str],
    values: dict[str, Any],
    message: str,
) -> None:
    before = (undisturbed / "training.pt").read_bytes()
    log = (undisturbed / "training.jsonl").read_bytes()
    file = small_run(folder, undisturbed.with_name("other"), output=undisturbed, **values)
    error = fails(file)
    assert message in error and "take another output folder, or delete that file" in error
    assert (undisturbed / "training.pt").read_bytes() == before
    assert (undisturbed / "training.jsonl").read_bytes() == log


def test_other_data_is_refused(folder: Path, undisturbed: Path) -> None:
    data = ({"path": "pairs.jsonl", "weight": 2.0},)
    file = small_run(folder, undisturbed.with_name("other"), *data, output=undisturbed)
    with pytest.raises(InputError, match="data: expected "):
        train(read_config(file))


def test_checkpoints_may_be_made_more_often(folder: Path, undisturbed: Path) -> None:
    file = small_run(folder, undisturbed.with_name("o"), output=undisturbed, checkpoint_every=1)
    lines: list[str] = []
    train(read_config(file), show_progress=False, report=lines.append)
    assert f"going on from step 9, kept in {undisturbed / 'training.pt'}" in lines


def test_broken_states(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    config = read_config(small_run(folder, out))
    for content in (b"", b"PK not a zip", b"\x80\x02N."):
        (out / "training.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"training.pt: expected a training run's state"):
            train(config)
    torch.save({"a": 1}, out / "training.pt")
    with pytest.raises(CheckpointError, match="found something else"):
        train(config)


def test_a_model_of_another_shape_is_refused(folder: Path, tmp_path: Path) -> None:
    config = read_config(small_run(folder, tmp_path / "out"))
    train(config, show_progress=False)
    state = torch.load(tmp_path / "out" / "training.pt", weights_only=True)
    state["model"]["sparse.weight"] = torch.zeros(1, 3)
    torch.save(state, tmp_path / "out" / "training.pt")
    with pytest.raises(InputError, match="model: expected the shape kept in"):
        train(config)


def test_a_lost_log_is_begun_anew(folder: Path, tmp_path: Path) -> None:
    config = read_config(small_run(folder, tmp_path / "out"))
    train(config, show_progress=False)
    (tmp_path / "out" / "training.jsonl").unlink()
    train(config, show_progress=False)
    assert (tmp_path / "out" / "training.jsonl").read_text() == ""
    assert main(["train", str(tmp_path / "out.toml")]) == 2
