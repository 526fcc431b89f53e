"""Chat completions on the wire, whole and in chunks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from jobs.tables import Completion


class Usage(BaseModel):
    """Tokens of a completion."""

    prompt_tokens: int
    completion_tokens: int = Field(description="At most max_tokens; the end token counts.")
    total_tokens: int


class ChatAnswer(BaseModel):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """The one answer."""

    index: Literal[0] = 0
    message: ChatAnswer
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatCompletion(BaseModel):
    """An answer."""

    id: str = Field(examples=["chatcmpl-0197..."])
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


def chat_completion(row: Completion, text: str) -> ChatCompletion:
    """A completion that is done, as the wire has it."""
    choice = {"message": {"content": text}, "finish_reason": row.finish_reason}
    shown = {"id": row.id, "created": int(row.created_at), "model": row.model, "choices": [choice], "usage": usage(row)}
    return ChatCompletion.model_validate(shown)


def usage(row: Completion) -> dict[str, int]:
    """Tokens of a completion that is done."""
    prompt, answer = row.prompt_tokens or 0, row.completion_tokens or 0
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


class Chunks:
    """Writes the chunks of one stream as server-sent events."""

    def __init__(self, row: Completion, *, include_usage: bool) -> None:
        self._head = {
            "id": row.id,
            "object": "chat.completion.chunk",
            "created": int(row.created_at),
            "model": row.model,
        }
        self._include_usage = include_usage
        self._begun = False

    def text(self, text: str) -> bytes:
        """A finished block; before the first one, the role."""
        begin = b"" if self._begun else self._chunk({"role": "assistant", "content": ""})
        self._begun = True
        return begin + self._chunk({"content": text})

    def end(self, row: Completion) -> bytes:
        """After the last block."""
        begin = b"" if self._begun else self._chunk({"role": "assistant", "content": ""})
        last = self._chunk({}, row.finish_reason)
        used = event(self._head | {"choices": [], "usage": usage(row)}) if self._include_usage else b""
        return begin + last + used + b"data: [DONE]\n\n"

    def _chunk(self, delta: Mapping[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        extra: dict[str, Any] = {"usage": None} if self._include_usage else {}
        return event(self._head | {"choices": [choice]} | extra)


def event(data: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
