"""From the method of a request to a `Recipe`, and to the method with resolved hyperparameters that the job shows.

What "auto" becomes: n_epochs, as many as make at least 100 steps; learning_rate, the method's default of `bgpo.spec`
(which learning_rate_multiplier scales); block_length, the largest divisor of the response length that divides 32;
diffusion_steps, half a step a token; checkpoints, five during the job; everything else, the default of `bgpo.spec`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from bgpo.rewards.spec import AnyGraderSpec
from bgpo.spec import Dpo, GradingSpec, OptimizerSpec, Recipe, Reinforcement, RolloutSpec, Supervised
from jobs.errors import InvalidRequest
from jobs.wire.request import (
    CreateJob,
    DpoBlock,
    Hyperparameters,
    MethodBlock,
    ReinforcementBlock,
    SupervisedBlock,
)

MethodType = Literal["reinforcement", "supervised", "dpo"]
Block = ReinforcementBlock | SupervisedBlock | DpoBlock
_SPECS: dict[MethodType, type[Reinforcement] | type[Supervised] | type[Dpo]] = {
    "reinforcement": Reinforcement,
    "supervised": Supervised,
    "dpo": Dpo,
}
_AUTO_STEPS = 100
_AUTO_CHECKPOINTS = 5


@dataclass(frozen=True)
class Method:
    """A request's method, with the block of its type."""

    type: MethodType
    block: Block

    @property
    def path(self) -> str:
        """Where its hyperparameters stand in the request."""
        return f"method.{self.type}.hyperparameters"

    @property
    def grader(self) -> dict[str, Any] | None:
        """The grader, if there is one."""
        return self.block.grader.model_dump(mode="json") if self.block.grader is not None else None


def method_of(body: CreateJob) -> Method:
    """Find the method of a request; raises InvalidRequest when blocks and type do not fit."""
    method = body.method or MethodBlock(type="supervised")
    for other in _SPECS:
        if other != method.type and getattr(method, other) is not None:
            raise InvalidRequest(f"method.{other} does not belong to type {method.type}.", f"method.{other}")
    block: Block
    if method.type == "supervised":
        block = method.supervised or SupervisedBlock()
    elif method.type == "dpo":
        block = method.dpo or DpoBlock()
    elif method.reinforcement is not None:
        block = method.reinforcement
    else:
        path = "method.reinforcement"
        raise InvalidRequest(f"{path} is required.", path, "missing_required_parameter")
    if body.hyperparameters is not None:
        if body.method is not None:
            raise InvalidRequest("hyperparameters is for jobs without method.", "hyperparameters")
        block = SupervisedBlock(hyperparameters=body.hyperparameters)
    return Method(method.type, block)


