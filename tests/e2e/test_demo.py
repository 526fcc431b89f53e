"""`bgpo demo` from beginning to end, with a small model and a short job in place of the shipped ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.timeout(300)  # many processes that import PyTorch, perhaps on few cores
JobBody = Callable[..., dict[str, Any]]
DEMO = """
import sys
from pathlib import Path
from rich.console import Console
from cli.demo import run_demo
run_demo(Path(sys.argv[1]), Path(sys.argv[2]), Console(), train_rows=64, held_out_rows=32)
"""


@pytest.fixture
def demo(tmp_path: Path, model_root: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the demo on a job body instead of the shipped example."""

    def run(body: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        example = tmp_path / "job.json"
        example.write_text(json.dumps(body))
        command = [sys.executable, "-c", DEMO, str(tmp_path / "home"), str(example)]
        env = os.environ | {"BGPO_MODEL_ROOT": str(model_root), "BGPO_TRAINER_DEVICE": "cpu"}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def body(job_body: JobBody) -> dict[str, Any]:
    body = job_body("", "")
    del body["training_file"], body["validation_file"]
    return body


@pytest.mark.slow
def test_the_demo_works_twice_in_a_row(
    demo: Callable[..., subprocess.CompletedProcess[str]], body: dict[str, Any], tmp_path: Path
) -> None:
    summaries = []
    for _ in range(2):
        done = demo(body)
        assert (done.returncode, done.stderr) == (0, "")
        assert "step 6/6" in done.stdout
        assert "32 held-out puzzles" in done.stdout
        assert str(tmp_path / "home" / "checkpoint") in done.stdout
        summaries.append(json.loads((tmp_path / "home" / "summary.json").read_bytes()))
    first, second = summaries
    assert {name: first[name] for name in first if name != "seconds"} == {
        name: second[name] for name in second if name != "seconds"
    }
    for key in ("solved", "solved_greedy", "cell_accuracy", "cell_accuracy_greedy"):
        assert first[f"redownloaded_{key}"] == first[f"tuned_{key}"]
        assert 0 <= first[f"base_{key}"] <= 1
    low, high = first["solved_gain_interval_95"]
    assert low <= first["tuned_solved"] - first["base_solved"] <= high
    assert (tmp_path / "home" / "checkpoint" / "model.safetensors").is_file()
    assert not [p for p in psutil.process_iter() if str(tmp_path) in " ".join(safe_cmdline(p))]


def test_a_job_that_fails_fails_the_demo_with_its_error(
    demo: Callable[..., subprocess.CompletedProcess[str]], body: dict[str, Any]
) -> None:
    body["method"]["reinforcement"]["hyperparameters"] |= {"max_completion_length": 8192, "block_length": 8192}
    body["method"]["reinforcement"]["hyperparameters"] |= {"diffusion_steps": 1}
    done = demo(body)
    assert done.returncode == 1
    assert "CliError: job ftjob-" in done.stderr
    assert "with 8192 for the response that exceeds the model's context" in done.stderr


def safe_cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # ended while we looked
        return []
