"""Evaluation: every validation prompt answered at the training temperature (once or several times) and greedily.

The same sampler and grader as training. The random streams are named by (seed, row, answer) and not by the step, so two
evaluations of one run differ only by the policy, and a re-evaluation of a checkpoint gives the same numbers. The
processes of a run share the work; every one ends with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bgpo.diffusion.rng import Purpose, stream_keys, substreams
from bgpo.diffusion.sampler import sample
from bgpo.errors import SpecError
from bgpo.models import Policy
from bgpo.rewards import Grade, GraderSettings, Sample
from bgpo.spec import Recipe, RolloutSpec
from bgpo.training.cluster import Cluster
from bgpo.training.data import Row
from bgpo.training.grade_metrics import compact, grader_seconds
from bgpo.training.grading import Grading, open_grading


@dataclass(frozen=True)
class Given:
    """One answer and what the grader made of it."""

    slot: int
    """Its number: row * answers + answer; of a greedy one, the row."""
    greedy: bool
    text: str
    grade: Grade


Listener = Callable[[Given], None]


@dataclass(frozen=True)
class Answers:
    """The grades of an evaluation, in the order of rows and answers, the same on every process."""

    sampled: list[Grade]
    greedy: list[Grade]
    per_prompt: int

    def metrics(self, grading: Grading) -> dict[str, float]:
        """See `evaluate`."""
        metrics = {f"sampled_{name}": value for name, value in grading.summarize(self.sampled).items()}
        k = self.per_prompt
        if k > 1:
            prompts = [self.sampled[first : first + k] for first in range(0, len(self.sampled), k)]
            tried = [[grade.solved for grade in answers if grading.counts(grade)] for answers in prompts]
            graded = [solved for solved in tried if solved]
            if graded:
                metrics["sampled_pass_at_k"] = sum(map(any, graded)) / len(graded)
        return metrics | {f"greedy_{name}": value for name, value in grading.summarize(self.greedy).items()}

    def tell(self, step: int, grading: Grading) -> None:
        """Report the errors. Raises GraderError where the first one is to end the run."""
        rows = [slot // self.per_prompt for slot in range(len(self.sampled))]
        grading.tell(step, [*self.sampled, *self.greedy], [*rows, *range(len(self.greedy))], evaluation=True)

    def seconds(self) -> dict[str, float]:
        """Of each grader, over both ways of answering; no part of the metrics, which a repetition gives again."""
        return grader_seconds([*self.sampled, *self.greedy])


def evaluate(
    policy: Policy,
    rows: Sequence[Row],
    recipe: Recipe,
    cluster: Cluster | None = None,
    *,
    settings: GraderSettings | None = None,
    secrets: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Metrics prefixed `sampled_` and `greedy_`: solved_rate, reward_mean, grader_errors and the grader's own.

    With k = `evaluation.answers` > 1 the sampled means run over all answers, and `sampled_pass_at_k` is the share of
    prompts of which at least one answer is solved. Responses that could not be graded are counted and, where they are
    to be dropped, left out of the means.

    Args:
        settings: the operator's part of grading; None = the default.
        secrets: that the grader needs, by name.

    Raises:
        SpecError: the recipe's method has no grader, or one that cannot run here.
        GraderError: a response could not be graded, and the recipe's `grading.on_error` is fail.
    """
    _rollout(recipe)  # or there is nothing to open
    grading = open_grading(recipe, settings or GraderSettings(), secrets or {}, policy.device)
    assert grading is not None
    with grading:
        answers = answer(policy, rows, recipe, grading, cluster)
        answers.tell(0, grading)
        return answers.metrics(grading)


def answer(
    policy: Policy,
    rows: Sequence[Row],
    recipe: Recipe,
    grading: Grading,
    cluster: Cluster | None = None,
    *,
    given: Listener | None = None,
) -> Answers:
    """Answer and grade. A batch is graded in a thread while the next one is sampled, which changes no number.

    Args:
        given: is told each answer of this process once it is graded, in that thread, one at a time.

    Raises:
        SpecError: the recipe's method has no grader.
    """
    cluster = cluster or Cluster()
    rollout, k = _rollout(recipe), recipe.evaluation.answers
    with ThreadPoolExecutor(1, "grading") as beside:
        grade = _Grade(rows, grading, given)
        sampled = _sample(policy, rows, k, grade, recipe, cluster, rollout.temperature, beside)
        greedy = _sample(policy, rows, 1, grade, recipe, cluster, 0.0, beside, greedy=True)
        return Answers(_in_order(sampled, cluster), _in_order(greedy, cluster), k)


