"""/encode and /score against Engine.encode, scoring and the drop-in's compute_score."""


import checkpoints
import numpy as np
import pytest
import servers
import torch
from safetensors.numpy import load

from m3fast import scoring
from m3fast.kernels.maxsim import quantize_vectors
from m3fast.scoring import combine

TEXTS = checkpoints.TEXTS


def encoded(texts, **more):
    return servers.small().encode(texts, **more)


@pytest.mark.parametrize("asked", range(1, 8))
def test_any_subset_as_json(server, asked):
    chosen = {name: bool(asked >> i & 1) for i, name in enumerate(("dense", "sparse", "colbert"))}
    answer = server.post("/encode", {"texts": TEXTS, **chosen}).json()
    wanted = encoded(TEXTS)
    for name, there in chosen.items():
        assert (answer[name] is not None) == there
    if chosen["dense"]:
        servers.near(answer["dense"], wanted.dense)
    if chosen["sparse"]:
        for got, row in zip(answer["sparse"], wanted.sparse.to_dicts(), strict=True):
            assert got["indices"] == list(row)
            servers.near(got["values"], [*row.values()])
    if chosen["colbert"]:
        for got, vectors in zip(answer["colbert"], wanted.colbert, strict=True):
            servers.near(np.reshape(got, vectors.shape), vectors)
    assert answer["n_tokens"] == wanted.n_tokens.tolist()
    assert answer["truncated"] == [False] * len(TEXTS)
    assert answer["usage"]["total_tokens"] == wanted.n_tokens.sum()


@pytest.mark.parametrize("texts", [TEXTS, ["word " * 1500] * 2, []], ids=("few", "much", "none"))
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_safetensors(server, texts, dtype):
    body = {"texts": texts, "sparse": True, "colbert": True, "format": "safetensors"}
    response = server.post("/encode", {**body, "vector_dtype": dtype})
    assert int(response.headers["content-length"]) == len(response.content)
    found, wanted = load(response.content), encoded(texts)
    servers.near(found["dense"], wanted.dense)
    np.testing.assert_array_equal(found["n_tokens"], wanted.n_tokens)
    np.testing.assert_array_equal(found["truncated"], wanted.truncated)
    for name in ("indptr", "indices"):
        np.testing.assert_array_equal(found[f"sparse_{name}"], getattr(wanted.sparse, name))
    servers.near(found["sparse_values"], wanted.sparse.values)
    np.testing.assert_array_equal(found["colbert_offsets"], wanted.colbert.offsets)
    vectors = wanted.colbert.values
    if dtype == "int8":
        codes, scales = quantize_vectors(torch.from_numpy(vectors))
        assert found["colbert_values"].dtype == dtype
        # A value within rounding of the middle of two codes may get either.
        np.testing.assert_allclose(found["colbert_values"], codes.numpy(), rtol=0, atol=1)
        servers.near(found["colbert_scales"], scales.numpy())
    else:
        assert found["colbert_values"].dtype == dtype
        half = 2.0**-11 if dtype == "float16" else 0.0
        np.testing.assert_allclose(found["colbert_values"], vectors, rtol=half + 1e-5, atol=5e-6)


def test_options(server):
    body = {"texts": ["a", "word " * 50], "colbert": True, "dimensions": 8, "normalize": False}
    answer = server.post("/encode", {**body, "max_length": 10, "truncate": True}).json()
    wanted = encoded(body["texts"], truncate_dim=8, normalize=False, max_length=10)
    servers.near(answer["dense"], wanted.dense)
    for got, vectors in zip(answer["colbert"], wanted.colbert, strict=True):
        servers.near(got, vectors)
    assert answer["truncated"] == [False, True]
    assert answer["n_tokens"] == wanted.n_tokens.tolist()
    assert server.post("/encode", {**body, "max_length": 10}).status_code == 400


@pytest.mark.parametrize(
    "more",
    [
        {"texts": None},
        {"dense": False},
        {"densee": True},
        {"max_length": 2},
        {"dimensions": checkpoints.SMALL_WIDTH + 1},
        {"priority": "first"},
        {"timeout": 0},
        {"timeout": 1e9},
        {"timeout": -1},
        {"format": "pickle"},
        {"format": "json", "vector_dtype": "int8"},
        {"texts": [[]]},
        {"texts": [[checkpoints.TINY_VOCAB]]},
        {"texts": [[2**31]]},
        {"texts": [1, "a"]},
        {"texts": [[1, 2.5]]},
        {"texts": ["a", None]},
        {"texts": {"a": "b"}},
    ],
)
def test_refused(server, more):
    response = server.post("/encode", {"texts": "a", **more})
    assert response.status_code == 400, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert "densee" not in response.text


