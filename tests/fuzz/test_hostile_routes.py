"""Hostile input for every route of the OpenAPI description, so that a new one is in here by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from api.main import create_app
from api.middleware import MAX_BODY_BYTES
from api.openapi import METHODS
from jobs.settings import Settings
from tests.api.hostile import error_of

pytestmark = pytest.mark.fuzz
JSON = {"content-type": "application/json"}
BODIES = [
    (b"{", "invalid_json"),
    (b"\xff\xfe{}", "invalid_json"),
    (b'{"a": "\xc3\x28"}', "invalid_json"),
    (b'{"a": 1, "a": 2}', "duplicate_key"),
    (b'{"a": NaN}', "invalid_json"),
    (b'{"a": -Infinity}', "invalid_json"),
    (b'{"a": 1e999}', "invalid_json"),
    (b'{"a": ' + b"9" * 100_000 + b"}", "invalid_json"),
    (b'{"a": "b\nc"}', "invalid_json"),
    (b"[" * 100_000, "invalid_json"),
    (b'{"a":' * 200 + b"1" + b"}" * 200, "invalid_json"),
]
CLIMBING = [
    "../../etc/passwd",
    "..",
    "a\x00",
    "a\r\nset-cookie: x=1",
    "\x1b[31m",
    "\u202e",
    "a" * 5000,
    "%2e%2e",
    "'--",
    " ",
]
VALUES = ["\x00", "a\x00b", "\r\nset-cookie: x=1", "9" * 5000, "-1", "1e400", "NaN", "../..", "a" * 5000, "", "%"]


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in create_app(Settings()).openapi()["paths"].items():
        for method in METHODS:
            if method in item and path.startswith("/v1/"):
                yield method.upper(), path, item[method]


OPERATIONS = list(operations())
WITH_JSON = [
    (method, path)
    for method, path, operation in OPERATIONS
    if "application/json" in operation.get("requestBody", {}).get("content", {})
]


def filled(path: str, value: str) -> str:
    return re.sub(r"\{\w+\}", quote(value, safe=""), path)


class TestBodies:
    """Of every route that takes JSON."""

    @pytest.mark.parametrize(("body", "code"), BODIES, ids=range(len(BODIES)))
    def test_what_is_no_json_or_a_trap(self, hostile: Any, body: bytes, code: str) -> None:
        assert len(WITH_JSON) > 20
        with hostile.http() as http:
            for method, path in WITH_JSON:
                response = http.request(method, filled(path, "x"), content=body, headers=JSON)
                assert error_of(response, 400)["code"] == code, (method, path)

    def test_too_much(self, hostile: Any) -> None:
        with hostile.http() as http:
            for method, path in WITH_JSON:
                body = b"[" * (MAX_BODY_BYTES + 1)
                response = http.request(method, filled(path, "x"), content=body, headers=JSON)
                assert error_of(response, 413)["code"] == "request_too_large", (method, path)

    @pytest.mark.parametrize("value", [2**63, 10**400, "a\x00b", "\ud800", [], {}, None, -1.5, "../../x", "\x1b[31m"])
    def test_fields_of_another_kind(self, hostile: Any, value: object) -> None:
        """Each field by itself in a body that is right otherwise, as far as the example is."""
        examples = {
            (method, path): operation["requestBody"]
            for method, path, operation in OPERATIONS
            if (method, path) in WITH_JSON
        }
        with hostile.http() as http:
            for (method, path), shown in examples.items():
                example = shown["content"]["application/json"]["example"]
                for name in example:
                    body = json.dumps(example | {name: value}).encode()
                    response = http.request(method, filled(path, "x"), content=body, headers=JSON)
                    assert response.status_code in (200, 400, 403, 404, 429) or (
                        path == "/v1/chat/completions" and response.json()["error"]["code"] == "no_capacity"
                    ), (method, path, name, response.text)


class TestPaths:
    """Of every route with something in its path, or in its query."""

    @pytest.mark.parametrize("value", CLIMBING, ids=range(len(CLIMBING)))
    def test_find_nothing(self, hostile: Any, value: str) -> None:
        with hostile.http() as http:
            for method, path, operation in OPERATIONS:
                if "{" not in path:
                    continue
                content = operation.get("requestBody", {}).get("content", {})
                example = content.get("application/json", {}).get("example")
                options = {} if example is None else {"json": example}
                response = http.request(method, filled(path, value), **options)
                assert "set-cookie" not in response.headers
                error = error_of(response, response.status_code)
                assert response.status_code in (400, 404, 405, 415), (method, path, error)

    @pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
    def test_queries(self, hostile: Any, value: str) -> None:
        asked = 0
        with hostile.http() as http:
            for method, path, operation in OPERATIONS:
                names = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"]
                if method != "GET":
                    continue
                for name in names:
                    response = http.get(filled(path, "x"), params={name: value})
                    assert response.status_code in (200, 400, 404), (path, name, response.text)
                    assert "set-cookie" not in response.headers
                    asked += 1
        assert asked > 30
