"""Scores and losses against plain loops in float64, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch

from m3fast.kernels.reference import lexical_scores_ref, maxsim_ref
from m3fast.train import losses
from m3fast.train.losses import (
    Side,
    contrastive_losses,
    lexical_scores,
    multi_vector_scores,
    teacher_losses,
)

DROPPED = [0, 1, 2, 3]
SCORES: dict[str, Callable[[Side, Side], torch.Tensor]] = {
    "sparse": lambda q, p: lexical_scores(q, p, DROPPED),
    "colbert": multi_vector_scores,
}


def random_side(
    lengths: Sequence[int], seed: int, *, d: int = 5, vocab: int = 15, kind: torch.dtype
) -> Side:
    """Texts of `lengths` tokens, their tokens packed in another order than the texts have."""
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lengths), generator=random).tolist()
    texts = torch.tensor([i for i in order for _ in range(lengths[i])])
    first = torch.tensor([j == 0 for i in order for j in range(lengths[i])])
    total = len(texts)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(kind)

    ids = torch.randint(vocab, (total,), generator=random)
    ids[first] = 0
    tokens = rand(total).relu()
    normal = torch.nn.functional.normalize
    dense, vectors = normal(rand(len(lengths), d), dim=1), normal(rand(total, d), dim=1)
    return Side(dense, tokens, vectors, ids, texts, first)


def dicts(side: Side) -> list[dict[int, float]]:
    """Lexical weights as FlagEmbedding makes them: the largest of each id that is a word."""
    found: list[dict[int, float]] = [{} for _ in range(len(side.dense))]
    for weight, i, text in zip(
        side.token_weights.tolist(), side.ids.tolist(), side.texts.tolist(), strict=True
    ):
        if i not in DROPPED and weight > found[text].get(i, 0):
            found[text][i] = weight
    return found


def rows_of(side: Side) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of all tokens but the first, text by text, and offsets."""
    parts = [side.vectors[(side.texts == i) & ~side.first] for i in range(len(side.dense))]
    ends = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
    return torch.cat(parts), ends


def all_scores(q: Side, p: Side) -> dict[str, torch.Tensor]:
    return {
        "dense": torch.tensor(
            [[sum(a * b for a, b in zip(x, y, strict=True)) for y in p.dense.tolist()]
             for x in q.dense.tolist()], dtype=torch.float64),
        "sparse": lexical_scores_ref(dicts(q), dicts(p)),
        "colbert": maxsim_ref(*rows_of(q), *rows_of(p)).double(),
    }  # fmt: skip


def softmax(row: list[float]) -> list[float]:
    most = max(row)
    parts = [math.exp(x - most) for x in row]
    return [part / sum(parts) for part in parts]


def plain_losses(
    scores: dict[str, torch.Tensor], ignored: torch.Tensor, t: float, hybrid: Sequence[float]
) -> dict[str, float]:
    names = ("dense", "sparse", "colbert")
    scores = scores | {
        "hybrid": sum((w * scores[n] for w, n in zip(hybrid, names, strict=True)), torch.zeros(()))
    }
    found = {name: 0.0 for name in (*scores, *(f"distill_{n}" for n in names))}
    n = len(ignored)
    for i in range(n):
        kept = [j for j, no in enumerate(ignored[i].tolist()) if not no]
        chances = {k: softmax([float(s[i, j]) / t for j in kept]) for k, s in scores.items()}
        for name in scores:
            found[name] -= math.log(chances[name][kept.index(i)]) / n
        for name in names:
            for teacher, student in zip(chances["hybrid"], chances[name], strict=True):
                found[f"distill_{name}"] -= teacher * math.log(student) / n
    return found


LENGTHS = [
    ([5, 3, 7], [4, 9, 2, 6, 2]),  # an empty passage has its end token alone
    ([2, 2], [2, 3]),
    ([4], [5, 1000]),
    ([8, 1, 3, 6], [11, 6, 4, 5, 8, 3]),  # a query of one token has no vectors
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("nq", "np_"), LENGTHS)
def test_scores_equal_the_references(nq: list[int], np_: list[int], seed: int) -> None:
    q = random_side(nq, seed, kind=torch.float64)
    p = random_side(np_, seed + 100, kind=torch.float64)
    wanted = all_scores(q, p)
    assert wanted["sparse"].abs().sum() > 0 or min(nq) <= 2
    torch.testing.assert_close(lexical_scores(q, p, DROPPED), wanted["sparse"])
    torch.testing.assert_close(
        multi_vector_scores(q, p), wanted["colbert"], atol=1e-6, rtol=1e-6  # maxsim_ref is fp32
    )  # fmt: skip


