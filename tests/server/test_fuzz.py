"""Every route is fuzzed from the server's own OpenAPI document, and its responses must fit it."""

import hypothesis
import pytest
import schemathesis
import servers
from checkpoints import SMALL_WIDTH, TINY_VOCAB
from schemathesis.checks import CHECKS, load_all_checks

from m3fast.server.routes import encode, openai, ops, rerank, tei

pytestmark = pytest.mark.slow

load_all_checks()
positive_data_acceptance = CHECKS.get_one("positive_data_acceptance")
INSIDES = (b"Traceback", b"/src/", b"m3fast/server", b".py", b"pydantic")
ROUTES = [
    (method, route.path.replace(":path}", "}"))
    for family in (encode, openai, ops, rerank, tei)
    for route in family.router.routes
    for method in route.methods
]
TWINS = ("/", "/v2/rerank")
MODES = schemathesis.GenerationMode
# What is allowed meets every answer it can get within 30 examples; mistakes are more various.
ALLOWED, FORBIDDEN = 30, 80
TWIN = 10  # for a second path of a function
REFUSED = ("validation", "empty", "model", "not_found")


@pytest.fixture(scope="module")
def server():
    # Texts are cut, so that no long one costs seconds.
    with servers.running(auto_truncate=True, max_list=64, timeout=20.0) as running:
        yield running


@pytest.fixture(scope="module")
def document(server):
    # TEI refuses with 413 what is well-formed and too much.
    refusals = {"expected-statuses": [400, 404, 413, 415, 422]}
    config = schemathesis.Config.from_dict({"checks": {"negative_data_rejection": refusals}})
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=config)
    found = {(each.ok().method.upper(), each.ok().path) for each in schema.get_all_operations()}
    assert found == set(ROUTES)
    return schema


def test_the_document_has_this_servers_limits(server):
    document = server.get("/openapi.json").json()
    parts = document["components"]["schemas"]
    assert "x-limit" not in str(document) and "HTTPValidationError" not in str(document)
    fields = parts["EmbeddingRequest"]["properties"]
    assert fields["model"]["anyOf"][0]["enum"] == ["m3fast-tiny"]
    assert fields["dimensions"]["anyOf"][0]["maximum"] == SMALL_WIDTH
    assert fields["input"]["anyOf"][1]["maxItems"] == 64
    assert fields["input"]["anyOf"][2]["items"]["maximum"] == TINY_VOCAB - 1
    assert "422" in document["paths"]["/embed"]["post"]["responses"]
    assert "422" not in document["paths"]["/encode"]["post"]["responses"]
    assert "securitySchemes" not in document["components"]


def fuzzed(document, method, path, mode, test):
    examples = ALLOWED if mode is MODES.POSITIVE else FORBIDDEN

    @hypothesis.settings(
        max_examples=TWIN if path in TWINS else examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(hypothesis.Phase.generate,),
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(document[path][method].as_strategy(generation_mode=mode))
    def run(case):
        test(case)

    run()


def sent(case, **options):
    response = case.call_and_validate(**options)
    assert not [each for each in INSIDES if each in response.content]
    assert response.headers["x-request-id"]
    return response


def whole(value):
    """JSON Schema calls 2.0 an integer; this server takes 2 for one only."""
    if isinstance(value, dict):
        return {key: whole(each) for key, each in value.items()}
    if isinstance(value, list):
        return [whole(each) for each in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_what_the_document_allows(server, document, method, path):
    """Answered, or refused for what no schema can say; never as malformed."""
    answered = []

    def test(case):
        case.body = whole(case.body)
        if isinstance(case.body, dict) and "timeout" in case.body:
            case.body["timeout"] = 20  # one of a picosecond is valid, and is over at once
        response = sent(case, excluded_checks=[positive_data_acceptance])
        answered.append(response.status_code == 200)
        if response.status_code != 200:
            record = server.last_record(response.headers["x-request-id"][0])
            across = record.error == "malformed" and "body: expected" in response.text
            assert across or record.error in REFUSED, response.text

    fuzzed(document, method, path, MODES.POSITIVE, test)
    assert any(answered) or path == "/v1/models/{model}"


@pytest.mark.parametrize(("method", "path"), [each for each in ROUTES if each[0] == "POST"])
def test_what_the_document_forbids(document, method, path):
    fuzzed(document, method, path, MODES.NEGATIVE, sent)


def test_nothing_broke(server):
    """After all of it the server is as it was, and no request met an internal error."""
    assert server.reports.errors == []
    assert server.get("/health").status_code == 200
    servers.eventually(lambda: server.service.active == 0)
    assert server.service.engine.load.tokens == 0
