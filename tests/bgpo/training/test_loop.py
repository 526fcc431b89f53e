"""The loop in this process: resuming bit by bit in every combination, the best checkpoint, early stopping, adapters.

Signals, commands and exit codes need real processes: tests/bgpo/test_run.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bgpo import evaluate as evaluate_command
from bgpo.errors import ModelError, SpecError
from bgpo.models import load_policy
from bgpo.records import CheckpointRecord, LogRecord, MetricRecord, Record, RecordWriter, parse_record
from bgpo.spec import parse_run_spec
from bgpo.training.checkpoint import read_state
from bgpo.training.control import Control
from bgpo.training.loop import Run
from bgpo.training.reporter import Reporter

GRADER = {
    "type": "string_check",
    "name": "letter",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "like",
}
ROLLOUT = {"max_completion_length": 8, "block_length": 4, "diffusion_steps": 4, "temperature": 1.0}
OPTIMIZER = {"learning_rate": 0.003, "warmup_steps": 3, "weight_decay": 0.01}
REINFORCEMENT: dict[str, Any] = {
    "type": "reinforcement",
    "grader": GRADER,
    "rollout": ROLLOUT,
    "optimizer": OPTIMIZER,
    "max_steps": 4,
    "batch_size": 4,
    "group_size": 4,
    "num_inner_updates": 2,
    "mc_samples": 2,
    "micro_batch": 16,
}
SUPERVISED: dict[str, Any] = {
    "type": "supervised",
    "optimizer": OPTIMIZER,
    "max_steps": 4,
    "batch_size": 6,
    "max_completion_length": 8,
}
LORA = {"lora": {"rank": 4, "alpha": 8.0, "checkpoints": "adapter"}}
UNTIMED = ("tokens_per_second", "peak_memory_bytes")


@dataclass
class Done:
    """What a run left."""

    finished: bool
    records: list[Record]

    def metrics(self, split: str) -> dict[int, dict[str, float]]:
        return {
            record.step: {k: v for k, v in record.values.items() if k not in UNTIMED and not k.startswith("seconds_")}
            for record in self.records
            if isinstance(record, MetricRecord) and record.split == split
        }

    def checkpoints(self) -> dict[int, CheckpointRecord]:
        return {record.step: record for record in self.records if isinstance(record, CheckpointRecord)}

    def messages(self) -> list[str]:
        return [record.message for record in self.records if isinstance(record, LogRecord)]


Train = Callable[..., Done]


@pytest.fixture
def train(wordy_checkpoint: Path, tmp_path: Path) -> Train:
    """Runs a specification, supervised (nothing is pruned) unless asked otherwise."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": "?" * (i % 3)},
                {"role": "assistant", "content": "aioe"[i % 4] * (1 + i % 5)},
            ],
            "answer": "aioe"[i % 4],
        }
        for i in range(9)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    count = iter(range(100))

    def run(method: dict[str, Any], *, supervised: bool = True, **fields: Any) -> Done:
        folder = tmp_path / f"run-{next(count)}"
        folder.mkdir()
        data = str(tmp_path / "data.jsonl")
        paths = {"model": str(wordy_checkpoint), "train_data": data, "validation_data": data}
        spec = parse_run_spec({**paths, "output_dir": str(folder), "seed": 5, "method": method} | fields)
        descriptor = os.open(folder / "records", os.O_WRONLY | os.O_CREAT)
        try:
            reporter = Reporter(RecordWriter(descriptor), spec.method.max_steps)
            finished = Run(spec, reporter, Control(), supervised).train()
            reporter.close()
        finally:
            os.close(descriptor)
        return Done(finished, [parse_record(line) for line in (folder / "records").read_bytes().splitlines()])

    return run


def contents(checkpoint: CheckpointRecord) -> dict[str, bytes]:
    folder = Path(checkpoint.path)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


