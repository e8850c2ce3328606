"""The parts of `/openapi.json` that FastAPI cannot derive: bodies and headers that Headrace reads, and errors."""

from __future__ import annotations

from typing import Any, Literal

import orjson
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api.http.authentication import ACCOUNT_HEADER
from api.http.idempotency import LONGEST_KEY
from api.http.upload import FORM
from api.resources.account import AccountUpdate
from api.resources.agents import AgentChanges
from api.resources.conversations import ConversationUpdate
from api.resources.stored import CompletionUpdate
from headrace.agents.persona import AgentDefinition
from headrace.batches.request import BatchRequest
from headrace.conversations.items import ConversationRequest, NewItems
from headrace.formats.chat.request import ChatRequest, JobSubmission
from headrace.formats.responses.request import ResponseRequest
from headrace.keys.key_object import KeyRequest, KeyRotation, KeyUpdate

_BODIES: dict[str, type[BaseModel]] = {
    "/api/v1/chat/completions": ChatRequest,
    "/api/v1/chat/completions/{completion_id}": CompletionUpdate,
    "/api/v1/responses": ResponseRequest,
    "/api/v1/responses/input_tokens": ResponseRequest,
    "/api/v1/responses/compact": ResponseRequest,
    "/api/v1/jobs": JobSubmission,
    "/api/v1/batches": BatchRequest,
    "/api/v1/agents": AgentDefinition,
    "/api/v1/agents/{agent_id}": AgentChanges,
    "/api/v1/conversations": ConversationRequest,
    "/api/v1/conversations/{conversation_id}": ConversationUpdate,
    "/api/v1/conversations/{conversation_id}/items": NewItems,
    "/api/v1/api-keys": KeyRequest,
    "/api/v1/api-keys/{key_id}": KeyUpdate,
    "/api/v1/api-keys/{key_id}/rotate": KeyRotation,
    "/api/v1/account": AccountUpdate,
}
_MAY_BE_EMPTY = frozenset({"/api/v1/api-keys/{key_id}/rotate"})
_FORMS: dict[str, dict[str, Any]] = {"/api/v1/files": FORM}
# What FastAPI says of an answer without a model.
_ANY_JSON: dict[str, Any] = {"application/json": {"schema": {}}}
_REFERENCE = "#/components/schemas/{model}"
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "A request that is repeated with the same key within 24 hours is done once",
    "schema": {"type": "string", "minLength": 1, "maxLength": LONGEST_KEY, "pattern": "^[!-~]([ -~]*[!-~])?$"},
}
_ACCOUNT = {
    "name": ACCOUNT_HEADER,
    "in": "header",
    "description": "For administrators: the id of the account whose rows the request reads, instead of the key's own",
    "schema": {"type": "string", "pattern": "^acct_[0-9a-f]{32}$"},
}
_LAST_EVENT_ID = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "The id of the last event that the reader has: the stream continues after it",
    "schema": {"type": "string"},
}
_ERRORS = {
    "400": "The request is not valid; `param` names the field",
    "401": "The API key is missing or not valid",
    "403": "The key lacks a permission",
    "404": "The account has nothing with this id",
    "409": "The resource's state does not allow it, or its Idempotency-Key came with another request",
    "413": "The body is too large",
    "429": "Too many requests; `Retry-After` tells when to try again",
    "500": "An error of the server; its log has the `x-request-id`",
    "503": "Postgres is unavailable; `Retry-After` tells when to try again",
}
# Paths at the root that need a key, as all below `/api` do.
_WITH_KEY = ("/metrics",)
# Paths of requests whose answer a provider makes.
_CALLING = ("/api/v1/chat", "/api/v1/responses")
_UPSTREAM_ERRORS = {
    "499": "The job was cancelled",
    "502": "The model's provider failed",
    "504": "The model's provider, or the job, took too long; or the server cannot tell whether the request runs",
}
# The errors that only requests that change something have.
_OUTCOME_UNKNOWN = {"504": "The server cannot tell whether the request took effect"}


