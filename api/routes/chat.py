"""/v1/chat/completions: one answer, whole or as a stream of finished blocks.

The status of a stream is only sent once there is something to stream, so that what is wrong with a request is said by
its status; one that waits for long begins without, and its errors then come as events.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from api.completions import News, Waiters, Watch
from api.deps import Ctx, Infers
from api.errors import RESPONSES
from api.json_body import JsonRoute
from api.rates import charge_tokens
from api.schemas.chat import ChatCompletion, Chunks, chat_completion, event
from jobs.context import Context
from jobs.errors import ServiceError, TimedOut
from jobs.services import completions
from jobs.wire.chat import ChatRequest

_SLACK_S = 5.0  # a generator ends what is too late; without one, we do
_FIRST_S = 10.0
_HEARTBEAT_S = 15.0
_DESCRIBED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
}

router = APIRouter(prefix="/v1/chat/completions", tags=["Chat"], responses=RESPONSES, route_class=JsonRoute)


@router.post("", response_model=ChatCompletion, responses=_DESCRIBED)
async def create_chat_completion(body: ChatRequest, request: Request, ctx: Ctx, project: Infers) -> Response:
    """Answer a conversation with a base model, a tuned model or a checkpoint.

    With `stream` the answer comes as OpenAI's chunks, one for each finished block of tokens. `diffusion` says how it is
    decoded. A caller that disconnects cancels its request.

    Where tokens a minute are limited, a request counts with its longest answer and a quarter of its prompt's bytes, and
    the answer has the `x-ratelimit-*-tokens` headers.
    """
    await charge_tokens(request, completions.most_tokens(body))
    completion = await run_in_threadpool(completions.create, ctx, project, body)
    waiters: Waiters = request.app.state.waiters
    exchange = _Exchange(ctx, waiters, waiters.watch(completion), request)
    if not body.stream:
        return await exchange.whole()
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    return await exchange.stream(Chunks(completion, include_usage=usage))


class _Exchange:
    """One request while it waits."""

    def __init__(self, ctx: Context, waiters: Waiters, watch: Watch, request: Request) -> None:
        self._ctx, self._waiters, self._watch = ctx, waiters, watch
        self._until = time.monotonic() + ctx.settings.completion_timeout_s + _SLACK_S
        self._gone = asyncio.create_task(_disconnected(request))
        self._next: asyncio.Task[News] | None = None
        self._over = False

    async def whole(self) -> Response:
        """The answer in one piece."""
        blocks: list[str] = []
        async with self._open():
            while True:
                news = await self.news()
                assert news is not None
                blocks += news.blocks
                if news.error is not None:
                    raise news.error
                if news.end is not None:
                    return JSONResponse(chat_completion(news.end, "".join(blocks)).model_dump(mode="json"))

    async def stream(self, chunks: Chunks) -> Response:
        """The answer as it comes; raises what is known to be wrong before anything was sent."""
        async with self._open(keep=True):
            first = await self.news(_FIRST_S)
            if first is not None and first.error is not None:
                raise first.error
        return _ChunkResponse(self, chunks, first)

    async def pieces(self, chunks: Chunks, first: News | None) -> AsyncIterator[bytes]:
        """The bytes of the stream."""
        async with self._open():
            news = first or News()
            while True:
                for block in news.blocks:
                    yield chunks.text(block)
                if news.error is not None:
                    yield _error_event(news.error)
                    return
                if news.end is not None:
                    yield chunks.end(news.end)
                    return
                try:
                    while (found := await self.news(_HEARTBEAT_S)) is None:
                        yield b": waiting\n\n"
                except TimedOut as error:
                    yield _error_event(error)
                    return
                news = found

    async def news(self, timeout_s: float | None = None) -> News | None:
        """What is next; None when nothing is within the time.

        Raises:
            ClientDisconnect: nobody waits any more.
            TimedOut: the request's time is over.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._watch.news.get())
        left = self._until - time.monotonic()
        patience = left if timeout_s is None else min(left, timeout_s)
        await asyncio.wait({self._next, self._gone}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if self._next.done():
            news, self._next = self._next.result(), None
            self._over = news.is_last
            return news
        if self._gone.done():
            raise ClientDisconnect
        if time.monotonic() >= self._until:
            raise TimedOut("The answer took too long.")
        return None

    @asynccontextmanager
    async def _open(self, *, keep: bool = False) -> AsyncIterator[None]:
        """Whoever leaves the block early takes the completion out of the queue; `keep`: another block follows."""
        try:
            yield
        except BaseException:
            await self._close()
            raise
        if not keep:
            await self._close()

    async def _close(self) -> None:
        self._waiters.forget(self._watch)
        for task in (self._gone, self._next):
            if task is not None:
                task.cancel()
        if not self._over:
            with suppress(SQLAlchemyError):  # a generator ends it when its time is over
                # Shielded: the server may be cancelling us.
                await asyncio.shield(run_in_threadpool(completions.cancel, self._ctx, [self._watch.completion.id]))


class _ChunkResponse(Response):
    """Streams, and notices a caller that leaves while nothing is sent."""

    media_type = "text/event-stream"

    def __init__(self, exchange: _Exchange, chunks: Chunks, first: News | None) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._exchange, self._chunks, self._first = exchange, chunks, first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        pieces = self._exchange.pieces(self._chunks, self._first)
        try:
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError as error:
            raise ClientDisconnect from error
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]  # an async generator


async def _disconnected(request: Request) -> None:
    """Returns when the caller has left. The body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _error_event(error: ServiceError) -> bytes:
    kind = error.type or ("server_error" if error.status >= 500 else "invalid_request_error")
    return event({"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}})
