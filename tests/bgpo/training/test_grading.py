"""Samples that the grader fails on: dropped, zeroed, or the end of the run; told, counted, and too many of them."""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from bgpo.errors import GraderError, SpecError
from bgpo.models import Policy
from bgpo.records import LogRecord, SampleRecord
from bgpo.rewards import Grade, GradeErrorInfo, Grader, Part, Sample
from bgpo.rewards.grade import GradeFault
from bgpo.spec import GradingSpec, RunSpec
from bgpo.training.evaluation import answer, evaluate
from bgpo.training.grading import FEWEST, WINDOW, Grading
from bgpo.training.groups import Collected
from bgpo.training.reporter import Stopwatch
from tests.bgpo.training.harness import GROUP, PROMPTS, STEP, Harness, grading_of, rows_of, run_spec

Start = Callable[..., Harness]
TRACEBACK = "Traceback (most recent call last):\n  line 3, in grade\nZeroDivisionError: division by zero"


class Flaky(Grader):
    """Finds the answer, and raises on a share of the samples that depends on nothing but the sample."""

    name, type = "flaky", "python"

    def __init__(self, share: float) -> None:
        self._share = share
        self.calls = 0
        self.raised = 0
        self.closed = False

    def fails_on(self, sample: Sample, item: Mapping[str, Any]) -> bool:
        text = f"{sample.output_text} {item['messages']} {item['answer']}"
        return zlib.crc32(text.encode()) / 2**32 < self._share

    def close(self) -> None:
        self.closed = True

    def _grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        self.calls += 1
        if self.fails_on(sample, item):
            self.raised += 1
            raise GradeFault("division by zero", "python_grader_runtime_error", TRACEBACK)
        found = item["answer"] in sample.output_text
        return Grade(float(found), found)


def spec_of(grading: dict[str, Any] | None = None, **method: Any) -> RunSpec:
    spec = run_spec(**method)
    return spec.model_copy(update={"grading": GradingSpec(**grading or {})})


def collect(harness: Harness, step: int) -> Collected:
    return harness.trainer._collector.collect(step, Stopwatch())


def grades(errors: int, of: int) -> list[Grade]:
    info = GradeErrorInfo("python_grader_runtime_error", "boom", TRACEBACK)
    bad = Grade(0.0, False, error=info, parts={"g": Part("g", "python", None, info, 0.1)})
    return [bad] * errors + [Grade(1.0, True)] * (of - errors)


def judged(steps: Sequence[tuple[int, int]], last: int | None = None, **spec: Any) -> int | None:
    """The step, from 1, after which a run with so many errors of so many samples ends; None when it goes on."""
    grading = Grading(Flaky(0), GradingSpec(**spec))
    for step, (errors, of) in enumerate(steps, 1):
        try:
            grading.judge(grades(errors, of), last=step == last)
        except GraderError:
            return step
    return None


