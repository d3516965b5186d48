"""Options that change a result are honoured."""

import base64

import numpy as np
import pytest
import servers
from families import TEXTS

from m3fast import scoring

LONG = "word " * 200  # more tokens than the server takes
DOCUMENTS = ["BGE M3 is an embedding model.", "BM25 ranks by terms.", "x", LONG]


def dense(texts=TEXTS, **more) -> np.ndarray:
    return servers.short().encode(texts, sparse=False, colbert=False, **more).dense


def as_floats(text: str, dtype: str = "float32", order: str = "little") -> np.ndarray:
    """What a client makes of base64."""
    raw, sign = base64.b64decode(text), ">" if order == "big" else "<"
    if dtype == "bfloat16":  # the upper half of a float32
        return (np.frombuffer(raw, sign + "u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, sign + {"float32": "f4", "float16": "f2"}[dtype])


def embedded(keyed, **fields) -> list:
    response = keyed.post("/v1/embeddings", {"input": TEXTS, **fields})
    assert response.status_code == 200, response.text
    return [each["embedding"] for each in response.json()["data"]]


@pytest.mark.parametrize(
    "form",
    [{"encoding_format": "base64"}, {"embedding_type": "base64"}, {"encoding_type": "base64"},
     {"embedding_types": ["base64"]}],
)  # fmt: skip
@pytest.mark.parametrize("order", [None, "native", "little", "big"])
@pytest.mark.parametrize("dtype", [None, "float32", "float16", "bfloat16"])
def test_base64(keyed, form, dtype, order):
    rows = embedded(keyed, **form, embed_dtype=dtype, endianness=order)
    found = [as_floats(row, dtype or "float32", order or "little") for row in rows]
    steps = {"float16": 2**-10, "bfloat16": 2**-8}.get(dtype or "float32", 1e-5)
    np.testing.assert_allclose(np.float32(found), dense(), rtol=steps, atol=5e-6)


def test_floats_are_floats(keyed):
    """As in vLLM: what base64 holds is no matter of theirs."""
    plain = embedded(keyed)
    servers.near(plain, dense())
    for more in (
        {"embed_dtype": "float16"}, {"endianness": "big"}, {"output_dtype": "float"},
        {"embedding_type": "float"}, {"embedding_types": ["float"], "encoding_format": "float"},
    ):  # fmt: skip
        assert embedded(keyed, **more) == plain


@pytest.mark.parametrize("name", ["normalize", "normalized", "use_activation", "activation"])
def test_normalize(keyed, name):
    raw = dense(normalize=False)
    assert abs(np.linalg.norm(raw, axis=1) - 1).min() > 0.01
    servers.near(embedded(keyed, **{name: False}), raw)
    servers.near(embedded(keyed, **{name: True}), dense())
    servers.near(embedded(keyed, **{name: False}, dimensions=8), raw[:, :8])


@pytest.mark.parametrize("name", ["dimensions", "output_dimension"])
def test_dimensions(keyed, name):
    servers.near(embedded(keyed, **{name: 8}), dense(truncate_dim=8))
    response = keyed.post("/v1/embeddings", {"input": "a", name: 10**6})
    assert response.status_code == 400 and response.json()["error"]["param"] == name


def test_texts_as_objects(keyed):
    servers.near(embedded(keyed, input=[{"text": text} for text in TEXTS]), dense())


CUT = [{"truncate": True}, {"truncate": "END"}, {"truncation": True},
       {"truncate": "END", "truncation": True}, {"truncate_prompt_tokens": -1},
       {"truncate_prompt_tokens": servers.SHORT, "truncation_side": "right"},
       {"truncate_prompt_tokens": 20, "truncate": True}]  # fmt: skip
WHOLE = [{}, {"truncate": False}, {"truncate": "NONE"}, {"truncation": False}]


@pytest.mark.parametrize("more", CUT)
def test_texts_are_cut(keyed, more):
    most = more.get("truncate_prompt_tokens", -1)
    limit = servers.SHORT if most == -1 else most
    servers.near(embedded(keyed, input=LONG, **more), dense(LONG, max_length=limit))
    found = ranked(keyed, DOCUMENTS, **more)
    servers.near(found, scores(TEXTS[0], DOCUMENTS, limit, limit))


@pytest.mark.parametrize("more", WHOLE)
def test_texts_are_not_cut(keyed, more):
    response = keyed.post("/v1/embeddings", {"input": LONG, **more})
    assert response.status_code == 400 and response.json()["error"]["param"] == "input"
    body = {"query": "a", "documents": DOCUMENTS, **more}
    response = keyed.post("/v1/rerank", body)
    assert response.status_code == 400 and response.json()["error"]["param"] == "documents"


def scores(query, documents, query_length=servers.SHORT, length=servers.SHORT) -> np.ndarray:
    engine = servers.short()
    found = scoring.all_scores(
        engine.encode([query], max_length=query_length), engine.encode(documents, max_length=length)
    )
    return scoring.hybrid_scores(found, "miracl")[0]


def ranked(keyed, documents, query=TEXTS[0], **more) -> np.ndarray:
    body = {"query": query, "documents": documents, **more}
    response = keyed.post("/v1/rerank", body)
    assert response.status_code == 200, response.text
    found = sorted(response.json()["results"], key=lambda each: each["index"])
    return np.float32([each["relevance_score"] for each in found])


@pytest.mark.parametrize("name", ["top_n", "top_k"])
def test_how_many_documents(keyed, name):
    body = {"query": TEXTS[0], "documents": DOCUMENTS[:3]}
    for asked, wanted in ((0, 3), (None, 3), (1, 1), (2, 2), (99, 3)):
        results = keyed.post("/v2/rerank", {**body, name: asked}).json()["results"]
        best = np.argsort(-scores(TEXTS[0], DOCUMENTS[:3]), kind="stable")[:wanted]
        assert [each["index"] for each in results] == best.tolist()


def test_documents_and_query_have_limits_of_their_own(keyed):
    query = "What is BGE M3 and what does it rank by?"
    for most in (3, 5, servers.SHORT):
        found = ranked(keyed, DOCUMENTS, query, max_tokens_per_doc=most)
        servers.near(found, scores(query, DOCUMENTS, length=most))
    cut = scores(query, DOCUMENTS[:3], query_length=5)
    found = ranked(keyed, DOCUMENTS[:3], query, max_tokens_per_query=5)
    servers.near(found, cut)
    assert np.abs(cut - scores(query, DOCUMENTS[:3])).max() > 1e-3
    for most in (0, servers.SHORT + 1):  # none, or none that cuts: the server's own holds
        body = {"query": query, "documents": DOCUMENTS, "max_tokens_per_doc": most}
        assert keyed.post("/v1/rerank", body).json()["error"]["param"] == "documents"
    # Documents are cut whatever the query is, and the query is not.
    body = {"query": LONG, "documents": DOCUMENTS, "max_tokens_per_doc": 5}
    assert keyed.post("/v1/rerank", body).json()["error"]["param"] == "query"
    body = {"query": query, "documents": DOCUMENTS, "max_tokens_per_doc": 5}
    found = keyed.post("/v1/rerank", {**body, "return_documents": True}).json()["results"]
    assert all(each["document"]["text"] == DOCUMENTS[each["index"]] for each in found)


def test_scores_are_raw(keyed):
    for name in ("raw_scores", "use_activation", "activation", "softmax"):
        for value in (True, False):
            found = ranked(keyed, TEXTS, **{name: value})
            servers.near(found, scores(TEXTS[0], TEXTS))


def test_tei(keyed):
    for body in ({"normalize": False}, {"normalize": False, "dimensions": 8}):
        found = keyed.post("/embed", {"inputs": TEXTS, **body}).json()
        servers.near(found, dense(normalize=False)[:, : body.get("dimensions")])
    for path in ("/embed", "/embed_all", "/embed_sparse"):
        body = {"inputs": LONG, "truncation_direction": "Right"}
        assert keyed.post(path, body).status_code == 413
        assert keyed.post(path, {**body, "truncate": False}).status_code == 413
        assert keyed.post(path, {**body, "truncate": True}).status_code == 200
    body = {"inputs": {"source_sentence": TEXTS[0], "sentences": [LONG]}}
    assert keyed.post("/similarity", body).status_code == 413
    found = keyed.post("/similarity", {**body, "parameters": {"truncate": True}}).json()
    servers.near(found, dense(TEXTS[:1]) @ dense([LONG])[0])
