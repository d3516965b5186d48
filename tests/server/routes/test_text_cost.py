"""Texts count by their normalised characters, which may be many more than they were sent with."""

from __future__ import annotations

import pytest
import servers

MEGABYTE = 1 << 20
LIMIT = 1 << 19  # normalised characters that a text may cost, as docs/serving.md has it
# Of a word or several each, so many characters; and what no cut is proven in, some of it one token.
CHEAP = {"\ufdfa": 18, "\ufdfb": 8, "\u33c2": 4, "\u3316": 6}
DEAR = ("\u0301", " ", "\n", "\u200b", "\ufb03", "\U0001f600")


@pytest.fixture
def handed(monkeypatch):
    """Characters handed to the tokenizer, normalised or not, whichever are more."""
    counted = []

    class Counting:
        def __init__(self, backend) -> None:
            self.backend = backend

        def __getattr__(self, name):
            return getattr(self.backend, name)

        def encode_batch_fast(self, batch, **options):
            normal = self.backend.normalizer.normalize_str
            counted.append(sum(max(len(text), len(normal(text))) for text in batch))
            return self.backend.encode_batch_fast(batch, **options)

    own = servers.small().tokenizer
    monkeypatch.setattr(own, "_backend", Counting(own._backend))
    return counted


@pytest.mark.parametrize("character", [*CHEAP, *DEAR])
@pytest.mark.parametrize("mixed", ["{}", "plain words and {}"])
def test_a_large_text_is_cut_or_refused(server, handed, character, mixed) -> None:
    count = 3 * MEGABYTE // len(character.encode())
    # At the model's own limit the encoder takes seconds; what finding a cut costs is the same.
    body = {"input": mixed.format(character * count), "truncate_prompt_tokens": 512}
    answer = server.post("/v1/embeddings", body)
    assert sum(handed) <= 2 * LIMIT
    if answer.status_code != 200:
        assert answer.status_code == 413 and character not in CHEAP
        error = answer.json()["error"]
        assert error["param"] == "input" and error["message"].startswith("input[0]: expected")
        assert "normalised" in error["message"] and answer.json()["error"]["code"] == "too_large"


def test_many_texts_are_charged_together(server, handed) -> None:
    texts = ["\ufdfa" * 500] * 2048
    answer = server.post("/v1/embeddings", {"input": texts, "truncate_prompt_tokens": -1})
    assert answer.status_code in (400, 413, 429)
    assert sum(handed) <= 1.25 * 10 * MEGABYTE


def test_tokenize_counts_what_characters_become(server) -> None:
    answer = server.post("/tokenize", {"inputs": "\ufdfa" * 200_000})
    assert answer.status_code == 413 and "normalised" in answer.json()["error"]
    assert len(server.post("/tokenize", {"inputs": "\ufdfa" * 3}).json()[0]) > 5
    answer = server.post("/tokenize", {"inputs": "plain words " * 20_000})
    assert answer.status_code == 200


def test_a_rerank_s_own_limit_is_charged_too(server, handed) -> None:
    document = "\u0301" * MEGABYTE
    body = {"query": "q", "documents": ["fine", document], "max_tokens_per_doc": 32}
    answer = server.post("/v1/rerank", body)
    assert answer.status_code == 413 and sum(handed) <= 2 * LIMIT
    assert answer.json()["error"]["message"].startswith("documents[1]: expected")


def test_ordinary_texts_are_never_refused(server) -> None:
    for text in ("plain words and more. " * 300_000, "今天天气很好，我们去公园散步吧。" * 100_000):
        body = {"input": text, "truncate_prompt_tokens": 512}
        assert server.post("/v1/embeddings", body).status_code == 200