@pytest.mark.parametrize(
    ("steps", "rate", "ends"),
    [
        ([(WINDOW // 2, WINDOW)], 0.5, 1),  # one full step is a window
        ([(WINDOW // 2 - 1, WINDOW)], 0.5, None),
        ([(15, 16)] * 20, 0.5, WINDOW // 16),  # small ones wait until they fill one
        ([(5, 16)] * 100, 0.5, None),
        ([(5, 16)] * 100, 0.3, WINDOW // 16),
        ([(0, 16)] * 8 + [(16, 16)] * 8, 0.5, 12),  # errors begin: when half of the window has them
        ([(0, 16)] * 8 + [(16, 16)] * 3 + [(0, 16)] * 9, 0.5, None),  # a bad while passes
        ([(12, 16)] * 7 + [(1, 16)] * 9, 0.5, None),  # it has recovered, though the window is still bad
        ([(FEWEST, FEWEST)], 0.5, 1),  # never anything else
        ([(4, 4)] * 4, 1.0, FEWEST // 4),
        ([(4, 4)] * 3 + [(3, 4)] * 100, 1.0, None),
        ([(1, WINDOW)], 0.0, 1),
        ([(0, WINDOW)], 0.0, None),
    ],
)
def test_when_errors_end_a_run(steps: list[tuple[int, int]], rate: float, ends: int | None) -> None:
    assert judged(steps, max_error_rate=rate) == ends
    assert judged(steps, max_error_rate=rate, on_error="zero") == ends


def test_the_last_step_judges_what_there_is() -> None:
    assert judged([(3, 4)] * 2, last=2) == 2
    assert judged([(1, 4)] * 2, last=2) is None


def test_a_resumed_run_ends_where_an_undisturbed_one_does() -> None:
    steps = [(0, 16)] * 8 + [(16, 16)] * 8
    spec = GradingSpec(max_error_rate=0.5)
    for stop in (0, 4, 8, 11):
        first, second = Grading(Flaky(0), spec), Grading(Flaky(0), spec)
        for errors, of in steps[:stop]:
            first.judge(grades(errors, of), last=False)
        second.restore(json.loads(json.dumps(first.state())))
        for errors, of in steps[stop:11]:
            second.judge(grades(errors, of), last=False)
        with pytest.raises(GraderError, match="64 of the 128 samples of the last 8 steps"):
            second.judge(grades(16, 16), last=False)
    fresh = Grading(Flaky(0), spec)
    fresh.restore(None)
    assert fresh.state() == []


def test_the_error_says_how_many_and_which_with_a_traceback() -> None:
    grading = Grading(Flaky(0), GradingSpec(max_error_rate=0.25))
    other = Grade(0.0, False, error=GradeErrorInfo("invalid_variable_error", "no item.answer"))
    with pytest.raises(GraderError) as caught:
        grading.judge([*grades(40, 125), other, other, other], last=False)
    assert caught.value.message == (
        "43 of the 128 samples of the step could not be graded (34%, max_error_rate 0.25). "
        "The latest: g: python_grader_runtime_error on 40 samples, such as: boom; "
        "flaky: invalid_variable_error on 3 samples, such as: no item.answer"
    )
    assert (caught.value.param, caught.value.details) == ("method.grader", TRACEBACK)


def test_a_grader_that_raises_on_some_samples_does_not_stop_the_run(wordy: Policy, start: Start) -> None:
    grader = Flaky(0.3)
    harness = start(wordy, rows_of(wordy), spec_of(group_size=8), grader=grader)
    steps = [harness.step(step) for step in range(1, 7)]
    assert 0.15 < grader.raised / grader.calls < 0.45
    assert sum(values["grader_errors"] for values in steps) == grader.raised
    for values in steps:
        assert values["responses"] == PROMPTS * 8
        assert values["grader_error_rate"] == values["grader_errors"] / (PROMPTS * 8)
        assert values["grader_errors"] == values.get("grader_errors/flaky/python_grader_runtime_error", 0)
        assert values["seconds_grader/flaky"] > 0
    assert sum("grad_norm" in values for values in steps) > 2, "it learns from the others"
    (first, *_) = told = [record for record in harness.records() if isinstance(record, LogRecord)]
    assert len(told) == 1, "the same error, not yet due again"
    assert "grader 'flaky' failed on" in first.message
    assert first.data is not None
    assert first.data["traceback"] == TRACEBACK
    samples = [record for record in harness.records() if isinstance(record, SampleRecord)]
    bad = [record for record in samples if record.error is not None]
    assert 0 < len(bad) < len(samples)
    for record in bad:
        assert record.error == "python_grader_runtime_error: division by zero"
        assert (record.reward, record.scores) == (None, {})


def test_an_error_leaves_its_group_or_is_a_zero_in_it(wordy: Policy, start: Start) -> None:
    grader = Flaky(0.3)
    found = {}
    for mode in ("drop", "zero"):
        harness = start(wordy, rows_of(wordy), spec_of({"on_error": mode}, group_size=8), grader=grader)
        collected = collect(harness, 1)
        for slot, group in collected.own.items():
            rewards = torch.tensor([grade.score for grade in group.record.grades])
            valid = torch.tensor([mode == "zero" or grade.error is None for grade in group.record.grades])
            expected = torch.zeros(8)
            if rewards[valid].std(unbiased=False) > 0:
                expected[valid] = (rewards[valid] - rewards[valid].mean()) / rewards[valid].std(unbiased=False)
            assert group.advantages == pytest.approx(expected.tolist(), abs=1e-6), (mode, slot)
            found[mode, slot] = group.advantages
    assert any(found["drop", slot] != found["zero", slot] for slot in range(PROMPTS))


def test_with_zero_the_metrics_and_samples_have_the_zeros(wordy: Policy, start: Start) -> None:
    spec = spec_of({"on_error": "zero"}, group_size=8)
    harness = start(wordy, rows_of(wordy), spec, grader=Flaky(0.5))
    scores = [grade.score for record in collect(harness, STEP).records for grade in record.grades]
    assert harness.step()["reward_mean"] == pytest.approx(sum(scores) / len(scores))
    samples = [record for record in harness.records() if isinstance(record, SampleRecord)]
    assert any(record.error is not None for record in samples)
    assert all(record.reward == 0 for record in samples if record.error is not None)


def test_fail_ends_the_run_at_the_first_error(wordy: Policy, start: Start) -> None:
    harness = start(wordy, rows_of(wordy), spec_of({"on_error": "fail"}), grader=Flaky(0.9))
    words = "of the step could not be graded .on_error is fail.*division by zero"
    with pytest.raises(GraderError, match=words) as caught:
        harness.step(1)
    assert caught.value.details == TRACEBACK
    assert any(isinstance(record, LogRecord) for record in harness.records()), "told as well"


def test_a_small_step_of_errors_alone_changes_nothing(wordy: Policy, start: Start) -> None:
    """Fewer samples than say anything of a grader: no update, and no metric of rewards."""
    harness = start(wordy, rows_of(wordy), spec_of(batch_size=1), grader=Flaky(1.0))
    values = harness.step(1)
    assert values["grader_error_rate"] == 1
    assert not {"reward_mean", "reward_std", "solved_rate", "grad_norm"} & values.keys()
    for step in range(2, FEWEST // GROUP):
        harness.step(step)
    with pytest.raises(GraderError, match=f"{FEWEST} of the {FEWEST} samples of the last {FEWEST // GROUP} steps"):
        harness.step(FEWEST // GROUP)


def test_evaluations_count_errors_and_drop_or_zero_them(wordy: Policy) -> None:
    rows, grader = rows_of(wordy, 13), Flaky(0.3)
    for mode in ("drop", "zero"):
        spec = spec_of({"on_error": mode})
        grading = Grading(grader, spec.grading)
        answers = answer(wordy, rows, spec, grading)
        values = answers.metrics(grading)
        for which, found in (("sampled", answers.sampled), ("greedy", answers.greedy)):
            errors = sum(grade.error is not None for grade in found)
            graded = len(found) if mode == "zero" else len(found) - errors
            assert values[f"{which}_grader_errors"] == errors
            assert values[f"{which}_grader_error_rate"] == errors / 13
            assert values[f"{which}_reward_mean"] == sum(grade.score for grade in found) / graded
            assert values.get(f"{which}_grader_errors/flaky/python_grader_runtime_error", 0) == errors
        assert values["sampled_grader_errors"] > 0
        assert set(answers.seconds()) == {"seconds_grader/flaky"}
        answers.tell(0, grading)
    failing = Grading(grader, GradingSpec(on_error="fail"))
    with pytest.raises(GraderError, match="of the evaluation could not be graded"):
        answers.tell(0, failing)


def test_evaluate_ends_at_an_error_too(wordy: Policy) -> None:
    rows = rows_of(wordy, 3)
    del rows[1].item["answer"]
    assert evaluate(wordy, rows, spec_of())["sampled_grader_errors"] == 1
    with pytest.raises(GraderError, match="invalid_variable_error"):
        evaluate(wordy, rows, spec_of({"on_error": "fail"}))


def test_a_batch_is_graded_while_the_next_one_is_sampled(wordy: Policy) -> None:
    """The first batch's grading waits for a forward pass of the second: one after the other would never end."""
    sampling = threading.Event()
    begun = threading.Event()

    class Waiting(Flaky):
        def _grade_all(self, samples: Sequence[Sample], items: Sequence[Mapping[str, Any]]) -> list[Grade]:
            if self.calls == 0:
                begun.set()
                assert sampling.wait(60), "nothing was sampled meanwhile"
            return super()._grade_all(samples, items)

    def hook(*_: Any) -> None:
        if begun.is_set():
            sampling.set()

    # Greedy answers follow the sampled ones, so there is a pass to wait for however fast the thread starts.
    spec = spec_of().model_copy(update={"evaluation": spec_of().evaluation.model_copy(update={"batch_size": 2})})
    handle = wordy.model.register_forward_hook(hook)
    try:
        rows = rows_of(wordy, 8)
        beside = answer(wordy, rows, spec, Grading(Waiting(0), spec.grading))
    finally:
        handle.remove()
    alone = answer(wordy, rows, spec, Grading(Flaky(0), spec.grading))
    assert [grade.score for grade in beside.sampled] == [grade.score for grade in alone.sampled]
    assert [grade.score for grade in beside.greedy] == [grade.score for grade in alone.greedy]


def test_a_grader_that_cannot_run_here_is_named_by_its_path() -> None:
    judge = {"type": "reward_model", "name": "r", "model": "none-such"}
    with pytest.raises(SpecError) as caught:
        grading_of(run_spec(grader=judge))
    assert str(caught.value.param).startswith("method.grader.")


def test_it_is_closed_with_the_block() -> None:
    grader = Flaky(0)
    with Grading(grader, GradingSpec()):
        assert not grader.closed
    assert grader.closed
