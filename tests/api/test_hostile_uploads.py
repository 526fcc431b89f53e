"""Hostile uploads: names, parts that are slow, cut off, malformed or nobody's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.api.hostile import IMPATIENT, error_of
from tests.api.wire import Wire

UPLOADS = "/v1/uploads"
BOUNDARY = "multipart/form-data; boundary=b"
DATA = b'--b\r\ncontent-disposition: form-data; name="data"; filename="upload"\r\n\r\n'
JSON = {"content-type": "application/json"}


class TestUploads:
    """Big files in parts: names, slow parts, parts that are cut off."""

    def make(self, service: Any, **changes: Any) -> Any:
        announced = {"bytes": 6, "filename": "x.txt", "mime_type": "text/plain", "purpose": "batch"} | changes
        with service.http() as http:
            return http.post(UPLOADS, content=json.dumps(announced).encode(), headers=JSON)

    def add(self, service: Any, upload_id: str, body: bytes) -> Any:
        with service.http() as http:
            return http.post(f"{UPLOADS}/{upload_id}/parts", content=body, headers={"content-type": BOUNDARY})

    @pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a\r\nset-cookie: x=1", "\x1b[31m", 'a"; b="'])
    def test_a_name_is_only_a_name(self, hostile: Any, name: str) -> None:
        upload = self.make(hostile, filename=name).json()
        assert upload["filename"] == name
        part = self.add(hostile, upload["id"], DATA + b"abcdef\r\n--b--\r\n").json()["id"]
        with hostile.http() as http:
            done = http.post(f"{UPLOADS}/{upload['id']}/complete", json={"part_ids": [part]}).json()
            response = http.get(f"/v1/files/{done['file']['id']}/content")
        assert response.content == b"abcdef"
        assert "set-cookie" not in response.headers
        plain = response.headers["content-disposition"].partition('filename="')[2].partition('"')[0]
        assert not set(plain) & set('/\\"%;')
        assert not [path for path in Path(hostile.ctx.settings.home).rglob("*") if "passwd" in path.name]

    @pytest.mark.parametrize(
        "changes",
        [
            {"bytes": 2**63},
            {"bytes": 10**400},
            {"bytes": 0},
            {"bytes": 1.5},
            {"filename": "a\x00"},
            {"purpose": "\ud800"},
        ],
    )
    def test_what_no_upload_can_be(self, hostile: Any, changes: dict[str, Any]) -> None:
        error_of(self.make(hostile, **changes), 400)

    @IMPATIENT
    def test_a_part_that_never_comes(self, hostile: Any) -> None:
        upload_id = self.make(hostile).json()["id"]
        with Wire(hostile.url) as wire:
            wire.head(f"POST {UPLOADS}/{upload_id}/parts HTTP/1.1", f"content-type: {BOUNDARY}", "content-length: 1000")
            wire.send(DATA + b"ab")
            status, _, body = wire.answer()
            assert (status, body["error"]["code"]) == (408, "request_timeout")
            assert wire.closed()

    def test_a_part_that_is_half_closed(self, hostile: Any) -> None:
        upload_id = self.make(hostile).json()["id"]
        with Wire(hostile.url) as wire:
            wire.head(f"POST {UPLOADS}/{upload_id}/parts HTTP/1.1", f"content-type: {BOUNDARY}", "content-length: 1000")
            wire.send(DATA + b"ab")
            wire.half_close()
            assert wire.closed()
        part = self.add(hostile, upload_id, DATA + b"abcdef\r\n--b--\r\n").json()["id"]
        with hostile.http() as http:
            done = http.post(f"{UPLOADS}/{upload_id}/complete", json={"part_ids": [part]})
        assert done.json()["status"] == "completed"

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"--b--\r\n",
            b"x" * 100_000,
            DATA + b"abc",
            DATA + b"abc\r\n" + DATA + b"abc\r\n--b--\r\n",
            DATA.replace(b'"data"', b'"file"') + b"abc\r\n--b--\r\n",
            b"--b\r\n" + b"x-h: 1\r\n" * 10_000 + b"\r\n\r\n--b--\r\n",
        ],
    )
    def test_a_malformed_part(self, hostile: Any, body: bytes) -> None:
        upload_id = self.make(hostile).json()["id"]
        assert len(error_of(self.add(hostile, upload_id, body), 400)["message"]) < 500

    def test_a_part_of_nothing_that_is_refused_early(self, hostile: Any) -> None:
        """The upload is looked up before the body is read; its sender still gets the answer."""
        assert error_of(self.add(hostile, "upload_none", DATA + b"x" * 1_000_000), 404)["code"] == "not_found"
