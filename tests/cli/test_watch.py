"""What people read of a job that stands still or failed, and of the queue; from objects as the service gives them."""

from __future__ import annotations

from typing import Any

import pytest

from cli.commands.queue import queue_lines
from cli.progress import Point, Progress
from cli.table import table
from cli.watch import describe_failure, watch


def job(status: str = "queued", **details: Any) -> dict[str, Any]:
    rl: dict[str, Any] = {"phase": None, "step": 0, "total_steps": 10, "attempt": 0, "failure": None}
    rl |= {"queue_position": None, "wait_reason": None, "pause_reason": None} | details
    method = {"type": "dpo", "dpo": {"hyperparameters": {}}}
    return {"id": "ftjob-1", "status": status, "error": None, "method": method, "rl": rl}


class Recorded:
    """A service that plays back a job's life."""

    def __init__(self, *life: dict[str, Any]) -> None:
        self._life = [life[0], *life]  # the first look is for the number of steps

    def job(self, job_id: str) -> dict[str, Any]:
        return self._life.pop(0)

    def metrics(self, job_id: str, since_step: int) -> list[Point]:
        return []


class Lines:
    """A console that is no terminal."""

    is_terminal = False

    def __init__(self) -> None:
        self.lines: list[str] = []

    def print(self, text: str, **_: Any) -> None:
        self.lines.append(text)


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (
            job(queue_position=2, wait_reason="Waits for a free worker; 1 job ahead.", phase="waiting_for_gpu"),
            "step 0/10  position 2: Waits for a free worker; 1 job ahead.",
        ),
        (job(phase="retrying"), "step 0/10  retrying"),  # somebody has just taken it
        (job(step=7, queue_position=1, wait_reason="Next."), "step 7/10  position 1: Next."),  # a retry
        (job("paused"), "step 0/10  paused"),
        (
            job("paused", pause_reason={"code": "disk_full", "message": "No space is left."}),
            "step 0/10  paused by the service: No space is left.",
        ),
    ],
)
def test_a_job_that_stands_still_says_why(seen: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.watch._POLL_S", 0)
    console: Any = Lines()
    service: Any = Recorded(seen, job("cancelled"))
    ended, _ = watch(service, "ftjob-1", console)
    assert console.lines[0] == words
    assert describe_failure(ended) == "job ftjob-1 was cancelled"


def test_values_stay_in_sight_while_it_waits_again() -> None:
    progress = Progress(10, None)
    progress.add([Point(3, "train", {"reward_mean": 0.5, "seconds_step": 2.0, "seconds_rollout": 1.0})])
    assert progress.line("retrying", "position 1: Next.") == "step 3/10  position 1: Next.  mean reward 0.50"


def test_a_failure_says_what_where_and_what_to_change() -> None:
    failure = {"phase": "training", "step": 12, "attempt": 3, "log_tail": "line\n" * 50 + "CUDA out of memory"}
    failed = job("failed", failure=failure) | {
        "error": {"code": "oom", "message": "No memory. Lower batch_size.", "param": None}
    }
    first, where, heading, *log = describe_failure(failed).splitlines()
    assert first == "job ftjob-1 failed with oom: No memory. Lower batch_size."
    assert where == "where: phase training, step 12, attempt 3"
    assert heading == "end of the log:"
    assert (len(log), log[-1]) == (20, "  CUDA out of memory")
    # One from before there were records, and one that never ran.
    failed["rl"]["failure"] = {"phase": None, "step": None, "attempt": 0, "log_tail": None}
    assert describe_failure(failed) == first
    failed["error"]["param"] = "training_file"
    assert "failed with oom (training_file): " in describe_failure(failed)


def test_the_queue() -> None:
    resources = {"gpus": 2, "gpu_type": "h200", "max_runtime_s": None}
    waiting = {"job": "ftjob-2", "position": 1, "priority": "high", "resources": resources, "reason": "Next."}
    paused = waiting | {"position": None, "resources": resources | {"gpu_type": None}, "reason": "Paused."}
    found = {
        "waiting": [waiting, paused],
        "running": [{"job": "ftjob-1", "step": 3, "total_steps": 10, "attempt": 2}],
        "queued_total": 5,
        "slots": [{"gpu_type": "h200", "gpus": 8, "total": 2, "busy": 1, "out": 0}],
    }
    assert queue_lines(found) == [
        "5 queued in all projects",
        "",
        "waiting:",
        "  position  job      priority  needs     reason",
        "  1         ftjob-2  high      2 x h200  Next.",
        "  -         ftjob-2  high      2 x any   Paused.",
        "",
        "running:",
        "  job      step  attempt",
        "  ftjob-1  3/10  2",
        "",
        "workers:",
        "  class  gpus  total  busy  out",
        "  h200   8     2      1     0",
    ]
    empty = found | {"waiting": [], "running": [], "slots": []}
    assert queue_lines(empty)[1:] == ["", "waiting: none", "", "running: none", "", "workers: none"]


def test_columns() -> None:
    assert list(table(("a", "bb"), [(1, None), ("long", "x")])) == ["a     bb", "1", "long  x"]
    assert list(table(("a",), [])) == ["a"]