@pytest.mark.parametrize(
    ("base", "adapter", "precision"),
    [
        pytest.param(REINFORCEMENT, {}, "float32", id="reinforcement-full"),
        pytest.param(REINFORCEMENT, LORA, "bfloat16", id="reinforcement-lora-bfloat16"),
        pytest.param(SUPERVISED, {}, "bfloat16", id="supervised-full-bfloat16"),
        pytest.param(SUPERVISED, LORA, "float32", id="supervised-lora"),
    ],
)
def test_a_run_resumes_bit_by_bit_after_any_step(
    train: Train, base: dict[str, Any], adapter: dict[str, Any], precision: str
) -> None:
    method, fields = {**base, **adapter}, {"precision": precision, "checkpointing": {"every_steps": 1}}
    whole = train(method, **fields)
    last = contents(whole.checkpoints()[4])
    assert contents(whole.checkpoints()[1]) != last
    assert ("model.safetensors" in last) == (not adapter)
    for step in (1, 3):
        resumed = train(method, resume_from=whole.checkpoints()[step].path, **fields)
        assert contents(resumed.checkpoints()[4]) == last
        assert resumed.metrics("train") == {s: v for s, v in whole.metrics("train").items() if s > step}
        assert resumed.metrics("validation")[4] == whole.metrics("validation")[4]


def test_every_step_has_its_metrics(train: Train) -> None:
    done = train(SUPERVISED, checkpointing={"every_steps": 2})
    found = {r.step: r.values for r in done.records if isinstance(r, MetricRecord) and r.split == "train"}
    for values in found.values():
        assert {"learning_rate", "grad_norm", "loss", "seconds_step", "seconds_optimizer"} <= values.keys()
        assert values["peak_memory_bytes"] > 1e6
        assert values["non_finite_updates"] == 0
    assert [step for step, values in found.items() if values["seconds_checkpoint"] > 0] == [3], "of the one at step 2"
    assert all(record.seconds > 0 for record in done.checkpoints().values())


def test_the_best_checkpoint_is_marked_and_kept(train: Train) -> None:
    fields: dict[str, Any] = {"evaluation": {"interval": 1, "answers": 2}, "supervised": False}
    best_metric = "sampled_reward_mean"
    method = {**SUPERVISED, "grader": GRADER, "rollout": ROLLOUT, "max_steps": 7, "optimizer": {"learning_rate": 0.01}}
    done = train(method, seed=3, checkpointing={"keep_last": 1, "best_metric": best_metric}, **fields)
    values = {step: found[best_metric] for step, found in done.metrics("validation").items()}
    expected = [s for s in range(1, 8) if values[s] > max(values[t] for t in range(s))]
    assert expected, "no evaluation was better than the first: nothing is tested"
    assert expected[-1] < 6, "the best is among the last anyway"
    assert [step for step, record in done.checkpoints().items() if record.best] == expected
    assert set(done.checkpoints()) == {*expected, 7}
    folder = Path(done.checkpoints()[7].path).parent
    assert {path.name for path in folder.iterdir()} == {f"step-{step:06d}" for step in (expected[-1], 7)}
    state = read_state(folder / f"step-{expected[-1]:06d}")
    assert state["is_best"]
    assert state["best"]["best_step"] == expected[-1]
    assert state["decode"]["answers"] == 2
    assert state["metrics"][best_metric] == values[expected[-1]]


def test_early_stopping_finishes_the_run_also_when_it_was_resumed(train: Train) -> None:
    fields: dict[str, Any] = {
        "evaluation": {"interval": 1},
        "early_stopping": {"patience": 2, "min_delta": 1e9},
        "checkpointing": {"every_steps": 1, "keep_best": False},
    }
    method = {**SUPERVISED, "max_steps": 50}
    whole = train(method, **fields)
    assert whole.finished
    assert list(whole.metrics("validation")) == [0, 1, 2], "the first is the best, then patience for two"
    assert [(step, record.final) for step, record in whole.checkpoints().items()] == [(1, False), (2, True)]
    assert any("early stopping at step 2: loss has not improved" in message for message in whole.messages())
    resumed = train(method, resume_from=whole.checkpoints()[1].path, **fields)
    assert resumed.finished
    assert list(resumed.metrics("validation")) == [2]
    assert contents(resumed.checkpoints()[2]) == contents(whole.checkpoints()[2])


def test_no_evaluation_before_the_first_step(train: Train) -> None:
    without = train(SUPERVISED, evaluation={"interval": 2, "at_start": False}).metrics("validation")
    with_it = train(SUPERVISED, evaluation={"interval": 2}).metrics("validation")
    assert (list(without), list(with_it)) == ([2, 4], [0, 2, 4])
    assert without[4]["loss"] == with_it[4]["loss"], "evaluating changes nothing"