def test_priority_and_timeout_reach_the_engine(server):
    calls = []
    submit = server.service.engine.submit

    async def spy(texts, **options):
        calls.append(options)
        return await submit(texts, **options)

    server.service.engine.submit = spy
    try:
        server.post("/encode", {"texts": "a", "priority": "bulk", "timeout": 5})
    finally:
        del server.service.engine.submit
    assert calls[0]["lane"] == "bulk" and calls[0]["timeout"] == 5


def test_too_large_an_output():
    with servers.running(max_output=50_000) as server:
        body = {"texts": ["word " * 300], "colbert": True}
        response = server.post("/encode", body)
        assert response.status_code == 400
        assert "at most 50000 bytes" in response.json()["error"]["message"]
        assert server.post("/encode", {**body, "colbert": False}).status_code == 200


def wanted_scores(texts, pairs, weights=(1.0, 1.0, 1.0)):
    found = encoded(texts)
    return combine(scoring.all_scores(found, found, pairs), list(weights))


def check(answer, wanted, shape):
    for mode, values in wanted.items():
        servers.near(answer[mode], values.reshape(shape))


def test_score_pairs_encodes_each_text_once(server):
    pairs = [["a", "b c"], ["a", "word word"], ["b c", "a"], ["a", "a"]]
    response = server.post("/score", {"pairs": pairs, "weights": [0.4, 0.2, 0.4]})
    texts = ["a", "b c", "word word"]
    rows = [(texts.index(q), texts.index(p)) for q, p in pairs]
    check(response.json(), wanted_scores(texts, rows, (0.4, 0.2, 0.4)), (4,))
    assert server.last_record(response.headers["x-request-id"]).texts == 3
    assert response.json()["usage"]["total_tokens"] == encoded(texts).n_tokens.sum()


def test_score_one_or_several_queries(server):
    passages = ["BGE M3 is an embedding model.", "BM25 ranks by terms.", "x"]
    texts = ["What?", "x", *passages[:2]]
    rows = [(q, p) for q in (0, 1) for p in (2, 3, 1)]
    wanted = wanted_scores(texts, rows)
    answer = server.post("/score", {"queries": ["What?", "x"], "passages": passages}).json()
    check(answer, wanted, (2, 3))
    answer = server.post("/score", {"query": "What?", "passages": passages}).json()
    check(answer, {mode: values[:3] for mode, values in wanted.items()}, (3,))
    empty = server.post("/score", {"queries": ["a", "b"], "passages": []}).json()
    assert empty["dense"] == [[], []] and empty["colbert"] == [[], []]


def test_score_is_the_drop_ins(server):
    from m3fast import BGEM3FlagModel

    model = BGEM3FlagModel(str(checkpoints.small_folder()), use_fp16=False, devices="cpu")
    pairs = [("What is BGE M3?", "BGE M3 is an embedding model."), ("x", "y z")]
    wanted = model.compute_score(pairs, weights_for_different_modes=[0.4, 0.2, 0.4])
    body = {"pairs": [list(p) for p in pairs], "weights": [0.4, 0.2, 0.4]}
    answer = server.post("/score", body).json()
    for mode, values in wanted.items():
        np.testing.assert_allclose(answer[mode], values, atol=1e-5, err_msg=mode)


def test_a_mean_without_weights_is_null(server):
    answer = server.post("/score", {"pairs": [["a", "b"]], "weights": [0, 0, 1]}).json()
    assert answer["sparse+dense"] == [None]
    assert answer["colbert+sparse+dense"] == answer["colbert"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"pairs": [["a", "b"]], "query": "a"},
        {"query": "a"},
        {"queries": ["a"]},
        {"query": "a", "queries": ["b"], "passages": ["c"]},
        {"pairs": [["a"]]},
        {"pairs": [["a", "b", "c"]]},
        {"pairs": [["a", 1]]},
        {"pairs": [["a", "b"]] * 2049},
        {"query": "a", "passages": ["b"] * 2049},
        {"queries": ["a"] * 40, "passages": ["b"] * 2048},
        {"query": "a", "passages": ["b"], "weights": [1e9, 1, 1]},
        {"query": "a", "passages": ["b", "word " * 9000]},
    ],
)
def test_score_refuses(server, body):
    response = server.post("/score", body)
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message.startswith(("body:", "pairs", "passages", "queries", "weights"))


def test_dense_only(tmp_path):
    path = checkpoints.make_checkpoint(tmp_path, m3_heads=False)
    with servers.running(servers.Engine.from_pretrained(path, dtype="float32")) as server:
        answer = server.post("/score", {"query": "a", "passages": ["b", "c"]}).json()
        assert set(answer) == {"dense", "model", "usage"}
        for name in ("sparse", "colbert"):
            response = server.post("/encode", {"texts": "a", name: True})
            assert response.status_code == 400 and response.json()["error"]["param"] == name
            assert str(tmp_path) not in response.text
