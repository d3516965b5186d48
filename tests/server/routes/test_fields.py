"""Fields that change a result are honoured or refused by name; null is every field's default."""

import base64
import itertools
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pydantic
import pytest
import servers

from m3fast import scoring
from m3fast.server.http.errors import TEI_PATHS
from m3fast.server.routes import encode, openai, rerank, tei

TEXTS = ["What is BGE M3?", "BM25 ranks by terms."]
LONG = "word " * 200  # more tokens than the server takes
DOCUMENTS = ["BGE M3 is an embedding model.", "BM25 ranks by terms.", "x", LONG]
KEY = "a-key"
BODIES = {
    "/v1/embeddings": {"input": TEXTS},
    "/embed": {"inputs": TEXTS},
    "/": {"inputs": TEXTS},
    "/embed_sparse": {"inputs": TEXTS},
    "/embed_all": {"inputs": TEXTS},
    "/rerank": {"query": TEXTS[0], "texts": TEXTS},
    "/similarity": {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS}},
    "/tokenize": {"inputs": TEXTS},
    "/v1/rerank": {"query": TEXTS[0], "documents": TEXTS},
    "/v2/rerank": {"query": TEXTS[0], "documents": TEXTS},
    "/encode": {"texts": TEXTS},
    "/score": {"query": TEXTS[0], "passages": TEXTS},
}
MODELS = {
    route.path: model
    for family in (encode, openai, rerank, tei)
    for route in family.router.routes
    if (model := typing.get_type_hints(route.endpoint).get("body")) is not None
}


@pytest.fixture(scope="module")
def server() -> Iterator[servers.ThreadServer]:
    with servers.running(servers.short(), api_keys=(KEY,)) as running:
        running.client.headers["Authorization"] = f"Bearer {KEY}"
        yield running


def parts(model: type[pydantic.BaseModel]) -> dict[str, list[type[pydantic.BaseModel]]]:
    """Models inside each field."""

    def inside(kind) -> list:
        if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
            return [kind]
        return [found for each in typing.get_args(kind) for found in inside(each)]

    return {name: inside(field.annotation) for name, field in model.model_fields.items()}


def places(model, required: bool) -> list[tuple[str, ...]]:
    """Where a model, and those inside it, have fields with or without a default."""
    found = [
        (name,) for name, field in model.model_fields.items() if field.is_required() == required
    ]
    for name, inner in parts(model).items():
        found += [(name, *rest) for each in inner for rest in places(each, required)]
    return found


OPTIONAL = [(path, place) for path, model in MODELS.items() for place in places(model, False)]
REQUIRED = [
    (path, place)
    for path, model in MODELS.items()
    for place in places(model, True)
    if len(place) == 1 or place[0] == "inputs"  # those in lists: below
]


def put(body: dict, place: tuple[str, ...], value) -> dict:
    first, *rest = place
    return {**body, first: put(body.get(first) or {}, tuple(rest), value) if rest else value}


def answer(server, path: str, body: dict):
    response = server.post(path, body, headers={"X-Request-ID": "same"})
    return response.status_code, response.json()


# Null -------------------------------------------------------------------------------------------


def test_every_route_with_a_body_is_here():
    assert set(BODIES) == set(MODELS)


@pytest.mark.parametrize(("path", "place"), OPTIONAL, ids=str)
def test_null_is_the_default(server, path, place):
    body = {name: value for name, value in BODIES[path].items() if (name,) != place}
    wanted = answer(server, path, body)
    assert answer(server, path, put(body, place, None)) == wanted
    assert wanted[0] == 200 or place[0] in BODIES[path]


@pytest.mark.parametrize("path", BODIES)
def test_all_nulls_at_once(server, path):
    body = BODIES[path]
    nulls = {name: None for place in places(MODELS[path], False) for name in place[:1]}
    assert answer(server, path, {**nulls, **body}) == answer(server, path, body)


@pytest.mark.parametrize(("path", "place"), REQUIRED)
def test_null_for_what_is_required(server, path, place):
    status, found = answer(server, path, put(BODIES[path], place, None))
    assert status == (422 if path in TEI_PATHS else 400)
    assert place[-1] in str(found)


