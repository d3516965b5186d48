"""OpenAI's routes against Engine.encode."""

import base64
from collections.abc import Iterator

import checkpoints
import numpy as np
import pytest
import servers
from safetensors.numpy import load

LONG = "word " * 9000


@pytest.fixture(scope="module")
def server() -> Iterator[servers.ThreadServer]:
    with servers.running(served_names=("m3fast-tiny", "org/other")) as running:
        yield running


def dense(texts, **more) -> np.ndarray:
    return servers.small().encode(texts, dense=True, sparse=False, colbert=False, **more).dense


def decoded(answer) -> np.ndarray:
    assert [each["index"] for each in answer["data"]] == list(range(len(answer["data"])))
    rows = [each["embedding"] for each in answer["data"]]
    if isinstance(rows[0], str):
        return np.stack([np.frombuffer(base64.b64decode(row), "<f4") for row in rows])
    return np.array(rows, np.float32)


@pytest.mark.parametrize("form", ["float", "base64"])
def test_values_are_those_of_the_engine(server, form):
    body = {"input": checkpoints.TEXTS, "encoding_format": form, "model": "m3fast-tiny"}
    answer = server.post("/v1/embeddings", body).json()
    servers.near(decoded(answer), dense(checkpoints.TEXTS))
    tokens = int(servers.small().encode(checkpoints.TEXTS).n_tokens.sum())
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert answer["object"] == "list" and answer["model"] == "m3fast-tiny"
    assert all(each["object"] == "embedding" for each in answer["data"])


def test_no_form_changes_a_value(server):
    """The same batch each time, so equal to the bit on any machine."""
    texts = checkpoints.TEXTS
    encoded = {"input": texts, "encoding_format": "base64"}
    first, *others = (
        decoded(server.post("/v1/embeddings", {"input": texts}).json()),
        decoded(server.post("/v1/embeddings", encoded).json()),
        np.float32(server.post("/embed", {"inputs": texts}).json()),
        np.float32(server.post("/encode", {"texts": texts}).json()["dense"]),
        load(server.post("/encode", {"texts": texts, "format": "safetensors"}).content)["dense"],
    )
    for each in others:
        np.testing.assert_array_equal(each, first)


@pytest.mark.parametrize("form", ["float", "base64"])
def test_large_responses_are_the_same(form):
    texts = [f"text {i}" for i in range(4800)]
    with servers.running(max_list=4800) as server:
        response = server.post("/v1/embeddings", {"input": texts, "encoding_format": form})
        assert response.headers["transfer-encoding"] == "chunked"
        servers.near(decoded(response.json()), dense(texts))
        record = server.last_record(response.headers["x-request-id"])
        assert record.bytes_out == len(response.content)


def test_one_text_and_token_ids(server):
    ids = servers.small().tokenizer.encode(["What is BGE M3?"], 64).ids.tolist()
    wanted = dense("What is BGE M3?")
    for given in ("What is BGE M3?", ids, [ids]):
        servers.near(decoded(server.post("/v1/embeddings", {"input": given}).json()), wanted)


def test_dimensions(server):
    wanted = dense(["a", "b"], truncate_dim=16)
    answer = server.post("/v1/embeddings", {"input": ["a", "b"], "dimensions": 16}).json()
    servers.near(decoded(answer), wanted)
    for bad in (checkpoints.SMALL_WIDTH + 1, 0, -1, 2**40, 1.5, "16", True):
        response = server.post("/v1/embeddings", {"input": "a", "dimensions": bad})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "dimensions"


def test_a_long_text_is_refused_or_cut_as_asked(short):
    response = short.post("/v1/embeddings", {"input": ["short", LONG]})
    assert response.status_code == 400
    error = response.json()["error"]
    limit = servers.SHORT
    assert error["message"] == f"input[1]: expected at most {limit} tokens, found more"
    assert error["param"] == "input" and error["type"] == "invalid_request_error"
    for cut, length in ((-1, limit), (20, 20), (3, 3)):
        body = {"input": LONG, "truncate_prompt_tokens": cut}
        answer = short.post("/v1/embeddings", body).json()
        assert answer["usage"]["prompt_tokens"] == length
        servers.near(decoded(answer), dense(LONG, max_length=length))
    for bad in (0, 2, -2):
        body = {"input": "a", "truncate_prompt_tokens": bad}
        assert short.post("/v1/embeddings", body).status_code == 400


def test_auto_truncate_and_the_servers_own_limit():
    engine = servers.load(max_length=16)
    with servers.running(engine, auto_truncate=True) as server:
        answer = server.post("/v1/embeddings", {"input": LONG}).json()
        assert answer["usage"]["prompt_tokens"] == 16
        # No request gets more than the server allows.
        body = {"input": LONG, "truncate_prompt_tokens": 100}
        error = server.post("/v1/embeddings", body).json()["error"]
        assert error["message"] == "truncate_prompt_tokens: expected -1 or 3 to 16, found 100"
        body = {"texts": LONG, "max_length": 2**31 - 1}
        assert server.post("/encode", body).json()["n_tokens"] == [16]


def test_models(server):
    listed = server.get("/v1/models").json()
    assert [each["id"] for each in listed["data"]] == ["m3fast-tiny", "org/other"]
    one = server.get("/v1/models/org/other").json()
    assert one["id"] == "org/other" and one["object"] == "model"
    answer = server.post("/v1/embeddings", {"input": "a", "model": "org/other"}).json()
    assert answer["model"] == "org/other"
    for response in (
        server.get("/v1/models/unknown"),
        server.post("/v1/embeddings", {"input": "a", "model": "unknown"}),
    ):
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"
        assert "unknown" not in response.text


def test_extras_of_clients_are_ignored(server):
    body = {"input": "a", "user": "me", "priority": 3, "extra": {"x": [1]}}
    assert server.post("/v1/embeddings", body).status_code == 200


def test_lists_have_a_limit(server):
    most = server.service.settings.max_list
    assert server.post("/v1/embeddings", {"input": ["a"] * most}).status_code == 200
    response = server.post("/v1/embeddings", {"input": ["a"] * (most + 1)})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == f"input: expected at most {most}, found 2049"
    response = server.post("/v1/embeddings", {"input": []})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "input: expected at least one text, found none"
