"""What base models are, read from their files without loading them: config.json and the headers of the weight files."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, get_args

from bgpo.spec import AlgorithmName
from jobs.context import Context
from jobs.errors import NotFound
from jobs.services.models import BaseModel

METHODS = ("reinforcement", "supervised", "dpo")
_FAMILIES = {"llada": "llada", "Dream": "dream"}
_CONTEXT_KEYS = ("max_sequence_length", "max_position_embeddings")
_MAX_HEADER = 100 * 2**20  # the format's own limit
_ADAMW_BYTES = 16  # weight, gradient and two moments, four bytes each


@dataclass(frozen=True)
class BaseModelInfo:
    """One base model, for those who choose."""

    id: str
    created_at: int
    architecture: str
    """Model family: llada, dream, or a2d for converted autoregressive models."""
    model_type: str
    """As config.json has it."""
    context_length: int | None
    vocabulary: int | None
    dtype: str | None
    parameters: int
    """0 when no weight file can be read."""
    bytes: int
    """Of the weight files."""

    @property
    def methods(self) -> tuple[str, ...]:
        return METHODS

    @property
    def algorithms(self) -> tuple[str, ...]:
        return get_args(AlgorithmName)

    @property
    def memory(self) -> dict[str, int]:
        """Bytes on the accelerator, without activations."""
        return {
            "inference_bfloat16": 2 * self.parameters,
            "inference_float32": 4 * self.parameters,
            "full_training": _ADAMW_BYTES * self.parameters,
            "lora_training_bfloat16": 2 * self.parameters,
        }


def list_all(ctx: Context) -> list[BaseModelInfo]:
    """The catalog, by id."""
    return [describe(model) for model in ctx.catalog.list()]


def get(ctx: Context, model_id: str) -> BaseModelInfo:
    """One base model. Raises NotFound."""
    model = ctx.catalog.get(model_id)
    if model is None:
        raise NotFound(f"The base model '{model_id}' does not exist.", "model", "model_not_found")
    return describe(model)


def describe(model: BaseModel) -> BaseModelInfo:
    """What its files say. One that cannot be read is described as far as it can be; loading it says what is wrong."""
    config = _config(model.path)
    files = sorted(model.path.glob("*.safetensors"))
    stats = [file.stat() for file in files]
    model_type = str(config.get("model_type") or "")
    return BaseModelInfo(
        id=model.id,
        created_at=model.created_at,
        architecture=_FAMILIES.get(model_type, "a2d" if config.get("mask_token_id") is not None else "unknown"),
        model_type=model_type,
        context_length=_whole(config, *_CONTEXT_KEYS),
        vocabulary=_whole(config, "vocab_size"),
        dtype=str(config.get("torch_dtype") or config.get("dtype") or "") or None,
        parameters=sum(_parameters(file, stat.st_mtime_ns) for file, stat in zip(files, stats, strict=True)),
        bytes=sum(stat.st_size for stat in stats),
    )


def context_length(model: BaseModel) -> int | None:
    """Tokens of prompt and answer together; None when config.json does not say."""
    return _whole(_config(model.path), *_CONTEXT_KEYS)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _whole(config: dict[str, Any], *names: str) -> int | None:
    found = [value for name in names if type(value := config.get(name)) is int and value > 0]
    return found[0] if found else None


@lru_cache(maxsize=1024)
def _parameters(path: Path, _modified_ns: int) -> int:
    """Numbers in a safetensors file, by its header: eight bytes of length, then JSON."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER:
                return 0
            header = json.loads(file.read(length))
        return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return 0
