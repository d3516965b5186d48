"""Null is the default of every field that has one."""

import re
import typing
from pathlib import Path

import pydantic
import pytest
from families import BODIES

from m3fast.server.http.errors import TEI_PATHS
from m3fast.server.routes import encode, openai, rerank, tei

MODELS = {
    route.path: model
    for family in (encode, openai, rerank, tei)
    for route in family.router.routes
    if (model := typing.get_type_hints(route.endpoint).get("body")) is not None
}


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


def answer(keyed, path: str, body: dict):
    response = keyed.post(path, body, headers={"X-Request-ID": "same"})
    return response.status_code, response.json()


def test_every_route_with_a_body_is_here():
    assert set(BODIES) == set(MODELS)


@pytest.mark.parametrize(("path", "place"), OPTIONAL, ids=str)
def test_null_is_the_default(keyed, path, place):
    body = {name: value for name, value in BODIES[path].items() if (name,) != place}
    wanted = answer(keyed, path, body)
    assert answer(keyed, path, put(body, place, None)) == wanted
    assert wanted[0] == 200 or place[0] in BODIES[path]


@pytest.mark.parametrize("path", BODIES)
def test_all_nulls_at_once(keyed, path):
    body = BODIES[path]
    nulls = {name: None for place in places(MODELS[path], False) for name in place[:1]}
    assert answer(keyed, path, {**nulls, **body}) == answer(keyed, path, body)


@pytest.mark.parametrize(("path", "place"), REQUIRED)
def test_null_for_what_is_required(keyed, path, place):
    status, found = answer(keyed, path, put(BODIES[path], place, None))
    assert status == (422 if path in TEI_PATHS else 400)
    assert place[-1] in str(found)


def test_null_in_a_list(keyed):
    for path, body in (
        ("/v1/embeddings", {"input": ["a", None]}),
        ("/v1/embeddings", {"input": [{"text": None}]}),
        ("/v1/rerank", {"query": "a", "documents": ["a", None]}),
        ("/v1/rerank", {"query": "a", "documents": [{"text": None}]}),
        ("/encode", {"texts": [None]}),
    ):
        assert keyed.post(path, body).status_code == 400


def test_the_document_says_so(keyed):
    document = keyed.get("/openapi.json").json()["components"]["schemas"]
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
