"""Checkpoints: the model in its published layout, the trainer's state beside it, and a manifest of both.

    step-000020/
        config.json, model.safetensors, tokenizer files     what `bgpo.load_policy` and the original code open
        trainer_state/optimizer.safetensors, state.json     what resuming needs
        manifest.json                                       path, bytes, sha256, kind of every other file

A checkpoint appears under its name only when complete: it is written to `step-000020.tmp`, flushed to disk file by
file, and renamed. Randomness is counter-based, so no generator state is stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import bgpo
from bgpo.errors import ModelError
from bgpo.models import Policy, save_policy
from bgpo.spec import Recipe
from bgpo.training.optimizer import Optimizer

STATE_DIR = "trainer_state"
MANIFEST = "manifest.json"


def write_checkpoint(
    root: Path, step: int, policy: Policy, optimizer: Optimizer, recipe: Recipe, metrics: dict[str, float]
) -> Path:
    """Write the checkpoint of a step below `root` and return its directory."""
    final = root / f"step-{step:06d}"
    temporary = final.with_name(final.name + ".tmp")
    for leftover in (temporary, final):
        if leftover.exists():
            shutil.rmtree(leftover)
    save_policy(policy, temporary)
    state = temporary / STATE_DIR
    state.mkdir()
    save_file(optimizer.state_tensors(), state / "optimizer.safetensors")
    summary = {
        "step": step,
        "metrics": metrics,
        "recipe": recipe.model_dump(mode="json"),
        "versions": {"bgpo": bgpo.__version__, "torch": torch.__version__},
    }
    (state / "state.json").write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    (temporary / MANIFEST).write_text(json.dumps(build_manifest(temporary, step), indent=2) + "\n", "utf-8")
    _flush(temporary)
    temporary.rename(final)
    _fsync(root)
    return final


def read_state(directory: Path) -> dict[str, Any]:
    """The trainer's state.json of a checkpoint.

    Raises:
        ModelError: the directory is not a checkpoint with trainer state.
    """
    try:
        state: dict[str, Any] = json.loads((directory / STATE_DIR / "state.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{directory} has no readable trainer state: {error}", "resume_from") from error
    return state


def load_optimizer(directory: Path, optimizer: Optimizer) -> None:
    """Restore the optimizer from a checkpoint.

    Raises:
        ModelError: the file is missing or damaged.
    """
    try:
        optimizer.load_state_tensors(load_file(directory / STATE_DIR / "optimizer.safetensors"))
    except (OSError, SafetensorError, KeyError) as error:
        raise ModelError(f"{directory} has no readable optimizer state: {error}", "resume_from") from error


def build_manifest(directory: Path, step: int) -> dict[str, Any]:
    """List every file below `directory` (but the manifest) with size, sha256 and kind."""
    files = []
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        name = path.relative_to(directory).as_posix()
        if name == MANIFEST:
            continue
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        files.append({"path": name, "bytes": path.stat().st_size, "sha256": digest, "kind": _kind(name)})
    return {"step": step, "files": files}


def prune(root: Path, keep_last: int) -> None:
    """Delete all but the newest `keep_last` checkpoints below `root`."""
    complete = [p for p in root.glob("step-*") if p.is_dir() and p.suffix != ".tmp"]
    complete.sort(key=lambda p: (len(p.name), p.name))  # from a million on, steps have more digits
    for old in complete[:-keep_last]:
        shutil.rmtree(old)


def _kind(name: str) -> str:
    if name.startswith(f"{STATE_DIR}/"):
        return "trainer_state"
    if name.endswith((".safetensors", ".safetensors.index.json")):
        return "weights"
    return "config" if name in ("config.json", "generation_config.json") else "tokenizer"


def _flush(directory: Path) -> None:
    for path in directory.rglob("*"):
        _fsync(path)
    _fsync(directory)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