def test_scores_in_parts_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passages go by in parts where all their products are too many; values and gradients stay."""
    found = []
    for products in (1 << 26, 1, 150):
        monkeypatch.setattr(losses, "PRODUCTS", products)
        q, p = (random_side(n, 5, kind=torch.float64) for n in LENGTHS[3])
        leaves = [q.vectors.requires_grad_(), p.vectors.requires_grad_()]
        scores = multi_vector_scores(q, p)
        random = torch.Generator().manual_seed(0)
        (scores * torch.randn(scores.shape, generator=random, dtype=scores.dtype)).sum().backward()
        found.append([scores.detach(), *(leaf.grad for leaf in leaves)])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_scores_in_bfloat16_are_near() -> None:
    q, p = (random_side(n, 5, kind=torch.float32) for n in LENGTHS[3])
    near, exact = multi_vector_scores(q, p, bf16=True), multi_vector_scores(q, p)
    assert near.dtype == torch.float32 and not torch.equal(near, exact)
    torch.testing.assert_close(near, exact, rtol=0, atol=4e-3)


def test_queries_of_no_words_score_nothing() -> None:
    q = random_side([4, 3], 0, vocab=4, kind=torch.float32)
    p = random_side([4, 3, 6], 1, kind=torch.float32)
    assert torch.equal(lexical_scores(q, p, DROPPED), torch.zeros(2, 3))
    assert torch.equal(lexical_scores(p, q, DROPPED), torch.zeros(3, 2))


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("seed", range(2))
def test_gradients_of_the_scores(name: str, seed: int) -> None:
    q = random_side([4, 3], seed, kind=torch.float64)
    p = random_side([5, 2, 6], seed + 10, kind=torch.float64)
    attribute = "token_weights" if name == "sparse" else "vectors"
    # Away from relu's corner, where the gradient of a weight that is 0 is one-sided.
    left, right = ((getattr(s, attribute) + 0.3).detach() for s in (q, p))

    def score(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        sides = [
            Side(**{n: getattr(s, n) for n in Side.__slots__} | {attribute: x})
            for s, x in ((q, a), (p, b))
        ]
        return SCORES[name](sides[0], sides[1])

    assert score(left, right).abs().sum() > 0
    assert torch.autograd.gradcheck(score, (left.requires_grad_(), right.requires_grad_()))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [0.02, 0.5])
@pytest.mark.parametrize("hybrid", [(1.0, 0.3, 1.0), (0.15, 0.5, 0.35)])
def test_contrastive_losses(seed: int, temperature: float, hybrid: tuple[float, ...]) -> None:
    nq, np_ = [5, 3, 7, 2], [4, 9, 2, 6, 3, 5]
    q = random_side(nq, seed, kind=torch.float64)
    p = random_side(np_, seed + 50, kind=torch.float64)
    random = torch.Generator().manual_seed(seed)
    ignored = torch.rand(4, 6, generator=random) < 0.3
    ignored[:, :4].fill_diagonal_(False)
    found = contrastive_losses(q, p, torch.arange(4), ignored, DROPPED, temperature, hybrid)
    scores = all_scores(q, p)
    scores["colbert"] = multi_vector_scores(q, p)  # in float64; compared with the reference above
    wanted = plain_losses(scores, ignored, temperature, hybrid)
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-9, abs=1e-9), name


def test_the_hybrid_teaches_and_is_not_taught() -> None:
    """The teacher is a constant: -sum of t·log softmax(s/τ) has (softmax - t)/(nτ)."""
    q, p = (random_side(n, 3, kind=torch.float64) for n in ([5, 3], [4, 6, 3]))
    q.dense.requires_grad_()
    none, t = torch.zeros(2, 3, dtype=torch.bool), 0.1
    found = contrastive_losses(q, p, torch.arange(2), none, DROPPED, t, (1, 0.3, 1))
    scores = all_scores(q, p)
    inter = scores["dense"] + 0.3 * scores["sparse"] + scores["colbert"]
    gap = (scores["dense"] / t).softmax(1) - (inter / t).softmax(1)
    (grad,) = torch.autograd.grad(found["distill_dense"], q.dense, retain_graph=True)
    torch.testing.assert_close(grad, gap @ p.dense / t / 2, rtol=1e-5, atol=1e-6)
    for name in ("distill_sparse", "distill_colbert"):
        assert not found[name].requires_grad


@pytest.mark.parametrize("n_queries", [0, 3])
@pytest.mark.parametrize("d", [6, 4])
def test_teacher_losses(n_queries: int, d: int) -> None:
    random = torch.Generator().manual_seed(n_queries + d)
    dense = torch.nn.functional.normalize(
        torch.randn(8, 6, generator=random, dtype=torch.float64), dim=1
    )
    teacher = 5 * torch.randn(8, d, generator=random, dtype=torch.float64)
    t = 0.05

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(a @ b / a.norm() / b.norm())

    wanted, lines = 0.0, n_queries or 8
    for i in range(lines):
        others = range(3, 8) if n_queries else [j for j in range(8) if j != i]
        theirs = softmax([cosine(teacher[i], teacher[j]) / t for j in others])
        ours = softmax([cosine(dense[i], dense[j]) / t for j in others])
        wanted += sum(a * math.log(a / b) for a, b in zip(theirs, ours, strict=True)) / lines
    found = teacher_losses(dense, teacher, n_queries, t)
    assert list(found) == ["teacher_cosine", "teacher_kl"]
    assert float(found["teacher_kl"]) == pytest.approx(wanted, rel=1e-9)
    mean = sum(1 - cosine(a, b) for a, b in zip(dense, teacher, strict=True)) / 8 if d == 6 else 0
    assert float(found["teacher_cosine"]) == pytest.approx(mean, rel=1e-9)


def test_one_text_alone_has_nothing_to_compare() -> None:
    found = teacher_losses(torch.ones(1, 4) / 2, torch.ones(1, 4), 0, 0.05)
    assert float(found["teacher_kl"]) == 0
    assert float(found["teacher_cosine"]) == pytest.approx(0, abs=1e-6)
