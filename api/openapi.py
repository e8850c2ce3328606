"""What `/openapi.json` says beyond what FastAPI finds: bodies, which we parse ourselves, and errors."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from headrace.batches.request import BatchRequest
from headrace.chat.request import ChatRequest, JobSubmission

_BODIES: dict[tuple[str, str], type[BaseModel]] = {
    ("/api/v1/chat/completions", "post"): ChatRequest,
    ("/api/v1/jobs", "post"): JobSubmission,
    ("/api/v1/batches", "post"): BatchRequest,
}
_REFERENCE = "#/components/schemas/{model}"
_ERRORS = {
    "400": "The request is not valid; `param` names the field",
    "401": "There is no key, or nobody's",
    "403": "The key may not do that",
    "404": "There is nothing by that id, or it is another account's",
    "409": "It does not go with how things are, or its Idempotency-Key came with another request",
    "413": "The body is too large",
    "429": "Too many requests; `Retry-After` tells when to come back",
    "500": "We made a mistake; `x-request-id` helps to find it",
    "503": "Postgres is away; `Retry-After` tells when to come back",
}
_UPSTREAM_ERRORS = {
    "499": "The job was cancelled",
    "502": "The model's provider failed",
    "504": "The model's provider, or the job, took too long",
}


class ErrorObject(BaseModel):
    """What went wrong, as OpenAI says it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every answer that is no success."""

    error: ErrorObject


def describe(app: FastAPI) -> None:
    """Make the application's OpenAPI document complete; it is built once, when first asked for."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    bodies: list[type[BaseModel]] = [*_BODIES.values(), ErrorResponse]
    models: list[tuple[type[BaseModel], Literal["validation"]]] = [(body, "validation") for body in bodies]
    _, definitions = models_json_schema(models, ref_template=_REFERENCE)
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(definitions["$defs"])
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation["responses"].pop("422", None)
            if path.startswith("/api/"):
                _describe_operation(operation, path, _BODIES.get((path, method)))
    return document


def _describe_operation(operation: dict[str, Any], path: str, body: type[BaseModel] | None) -> None:
    operation["security"] = [{"bearer": []}, {"apiKey": []}]
    if body is not None:
        schema = {"$ref": _REFERENCE.format(model=body.__name__)}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    error = {"application/json": {"schema": {"$ref": _REFERENCE.format(model=ErrorResponse.__name__)}}}
    errors = _ERRORS | (_UPSTREAM_ERRORS if path.startswith("/api/v1/chat") else {})
    for status, description in errors.items():
        operation["responses"].setdefault(status, {"description": description, "content": error})
