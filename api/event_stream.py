"""One listener's stream of server-sent events, as a response.

It writes to the connection itself what `api.feeds` has written as bytes. FastAPI's own streams would make an object of
every message for every listener and pass it through three queues, which costs more than all else a listener does.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager
from typing import Any

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.feeds import Feed

_FIELDS = {name: {"type": "string"} for name in ("data", "event", "id")} | {"retry": {"type": "integer", "minimum": 0}}
_DONE = format_sse_event(data_str="[DONE]")
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"itemSchema": {"type": "object", "properties": _FIELDS}}}}
}
"""How such a response is documented."""
_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}
"""The last one is for nginx. The type is not the class's `media_type`, of which FastAPI would document a schema."""


class EventStream(StreamingResponse):
    """Everything behind a place, as it comes; `[DONE]` ends it when the job is over or deleted.

    A comment is sent after each `silence_s` seconds of silence. When the server stops it ends without `[DONE]`.
    """

    def __init__(self, listening: AbstractContextManager[Feed], place: int, silence_s: float = 15.0) -> None:
        super().__init__((), headers=_HEADERS)
        self._listening, self._place, self._silence_s = listening, place, silence_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        tasks = [asyncio.ensure_future(part) for part in (self._tell(send), _gone(receive))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in done:
            task.result()

    async def _tell(self, send: Send) -> None:
        with self._listening as feed:
            page = await feed.page(self._place)
            while True:
                for chunk in page.chunks:
                    await _write(send, chunk)
                if page.over:
                    await _write(send, _DONE)
                    break
                if feed.is_behind(page):
                    page = await feed.page(page.place)
                    continue
                with feed.waiting(page) as coming:
                    while not (await asyncio.wait({coming}, timeout=self._silence_s))[0]:
                        await _write(send, KEEPALIVE_COMMENT)
                    told = coming.result()
                if told is None:
                    break
                page = told
        await send({"type": "http.response.body", "body": b""})


async def _write(send: Send, text: bytes) -> None:
    await send({"type": "http.response.body", "body": text, "more_body": True})


async def _gone(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
