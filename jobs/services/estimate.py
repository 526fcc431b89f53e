"""What a job would take, before there is one: from what this deployment has done, else from formulas.

Every number is a range, and `basis` says what it stands on. Accelerator time comes from the rate of finished attempts
of the same base model and method, in passes through the network a second (`jobs.workload`); where there are none, from
2 operations a weight and pass on hardware of a known class, of which 5 to 50 % are taken to be used. Lengths of prompts
are guessed from the characters of the first rows: from one token a character, as byte-level tokenizers have it, to one
for six.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from bgpo.rewards.spec import AnyGraderSpec, LabelModelSpec, ScoreModelSpec
from bgpo.spec import Recipe
from jobs import footprint
from jobs.artifacts import Manifest, model_files
from jobs.context import Context
from jobs.footprint import Range, Shape
from jobs.repositories import files, history, workers
from jobs.repositories.history import Past
from jobs.repositories.queue import LIVE_S
from jobs.services import resuming, scheduling, tuned_models
from jobs.services.create import dataset, rows_of
from jobs.services.grader_check import located
from jobs.services.grading import parts
from jobs.services.stored_graders import resolve
from jobs.services.tuned_models import Weights
from jobs.tables import File, Worker
from jobs.wire.recipe import build, method_of
from jobs.wire.request import PRIORITIES, CreateJob
from jobs.workload import Work, passes_of_step, work_of

Basis = Literal["finished_attempts", "formula", "unknown"]
_SAMPLE_ROWS = 64
_CHARACTERS_A_TOKEN = (6.0, 1.0)
_USED = (0.05, 0.5)
_SPREAD = 1.3
"""Least factor between an estimate from attempts and its ends."""
# Operations a second, dense, of half-precision matrix units; of a CPU, of a few cores.
_OPERATIONS = {"a100": 312e12, "h100": 989e12, "h200": 989e12, "b200": 2250e12, "cpu": 1e11}
_ANY = (1e11, 2250e12)
_REPLY_TOKENS = (16, 1024)
"""Of a judge."""


@dataclass(frozen=True)
class Seconds:
    """A time and what it stands on."""

    range: Range | None
    basis: Basis
    attempts: int = 0
    """How many finished ones it stands on."""


@dataclass(frozen=True)
class Wait:
    """The queue, were the job created now."""

    position: int
    running: int
    workers: int
    """Connected ones that could run it."""
    seconds: Seconds


@dataclass(frozen=True)
class Estimate:
    """What a job would take."""

    work: Work
    optimizer_steps: Range
    prompt_tokens: Range
    gpu_seconds: Seconds
    disk_bytes: int
    memory: Range | None
    judge_calls: Range
    judge_tokens: Range
    wait: Wait


def estimate(ctx: Context, project_id: str, body: CreateJob) -> Estimate:
    """The estimate of a create body. Raises NotFound, InvalidRequest as `create` would; the grader is not tried."""
    method = method_of(body)
    where = scheduling.columns(ctx, body.rl)
    grader = None
    if method.block.grader is not None:
        with located(f"method.{method.type}.grader", "invalid_grader"):
            grader = resolve(ctx, project_id, method.block.grader).spec
    given = [(param, getattr(body, param)) for param in ("training_file", "validation_file")]
    with ctx.db.read() as session:
        origin = resuming.origin_of(ctx, session, project_id, body)
        weights = origin.weights if origin else tuned_models.resolve(ctx, session, project_id, body.model)
        rows = [dataset(session, project_id, id_, param, method)["rows"] if id_ else None for param, id_ in given]
        stored = [file for _, id_ in given if id_ and (file := files.get(session, project_id, id_))]
        past = history.finished(session, weights.base.id, body.rl.resources.gpu_type)
        durations = history.durations(session)
        ahead, running = history.ahead(session, PRIORITIES[body.rl.priority], body.rl.resources.gpu_type)
        live = workers.live(session, LIVE_S)
    recipe, _ = build(body, body.seed or 0, rows[0] or 1, rows[1], grader)
    prompts = _prompt_tokens(rows_of(ctx, project_id, body.training_file))
    work = work_of(recipe, prompts, rows[1])
    shape = footprint.shape_of(weights.base.path)
    fitting = [one for one in live if one.gpus >= where["gpus"] and where["gpu_type"] in (None, one.gpu_type)]
    calls, tokens = _judging(grader, work, prompts)
    length = work.generated_tokens.high / work.graded_answers.high if work.graded_answers.high else 0
    length = length or getattr(recipe.method, "max_completion_length", 0)
    per_step = getattr(recipe.method, "num_inner_updates", 1)
    return Estimate(
        work=work,
        optimizer_steps=Range(work.steps.low * per_step, work.steps.high * per_step),
        prompt_tokens=prompts,
        gpu_seconds=_gpu_seconds(recipe, prompts, work, past, shape, where["gpu_type"], fitting),
        disk_bytes=_disk(shape, recipe, stored, weights),
        memory=footprint.memory_bytes(
            shape, recipe.model_dump(mode="json"), Range(prompts.low + length, prompts.high + length)
        ),
        judge_calls=calls,
        judge_tokens=tokens,
        wait=_wait(ahead, running, fitting, durations),
    )


def _prompt_tokens(rows: Sequence[dict[str, Any]]) -> Range:
    """Of a row; the mean of the first."""
    sizes = [_characters(row) for row in rows[:_SAMPLE_ROWS]]
    mean = sum(sizes) / len(sizes) if sizes else 0.0
    return Range(*(mean / characters for characters in _CHARACTERS_A_TOKEN))


def _characters(row: dict[str, Any]) -> int:
    messages = row.get("messages") or row["input"]["messages"]
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    return sum(len(message["content"]) for message in asked)


def _gpu_seconds(
    recipe: Recipe,
    prompts: Range,
    work: Work,
    past: Sequence[Past],
    shape: Shape,
    gpu_type: str | None,
    fitting: Sequence[Worker],
) -> Seconds:
    rates = _rates(recipe.method.type, prompts.high, past)
    if rates:
        total = Range(work.passes.low, work.passes.high)
        middle = sorted(rates)[len(rates) // 2]
        fastest, slowest = max(*rates, middle * _SPREAD), min(*rates, middle / _SPREAD)
        return Seconds(Range(total.low / fastest, total.high / slowest), "finished_attempts", len(rates))
    if not shape.parameters or not shape.layers:
        return Seconds(None, "unknown")
    kinds = [gpu_type] if gpu_type else sorted({one.gpu_type for one in fitting})
    speeds = [speed for kind in kinds for speed in (_ANY if kind not in _OPERATIONS else (_OPERATIONS[kind],))]
    speeds = speeds or list(_ANY)
    operations = 2.0 * shape.parameters
    fastest, slowest = max(speeds) * _USED[1], min(speeds) * _USED[0]
    return Seconds(Range(work.passes.low * operations / fastest, work.passes.high * operations / slowest), "formula")


def _rates(kind: str, prompt_tokens: float, past: Sequence[Past]) -> list[float]:
    """Passes in an accelerator-second of finished attempts of this kind, taking their prompts to be as long as ours."""
    found = []
    for each in past:
        try:
            recipe = Recipe.model_validate(each.recipe)
        except ValidationError:  # of another version of this program
            continue
        if recipe.method.type == kind:
            passes = passes_of_step(recipe, prompt_tokens) * each.steps
            found.append(passes / (each.seconds * each.gpus))
    return found


def _disk(shape: Shape, recipe: Recipe, stored: Sequence[File], weights: Weights) -> int:
    inputs = sum(file.bytes for file in stored)
    if weights.checkpoint is not None:
        inputs += sum(file.bytes for file in model_files(Manifest.from_json(weights.checkpoint.manifest)))
    return footprint.disk_bytes(shape.bytes, shape.dtype, recipe.model_dump(mode="json"), inputs, 0)


def _judging(grader: AnyGraderSpec | None, work: Work, prompts: Range) -> tuple[Range, Range]:
    """Calls and tokens of judges."""
    asked = [part for _, part in parts(grader) if isinstance(part, ScoreModelSpec | LabelModelSpec)] if grader else []
    calls = Range(work.graded_answers.low * len(asked), work.graded_answers.high * len(asked))
    if not asked or not work.graded_answers.high:
        return calls, Range(0, 0)
    texts = sum(len(str(part.model_dump(mode="json"))) for part in asked) / len(asked)
    answer = work.generated_tokens.high / work.graded_answers.high
    low = texts / _CHARACTERS_A_TOKEN[0] + _REPLY_TOKENS[0]
    high = texts / _CHARACTERS_A_TOKEN[1] + prompts.high + answer + _REPLY_TOKENS[1]
    return calls, Range(calls.low * low, calls.high * high)


def _wait(ahead: int, running: int, fitting: Sequence[Worker], durations: Sequence[float]) -> Wait:
    idle = sum(one.state == "idle" for one in fitting)
    takers = [one for one in fitting if one.state in ("idle", "busy")]
    if idle > ahead:
        seconds = Seconds(Range(0, 5), "formula")  # a doorbell, or the next look of the reconciler
    elif takers and durations:
        turns = -(-(ahead + 1) // len(takers))
        seconds = Seconds(Range(0, turns * max(durations)), "finished_attempts", len(durations))
    else:
        seconds = Seconds(None, "unknown")
    return Wait(ahead + 1, running, len(takers), seconds)