class ErrorObject(BaseModel):
    """An error in OpenAI's shape."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every error answer."""

    error: ErrorObject


def describe(app: FastAPI) -> None:
    """Complete the application's OpenAPI document. It is built once, at the first request for it."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    names = _add_schemas(schemas)
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation["responses"].pop("422", None)
            _describe_answers(operation)
            if path.startswith("/api/") or path in _WITH_KEY:
                _describe_errors(operation, path, method)
            if path.startswith("/api/"):
                _describe_headers(operation, path, method)
                if method == "post":
                    operation["requestBody"] = _body(path, names)
    return document


def _add_schemas(schemas: dict[str, Any]) -> dict[type[BaseModel], str]:
    """Add the schemas of bodies and errors, and return their names.

    Where a model's schema for input differs from its schema for output, the name for input ends in `Input`.
    """
    bodies: list[type[BaseModel]] = [*_BODIES.values(), ErrorResponse]
    models: list[tuple[type[BaseModel], Literal["validation"]]] = [(body, "validation") for body in bodies]
    _, document = models_json_schema(models, ref_template=_REFERENCE)
    definitions = document["$defs"]
    renamed = {name for name, schema in definitions.items() if schemas.get(name, schema) != schema}
    text = orjson.dumps(definitions).decode()
    for name in renamed:
        text = text.replace(f'"{_REFERENCE.format(model=name)}"', f'"{_REFERENCE.format(model=name)}Input"')
    for name, schema in orjson.loads(text).items():
        schemas[f"{name}Input" if name in renamed else name] = schema
    return {model: model.__name__ + "Input" * (model.__name__ in renamed) for model, _ in models}


def _body(path: str, names: dict[type[BaseModel], str]) -> dict[str, Any]:
    if path in _FORMS:
        return {"required": True, "content": {"multipart/form-data": {"schema": _FORMS[path]}}}
    if path not in _BODIES:
        return {
            "required": False,
            "description": "Not needed, and not read",
            "content": {"application/json": {"schema": {"type": "object"}}},
        }
    schema = {"$ref": _REFERENCE.format(model=names[_BODIES[path]])}
    return {"required": path not in _MAY_BE_EMPTY, "content": {"application/json": {"schema": schema}}}


def _describe_headers(operation: dict[str, Any], path: str, method: str) -> None:
    if method == "post":
        operation.setdefault("parameters", []).append(_IDEMPOTENCY_KEY)
    if method == "get":
        operation.setdefault("parameters", []).append(_ACCOUNT)
    if path.endswith("/events"):
        operation["parameters"].append(_LAST_EVENT_ID)


def _describe_answers(operation: dict[str, Any]) -> None:
    """Remove the JSON that FastAPI adds to answers of another type, and describe text as a string."""
    for answer in operation["responses"].values():
        content = answer.get("content", {})
        if len(content) > 1 and content.get("application/json") == {"schema": {}}:
            del content["application/json"]
        for kind, about in content.items():
            if kind not in {"application/json", "text/event-stream"}:  # an event is more than its data, which is JSON
                about.setdefault("schema", {"type": "string"})


def _describe_errors(operation: dict[str, Any], path: str, method: str) -> None:
    operation["security"] = [{"bearer": []}, {"apiKey": []}]
    error = {"application/json": {"schema": {"$ref": _REFERENCE.format(model=ErrorResponse.__name__)}}}
    errors = _ERRORS | ({} if method == "get" else _OUTCOME_UNKNOWN)
    if path.startswith(_CALLING):
        errors |= _UPSTREAM_ERRORS
    for status, description in errors.items():
        known = operation["responses"].get(status, {})
        if known.get("content", _ANY_JSON) == _ANY_JSON:
            operation["responses"][status] = {"description": description, "content": error}
