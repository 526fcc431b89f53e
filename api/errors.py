"""Every error as `{"error": {"message", "type", "param", "code"}}`, whoever raised it."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from bgpo.errors import InvalidInput
from jobs.errors import ServiceError
from jobs.wire.base import explain

_CODES = {404: "not_found", 405: "method_not_allowed", 408: "request_timeout", 413: "request_too_large"}


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str = Field(description="For people: what is wrong and what to change.")
    type: str = Field(
        description="`invalid_request_error`, `server_error` from status 500 on; of 429 what is exceeded: "
        "`insufficient_quota`, `requests` or `tokens`."
    )
    param: str | None = Field(description="Dotted path of the offending parameter.")
    code: str | None = Field(description="For programs: stable.")


class ErrorEnvelope(BaseModel):
    """The body of every response with a status from 400 on."""

    error: ErrorBody


RESPONSES: dict[int | str, dict[str, Any]] = {"default": {"model": ErrorEnvelope, "description": "An error."}}
"""For all routers: with a default FastAPI documents no 422, which this service never sends. `api.openapi` puts what an
operation can really end with in its place."""


def envelope(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
    type: str | None = None,
) -> JSONResponse:
    """An error response."""
    body = error_body(status, message, param=param, code=code, type=type)
    return JSONResponse(body, status, headers=dict(headers or {}))


def error_body(
    status: int, message: str, *, param: str | None = None, code: str | None = None, type: str | None = None
) -> dict[str, Any]:
    """An `ErrorEnvelope` as JSON has it; `type` follows from the status unless given."""
    kind = type or ("server_error" if status >= 500 else "invalid_request_error")
    # Texts of the client come back in messages, also such as no UTF-8 can hold.
    texts = {"message": message, "param": param, "code": code}
    shown = {name: text and text.encode(errors="replace").decode() for name, text in texts.items()}
    return {"error": {"message": shown["message"], "type": kind, "param": shown["param"], "code": shown["code"]}}


def envelope_of(error: ServiceError) -> JSONResponse:
    """The response a request ends with because of `error`."""
    return envelope(
        error.status, error.message, param=error.param, code=error.code, headers=error.headers, type=error.type
    )


def install(app: FastAPI) -> None:
    """Register the handlers; `api.middleware` answers for exceptions nobody planned."""

    @app.exception_handler(ServiceError)
    def service_error(request: Request, error: ServiceError) -> JSONResponse:
        return envelope_of(error)

    @app.exception_handler(InvalidInput)
    def invalid_input(request: Request, error: InvalidInput) -> JSONResponse:
        return envelope(400, error.message, param=error.param, code=error.code)

    @app.exception_handler(RequestValidationError)
    def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where, *loc = first["loc"]
        if first["type"] == "json_invalid":
            return envelope(400, f"The body is not valid JSON: {first['ctx']['error']}.", code="invalid_json")
        body = error.body if where == "body" else {}
        message, param, code = explain({**first, "loc": tuple(loc)}, body)
        return envelope(400, message, param=param, code=code)

    @app.exception_handler(HTTPException)
    def http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = error.detail
        if message == HTTPStatus(error.status_code).phrase:
            message = f"{message}: {request.method} {request.url.path}"
        code = _CODES.get(error.status_code)
        headers = {name.lower(): value for name, value in (error.headers or {}).items()}
        if error.status_code == 405:  # Starlette names the methods of one of the path's routes
            headers["allow"] = ", ".join(sorted(_methods(app, request.url.path)))
        return envelope(error.status_code, message, code=code, headers=headers)


def _methods(app: FastAPI, path: str) -> set[str]:
    """Of the first template that the path has, as requests find their route."""
    found: dict[str | None, set[str]] = {}
    for context in iter_route_contexts(app.routes):
        if context.path_regex.match(path):
            found.setdefault(context.path, set()).update(context.methods or ())
    return next(iter(found.values()), set())
