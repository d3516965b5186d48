"""Lengths, work and bytes of the encoder's rows."""

from __future__ import annotations

import benchpackage  # noqa: F401 - before bench
import pytest
from bench import workloads

Shape = workloads.Shape


@pytest.mark.parametrize("name", workloads.MIXES)
@pytest.mark.parametrize("tokens", [3, 4, 5, 41, 1000, 30_000])
@pytest.mark.parametrize("longest", [8, 9, 64, 8192])
def test_a_mix_sums_to_its_tokens(name: str, tokens: int, longest: int) -> None:
    lengths = workloads.mix(name, tokens, 1, longest)
    assert sum(lengths) == tokens
    assert all(3 <= n <= longest for n in lengths)
    assert lengths == workloads.mix(name, tokens, 1, longest)


def test_mixes_are_what_they_say() -> None:
    chat, passages, documents, mixed = (workloads.mix(n, 500_000) for n in workloads.MIXES)
    assert set(chat[:-1]) == set(range(5, 41))
    assert min(passages[:-1]) >= 20 and max(passages) == 512
    assert sum(passages) / len(passages) == pytest.approx(180, rel=0.05)
    assert min(documents[:-1]) >= 2048 and 7000 < max(documents) <= 8192
    assert sum(n > 512 for n in mixed) / len(mixed) == pytest.approx(0.03, abs=0.01)
    assert workloads.mix("chat", 1000, 1) != workloads.mix("chat", 1000, 2)
    with pytest.raises(ValueError, match="passages"):
        workloads.mix("queries", 100)
    with pytest.raises(ValueError, match="too few"):
        workloads.mix("chat", 2)


def test_work_is_that_of_the_products() -> None:
    """Counted product by product, for two texts on two layers."""
    shape, lengths = Shape(2, 128), [3, 5]
    h = 128
    linears = sum(2 * 8 * m * n for m, n in [(3 * h, h), (h, h), (4 * h, h), (h, 4 * h)])
    attention = sum(2 * n * n * h for n in lengths) * 2  # scores, then the mix of values
    expected = 2 * (linears + attention)
    assert workloads.encoder_work(shape, lengths, ("sparse",)) == expected + 2 * 8 * h
    assert workloads.encoder_work(shape, lengths) == expected + 2 * 8 * h * h + 2 * 8 * h


def test_dense_alone_spares_work_in_the_last_layer() -> None:
    shape, lengths, h = Shape(2, 128), [3, 5], 128
    kv = 2 * 8 * 2 * h * h
    rest = 2 * 2 * 10 * h * h  # of two tokens
    attention = 2 * 2 * 8 * h
    one = workloads.encoder_work(Shape(1, 128), lengths, ("sparse",)) - 2 * 8 * h
    assert workloads.encoder_work(shape, lengths, ("dense",)) == one + kv + rest + attention


def test_weight_bytes_are_those_of_the_checkpoint() -> None:
    shape = Shape(2, 128)
    state = workloads.random_encoder(shape, vocab=10, positions=10)
    size = sum(v.numel() for k, v in state.items() if not k.startswith("embeddings."))
    assert workloads.weight_bytes(shape, 4) == 4 * size
    head = sum(v.numel() for k, v in state.items() if k.startswith(("colbert", "sparse")))
    assert workloads.weight_bytes(shape, 2, ("dense",)) == 2 * (size - head)
