"""What must not leave a server as a vector: values that are not finite, texts without their prompt.

The model is one of ours with an embedding of "the" that overflows on the way, prompts, and a module
behind the pooling.
"""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import servers
import torch
from checkpoints import make_checkpoint, overflowing

from m3fast import Engine

BAD = "here is the text"
PROMPTS = {"query": "Query: ", "document": ""}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path = overflowing(make_checkpoint(tmp_path_factory.mktemp("model"), seed=3), "the")
    listed = [{"type": f"sentence_transformers.{kind}", "path": place} for kind, place in
              (("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))]  # fmt: skip
    (path / "modules.json").write_text(json.dumps(listed))
    (path / "2_Dense").mkdir()
    config = {"in_features": 40, "out_features": 16}
    (path / "2_Dense" / "config.json").write_text(json.dumps(config))
    random = torch.Generator().manual_seed(1)
    state = {"linear.weight": torch.randn(16, 40, generator=random), "linear.bias": torch.zeros(16)}
    torch.save(state, path / "2_Dense" / "pytorch_model.bin")
    settings = {"prompts": PROMPTS, "default_prompt_name": "document"}
    (path / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return Engine.from_pretrained(path, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def server(engine):
    with servers.running(engine) as running:
        yield running


# Body, and what the client calls the text at fault.
REQUESTS = {
    "/v1/embeddings": ({"input": ["a", "b", BAD]}, "input[2]"),
    "/embed": ({"inputs": BAD}, "inputs[0]"),
    "/embed_sparse": ({"inputs": ["a", BAD]}, "inputs[1]"),
    "/embed_all": ({"inputs": ["a", BAD]}, "inputs[1]"),
    "/rerank": ({"query": "a", "texts": ["b", BAD]}, "texts[1]"),
    "/similarity": (
        {"inputs": {"source_sentence": BAD, "sentences": ["a"]}}, "inputs.source_sentence",
    ),
    "/v1/rerank": ({"query": BAD, "documents": ["a"]}, "query"),
    "/v2/rerank": ({"query": "a", "documents": ["b", {"text": BAD}]}, "documents[1]"),
    "/encode": ({"texts": ["a", BAD], "colbert": True, "sparse": True}, "texts[1]"),
    "/score": ({"pairs": [["a", "b"], ["a", BAD]]}, "pairs[1][1]"),
}  # fmt: skip
TEI = ("/embed", "/embed_sparse", "/embed_all", "/rerank", "/similarity")


@pytest.mark.parametrize("path", REQUESTS)
def test_what_is_not_finite_is_an_error_by_name(server, path) -> None:
    body, name = REQUESTS[path]
    answer = server.post(path, body)
    found = answer.json()
    if path in TEI:
        assert answer.status_code == 424 and found["error_type"] == "Backend"
        message = found["error"]
    else:
        error = found["error"]
        assert answer.status_code == 500 and error["code"] == "not_finite"
        assert error["param"] == name.partition("[")[0]
        message = error["message"]
    assert message.startswith(f"{name}: expected finite ") and "here" not in message
    assert server.get("/health").status_code == 200


def test_other_requests_of_the_batch_are_answered(server, engine) -> None:
    good = engine.encode(["a fine text"]).dense

    def ask(i: int):
        text = BAD if i % 3 == 0 else "a fine text"
        return server.post("/v1/embeddings", {"input": ["x", text]})

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(ask, range(60)))
    for i, answer in enumerate(answers):
        assert answer.status_code == (500 if i % 3 == 0 else 200)
        if i % 3:
            servers.near(answer.json()["data"][1]["embedding"], good[0])
    servers.eventually(lambda: server.service.engine.load.tokens == 0)


def test_width_is_that_of_the_last_module(server, engine) -> None:
    found = server.post("/v1/embeddings", {"input": "a", "dimensions": 16}).json()
    servers.near(found["data"][0]["embedding"], engine.encode("a").dense[0])
    answer = server.post("/v1/embeddings", {"input": "a", "dimensions": 17})
    assert "dimensions: expected at most 16" in answer.json()["error"]["message"]


TEXTS = ["a fine text", "another"]


@pytest.mark.parametrize(
    ("path", "body", "fields"),
    [
        ("/v1/embeddings", {"input": TEXTS}, ["prompt_name", "input_type", "task"]),
        ("/embed", {"inputs": TEXTS}, ["prompt_name"]),
        ("/encode", {"texts": TEXTS}, ["prompt_name"]),
    ],
)
def test_prompts_by_name(server, engine, path, body, fields) -> None:
    def vectors(**more) -> np.ndarray:
        found = server.post(path, {**body, **more}).json()
        if path == "/encode":
            return np.float32(found["dense"])
        return np.float32([d["embedding"] for d in found["data"]] if "data" in found else found)

    plain = engine.encode(TEXTS, prompt_name="").dense
    servers.near(vectors(), plain)  # the default one is empty
    asked = engine.encode([f"Query: {text}" for text in TEXTS], prompt_name="").dense
    for field in fields:
        servers.near(vectors(**{field: "query"}), asked)
        servers.near(vectors(**{field: "document"}), plain)
        servers.near(vectors(**{field: None}), plain)
        answer = server.post(path, {**body, field: "other"})
        assert answer.status_code == (413 if path == "/embed" else 400) and field in answer.text
    if len(fields) > 1:
        answer = server.post(path, {**body, "task": "query", "input_type": "document"})
        assert answer.status_code == 400


def test_prompts_elsewhere(server, engine) -> None:
    given = {"source_sentence": TEXTS[0], "sentences": [TEXTS[1]]}
    body = {"inputs": given, "parameters": {"prompt_name": "query"}}
    a, b = engine.encode(TEXTS, prompt_name="query").dense
    servers.near(server.post("/similarity", body).json(), [a @ b])
    tokens = server.post("/tokenize", {"inputs": "abc", "prompt_name": "query"}).json()[0]
    wanted = engine.tokenizer.encode(["Query: abc"], 512).ids.tolist()
    assert [token["id"] for token in tokens] == wanted
    document = server.get("/openapi.json").json()["components"]["schemas"]["EmbedRequest"]
    assert "['query', 'document']" in str(document["properties"]["prompt_name"])


def test_the_default_prompt_goes_before_a_document_that_is_cut(tmp_path) -> None:
    path = make_checkpoint(tmp_path, seed=3)
    settings = {"prompts": {"p": "Passage: "}, "default_prompt_name": "p"}
    (path / "config_sentence_transformers.json").write_text(json.dumps(settings))
    engine = Engine.from_pretrained(path, device="cpu", dtype="float32")
    texts = ["word " * 50, "short"]
    body = {"query": "q", "documents": texts, "mode": "dense"}
    with servers.running(engine) as server:
        found = server.post("/v1/rerank", {**body, "max_tokens_per_doc": 9}).json()["results"]
    query, documents = engine.encode("q").dense, engine.encode(texts, max_length=9).dense
    scores = {result["index"]: result["relevance_score"] for result in found}
    servers.near([scores[0], scores[1]], documents @ query[0])


def test_float16_is_refused_for_what_it_cannot_hold(tmp_path) -> None:
    from checkpoints import edit_weights

    path = make_checkpoint(tmp_path, seed=3)
    edit_weights(path, lambda s: s["encoder.layer.1.output.LayerNorm.bias"].fill_(1e6))
    engine = Engine.from_pretrained(path, device="cpu", dtype="float32")
    body = {"input": "a", "normalize": False, "encoding_format": "base64"}
    with servers.running(engine) as server:
        answer = server.post("/v1/embeddings", {**body, "embed_dtype": "float16"})
        assert answer.status_code == 400 and "embed_dtype: expected float32" in answer.text
        found = server.post("/v1/embeddings", body).json()["data"][0]["embedding"]
        values = np.frombuffer(base64.b64decode(found), "<f4")
        servers.near(values, engine.encode("a", normalize=False).dense[0])
        body = {"texts": "a", "normalize": False, "colbert": True, "format": "safetensors"}
        answer = server.post("/encode", {**body, "vector_dtype": "float16"})
        assert answer.status_code == 400 and "vector_dtype: expected float32" in answer.text
