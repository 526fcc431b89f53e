"""Two processes against one: equal parameters, equal metrics, checkpoints that either goes on from, and no hanging.

Real processes of `accelerate launch` with gloo. Each prompt batch is odd, so the shares are unequal; the reinforcement
data has a prompt that nobody solves, so now and then a process has no response to learn from.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from bgpo.records import CheckpointRecord, EndRecord, ErrorRecord, ExitCode, MetricRecord, parse_record
from tests.bgpo.trainer_process import ENVIRONMENT, TrainerProcess, free_port, launcher, train_metric

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
OPTIMIZER = {"learning_rate": 0.003, "weight_decay": 0.01, "warmup_steps": 2}
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
    "optimizer": OPTIMIZER,
    "max_steps": 3,
    "batch_size": 3,
    "group_size": 4,
    "mc_samples": 2,
    "micro_batch": 8,
    "kl_coefficient": 0.1,
}
SUPERVISED: dict[str, Any] = {
    "type": "supervised",
    "optimizer": OPTIMIZER,
    "max_steps": 3,
    "batch_size": 3,
    "max_completion_length": 8,
}
DPO: dict[str, Any] = {
    "type": "dpo",
    "optimizer": OPTIMIZER,
    "max_steps": 3,
    "batch_size": 3,
    "mc_samples": 2,
    "max_completion_length": 8,
}
LORA = {"rank": 4, "alpha": 8.0}
ADAFACTOR = {**OPTIMIZER, "optimizer_type": "adafactor"}

METHODS: dict[str, dict[str, Any]] = {
    "reinforcement": REINFORCEMENT,
    "off_policy_lora": {**REINFORCEMENT, "num_inner_updates": 3, "lora": LORA},
    "ungraded_rows": {**REINFORCEMENT, "grader": {**GRADER, "reference": "{{ item.now_and_then }}"}},
    "nearly_idle": {**REINFORCEMENT, "batch_size": 1, "kl_coefficient": 0.0},
    "supervised": SUPERVISED,
    "supervised_adafactor": {**SUPERVISED, "optimizer": ADAFACTOR},
    "supervised_lora": {**SUPERVISED, "lora": LORA},
    "dpo": DPO,
}
RESUMED = ("reinforcement", "off_policy_lora", "supervised_adafactor", "dpo")
SHARINGS = ("ddp", "fsdp2")


class Runs:
    """Runs of one process and of two, and what they left."""

    def __init__(self, folder: Path, model: Path) -> None:
        self._folder, self._model = folder, model
        rows, pairs = [], []
        for i in range(7):
            question = {"role": "user", "content": "?" * (i % 3)}
            good, bad = ({"role": "assistant", "content": text * (1 + i % 4)} for text in ("aioe"[i % 4], "u"))
            answer = "zzz" if i % 3 == 0 else "aioe"[i % 4]
            row = {"messages": [question, good], "answer": answer, "now_and_then": answer}
            rows.append(row if i % 4 else {name: row[name] for name in ("messages", "answer")})
            pairs.append({"input": {"messages": [question]}, "preferred_output": [good], "non_preferred_output": [bad]})
        for name, items in (("rows", rows), ("pairs", pairs)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))

    def spec(self, name: str, method: dict[str, Any], **fields: Any) -> Path:
        data = str(self._folder / ("pairs.jsonl" if method["type"] == "dpo" else "rows.jsonl"))
        content = {
            "model": str(self._model),
            "train_data": data,
            "validation_data": data,
            "output_dir": str(self._folder / name),
            "seed": 5,
            "threads": 1,
            "device": "cpu",
            "method": method,
            "checkpointing": {"every_steps": 1, "keep_last": 3},
            "evaluation": {"answers": 2, "interval": 2},
            **fields,
        }
        path = self._folder / f"{name}.json"
        path.write_text(json.dumps(content))
        return path

    def run(self, processes: int, specs: list[Path]) -> None:
        """One after the other, in the same processes."""
        command = launcher(processes) if processes > 1 else [sys.executable]
        script = ROOT / "tests" / "bgpo" / "several_runs.py"
        done = subprocess.run(
            [*command, str(script), *map(str, specs)],
            env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-5000:]

    def checkpoint(self, name: str, step: int) -> Path:
        return self._folder / name / "checkpoints" / f"step-{step:06d}"

    def metrics(self, name: str) -> dict[tuple[str, int], dict[str, float]]:
        """Values by split and step, without those that measure time or memory."""
        lines = (self._folder / f"{name}.json.records").read_bytes().splitlines()
        return {
            (record.split, record.step): {
                key: value
                for key, value in record.values.items()
                if not key.startswith("seconds_") and key not in ("tokens_per_second", "peak_memory_bytes")
            }
            for record in map(parse_record, lines)
            if isinstance(record, MetricRecord)
        }


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    adapter = checkpoint / "adapter" / "adapter_model.safetensors"
    return load_file(checkpoint / "model.safetensors") | (load_file(adapter) if adapter.exists() else {})


def furthest(left: Path, right: Path) -> float:
    """The largest difference of a parameter."""
    ours, theirs = weights(left), weights(right)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.fixture(scope="module")
def runs(wordy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every method by one process and by two in both sharings; then some resumed after the second step."""
    made = Runs(tmp_path_factory.mktemp("distributed"), wordy_checkpoint)
    one = [made.spec(f"{name}-one", method) for name, method in METHODS.items()]
    two = [made.spec(f"{name}-{how}", method, distributed=how) for name, method in METHODS.items() for how in SHARINGS]
    made.run(1, one)
    again = []
    for name in RESUMED:
        for how in SHARINGS:
            for source in (how, "one"):
                checkpoint = str(made.checkpoint(f"{name}-{source}", 2))
                fields: dict[str, Any] = {"distributed": how, "resume_from": checkpoint}
                again.append(made.spec(f"{name}-{source}-to-{how}", METHODS[name], **fields))
    made.run(2, two + again)
    back = [
        made.spec(f"{name}-{how}-to-one", METHODS[name], resume_from=str(made.checkpoint(f"{name}-{how}", 2)))
        for name in RESUMED
        for how in SHARINGS
    ]
    made.run(1, back)
    return made


