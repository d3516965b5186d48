"""The engine: order, batching, streaming, options, threads, forks, and clear errors."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import TEXTS, make_checkpoint
from nearness import same

from m3fast import Engine, InputError
from m3fast.runner import cpu, forward


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), seed=5)


@pytest.fixture(scope="module")
def engine(path) -> Engine:
    return Engine.from_pretrained(path, device="cpu", dtype="float32", max_length=512)


def test_shapes_and_types(engine) -> None:
    found = engine.encode(TEXTS)
    n, tokens = len(TEXTS), engine.tokenizer.encode(TEXTS, 512)
    lengths = np.diff(tokens.offsets)
    assert found.dense.shape == (n, 40) and found.dense.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found.dense, axis=1), 1, atol=1e-5)
    assert len(found) == len(found.sparse) == len(found.colbert) == n
    assert found.n_tokens.dtype == np.int32 and found.n_tokens.tolist() == lengths.tolist()
    assert [len(v) for v in found.colbert] == (lengths - 1).tolist()
    assert found.truncated.dtype == bool and not found.truncated.any()
    dicts = found.sparse.to_dicts()
    assert all(type(k) is int and type(v) is float for row in dicts for k, v in row.items())
    matrix = found.sparse.to_scipy()
    assert matrix.shape == (n, engine.config.vocab_size) and matrix.has_sorted_indices
    assert matrix.sum() == pytest.approx(sum(sum(row.values()) for row in dicts), rel=1e-5)
    assert found.sparse.to_indices()[0] == [{"index": i, "value": v} for i, v in dicts[0].items()]


def test_results_do_not_depend_on_batch_mates(engine, path) -> None:
    together = engine.encode(TEXTS)
    tight = Engine.from_pretrained(path, device="cpu", dtype="float32", token_budget=1)
    same(together, tight.encode(TEXTS), 2e-6)
    for i, text in enumerate(TEXTS):
        same(together[i], engine.encode(text), 2e-6)
    reverse = engine.encode(TEXTS[::-1])
    for i in range(len(TEXTS)):
        same(together[i], reverse[len(TEXTS) - 1 - i], 2e-6)


def test_runs_are_bitwise_equal(engine, path) -> None:
    first = engine.encode(TEXTS * 3)
    same(first, engine.encode(TEXTS * 3))
    same(first, Engine.from_pretrained(path, device="cpu", dtype="float32").encode(TEXTS * 3))


def test_bfloat16_is_close(engine, path) -> None:
    exact = engine.encode(TEXTS)
    rough = Engine.from_pretrained(path, device="cpu", dtype="bfloat16").encode(TEXTS)
    cosine = (exact.dense * rough.dense).sum(1)
    assert cosine.min() > 0.999
    token_cosine = (exact.colbert.values * rough.colbert.values).sum(1)
    assert token_cosine.min() > 0.995
    assert abs(exact.sparse.to_scipy() - rough.sparse.to_scipy()).max() < 0.1


def test_unasked_heads_are_not_computed(engine, monkeypatch) -> None:
    def refuse(*args):
        pytest.fail("a head ran that nobody asked for")

    for name in ("dense", "sparse", "colbert"):
        with monkeypatch.context() as patch:
            patch.setattr(cpu if name == "sparse" else forward, f"{name}_head", refuse)
            if name == "sparse":  # its product rides in the encoder's last step
                patch.setattr("m3fast.kernels.layernorm.add_layernorm_dot", refuse)
            found = engine.encode(TEXTS, **{name: False})
        assert getattr(found, name) is None
        only = engine.encode(TEXTS, **{n: n == name for n in ("dense", "sparse", "colbert")})
        assert [getattr(only, n) is not None for n in ("dense", "sparse", "colbert")] == [
            n == name for n in ("dense", "sparse", "colbert")
        ]


def test_iter_equals_encode(engine, monkeypatch) -> None:
    monkeypatch.setattr("m3fast.engine.engine.WINDOW_TEXTS", 5)
    parts = list(engine.encode_iter(iter(TEXTS)))
    assert [len(p) for p in parts] == [5, 5, 2]
    whole, start = engine.encode(TEXTS), 0
    for part in parts:
        same(whole[start : start + len(part)], part, 2e-6)
        start += len(part)
    assert list(engine.encode_iter([])) == []
    monkeypatch.setattr("m3fast.engine.engine.WINDOW_CHARACTERS", 10)
    assert max(len(p) for p in engine.encode_iter(["abcdef"] * 7)) == 2


def test_empty_list(engine) -> None:
    found = engine.encode([])
    assert found.dense.shape == (0, 40) and found.colbert.values.shape == (0, 40)
    assert len(found.sparse) == len(found.colbert) == len(found) == 0
    assert found.sparse.to_scipy().shape == (0, engine.config.vocab_size)


def test_token_ids_instead_of_text(engine) -> None:
    tokens = engine.tokenizer.encode(TEXTS, 512)
    ids = [tokens.ids[a:b].tolist() for a, b in zip(tokens.offsets, tokens.offsets[1:])]  # noqa: B905
    same(engine.encode(TEXTS), engine.encode(ids))


def test_truncation(engine) -> None:
    found = engine.encode([TEXTS[10], "x"], max_length=20)
    assert found.n_tokens.tolist()[0] == 20 and found.truncated.tolist() == [True, False]
    ids = engine.tokenizer.encode([TEXTS[10]], 20).ids
    assert ids[0] == 0 and ids[-1] == 2
    with pytest.warns(RuntimeWarning, match="max_length: 9000"):
        assert engine.encode(TEXTS[10] * 20, max_length=9000).n_tokens[0] == 512


def test_a_text_does_not_pin_the_others(engine) -> None:
    found = engine.encode(TEXTS)
    for part in (found.colbert[3], found[3].colbert.values, found[3].dense, found.sparse[3].values):
        assert part.base is None or part.base.nbytes <= 2 * part.nbytes


def test_slices_and_bad_rows(engine) -> None:
    found = engine.encode(TEXTS)
    same(found[2:5], engine.encode(TEXTS[2:5]), 2e-6)
    same(found[-1], engine.encode(TEXTS[-1]), 2e-6)
    with pytest.raises(IndexError):
        found[len(TEXTS)]
    with pytest.raises(ValueError, match="step"):
        found[::2]


def test_truncate_dim_and_normalize(path, engine) -> None:
    cut = engine.encode(TEXTS, truncate_dim=8)
    assert cut.dense.shape[1] == cut.colbert.values.shape[1] == 8
    np.testing.assert_allclose(np.linalg.norm(cut.colbert.values, axis=1), 1, atol=1e-5)
    raw = Engine.from_pretrained(path, dtype="float32", normalize=False, truncate_dim=8)
    found = raw.encode(TEXTS)
    norms = np.linalg.norm(found.dense, axis=1, keepdims=True)
    assert abs(norms - 1).max() > 0.1
    np.testing.assert_allclose(found.dense / norms, cut.dense, atol=1e-5)


def test_many_threads(engine) -> None:
    alone = [engine.encode([text, text + " more"]) for text in TEXTS]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda t: engine.encode([t, t + " more"]), TEXTS * 4))
    for i, part in enumerate(found):
        same(alone[i % len(TEXTS)], part)


def test_leaves_the_process_as_it_was(path) -> None:
    before = (
        set(threading.enumerate()), dict(os.environ), torch.get_num_threads(),
        torch.is_grad_enabled(), torch.get_default_dtype(), torch.random.get_rng_state().sum(),
    )  # fmt: skip
    Engine.from_pretrained(path).encode(TEXTS)
    after = (
        set(threading.enumerate()), dict(os.environ), torch.get_num_threads(),
        torch.is_grad_enabled(), torch.get_default_dtype(), torch.random.get_rng_state().sum(),
    )  # fmt: skip
    assert before == after


FORK = """
import os, sys
from m3fast import Engine, ProcessError
engine = Engine.from_pretrained(sys.argv[1], device="cpu")
engine.encode("warm")
child = os.fork()
if child == 0:
    try:
        engine.encode("x")
    except ProcessError as error:
        os._exit(7 if str(os.getpid()) in str(error) else 1)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
