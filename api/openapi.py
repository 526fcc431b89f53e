"""The OpenAPI description: FastAPI's, with every status each operation can answer, examples and links.

FastAPI knows what a route function declares. The rest follows from what an operation is (below /v1, with a body, with
an id in its path, a download), so it is added here by rule, and a new route has it by itself. What a rule cannot know
stands in `api.examples`: statuses of single operations, examples, and which id of an answer goes where (links).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.errors import ErrorEnvelope, error_body
from api.examples import ERRORS, EXAMPLES, LINKS, TAGS

METHODS = ("get", "post", "put", "patch", "delete")
_ENVELOPE = {"$ref": "#/components/schemas/ErrorEnvelope"}
_ALWAYS = (400, 401, 403, 429, 500, 503)
_WITH_BODY = (408, 413, 415)
_RANGES = ("/v1/files/{file_id}/content", "/v1/fine_tuning/checkpoints/{checkpoint_id}/files/{path}")
_TARS = ("/v1/fine_tuning/checkpoints/{checkpoint_id}/content",)
_WAITING = ("/v1/chat/completions",)
"""Answers that may take too long."""
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_TEXT = {"text/plain": {"schema": {"type": "string"}}}
_RETRY_AFTER = {"Retry-After": {"schema": {"type": "string"}, "description": "Seconds to wait."}}


def describe(app: FastAPI, description: str) -> dict[str, Any]:
    """The whole document."""
    found = get_openapi(
        title=app.title,
        version=app.version,
        description=description,
        routes=app.routes,
        tags=[{"name": name, "description": text} for name, text in TAGS.items()],
    )
    schema = ErrorEnvelope.model_json_schema(ref_template="#/components/schemas/{model}")
    found["components"]["schemas"] |= {**schema.pop("$defs"), "ErrorEnvelope": schema}
    found["components"]["responses"] = {f"Error{status}": _response(status) for status in ERRORS}
    operations = {
        (method, path): item[method] for path, item in found["paths"].items() for method in METHODS if method in item
    }
    for (method, path), operation in operations.items():
        _complete(method, path, operation)
    ids = {key: operation["operationId"] for key, operation in operations.items()}
    for (method, path), links in LINKS.items():
        responses = operations[method, path]["responses"]
        responses["200"]["links"] = {
            name: {"operationId": ids[link.method, link.path], "parameters": link.parameters}
            for name, link in links.items()
        }
    return found


def statuses(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[int]:
    """The errors an operation can end with."""
    if not path.startswith("/v1/"):
        return
    yield from _ALWAYS
    if "requestBody" in operation:
        yield from _WITH_BODY
    if "{" in path or "requestBody" in operation:
        yield 404  # also what a body names
    if any(parameter["name"] == "idempotency-key" for parameter in operation.get("parameters", ())):
        yield 409
    if path in _RANGES:
        yield 416
    if path in _WAITING:
        yield 504


def _complete(method: str, path: str, operation: dict[str, Any]) -> None:
    own = operation["responses"]
    responses: dict[str, Any] = {status: answer for status, answer in own.items() if status not in ("default", "422")}
    if path in _RANGES:
        base64 = any(parameter["name"] == "encoding" for parameter in operation["parameters"])
        responses["200"]["content"] = _BYTES | (_TEXT if base64 else {})
        responses["206"] = {"description": "The range asked for.", "content": _BYTES}
    if path in (*_RANGES, *_TARS):
        responses["304"] = {"description": "The client has it already (`If-None-Match`)."}
    if path in _TARS:
        responses["200"]["content"] = {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}}
    for status in statuses(method, path, operation):
        responses.setdefault(str(status), {"$ref": f"#/components/responses/Error{status}"})
    operation["responses"] = dict(sorted(responses.items()))
    example = EXAMPLES.get(f"{method.upper()} {path}", {})
    for kind, content in (("request", operation.get("requestBody")), ("response", responses.get("200"))):
        if kind in example and content is not None:
            content["content"]["application/json"]["example"] = example[kind]


def _response(status: int) -> dict[str, Any]:
    text, code, message = ERRORS[status]
    media: dict[str, Any] = {"schema": _ENVELOPE, "example": error_body(status, message, code=code)}
    answer = {"description": text, "content": {"application/json": media}}
    return answer | ({"headers": _RETRY_AFTER} if status in (429, 503) else {})
