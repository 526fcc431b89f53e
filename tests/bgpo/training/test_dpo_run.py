"""A preference job through `python -m bgpo.run`: it learns what is preferred, and resumes bit by bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bgpo.records import ExitCode
from tests.bgpo.trainer_process import TrainerProcess

pytestmark = pytest.mark.timeout(300)  # several processes, each of which imports torch

DPO: dict[str, Any] = {
    "type": "dpo",
    "optimizer": {"learning_rate": 0.005, "warmup_steps": 3, "weight_decay": 0.01},
    "max_steps": 12,
    "batch_size": 8,
    "mc_samples": 4,
    "micro_batch": 16,
    "max_completion_length": 8,
}
GRADER = {
    "type": "string_check",
    "name": "vowel",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "like",
}
ROLLOUT = {"max_completion_length": 8, "block_length": 4, "diffusion_steps": 4}
Start = Callable[..., TrainerProcess]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Vowels are preferred to consonants, whatever is asked."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, count in (("train", 30), ("validation", 10)):
        rows = [
            {
                "input": {"messages": [{"role": "user", "content": "?" * (i % 3)}]},
                "preferred_output": [{"role": "assistant", "content": "aeiou"[i % 5] * (1 + i % 4)}],
                "non_preferred_output": [{"role": "assistant", "content": "bcd"[i % 3] * (1 + i % 3)}],
                "answer": "aeiou"[i % 5],
            }
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {f"{name}_data": str(folder / f"{name}.jsonl") for name in ("train", "validation")}


@pytest.fixture(scope="module")
def start(wordy_checkpoint: Path, data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts trainers, each with its own output folder, and leaves none behind."""
    started: list[TrainerProcess] = []

    def run(changes: dict[str, Any], **fields: Any) -> TrainerProcess:
        folder = tmp_path_factory.mktemp("run")
        defaults = {"model": str(wordy_checkpoint), **data, "output_dir": str(folder / "out"), "seed": 5, "threads": 1}
        started.append(TrainerProcess({**defaults, "method": DPO | changes, **fields}, folder))
        return started[-1]

    yield run
    for process in started:
        process.release()


def weights(process: TrainerProcess) -> bytes:
    last = process.checkpoints()[-1]
    assert last.final
    return next(Path(last.path).rglob("*model.safetensors")).read_bytes()


LORA = {"lora": {"rank": 4, "checkpoints": "adapter"}, "optimizer": {"learning_rate": 0.01, "warmup_steps": 3}}


@pytest.mark.parametrize(
    "changes", [pytest.param({}, id="full"), pytest.param(LORA, id="lora", marks=pytest.mark.slow)]
)
def test_it_learns_the_preference_and_resumes_bit_by_bit(start: Start, changes: dict[str, Any]) -> None:
    whole = start(changes, evaluation={"interval": 6}, checkpointing={"every_steps": 6})
    assert whole.finish() == ExitCode.FINISHED, whole.stderr
    train, validation = whole.metrics("train"), whole.metrics("validation")
    assert train[1]["loss"] == pytest.approx(0.6931, abs=1e-4), "nothing is learned yet"
    assert sum(train[step]["accuracy"] for step in (9, 10, 11, 12)) / 4 > 0.85
    assert min(train[step]["margin"] for step in (9, 10, 11, 12)) > 0
    assert train[12]["margin"] == pytest.approx(train[12]["reward_chosen"] - train[12]["reward_rejected"])
    assert validation[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert validation[12]["loss"] < validation[6]["loss"] < 0.69
    half = next(record for record in whole.checkpoints() if record.step == 6)

    resumed = start(changes, evaluation={"interval": 6}, checkpointing={"every_steps": 6}, resume_from=half.path)
    assert resumed.finish() == ExitCode.FINISHED, resumed.stderr

    def exact(process: TrainerProcess, split: str) -> dict[int, dict[str, float]]:
        metrics = process.metrics(split)
        return {
            step: {name: value for name, value in metrics[step].items() if name != "peak_memory_bytes"}
            for step in metrics
            if step > 6
        }

    assert exact(resumed, "train") == exact(whole, "train")
    assert exact(resumed, "validation") == exact(whole, "validation")
    assert weights(resumed) == weights(whole)


def test_evaluation_with_a_grader_samples_answers_to_the_same_prompts(start: Start) -> None:
    run = start({"grader": GRADER, "rollout": ROLLOUT, "max_steps": 1})
    assert run.finish() == ExitCode.FINISHED, run.stderr
    values = run.metrics("validation")[1]
    assert {"sampled_solved_rate", "greedy_reward_mean"} <= set(values)
    assert values["sampled_grader_errors"] == 0
