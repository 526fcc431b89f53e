"""Rewards: graders as data (`GraderSpec`), compiled once, run on many samples. Torch-free.

    with compile_grader({"type": "sudoku", "name": "grid"}) as grader:
        grade = grader.grade(Sample(output_text="..."), {"puzzle": "..."})

The same code grades in training, evaluation and the service. A new grader is a spec class in `bgpo.rewards.spec`, a
file here, and one line in `_COMPILERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bgpo.errors import SpecError
from bgpo.rewards import spec as specs
from bgpo.rewards.code import CodeGrader
from bgpo.rewards.countdown import CountdownGrader
from bgpo.rewards.endpoint import EndpointGrader
from bgpo.rewards.format import FormatGrader
from bgpo.rewards.grade import Grade, GradeErrorInfo, GradeErrorKind, Grader, Part, Sample, Usage
from bgpo.rewards.json_schema import JsonSchemaGrader
from bgpo.rewards.label_model import LabelModelGrader
from bgpo.rewards.length import LengthGrader
from bgpo.rewards.math import MathGrader
from bgpo.rewards.multi import MultiGrader
from bgpo.rewards.python import PythonGrader
from bgpo.rewards.reward_model import RewardModelGrader
from bgpo.rewards.score_model import ScoreModelGrader
from bgpo.rewards.settings import GraderSettings, Resources
from bgpo.rewards.spec import AnyGraderSpec, GraderSpec, MultiSpec, parse_grader_spec
from bgpo.rewards.string_check import StringCheckGrader
from bgpo.rewards.sudoku import SudokuGrader
from bgpo.rewards.text_similarity import TextSimilarityGrader

__all__ = [
    "Grade",
    "GradeErrorInfo",
    "GradeErrorKind",
    "Grader",
    "GraderSettings",
    "GraderSpec",
    "Part",
    "Resources",
    "Sample",
    "Usage",
    "compile_grader",
    "parse_grader_spec",
]

_COMPILERS: dict[type, Callable[[Any, Resources], Grader]] = {
    specs.StringCheckSpec: lambda spec, _: StringCheckGrader(spec),
    specs.TextSimilaritySpec: TextSimilarityGrader,
    specs.PythonSpec: PythonGrader,
    specs.ScoreModelSpec: ScoreModelGrader,
    specs.LabelModelSpec: LabelModelGrader,
    specs.SudokuSpec: lambda spec, _: SudokuGrader(spec),
    specs.CountdownSpec: lambda spec, _: CountdownGrader(spec),
    specs.MathSpec: lambda spec, _: MathGrader(spec),
    specs.CodeSpec: CodeGrader,
    specs.FormatSpec: lambda spec, _: FormatGrader(spec),
    specs.JsonSchemaSpec: lambda spec, _: JsonSchemaGrader(spec),
    specs.LengthSpec: lambda spec, _: LengthGrader(spec),
    specs.EndpointSpec: EndpointGrader,
    specs.RewardModelSpec: RewardModelGrader,
}


def compile_grader(spec: AnyGraderSpec | Mapping[str, Any], resources: Resources | None = None) -> Grader:
    """Make a grader from its specification or wire form.

    Args:
        resources: what it may use of this machine; None = nothing but a sandbox.

    Raises:
        SpecError: a wire form that does not validate, or a grader that this machine may not or cannot run.
    """
    if isinstance(spec, Mapping):
        spec = parse_grader_spec(spec)
    resources = resources or Resources()
    if not isinstance(spec, MultiSpec):
        return _single(spec, resources)
    graders: dict[str, Grader] = {}
    try:
        for key, sub in spec.graders.items():
            try:
                graders[key] = _single(sub, resources)
            except SpecError as error:
                raise SpecError(error.message, f"graders.{key}.{error.param or 'type'}") from error
        return MultiGrader(spec, graders)
    except BaseException:
        for grader in graders.values():
            grader.close()
        raise


def _single(spec: Any, resources: Resources) -> Grader:
    compiler = _COMPILERS.get(type(spec))
    if compiler is None:
        raise SpecError(f"graders of type {spec.type} cannot run here", "type")
    return compiler(spec, resources)
