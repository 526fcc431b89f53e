"""Receives one multipart upload: the file goes to disk piece by piece, hashed on the way, never more than the limit.

FastAPI's own form parsing would spool the whole body before any of our code runs. Fields come before the file in every
client of the API, so the purpose is checked before a byte is stored. What is over the limit is drained, up to a bound.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from api.drain import drain
from jobs.errors import InvalidRequest, TooLarge, UnsupportedMedia
from jobs.services.files import Upload, check_purpose

_MAX_FIELD_BYTES = 1024
_FORM_OVERHEAD = 64 * 1024
_FIELDS = ("purpose", "file")


@asynccontextmanager
async def receive_upload(request: Request, *, max_bytes: int, folder: Path) -> AsyncIterator[Upload]:
    """The upload of a request; its file is gone after the block.

    Raises:
        TooLarge, UnsupportedMedia, InvalidRequest: also for a purpose no file can have.
    """
    boundary = _boundary(request)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes + _FORM_OVERHEAD:
        if "expect" not in request.headers:  # else the client waits for our word before it sends
            await drain(request.scope, request.receive, 2 * max_bytes)
        raise _too_large(max_bytes)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="upload-") as target:
        form = _Form(boundary, target, max_bytes)
        try:
            async for chunk in request.stream():
                await run_in_threadpool(form.feed, chunk)
        except TooLarge:
            await drain(request.scope, request.receive, 2 * max_bytes)
            raise
        yield await run_in_threadpool(form.finish)


def _boundary(request: Request) -> bytes:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise UnsupportedMedia(f"Content-Encoding {encoding} is not accepted: send the file as it is.")
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise UnsupportedMedia("Send the file as multipart/form-data, fields purpose and file.")
    return options[b"boundary"]


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"The file is larger than the limit of {max_bytes} bytes.", "file", "file_too_large")


class _Form:
    """Parser callbacks: small fields are kept, the file is written to `target`."""

    def __init__(self, boundary: bytes, target: IO[bytes], max_bytes: int) -> None:
        self._target, self._max_bytes = target, max_bytes
        self._digest = hashlib.sha256()
        self._bytes = 0
        self._filename: str | None = None
        self._fields: dict[str, bytes] = {}
        self._ended = False
        self._header_name = self._header_value = b""
        self._name = ""
        callbacks = ("part_begin", "part_data", "header_field", "header_end", "headers_finished", "end")
        methods = {f"on_{name}": getattr(self, f"_{name}") for name in callbacks}
        methods["on_header_value"] = self._on_header_value
        try:
            self._parser = MultipartParser(boundary, methods)  # type: ignore[arg-type]  # a TypedDict
        except FormParserError as error:
            raise InvalidRequest(f"Malformed multipart body: {error}.") from error

    def feed(self, chunk: bytes) -> None:
        """Take the next piece of the body."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise InvalidRequest(f"Malformed multipart body: {error}.") from error

    def finish(self) -> Upload:
        """The body is over."""
        if not self._ended:
            raise InvalidRequest("Malformed multipart body: it ends early.")
        purpose = self._purpose()
        if self._filename is None:
            raise InvalidRequest("file is required.", "file", "missing_required_parameter")
        self._target.flush()
        path = Path(self._target.name)
        return Upload(path, self._filename, purpose, self._bytes, self._digest.hexdigest())

    def _purpose(self) -> str:
        return check_purpose(self._fields.get("purpose", b"").decode("utf-8", "replace"))

    def _part_begin(self) -> None:
        self._name = ""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._begin_field(parse_options_header(self._header_value.decode("latin-1"))[1])
        self._header_name = self._header_value = b""

    def _begin_field(self, options: dict[bytes, bytes]) -> None:
        name = options.get(b"name", b"").decode("utf-8", "replace")
        known = name in _FIELDS
        if not known:
            code = "unsupported_parameter" if name.startswith("expires_after") else "unknown_parameter"
            why = "is not supported yet" if code == "unsupported_parameter" else "is not a parameter"
            raise InvalidRequest(f"{name}: {why}.", name or None, code)
        if name in self._fields or (name == "file" and self._filename is not None):
            raise InvalidRequest(f"{name} is given twice.", name)
        if name == "file":
            if "purpose" in self._fields:
                self._purpose()
            self._filename = options.get(b"filename", b"file").decode("utf-8", "replace")
        else:
            self._fields[name] = b""
        self._name = name

    def _headers_finished(self) -> None:
        if not self._name:
            raise InvalidRequest("Malformed multipart body: a part has no name.")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        if self._name != "file":
            self._fields[self._name] += piece
            if len(self._fields[self._name]) > _MAX_FIELD_BYTES:
                raise InvalidRequest(f"{self._name} is too long.", self._name)
            return
        self._bytes += len(piece)
        if self._bytes > self._max_bytes:
            raise _too_large(self._max_bytes)
        self._digest.update(piece)
        self._target.write(piece)

    def _end(self) -> None:
        self._ended = True
