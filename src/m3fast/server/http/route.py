"""A FastAPI route without FastAPI's work per request.

The OpenAPI document is made from the signature of the endpoint:

    async def name(body: Model, context: RequestContext) -> Reply
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, get_type_hints

from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from m3fast.server.http.context import context_of
from m3fast.server.http.errors import malformed
from m3fast.server.schemas.rerank import Document
from m3fast.server.schemas.tei import Prompted, Similar, TeiError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


class Route(APIRoute):
    """Parses the body from its bytes with one call of pydantic, and sends the reply."""

    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:
        options["response_model"] = None
        super().__init__(path, endpoint, **options)
        hints = get_type_hints(endpoint)
        self._model: type[BaseModel] | None = None
        self._body = ""
        for name in inspect.signature(endpoint).parameters:
            if isinstance(hints[name], type) and issubclass(hints[name], BaseModel):
                self._body, self._model = name, hints[name]
        self._fields = _names(self._model) if self._model is not None else frozenset[str]()

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in (self.methods or ()):
            raise HTTPException(405)
        context = context_of(scope)
        context.record.route = self.path
        values: dict[str, Any] = dict(scope.get("path_params", {}))
        if self._model is not None:
            raw = await context.content()
            try:
                values[self._body] = self._model.model_validate_json(raw)
            except ValidationError as error:
                raise malformed(error, self._model, self._fields) from None
            del raw
        reply = await self.endpoint(context=context, **values)
        await reply(context, send)


def _names(model: type[BaseModel]) -> frozenset[str]:
    """Names of the fields of a model and of those inside it."""
    inner = {"inputs": (Similar, Prompted), "documents": (Document,)}
    found = set(model.model_fields)
    for name in model.model_fields:
        for other in inner.get(name, ()):
            found |= set(other.model_fields)
    return frozenset(found)


# Statuses with a body of the family's error shape, and what they mean.
_ANY = {
    401: "A valid key is missing.",
    404: "No such model.",
    429: "Too much to do; see Retry-After.",
    500: "Internal error.",
    503: "Not ready, shutting down, or dead.",
    504: "The request's time is over.",
}
_BODY = {
    400: "Not as described here.",
    408: "The body did not come in time.",
    413: "Too large.",
    415: "Not JSON.",
}
_TEI = {422: "Not as described here.", 424: "The batch failed."}


def documented(
    response: Any, error: type[BaseModel], *, body: bool = True, **more: Any
) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route, for the OpenAPI document.

    Args:
        response: model of the body at 200; more: of the entry for 200.
        body: whether the route takes one.
    """
    statuses = {**_ANY, **(_BODY if body else {}), **(_TEI if error is TeiError else {})}
    found: dict[int | str, dict[str, Any]] = {200: {"model": response, **more}}
    for status, text in sorted(statuses.items()):
        found[status] = {"model": error, "description": text}
    return found