@pytest.mark.parametrize("how", SHARINGS)
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_train_as_one(runs: Runs, name: str, how: str) -> None:
    assert furthest(runs.checkpoint(f"{name}-{how}", 3), runs.checkpoint(f"{name}-one", 3)) < 1e-5
    ours, theirs = runs.metrics(f"{name}-{how}"), runs.metrics(f"{name}-one")
    assert ours.keys() == theirs.keys()
    for key in theirs:
        assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-5), key
    assert any("loss" in values for (split, _), values in ours.items() if split == "train"), "something must be learned"


def test_errors_of_all_processes_are_counted(runs: Runs) -> None:
    counted = "grader_errors/letter/invalid_variable_error"
    steps = {key: values for key, values in runs.metrics("ungraded_rows-ddp").items() if key[0] == "train"}
    assert sum(values["grader_errors"] for values in steps.values()) > 0
    assert all(values["grader_errors"] == values.get(counted, 0) for values in steps.values())
    assert all(values["responses"] == 12 for values in steps.values())


def test_the_runs_move_the_parameters(runs: Runs, wordy_checkpoint: Path) -> None:
    """Else equality would say nothing."""
    start = load_file(wordy_checkpoint / "model.safetensors")
    for name in METHODS:
        end = load_file(runs.checkpoint(f"{name}-one", 3) / "model.safetensors")
        assert max(float((end[key] - start[key]).abs().max()) for key in start) > 1e-4, name


@pytest.mark.parametrize("how", SHARINGS)
@pytest.mark.parametrize("name", RESUMED)
def test_two_processes_resume_bit_by_bit(runs: Runs, name: str, how: str) -> None:
    whole, resumed = runs.checkpoint(f"{name}-{how}", 3), runs.checkpoint(f"{name}-{how}-to-{how}", 3)
    assert furthest(whole, resumed) == 0
    states = sorted(path.name for path in (whole / "trainer_state").glob("optimizer*"))
    assert len(states) == (2 if how == "fsdp2" else 1)
    for state in states:
        assert (whole / "trainer_state" / state).read_bytes() == (resumed / "trainer_state" / state).read_bytes()
    ours = runs.metrics(f"{name}-{how}-to-{how}")
    assert ours == {key: value for key, value in runs.metrics(f"{name}-{how}").items() if key in ours}


@pytest.mark.parametrize("how", SHARINGS)
@pytest.mark.parametrize("name", RESUMED)
def test_another_number_of_processes_goes_on(runs: Runs, name: str, how: str) -> None:
    expected = runs.checkpoint(f"{name}-one", 3)
    assert furthest(runs.checkpoint(f"{name}-one-to-{how}", 3), expected) < 1e-5
    assert furthest(runs.checkpoint(f"{name}-{how}-to-one", 3), expected) < 1e-5


@pytest.fixture
def endless(runs: Runs) -> Path:
    """A run that ends only when it is told to."""
    return runs.spec("endless", {**SUPERVISED, "max_steps": 1_000_000}, checkpointing={}, validation_data=None)


@pytest.fixture
def launched(endless: Path, tmp_path: Path) -> Iterator[TrainerProcess]:
    process = TrainerProcess(json.loads(endless.read_text()), tmp_path, supervised=False, processes=2)
    process.wait_for(train_metric(2))
    yield process
    process.release()


def test_a_stop_signal_to_the_launcher_leaves_a_checkpoint(launched: TrainerProcess) -> None:
    launched.terminate()
    assert launched.finish() != 0
    (saved,) = launched.checkpoints()
    assert saved.step == max(launched.metrics("train"))
    assert launched.records[-2] == saved
    assert isinstance(launched.records[-1], EndRecord)
    assert launched.records[-1].status == ExitCode.STOPPED


def test_a_lost_process_ends_the_launch(launched: TrainerProcess) -> None:
    ranks = [child for child in psutil.Process(launched.pid).children() if child.environ().get("RANK") == "1"]
    (victim,) = ranks
    victim.kill()
    assert launched.finish() != 0
    assert not launched.checkpoints()


def test_the_others_notice_a_lost_process_by_themselves(endless: Path) -> None:
    """Processes started by hand, with the variables a launcher would set: nobody ends the survivor from outside."""
    reader, writer = os.pipe()
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "bgpo.run", str(endless), "--record-fd", str(writer)],
            env={**ENVIRONMENT, **variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=[writer],
        )
        for rank in (0, 1)
    ]
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as lines:
            records = []
            for line in lines:
                records.append(parse_record(line))
                if train_metric(2)(records[-1]):
                    processes[1].send_signal(signal.SIGKILL)
        assert processes[0].wait(60) == ExitCode.UNEXPECTED
        *_, error, end = records
        assert isinstance(error, ErrorRecord)
        assert error.code == "peer_lost"
        assert isinstance(end, EndRecord)
        assert end.status == ExitCode.UNEXPECTED
        assert not any(isinstance(record, CheckpointRecord) for record in records)
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
