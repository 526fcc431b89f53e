"""Bodies of the requests about graders and secrets, and how a grader is shown.

A grader is shown as it was normalised, but for values of headers: they may be what only its author should know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, SecretStr, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from bgpo.rewards.spec import SECRET, GraderSpec
from bgpo.rewards.spec.remote import SecretName
from jobs.wire.base import StorableWire, Wire

MAX_SAMPLES = 256
"""Of one run_batch."""
HIDDEN = "***"
_SCHEME = re.compile(r"(?i)(bearer|basic|token)\s+")
_PRINTABLE = re.compile(r"[\x20-\x7e]+")


class StoreSecret(Wire):
    """A secret to create, or to give another value."""

    model_config = ConfigDict(hide_input_in_errors=True)

    name: SecretName = Field(description="What graders call it: {{ secret.NAME }}, or signing_secret.")
    value: SecretStr = Field(min_length=1, max_length=8192, description="Printable ASCII. Never shown again.")

    @field_validator("value")
    @classmethod
    def _header_safe(cls, value: SecretStr) -> SecretStr:
        if _PRINTABLE.fullmatch(value.get_secret_value()) is None:
            raise PydanticCustomError("invalid_secret", "must be printable ASCII, on one line")
        return value


class StoreGrader(StorableWire):
    """A grader to be kept under a name."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    grader: GraderSpec


class StoreGraderVersion(StorableWire):
    """The next definition of a stored grader."""

    grader: GraderSpec


class ValidateGrader(StorableWire):
    """A grader to be checked."""

    grader: GraderSpec


class RunGrader(StorableWire):
    """A grader and one sample to grade."""

    grader: GraderSpec
    model_sample: str = Field(description="What the model is supposed to have answered.")
    item: dict[str, Any] = Field(default_factory=dict, description="The dataset row.")


class BatchSample(Wire):
    """One sample of a batch."""

    model_sample: str
    item: dict[str, Any] = Field(default_factory=dict)


class RunGraderBatch(StorableWire):
    """A grader and samples to grade: given here, or rows of a file that hold an answer each."""

    grader: GraderSpec
    samples: list[BatchSample] | None = Field(None, min_length=1, max_length=MAX_SAMPLES)
    file: str | None = Field(None, min_length=1, max_length=64, description="JSONL; each row is an item.")
    completion_field: str = Field("output_text", min_length=1, max_length=256, description="Of a row: the answer.")
    limit: int = Field(100, ge=1, le=MAX_SAMPLES, description="Rows of the file to grade.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.samples is None) == (self.file is None):
            raise PydanticCustomError("one_source", "give samples or file, one of them")
        return self


def shown(definition: Mapping[str, Any]) -> dict[str, Any]:
    """A grader's wire form for people: header values hidden, unless they only refer to stored secrets."""
    grader = dict(definition)
    if grader.get("type") == "endpoint" and grader.get("headers"):
        grader["headers"] = {name: _shown(value) for name, value in grader["headers"].items()}
    if isinstance(grader.get("graders"), Mapping):
        grader["graders"] = {key: shown(part) for key, part in grader["graders"].items()}
    return grader


def _shown(value: str) -> str:
    literal = SECRET.sub("", _SCHEME.sub("", value, count=1))
    return value if SECRET.search(value) and not literal.strip() else HIDDEN
