"""The tasks of the trainer process that train nothing: an evaluation, and an export.

A task ends with one final checkpoint record, as a run does, so whoever supervises runs supervises tasks: the directory
it names has the results and a manifest of them. There is nothing to resume from; a task that is stopped begins again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TextIO

import torch

from bgpo.models import load_policy
from bgpo.models.export import export_adapter, export_merged
from bgpo.rewards import Grade
from bgpo.spec import Recipe
from bgpo.task_spec import EvaluationTask, ExportTask
from bgpo.training.checkpoint import complete, disk_errors
from bgpo.training.cluster import Cluster
from bgpo.training.data import Row, load_prompts
from bgpo.training.evaluation import Answers, Given, answer
from bgpo.training.grading import Grading, open_grading
from bgpo.training.reporter import Reporter, Stopwatch
from bgpo.training.start import device_of, weights_dtype

RESULTS = "results.jsonl"
"""The file of an evaluation: one line an answer."""
METRICS = "metrics.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def run_task(spec: EvaluationTask | ExportTask, reporter: Reporter, secrets: Mapping[str, str]) -> None:
    """Do it and report where the results are.

    Raises:
        BgpoError: see `bgpo.run` for what each ends in.
    """
    with disk_errors("the results do not fit on the disk"):
        if isinstance(spec, EvaluationTask):
            _evaluate(spec, reporter, secrets)
        else:
            _export(spec, reporter)


def _export(spec: ExportTask, reporter: Reporter) -> None:
    reporter.enter("exporting", 0)
    directory, watch = _directory(spec.output_dir), Stopwatch()
    source, dtype = Path(spec.model), DTYPES[spec.dtype]
    with watch.measure("export"):
        if spec.content == "adapter":
            export_adapter(source, directory, dtype, base_name=spec.base_name)
        else:
            export_merged(source, directory, dtype, base=None if spec.base is None else Path(spec.base))
        final = complete(directory, 0)
    reporter.checkpoint(0, str(final), final=True, best=False, metrics={}, seconds=watch.seconds["export"])


def _evaluate(spec: EvaluationTask, reporter: Reporter, secrets: Mapping[str, str]) -> None:
    reporter.enter("loading_model", 0)
    recipe, device = spec.recipe, device_of(spec, Cluster())
    grading = open_grading(recipe, spec.graders, secrets, device, reporter)
    assert grading is not None
    assert recipe.method.rollout is not None
    with grading:
        policy = load_policy(spec.model, dtype=weights_dtype(recipe), device=device, base=spec.base)
        length = recipe.method.rollout.max_completion_length
        rows = load_prompts(spec.data, policy, length, param="data")[: recipe.evaluation.samples]
        reporter.enter("evaluating", 0)
        directory, watch = _directory(spec.output_dir), Stopwatch()
        with watch.measure("evaluate"), (directory / RESULTS).open("w", encoding="utf-8") as file:
            told = _Told(rows, recipe, grading, reporter, file)
            answers = answer(policy, rows, recipe, grading, given=told)
        answers.tell(0, grading)
        metrics = answers.metrics(grading) | spread(answers, grading)
    reporter.metrics(0, "validation", metrics | answers.seconds() | {"seconds_evaluate": watch.seconds["evaluate"]})
    reporter.enter("checkpointing", 0)
    (directory / METRICS).write_text(json.dumps(metrics, indent=2) + "\n", "utf-8")
    reporter.checkpoint(0, str(complete(directory, 0)), final=True, best=False, metrics=metrics, seconds=0.0)


class _Told:
    """Tells each answer as soon as it is graded: to the results file, and as a sample record."""

    def __init__(self, rows: Sequence[Row], recipe: Recipe, grading: Grading, reporter: Reporter, file: TextIO) -> None:
        self._rows, self._grading, self._reporter, self._file = rows, grading, reporter, file
        self._answers = recipe.evaluation.answers

    def __call__(self, given: Given) -> None:
        row = given.slot if given.greedy else given.slot // self._answers
        number = self._answers if given.greedy else given.slot % self._answers
        grade = given.grade
        fields: dict[str, Any] = {
            "prompt": _prompt(self._rows[row].item),
            "completion": given.text,
            "reward": grade.score if self._grading.counts(grade) else None,
            "scores": dict(grade.sub_scores),
            "error": None if grade.error is None else f"{grade.error.kind}: {grade.error.message}",
        }
        where = {"row": row, "answer": None if given.greedy else number, "greedy": given.greedy}
        line = where | fields | {"metrics": dict(grade.metrics), "solved": bool(grade.solved)}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        # The greedy answer of a row comes after its sampled ones.
        self._reporter.sample(step=0, split="validation", index=row * (self._answers + 1) + number, **fields)


def spread(answers: Answers, grading: Grading) -> dict[str, float]:
    """`<mode>_graded`, and the standard errors of reward and solved rate over the prompts.

    Answers to one prompt are no independent samples, so each prompt counts as its mean. None from fewer than two.
    """
    found: dict[str, float] = {}
    for mode, grades, each in (("sampled", answers.sampled, answers.per_prompt), ("greedy", answers.greedy, 1)):
        prompts = [_counted(grades[first : first + each], grading) for first in range(0, len(grades), each)]
        prompts = [prompt for prompt in prompts if prompt]
        found[f"{mode}_graded"] = float(sum(map(len, prompts)))
        if len(prompts) > 1:
            rewards = [fmean(grade.score for grade in prompt) for prompt in prompts]
            solved = [fmean(float(grade.solved) for grade in prompt) for prompt in prompts]
            root = len(prompts) ** 0.5
            found |= {f"{mode}_reward_stderr": stdev(rewards) / root, f"{mode}_solved_stderr": stdev(solved) / root}
    return found


def _counted(grades: Sequence[Grade], grading: Grading) -> list[Grade]:
    return [grade for grade in grades if grading.counts(grade)]


def _prompt(item: Mapping[str, Any]) -> str:
    """The text that was answered: what the user said last."""
    messages = item["messages"] if "messages" in item else item["input"]["messages"]
    return next(str(message["content"]) for message in reversed(messages) if message["role"] == "user")


def _directory(output_dir: str) -> Path:
    """Where the results are written before they are complete."""
    directory = Path(output_dir) / "checkpoints" / "step-000000.tmp"
    directory.mkdir(parents=True)
    return directory
