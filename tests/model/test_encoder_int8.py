"""The encoder in eight bits against the same checkpoint in float32, on every path of a CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import TEXTS, TINY, edit_weights, make_checkpoint
from mclsplain import random_ids
from safetensors.torch import load_file
from torch.nn.functional import cosine_similarity

from m3fast import Engine
from m3fast.kernels import native
from m3fast.kernels.int8 import Int8Table, Int8Weight

PATHS = ["torch", *(native.library().cpu_paths() if native.available else ())]
PARTS = ("qkv", "out", "up", "down")
NAMES = ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")


@pytest.fixture(scope="module", params=[native.forced] if native.forced else PATHS)
def int8_path(request):
    """The instructions in use, or plain torch as where the extension was not built."""
    before = native.library().cpu_path() if native.available else None
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(native, "_extension", None)
            patch.setattr(native, "_warned", True)
        else:
            native.library().cpu_path(request.param)
        yield request.param
    if before:
        native.library().cpu_path(before)


def load(path, dtype="int8", **options) -> Engine:
    return Engine.from_pretrained(path, device="cpu", dtype=dtype, **options)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return make_checkpoint(folder, seed=5, hidden=64, heads=4, ffn=136, colbert_dim=33)


@pytest.fixture(scope="module")
def engine(int8_path, small) -> Engine:
    return load(small)


@pytest.fixture(scope="module")
def floats(small) -> dict:
    """What float32 gives: of texts, cut and not normalised, of texts with nothing in them."""
    engine = load(small, "float32")
    return {
        "texts": engine.encode(TEXTS),
        "cut": engine.encode(TEXTS, normalize=False, truncate_dim=20),
        "none": engine.encode(TEXTS[1:3]),
        "hidden": engine.hidden_states(*padded(engine)),
    }


@pytest.fixture(scope="module")
def tiny(int8_path) -> Engine:
    return load("m3fast-tiny")


@pytest.fixture(scope="module")
def tiny_floats():
    engine = load("m3fast-tiny", "float32")
    assert len(in_floats(engine)) == 4 * engine.config.n_layers + 1
    return engine.encode(TEXTS)


def padded(engine) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = engine.tokenize(TEXTS, 60)
    rows = [torch.from_numpy(tokens.ids[a:b]).long() for a, b in
            zip(tokens.offsets, tokens.offsets[1:], strict=False)]  # fmt: skip
    ids = torch.nn.utils.rnn.pad_sequence(rows, True, engine.config.pad_id)
    ones = [torch.ones_like(row) for row in rows]
    return ids, torch.nn.utils.rnn.pad_sequence(ones, True, 0)


def in_floats(engine) -> list[str]:
    """The products that eight bits do not hold."""
    weights = engine.runner.weights
    found = [
        f"{i} {part}"
        for i, layer in enumerate(weights.layers)
        for part in PARTS
        if not isinstance(getattr(layer, part).weight, Int8Weight)
    ]
    return found + ["colbert"] * (not isinstance(weights.colbert.weight, Int8Weight))


def cosines(a, b) -> torch.Tensor:
    return cosine_similarity(*(torch.as_tensor(np.asarray(v, np.float64)) for v in (a, b)), dim=-1)


def check(found, expected, dense=0.998, token=0.98, weight=0.06) -> None:
    """Dense vectors and token vectors by cosine, lexical weights by what they differ."""
    near = cosines(found.dense, expected.dense)
    assert (near[expected.n_tokens > 2] >= dense).all()
    assert (near >= dense - 0.01).all()  # an empty text's says nothing
    assert (found.n_tokens == expected.n_tokens).all()
    if expected.colbert is not None:
        np.testing.assert_array_equal(found.colbert.offsets, expected.colbert.offsets)
        assert cosines(found.colbert.values, expected.colbert.values).min() >= token
    if expected.sparse is not None:
        for a, b in zip(found.sparse.to_dicts(), expected.sparse.to_dicts(), strict=True):
            for i in a.keys() | b.keys():  # a weight of almost 0 may be there in one alone
                assert abs(a.get(i, 0) - b.get(i, 0)) <= weight


def test_tiny(tiny, tiny_floats) -> None:
    check(tiny.encode(TEXTS), tiny_floats)


def test_layers_that_eight_bits_do_not_hold(tiny) -> None:
    stored = load_file(TINY / "model.safetensors")
    assert [name for name in in_floats(tiny) if name != "colbert"] == [
        f"{i} {part}"
        for i in range(tiny.config.n_layers)
        for part, name in zip(PARTS, NAMES, strict=True)
        if stored[f"encoder.layer.{i}.{name}.weight"].dtype != torch.int8
    ]
    weights = tiny.runner.weights
    assert isinstance(weights.word, Int8Table) and isinstance(weights.position, Int8Table)
    assert weights.dtype == torch.int8 and weights.type_row.dtype.is_floating_point
    with pytest.raises(TypeError, match="weights: expected floats, found int8"):
        weights.float_tables()


def test_random_weights(engine, floats) -> None:
    assert in_floats(engine) == []
    check(engine.encode(TEXTS), floats["texts"])
    check(engine.encode(TEXTS, normalize=False, truncate_dim=20), floats["cut"], 0.998, 0.99)


@pytest.mark.parametrize(
    ("names", "there"),
    [
        (["1.attention.self.key"], ["1 qkv"]),  # one of three, and all go with it
        (["0.attention.output.dense"], ["0 out"]),
        (["0.intermediate.dense"], ["0 up"]),
        (["1.output.dense"], ["1 down"]),
        (["0.intermediate.dense", "0.output.dense"], ["0 up", "0 down"]),
    ],
)
def test_a_product_in_floats_among_others(tmp_path, names, there) -> None:
    """It makes more of the rounding before it; a shift that it has twice would be far more."""

    def widen(state) -> None:
        for name in names:
            state[f"encoder.layer.{name}.weight"][:, 7] *= 25

    path = make_checkpoint(tmp_path, seed=6, hidden=64, heads=4, ffn=136)
    edit_weights(path, widen)
    engine, floats = load(path), load(path, "float32")
    assert in_floats(engine) == there
    check(engine.encode(TEXTS), floats.encode(TEXTS), 0.99, 0.97, 0.25)


def test_a_text_alone_is_that_of_a_batch(int8_path, engine) -> None:
    if int8_path == "torch":
        pytest.skip("torch's own matter")
    texts = [*TEXTS, random_ids(300, 1000)]
    whole = engine.encode(texts)
    for i, text in enumerate(texts):
        alone = engine.encode([text])
        np.testing.assert_array_equal(alone.dense[0], whole.dense[i])
        np.testing.assert_array_equal(alone.colbert[0], whole.colbert[i])
        # torch's product with a vector, in fp32: its order of sums hangs on the number of rows.
        a, b = alone.sparse[0], whole.sparse[i]
        np.testing.assert_array_equal(a.indices, b.indices)
        np.testing.assert_allclose(a.values, b.values, rtol=1e-4, atol=1e-6)


def test_dense_alone_computes_the_rows_it_needs(int8_path, engine, tiny) -> None:
    for each in (engine, tiny):
        whole = each.encode(TEXTS)
        alone = each.encode(TEXTS, sparse=False, colbert=False)
        assert alone.sparse is None and alone.colbert is None
        if int8_path == "torch" or in_floats(each):
            # torch's products of other numbers of rows differ in their last bits.
            assert cosines(alone.dense, whole.dense).min() >= 0.9999
        else:
            np.testing.assert_array_equal(alone.dense, whole.dense)


@pytest.mark.parametrize("pooling", ["mean", "mcls", "last_token"])
def test_pooling(small, pooling) -> None:
    texts = [*TEXTS, random_ids(400, 1000)]
    expected = load(small, "float32", pooling=pooling).encode(texts)
    check(load(small, pooling=pooling).encode(texts), expected)


def test_hidden_states(engine, floats) -> None:
    ids, mask = padded(engine)
    found = engine.hidden_states(ids, mask)
    assert found.shape == (*ids.shape, 64) and found.dtype.is_floating_point
    assert (found[mask == 0] == 0).all()
    assert cosines(found.float(), floats["hidden"])[mask.bool()].min() >= 0.995


def test_nothing(engine, floats) -> None:
    assert engine.encode([]).dense.shape == (0, 64)
    check(engine.encode(TEXTS[1:3]), floats["none"])
    assert engine.hidden_states(torch.zeros(0, 5, dtype=torch.int64)).shape == (0, 5, 64)


def test_no_heads_and_odd_sizes(tmp_path) -> None:
    path = make_checkpoint(
        tmp_path, seed=8, hidden=36, heads=3, ffn=70, m3_heads=False, model_type="bert"
    )
    check(load(path).encode(TEXTS), load(path, "float32").encode(TEXTS))


def test_long_text(tmp_path) -> None:
    path = make_checkpoint(tmp_path, seed=9, hidden=32, heads=1, layers=1, ffn=48, positions=8194)
    texts = [random_ids(8192, 1000), "short"]
    found = load(path).encode(texts)
    assert found.n_tokens.tolist()[0] == 8192
    check(found, load(path, "float32").encode(texts))


def test_buffers_are_used_again(engine) -> None:
    """What a batch leaves there is not seen by the next."""
    before = engine.encode(TEXTS)
    with torch.inference_mode():
        for buffer in engine.runner._spaces[0]._buffers.values():
            buffer.fill_(255 if buffer.dtype == torch.uint8 else float("nan"))
    after = engine.encode(TEXTS)
    np.testing.assert_array_equal(before.dense, after.dense)
    np.testing.assert_array_equal(before.colbert.values, after.colbert.values)
