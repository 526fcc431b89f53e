"""Graders of ours that look at the answer alone: tasks, and the form of a text."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from bgpo.rewards.patterns import Pattern
from bgpo.rewards.schemas import Schema
from bgpo.rewards.spec.base import GraderBase, GraderName, TemplateText

OUTPUT = "{{ sample.output_text }}"


class SudokuSpec(GraderBase):
    """4x4 Sudoku: `puzzle` is 16 digits, 0 = empty, with one solution; `solution` is only for puzzles with several."""

    type: Literal["sudoku"] = "sudoku"
    name: GraderName
    puzzle: TemplateText = "{{ item.puzzle }}"
    solution: TemplateText | None = None
    input: TemplateText = OUTPUT
    reward: Literal["solved", "cell_accuracy", "mixed"] = Field(
        "cell_accuracy",
        description="solved: 1 for the whole grid; cell_accuracy: share of empty cells right; mixed: mean of both.",
    )


class CountdownSpec(GraderBase):
    """1 when `input` is an expression that uses each of `numbers` exactly once and equals `target`, else 0."""

    type: Literal["countdown"] = "countdown"
    name: GraderName
    numbers: TemplateText = "{{ item.numbers }}"
    target: TemplateText = "{{ item.target }}"
    input: TemplateText = OUTPUT


class MathSpec(GraderBase):
    """1 when the final answer in `input` equals `reference` (numbers exactly, formulas by math-verify), else 0."""

    type: Literal["math"] = "math"
    name: GraderName
    reference: TemplateText = Field(
        "{{ item.answer }}", description="The bare answer, or a solution with \\boxed{} or ####."
    )
    input: TemplateText = OUTPUT
    answer: Literal["any", "boxed"] = Field(
        "any", description="boxed: only \\boxed{} is an answer; any: else an <answer> tag, else the last number."
    )


class CodeSpec(GraderBase):
    """Runs the program in `input` against tests, in a sandbox."""

    type: Literal["code"] = "code"
    name: GraderName
    tests: TemplateText = Field(
        "{{ item.tests }}",
        description='JSON list of test sources ("assert f(1) == 2"), of {"input": stdin, "output": stdout} or of '
        '{"pytest": source of a test file}.',
    )
    prefix: TemplateText | None = Field(None, description="Source put before the program, such as its imports.")
    entry_point: TemplateText | None = Field(
        None, description="Name of the tested function; needed only where it is also a builtin's, such as sum."
    )
    input: TemplateText = OUTPUT
    reward: Literal["all", "fraction"] = Field("all", description="all: 1 when every test passes; fraction: share.")
    timeout_seconds: float = Field(10.0, gt=0, le=120, description="Wall time of each test.")
    memory_mb: int = Field(512, ge=64, le=2048, description="Memory of each test's processes.")


class FormatSpec(GraderBase):
    """1 when `input` has a form, else 0: it matches `pattern`, or has each of `tags` once, closed, in this order."""

    type: Literal["format"] = "format"
    name: GraderName
    input: TemplateText = OUTPUT
    pattern: Annotated[str, StringConstraints(min_length=1, max_length=4096)] | None = Field(
        None,
        description="Regular expression (of the PyPI package regex), time-limited; `.` also matches line ends.",
    )
    match: Literal["full", "search"] = Field("full", description="full: the whole text, without spaces around it.")
    tags: list[Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.-]{0,63}$")]] | None = Field(
        None, min_length=1, max_length=32, description='Such as ["reasoning", "answer"].'
    )
    strict: bool = Field(False, description="With tags: nothing but spaces outside of them.")
    reward: Literal["all", "fraction"] = Field(
        "all", description="With tags; fraction: share of them that are right (strict: and of stray text, as one more)."
    )

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            Pattern(pattern, dot_all=True)
        return pattern

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.pattern is None) == (self.tags is None):
            raise ValueError("give pattern or tags, one of the two")
        if self.pattern is not None and (self.strict or self.reward != "all"):
            raise ValueError("strict and reward belong to tags; pattern does not use them")
        if self.tags is not None and self.match != "full":
            raise ValueError("match belongs to pattern; tags do not use it")
        if self.tags is not None and len(set(self.tags)) < len(self.tags):
            raise ValueError("tags must differ from each other")
        return self


class JsonSchemaSpec(GraderBase):
    """1 when `input` is JSON that a JSON Schema (draft 2020-12) accepts, else 0."""

    type: Literal["json_schema"] = "json_schema"
    name: GraderName
    input: TemplateText = OUTPUT
    json_schema: dict[str, Any] = Field(description="The schema. References may point into it only.")
    fenced: bool = Field(True, description="Also accept JSON inside the last fenced block.")

    @field_validator("json_schema")
    @classmethod
    def _compiles(cls, schema: dict[str, Any]) -> dict[str, Any]:
        Schema(schema)
        return schema


class LengthSpec(GraderBase):
    """1 when the length of `input` is within a band, falling to 0 over `margin` outside of it."""

    type: Literal["length"] = "length"
    name: GraderName
    input: TemplateText = OUTPUT
    unit: Literal["characters", "words", "lines"] = "words"
    minimum: int = Field(0, ge=0)
    maximum: int | None = Field(None, ge=0, description="None: no upper end.")
    margin: int = Field(0, ge=0, description="Units over which the score falls to 0; 0: at once.")

    @model_validator(mode="after")
    def _band(self) -> Self:
        if self.maximum is not None and self.maximum < self.minimum:
            raise ValueError(f"maximum {self.maximum} is below minimum {self.minimum}")
        if self.maximum is None and self.minimum == 0:
            raise ValueError("give minimum or maximum: without either every text scores 1")
        return self
