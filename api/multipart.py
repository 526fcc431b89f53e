"""Receives one multipart form with a file: the file goes to disk piece by piece, hashed on the way, within a limit.

FastAPI's own form parsing would spool the whole body before any of our code runs. Fields come before the file in every
client of the API, so they are looked at before a byte is stored. What is over the limit is drained, up to a bound.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from api.drain import drain
from jobs.errors import InvalidRequest, TooLarge, UnsupportedMedia

_MAX_FIELD_BYTES = 1024
_FORM_OVERHEAD = 64 * 1024


@dataclass(frozen=True)
class Layout:
    """What a form has."""

    file: str
    """Field of the file."""
    fields: tuple[str, ...]
    """The others."""
    max_bytes: int
    """Of the file."""
    check: Callable[[Mapping[str, str], bool], object] = lambda fields, all_there: None
    """Called with the fields that came before the file, and again when all are there, to refuse them."""

    def too_large(self) -> TooLarge:
        """The file has more bytes than it may."""
        return TooLarge(f"{self.file} is larger than the limit of {self.max_bytes} bytes.", self.file, "file_too_large")


@dataclass(frozen=True)
class Form:
    """A received form."""

    path: Path
    filename: str
    bytes: int
    sha256: str
    fields: Mapping[str, str]


@asynccontextmanager
async def receive_form(request: Request, layout: Layout, folder: Path) -> AsyncIterator[Form]:
    """The form of a request; its file is gone after the block.

    Raises:
        TooLarge, UnsupportedMedia, InvalidRequest: also what `layout.check` raises.
    """
    boundary = _boundary(request, layout)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > layout.max_bytes + _FORM_OVERHEAD:
        await drain_refused(request, layout.max_bytes)
        raise layout.too_large()
    with tempfile.NamedTemporaryFile(dir=folder, prefix="upload-") as target:
        form = _Parser(boundary, target, layout)
        more = True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            more = message.get("more_body", False)
            try:
                await run_in_threadpool(form.feed, message.get("body", b""))
            except TooLarge:
                await drain(request.scope, request.receive, 2 * layout.max_bytes)
                raise
        yield await run_in_threadpool(form.finish)


async def drain_refused(request: Request, max_bytes: int) -> None:
    """Read a body nobody wants, so that its sender gets to the answer; unless it waits for our word before it sends."""
    if "expect" not in request.headers:
        await drain(request.scope, request.receive, 2 * max_bytes)


def _boundary(request: Request, layout: Layout) -> bytes:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise UnsupportedMedia(f"Content-Encoding {encoding} is not accepted: send the file as it is.")
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        names = ", ".join((*layout.fields, layout.file))
        raise UnsupportedMedia(f"Send the file as multipart/form-data, with {names}.")
    return options[b"boundary"]


class _Parser:
    """Parser callbacks: small fields are kept, the file is written to `target`."""

    def __init__(self, boundary: bytes, target: IO[bytes], layout: Layout) -> None:
        self._target, self._layout = target, layout
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

    def finish(self) -> Form:
        """The body is over."""
        if not self._ended:
            raise InvalidRequest("Malformed multipart body: it ends early.")
        fields = self._texts()
        self._layout.check(fields, True)
        if self._filename is None:
            name = self._layout.file
            raise InvalidRequest(f"{name} is required.", name, "missing_required_parameter")
        self._target.flush()
        return Form(Path(self._target.name), self._filename, self._bytes, self._digest.hexdigest(), fields)

    def _texts(self) -> dict[str, str]:
        return {name: value.decode("utf-8", "replace") for name, value in self._fields.items()}

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
        if name not in (self._layout.file, *self._layout.fields):
            raise InvalidRequest(f"{name}: is not a parameter.", name or None, "unknown_parameter")
        if name in self._fields or (name == self._layout.file and self._filename is not None):
            raise InvalidRequest(f"{name} is given twice.", name)
        if name == self._layout.file:
            self._layout.check(self._texts(), False)
            self._filename = options.get(b"filename", b"file").decode("utf-8", "replace")
        else:
            self._fields[name] = b""
        self._name = name

    def _headers_finished(self) -> None:
        if not self._name:
            raise InvalidRequest("Malformed multipart body: a part has no name.")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        if self._name != self._layout.file:
            self._fields[self._name] += piece
            if len(self._fields[self._name]) > _MAX_FIELD_BYTES:
                raise InvalidRequest(f"{self._name} is too long.", self._name)
            return
        self._bytes += len(piece)
        if self._bytes > self._layout.max_bytes:
            raise self._layout.too_large()
        self._digest.update(piece)
        self._target.write(piece)

    def _end(self) -> None:
        self._ended = True
