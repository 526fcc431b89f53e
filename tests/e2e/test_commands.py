"""The `bgpo` command against a running service: submit and watch, events, download with verification, cancel."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.client import Service
from tests.e2e.conftest import Running

JobBody = Callable[..., dict[str, Any]]
pytestmark = [
    pytest.mark.parametrize("service", ["embedded"], indirect=True),
    pytest.mark.slow,
    pytest.mark.timeout(300),
]


def bgpo(service: Running, *arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli.main", *map(str, arguments), "--url", service.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done
    return done


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def steps_of_checkpoints(service: Running, job_id: str) -> list[int]:
    """Newest first."""
    with Service(service.url) as client:
        return [found["step_number"] for found in client.checkpoints(job_id)]


def submit(
    service: Running, puzzles: tuple[Path, Path], body: dict[str, Any], folder: Path, *options: str, status: int = 0
) -> subprocess.CompletedProcess[str]:
    del body["training_file"], body["validation_file"]
    job = folder / "job.json"
    job.write_text(json.dumps(body))
    train, held_out = puzzles
    arguments = ("submit", job, "--train", train, "--validation", held_out, *options)
    return bgpo(service, *arguments, status=status)


def test_submit_watch_events_download(
    service: Running, puzzles: tuple[Path, Path], job_body: JobBody, tmp_path: Path
) -> None:
    done = submit(service, puzzles, job_body("", ""), tmp_path, "--watch")
    job_id, end = done.stdout.splitlines()
    assert end.startswith(f"{job_id} succeeded: ft:tiny:")
    assert "step 6/6" in done.stderr

    events = bgpo(service, "events", job_id).stdout.splitlines()
    assert "Created fine-tuning job" in events[0]
    assert events[-1].endswith("The job has successfully completed")

    target = tmp_path / "downloaded"
    bgpo(service, "download", job_id, target)
    state = json.loads((target / "trainer_state" / "state.json").read_bytes())
    assert state["step"] == 6
    assert not list(target.rglob("*.part"))
    assert "exists and is not empty" in bgpo(service, "download", job_id, target, status=1).stderr

    stored = service.home / "artifacts" / "checkpoints" / job_id / "1" / "step-000006" / "config.json"
    stored.write_bytes(stored.read_bytes().swapcase())  # the same size, so only the hash tells
    assert "config.json arrived damaged" in bgpo(service, "download", job_id, tmp_path / "other", status=1).stderr


def test_cancel_and_watch_a_cancelled_job(
    service: Running, puzzles: tuple[Path, Path], job_body: JobBody, tmp_path: Path
) -> None:
    job_id = submit(service, puzzles, job_body("", "", steps=5000, every=1000), tmp_path).stdout.strip()
    assert bgpo(service, "cancel", job_id).stdout == f"{job_id} cancelled\n"
    assert f"error: job {job_id} was cancelled" in bgpo(service, "watch", job_id, status=1).stderr


def test_pause_resume_retry_clone(
    service: Running, puzzles: tuple[Path, Path], job_body: JobBody, tmp_path: Path
) -> None:
    """One job that trains for long, and another that waits behind it, as there is one worker."""
    long = submit(service, puzzles, job_body("", "", steps=5000, every=2), tmp_path).stdout.strip()
    wait_until(lambda: steps_of_checkpoints(service, long))
    override = tmp_path / "override.json"
    changes = {"method": {"reinforcement": {"hyperparameters": {"max_steps": 4}}}, "rl": {"priority": "high"}}
    override.write_text(json.dumps(changes))
    short = bgpo(service, "clone", long, "--override", override).stdout.strip()
    shown = bgpo(service, "queue").stdout
    assert f"1         {short}  high" in shown
    assert "cpu    1     1      1" in shown
    assert long in shown.partition("running:")[2]

    assert bgpo(service, "pause", long).stdout == f"{long} pausing\n"
    assert f"{short} succeeded" in bgpo(service, "watch", short).stdout
    with Service(service.url) as client:
        assert client.job(long)["status"] == "paused"
    checkpoint = bgpo(service, "checkpoints", short).stdout.splitlines()[1].split()
    assert (checkpoint[1], checkpoint[5]) == ("4", "final")
    assert bgpo(service, "pin", checkpoint[0]).stdout == f"{checkpoint[0]} pinned\n"
    assert "is succeeded: only failed and cancelled jobs" in bgpo(service, "retry", short, status=1).stderr
    assert bgpo(service, "resume", long).stdout == f"{long} queued\n"

    bgpo(service, "cancel", long)
    reached = steps_of_checkpoints(service, long)[0]
    override.write_text(json.dumps({"rl": {"resources": {"max_runtime_s": 3600}}}))
    again = bgpo(service, "retry", long, "--override", override).stdout.strip()
    wait_until(lambda: steps_of_checkpoints(service, again))
    assert steps_of_checkpoints(service, again)[-1] > reached
    row = bgpo(service, "attempts", again).stdout.splitlines()[1]
    assert f"  {reached}  " in row
    assert "running" in row
    assert "busy" in bgpo(service, "workers").stdout
    bgpo(service, "cancel", again)


def test_the_services_error_is_one_line_naming_the_field(
    service: Running, puzzles: tuple[Path, Path], job_body: JobBody, tmp_path: Path
) -> None:
    body = job_body("", "")
    body["method"]["reinforcement"]["hyperparameters"]["learning_rat"] = 1
    error = submit(service, puzzles, body, tmp_path, status=1).stderr
    assert error.startswith("error: method.reinforcement.hyperparameters.learning_rat")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("watch", "ftjob-unknown"), "No such fine-tuning job: ftjob-unknown"),
        (("download", "ftckpt_unknown", "target"), "No such checkpoint: ftckpt_unknown"),
        (("submit", "missing.json", "--train", "missing.jsonl"), "cannot read missing.json"),
    ],
)
def test_what_is_not_there_is_said(service: Running, arguments: tuple[str, ...], words: str) -> None:
    assert words in bgpo(service, *arguments, status=1).stderr


def test_no_service_is_said(service: Running) -> None:
    nowhere = Running("http://127.0.0.1:1", service.home)
    assert "no service answers at http://127.0.0.1:1" in bgpo(nowhere, "watch", "ftjob-1", status=1).stderr