def test_null_in_a_list(server):
    for path, body in (
        ("/v1/embeddings", {"input": ["a", None]}),
        ("/v1/embeddings", {"input": [{"text": None}]}),
        ("/v1/rerank", {"query": "a", "documents": ["a", None]}),
        ("/v1/rerank", {"query": "a", "documents": [{"text": None}]}),
        ("/encode", {"texts": [None]}),
    ):
        assert server.post(path, body).status_code == 400


def test_the_document_says_so(server):
    document = server.get("/openapi.json").json()["components"]["schemas"]
    for model in set(MODELS.values()):
        for name, field in model.model_fields.items():
            if not field.is_required():
                schema = document[model.__name__]["properties"][name]
                kinds = schema.get("anyOf", [schema])
                assert {"type": "null"} in [{"type": k.get("type")} for k in kinds], (model, name)


def test_the_page_names_every_field():
    text = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    names = {place[-1] for model in set(MODELS.values()) for place in places(model, False)}
    assert names <= set(re.findall(r"[a-z0-9_]+", " ".join(re.findall(r"`([^`\n]+)`", text))))


# Honoured ---------------------------------------------------------------------------------------


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


# Refused ----------------------------------------------------------------------------------------

EMBEDDINGS = [
    ("encoding_format", "bytes"), ("encoding_format", "bytes_only"), ("encoding_format", 1),
    ("embedding_type", "int8"), ("embedding_type", "binary"), ("encoding_type", "ubinary"),
    ("embedding_types", ["int8"]), ("embedding_types", ["float", "base64"]),
    ("embedding_types", []), ("embed_dtype", "fp8_e4m3"), ("embed_dtype", "fp8_e5m2"),
    ("endianness", "middle"),
    *(("output_dtype", value) for value in ("int8", "uint8", "binary", "ubinary")),
    ("normalize", 1), ("softmax", True), ("add_special_tokens", False),
    ("output_dimension", 0), ("late_chunking", True), ("return_multivector", True),
    ("messages", [{"role": "user", "content": "a"}]), ("chat_template", "{{ x }}"),
    ("modality", "image"), ("input", [{"text": "a", "image": "b"}]), ("input", [{"image": "b"}]),
    ("input", ["a", {"text": "b"}]),
    ("input_type", "query"), ("task", "retrieval.query"), ("prompt_name", "query"),
]  # fmt: skip
LENGTHS = [
    ("truncate", "START"), ("truncate", 1), ("truncation", "END"), ("truncation_side", "left"),
    ("truncate_prompt_tokens", servers.SHORT + 1), ("truncate_prompt_tokens", 2),
    ("truncate_prompt_tokens", -2),
]  # fmt: skip
RERANK = [
    ("top_n", -1), ("top_k", -1), ("max_tokens_per_doc", 2), ("max_tokens_per_doc", -1),
    ("max_tokens_per_query", 1), ("max_chunks_per_doc", 10), ("rank_fields", ["title"]),
    ("rank_fields", ["text", "title"]), ("instruction", "rank"), ("chat_template", "{{ x }}"),
    ("return_embeddings", True), ("raw_scores", "no"),
]  # fmt: skip
TEI = [
    *itertools.product(
        ("/embed", "/embed_all", "/embed_sparse", "/rerank"),
        [("truncation_direction", "left"), ("truncation_direction", "Left"), ("truncate", "yes")],
    ),
    *itertools.product(
        ("/embed", "/", "/embed_all", "/embed_sparse", "/tokenize", "/rerank"),
        [("prompt_name", "query")],
    ),
    ("/embed", ("dimensions", 0)), ("/embed", ("dimensions", 10**6)), ("/embed", ("normalize", 1)),
    ("/rerank", ("raw_scores", 1)), ("/rerank", ("return_text", 1)),
    ("/tokenize", ("add_special_tokens", 0)),
    *(
        ("/similarity", ("parameters", {name: value}))
        for name, value in (("truncation_direction", "Left"), ("prompt_name", "query"))
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "field"),
    [
        *itertools.product(["/v1/embeddings"], EMBEDDINGS + LENGTHS),
        *itertools.product(["/v1/rerank"], RERANK + LENGTHS),
    ],
)
def test_refused_by_name(server, path, field):
    name, value = field
    response = server.post(path, {**BODIES[path], name: value})
    error = response.json()["error"]
    assert response.status_code == 400 and error["type"] == "invalid_request_error"
    assert error["param"] == name and error["message"].startswith(name)
    assert "expected" in error["message"]