def build(
    body: CreateJob, seed: int, train_rows: int, validation_rows: int | None, grader: AnyGraderSpec | None = None
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of a request, and the method its job shows.

    Args:
        grader: the recipe's, where the request's has references to stored graders.

    Raises:
        InvalidRequest: with the dotted path of what does not fit together.
    """
    method = method_of(body)
    hyper = method.block.hyperparameters
    given = hyper.model_dump(exclude_none=True)
    for fault in _faults(body, method, validation_rows):
        raise fault
    definition = grader.model_dump(mode="json") if grader is not None else method.grader
    spec: dict[str, Any] = {"type": method.type, "grader": definition, "optimizer": _optimizer(given, method)}
    spec |= {name: given[name] for name in _SPECS[method.type].model_fields if name in given}
    spec |= _rollout(given, method)
    if isinstance(method.block, ReinforcementBlock):
        spec["algorithm"] = method.block.algorithm
    batch_size = spec.get("batch_size", _SPECS[method.type].model_fields["batch_size"].default)
    steps = spec["max_steps"] = _steps(given, method, train_rows, batch_size)
    every = body.rl.checkpointing.every_steps or math.ceil(steps / _AUTO_CHECKPOINTS)
    values: dict[str, Any] = {
        "seed": seed,
        "method": spec,
        "evaluation": {
            "interval": hyper.eval_interval or body.rl.eval.interval,
            "samples": hyper.eval_samples or body.rl.eval.samples,
            "batch_size": body.rl.eval.batch_size,
            "answers": body.rl.eval.answers,
            "at_start": body.rl.eval.at_start,
        },
        "checkpointing": body.rl.checkpointing.model_dump() | {"every_steps": every},
        "grading": {"on_error": body.rl.on_grader_error, "max_error_rate": body.rl.max_error_rate},
        "early_stopping": body.rl.early_stopping,
        "sample_log": body.rl.sample_log,
    }
    values |= {"precision": given["precision"]} if "precision" in given else {}
    recipe = _validate(values, method)
    return recipe, _shown(recipe, method, train_rows, validation_rows)


def faults(
    body: CreateJob, train_rows: int, validation_rows: int | None, grader: AnyGraderSpec | None = None
) -> list[InvalidRequest]:
    """All that `build` would refuse, as far as one fault does not hide another."""
    method = method_of(body)
    given = method.block.hyperparameters.model_dump(exclude_none=True)
    found = list(_faults(body, method, validation_rows))
    parts = (
        lambda: _optimizer(given, method),
        lambda: _rollout(given, method),
        lambda: _steps(given, method, train_rows, 1),
        lambda: build(body, 0, train_rows, validation_rows, grader),
    )
    for part in parts:
        try:
            part()
        except InvalidRequest as fault:
            if (fault.message, fault.param) not in {(known.message, known.param) for known in found}:
                found.append(fault)
    return found


def base_learning_rate(type_: MethodType) -> float:
    """What learning_rate_multiplier scales."""
    default = _SPECS[type_].model_fields["optimizer"].get_default(call_default_factory=True, validated_data={})
    rate: float = default.learning_rate
    return rate


def _faults(body: CreateJob, method: Method, validation_rows: int | None) -> Iterator[InvalidRequest]:
    hyper = method.block.hyperparameters
    yield from _evaluation_faults(body, hyper, method, validation_rows)
    yield from _extension_faults(body, hyper, method, validation_rows)
    yield from _grading_faults(body, method)


def _evaluation_faults(
    body: CreateJob, hyper: Hyperparameters, method: Method, validation_rows: int | None
) -> Iterator[InvalidRequest]:
    pairs = (("interval", hyper.eval_interval), ("samples", hyper.eval_samples))
    for name, value in pairs:
        extension = getattr(body.rl.eval, name)
        param = f"{method.path}.eval_{name}" if value is not None else f"rl.eval.{name}"
        if value is not None and extension is not None:
            yield InvalidRequest(f"{param} and rl.eval.{name} say the same: give one.", param)
        if validation_rows is None and (value is not None or extension is not None):
            yield InvalidRequest(f"{param} needs a validation_file.", param)


def _extension_faults(
    body: CreateJob, hyper: Hyperparameters, method: Method, validation_rows: int | None
) -> Iterator[InvalidRequest]:
    extensions = {
        "rl.eval.answers": body.rl.eval.answers > 1,
        "rl.eval.at_start": not body.rl.eval.at_start,
        "rl.checkpointing.best_metric": body.rl.checkpointing.best_metric is not None,
        "rl.early_stopping": body.rl.early_stopping is not None,
    }
    for param in (param for param, given in extensions.items() if given):
        if validation_rows is None:
            yield InvalidRequest(f"{param} needs a validation_file.", param)
        if param == "rl.eval.answers" and method.grader is None:
            yield InvalidRequest(f"{param} is about sampled answers, which need method.{method.type}.grader.", param)
        if param == "rl.early_stopping" and (hyper.eval_interval or body.rl.eval.interval) is None:
            yield InvalidRequest(f"{param} needs {method.path}.eval_interval.", param)


def _grading_faults(body: CreateJob, method: Method) -> Iterator[InvalidRequest]:
    """Refuse what would be ignored."""
    default = GradingSpec()
    if body.rl.on_grader_error != default.on_error and method.grader is None:
        param = "rl.on_grader_error"
        yield InvalidRequest(f"{param} is about graded answers, which need method.{method.type}.grader.", param)
    if body.rl.max_error_rate != default.max_error_rate:
        param = "rl.max_error_rate"
        if method.type != "reinforcement":
            yield InvalidRequest(f"{param} is about rewards of training steps, which {method.type} has not.", param)
        if body.rl.on_grader_error == "fail":
            yield InvalidRequest(f"{param} says nothing beside on_grader_error fail: one error is the end.", param)


def _optimizer(given: dict[str, Any], method: Method) -> dict[str, Any]:
    if "learning_rate" in given and "learning_rate_multiplier" in given:
        raise InvalidRequest(
            "learning_rate_multiplier scales the base learning rate: give it or learning_rate, not both.",
            f"{method.path}.learning_rate_multiplier",
        )
    rate = base_learning_rate(method.type) * given.get("learning_rate_multiplier", 1.0)
    return {"learning_rate": rate} | {name: given[name] for name in OptimizerSpec.model_fields if name in given}


def _rollout(given: dict[str, Any], method: Method) -> dict[str, Any]:
    names = [name for name in RolloutSpec.model_fields if name in given]
    if method.grader is None:
        useless = [name for name in names if name not in _SPECS[method.type].model_fields]
        if useless:
            param = f"{method.path}.{useless[0]}"
            raise InvalidRequest(f"{param} is about sampling answers, which needs method.{method.type}.grader.", param)
        return {}
    return {"rollout": rollout_of({name: given[name] for name in names})}


def rollout_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """A `RolloutSpec`'s fields, with what "auto" becomes where nothing is given."""
    rollout = dict(given)
    length = rollout.setdefault("max_completion_length", RolloutSpec.model_fields["max_completion_length"].default)
    block = rollout.setdefault("block_length", math.gcd(length, RolloutSpec.model_fields["block_length"].default))
    rollout.setdefault("diffusion_steps", length // block * max(1, block // 2))
    return rollout


def _steps(given: dict[str, Any], method: Method, train_rows: int, batch_size: int) -> int:
    if "max_steps" in given:
        if "n_epochs" in given:
            param = f"{method.path}.n_epochs"
            raise InvalidRequest("n_epochs and max_steps both set the length of the job: give one.", param)
        return int(given["max_steps"])
    epochs = given.get("n_epochs") or min(50, math.ceil(_AUTO_STEPS * batch_size / train_rows))
    return math.ceil(train_rows * epochs / batch_size)


def _validate(values: dict[str, Any], method: Method) -> Recipe:
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        name = message.split()[0]  # rules between fields name the offender first
        known = name in type(method.block.hyperparameters).model_fields
        raise InvalidRequest(message, f"{method.path}.{name}" if known else method.path) from error


def _shown(recipe: Recipe, method: Method, train_rows: int, validation_rows: int | None) -> dict[str, Any]:
    spec = recipe.method.model_dump(mode="json")
    rollout = spec.pop("rollout") or {}
    resolved = spec | rollout | spec.pop("optimizer")
    for name in ("type", "algorithm", "grader", "optimizer"):
        resolved.pop(name, None)
    rate, base = recipe.method.optimizer.learning_rate, base_learning_rate(method.type)
    resolved |= {
        "n_epochs": max(1, math.ceil(recipe.method.max_steps * recipe.method.batch_size / train_rows)),
        "learning_rate_multiplier": float(f"{rate / base:.6g}"),
        "precision": recipe.precision,
        "eval_interval": recipe.evaluation.interval or recipe.method.max_steps,
        "eval_samples": None
        if validation_rows is None
        else min(recipe.evaluation.samples or validation_rows, validation_rows),
    }
    if validation_rows is None:
        resolved["eval_interval"] = None
    block: dict[str, Any] = {"hyperparameters": resolved}
    if method.grader is not None:
        block["grader"] = method.grader
    if isinstance(recipe.method, Reinforcement):
        block["algorithm"] = recipe.method.algorithm
        resolved["length_normalization"] = recipe.method.normalization
    return {"type": method.type, method.type: block}
