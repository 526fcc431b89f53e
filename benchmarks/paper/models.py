"""The files runs start from: datasets of both tasks, and the base model where a preset makes its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.paper.presets import ROLLOUT, ROOT, SHIPPED, Preset
from bgpo.tasks import countdown, sudoku
from bgpo.tasks.rows import seeded

DATA_SEED = 11
"""Of the puzzles; another one than the shipped model's demonstrations were made with."""
NOISE = {"sudoku": 0.65, "countdown": 0.5}
"""Share of wrong demonstrations, as for the shipped model: it leaves reinforcement something to do."""


def write_data(folder: Path, task: str, train_rows: int, test_rows: int) -> tuple[Path, Path]:
    """Training and held-out rows; Sudoku's share no solution grid, Countdown's no task."""
    folder.mkdir(parents=True, exist_ok=True)
    generate = sudoku.generate if task == "sudoku" else countdown.generate
    paths = []
    for split, rows in (("train", train_rows), ("test", test_rows)):
        path = folder / f"{task}-{split}-{rows}.jsonl"
        if not path.is_file():
            _write(path, generate(rows, DATA_SEED, "train" if split == "train" else "test"))
        paths.append(path)
    return paths[0], paths[1]


def base_model(preset: Preset, folder: Path) -> Path:
    """The directory of the preset's base model; made on first use, which takes minutes for `h200`."""
    if preset.model is None:
        return ROOT / SHIPPED
    model = folder / f"model-{preset.name}"
    made_with = model / "made_with.json"
    settings = preset.model_settings()
    if made_with.is_file() and json.loads(made_with.read_bytes()) == settings:
        return model
    work = folder / f"model-{preset.name}-work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(model, ignore_errors=True)
    work.mkdir(parents=True)
    _train_base(preset, settings, work)
    (last,) = (work / "checkpoints").glob("step-*")
    shutil.copytree(last, model, ignore=shutil.ignore_patterns("trainer_state"))
    shutil.rmtree(work)
    made_with.write_text(json.dumps(settings) + "\n")
    return model


def _train_base(preset: Preset, settings: Mapping[str, Any], work: Path) -> None:
    from bgpo.models.scratch import create_checkpoint

    assert preset.model is not None
    create_checkpoint(work / "start", seed=0, **preset.model.shape)
    rows = []
    for name, task in (("sudoku", sudoku), ("countdown", countdown)):
        rng = seeded("demonstrations", name, "paper")
        rows += [task.demonstrate(row, rng, NOISE[name]) for row in task.generate(settings["rows"], 1, "train")]
    _write(work / "train.jsonl", rows)
    spec = {
        "seed": 1,
        "precision": preset.precision,
        "method": {
            "type": "supervised",
            "optimizer": {
                "learning_rate": settings["learning_rate"],
                "warmup_steps": settings["steps"] // 12,
                "decay": "linear",
                "beta2": 0.99,
            },
            "max_steps": settings["steps"],
            "batch_size": settings["batch_size"],
            "micro_batch": preset.micro_batch,
            "max_completion_length": ROLLOUT["max_completion_length"],
        },
        "checkpointing": {"keep_last": 1, "keep_best": False},
        "sample_log": 0,
        "model": str(work / "start"),
        "train_data": str(work / "train.jsonl"),
        "output_dir": str(work),
        "device": preset.device,
    }
    (work / "spec.json").write_text(json.dumps(spec, indent=2))
    with (work / "records.jsonl").open("wb") as records:
        subprocess.run(
            [sys.executable, "-m", "bgpo.run", str(work / "spec.json")], stdout=records, check=True, cwd=ROOT
        )


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    part = path.with_suffix(".part")  # two runs side by side may both find the file missing
    part.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))
    part.replace(path)
