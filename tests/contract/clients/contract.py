"""What a check has: the client under test, sync or async behind one face, its requests, and steps of the service.

A check is one `async def` for both kinds of client: `got` awaits what the async one returns and passes on what the sync
one returns, `every` walks a page or a stream of either. Runs in the environment of the client, so it knows the standard
library and `openai` alone.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import openai

VERSION = tuple(int(part) for part in openai.__version__.split("."))
httpx: Any = importlib.import_module("httpx2" if VERSION >= (3,) else "httpx")
GRADER = {
    "type": "string_check", "name": "same", "operation": "eq",
    "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}",
}  # fmt: skip


def method(**changes: Any) -> dict[str, Any]:
    """A reinforcement block that is right."""
    block = {"grader": GRADER, "hyperparameters": {"max_steps": 20}} | changes
    return {"type": "reinforcement", "reinforcement": block}


def rows(count: int = 12, *, answered: bool = False) -> bytes:
    """A dataset."""
    answer = [{"role": "assistant", "content": "4"}] if answered else []
    row = {"messages": [{"role": "user", "content": "2 + 2"}, *answer], "answer": "4"}
    return b"".join(json.dumps({**row, "i": i}).encode() + b"\n" for i in range(count))


@dataclass
class Contract:
    """One check's view."""

    url: str
    asynchronous: bool
    ask: Callable[[str, dict[str, Any]], Any]
    requests: list[Any] = field(default_factory=list)
    _clients: list[Any] = field(default_factory=list)

    @property
    def client(self) -> Any:
        """The client without retries; the same one throughout a check."""
        return self._clients[0] if self._clients else self.new_client()

    def new_client(self, *, transport: Any = None, **options: Any) -> Any:
        """A client; `requests` has what it sends."""
        hooks = {"request": [self._noting() if self.asynchronous else self.requests.append]}
        kind = openai.DefaultAsyncHttpxClient if self.asynchronous else openai.DefaultHttpxClient
        http: Any = kind(event_hooks=hooks, trust_env=False, transport=transport)
        given = {"base_url": f"{self.url}/v1", "api_key": "any", "max_retries": 0, "http_client": http} | options
        client: Any = (openai.AsyncOpenAI if self.asynchronous else openai.OpenAI)(**given)
        self._clients.append(client)
        return client

    def _noting(self) -> Callable[[Any], Awaitable[None]]:
        async def note(request: Any) -> None:
            self.requests.append(request)

        return note

    async def close(self) -> None:
        """Close every client made."""
        for client in self._clients:
            await self.got(client.close())

    async def got(self, value: Any) -> Any:
        """The result of a call."""
        return await value if inspect.isawaitable(value) else value

    async def every(self, listing: Any) -> list[Any]:
        """All items of a list, over all its pages, or of a stream."""
        if not hasattr(listing, "__aiter__"):
            listing = await self.got(listing)
        return [item async for item in listing] if hasattr(listing, "__aiter__") else list(listing)

    @asynccontextmanager
    async def streaming(self, response: Any) -> Any:
        """Enter `with_streaming_response`."""
        if self.asynchronous:
            async with response as entered:
                yield entered
        else:
            with response as entered:
                yield entered

    def step(self, name: str, **arguments: Any) -> Any:
        """Let the service's side do something: a method of `tests.contract.steps.Steps`."""
        return self.ask(name, arguments)

    async def file(self, content: bytes | None = None, name: str = "train.jsonl") -> str:
        """The id of an uploaded dataset."""
        file = await self.got(self.client.files.create(file=(name, content or rows()), purpose="fine-tune"))
        return str(file.id)

    async def job(self, **changes: Any) -> Any:
        """A new job."""
        given = {"model": "tiny", "method": method()} | changes
        given["training_file"] = given.get("training_file") or await self.file()
        return await self.got(self.client.fine_tuning.jobs.create(**given))

    async def finished_job(self, **changes: Any) -> Any:
        """A job that has succeeded, with checkpoints at steps 10 and 20."""
        job = await self.job(**changes)
        self.step("claim", job=job.id)
        for step in (10, 20):
            self.step("checkpoint", job=job.id, step=step, final=step == 20)
        self.step("finish", job=job.id, state="succeeded")
        return await self.got(self.client.fine_tuning.jobs.retrieve(job.id))

    async def refused(self, kind: type[Exception], value: Callable[[], Any]) -> Any:
        """The error a call raises."""
        try:
            result = await self.got(value())
        except kind as error:
            return error
        raise AssertionError(f"{kind.__name__} was to be raised, and this came: {result!r}")

    def sent(self, ending: str, verb: str = "POST") -> list[Any]:
        """The requests to paths that end so."""
        return [request for request in self.requests if request.method == verb and request.url.path.endswith(ending)]


Check = Callable[[Contract], Awaitable[None]]


@dataclass(frozen=True)
class Entry:
    """A check with what it takes."""

    run: Check
    feature: str | None


CHECKS: dict[str, Entry] = {}


def check(*, feature: str | None = None) -> Callable[[Check], Check]:
    """Register a check; `feature` is what the service must have."""

    def register(function: Check) -> Check:
        assert function.__name__ not in CHECKS
        CHECKS[function.__name__] = Entry(function, feature)
        return function

    return register
