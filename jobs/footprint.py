"""What a job needs of a machine: disk and memory, from its recipe and its base model. Pure functions.

Disk: the trainer writes each checkpoint locally before it is published, and writes the next one while the last is still
on its way to the store; nothing else of an attempt is large. An estimate cannot be exact: what it misses is caught when
a write fails, which pauses the job with the same reason.

Memory: weights, gradients and optimizer state follow from the recipe; activations depend on kernels and sequence
lengths, and are given as a range.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ADAPTER_SHARE = 0.1
"""Size of a LoRA adapter beside the model's weights: more than the usual ranks have."""
_FACTORED_SHARE = 0.1
"""Size of Adafactor's state beside what it optimizes."""
_CHECKPOINTS = 2
_HALF = ("bfloat16", "float16")
# Numbers a token and layer keep for the backward pass, in hidden sizes: with fused attention and few stored inputs, and
# without; with activation checkpointing the block's input alone.
_KEPT = (10.0, 40.0)
_KEPT_CHECKPOINTED = (1.0, 3.0)
_LOGIT_COPIES = (1.0, 4.0)
_NAMES = {
    "hidden": ("d_model", "hidden_size", "n_embd"),
    "layers": ("n_layers", "num_hidden_layers", "n_layer"),
    "vocabulary": ("embedding_size", "vocab_size"),
}


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, both included."""

    low: float
    high: float


@dataclass(frozen=True)
class Shape:
    """What of a base model sets its needs; 0 where config.json does not say."""

    bytes: int
    """Of its folder."""
    dtype: str
    """Of its weights, "" unknown."""
    hidden: int = 0
    layers: int = 0
    vocabulary: int = 0

    @property
    def parameters(self) -> int:
        """Number of weights, taking everything in the folder for weights."""
        return self.bytes // (2 if self.dtype in _HALF else 4)


def shape_of(folder: Path) -> Shape:
    """The shape of the model in a folder."""
    size, dtype = model_size(folder)
    config = _config(folder)
    found = {key: next((config[name] for name in names if name in config), 0) for key, names in _NAMES.items()}
    return Shape(size, dtype, **{key: value if isinstance(value, int) else 0 for key, value in found.items()})


def disk_bytes(model_bytes: int, stored_dtype: str, recipe: dict[str, Any], input_bytes: int, resume_bytes: int) -> int:
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


def export_bytes(model_bytes: int, stored_dtype: str, dtype: str) -> int:
    """Bytes of a whole model of this base, exported as `dtype`."""
    each, stored = (2 if name in _HALF else 4 for name in (dtype, stored_dtype))
    return model_bytes * each // stored


def _checkpoint_bytes(model_bytes: int, stored_dtype: str, recipe: dict[str, Any]) -> int:
    method = recipe.get("method", {})
    doubled = recipe.get("precision", "float32") == "float32" and stored_dtype in _HALF
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
    config = _config(folder)
    return size, str(config.get("torch_dtype") or config.get("dtype") or "")


def memory_bytes(shape: Shape, recipe: Mapping[str, Any], tokens: Range) -> Range | None:
    """Peak memory of one accelerator while it trains; None where the model does not tell its shape.

    Args:
        tokens: length of one sequence, prompt and answer.
    """
    if not (shape.hidden and shape.layers and shape.vocabulary):
        return None
    method, half = recipe["method"], recipe.get("precision") == "bfloat16"
    lora = method.get("lora")
    parameters = float(shape.parameters)
    trained = parameters if lora is None else parameters * _ADAPTER_SHARE
    frozen = 0.0 if lora is None else parameters * (2 if half else 4)
    adamw = method.get("optimizer", {}).get("optimizer_type", "adamw") == "adamw"
    fixed = frozen + trained * (4 + 4 + 4 * (2 if adamw else _FACTORED_SHARE))
    if lora is None and (method["type"] == "dpo" or method.get("kl_coefficient")):
        fixed += parameters * 4  # the policy it began with
    canvases = method.get("micro_batch", 1)
    kept = _KEPT_CHECKPOINTED if method.get("activation_checkpointing") else _KEPT
    number = 2 if half else 4
    bounds = []
    for length, share, copies in zip((tokens.low, tokens.high), kept, _LOGIT_COPIES, strict=True):
        each = shape.layers * shape.hidden * share * number + shape.vocabulary * copies * 4
        bounds.append(fixed + canvases * length * each)
    return Range(*bounds)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):  # the trainer will say what is wrong with it
        return {}
    return config if isinstance(config, dict) else {}
