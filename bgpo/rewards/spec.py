"""Grader specifications: the wire form of a reward definition, as strict, torch-free pydantic models.

`string_check` and `multi` are OpenAI's; `sudoku`, `countdown`, `math` and `code` are ours. Template and formula syntax
is checked at construction, so a specification that exists compiles (`bgpo.rewards.compile_grader`), but for `code` that
the operator has not allowed. A new grader type is one class here, added to `SingleGraderSpec`, and one line in the
registry of `bgpo.rewards`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from bgpo.errors import SpecError
from bgpo.rewards.formula import MAX_LENGTH, compile_formula, is_name
from bgpo.rewards.templates import parse_template

MAX_SUB_GRADERS = 64


def _checked_template(text: str) -> str:
    parse_template(text)
    return text


TemplateText = Annotated[str, AfterValidator(_checked_template)]
"""Text with `{{ item.x }}` and `{{ sample.output_text }}`, syntax checked."""

GraderName = Annotated[str, Field(min_length=1, max_length=256)]


class _GraderSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class StringCheckSpec(_GraderSpec):
    """1 when `input` compares to `reference`, else 0; `like` and `ilike` look for the reference inside the input."""

    type: Literal["string_check"] = "string_check"
    name: GraderName
    input: TemplateText
    reference: TemplateText
    operation: Literal["eq", "ne", "like", "ilike"]


class SudokuSpec(_GraderSpec):
    """4x4 Sudoku: `puzzle` is 16 digits, 0 = empty, with one solution; `solution` is only for puzzles with several."""

    type: Literal["sudoku"] = "sudoku"
    name: GraderName
    puzzle: TemplateText = "{{ item.puzzle }}"
    solution: TemplateText | None = None
    input: TemplateText = "{{ sample.output_text }}"
    reward: Literal["solved", "cell_accuracy", "mixed"] = Field(
        "cell_accuracy",
        description="solved: 1 for the whole grid; cell_accuracy: share of empty cells right; mixed: mean of both.",
    )


class CountdownSpec(_GraderSpec):
    """1 when `input` is an expression that uses each of `numbers` exactly once and equals `target`, else 0."""

    type: Literal["countdown"] = "countdown"
    name: GraderName
    numbers: TemplateText = "{{ item.numbers }}"
    target: TemplateText = "{{ item.target }}"
    input: TemplateText = "{{ sample.output_text }}"


class MathSpec(_GraderSpec):
    """1 when the final answer in `input` equals `reference` (numbers exactly, formulas by math-verify), else 0."""

    type: Literal["math"] = "math"
    name: GraderName
    reference: TemplateText = Field(
        "{{ item.answer }}", description="The bare answer, or a solution with \\boxed{} or ####."
    )
    input: TemplateText = "{{ sample.output_text }}"
    answer: Literal["any", "boxed"] = Field(
        "any", description="boxed: only \\boxed{} is an answer; any: else an <answer> tag, else the last number."
    )


class CodeSpec(_GraderSpec):
    """Runs the program in `input` against tests; the operator must allow it, see docs/rewards.md."""

    type: Literal["code"] = "code"
    name: GraderName
    tests: TemplateText = Field(
        "{{ item.tests }}",
        description='JSON list of test sources ("assert f(1) == 2") or of {"input": stdin, "output": stdout}.',
    )
    prefix: TemplateText | None = Field(None, description="Source put before the program, such as its imports.")
    entry_point: TemplateText | None = Field(
        None, description="Name of the tested function; needed only where it is also a builtin's, such as sum."
    )
    input: TemplateText = "{{ sample.output_text }}"
    reward: Literal["all", "fraction"] = Field("all", description="all: 1 when every test passes; fraction: share.")
    timeout_seconds: float = Field(10.0, gt=0, le=120, description="Wall and processor time of each test.")
    memory_mb: int = Field(512, ge=64, le=8192, description="Address space of each test's processes.")


SingleGraderSpec = Annotated[
    StringCheckSpec | SudokuSpec | CountdownSpec | MathSpec | CodeSpec, Field(discriminator="type")
]


class MultiSpec(_GraderSpec):
    """Several graders, combined by a formula over their keys; not nested."""

    type: Literal["multi"] = "multi"
    name: GraderName
    graders: dict[str, SingleGraderSpec] = Field(min_length=1, max_length=MAX_SUB_GRADERS)
    calculate_output: Annotated[str, Field(min_length=1, max_length=MAX_LENGTH)]

    @field_validator("graders")
    @classmethod
    def _keys(cls, graders: dict[str, SingleGraderSpec]) -> dict[str, SingleGraderSpec]:
        for key in graders:
            if not is_name(key):
                raise ValueError(f"key '{key}' must be a name that calculate_output can use")
        return graders

    @field_validator("calculate_output")
    @classmethod
    def _formula(cls, text: str, info: ValidationInfo) -> str:
        if "graders" in info.data:  # absent when it did not validate itself
            compile_formula(text, info.data["graders"])
        return text


GraderSpec = Annotated[
    StringCheckSpec | SudokuSpec | CountdownSpec | MathSpec | CodeSpec | MultiSpec, Field(discriminator="type")
]
AnyGraderSpec = StringCheckSpec | SudokuSpec | CountdownSpec | MathSpec | CodeSpec | MultiSpec

_ADAPTER: TypeAdapter[AnyGraderSpec] = TypeAdapter(GraderSpec)


def parse_grader_spec(source: Mapping[str, Any]) -> AnyGraderSpec:
    """Validate a grader's wire form.

    Raises:
        SpecError: naming the first offending field by its dotted path in the wire form.
    """
    try:
        return _ADAPTER.validate_python(dict(source))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = wire_path(first["loc"], source)
        if first["type"].startswith("union_tag"):
            path = f"{path}.type".lstrip(".")
        raise SpecError(first["msg"].removeprefix("Value error, "), path or None) from error


def wire_path(loc: Sequence[str | int], source: Any) -> str:
    """Dotted path of a pydantic error location in the user's own JSON, without the tags that unions put in between."""
    path: list[str] = []
    value = source
    for part in loc:
        if isinstance(value, Mapping):
            if part not in value and part == value.get("type"):
                continue
            value = value.get(part)
        elif isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
            value = value[part]
        path.append(str(part))
    return ".".join(path)
