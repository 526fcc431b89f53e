"""Graders of ours that ask somebody else: the user's HTTP endpoint, a reward model, a stored definition."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from bgpo.rewards.spec.base import GraderBase, GraderName, Message, Range

SECRET = re.compile(r"\{\{\s*secret\.([A-Za-z_][A-Za-z0-9_]{0,63})\s*\}\}")
"""Where a stored secret's value goes in a header."""
SecretName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")
_SECRET_HEADERS = frozenset({"authorization", "api-key", "x-api-key", "proxy-authorization", "cookie"})
_OUR_HEADERS = re.compile(r"(?i)host|content-.*|connection|transfer-encoding|accept-encoding|webhook-.*|x-bgpo-.*")


class EndpointSpec(GraderBase):
    """The score that an HTTP endpoint gives: POST of {sample, item, trace_id}, answered by {score} (Azure's shape)."""

    type: Literal["endpoint"] = "endpoint"
    name: GraderName
    url: Annotated[str, StringConstraints(min_length=1, max_length=2048)] = Field(description="https.")
    batch: bool = Field(False, description="Send {samples: [...]}, answered by {scores: [...]}.")
    batch_size: int = Field(32, ge=1, le=256, description="With batch: samples in a request.")
    headers: dict[str, Annotated[str, StringConstraints(max_length=4096)]] = Field(
        default_factory=dict, max_length=16, description="Values may name stored secrets: {{ secret.NAME }}."
    )
    signing_secret: SecretName | None = Field(None, description="Stored secret that requests are signed with (HMAC).")
    range: Range | None = Field(None, description="Scores are clipped to it.")
    timeout_seconds: float = Field(30.0, gt=0, le=120, description="Of one request, repetitions included.")
    concurrency: int = Field(8, ge=1, le=32, description="Requests at a time.")
    requests_per_minute: int | None = Field(None, ge=1, description="None: no limit.")

    @model_validator(mode="after")
    def _headers(self) -> Self:
        for name, value in self.headers.items():
            if _HEADER.fullmatch(name) is None or _OUR_HEADERS.fullmatch(name) is not None:
                raise ValueError(f"headers: {name[:64]!r} is not a header that can be set")
            if not value.isprintable():
                raise ValueError(f"headers: the value of {name} has characters that a header cannot have")
            if name.lower() in _SECRET_HEADERS and SECRET.search(value) is None:
                raise ValueError(f"headers: {name} must name a stored secret, {{{{ secret.NAME }}}}, not its value")
        return self

    def secret_names(self) -> frozenset[str]:
        """Stored secrets that it needs."""
        named = {name for value in self.headers.values() for name in SECRET.findall(value)}
        return frozenset(named | ({self.signing_secret} if self.signing_secret is not None else set()))


class RewardModelSpec(GraderBase):
    """The score of a sequence classifier from the operator's catalog, on the worker's device."""

    type: Literal["reward_model"] = "reward_model"
    name: GraderName
    model: str = Field(min_length=1, max_length=256, description="Id in the catalog of reward models.")
    input: list[Message] | None = Field(
        None, min_length=1, max_length=64, description="The conversation it reads. None: item.messages and the answer."
    )
    activation: Literal["none", "sigmoid"] = Field("none", description="Applied to the model's one output.")
    range: Range | None = Field(None, description="Scores are clipped to it.")
    batch_size: int = Field(32, ge=1, le=256)


class GraderRefSpec(GraderBase):
    """A stored grader; a job keeps the definition that the reference stood for when the job was made."""

    type: Literal["grader_ref"] = "grader_ref"
    id: Annotated[str, StringConstraints(pattern=r"^grader-[A-Za-z0-9_-]{1,64}$")]
    version: int | None = Field(None, ge=1, description="None: the newest when the job is made.")
