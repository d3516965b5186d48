"""What is not finite: refused at load with its tensor, refused in an output with its text."""

from __future__ import annotations

import asyncio
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from asyncruns import until
from checkpoints import TEXTS, edit_weights, make_checkpoint, overflowing

from m3fast import BGEM3FlagModel, CheckpointError, Engine
from m3fast.aio.engine import AsyncEngine
from m3fast.cli import main
from m3fast.errors import ComputeError, NonFiniteError

NAN, INF = float("nan"), float("inf")


def load(path: Path, **options) -> Engine:
    return Engine.from_pretrained(path, **{"device": "cpu", "dtype": "float32", **options})


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """Of a model that is fine, but for the word "the"."""
    return overflowing(make_checkpoint(tmp_path_factory.mktemp("model"), seed=3), "the")


@pytest.fixture(scope="module")
def engine(path) -> Engine:
    return load(path)


TENSORS = [
    "embeddings.word_embeddings.weight",
    "embeddings.position_embeddings.weight",
    "embeddings.token_type_embeddings.weight",
    "embeddings.LayerNorm.bias",
    "encoder.layer.0.attention.self.key.weight",
    "encoder.layer.1.attention.self.value.bias",
    "encoder.layer.0.attention.output.dense.weight",
    "encoder.layer.1.attention.output.LayerNorm.weight",
    "encoder.layer.1.intermediate.dense.weight",
    "encoder.layer.0.output.dense.bias",
]


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_weights_are_refused_at_load(tmp_path, name, value) -> None:
    path = make_checkpoint(tmp_path)
    edit_weights(path, lambda state: state[name].view(-1)[-1:].fill_(value))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: {name}: expected finite .*"):
        load(path)


@pytest.mark.parametrize("head", ["colbert", "sparse"])
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_heads_are_refused_at_load(tmp_path, head, part) -> None:
    path = make_checkpoint(tmp_path)
    file = path / f"{head}_linear.pt"
    state = torch.load(file)
    state[part].view(-1)[0] = NAN
    torch.save(state, file)
    with pytest.raises(CheckpointError, match=rf"{head}_linear\.pt: {part}: expected finite .*nan"):
        load(path)


@pytest.mark.parametrize("kind", ["pickled", "shards", "pickled shards"])
def test_every_kind_of_file(tmp_path, kind) -> None:
    from safetensors.torch import load_file, save_file

    path = make_checkpoint(tmp_path)
    state = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    name = "encoder.layer.1.output.dense.weight"
    stem, suffix = ("pytorch_model", "bin") if "pickled" in kind else ("model", "safetensors")

    def write(tensors: dict[str, torch.Tensor], file: str) -> None:
        if suffix == "bin":
            torch.save(tensors, path / file)
        else:
            save_file(tensors, path / file)

    def write_all() -> str:
        if "shards" not in kind:
            write(state, f"{stem}.{suffix}")
            return f"{stem}.{suffix}"
        files = [f"{stem}-{i}-of-2.{suffix}" for i in (1, 2)]
        where = {key: files[i % 2] for i, key in enumerate(sorted(state))}
        for file in files:
            write({key: state[key] for key in state if where[key] == file}, file)
        index = json.dumps({"weight_map": where})
        (path / f"{stem}.{suffix}.index.json").write_text(index)
        return where[name]

    write_all()
    wanted = load(make_checkpoint(tmp_path / "single")).encode(TEXTS)
    np.testing.assert_array_equal(load(path).encode(TEXTS).dense, wanted.dense)
    state[name][3, 4] = INF
    file = write_all()
    with pytest.raises(CheckpointError, match=rf"{file}: {name}: expected finite.*, found inf"):
        load(path)


def test_weights_too_large_for_the_dtype(tmp_path) -> None:
    name = "encoder.layer.0.output.dense.weight"
    path = make_checkpoint(tmp_path)
    edit_weights(path, lambda state: state[name][0].fill_(1e5))
    load(path, dtype="bfloat16")
    with pytest.raises(CheckpointError, match=f"{name}: expected finite values in float16"):
        load(path, dtype="float16")


