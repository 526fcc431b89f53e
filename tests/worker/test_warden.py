"""Nothing of a trainer survives it, its wardens or its worker. Real processes, killed and frozen from outside."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from tests.worker.trees import MARK, TREE, living, marked, wait_until
from worker import warden
from worker.process import StopLadder, TrainerProcess

FOREVER = 3600.0
Start = Callable[..., "Tree"]

# What a worker does, as a process of its own, so that it can be killed. Its signs of life go on until then.
OWNER = """
import os, sys, time
from pathlib import Path
from worker.process import TrainerProcess
fence, log, mark, *command = sys.argv[1:]
trainer = TrainerProcess(command, cwd=Path(log).parent, env={"BGPO_TEST_MARK": mark}, log_path=Path(log),
                         fence_s=float(fence))
while trainer.poll() is None:
    trainer.keep_alive()
    for line in trainer.read_lines(0.1):
        print(trainer.pid, line.decode(), flush=True)
print("end", trainer.kill_tree(), flush=True)
"""


class Tree:
    """A trainer of this process, with the processes it said it started."""

    def __init__(self, folder: Path, fence_s: float, age: float, *arguments: str) -> None:
        self.mark = uuid4().hex
        self.trainer = TrainerProcess(
            [sys.executable, str(TREE), *arguments],
            cwd=folder,
            env={MARK: self.mark},
            log_path=folder / "trainer.log",
            fence_s=fence_s,
            age=age,
        )
        self.processes: list[psutil.Process] = []

    def grown(self) -> Tree:
        """This, once it has all its processes."""
        lines: list[bytes] = []
        wait_until(lambda: lines.extend(self.trainer.read_lines(0.1)) or lines, "the tree said nothing")
        self.processes = [psutil.Process(pid) for pid in json.loads(lines[0])["pids"]]
        return self

    def wardens(self) -> list[psutil.Process]:
        """The outer and the inner one."""
        outer = psutil.Process(self.trainer.pid)
        return [outer, *outer.children()]

    def status(self) -> int:
        """The exit status, once there is one."""
        wait_until(lambda: self.trainer.poll() is not None, "it does not end")
        status = self.trainer.poll()
        assert status is not None
        return status

    def gone(self) -> bool:
        return not living(self.processes) and not marked(self.mark)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    trees: list[Tree] = []

    def start(*arguments: str, fence_s: float = FOREVER, age: float = 0.0) -> Tree:
        trees.append(Tree(tmp_path, fence_s, age, *arguments))
        return trees[-1]

    yield start
    for tree in trees:
        tree.trainer.kill_tree()
        tree.trainer.close()


@pytest.fixture
def owned(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], Tree]]]:
    """A tree whose worker is another process."""
    owners: list[subprocess.Popen[str]] = []

    def start(fence_s: float) -> tuple[subprocess.Popen[str], Tree]:
        tree = object.__new__(Tree)
        tree.mark = uuid4().hex
        command = [sys.executable, "-c", OWNER, str(fence_s), str(tmp_path / "log"), tree.mark]
        owner = subprocess.Popen(
            [*command, sys.executable, str(TREE), "hydra"], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
        )
        owners.append(owner)
        assert owner.stdout is not None
        outer, line = owner.stdout.readline().split(maxsplit=1)
        tree.processes = [psutil.Process(pid) for pid in json.loads(line)["pids"]]
        tree.processes += (first := psutil.Process(int(outer))), *first.children()
        return owner, tree

    yield start
    for owner in owners:
        owner.send_signal(signal.SIGCONT)
        owner.kill()
        owner.wait()
        assert owner.stdout is not None
        owner.stdout.close()


@pytest.mark.parametrize("victim", ["worker", "trainer", "inner warden", "outer warden"])
def test_kill_9_of_any_one_leaves_nothing(
    owned: Callable[[float], tuple[subprocess.Popen[str], Tree]], victim: str
) -> None:
    owner, tree = owned(FOREVER)
    trainer, outer, inner = tree.processes[0], *tree.processes[-2:]
    assert len(living(tree.processes)) == 8
    {"worker": owner, "trainer": trainer, "inner warden": inner, "outer warden": outer}[victim].kill()
    wait_until(tree.gone, f"{living(tree.processes)} survived")
    if victim != "worker":
        assert owner.stdout is not None
        assert owner.stdout.readline() == f"end {-signal.SIGKILL}\n"
        assert owner.wait() == 0


def test_a_frozen_worker_loses_its_trainer(owned: Callable[[float], tuple[subprocess.Popen[str], Tree]]) -> None:
    owner, tree = owned(1.0)
    owner.send_signal(signal.SIGSTOP)
    wait_until(tree.gone, f"{living(tree.processes)} survived")
    assert psutil.Process(owner.pid).status() == psutil.STATUS_STOPPED
    owner.send_signal(signal.SIGCONT)
    assert owner.stdout is not None
    assert owner.stdout.readline() == f"end {-signal.SIGKILL}\n"


def test_the_fence_counts_from_when_the_lease_was_surely_good(start: Start) -> None:
    begin = warden.now()
    good, stale, silent = (start("sleeps", fence_s=2) for _ in range(3))
    good.trainer.keep_alive(-FOREVER)  # in an hour it will have been good
    stale.trainer.keep_alive(FOREVER)
    assert [silent.status(), stale.status()] == [-signal.SIGKILL, -signal.SIGKILL]
    assert "no sign for 2 s" in silent.trainer.log_tail()
    assert warden.now() - begin > 2
    assert good.trainer.poll() is None
    assert good.grown().trainer.members() == [good.processes[0].pid]


def test_a_lease_that_is_too_old_at_the_start_ends_it_at_once(start: Start) -> None:
    tree = start("hydra", fence_s=FOREVER, age=FOREVER + 1)
    assert tree.status() == -signal.SIGKILL
    assert tree.gone()


def test_a_log_that_cannot_be_written_changes_nothing(start: Start) -> None:
    tree = start("hydra", fence_s=2)
    for process in tree.grown().wardens():
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, 0))  # as on a full disk
    assert tree.status() == -signal.SIGKILL
    assert tree.gone()
    assert tree.trainer.log_tail() == ""


def test_the_end_of_the_control_pipe_is_the_end(start: Start) -> None:
    tree = start("hydra").grown()
    tree.trainer.close()  # this process, and so the parent, lives on
    wait_until(tree.gone, f"{living(tree.processes)} survived")


def test_a_worker_whose_pipe_somebody_else_holds_is_missed(tmp_path: Path) -> None:
    """A process that was forked without exec keeps the pipe open: then the parent's end is the sign."""
    mark = uuid4().hex
    fork = "if os.fork() == 0: time.sleep(600)\nos.kill(os.getpid(), 9)"
    code = OWNER.replace("while trainer", "while not trainer.read_lines(1): pass\n" + fork + "\nwhile trainer")
    command = [sys.executable, "-c", code, "3600", str(tmp_path / "log"), mark, sys.executable, str(TREE), "hydra"]
    owner = subprocess.Popen(command, start_new_session=True)
    try:
        assert owner.wait() == -signal.SIGKILL
        wait_until(lambda: not marked(mark), "the trainer survived")
    finally:
        os.killpg(owner.pid, signal.SIGKILL)  # the process that holds the pipe


