"""TEI's routes against Engine.encode and scoring."""

from collections.abc import Iterator

import checkpoints
import numpy as np
import pytest
import servers

from m3fast import scoring

DOCUMENTS = ["BGE M3 is an embedding model.", "BM25 ranks by terms.", "x", "BGE M3 is a model"]
QUERY = "What is BGE M3?"


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Iterator[servers.ThreadServer]:
    """A model with the dense output alone."""
    path = checkpoints.make_checkpoint(tmp_path_factory.mktemp("dense"), m3_heads=False)
    engine = servers.Engine.from_pretrained(path, dtype="float32")
    with servers.running(engine) as running:
        yield running


def encoded(texts):
    return servers.small().encode(texts)


@pytest.mark.parametrize("path", ["/embed", "/"])
def test_embed(server, path):
    answer = server.post(path, {"inputs": checkpoints.TEXTS})
    servers.near(answer.json(), encoded(checkpoints.TEXTS).dense)
    one = server.post(path, {"inputs": "a"}).json()
    servers.near(one, encoded("a").dense)


def test_embed_options(server):
    engine = servers.small()
    raw = engine.encode("a", dense=True, sparse=False, colbert=False, normalize=False).dense
    got = server.post("/embed", {"inputs": "a", "normalize": False}).json()
    servers.near(got, raw)
    assert abs(np.linalg.norm(raw) - 1) > 0.01
    cut = engine.encode("a", dense=True, sparse=False, colbert=False, truncate_dim=8).dense
    got = server.post("/embed", {"inputs": "a", "dimensions": 8}).json()
    servers.near(got, cut)


def test_a_long_text_is_refused_or_cut_as_asked(short):
    long = {"inputs": ["a", "word " * 9000]}
    refused = short.post("/embed", long)
    assert refused.status_code == 413
    assert refused.json() == {
        "error": f"inputs[1]: expected at most {servers.SHORT} tokens, found more",
        "error_type": "Validation",
    }
    for direction in ("right", "Right"):
        body = {**long, "truncate": True, "truncation_direction": direction}
        cut = short.post("/embed", body)
        assert int(cut.headers["x-compute-tokens"]) == encoded("a").n_tokens[0] + servers.SHORT
        found = np.array(cut.json(), np.float32)
        wanted = servers.short().encode(long["inputs"]).dense
        servers.near(found, wanted)
    refused = short.post("/embed", {**long, "truncation_direction": "Left"})
    assert refused.status_code == 422 and "'right'" in refused.json()["error"]


def test_embed_sparse(server):
    answer = server.post("/embed_sparse", {"inputs": checkpoints.TEXTS}).json()
    wanted = encoded(checkpoints.TEXTS).sparse.to_indices()
    assert [[each["index"] for each in row] for row in answer] == [
        [each["index"] for each in row] for row in wanted
    ]
    for row, other in zip(answer, wanted, strict=True):
        values = np.array([each["value"] for each in row], np.float32)
        servers.near(values, [each["value"] for each in other])


def test_embed_all(server):
    answer = server.post("/embed_all", {"inputs": checkpoints.TEXTS}).json()
    wanted = encoded(checkpoints.TEXTS).colbert
    assert len(answer) == len(wanted)
    for got, vectors in zip(answer, wanted, strict=True):
        servers.near(np.reshape(got, vectors.shape), vectors)


def test_embed_all_in_pieces(server):
    texts = ["word " * 700, "a", "other " * 300]
    response = server.post("/embed_all", {"inputs": texts})
    assert response.headers["transfer-encoding"] == "chunked"
    for got, vectors in zip(response.json(), encoded(texts).colbert, strict=True):
        servers.near(got, vectors)


def test_rerank(server):
    found = encoded([QUERY, *DOCUMENTS])
    wanted = scoring.hybrid_scores(scoring.all_scores(found[0], found[1:]), "miracl")[0]
    answer = server.post("/rerank", {"query": QUERY, "texts": DOCUMENTS}).json()
    order = np.argsort(-wanted, kind="stable").tolist()
    assert [each["index"] for each in answer] == order
    got = np.float32([each["score"] for each in answer])
    servers.near(got, wanted[order])
    assert "text" not in answer[0]
    body = {"query": QUERY, "texts": DOCUMENTS, "raw_scores": True, "return_text": True}
    raw = server.post("/rerank", body).json()
    assert [(e["index"], e["score"]) for e in raw] == [(e["index"], e["score"]) for e in answer]
    assert [each["text"] for each in raw] == [DOCUMENTS[i] for i in order]


