"""HTTP servers on loopback for graders that ask somebody else, and resources that may reach them."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

from bgpo.rewards import GraderSettings, Resources
from bgpo.rewards.settings import EgressSettings, JudgeSettings
from tests.jobs.receivers import Answer, Receiver, Request

KEY = "sk-very-secret-key-0123456789"


def reply(body: bytes | Any, code: int = 200, *headers: str) -> bytes:
    """A whole answer; what is not bytes becomes JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {code} Whatever", *headers, f"Content-Length: {len(content)}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + content


def completion(content: str | None, *, usage: Any = (7, 3), reason: str = "stop", refusal: str | None = None) -> bytes:
    """A chat completion."""
    body: dict[str, Any] = {
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "finish_reason": reason,
                "message": {"role": "assistant", "content": content, "refusal": refusal},
            }
        ],
    }
    if isinstance(usage, tuple):
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    elif usage is not None:
        body["usage"] = usage
    return reply(body)


def verdict(result: Any) -> bytes:
    """A chat completion with one step and a result."""
    return completion(json.dumps({"steps": [{"description": "look", "conclusion": "seen"}], "result": result}))


def computing(answer: Callable[[Any], bytes]) -> Answer:
    """Answers by the request's JSON."""

    def respond(request: Request, connection: socket.socket) -> None:
        connection.sendall(answer(json.loads(request.body)))

    return respond


class Crowd:
    """A server's answer that lets requests go only once `size` of them are there together, and counts."""

    def __init__(self, size: int, content: Callable[[Any], bytes]) -> None:
        self._barrier, self._content = threading.Barrier(size), content
        self._lock = threading.Lock()
        self._now = 0
        self.most = 0

    def __call__(self, request: Request, connection: socket.socket) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        self._barrier.wait(30)
        content = self._content(json.loads(request.body))
        with self._lock:
            self._now -= 1
        connection.sendall(content)


def asked(server: Receiver) -> list[Any]:
    """The JSON of all requests."""
    return [json.loads(request.body) for request in server.requests]


def judged_by(server: Receiver, *, key: str | None = KEY, **settings: Any) -> Resources:
    """Resources with the judge `critic`."""
    given = {"base_url": f"http://127.0.0.1:{server.port}/v1", "allow_private": True, "timeout_seconds": 20.0}
    judge = JudgeSettings(**(given | settings))
    secrets = {} if key is None else {"judge:critic": key}
    return Resources(settings=GraderSettings(judges={"critic": judge}), secrets=secrets)


def open_resources(secrets: Mapping[str, str] | None = None) -> Resources:
    """Resources whose endpoints may be on loopback."""
    return Resources(settings=GraderSettings(egress=EgressSettings(allow_private=True)), secrets=secrets or {})