def test_a_metric_that_evaluations_do_not_have_is_refused(train: Train) -> None:
    with pytest.raises(SpecError, match="no metric 'f1'") as caught:
        train(SUPERVISED, evaluation={"interval": 1}, early_stopping={"patience": 1, "metric": "f1"})
    assert caught.value.param == "early_stopping.metric"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_adapter_is_evaluated_as_the_run_did(
    train: Train, wordy_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    method = {**REINFORCEMENT, **LORA, "max_steps": 2, "optimizer": {"learning_rate": 0.05}}
    done = train(method, precision=precision, evaluation={"answers": 3})
    checkpoint = Path(done.checkpoints()[2].path)
    (tmp_path / "recipe.json").write_text(json.dumps(read_state(checkpoint)["recipe"]))
    arguments = ["--model", str(checkpoint), "--base", str(wordy_checkpoint), "--data", str(tmp_path / "data.jsonl")]
    assert evaluate_command.main([*arguments, "--recipe", str(tmp_path / "recipe.json")]) == 0
    assert json.loads(capsys.readouterr().out) == done.metrics("validation")[2]
    assert done.metrics("validation")[2] != done.metrics("validation")[0]
    with pytest.raises(ModelError, match="adapter only"):
        load_policy(checkpoint)


def test_metrics_also_go_to_a_tracker(train: Train, tmp_path: Path) -> None:
    train({**SUPERVISED, "max_steps": 1}, sinks=[{"type": "tensorboard", "location": str(tmp_path / "board")}])
    assert list((tmp_path / "board").rglob("*tfevents*"))


@pytest.mark.parametrize("on_error", ["drop", "zero"])
def test_a_run_whose_grader_fails_now_and_then_resumes_bit_by_bit(train: Train, tmp_path: Path, on_error: str) -> None:
    data = tmp_path / "flawed.jsonl"
    rows: list[dict[str, Any]] = [{"messages": [{"role": "user", "content": "?" * (i % 3)}]} for i in range(9)]
    for i in range(6):
        rows[i]["answer"] = "aioe"[i % 4]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"train_data": str(data), "grading": {"on_error": on_error}, "checkpointing": {"every_steps": 1}}
    whole = train(REINFORCEMENT, **fields)
    assert sum(values["grader_errors"] for values in whole.metrics("train").values()) > 0
    resumed = train(REINFORCEMENT, resume_from=whole.checkpoints()[2].path, **fields)
    assert contents(resumed.checkpoints()[4]) == contents(whole.checkpoints()[4])
    assert resumed.metrics("train") == {s: v for s, v in whole.metrics("train").items() if s > 2}


def test_a_checkpoint_of_before_a_field_existed_is_of_the_same_recipe(train: Train) -> None:
    whole = train(SUPERVISED, checkpointing={"every_steps": 1})
    checkpoint = Path(whole.checkpoints()[3].path)
    state_file = checkpoint / "trainer_state" / "state.json"
    state = json.loads(state_file.read_text())
    del state["recipe"]["grading"]
    state_file.write_text(json.dumps(state))
    resumed = train(SUPERVISED, resume_from=str(checkpoint), checkpointing={"every_steps": 1})
    assert resumed.messages() == ["resumed from step 3"]
    changed = train(SUPERVISED, resume_from=str(checkpoint))
    assert "the recipe differs from the one the checkpoint was made with" in changed.messages()


def test_what_the_grader_lacks_is_found_before_the_model_is_loaded(train: Train) -> None:
    endpoint = {"type": "endpoint", "name": "e", "url": "https://example.com/", "signing_secret": "SIGN"}
    with pytest.raises(SpecError, match="SIGN") as caught:
        train({**REINFORCEMENT, "grader": endpoint}, model="/nowhere")
    assert str(caught.value.param).startswith("method.grader")


def test_a_shell_finds_the_operators_part_in_the_same_file(tmp_path: Path) -> None:
    judge = {"base_url": "http://127.0.0.1:1/v1", "allow_private": True}
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({"method": {"type": "supervised"}, "graders": {"judges": {"j": judge}}}))
    assert evaluate_command.read_settings(path).judges["j"].allow_private
    path.write_text(json.dumps({"method": {"type": "supervised"}}))
    assert evaluate_command.read_settings(path).judges == {}
    path.write_text(json.dumps({"graders": {"judges": {"j": {}}}}))
    with pytest.raises(SpecError, match="base_url") as caught:
        evaluate_command.read_settings(path)
    assert caught.value.param == "graders"
