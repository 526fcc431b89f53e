"""Tasks of `python -m bgpo.run` in real processes: what an evaluation and an export tell, and how they end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bgpo.models import load_policy
from bgpo.records import CheckpointRecord, ErrorRecord, ExitCode, MetricRecord, PhaseRecord, SampleRecord
from bgpo.rewards import Grade, compile_grader
from bgpo.spec import GradingSpec
from bgpo.task_spec import EvaluationTask
from bgpo.training.data import load_prompts
from bgpo.training.evaluation import Answers, evaluate
from bgpo.training.grading import Grading
from bgpo.training.task_run import spread
from tests.bgpo.trainer_process import TrainerProcess

GRADER = {
    "type": "string_check",
    "name": "letter",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "like",
}
ROLLOUT = {"max_completion_length": 8, "block_length": 4, "diffusion_steps": 4, "temperature": 1.0}
ROWS = 7
Start = Callable[..., TrainerProcess]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"{i}?"}], "answer": "aioe"[i % 4]} for i in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts tasks and leaves none behind."""
    started: list[TrainerProcess] = []

    def run(**fields: Any) -> TrainerProcess:
        spec = {"output_dir": str(tmp_path / "out"), "device": "cpu", "threads": 1} | fields
        started.append(TrainerProcess(spec, tmp_path))
        return started[-1]

    yield run
    for process in started:
        process.release()


def evaluation(model: Path, data: Path, *, answers: int = 2, **grader: Any) -> dict[str, Any]:
    method = {"type": "reinforcement", "grader": GRADER | grader, "rollout": ROLLOUT}
    recipe = {"seed": 5, "method": method, "evaluation": {"answers": answers, "batch_size": 4}}
    return {"task": "evaluate", "model": str(model), "data": str(data), "recipe": recipe}


def final(process: TrainerProcess) -> CheckpointRecord:
    (record,) = process.checkpoints()
    assert record.final
    manifest = json.loads((Path(record.path) / "manifest.json").read_text())
    names = {path.relative_to(record.path).as_posix() for path in Path(record.path).rglob("*") if path.is_file()}
    assert {file["path"] for file in manifest["files"]} == names - {"manifest.json"}
    return record


def test_an_evaluation_tells_every_answer_and_the_trainers_numbers(
    start: Start, wordy_checkpoint: Path, data: Path
) -> None:
    fields = evaluation(wordy_checkpoint, data)
    process = start(**fields)
    assert process.finish() == ExitCode.FINISHED, process.stderr
    phases = [record.phase for record in process.records if isinstance(record, PhaseRecord)]
    assert phases == ["loading_model", "evaluating", "checkpointing"]
    result = final(process)
    spec = EvaluationTask.model_validate_json(json.dumps(fields | {"output_dir": "x"}))
    policy = load_policy(wordy_checkpoint)
    expected = evaluate(policy, load_prompts(data, policy, 8, param="data"), spec.recipe)
    assert {name: result.metrics[name] for name in expected} == expected
    assert 0 < expected["sampled_solved_rate"] < 1
    samples = [record for record in process.records if isinstance(record, SampleRecord)]
    assert sorted(record.index for record in samples) == list(range(ROWS * 3)), "two sampled, one greedy for each row"
    sampled = [record for record in samples if record.index % 3 < 2]
    assert sum(record.reward or 0 for record in sampled) / len(sampled) == expected["sampled_reward_mean"]
    assert {record.prompt for record in samples if record.index // 3 == 4} == {"4?"}
    lines = [json.loads(line) for line in (Path(result.path) / "results.jsonl").read_text().splitlines()]
    by_index = {line["row"] * 3 + (2 if line["greedy"] else line["answer"]): line for line in lines}
    assert {index: line["completion"] for index, line in by_index.items()} == {
        record.index: record.completion for record in samples
    }
    (metric,) = [record for record in process.records if isinstance(record, MetricRecord)]
    assert (metric.split, metric.step) == ("validation", 0)
    assert metric.values["seconds_evaluate"] > 0


def test_a_grader_that_fails_is_counted_and_said(start: Start, wordy_checkpoint: Path, data: Path) -> None:
    process = start(**evaluation(wordy_checkpoint, data, answers=1, reference="{{ item.nothing }}"))
    assert process.finish() == ExitCode.FINISHED, process.stderr
    metrics = final(process).metrics
    assert (metrics["sampled_grader_errors"], metrics["sampled_graded"]) == (ROWS, 0)
    assert "sampled_reward_mean" not in metrics
    samples = [record for record in process.records if isinstance(record, SampleRecord)]
    assert all(record.reward is None and "invalid_variable_error" in (record.error or "") for record in samples)


def test_a_bad_row_names_its_line(start: Start, wordy_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"messages": []}\n')
    process = start(**evaluation(wordy_checkpoint, tmp_path / "bad.jsonl"))
    assert process.finish() == ExitCode.BAD_DATA
    (error,) = [record for record in process.records if isinstance(record, ErrorRecord)]
    assert (error.param, "line 1" in error.message) == ("data", True)


@pytest.mark.parametrize(
    ("stop", "status"),
    [
        (lambda process: process.command("pause"), ExitCode.STOPPED),
        (lambda process: process.terminate(), ExitCode.STOPPED),
        (lambda process: process.close_stdin(), ExitCode.STOPPED),
        (lambda process: process.command("cancel"), ExitCode.CANCELLED),
    ],
    ids=["pause", "sigterm", "parent gone", "cancel"],
)
def test_an_evaluation_stops_at_once(
    start: Start, wordy_checkpoint: Path, data: Path, stop: Callable[[TrainerProcess], None], status: ExitCode
) -> None:
    process = start(**evaluation(wordy_checkpoint, data, answers=5000))
    process.wait_for(lambda record: isinstance(record, SampleRecord))
    stop(process)
    assert process.finish() == status
    assert process.checkpoints() == []


def test_an_export_leaves_a_complete_model(start: Start, wordy_checkpoint: Path) -> None:
    fields = {"task": "export", "model": str(wordy_checkpoint), "content": "merged", "dtype": "bfloat16"}
    process = start(**fields, base_name="tiny")
    assert process.finish() == ExitCode.FINISHED, process.stderr
    weights = load_file(Path(final(process).path) / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    assert load_policy(final(process).path).end_ids


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"task": "dance"}, "task"), ({"task": "export", "dtype": "int8"}, "content"), ({"task": 5}, "task")],
)
def test_a_wrong_specification_names_its_field(start: Start, fields: dict[str, Any], param: str) -> None:
    process = start(**fields, model="m", base_name="b")
    assert process.finish() == ExitCode.BAD_SPEC
    (error,) = [record for record in process.records if isinstance(record, ErrorRecord)]
    assert error.param == param


def test_standard_errors_are_over_prompts_not_answers() -> None:
    def grades(*scores: float) -> list[Grade]:
        return [Grade(score, solved=score == 1) for score in scores]

    with Grading(compile_grader(GRADER), GradingSpec()) as grading:
        found = spread(Answers(grades(1, 1, 0, 0, 1, 0), grades(1, 0, 0), 2), grading)
        # Means of the three prompts: 1, 0, 0.5, whose deviation is 0.5.
        assert found["sampled_reward_stderr"] == pytest.approx(0.5 / 3**0.5)
        assert found["greedy_reward_stderr"] == pytest.approx((1 / 3) ** 0.5 / 3**0.5)
        assert (found["sampled_graded"], found["greedy_graded"]) == (6, 3)
        alone = spread(Answers(grades(1), grades(1), 1), grading)
        assert alone == {"sampled_graded": 1.0, "greedy_graded": 1.0}