def test_equal_scores_keep_their_order(server):
    answer = server.post("/rerank", {"query": QUERY, "texts": ["same"] * 40}).json()
    # The last rows of a batch may differ from the others in the last bit.
    assert len({each["score"] for each in answer}) < 20
    assert answer == sorted(answer, key=lambda each: (-each["score"], each["index"]))


def test_similarity(server):
    answer = server.post(
        "/similarity", {"inputs": {"source_sentence": QUERY, "sentences": DOCUMENTS}}
    ).json()
    found = encoded([QUERY, *DOCUMENTS])
    wanted = scoring.dense_scores(found.dense[:1], found.dense[1:])[0]
    servers.near(answer, wanted)


def test_tokenize(server):
    texts = [*checkpoints.TEXTS, "word " * 500]
    answer = server.post("/tokenize", {"inputs": texts}).json()
    tokenizer = servers.small().tokenizer
    for text, tokens in zip(texts, answer, strict=True):
        assert [t["id"] for t in tokens] == tokenizer.encode([text], 8192).ids.tolist()
        assert [t["special"] for t in tokens] == [True] + [False] * (len(tokens) - 2) + [True]
        for token in tokens[1:-1]:
            assert token["text"] == text[token["start"] : token["stop"]]
        assert tokens[0]["start"] is None and tokens[0]["stop"] is None
        assert tokens[0]["text"] == "<s>"
    bare = server.post("/tokenize", {"inputs": "What is", "add_special_tokens": False}).json()[0]
    assert [t["text"] for t in bare] == ["What", "is"]
    assert server.post("/tokenize", {"inputs": "a " * (1 << 18)}).status_code == 413


def test_info(server):
    info = server.get("/info").json()
    assert info["model_id"] == "m3fast-tiny" and info["model_dtype"] == "float32"
    assert info["max_input_length"] == 8192 and info["max_client_batch_size"] == 2048


def test_a_server_in_int8():
    engine = servers.Engine.from_pretrained("m3fast-tiny", device="cpu", dtype="int8")
    with servers.running(engine) as server:
        assert server.get("/info").json()["model_dtype"] == "int8"
        found = server.post("/embed", {"inputs": "a text"}).json()
    wanted = engine.encode("a text", sparse=False, colbert=False).dense
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_timing_headers(server):
    response = server.post("/embed", {"inputs": ["abc", "de"]})
    headers = response.headers
    names = ("total", "tokenization", "queue", "inference")
    assert all(int(headers[f"x-{name}-time"]) >= 0 for name in names)
    assert headers["x-compute-characters"] == "5" and headers["x-compute-type"] == "cpu"
    assert int(headers["x-compute-tokens"]) == encoded(["abc", "de"]).n_tokens.sum()
    assert "compute;dur=" in headers["server-timing"]


def test_empty_and_too_many(server):
    for path, body in (
        ("/embed", {"inputs": []}),
        ("/embed_sparse", {"inputs": []}),
        ("/rerank", {"query": "a", "texts": []}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}),
        ("/tokenize", {"inputs": []}),
    ):
        response = server.post(path, body)
        assert response.status_code == 400, path
        assert response.json()["error_type"] == "Empty"
    many = ["a"] * 2049
    for path, body in (
        ("/embed", {"inputs": many}),
        ("/rerank", {"query": "a", "texts": many}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": many}}),
        ("/tokenize", {"inputs": many}),
    ):
        response = server.post(path, body)
        assert response.status_code == 413, path
        assert response.json()["error_type"] == "Validation" and "2048" in response.text


def test_a_model_without_heads(plain):
    for path in ("/embed_sparse", "/embed_all"):
        response = plain.post(path, {"inputs": "a"})
        assert response.status_code == 413 and response.json()["error_type"] == "Validation"
        assert str(plain.service.engine.engine.path) not in response.text
    engine = plain.service.engine.engine
    found = engine.encode([QUERY, *DOCUMENTS])
    wanted = scoring.dense_scores(found.dense[:1], found.dense[1:])[0]
    answer = plain.post("/rerank", {"query": QUERY, "texts": DOCUMENTS}).json()
    got = np.float32([each["score"] for each in sorted(answer, key=lambda e: e["index"])])
    servers.near(got, wanted)
