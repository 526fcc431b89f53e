"""Evaluating and exporting what a real job made, by a whole service: the trainer's own numbers, and weights that the
code of transformers opens."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from transformers import AutoModelForCausalLM

from bgpo.models import Policy, load_policy
from cli.ports import free_port
from cli.stack import Stack
from tests.e2e.conftest import SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
OVER = ("succeeded", "failed", "cancelled")
TOKENS = torch.randint(0, 250, (2, 15), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model of a family that transformers has itself."""
    root = tmp_path_factory.mktemp("models")
    options = ["--family", "qwen3", "--d-model", "32", "--n-layers", "2", "--n-heads", "2", "--mlp-hidden-size", "48"]
    command = [sys.executable, "-m", "bgpo.models.scratch", "--out", str(root / "tiny"), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return root


@pytest.fixture(scope="module")
def http(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A client of a running service."""
    env = SETTINGS | {"BGPO_MODEL_ROOT": str(models)}
    with Stack(tmp_path_factory.mktemp("home"), port=free_port(), env=env) as stack:
        with httpx2.Client(base_url=f"{stack.url}/v1", trust_env=False, timeout=60) as client:
            yield client
        stack.check()


@pytest.fixture(scope="module")
def job(http: httpx2.Client, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A job with an adapter that has succeeded, far enough from its base that an adapter left out would be seen."""
    rows = [{"messages": [{"role": "user", "content": f"{i}"}], "answer": "aioe"[i % 4]} for i in range(12)]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    files = {"file": ("rows.jsonl", content)}
    file = call(http, "POST", "/files", data={"purpose": "fine-tune"}, files=files)["id"]
    grader = {"type": "text_similarity", "name": "same", "evaluation_metric": "fuzzy_match"}
    grader |= {"input": "{{ sample.output_text }}", "reference": "{{ item.answer }}"}
    hyperparameters = {
        **{"max_steps": 3, "batch_size": 4, "group_size": 4, "mc_samples": 2, "learning_rate": 0.05},
        **{"max_completion_length": 8, "block_length": 8, "diffusion_steps": 4, "lora": {"rank": 4, "alpha": 32.0}},
    }
    block = {"grader": grader, "hyperparameters": hyperparameters}
    body = {
        **{"model": "tiny", "training_file": file, "validation_file": file, "seed": 5},
        **{"method": {"type": "reinforcement", "reinforcement": block}, "rl": {"eval": {"answers": 2}}},
    }
    made = call(http, "POST", "/fine_tuning/jobs", json=body)
    return over(http, f"/fine_tuning/jobs/{made['id']}")


def call(http: httpx2.Client, method: str, path: str, **options: Any) -> dict[str, Any]:
    response = http.request(method, path, **options)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def over(http: httpx2.Client, path: str) -> dict[str, Any]:
    """The object once it has succeeded."""
    deadline = time.monotonic() + 240
    while (found := call(http, "GET", path))["status"] not in OVER:
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    assert found["status"] == "succeeded", found
    return found


def final_of(http: httpx2.Client, job: dict[str, Any]) -> str:
    checkpoints = call(http, "GET", f"/fine_tuning/jobs/{job['id']}/checkpoints")["data"]
    found: str = next(one["id"] for one in checkpoints if one["rl"]["final"])
    return found


def evaluations_of(http: httpx2.Client, job: dict[str, Any]) -> dict[int, dict[str, float]]:
    """What the trainer found, by step, without what is of the clock."""
    points = call(http, "GET", f"/fine_tuning/jobs/{job['id']}/metrics?split=validation")["data"]
    return {
        point["step"]: {name: value for name, value in point["values"].items() if not name.startswith("seconds_")}
        for point in points
    }


def test_evaluations_of_base_and_tuned_are_the_trainers_own(http: httpx2.Client, job: dict[str, Any]) -> None:
    trainers = evaluations_of(http, job)
    tuned = call(http, "POST", f"/fine_tuning/checkpoints/{final_of(http, job)}/evaluate")
    same = {name: tuned[name] for name in ("file", "grader", "sampler", "answers", "seed")}
    base = call(http, "POST", "/fine_tuning/evaluations", json={"model": "tiny"} | same)
    for made, step in ((base, 0), (tuned, 3)):
        done = over(http, f"/fine_tuning/evaluations/{made['id']}")
        metrics = done["results"]["metrics"]
        assert {name: metrics[name] for name in trainers[step]} == trainers[step]
        samples = call(http, "GET", f"/fine_tuning/evaluations/{made['id']}/samples?limit=100")["data"]
        assert len(samples) == done["total_responses"] == 36
        sampled = [one["reward"] for one in samples if one["decoding"] == "sampled"]
        assert sum(sampled) / len(sampled) == pytest.approx(done["results"]["sampled"]["mean"])
        assert done["results"]["sampled"]["stderr"] > 0
    assert trainers[0] != trainers[3], "training changed something"


def logits(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return policy.model.logits(policy.model(TOKENS).flatten(0, 1)).float()


def test_an_export_is_base_and_adapter_in_one(
    http: httpx2.Client, job: dict[str, Any], models: Path, tmp_path: Path
) -> None:
    checkpoint = final_of(http, job)
    made = call(http, "POST", f"/fine_tuning/checkpoints/{checkpoint}/export", json={"dtype": "bfloat16"})
    done = over(http, f"/fine_tuning/exports/{made['id']}")
    assert done["bytes"] > 0
    for path, name in ((f"exports/{made['id']}", "export"), (f"checkpoints/{checkpoint}", "checkpoint")):
        content = http.get(f"/fine_tuning/{path}/content").content
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            tar.extractall(tmp_path / name, filter="data")
    (exported,), (trained,) = ((tmp_path / name).iterdir() for name in ("export", "checkpoint"))
    assert not (exported / "adapter").exists()
    opened = AutoModelForCausalLM.from_pretrained(exported, dtype="auto")
    assert opened.dtype == torch.bfloat16
    ours = load_policy(exported)
    theirs = opened.state_dict()
    assert all(torch.equal(theirs[name].float(), value) for name, value in ours.model.state_dict().items())
    adapted = load_policy(trained, base=models / "tiny")
    torch.testing.assert_close(logits(ours), logits(adapted), atol=0.05, rtol=0)
    with adapted.without_adapter():
        assert (logits(ours) - logits(adapted)).abs().max() > 0.2, "the adapter is in it"


def bgpo(http: httpx2.Client, *arguments: str, status: int = 0) -> str:
    command = [sys.executable, "-m", "cli.main", *arguments, "--url", str(http.base_url).removesuffix("/v1/")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == status, done
    return done.stderr if status else done.stdout


def test_the_commands_wait_and_show(http: httpx2.Client, job: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = final_of(http, job)
    lines = [line.split() for line in bgpo(http, "evaluate", checkpoint, "--answers", "2").splitlines()]
    assert lines[0] == ["answers", "graded", "errors", "reward", "solved"]
    evaluation = call(http, "GET", "/fine_tuning/evaluations?limit=1")["data"][0]
    for decoding, graded, errors, reward, sign, error, *_ in lines[1:]:
        found = evaluation["results"][decoding]
        shown = (str(found["graded"]), "0", f"{found['mean']:.3f}", "±", f"{found['stderr']:.3f}")
        assert (graded, errors, reward, sign, error) == shown
    assert "grader" in bgpo(http, "evaluate", "tiny", "--file", job["training_file"], status=1)

    printed = bgpo(http, "export", checkpoint, str(tmp_path / "weights"), "--dtype", "float16")
    assert printed.startswith("ftexport-")
    assert load_policy(tmp_path / "weights")
    assert "is not empty" in bgpo(http, "export", checkpoint, str(tmp_path / "weights"), status=1)
