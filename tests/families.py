"""The families of routes: a valid body for each route, and the shape of their errors."""

SECRET = "s3cr3t"
TEXTS = ["What is BGE M3?", "BM25 ranks by terms."]
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
TEI = ("/embed", "/", "/embed_sparse", "/embed_all", "/rerank", "/similarity", "/tokenize")
# One path of each family, for what does not depend on the body.
FAMILIES = ("/v1/embeddings", "/embed", "/v1/rerank", "/encode")
INSIDES = (SECRET, "Traceback", "m3fast.", "/src/", ".py", "pydantic", "Union", "list[", "0x")


def check(response, path, status, tei_status=None, tei_type="Validation", kind=None):
    """The family's shape, and nothing of ours or the user's in it."""
    answer = response.json()
    if path in TEI:
        assert response.status_code == (tei_status or status), response.text
        assert set(answer) == {"error", "error_type"} and answer["error_type"] == tei_type
        message = answer["error"]
    else:
        assert response.status_code == status, response.text
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        message = answer["error"]["message"]
        if "rerank" in path:
            assert set(answer) == {"id", "message", "error"} and answer["message"] == message
    assert response.headers["content-type"] == "application/json"
    assert 5 < len(message) < 300
    assert not [each for each in INSIDES if each in response.text], response.text
    return message
