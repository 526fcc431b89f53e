"""Room on the worker's disk: whether it may take jobs at all, and whether one job fits.

The trainer writes each checkpoint locally before it is published, and writes the next one while the last is still on
its way to the store; nothing else of an attempt is large. An estimate cannot be exact: what it misses is caught when a
write fails, which pauses the job with the same reason.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from jobs.settings import Settings

_ADAPTER_SHARE = 0.1
"""Size of a LoRA adapter beside the model's weights: more than the usual ranks have."""
_FACTORED_SHARE = 0.1
"""Size of Adafactor's state beside what it optimizes."""
_CHECKPOINTS = 2


def problem(settings: Settings) -> str | None:
    """Why this worker should take no job now, or None."""
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(settings.home).free
    except OSError as error:
        return f"its folder cannot be used: {error.strerror}"
    if free < settings.min_free_bytes:
        return f"{gigabytes(free)} of disk are free, and it takes no job below {gigabytes(settings.min_free_bytes)}"
    return None


def needed(model_bytes: int, stored_dtype: str, recipe: dict[str, Any], input_bytes: int, resume_bytes: int) -> int:
    """Bytes an attempt may write: its inputs, the checkpoint it resumes from, and two checkpoints of its own.

    Args:
        model_bytes: of the base model's folder.
        stored_dtype: of its weights, as config.json says; a run in float32 writes 16-bit weights at twice the size.
        recipe: a `bgpo.spec.Recipe`.
        input_bytes: of the training and validation files.
        resume_bytes: of the checkpoint to resume from, which is then the measure of those to come; 0 = none.
    """
    checkpoint = resume_bytes or _checkpoint_bytes(model_bytes, stored_dtype, recipe)
    return input_bytes + resume_bytes + _CHECKPOINTS * checkpoint


def _checkpoint_bytes(model_bytes: int, stored_dtype: str, recipe: dict[str, Any]) -> int:
    method = recipe.get("method", {})
    doubled = recipe.get("precision", "float32") == "float32" and stored_dtype in ("bfloat16", "float16")
    weights = float(model_bytes * (2 if doubled else 1))
    lora = method.get("lora")
    trained = weights if lora is None else weights * _ADAPTER_SHARE
    adamw = method.get("optimizer", {}).get("optimizer_type", "adamw") == "adamw"
    state = trained * (2 if adamw else _FACTORED_SHARE)
    if lora is None:
        return int(weights + state)
    whole = weights if lora.get("checkpoints", "merged") == "merged" else 0.0
    return int(whole + trained + state)


def model_size(folder: Path) -> tuple[int, str]:
    """Bytes of a model's folder, and the dtype its config.json names ("" if none)."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    try:
        config = json.loads((folder / "config.json").read_bytes())
        return size, str(config.get("torch_dtype") or config.get("dtype") or "")
    except (OSError, ValueError, AttributeError):  # the trainer will say what is wrong with it
        return size, ""


def gigabytes(size: int) -> str:
    """A size for people, exact to a megabyte."""
    return f"{size / 1e9:.3f} GB"
