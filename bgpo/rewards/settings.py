"""What graders need from where they run, beside their specification: the operator's settings, secrets, models.

The same for training (in the run specification), the API's `graders/run` and a shell (`from_environment`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

from bgpo.egress import host_pattern

UNSANDBOXED = "BGPO_ALLOW_UNSANDBOXED"
"""Environment variable of the operator's consent: "1" lets `python` and `code` run without a wall."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class JudgeSettings(_Strict):
    """An OpenAI-compatible endpoint that `score_model` and `label_model` may use under a name."""

    base_url: str = Field(description="As the openai client takes it, such as https://api.openai.com/v1.")
    model: str | None = Field(None, description="The endpoint's name of the model; None: the judge's own name.")
    concurrency: int = Field(8, ge=1, le=256, description="Requests at a time of one process.")
    requests_per_minute: Annotated[int | None, Field(ge=1)] = None
    timeout_seconds: float = Field(60.0, gt=0, le=600)
    json_schema: bool = Field(True, description="Ask for the verdict by response_format; False: by words alone.")
    allow_private: bool = Field(False, description="It may be http:// and on a private address: the operator's own.")


class EgressSettings(_Strict):
    """Where requests to URLs that users name may go."""

    allow_private: bool = Field(False, description="Also http:// and private addresses.")
    ports: list[int] = Field([443], description="Ports that URLs may have.")
    hosts: list[str] | None = Field(None, description="Host names allowed, *.example.com for subdomains; None = any.")

    @field_validator("hosts")
    @classmethod
    def _host_patterns(cls, hosts: list[str] | None) -> list[str] | None:
        return None if hosts is None else [host_pattern(host) for host in hosts]


class SandboxSettings(_Strict):
    """Upper limits of what runs in a sandbox; a grader may ask for less."""

    max_seconds: float = Field(120.0, gt=0, le=120)
    max_memory_mb: int = Field(2048, ge=64, le=2048)
    max_disk_mb: int = Field(1024, ge=1, le=1024)
    max_processes: int = Field(32, ge=1, le=256, description="Processes and threads of one call.")


class GraderSettings(_Strict):
    """The operator's part of grading, without any secret."""

    judges: dict[str, JudgeSettings] = Field(default_factory=dict)
    embedding_model: str | None = Field(None, description="The judge whose /embeddings text_similarity cosine uses.")
    egress: EgressSettings = Field(default_factory=EgressSettings)
    sandbox: SandboxSettings = Field(default_factory=SandboxSettings)
    reward_models: dict[str, str] = Field(default_factory=dict, description="Directory of each reward model.")


class RewardModel(Protocol):
    """A loaded sequence classifier."""

    def score(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[float]:
        """The model's one output for each conversation of {role, content} messages.

        Raises:
            ValueError: the tokenizer or the model cannot take a conversation.
        """
        ...


@dataclass(frozen=True)
class Resources:
    """Handed to `compile_grader`."""

    settings: GraderSettings = field(default_factory=GraderSettings)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Values by name: the project's stored secrets, and `judge:NAME`, the key of a judge."""
    load_reward_model: Callable[[str], RewardModel] | None = None
    """Loads a directory of `settings.reward_models`; None where there is no PyTorch."""


def unsandboxed_allowed() -> bool:
    """Whether the operator consents to running programs without a wall."""
    return os.environ.get(UNSANDBOXED) == "1"
