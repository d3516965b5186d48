"""/v1/rerank and /v2/rerank against scoring."""


import checkpoints
import numpy as np
import pytest
import servers

from m3fast import scoring

DOCUMENTS = ["BGE M3 is an embedding model.", "BM25 ranks by terms.", "x", "BGE M3 is a model"]
QUERY = "What is BGE M3?"


def scores(weights=None, mode="hybrid") -> np.ndarray:
    found = servers.small().encode([QUERY, *DOCUMENTS])
    parts = scoring.all_scores(found[0], found[1:])
    if mode == "hybrid":
        return scoring.hybrid_scores(parts, weights or "miracl")[0]
    return parts[mode][0]


def check(answer, wanted):
    order = np.argsort(-wanted, kind="stable").tolist()
    assert [each["index"] for each in answer["results"]] == order
    got = np.float32([each["relevance_score"] for each in answer["results"]])
    servers.near(got, wanted[order])


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize("mode", [None, "hybrid", "colbert", "dense", "sparse"])
def test_scores(server, path, mode):
    body = {"query": QUERY, "documents": DOCUMENTS, "mode": mode}
    check(server.post(path, body).json(), scores(mode=mode or "hybrid"))


@pytest.mark.parametrize(
    "weights", ["mldr", "mldr-dense-sparse", [1, 0.3, 1], [0, 0, 2.5], [0.2, 0.8, 0]]
)
def test_weights(server, weights):
    body = {"query": QUERY, "documents": DOCUMENTS, "weights": weights}
    check(server.post("/v1/rerank", body).json(), scores(weights))


def test_a_head_without_weight_is_not_computed(server):
    calls = []
    engine = server.service.engine
    submit = engine.submit

    async def spy(texts, **options):
        calls.append(options)
        return await submit(texts, **options)

    engine.submit = spy
    try:
        for more in ({"weights": [1, 1, 0]}, {"mode": "sparse"}):
            server.post("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS, **more})
    finally:
        del engine.submit
    asked = [[call[name] for name in ("dense", "sparse", "colbert")] for call in calls]
    assert asked == [[True, True, False], [False, True, False]]


def test_shape(server):
    body = {
        "model": "m3fast-tiny",
        "query": QUERY,
        "documents": [DOCUMENTS[0], {"text": DOCUMENTS[1], "title": "more"}, *DOCUMENTS[2:]],
        "top_n": 2,
        "return_documents": True,
        "max_tokens_per_doc": 100,
    }
    answer = server.post("/v2/rerank", body).json()
    assert set(answer) == {"id", "model", "usage", "meta", "results"}
    assert answer["meta"]["api_version"] == {"version": "2"}
    tokens = int(servers.small().encode([QUERY, *DOCUMENTS]).n_tokens.sum())
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert len(answer["results"]) == 2
    for each in answer["results"]:
        assert each["document"] == {"text": DOCUMENTS[each["index"]]}
    many = server.post("/v1/rerank", {**body, "top_n": 99}).json()
    assert len(many["results"]) == len(DOCUMENTS)


@pytest.mark.parametrize(
    "more",
    [
        {"documents": []},
        {"documents": ["a"] * 2049},
        {"documents": [{"title": "no text"}]},
        {"documents": "text"},
        {"top_n": -1},
        {"mode": "best"},
        {"weights": [0, 0, 0]},
        {"weights": [1, 1]},
        {"weights": [-1, 1, 1]},
        {"weights": "secret-name"},
        {"weights": [1e-300, 0, 0]},
        {"weights": [1, 1, 1], "mode": "dense"},
        {"query": None},
        {"documents": ["word " * 9000]},
        {"query": "word " * 9000},
    ],
)
def test_refused(server, more):
    response = server.post("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS, **more})
    assert response.status_code == 400
    answer = response.json()
    assert answer["message"] == answer["error"]["message"]
    assert answer["id"] == response.headers["x-request-id"]
    assert "secret" not in response.text and "no text" not in response.text
    assert server.last_record(answer["id"]).error in ("validation", "malformed", "empty")


def test_places_in_errors(short):
    long = "word " * 9000
    for body, place in (
        ({"query": long, "documents": ["a"]}, "query"),
        ({"query": "a", "documents": ["b", long]}, "documents[1]"),
    ):
        message = short.post("/v1/rerank", body).json()["message"]
        assert message == f"{place}: expected at most {servers.SHORT} tokens, found more"
    body = {"query": "a", "documents": ["b", long], "truncate_prompt_tokens": -1}
    answer = short.post("/v1/rerank", body)
    tokens = int(servers.short().encode(["a", "b", long]).n_tokens.sum())
    assert answer.status_code == 200 and answer.json()["usage"]["total_tokens"] == tokens


def test_scores_that_cost_too_much(server, monkeypatch):
    monkeypatch.setattr("m3fast.server.routes.ranking.MOST_PRODUCTS", 10_000)
    response = server.post("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS})
    assert response.status_code == 400 and "10000 products" in response.json()["message"]


def test_a_model_without_heads(tmp_path):
    path = checkpoints.make_checkpoint(tmp_path, m3_heads=False)
    with servers.running(servers.Engine.from_pretrained(path, dtype="float32")) as server:
        body = {"query": QUERY, "documents": DOCUMENTS}
        for mode in (None, "dense"):
            assert server.post("/v1/rerank", {**body, "mode": mode}).status_code == 200
        for more in ({"mode": "hybrid"}, {"mode": "sparse"}, {"weights": "mldr"}):
            response = server.post("/v1/rerank", {**body, **more})
            assert response.status_code == 400
            assert "mode: expected a model with" in response.json()["message"]
