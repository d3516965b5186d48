"""The OpenAPI document: FastAPI's own, with this server's names, limits and keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from m3fast.server.http.middleware import WITHOUT_KEY
from m3fast.server.routes.checks import most_dimensions

if TYPE_CHECKING:
    from fastapi import FastAPI

    from m3fast.server.service import Service

# FastAPI's schemas of its answer to malformed bodies; our routes have their family's shape.
FASTAPI_ERRORS = ("HTTPValidationError", "ValidationError")


def describe(app: FastAPI, service: Service) -> None:
    """Make `app.openapi()` say what this server does."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = make()
            _complete(document, service)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # pyright: ignore[reportAttributeAccessIssue]


def _complete(document: dict[str, Any], service: Service) -> None:
    settings, engine = service.settings, service.engine.engine
    prompts = list(engine.sentence.prompts)
    limits: dict[str, dict[str, Any]] = {
        "model": {"enum": list(settings.served_names)},
        "list": {"maxItems": settings.max_list},
        "ids": {"maximum": engine.config.vocab_size - 1},
        "dimensions": {"maximum": most_dimensions(engine)},
        "tokens": {"maximum": engine.max_length},
        "prompts": {"enum": prompts} if prompts else {"not": {}},  # as `prompt_of` has it
    }
    parts = document["components"]
    for name in FASTAPI_ERRORS:
        parts["schemas"].pop(name, None)
    if settings.api_keys:
        parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
            if settings.api_keys and (method.upper(), path) not in WITHOUT_KEY:
                operation["security"] = [{"key": []}]
    _limit(parts["schemas"], limits)


def _limit(node: Any, limits: dict[str, dict[str, Any]]) -> None:
    """Replace every "x-limit" below."""
    if isinstance(node, list):
        for each in node:  # pyright: ignore[reportUnknownVariableType]
            _limit(each, limits)
    elif isinstance(node, dict):
        named: dict[str, Any] = node
        if isinstance(limit := named.pop("x-limit", None), str):
            named.update(limits[limit])
        for each in named.values():
            _limit(each, limits)
