"""A job of several processes under `accelerate launch`: it does as it is told as one, and ends as a whole.

Real processes with gloo on a tiny model, in the way the supervisor starts them.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from bgpo.models.scratch import create_checkpoint
from bgpo.records import (
    CheckpointRecord,
    EndRecord,
    ErrorRecord,
    ExitCode,
    MetricRecord,
    Record,
    SampleRecord,
    parse_record,
)
from tests.worker.trees import MARK, living, marked, wait_until
from worker.process import TrainerProcess, clean_environment

FOREVER = 3600.0
START_S = 120.0  # a launcher and two trainers, each of which imports torch
GRADER = {
    "type": "string_check",
    "name": "g",
    "input": "{{ sample.output_text }}",
    "reference": "a",
    "operation": "ilike",
}
REINFORCEMENT: dict[str, Any] = {
    "type": "reinforcement",
    "grader": GRADER,
    "rollout": {"max_completion_length": 4, "block_length": 4, "diffusion_steps": 2, "temperature": 1.0},
    "optimizer": {"learning_rate": 0.001},
    "max_steps": 100_000,
    "batch_size": 2,
    "group_size": 2,
    "mc_samples": 1,
}


class Group:
    """A launched trainer and what it reported."""

    def __init__(self, folder: Path, command: list[str], fence_s: float, secrets: dict[str, str] | None = None) -> None:
        self.mark = uuid4().hex
        self.records: list[Record] = []
        self.folder = folder
        env = clean_environment({**os.environ, "BGPO_API_KEY": "secret"}, threads=1)
        self.trainer = TrainerProcess(
            command,
            cwd=folder,
            env=env | {MARK: self.mark},
            log_path=folder / "trainer.log",
            fence_s=fence_s,
            processes=2,
            graders_secrets=secrets,
        )

    def read(self, until: Callable[[Record], bool]) -> Record:
        """Read on to the first record that meets the condition."""
        deadline = time.monotonic() + START_S
        while not self.trainer.records_ended:
            assert time.monotonic() < deadline, self.trainer.log_tail()
            self.trainer.keep_alive()
            new = [parse_record(line) for line in self.trainer.read_lines(0.2)]
            self.records += new
            if matching := [record for record in new if until(record)]:
                return matching[0]
        raise AssertionError(f"{self.records[-3:]} {self.trainer.log_tail()}")

    def trained(self, step: int) -> Group:
        """This, when a step has been trained."""
        self.read(lambda record: isinstance(record, MetricRecord) and record.step >= step)
        return self

    def rank(self, number: int) -> psutil.Process:
        (process,) = [process for process in marked(self.mark) if process.environ().get("RANK") == str(number)]
        return process

    def finish(self) -> int:
        """Read all records to their end; then nothing lives. Returns the launcher's status."""
        deadline = time.monotonic() + START_S
        while not self.trainer.records_ended:
            assert time.monotonic() < deadline, self.trainer.log_tail()
            self.records += [parse_record(line) for line in self.trainer.read_lines(0.2)]
        wait_until(lambda: self.trainer.poll() is not None, "the wardens do not end")
        status = self.trainer.poll()
        assert status is not None
        assert marked(self.mark) == []
        return status

    def of(self, kind: type[Any]) -> list[Any]:
        return [record for record in self.records if isinstance(record, kind)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    create_checkpoint(folder, seed=7, d_model=32, n_layers=2, n_heads=2, mlp_hidden_size=48, max_sequence_length=64)
    return folder


@pytest.fixture
def groups() -> Iterator[list[Group]]:
    started: list[Group] = []
    yield started
    for group in started:
        group.trainer.kill_tree()
        group.trainer.close()


@pytest.fixture
def start(groups: list[Group], model: Path, tmp_path: Path) -> Callable[..., Group]:
    """Starts a run of two processes."""

    def start(fence_s: float = FOREVER, steps: int = 100_000, **fields: Any) -> Group:
        rows = [{"messages": [{"role": "user", "content": "?" * i}]} for i in range(4)]
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        spec = {
            "model": str(model),
            "train_data": str(tmp_path / "train.jsonl"),
            "output_dir": str(tmp_path / "output"),
            "seed": 5,
            "threads": 1,
            "device": "cpu",
            "method": REINFORCEMENT | {"max_steps": steps},
            "sample_log": 2,
            **fields,
        }
        (tmp_path / "spec.json").write_text(json.dumps(spec))
        groups.append(Group(tmp_path, [sys.executable, "-m", "bgpo.run", str(tmp_path / "spec.json")], fence_s))
        return groups[-1]

    return start


# Two ranks without torch: rank 1 has come and gone before rank 0 opens the records.
RANKS = """
import json, os, sys, time
from pathlib import Path
from bgpo.secrets import take_secrets
secrets = take_secrets()
path, rank = sys.argv[sys.argv.index("--record-path") + 1], os.environ["RANK"]
seen = {"type": "log", "seq": 1, "time": 0, "level": "info"}
while rank == "0" and not Path("one-is-done").exists():
    time.sleep(0.01)
with open(path, "w") as records:
    told = json.dumps({"rank": rank, "env": dict(os.environ), "secrets": secrets})
    print(json.dumps(seen | {"message": told}), file=records)
if rank == "1":
    Path("one-is-done").touch()
sys.exit(75 if rank == "0" else 0)
"""


@pytest.mark.timeout(240)
def test_records_of_processes_that_come_and_go_are_all_read(groups: list[Group], tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    group = Group(tmp_path, [sys.executable, "ranks.py"], FOREVER, {"TOKEN": "hunter2"})
    groups.append(group)
    assert group.finish() == 1, "a launcher's own status"
    seen = [json.loads(record.message) for record in group.records]  # type: ignore[union-attr]
    assert [entry["rank"] for entry in seen] == ["1", "0"]
    for entry in seen:
        assert "BGPO_API_KEY" not in entry["env"]
        assert entry["secrets"] == {"TOKEN": "hunter2"}
        assert "hunter2" not in str(entry["env"]), "what it starts does not inherit them"
        assert (entry["env"]["WORLD_SIZE"], entry["env"]["GLOO_SOCKET_IFNAME"]) == ("2", "lo")
        assert entry["env"]["HF_HOME"].startswith(str(tmp_path))


slow = [pytest.mark.slow, pytest.mark.timeout(400)]


class TestTraining:
    pytestmark = slow

    def test_it_trains_to_its_end(self, start: Callable[..., Group]) -> None:
        group = start(steps=2)
        assert group.finish() == 0, group.trainer.log_tail()
        assert group.records[-1] == group.of(EndRecord)[0]
        assert group.of(EndRecord)[0].status == ExitCode.FINISHED
        assert [record.step for record in group.of(MetricRecord)] == [1, 2]
        assert [(record.step, record.index) for record in group.of(SampleRecord)] == [(1, 0), (1, 1), (2, 0), (2, 1)]
        assert [(record.step, record.final) for record in group.of(CheckpointRecord)] == [(2, True)]
        assert group.of(ErrorRecord) == []

    @pytest.mark.parametrize("how", ["pause", "SIGTERM"])
    def test_it_stops_with_a_checkpoint(self, start: Callable[..., Group], how: str) -> None:
        group = start().trained(1)
        if how == "pause":
            group.trainer.send("pause")
        else:
            group.trainer.signal_tree(signal.SIGTERM)
        group.finish()
        *_, saved, end = group.records
        assert isinstance(saved, CheckpointRecord)
        assert saved.step == max(record.step for record in group.of(MetricRecord))
        assert isinstance(end, EndRecord)
        assert end.status == ExitCode.STOPPED
        assert group.of(ErrorRecord) == []

    def test_it_is_cancelled(self, start: Callable[..., Group]) -> None:
        group = start().trained(1)
        group.trainer.send("cancel")
        group.finish()
        assert [record.status for record in group.of(EndRecord)] == [ExitCode.CANCELLED]
        assert not (group.folder / "output" / "checkpoints").exists()

    @pytest.mark.parametrize("victim", ["rank 0", "rank 1", "launcher", "wardens"])
    def test_kill_9_of_one_ends_all(self, start: Callable[..., Group], victim: str) -> None:
        group = start().trained(1)
        outer = psutil.Process(group.trainer.pid)
        (inner,) = outer.children()
        (launcher,) = inner.children()
        ranks = [group.rank(0), group.rank(1)]
        assert ranks[0].ppid() == ranks[1].ppid() == launcher.pid
        if victim == "wardens":  # neither can act: the kernel alone ends launcher and ranks
            outer.suspend()
            inner.suspend()
        victims = {"rank 0": ranks[:1], "rank 1": ranks[1:], "launcher": [launcher], "wardens": [outer, inner]}
        for process in victims[victim]:
            process.kill()
        wait_until(lambda: not living([launcher, *ranks]), f"{living([launcher, *ranks])} survived")
        group.finish()
        if victim.startswith("rank"):  # the other one says so
            assert [record.code for record in group.of(ErrorRecord)] == ["peer_lost"]
        if victim == "rank 1":
            assert group.of(EndRecord)[0].status == ExitCode.UNEXPECTED

    def test_a_lost_lease_ends_it(self, start: Callable[..., Group]) -> None:
        group = start(fence_s=10).trained(1)
        ranks = [group.rank(0), group.rank(1)]
        wait_until(lambda: not living(ranks) and not marked(group.mark), "the group survived")  # nobody keeps it alive
        assert group.finish() == -signal.SIGKILL

    def test_a_stopped_process_is_killed_with_the_rest(self, start: Callable[..., Group]) -> None:
        group = start().trained(1)
        group.rank(1).suspend()
        assert group.trainer.kill_tree() == -signal.SIGKILL
        assert marked(group.mark) == []

    def test_the_first_cause_is_told_by_the_process_that_has_it(self, start: Callable[..., Group]) -> None:
        group = start(distributed="fsdp2").trained(1)
        resource.prlimit(group.rank(1).pid, resource.RLIMIT_FSIZE, (10, 10))  # its disk alone is full
        group.trainer.send("checkpoint")
        assert group.finish() == 1
        codes = {record.code: record for record in group.of(ErrorRecord)}
        assert "does not fit on the disk" in codes["disk_full"].message
        assert codes["disk_full"].phase == "checkpointing"
        assert codes.keys() <= {"disk_full", "peer_lost"}
        assert group.of(CheckpointRecord) == []
        assert list((group.folder / "output" / "checkpoints").iterdir()) == []
