"""The trainer process: isolation, records, commands, the stop ladder. That nothing outlives it: test_warden.py."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from worker import warden
from worker.process import StopLadder, TrainerProcess, clean_environment

# Speaks the record protocol just enough: says what it sees, then obeys the argument it was given.
CHILD = """
import json, os, signal, sys, time
fd = int(sys.argv[sys.argv.index("--record-fd") + 1])
def say(**record):
    os.write(fd, json.dumps(record).encode() + b"\\n")
mode = sys.argv[1]
if mode == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
secrets = None
if "--secret-fd" in sys.argv:
    with open(int(sys.argv[sys.argv.index("--secret-fd") + 1])) as pipe:
        secrets = json.load(pipe)
say(pid=os.getpid(), sid=os.getsid(0), env=sorted(os.environ), secrets=secrets)
print("printed by the child")
for line in sys.stdin:
    say(command=line.strip())
    if mode == "obedient":
        sys.exit(76)
if mode == "deaf":
    time.sleep(600)
sys.exit(75)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., TrainerProcess]]:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    started: list[TrainerProcess] = []

    def start(mode: str, env: dict[str, str] | None = None, **options: Any) -> TrainerProcess:
        environment = clean_environment({**os.environ, **(env or {})}, threads=1)
        trainer = TrainerProcess(
            [sys.executable, str(script), mode],
            cwd=tmp_path,
            env=environment,
            log_path=tmp_path / "trainer.log",
            fence_s=60,
            **options,
        )
        started.append(trainer)
        return trainer

    yield start
    for trainer in started:
        trainer.kill_tree()
        trainer.close()


def records(trainer: TrainerProcess, count: int) -> list[dict[str, object]]:
    lines: list[bytes] = []
    deadline = time.monotonic() + 20
    while len(lines) < count and not trainer.records_ended:
        assert time.monotonic() < deadline, f"only {lines} arrived"
        lines += trainer.read_lines(0.5)
    return [json.loads(line) for line in lines]


def wait_exit(trainer: TrainerProcess, ladder: StopLadder | None = None) -> int:
    deadline = time.monotonic() + 20
    while (status := trainer.poll()) is None:
        assert time.monotonic() < deadline, "the child did not exit"
        if ladder:
            ladder.tick()
        trainer.read_lines(0.05)
    return status


def test_environment_holds_no_secrets_and_its_own_session(start: Callable[..., TrainerProcess]) -> None:
    secrets = {"BGPO_DATABASE_URL": "x", "BGPO_API_KEY": "x", "REDIS_URL": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    trainer = start("obedient", secrets)
    (hello,) = records(trainer, 1)
    assert not [name for name in hello["env"] if name in secrets]  # type: ignore[attr-defined]
    assert "OMP_NUM_THREADS" in hello["env"]  # type: ignore[operator]
    assert hello["sid"] == hello["pid"]
    assert trainer.members() == [hello["pid"]]


def test_secrets_come_by_a_pipe_and_nowhere_else(start: Callable[..., TrainerProcess], tmp_path: Path) -> None:
    """More of them than a pipe holds, too: in no file, no command line and no environment, also of the wardens."""
    secrets = {"TOKEN": "hunter2", "LONG": "x" * 200_000}
    trainer = start("obedient", graders_secrets=secrets)
    (hello,) = records(trainer, 1)
    assert hello["secrets"] == secrets
    processes = [trainer.pid, *warden.descendants(trainer.pid)]
    assert len(processes) == 3
    for pid in processes:
        for name in ("cmdline", "environ"):
            assert b"hunter2" not in Path(f"/proc/{pid}/{name}").read_bytes()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
    (plain,) = records(start("obedient", graders_secrets={}), 1)
    assert plain["secrets"] is None


def test_a_trainer_that_ends_before_it_reads_its_secrets_leaves_no_thread(tmp_path: Path) -> None:
    trainer = TrainerProcess(
        [sys.executable, "-c", "pass"],
        cwd=tmp_path,
        env={},
        log_path=tmp_path / "trainer.log",
        fence_s=60,
        graders_secrets={"LONG": "x" * 200_000},
    )
    assert wait_exit(trainer) == 0
    trainer.kill_tree()
    trainer.close()
    deadline = time.monotonic() + 20
    while [thread for thread in threading.enumerate() if thread.name == "secrets"]:
        assert time.monotonic() < deadline, "it still writes"
        time.sleep(0.02)


def test_what_a_numerical_program_needs_reaches_the_trainer() -> None:
    """And the operator's consent to run programs, and how long processes wait for each other."""
    passed = ("BGPO_ALLOW_UNSANDBOXED", "BGPO_PROCESS_TIMEOUT_S", "CUDA_VISIBLE_DEVICES", "NCCL_DEBUG", "GLOO_DEVICE")
    kept = ("BGPO_API_KEY", "BGPO_WEBHOOK_SECRET", "HF_TOKEN", "AWS_SESSION_TOKEN", "PYTHONPATH", "LD_PRELOAD")
    env = clean_environment(dict.fromkeys((*passed, *kept), "1"), None)
    assert [name for name in passed if env.get(name) != "1"] == []
    assert [name for name in kept if name in env] == []


def test_commands_reach_it_and_its_output_goes_to_the_log(start: Callable[..., TrainerProcess]) -> None:
    trainer = start("obedient")
    trainer.send("checkpoint")
    assert records(trainer, 2)[1] == {"command": "checkpoint"}
    assert wait_exit(trainer) == 76
    assert trainer.log_tail() == "printed by the child"
    trainer.send("cancel")  # too late: no error


def test_ladder_ends_with_sigkill_when_nothing_else_helps(start: Callable[..., TrainerProcess]) -> None:
    trainer = start("deaf")
    records(trainer, 1)
    begin = time.monotonic()
    ladder = StopLadder(trainer, "cancel", grace_s=0.2, term_grace_s=0.2)
    assert wait_exit(trainer, ladder) == -signal.SIGKILL
    assert time.monotonic() - begin > 0.4
    assert trainer.members() == []


def test_closed_stdin_tells_the_trainer_that_its_parent_is_gone(start: Callable[..., TrainerProcess]) -> None:
    trainer = start("normal")
    records(trainer, 1)
    trainer._stdin.close()
    assert wait_exit(trainer) == 75
    trainer.send("cancel")  # nobody reads it: no error


def test_records_written_just_before_the_end_are_read(start: Callable[..., TrainerProcess]) -> None:
    trainer = start("obedient")
    trainer.send("one")
    while trainer.poll() is None:
        trainer.keep_alive()
    assert trainer.kill_tree() == 76
    assert [sorted(record) for record in records(trainer, 3)] == [["env", "pid", "secrets", "sid"], ["command"]]
    assert trainer.records_ended
    assert trainer.read_lines(0.01) == []


def test_trainer_spawned_by_another_thread_dies_with_that_thread(start: Callable[..., TrainerProcess]) -> None:
    """The trap behind 'spawn from the thread that supervises': shown here so that nobody walks into it."""
    trainers: list[TrainerProcess] = []

    def spawn() -> None:
        trainers.append(start("deaf"))
        records(trainers[0], 1)

    thread = threading.Thread(target=spawn)
    thread.start()
    thread.join()
    assert wait_exit(trainers[0]) == -signal.SIGKILL
