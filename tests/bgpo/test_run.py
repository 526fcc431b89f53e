"""`python -m bgpo.run` in real processes: records, exit codes, commands, and resuming bit by bit."""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bgpo.models import load_policy
from bgpo.records import (
    CheckpointRecord,
    EndRecord,
    ErrorRecord,
    ExitCode,
    LogRecord,
    MetricRecord,
    PhaseRecord,
    Record,
    SampleRecord,
    exit_code_of,
    parse_record,
)
from tests.bgpo.trainer_process import ENVIRONMENT, PATIENCE_S, TrainerProcess, train_metric

GRADER = {
    "type": "string_check",
    "name": "letter",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "like",
}
ROLLOUT = {"max_completion_length": 8, "block_length": 4, "diffusion_steps": 4, "temperature": 1.0}
REINFORCEMENT: dict[str, Any] = {
    "type": "reinforcement",
    "grader": GRADER,
    "rollout": ROLLOUT,
    "optimizer": {"learning_rate": 0.003, "warmup_steps": 3, "weight_decay": 0.01},
    "max_steps": 4,
    "batch_size": 4,
    "group_size": 4,
    "mc_samples": 3,
    "micro_batch": 8,
}
SUPERVISED: dict[str, Any] = {
    "type": "supervised",
    "optimizer": {"learning_rate": 0.003, "warmup_steps": 3},
    "max_steps": 4,
    "batch_size": 6,
    "max_completion_length": 8,
}
Start = Callable[..., TrainerProcess]

pytestmark = pytest.mark.timeout(300)  # several processes a test, each of which imports torch


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("train", 14), ("validation", 9)):
        rows = [
            {
                "messages": [
                    {"role": "user", "content": "?" * (i % 3)},
                    {"role": "assistant", "content": "aioe"[i % 4] * (1 + i % 5)},
                ],
                "answer": "aioe"[i % 4],
            }
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"train_data": str(folder / "train.jsonl"), "validation_data": str(folder / "validation.jsonl")}


