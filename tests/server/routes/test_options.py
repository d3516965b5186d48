"""Options that change a result are honoured."""

import base64
from collections.abc import Iterator

import numpy as np
import pytest
import servers
from families import TEXTS

from m3fast import scoring

LONG = "word " * 200  # more tokens than the server takes
DOCUMENTS = ["BGE M3 is an embedding model.", "BM25 ranks by terms.", "x", LONG]
KEY = "a-key"


@pytest.fixture(scope="module")
def server() -> Iterator[servers.ThreadServer]:
    with servers.running(servers.short(), api_keys=(KEY,)) as running:
        running.client.headers["Authorization"] = f"Bearer {KEY}"
        yield running


def dense(texts=TEXTS, **more) -> np.ndarray:
    return servers.short().encode(texts, sparse=False, colbert=False, **more).dense


def as_floats(text: str, dtype: str = "float32", order: str = "little") -> np.ndarray:
    """What a client makes of base64."""
    raw, sign = base64.b64decode(text), ">" if order == "big" else "<"
    if dtype == "bfloat16":  # the upper half of a float32
        return (np.frombuffer(raw, sign + "u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, sign + {"float32": "f4", "float16": "f2"}[dtype])


def embedded(server, **fields) -> list:
    response = server.post("/v1/embeddings", {"input": TEXTS, **fields})
    assert response.status_code == 200, response.text
    return [each["embedding"] for each in response.json()["data"]]


@pytest.mark.parametrize(
    "form",
    [{"encoding_format": "base64"}, {"embedding_type": "base64"}, {"encoding_type": "base64"},
     {"embedding_types": ["base64"]}],
)  # fmt: skip
@pytest.mark.parametrize("order", [None, "native", "little", "big"])
@pytest.mark.parametrize("dtype", [None, "float32", "float16", "bfloat16"])
def test_base64(server, form, dtype, order):
    rows = embedded(server, **form, embed_dtype=dtype, endianness=order)
    found = [as_floats(row, dtype or "float32", order or "little") for row in rows]
    steps = {"float16": 2**-10, "bfloat16": 2**-8}.get(dtype or "float32", 1e-5)
    np.testing.assert_allclose(np.float32(found), dense(), rtol=steps, atol=5e-6)


def test_floats_are_floats(server):
    """As in vLLM: what base64 holds is no matter of theirs."""
    plain = embedded(server)
    servers.near(plain, dense())
    for more in (
        {"embed_dtype": "float16"}, {"endianness": "big"}, {"output_dtype": "float"},
        {"embedding_type": "float"}, {"embedding_types": ["float"], "encoding_format": "float"},
    ):  # fmt: skip
        assert embedded(server, **more) == plain


@pytest.mark.parametrize("name", ["normalize", "normalized", "use_activation", "activation"])
def test_normalize(server, name):
    raw = dense(normalize=False)
    assert abs(np.linalg.norm(raw, axis=1) - 1).min() > 0.01
    servers.near(embedded(server, **{name: False}), raw)
    servers.near(embedded(server, **{name: True}), dense())
    servers.near(embedded(server, **{name: False}, dimensions=8), raw[:, :8])


@pytest.mark.parametrize("name", ["dimensions", "output_dimension"])
def test_dimensions(server, name):
    servers.near(embedded(server, **{name: 8}), dense(truncate_dim=8))
    response = server.post("/v1/embeddings", {"input": "a", name: 10**6})
    assert response.status_code == 400 and response.json()["error"]["param"] == name


def test_texts_as_objects(server):
    servers.near(embedded(server, input=[{"text": text} for text in TEXTS]), dense())


CUT = [{"truncate": True}, {"truncate": "END"}, {"truncation": True},
       {"truncate": "END", "truncation": True}, {"truncate_prompt_tokens": -1},
       {"truncate_prompt_tokens": servers.SHORT, "truncation_side": "right"},
       {"truncate_prompt_tokens": 20, "truncate": True}]  # fmt: skip
WHOLE = [{}, {"truncate": False}, {"truncate": "NONE"}, {"truncation": False}]


@pytest.mark.parametrize("more", CUT)
def test_texts_are_cut(server, more):
    most = more.get("truncate_prompt_tokens", -1)
    limit = servers.SHORT if most == -1 else most
    servers.near(embedded(server, input=LONG, **more), dense(LONG, max_length=limit))
    found = ranked(server, DOCUMENTS, **more)
    servers.near(found, scores(TEXTS[0], DOCUMENTS, limit, limit))


@pytest.mark.parametrize("more", WHOLE)
def test_texts_are_not_cut(server, more):
    response = server.post("/v1/embeddings", {"input": LONG, **more})
    assert response.status_code == 400 and response.json()["error"]["param"] == "input"
    body = {"query": "a", "documents": DOCUMENTS, **more}
    response = server.post("/v1/rerank", body)
    assert response.status_code == 400 and response.json()["error"]["param"] == "documents"


def scores(query, documents, query_length=servers.SHORT, length=servers.SHORT) -> np.ndarray:
    engine = servers.short()
    found = scoring.all_scores(
        engine.encode([query], max_length=query_length), engine.encode(documents, max_length=length)
    )
    return scoring.hybrid_scores(found, "miracl")[0]


def ranked(server, documents, query=TEXTS[0], **more) -> np.ndarray:
    body = {"query": query, "documents": documents, **more}
    response = server.post("/v1/rerank", body)
    assert response.status_code == 200, response.text
    found = sorted(response.json()["results"], key=lambda each: each["index"])
    return np.float32([each["relevance_score"] for each in found])


@pytest.mark.parametrize("name", ["top_n", "top_k"])
def test_how_many_documents(server, name):
    body = {"query": TEXTS[0], "documents": DOCUMENTS[:3]}
    for asked, wanted in ((0, 3), (None, 3), (1, 1), (2, 2), (99, 3)):
        results = server.post("/v2/rerank", {**body, name: asked}).json()["results"]
        best = np.argsort(-scores(TEXTS[0], DOCUMENTS[:3]), kind="stable")[:wanted]
        assert [each["index"] for each in results] == best.tolist()


def test_documents_and_query_have_limits_of_their_own(server):
    query = "What is BGE M3 and what does it rank by?"
    for most in (3, 5, servers.SHORT):
        found = ranked(server, DOCUMENTS, query, max_tokens_per_doc=most)
        servers.near(found, scores(query, DOCUMENTS, length=most))
    cut = scores(query, DOCUMENTS[:3], query_length=5)
    found = ranked(server, DOCUMENTS[:3], query, max_tokens_per_query=5)
    servers.near(found, cut)
    assert np.abs(cut - scores(query, DOCUMENTS[:3])).max() > 1e-3
    for most in (0, servers.SHORT + 1):  # none, or none that cuts: the server's own holds
        body = {"query": query, "documents": DOCUMENTS, "max_tokens_per_doc": most}
        assert server.post("/v1/rerank", body).json()["error"]["param"] == "documents"
    # Documents are cut whatever the query is, and the query is not.
    body = {"query": LONG, "documents": DOCUMENTS, "max_tokens_per_doc": 5}
    assert server.post("/v1/rerank", body).json()["error"]["param"] == "query"
    body = {"query": query, "documents": DOCUMENTS, "max_tokens_per_doc": 5}
    found = server.post("/v1/rerank", {**body, "return_documents": True}).json()["results"]
    assert all(each["document"]["text"] == DOCUMENTS[each["index"]] for each in found)


def test_scores_are_raw(server):
    for name in ("raw_scores", "use_activation", "activation", "softmax"):
        for value in (True, False):
            found = ranked(server, TEXTS, **{name: value})
            servers.near(found, scores(TEXTS[0], TEXTS))


def test_tei(server):
    for body in ({"normalize": False}, {"normalize": False, "dimensions": 8}):
        found = server.post("/embed", {"inputs": TEXTS, **body}).json()
        servers.near(found, dense(normalize=False)[:, : body.get("dimensions")])
    for path in ("/embed", "/embed_all", "/embed_sparse"):
        body = {"inputs": LONG, "truncation_direction": "Right"}
        assert server.post(path, body).status_code == 413
        assert server.post(path, {**body, "truncate": False}).status_code == 413
        assert server.post(path, {**body, "truncate": True}).status_code == 200
    body = {"inputs": {"source_sentence": TEXTS[0], "sentences": [LONG]}}
    assert server.post("/similarity", body).status_code == 413
    found = server.post("/similarity", {**body, "parameters": {"truncate": True}}).json()
    servers.near(found, dense(TEXTS[:1]) @ dense([LONG])[0])
