"""OpenAI's graders but `multi`, field for field; what is ours beyond that has a default."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bgpo.rewards.spec.base import GraderBase, GraderName, Message, Range, TemplateText

MAX_SOURCE = 256_000
"""Bytes of a python grader's source (OpenAI: below 256 kB)."""


class StringCheckSpec(GraderBase):
    """1 when `input` compares to `reference`, else 0; `like` and `ilike` look for the reference inside the input."""

    type: Literal["string_check"] = "string_check"
    name: GraderName
    input: TemplateText
    reference: TemplateText
    operation: Literal["eq", "ne", "like", "ilike"]


class TextSimilaritySpec(GraderBase):
    """How alike `input` and `reference` are, from 0 to 1, by a published metric."""

    type: Literal["text_similarity"] = "text_similarity"
    name: GraderName
    input: TemplateText
    reference: TemplateText
    evaluation_metric: Literal[
        "cosine",
        "fuzzy_match",
        "bleu",
        "gleu",
        "meteor",
        "rouge_1",
        "rouge_2",
        "rouge_3",
        "rouge_4",
        "rouge_5",
        "rouge_l",
    ]
    pass_threshold: float | None = Field(None, ge=0, le=1, description="Counts as solved from here; None: from 1.")


class PythonSpec(GraderBase):
    """The float that the source's `grade(sample, item)` returns, run in a sandbox."""

    type: Literal["python"] = "python"
    name: GraderName = "python"
    source: str = Field(min_length=1, max_length=MAX_SOURCE, description="Defines grade(sample: dict, item: dict).")
    image_tag: Literal["2025-05-08"] | None = Field(None, description="OpenAI's; the packages here are documented.")
    range: Range | None = Field(None, description="Scores are clipped to it.")
    timeout_seconds: float = Field(120.0, gt=0, le=120, description="Wall time of one call.")
    memory_mb: int = Field(2048, ge=64, le=2048, description="Memory of one call.")

    @model_validator(mode="after")
    def _bytes(self) -> Self:
        if len(self.source.encode(errors="replace")) > MAX_SOURCE:
            raise ValueError(f"source is longer than {MAX_SOURCE} bytes")
        return self


class SamplingParams(GraderBase):
    """How a judge answers."""

    max_completions_tokens: Annotated[int | None, Field(ge=1)] = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    seed: int | None = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None


class ScoreModelSpec(GraderBase):
    """The number that a judge model gives, clipped to `range`."""

    type: Literal["score_model"] = "score_model"
    name: GraderName
    model: str = Field(min_length=1, max_length=256, description="A judge that the operator has configured.")
    input: list[Message] = Field(min_length=1, max_length=64)
    range: Range = Field(default_factory=lambda: [0.0, 1.0])
    sampling_params: SamplingParams | None = None


class LabelModelSpec(GraderBase):
    """1 when the label that a judge model chooses is a passing one, else 0."""

    type: Literal["label_model"] = "label_model"
    name: GraderName
    model: str = Field(min_length=1, max_length=256, description="A judge that the operator has configured.")
    input: list[Message] = Field(min_length=1, max_length=64)
    labels: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(min_length=1, max_length=64)
    passing_labels: list[str] = Field(min_length=1, max_length=64)
    sampling_params: SamplingParams | None = None

    @model_validator(mode="after")
    def _labels(self) -> Self:
        unknown = sorted(set(self.passing_labels) - set(self.labels))
        if unknown:
            raise ValueError(f"passing_labels has {unknown[0]!r}, which is not one of labels")
        return self