def test_a_stale_index_beside_a_whole_file(tmp_path) -> None:
    path = make_checkpoint(tmp_path)
    wanted = load(path).encode(TEXTS).dense
    index = {"weight_map": {"x": "model-00001-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "pytorch_model.bin.index.json").write_text("{")
    np.testing.assert_array_equal(load(path).encode(TEXTS).dense, wanted)


ONE = [("dense",), ("sparse",), ("colbert",), ("dense", "sparse", "colbert")]


@pytest.mark.parametrize("outputs", ONE)
@pytest.mark.parametrize("at", [0, 5, 11])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "last_token", "mcls"])
def test_the_text_is_named(path, outputs, at, dtype, pooling) -> None:
    engine = load(path, dtype=dtype, pooling=pooling, token_budget=40)
    chosen = {name: name in outputs for name in ("dense", "sparse", "colbert")}
    texts = [f"text {i} {'word ' * (i % 4)}" for i in range(12)]
    fine = engine.encode(texts, **chosen)
    texts[at] = f"here is the word {at}"
    for normalize in (True, False):
        with pytest.raises(NonFiniteError, match=rf"texts\[{at}\]: .*{outputs[0]}") as failed:
            engine.encode(texts, normalize=normalize, **chosen)
        assert failed.value.index == at and failed.value.output == outputs[0]
    again = engine.encode([*texts[:at], "x", *texts[at + 1 :]], **chosen)
    if fine.dense is not None:
        np.testing.assert_allclose(np.delete(again.dense, at, 0), np.delete(fine.dense, at, 0),
                                   atol=2e-2 if dtype == "bfloat16" else 2e-6)  # fmt: skip


def test_of_many_texts_and_windows(engine, monkeypatch) -> None:
    import m3fast.aio.engine
    import m3fast.engine.engine

    monkeypatch.setattr(m3fast.engine.engine, "WINDOW_TEXTS", 7)
    monkeypatch.setattr(m3fast.aio.engine, "ITER_TEXTS", 7)
    texts = [f"text {i}" for i in range(60)]
    texts[45] = "and the end"
    found = engine.encode_iter(texts)
    with pytest.raises(NonFiniteError, match=r"texts\[45\]"):
        for window in found:
            assert np.isfinite(window.dense).all()

    async def run() -> int:
        got = 0
        async with AsyncEngine(engine) as shared:
            with pytest.raises(NonFiniteError, match=r"texts\[45\]"):
                async for window in shared.encode_iter(texts):
                    got += len(window)
        return got

    assert asyncio.run(run()) <= 42


def test_the_rest_of_a_batch_is_answered(engine) -> None:
    """Requests share batches and want different outputs; those of bad texts fail, each by name."""
    wanted = engine.encode("a fine text")
    outputs = [dict.fromkeys(("dense", "sparse", "colbert"), False) | {name: True}
               for name in ("dense", "sparse", "colbert")]  # fmt: skip

    async def run() -> list[object]:
        async with AsyncEngine(engine) as shared:
            calls = [
                shared.encode(["ok", "the"] if i % 2 else ["ok", "a fine text"], **outputs[i % 3],
                              normalize=i % 4 < 2)
                for i in range(48)
            ]  # fmt: skip
            found = await asyncio.gather(*calls, return_exceptions=True)
            assert shared.state == "ready"
            # A bad text's request hears of it before its batch is done with.
            await asyncio.wait_for(until(lambda: shared.load.tokens == 0), 60)
            return found

    for i, found in enumerate(asyncio.run(run())):
        if i % 2:
            assert isinstance(found, NonFiniteError) and found.index == 1
            assert isinstance(found, ComputeError)
        elif i % 3 == 1:
            np.testing.assert_allclose(found.sparse[1].values, wanted.sparse.values, atol=2e-6)
        elif i % 4 < 2:
            a, b = (v.dense if i % 3 == 0 else v.colbert.values for v in (found[1], wanted))
            np.testing.assert_allclose(a, b, atol=2e-6)


def test_large_and_finite_is_no_fault(tmp_path) -> None:
    """Sums that overflow where no value does."""
    path = make_checkpoint(tmp_path, m3_heads=True)
    edit_weights(path, lambda s: s["encoder.layer.1.output.LayerNorm.bias"].fill_(1e38))
    dense = load(path, normalize=False).encode(TEXTS, sparse=False, colbert=False).dense
    assert np.isfinite(dense).all() and not np.isfinite(dense.sum())


def test_hidden_states(engine) -> None:
    tokens = engine.tokenizer.encode(["a fine text", "the"], 16)
    rows = [torch.from_numpy(tokens.ids[a:b]) for a, b in zip(tokens.offsets, tokens.offsets[1:],
                                                              strict=False)]  # fmt: skip
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1)
    assert engine.hidden_states(ids[:1]).isfinite().all()
    with pytest.raises(NonFiniteError, match=r"texts\[1\]: expected finite hidden"):
        engine.hidden_states(ids, ids != 1)


def test_scores_of_the_drop_in(path) -> None:
    model = BGEM3FlagModel(str(path), devices="cpu")
    with pytest.raises(NonFiniteError):
        model.compute_score([("fine", "the")])
    with pytest.raises(NonFiniteError, match=r"texts\[2\]"):
        model.encode(["a", "b", "the"])


def test_command_line(path, tmp_path, capsys) -> None:
    source, out = tmp_path / "texts.txt", tmp_path / "out.npz"
    source.write_text("fine\nthe\n")
    assert main(["encode", "--model", str(path), str(source), "-o", str(out)]) == 2
    assert "texts[1]: expected finite" in capsys.readouterr().err and not out.exists()
    assert main(["verify", str(path), "--device", "cpu"]) in (1, 2)
    assert "all checks passed" not in capsys.readouterr().out


def test_errors_survive_pickling() -> None:
    error = NonFiniteError(3, "colbert").shifted(4)
    again = pickle.loads(pickle.dumps(error))
    assert (again.index, again.output, str(again)) == (7, "colbert", str(error))
