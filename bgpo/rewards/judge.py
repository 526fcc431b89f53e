"""Asking a judge: a model behind an OpenAI-compatible endpoint that the operator has configured under a name.

All graders of a process that use a judge share its limits, so a `multi` of three of them asks no faster than one. The
base URL and the key are the operator's, so the rules for users' URLs (hosts, ports) do not apply to it; redirects are
not followed all the same, and only `allow_private` opens http and private addresses.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bgpo.egress import Caller, CallFailed, Egress, EgressRefused, Gate, check_url
from bgpo.errors import SpecError
from bgpo.rewards.grade import GradeErrorKind, GradeFault, Usage
from bgpo.rewards.received import finite_number, parse_json
from bgpo.rewards.settings import JudgeSettings, Resources
from bgpo.rewards.spec import SamplingParams

TEXTS_IN_A_REQUEST = 64
_EMBEDDING_BYTES = 16 << 20

_gates: dict[tuple[str, JudgeSettings], Gate] = {}
_gates_lock = threading.Lock()


@dataclass(frozen=True)
class Answer:
    """What a judge said."""

    text: str | None
    refusal: str | None
    """Why it would not answer."""
    cut: bool
    """It had more to say than it may."""
    usage: Usage | None


class JudgeClient:
    """The judge of a name. Threads may share it.

    Raises:
        SpecError: this service has no such judge, or its settings cannot be used.
    """

    def __init__(self, name: str, resources: Resources) -> None:
        settings = resources.settings.judges.get(name)
        if settings is None:
            known = ", ".join(sorted(resources.settings.judges))
            raise SpecError(
                f"{name!r} is no judge of this service; " + (f"it has {known}" if known else "it has none"), "model"
            )
        self.name, self.settings = name, settings
        self.concurrency = settings.concurrency
        self._base = settings.base_url.rstrip("/")
        try:
            check_url(self._base, allow_private=settings.allow_private, ports=None)
        except EgressRefused as refused:
            raise SpecError(f"the base_url of judge {name} {refused.message}; tell the operator", "model") from refused
        key = resources.secrets.get(f"judge:{name}")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise SpecError(f"the key of judge {name} has characters that no header can have", "model")
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        egress = Egress(allow_private=settings.allow_private, ports=None)
        self._caller = Caller(egress, _gate(name, settings), [key] if key else [])

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        schema: Mapping[str, Any],
        sampling: SamplingParams | None = None,
    ) -> Answer:
        """The answer to a conversation.

        Args:
            schema: JSON Schema that the endpoint is asked to hold the answer to, if it can.

        Raises:
            GradeFault: none came.
        """
        request: dict[str, Any] = {"model": self._model, "messages": list(messages)} | _sampling(sampling)
        if self.settings.json_schema:
            json_schema = {"name": "verdict", "strict": True, "schema": schema}
            request["response_format"] = {"type": "json_schema", "json_schema": json_schema}
        return self._answer(self._post("/chat/completions", request))

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """A vector for each text, all of one length.

        Raises:
            GradeFault: none came.
        """
        vectors: list[list[float]] = []
        for begin in range(0, len(texts), TEXTS_IN_A_REQUEST):
            some = list(texts[begin : begin + TEXTS_IN_A_REQUEST])
            body = self._post("/embeddings", {"model": self._model, "input": some, "encoding_format": "float"})
            try:
                vectors += _vectors(parse_json(body), len(some))
            except (ValueError, LookupError, TypeError) as error:
                raise self._fault("answered with something else than embeddings", self._caller.excerpt(body)) from error
        if len({len(vector) for vector in vectors}) > 1:
            raise self._fault("answered with embeddings of different lengths")
        return vectors

    def redacted(self, text: str) -> str:
        """A text of the judge's without its key."""
        return self._caller.redacted(text)

    @property
    def _model(self) -> str:
        return self.settings.model or self.name

    def _post(self, path: str, request: Mapping[str, Any]) -> bytes:
        try:
            return self._caller.post(
                self._base + path,
                json.dumps(request).encode(),
                lambda: self._headers,
                timeout_s=self.settings.timeout_seconds,
                max_bytes=_EMBEDDING_BYTES,
            )
        except CallFailed as failed:
            raise self._fault(f"could not be asked: {failed.message}", failed.details) from failed

    def _answer(self, body: bytes) -> Answer:
        try:
            received = parse_json(body)
            choice = received["choices"][0]
            message = choice["message"]
            text, refusal, reason = message.get("content"), message.get("refusal"), choice.get("finish_reason")
            if not isinstance(text, str | None) or not isinstance(refusal, str | None):
                raise TypeError
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise self._fault(
                "answered with something else than a chat completion", self._caller.excerpt(body)
            ) from error
        if reason == "content_filter":
            refusal = refusal or "its content filter stopped it"
        return Answer(text, refusal or None, reason == "length", self._usage(received))

    def _usage(self, received: Mapping[str, Any]) -> Usage | None:
        usage = received.get("usage")
        if not isinstance(usage, dict):
            return None
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if type(prompt) is not int or type(completion) is not int or min(prompt, completion) < 0:
            return None
        return Usage(self.name, prompt, completion)

    def _fault(self, message: str, details: str | None = None) -> GradeFault:
        kind: GradeErrorKind = "model_grader_server_error"
        return GradeFault(f"judge {self.name} {message}", kind, details)


def _gate(name: str, settings: JudgeSettings) -> Gate:
    with _gates_lock:
        gate = _gates.get((name, settings))
        if gate is None:
            gate = _gates[name, settings] = Gate(settings.concurrency, settings.requests_per_minute)
        return gate


def _sampling(params: SamplingParams | None) -> dict[str, Any]:
    given = {} if params is None else params.model_dump(exclude_none=True)
    if "max_completions_tokens" in given:  # the API of graders spells it so, that of chats does not
        given["max_completion_tokens"] = given.pop("max_completions_tokens")
    return given


def _vectors(received: Any, count: int) -> list[list[float]]:
    found = {row["index"]: [finite_number(value) for value in row["embedding"]] for row in received["data"]}
    if sorted(found) != list(range(count)) or not all(found.values()):
        raise ValueError
    return [found[index] for index in range(count)]
