"""Options that are not supported are refused by name; unknown fields are ignored."""

import itertools

import httpx
import pytest
import servers
from families import BODIES


def answer(keyed, path: str, body: dict):
    response = keyed.post(path, body, headers={"X-Request-ID": "same"})
    return response.status_code, response.json()


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
def test_refused_by_name(keyed, path, field):
    name, value = field
    response = keyed.post(path, {**BODIES[path], name: value})
    error = response.json()["error"]
    assert response.status_code == 400 and error["type"] == "invalid_request_error"
    assert error["param"] == name and error["message"].startswith(name)
    assert "expected" in error["message"]


@pytest.mark.parametrize(("path", "field"), TEI)
def test_tei_refuses_by_name(keyed, path, field):
    name, value = field
    response = keyed.post(path, {**BODIES[path], name: value})
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
def test_two_names_that_disagree(keyed, path, one, other):
    response = keyed.post(path, {**BODIES[path], **dict([one, other])})
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == other[0] and one[0] in error["message"]


def test_cut_to_a_length_and_not_cut(keyed):
    body = {"input": "a", "truncate_prompt_tokens": 20, "truncation": False}
    error = keyed.post("/v1/embeddings", body).json()["error"]
    assert error["param"] == "truncate_prompt_tokens"


def test_a_chat_without_input_is_told_of_the_chat(keyed):
    error = keyed.post("/v1/embeddings", {"messages": []}).json()["error"]
    assert error["message"] == "messages: expected null"


@pytest.mark.parametrize("path", [path for path in BODIES if path not in ("/encode", "/score")])
def test_what_changes_nothing_is_ignored(keyed, path):
    extras = {"user": "me", "request_id": "x", "priority": 3, "cache_salt": "s", "x": [1]}
    assert answer(keyed, path, {**BODIES[path], **extras}) == answer(keyed, path, BODIES[path])


def test_the_model(keyed):
    for path in ("/v1/embeddings", "/v1/rerank", "/v2/rerank", "/encode", "/score"):
        response = keyed.post(path, {**BODIES[path], "model": "other"})
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"
    for path in ("/embed", "/rerank", "/similarity", "/tokenize"):
        assert keyed.post(path, {**BODIES[path], "model": "other"}).status_code == 200


@pytest.mark.parametrize("path", [path for path in BODIES if path != "/"])
def test_a_slash_too_many(keyed, path):
    response = keyed.post(path + "/?a=b%20c&d=//e.test/", BODIES[path])
    assert response.status_code == 307
    assert response.headers["location"] == path + "?a=b%20c&d=//e.test/"
    assert keyed.last_record(response.headers["x-request-id"]).route == path
    found = keyed.post(path + "/", BODIES[path], follow_redirects=True)
    assert found.status_code == 200 and found.request.url.path == path
    assert keyed.post(path + "/").headers["location"] == path


def test_a_slash_is_refused_without_a_key(keyed):
    for path in ("/v1/embeddings/", "/metrics/", "/health/"):
        response = httpx.post(keyed.url + path, json={"input": "a"})
        assert response.status_code == 401 and response.headers["x-request-id"]
    assert keyed.get("/health/").headers["location"] == "/health"
    for path in ("/other/", "//embed/", "/v1/", "/v1/models/x/", "//e.test/"):
        assert keyed.get(keyed.url + path).status_code == 404
