"""The example's training on this device: the shipped model learns Sudoku, in float32 and in bfloat16."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.device import device
from benchmarks.gpu.sizes import Sizes
from bgpo.tasks import sudoku

ROOT = Path(__file__).parents[2]


def measure(sizes: Sizes, emit: Callable[[dict[str, Any]], None]) -> None:
    """A row for each precision."""
    with tempfile.TemporaryDirectory(prefix="bgpo-gpu-") as name:
        folder = Path(name)
        for split, rows in (("train", sizes.rl_rows), ("test", sizes.rl_rows // 4)):
            made = sudoku.generate(rows, 21, "train" if split == "train" else "test")
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
        for precision in ("float32", "bfloat16"):
            emit({"precision": precision, **_run(sizes, precision, folder)})


def _run(sizes: Sizes, precision: str, folder: Path) -> dict[str, Any]:
    spec = {
        "seed": 7,
        "precision": precision,
        "method": {
            "type": "reinforcement",
            "algorithm": "bgpo",
            "grader": sudoku.grader_spec("mixed"),
            "rollout": {"max_completion_length": 17, "block_length": 17, "diffusion_steps": 9, "temperature": 1.0},
            "optimizer": {"learning_rate": 1.5e-4, "warmup_steps": 3, "beta2": 0.99},
            "max_steps": sizes.rl_steps,
            "batch_size": sizes.rl_prompts,
            "group_size": sizes.rl_group,
            "mc_samples": 4,
            "micro_batch": 1024,
        },
        "sample_log": 0,
        "model": str(ROOT / "examples" / "models" / "tiny-llada"),
        "train_data": str(folder / "train.jsonl"),
        "validation_data": str(folder / "test.jsonl"),
        "output_dir": str(folder / precision),
        "device": device().type,
    }
    path = folder / f"{precision}.json"
    path.write_text(json.dumps(spec))
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.gpu.standin", "bgpo.run", str(path)]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    elapsed = time.perf_counter() - start
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode:
        errors = [record["message"] for record in records if record["type"] == "error"]
        why = errors[-1] if errors else done.stderr.strip()[-300:]
        return {"error": f"exit status {done.returncode}: {why}", "failed": True}
    metrics = [record for record in records if record["type"] == "metric"]
    evaluations = [record["values"] for record in metrics if record["split"] == "validation"]
    steps = [record["values"]["seconds_step"] for record in metrics if record["split"] == "train"]
    return {
        "steps": len(steps),
        "base_sampled_solved": round(evaluations[0]["sampled_solved_rate"], 4),
        "final_sampled_solved": round(evaluations[-1]["sampled_solved_rate"], 4),
        "base_greedy_solved": round(evaluations[0]["greedy_solved_rate"], 4),
        "final_greedy_solved": round(evaluations[-1]["greedy_solved_rate"], 4),
        "median_step_seconds": round(sorted(steps)[len(steps) // 2], 3),
        "seconds": round(elapsed, 1),
    }