@pytest.fixture(scope="module")
def start(wordy_checkpoint: Path, data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts trainers, each with its own output folder, and leaves none behind."""
    started: list[TrainerProcess] = []

    def run(method: dict[str, Any], *, supervised: bool = True, **fields: Any) -> TrainerProcess:
        folder = tmp_path_factory.mktemp("run")
        defaults = {"model": str(wordy_checkpoint), **data, "output_dir": str(folder / "out"), "seed": 5, "threads": 1}
        started.append(TrainerProcess({**defaults, "method": method, **fields}, folder, supervised=supervised))
        return started[-1]

    yield run
    for process in started:
        process.release()


@pytest.fixture(scope="module")
def finished(start: Start) -> TrainerProcess:
    """A whole reinforcement run: four steps, evaluated at each second, checkpoints at each second."""
    process = start(
        REINFORCEMENT, evaluation={"interval": 2}, checkpointing={"every_steps": 1, "keep_last": 1}, sample_log=3
    )
    assert process.finish() == ExitCode.FINISHED, process.stderr
    return process


def test_records_are_numbered_and_tell_the_whole_story(finished: TrainerProcess) -> None:
    records = finished.records
    assert [record.seq for record in records] == list(range(1, len(records) + 1))
    assert [record.time for record in records] == sorted(record.time for record in records)
    phases = [(record.phase, record.step) for record in records if isinstance(record, PhaseRecord)]
    story: list[tuple[str, int]] = [("loading_model", 0), ("evaluating", 0)]
    for step in (1, 2, 3, 4):
        story += [("rollout", step), ("grading", step), ("training", step)]
        story += [("evaluating", step)] if step % 2 == 0 else []
        story += [("checkpointing", step)]
    assert phases == story
    assert not [record for record in records if isinstance(record, ErrorRecord | LogRecord)]
    assert finished.stderr == ""


def test_metrics_come_for_every_step(finished: TrainerProcess) -> None:
    metrics = [record for record in finished.records if isinstance(record, MetricRecord)]
    assert {record.total_steps for record in metrics} == {4}
    assert [record.step for record in metrics if record.split == "train"] == [1, 2, 3, 4]
    assert [record.step for record in metrics if record.split == "validation"] == [0, 2, 4]
    for record in metrics:
        assert all(math.isfinite(value) for value in record.values.values())
        if record.split == "validation":
            assert set(record.values) == {
                *(
                    f"{mode}_{name}"
                    for mode in ("sampled", "greedy")
                    for name in (
                        *("solved_rate", "reward_mean", "reward/letter"),
                        *("responses", "grader_errors", "grader_error_rate"),
                    )
                ),
                "seconds_grader/letter",
                "seconds_evaluate",
            }
        else:
            assert {"seconds_rollout", "seconds_reward", "seconds_loss", "seconds_step"} <= set(record.values)
            assert {"reward_mean", "entropy", "frac_zero_signal_groups", "tokens_per_second"} <= set(record.values)
    steps = [finished.metrics("train")[step] for step in (1, 2, 3, 4)]
    # The warm-up counts updates: a step without any signal makes none.
    updates = [sum("loss" in earlier for earlier in steps[:i]) for i in range(4)]
    assert updates[-1] > 1
    assert [step["learning_rate"] for step in steps] == pytest.approx([min(n + 1, 3) / 1000 for n in updates])


def test_samples_are_real_answers(finished: TrainerProcess) -> None:
    samples = [record for record in finished.records if isinstance(record, SampleRecord)]
    assert [(record.step, record.index) for record in samples] == [(s, i) for s in (1, 2, 3, 4) for i in (0, 1, 2)]
    for record in samples:
        assert set(record.prompt) <= {"?"}
        assert record.reward in (0.0, 1.0)
        assert record.scores == {"letter": record.reward}
        assert record.error is None
    assert len({record.completion for record in samples}) > 6


def test_checkpoints_are_complete_and_not_pruned_under_a_supervisor(finished: TrainerProcess) -> None:
    reported = finished.checkpoints()
    assert [(record.step, record.final) for record in reported] == [(1, False), (2, False), (3, False), (4, True)]
    for record in reported:
        manifest = json.loads((Path(record.path) / "manifest.json").read_text())
        assert manifest["step"] == record.step
        assert all((Path(record.path) / file["path"]).is_file() for file in manifest["files"])
    validation = finished.metrics("validation")
    assert reported[-1].metrics == validation[4]
    assert reported[1].metrics == validation[2]
    assert load_policy(reported[-1].path).end_ids


def test_a_fresh_process_reproduces_the_last_evaluation(
    finished: TrainerProcess, data: dict[str, str], tmp_path: Path
) -> None:
    """With the recipe of the checkpoint alone; at another batch size, which never changes the result."""
    checkpoint = Path(finished.checkpoints()[-1].path)
    recipe = json.loads((checkpoint / "trainer_state" / "state.json").read_text())["recipe"]
    recipe["evaluation"]["batch_size"] = 4
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    command = [sys.executable, "-m", "bgpo.evaluate", "--model", str(checkpoint), "--data", data["validation_data"]]
    options = ["--recipe", str(tmp_path / "recipe.json"), "--json", str(tmp_path / "out.json"), "--threads", "1"]
    done = subprocess.run(
        [*command, *options], env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "out.json").read_text())
    assert measured == json.loads(done.stdout)
    assert measured == finished.metrics("validation")[4]


def weights_of(checkpoint: CheckpointRecord) -> dict[str, bytes]:
    folder = Path(checkpoint.path)
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "trainer_state/optimizer.safetensors")}


def check_resumed(
    start: Start, whole: TrainerProcess, method: dict[str, Any], first: int, last: int, **fields: Any
) -> Path:
    """Go on from the first of two checkpoints of a run to the last: everything is as in the run that did not stop."""
    by_step = {record.step: record for record in whole.checkpoints()}
    resumed = start({**method, "max_steps": last}, resume_from=by_step[first].path, **fields)
    assert resumed.finish() == ExitCode.FINISHED, resumed.stderr
    final = resumed.checkpoints()[-1]
    assert (final.step, final.final) == (last, True)
    assert weights_of(final) == weights_of(by_step[last])
    assert any("loss" in values for values in resumed.metrics("train").values()), "something must be learned"
    steps = range(first + 1, last + 1)
    assert resumed.metrics("train") == {step: whole.metrics("train")[step] for step in steps}
    assert last in resumed.metrics("validation")
    return Path(final.path)


def test_an_on_policy_run_resumes_bit_by_bit(start: Start, finished: TrainerProcess) -> None:
    check_resumed(start, finished, REINFORCEMENT, 2, 4)


def test_an_off_policy_run_resumes_bit_by_bit_also_after_cancel(start: Start) -> None:
    method = {**REINFORCEMENT, "num_inner_updates": 2}
    cancelled = start({**method, "max_steps": 100_000}, checkpointing={"every_steps": 1}, validation_data=None)
    cancelled.wait_for(lambda record: isinstance(record, CheckpointRecord) and record.step == 3)
    cancelled.command("cancel")
    assert cancelled.finish() == ExitCode.CANCELLED
    assert isinstance(cancelled.records[-1], EndRecord)
    assert cancelled.records[-1].status == ExitCode.CANCELLED
    steps = [record.step for record in cancelled.checkpoints()]
    assert steps == list(range(1, len(steps) + 1))
    check_resumed(start, cancelled, method, steps[-1] - 2, steps[-1])


def test_a_supervised_run_obeys_checkpoint_and_pause_and_resumes_bit_by_bit(start: Start) -> None:
    paused = start({**SUPERVISED, "max_steps": 100_000})
    paused.wait_for(train_metric(1))
    paused.command("nonsense")
    paused.command("checkpoint")
    saved = paused.wait_for(lambda record: isinstance(record, CheckpointRecord))
    assert isinstance(saved, CheckpointRecord)
    paused.wait_for(train_metric(saved.step + 1))
    paused.command("pause")
    assert paused.finish() == ExitCode.STOPPED, paused.stderr
    asked, stop = paused.checkpoints()
    assert not asked.final
    assert not stop.final
    assert stop.step == max(paused.metrics("train")), "no step is lost"
    # From a shell: nobody else looks after the checkpoints, so the last ones are kept.
    keep = {"every_steps": 1, "keep_last": 1}
    last = check_resumed(start, paused, SUPERVISED, asked.step, stop.step, supervised=False, checkpointing=keep)
    assert [p.name for p in last.parent.iterdir()] == [f"step-{stop.step:06d}"]


@pytest.mark.parametrize("stop", [TrainerProcess.terminate, TrainerProcess.close_stdin], ids=["sigterm", "parent_gone"])
def test_a_run_that_is_stopped_leaves_a_checkpoint(start: Start, stop: Callable[[TrainerProcess], None]) -> None:
    process = start({**SUPERVISED, "max_steps": 100_000}, validation_data=None)
    process.wait_for(train_metric(1))
    stop(process)
    assert process.finish() == ExitCode.STOPPED, process.stderr
    (saved,) = process.checkpoints()
    assert saved.step == max(process.metrics("train"))
    assert process.records[-2] == saved
    assert (Path(saved.path) / "manifest.json").is_file()


def test_a_full_disk_ends_the_run_with_what_it_has_saved(start: Start) -> None:
    process = start({**SUPERVISED, "max_steps": 100_000}, validation_data=None)
    process.wait_for(train_metric(1))
    process.command("checkpoint")
    saved = process.wait_for(lambda record: isinstance(record, CheckpointRecord))
    assert isinstance(saved, CheckpointRecord)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (10_000, 10_000))  # no file of it grows beyond these bytes
    process.wait_for(train_metric(saved.step + 1))  # a pause at the saved step itself has nothing to write
    process.command("pause")
    assert process.finish() == ExitCode.DISK_FULL, process.stderr
    error = error_of(process.records)
    assert (error.code, error.phase) == ("disk_full", "checkpointing")
    assert list(Path(saved.path).parent.iterdir()) == [Path(saved.path)]


def test_a_misspelt_field_is_named(start: Start) -> None:
    process = start({**SUPERVISED, "optimizer": {"learning_rte": 1.0}}, supervised=False)
    assert process.finish() == ExitCode.BAD_SPEC
    error, end = process.records
    assert isinstance(end, EndRecord)
    assert end.status == ExitCode.BAD_SPEC
    assert isinstance(error, ErrorRecord)
    assert (error.code, error.param) == ("invalid_spec", "method.optimizer.learning_rte")


MANY_RUNS = """
import os, sys
from bgpo.run import main
for spec in sys.argv[1:]:
    os.dup2(os.open(spec + ".records", os.O_WRONLY | os.O_CREAT), 1)
    code = main([spec])
    os.write(1, b"%d" % code)
"""
"""Several runs in one process, since importing torch takes longer than any of them."""

Failure = Callable[[str], tuple[int, list[Record]]]


@pytest.fixture(scope="module")
def failure(data: dict[str, str], wordy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Failure:
    """Exit code and records of runs that fail, by name."""
    folder = tmp_path_factory.mktemp("failures")
    lines = Path(data["train_data"]).read_text().splitlines()
    lines[2] = lines[2][:-5]
    (folder / "broken.jsonl").write_text("\n".join(lines))
    ungradable = {**REINFORCEMENT, "grader": {**GRADER, "reference": "{{ item.solution }}"}}
    specs: dict[str, dict[str, Any]] = {
        "data": {"method": SUPERVISED, "train_data": str(folder / "broken.jsonl")},
        "model": {"method": SUPERVISED, "model": str(folder / "nowhere")},
        "diverges": {"method": {**SUPERVISED, "optimizer": {"learning_rate": 1e30}, "max_steps": 20}},
        "grader": {"method": ungradable},
        "first_error": {"method": ungradable, "grading": {"on_error": "fail"}, **data},
    }
    for name, fields in specs.items():
        paths = {"model": str(wordy_checkpoint), "train_data": data["train_data"], "output_dir": str(folder / "out")}
        (folder / name).write_text(json.dumps({**paths, "threads": 1, **fields}))
    command = [sys.executable, "-c", MANY_RUNS, *(str(folder / name) for name in specs)]
    done = subprocess.run(
        command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr.decode()

    def result(name: str) -> tuple[int, list[Record]]:
        *records, code = (folder / f"{name}.records").read_bytes().splitlines()
        return int(code), [parse_record(line) for line in records]

    return result


def error_of(records: list[Record]) -> ErrorRecord:
    *_, error, end = records
    assert isinstance(end, EndRecord), records
    assert isinstance(error, ErrorRecord), records
    assert end.status == exit_code_of(error.code)
    return error


def test_a_bad_line_is_named(failure: Failure) -> None:
    code, records = failure("data")
    error = error_of(records)
    assert code == ExitCode.BAD_DATA
    assert (error.code, error.param, error.phase) == ("invalid_file_format", "train_data", "loading_model")
    assert "line 3" in error.message


def test_a_bad_model_is_named(failure: Failure) -> None:
    code, records = failure("model")
    assert code == ExitCode.BAD_MODEL
    assert error_of(records).code == "bad_model"
    assert "nowhere" in error_of(records).message


def test_training_that_diverges_fails_with_the_field_to_change(failure: Failure) -> None:
    code, records = failure("diverges")
    error = error_of(records)
    assert code == ExitCode.NON_FINITE
    assert (error.code, error.param) == ("nan", "method.optimizer.learning_rate")
    assert error.step == 4, "one step breaks the weights, three are skipped"
    warnings = [record.message for record in records if isinstance(record, LogRecord) and record.level == "warn"]
    assert any("grad_norm" in message for message in warnings)


def test_a_grader_that_fits_no_row_fails_the_run(failure: Failure) -> None:
    code, records = failure("grader")
    error = error_of(records)
    assert code == ExitCode.GRADER
    assert (error.code, error.param, error.phase, error.step) == ("grader_error", "method.grader", "grading", 1)
    assert "16 of the 16 samples of the step could not be graded (100%, max_error_rate 0.5)" in error.message
    assert "letter: invalid_variable_error on 16 samples, such as: " in error.message
    assert "solution" in error.message
    (warning,) = [record for record in records if isinstance(record, LogRecord)]
    assert warning.data is not None
    assert (warning.data["grader"], warning.data["count"]) == ("letter", 16)


def test_fail_ends_the_run_at_its_first_evaluation(failure: Failure) -> None:
    code, records = failure("first_error")
    error = error_of(records)
    assert code == ExitCode.GRADER
    assert (error.code, error.phase, error.step) == ("grader_error", "evaluating", 0)
    assert "of the evaluation could not be graded (on_error is fail)" in error.message
