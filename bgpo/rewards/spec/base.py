"""What the grader specifications share: strictness, templates checked at construction, names, ranges, messages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from bgpo.rewards.templates import parse_template


class GraderBase(BaseModel):
    """Base of all grader specifications: unknown fields and silent conversions are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _checked_template(text: str) -> str:
    parse_template(text)
    return text


def _checked_range(value: list[float]) -> list[float]:
    if value[0] >= value[1]:
        raise ValueError(f"range must be [low, high] with low below high, got {value}")
    return value


TemplateText = Annotated[str, AfterValidator(_checked_template)]
"""Text with `{{ item.x }}` and `{{ sample.output_text }}`, syntax checked."""

GraderName = Annotated[str, Field(min_length=1, max_length=256)]

Range = Annotated[list[float], Field(min_length=2, max_length=2), AfterValidator(_checked_range)]
"""Lowest and highest score; what a grader gives beyond is clipped."""


class TextPart(GraderBase):
    """A part of a message's content."""

    type: Literal["text", "input_text", "output_text"] = "input_text"
    text: TemplateText


class Message(GraderBase):
    """A message for a judge, a template throughout (OpenAI's `EvalItem`, its text forms)."""

    role: Literal["user", "assistant", "system", "developer"]
    content: TemplateText | TextPart | list[TemplateText | TextPart]
    type: Literal["message"] | None = None

    def texts(self) -> list[str]:
        """The templates of the content, in order."""
        parts = self.content if isinstance(self.content, list) else [self.content]
        return [part.text if isinstance(part, TextPart) else part for part in parts]