@pytest.mark.parametrize("status", [0, 3, 75])
def test_the_wardens_end_with_the_status_of_the_trainer(start: Start, status: int) -> None:
    tree = start("exit", str(status))
    assert tree.status() == status
    assert tree.trainer.kill_tree() == status


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGUSR1])
def test_the_wardens_die_of_the_signal_of_the_trainer(start: Start, number: signal.Signals) -> None:
    assert start("die", str(int(number))).status() == -number


def test_a_program_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log"
    trainer = TrainerProcess(["/nowhere/python"], cwd=tmp_path, env={}, log_path=log, fence_s=FOREVER)
    wait_until(lambda: trainer.poll() is not None, "it does not end")
    assert trainer.kill_tree() == 127
    assert "/nowhere/python cannot be started: " in trainer.log_tail()
    trainer.close()


def test_what_a_trainer_leaves_behind_ends_with_it(start: Start) -> None:
    tree = start("leaves").grown()
    assert len(living(tree.processes)) == 6
    tree.trainer.send("go")
    assert tree.status() == 3, "nobody told the wardens to do anything"
    assert tree.gone()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
@pytest.mark.parametrize("which", [0, 1], ids=["outer", "inner"])
def test_a_signal_to_a_warden_ends_the_tree(start: Start, number: signal.Signals, which: int) -> None:
    tree = start("hydra").grown()
    tree.wardens()[which].send_signal(number)
    assert tree.status() == -signal.SIGKILL
    assert tree.gone()


