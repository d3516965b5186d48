"""Keys, origins, files and headers; nothing of a request reaches the loader."""

import builtins
import hmac
import pickle
from pathlib import Path

import pytest
import servers
import torch

from m3fast.server.routes import ops

KEYS = ("first-key", "second-key", "third-key")
BODY = {"input": "a"}


@pytest.fixture(scope="module")
def locked():
    with servers.running(api_keys=KEYS, cors_origins=("https://good.example",)) as running:
        yield running


def bearer(key):
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("key", KEYS)
def test_every_key_opens(locked, key):
    assert locked.post("/v1/embeddings", BODY, headers=bearer(key)).status_code == 200
    lower = {"authorization": f"bearer  {key}"}
    assert locked.post("/v1/embeddings", BODY, headers=lower).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "first-key"},
        {"authorization": "Basic first-key"},
        {"authorization": "Bearer first-ke"},
        {"authorization": "Bearer first-keyx"},
        {"authorization": "Bearer first-key,second-key"},
        {"authorization": "Bearer FIRST-KEY"},
        {"authorization": b"Bearer \xff\xfe"},
        {"x-api-key": "first-key"},
    ],
)
def test_nothing_else_does(locked, headers):
    for path, shape in (
        ("/v1/embeddings", {"error"}),
        ("/embed", {"error", "error_type"}),
        ("/v1/rerank", {"error", "message", "id"}),
        ("/encode", {"error"}),
    ):
        # The body is not even looked at.
        response = locked.post(path, content=b"{", headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert set(response.json()) == shape and "first" not in response.text
        record = locked.last_record(response.headers["x-request-id"])
        assert record.error == "unauthorized" and record.bytes_in == 0


def test_what_is_open_without_a_key(locked):
    document = locked.get("/openapi.json", headers=bearer(KEYS[0])).json()
    document["paths"]["/docs"] = document["paths"]["/openapi.json"] = {"get": {}}
    document["paths"]["/unknown"] = document["paths"]["/static-offline-docs/a.js"] = {"get": {}}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            is_open = path in ("/health", "/ready") or (path == "/" and method == "get")
            status = locked.client.request(method.upper(), path).status_code
            assert (status != 401) == is_open, (method, path)
            if "responses" in operation:
                assert ("security" in operation) != is_open
    assert locked.get("/health?x=1").status_code == 200
    assert locked.post("/health").status_code == 401


def test_every_key_is_compared_each_time(locked, monkeypatch):
    compared = []
    real = hmac.compare_digest

    def spy(a, b):
        compared.append((a, b))
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    for key in (*KEYS, "wrong"):
        compared.clear()
        locked.post("/v1/embeddings", BODY, headers=bearer(key))
        assert len(compared) == len(KEYS)
        # Digests, so that neither length nor a common start shows.
        assert all(len(a) == len(b) == 32 for a, b in compared)


def test_origins(locked):
    asked = {"access-control-request-method": "POST", "origin": "https://good.example",
             "access-control-request-headers": "authorization,content-type"}  # fmt: skip
    response = locked.client.options("/v1/embeddings", headers=asked)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://good.example"
    assert "access-control-allow-credentials" not in response.headers
    bad = {**asked, "origin": "https://bad.example"}
    response = locked.client.options("/v1/embeddings", headers=bad)
    assert response.status_code == 400
    assert "access-control-allow-origin" not in response.headers
    for headers in (bearer(KEYS[0]), {}):  # a page can read refusals too
        headers = {**headers, "origin": "https://good.example"}
        response = locked.post("/v1/embeddings", BODY, headers=headers)
        assert response.headers["access-control-allow-origin"] == "https://good.example"
        assert "X-Request-ID" in response.headers["access-control-expose-headers"]


def test_no_origin_by_default(server):
    headers = {"origin": "https://bad.example", "access-control-request-method": "POST"}
    response = server.client.options("/v1/embeddings", headers=headers)
    assert response.status_code == 405
    # A page elsewhere may send such a body without being asked; it is not taken.
    headers = {"origin": "https://bad.example", "content-type": "text/plain"}
    response = server.post("/v1/embeddings", content=b'{"input": "a"}', headers=headers)
    assert response.status_code == 415
    assert not [name for name in response.headers if name.startswith("access-control")]


class Evil:
    def __reduce__(self):
        return (Path("/tmp/m3fast-was-here").touch, ())


def test_nothing_of_a_request_reaches_the_loader(server, monkeypatch):
    reached = []

    def watched(name, real):
        def spy(*arguments, **options):
            # The test's own client and the import system open files as well.
            if "secret-file" in repr(arguments) or name != "open":
                reached.append((name, arguments))
            return real(*arguments, **options)

        return spy

    from m3fast.checkpoint import folder
    from m3fast.engine import engine, loading
    from m3fast.text import files

    for owner, name in (
        (torch, "load"),
        (pickle, "load"),
        (pickle, "loads"),
        (folder, "resolve"),
        (engine, "resolve"),
        (loading, "load_weights"),
        (files, "read_tokenizer"),
        (builtins, "open"),
    ):
        monkeypatch.setattr(owner, name, watched(name, getattr(owner, name)))
    for name in ("../secret-file", "/etc/secret-file", "file:///secret-file", "hub/secret-file",
                 "secret-file\0", "https://host.invalid/secret-file"):  # fmt: skip
        bodies = {
            "/v1/embeddings": {"input": name, "model": name, "model_path": name},
            "/embed": {"inputs": name, "model": name, "path": name},
            "/v1/rerank": {"query": name, "documents": [{"text": name}], "model": name},
            "/encode": {"texts": name, "model": name},
            "/score": {"pairs": [[name, name]], "model": name},
            "/tokenize": {"inputs": name},
        }
        for path, body in bodies.items():
            known = path in ("/embed", "/tokenize")
            assert server.post(path, body).status_code == (200 if known else 404), path
            unnamed = {k: v for k, v in body.items() if k != "model"}
            assert server.post(path, unnamed).status_code == 200, path
        server.get("/v1/models/" + name.replace("\0", "%00"))
    for kind in ("application/x-pickle", "application/octet-stream", "application/json"):
        for path in ("/encode", "/v1/embeddings"):
            response = server.post(
                path, content=pickle.dumps(Evil()), headers={"content-type": kind}
            )
            assert response.status_code in (400, 415)
    assert reached == []
    assert not Path("/tmp/m3fast-was-here").exists()


@pytest.mark.parametrize(
    "path",
    [
        "/static-offline-docs/../app.py",
        "/static-offline-docs/..%2f..%2fcore.py",
        "/static-offline-docs/%2e%2e/core.py",
        "/static-offline-docs//etc/passwd",
        "/static-offline-docs/",
        "/page/index.html",
        "/../../etc/passwd",
    ],
)
def test_no_file_but_its_own(server, path):
    with server.connect() as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 404"), answer[:200]
    assert b'"error"' in answer


def test_the_docs_need_no_other_host(server):
    page = server.get("/docs").text
    assert "https://" not in page and "http://" not in page and "//cdn" not in page
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert f"/static-offline-docs/{name}" in page
        assert server.get(f"/static-offline-docs/{name}").status_code == 200


def test_the_page(server, monkeypatch, tmp_path):
    file = tmp_path / "index.html"
    monkeypatch.setattr(ops, "PAGE", file)
    assert server.get("/").status_code == 404
    file.write_text("<p>page</p>")
    response = server.get("/")
    assert response.text == "<p>page</p>"
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "http" not in policy and "*" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