@pytest.mark.parametrize(("path", "field"), TEI)
def test_tei_refuses_by_name(server, path, field):
    name, value = field
    response = server.post(path, {**BODIES[path], name: value})
    # What JSON cannot be is 422 there, what is well-formed and not allowed 413.
    well_formed = ("prompt_name" in str(field) and path != "/rerank") or value == 10**6
    assert response.status_code == (413 if well_formed else 422)
    assert response.json()["error_type"] == "Validation"
    assert response.json()["error"].startswith(name)


@pytest.mark.parametrize(
    ("path", "one", "other"),
    [
        ("/v1/embeddings", ("encoding_format", "float"), ("embedding_type", "base64")),
        ("/v1/embeddings", ("embedding_type", "base64"), ("embedding_types", ["float"])),
        ("/v1/embeddings", ("dimensions", 8), ("output_dimension", 16)),
        ("/v1/embeddings", ("normalize", True), ("normalized", False)),
        ("/v1/embeddings", ("truncate", "NONE"), ("truncation", True)),
        ("/v1/rerank", ("top_n", 1), ("top_k", 2)),
        ("/v1/rerank", ("truncate", False), ("truncation", True)),
    ],
)
def test_two_names_that_disagree(server, path, one, other):
    response = server.post(path, {**BODIES[path], **dict([one, other])})
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == other[0] and one[0] in error["message"]


def test_cut_to_a_length_and_not_cut(server):
    body = {"input": "a", "truncate_prompt_tokens": 20, "truncation": False}
    error = server.post("/v1/embeddings", body).json()["error"]
    assert error["param"] == "truncate_prompt_tokens"


def test_a_chat_without_input_is_told_of_the_chat(server):
    error = server.post("/v1/embeddings", {"messages": []}).json()["error"]
    assert error["message"] == "messages: expected null"


# Ignored ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path in BODIES if path not in ("/encode", "/score")])
def test_what_changes_nothing_is_ignored(server, path):
    extras = {"user": "me", "request_id": "x", "priority": 3, "cache_salt": "s", "x": [1]}
    assert answer(server, path, {**BODIES[path], **extras}) == answer(server, path, BODIES[path])


def test_the_model(server):
    for path in ("/v1/embeddings", "/v1/rerank", "/v2/rerank", "/encode", "/score"):
        response = server.post(path, {**BODIES[path], "model": "other"})
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"
    for path in ("/embed", "/rerank", "/similarity", "/tokenize"):
        assert server.post(path, {**BODIES[path], "model": "other"}).status_code == 200


# A slash at the end -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path in BODIES if path != "/"])
def test_a_slash_too_many(server, path):
    response = server.post(path + "/?a=b%20c&d=//e.test/", BODIES[path])
    assert response.status_code == 307
    assert response.headers["location"] == path + "?a=b%20c&d=//e.test/"
    assert server.last_record(response.headers["x-request-id"]).route == path
    found = server.post(path + "/", BODIES[path], follow_redirects=True)
    assert found.status_code == 200 and found.request.url.path == path
    assert server.post(path + "/").headers["location"] == path


def test_a_slash_passes_the_guard(server):
    for path in ("/v1/embeddings/", "/metrics/", "/health/"):
        response = httpx.post(server.url + path, json={"input": "a"})
        assert response.status_code == 401 and response.headers["x-request-id"]
    assert server.get("/health/").headers["location"] == "/health"
    for path in ("/other/", "//embed/", "/v1/", "/v1/models/x/", "//e.test/"):
        assert server.get(server.url + path).status_code == 404