def decode_settings(policy: Policy, recipe: Recipe, n_rows: int) -> dict[str, Any]:
    """How `evaluate` decodes, to be stored beside its numbers.

    Raises:
        SpecError: the recipe's method has no grader.
    """
    rollout = _rollout(recipe)
    remasking = rollout.remasking or ("low_confidence" if rollout.threshold is not None else policy.remasking)
    return rollout.model_dump(mode="json") | {
        "remasking": remasking,
        "precision": recipe.precision,
        "seed": recipe.seed,
        "rows": n_rows,
        "answers": recipe.evaluation.answers,
    }


def autocast(policy: Policy, recipe: Recipe) -> torch.autocast:
    """bfloat16 compute over float32 weights, where the recipe asks for it: at RL learning rates bfloat16 weights would
    not move."""
    return torch.autocast(policy.device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bfloat16")


def answer_keys(seed: int, slots: Sequence[int], answers: int) -> Tensor:
    """Stream keys of the answers numbered row * answers + answer."""
    slot = torch.tensor(slots, dtype=torch.int64)
    row, answer = slot // answers, slot % answers
    keys = stream_keys(seed, Purpose.EVALUATION, row)
    # The first answer's stream is the row's own. The others' names are negative: the sampler's own parts are not.
    return torch.where(answer == 0, keys, substreams(keys, -answer))


def _rollout(recipe: Recipe) -> RolloutSpec:
    if recipe.method.grader is None or recipe.method.rollout is None:
        raise SpecError("evaluating answers needs a grader and a rollout", "method.grader")
    return recipe.method.rollout


@dataclass(frozen=True)
class _Grade:
    """What happens to a batch in the grading thread."""

    rows: Sequence[Row]
    grading: Grading
    given: Listener | None

    def __call__(self, slots: list[int], texts: list[str], answers: int, greedy: bool) -> list[Grade]:
        items = [self.rows[slot // answers].item for slot in slots]
        grades = self.grading.grader.grade_all([Sample(output_text=text) for text in texts], items)
        if self.given is not None:
            for slot, text, grade in zip(slots, texts, grades, strict=True):
                self.given(Given(slot, greedy, text, grade))
        return grades


def _sample(
    policy: Policy,
    rows: Sequence[Row],
    answers: int,
    grade: _Grade,
    recipe: Recipe,
    cluster: Cluster,
    temperature: float,
    beside: ThreadPoolExecutor,
    *,
    greedy: bool = False,
) -> list[tuple[list[int], Future[list[Grade]]]]:
    """This process's share of `answers` responses to each row: batches of slots, and their grades to come."""
    rollout, size = _rollout(recipe), recipe.evaluation.batch_size
    mine = cluster.share(range(len(rows) * answers))
    batches = []
    for slots in (mine[first : first + size] for first in range(0, len(mine), size)):
        part = [rows[slot // answers] for slot in slots]
        keys = answer_keys(recipe.seed, slots, answers)
        with autocast(policy, recipe):
            rollouts = sample(policy, [row.prompt_ids for row in part], rollout, keys, temperature=temperature)
        texts = [policy.decode(response) for response in rollouts.responses()]
        batches.append((slots, beside.submit(grade, slots, texts, answers, greedy)))
    return batches


def _in_order(batches: Sequence[tuple[list[int], Future[list[Grade]]]], cluster: Cluster) -> list[Grade]:
    """The grades of all processes by slot."""
    found = [
        (slot, compact(grade)) for slots, graded in batches for slot, grade in zip(slots, graded.result(), strict=True)
    ]
    return [grade for _, grade in sorted(cluster.gather(found), key=lambda pair: pair[0])]
