"""Grader specifications: the wire form of a reward definition, as strict, torch-free pydantic models.

Template and formula syntax is checked at construction, so a specification that exists compiles
(`bgpo.rewards.compile_grader`), but for what depends on the machine: a sandbox, judges, secrets, reward models. A new
grader type is one class in a module here, added to `SingleGraderSpec`, and one line in the registry of `bgpo.rewards`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, field_validator

from bgpo.errors import SpecError
from bgpo.rewards.formula import MAX_LENGTH, compile_formula, is_name
from bgpo.rewards.spec.answers import (
    CodeSpec,
    CountdownSpec,
    FormatSpec,
    JsonSchemaSpec,
    LengthSpec,
    MathSpec,
    SudokuSpec,
)
from bgpo.rewards.spec.base import GraderBase, GraderName, Message, Range, TemplateText, TextPart
from bgpo.rewards.spec.openai import (
    LabelModelSpec,
    PythonSpec,
    SamplingParams,
    ScoreModelSpec,
    StringCheckSpec,
    TextSimilaritySpec,
)
from bgpo.rewards.spec.remote import SECRET, EndpointSpec, GraderRefSpec, RewardModelSpec

__all__ = [
    "SECRET",
    "AnyGraderSpec",
    "CodeSpec",
    "CountdownSpec",
    "EndpointSpec",
    "FormatSpec",
    "GraderName",
    "GraderRefSpec",
    "GraderSpec",
    "JsonSchemaSpec",
    "LabelModelSpec",
    "LengthSpec",
    "MathSpec",
    "Message",
    "MultiSpec",
    "PythonSpec",
    "Range",
    "RewardModelSpec",
    "SamplingParams",
    "ScoreModelSpec",
    "SingleGraderSpec",
    "StringCheckSpec",
    "SudokuSpec",
    "TemplateText",
    "TextPart",
    "TextSimilaritySpec",
    "parse_grader_spec",
    "wire_path",
]

MAX_SUB_GRADERS = 64
_MEMBER = re.compile(r"^[A-Z]\w*$|[\[(]|^str$")
"""What pydantic calls the member of a union that has no discriminator."""

AnySingleGraderSpec = (
    StringCheckSpec
    | TextSimilaritySpec
    | PythonSpec
    | ScoreModelSpec
    | LabelModelSpec
    | SudokuSpec
    | CountdownSpec
    | MathSpec
    | CodeSpec
    | FormatSpec
    | JsonSchemaSpec
    | LengthSpec
    | EndpointSpec
    | RewardModelSpec
    | GraderRefSpec
)
SingleGraderSpec = Annotated[AnySingleGraderSpec, Field(discriminator="type")]
_SELF_NAMED = frozenset(
    spec.model_fields["type"].default
    for spec in get_args(AnySingleGraderSpec)
    if spec.model_fields["type"].default in spec.model_fields
)
"""Types with a field of the same name: in the place of an error their tag looks like that field."""


class MultiSpec(GraderBase):
    """Several graders, combined by a formula over their keys; not nested."""

    type: Literal["multi"] = "multi"
    name: GraderName
    graders: dict[str, SingleGraderSpec] = Field(min_length=1, max_length=MAX_SUB_GRADERS)
    calculate_output: Annotated[str, Field(min_length=1, max_length=MAX_LENGTH)]
    range: Range | None = Field(None, description="The formula's value is clipped to it.")

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


AnyGraderSpec = AnySingleGraderSpec | MultiSpec
GraderSpec = Annotated[AnyGraderSpec, Field(discriminator="type")]

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
    value, tagged = source, False
    for place, part in enumerate(loc):
        if isinstance(value, Mapping):
            if part not in value and (part == value.get("type") or _MEMBER.search(str(part))):
                continue
            if part in _SELF_NAMED and part == value.get("type") and not tagged and place + 1 < len(loc):
                tagged = True
                continue
            value, tagged = value.get(part), False
        elif isinstance(part, str) and _MEMBER.search(part):
            continue
        elif isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
            value = value[part]
        path.append(str(part))
    return ".".join(path)