@pytest.mark.parametrize("mode", ["hydra", "hops", "grows"])
def test_kill_tree_returns_when_nothing_lives(start: Start, mode: str) -> None:
    tree = start(mode).grown()
    assert tree.trainer.kill_tree() == -signal.SIGKILL
    assert tree.gone()
    assert tree.trainer.members() == []


def test_a_stopped_trainer_is_killed(start: Start) -> None:
    tree = start("hydra").grown()
    tree.trainer.signal_tree(signal.SIGSTOP)
    wait_until(lambda: tree.processes[0].status() == psutil.STATUS_STOPPED, "it did not stop")
    ladder = StopLadder(tree.trainer, "cancel", grace_s=0.1, term_grace_s=0.1)
    wait_until(lambda: ladder.tick() or tree.trainer.poll() is not None, "it does not end")
    assert tree.status() == -signal.SIGKILL
    assert tree.gone()


@pytest.mark.parametrize("stopped", [(0,), (1,), (0, 1)], ids=["outer", "inner", "both"])
def test_stopped_wardens_are_woken_to_do_their_work(start: Start, stopped: tuple[int, ...]) -> None:
    tree = start("hydra").grown()
    wardens = tree.wardens()
    for which in stopped:
        wardens[which].suspend()
    for _ in range(100_000):  # far more than a pipe holds: none of them may block
        tree.trainer.keep_alive()
    assert tree.trainer.kill_tree() == -signal.SIGKILL
    assert tree.gone()


def test_both_wardens_killed_at_once(start: Start) -> None:
    """The trainer dies by the kernel's hand. Of what it started `kill_tree` finds what kept its environment or the
    records; a daemon that let go of both outlives them, which is what the second warden is for."""
    tree = start("hydra").grown()
    for process in tree.wardens():  # the inner one cannot act in between
        process.suspend()
    for process in tree.wardens():
        process.kill()
    wait_until(lambda: not living(tree.processes[:1]), "the trainer survived")
    assert tree.trainer.kill_tree() == -signal.SIGKILL
    assert marked(tree.mark) == []
    daemon = tree.processes[4]
    assert living(tree.processes) == [daemon]
    daemon.kill()
    tree.trainer.read_lines(0.1)
    assert tree.trainer.records_ended


def test_signals_reach_every_process_but_the_wardens(start: Start) -> None:
    tree = start("hydra").grown()
    assert set(tree.trainer.members()) == {process.pid for process in tree.processes}
    tree.trainer.signal_tree(signal.SIGTERM)  # the trainer itself ignores it, and the stopped process does not see it
    wait_until(lambda: len(living(tree.processes)) == 2, "somebody did not get the signal")
    assert len(living(tree.wardens())) == 2
    assert tree.trainer.poll() is None


def test_zombies_of_orphans_are_collected(start: Start) -> None:
    tree = start("hydra").grown()
    tree.processes[4].kill()  # the daemon
    wait_until(lambda: not psutil.pid_exists(tree.processes[4].pid), "nobody waits for the orphan")
    assert tree.trainer.poll() is None


def test_time_goes_on_while_the_machine_sleeps() -> None:
    assert abs(warden.now() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 5