engine.encode("the parent goes on")
"""


def test_a_forked_child_gets_a_clear_error(path) -> None:
    subprocess.run([sys.executable, "-c", FORK, str(path)], check=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (dict(texts=None), "texts"),
        (dict(texts=b"bytes"), "texts"),
        (dict(texts=3), "texts"),
        (dict(texts=np.array([1.5])), "texts"),
        (dict(texts=iter(["a"])), "encode_iter"),
        (dict(texts=["a", None]), r"texts\[1\]"),
        (dict(texts=["a", b"b"]), r"texts\[1\]"),
        (dict(texts=["a", 1.5]), r"texts\[1\]"),
        (dict(texts=["a", 7]), r"texts\[1\]"),
        (dict(texts=["a", ["b"]]), r"texts\[1\]"),
        (dict(texts=["a", []]), r"texts\[1\]"),
        (dict(texts=[[0, 10**7, 2]]), r"texts\[0\]"),
        (dict(texts=[[0, -1, 2]]), r"texts\[0\]"),
        (dict(texts=["lone \ud800 surrogate"]), r"texts\[0\]"),
        (dict(texts="a", max_length=2), "max_length"),
        (dict(texts="a", max_length="8"), "max_length"),
        (dict(texts="a", max_texts=0), "max_texts"),
        (dict(texts="a", truncate_dim=0), "truncate_dim"),
        (dict(texts="a", dense=False, sparse=False, colbert=False), "at least one"),
    ],
)
def test_bad_input(engine, arguments, name) -> None:
    with pytest.raises(InputError, match=name):
        engine.encode(**arguments)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (dict(device="tpu"), "device"),
        (dict(device="meta"), "device"),
        (dict(device="cuda:99"), "device"),
        (dict(dtype="int4"), "dtype"),
        (dict(dtype=torch.int32), "dtype"),
        (dict(dtype="int8", device="cuda:99"), "device"),
        (dict(token_budget=0), "token_budget"),
        (dict(token_budget=-5), "token_budget"),
        (dict(max_length=0), "max_length"),
        (dict(truncate_dim=-1), "truncate_dim"),
        (dict(pooling="max"), "pooling"),
    ],
)
def test_bad_engine_arguments(path, arguments, name) -> None:
    with pytest.raises(InputError, match=f"^{name}"):
        Engine.from_pretrained(path, **arguments)
