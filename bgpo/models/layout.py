"""Reading and writing checkpoint directories in the Hugging Face layout: config.json plus safetensors.

Only safetensors is read (a pickle would run code), single-file or sharded with `model.safetensors.index.json`.
Weights are checked name by name against the network, so a truncated or foreign checkpoint fails with what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bgpo.errors import ModelError
from bgpo.models.network import Network

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DEFAULT_SHARD_BYTES = 5 * 10**9


def read_config(directory: Path) -> dict[str, Any]:
    """config.json as a dict.

    Raises:
        ModelError: the directory or file is missing, or is not a JSON object.
    """
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"no config.json in {directory}: not a checkpoint directory") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds no JSON object")
    return config


def has_weights(directory: Path) -> bool:
    """Whether the directory has whole weights, in one file or in shards."""
    return (directory / SINGLE).is_file() or (directory / INDEX).is_file()


def weight_files(directory: Path) -> dict[str, list[str]]:
    """Weight names by file name.

    Raises:
        ModelError: neither weight file nor index exists, or the index names a file outside the directory.
    """
    index = directory / INDEX
    if index.is_file():
        try:
            weight_map: dict[str, str] = json.loads(index.read_text("utf-8"))["weight_map"]
            entries = weight_map.items()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index} has no weight_map of names to files") from error
        files: dict[str, list[str]] = {}
        for name, file in entries:
            if not isinstance(file, str):
                raise ModelError(f"the weight_map of {index} gives {file!r} for {name}, which is not a file name")
            if Path(file).name != file:
                raise ModelError(f"{index} names {file!r}, which is not a plain file name")
            files.setdefault(file, []).append(name)
        return files
    if not (directory / SINGLE).is_file():
        raise ModelError(f"{directory} holds neither {SINGLE} nor {INDEX}")
    with _open(directory / SINGLE) as tensors:
        return {SINGLE: list(tensors.keys())}


def load_weights(model: Network, directory: Path) -> None:
    """Copy a checkpoint's weights into `model`, tensor by tensor, in the model's own dtype and device.

    Raises:
        ModelError: weights are missing, unknown, of another shape, or a file is damaged.
    """
    own = model.state_dict()
    files = weight_files(directory)
    stored = {name for names in files.values() for name in names}
    problems = [f"missing {name}" for name in own if name not in stored]
    problems += [f"unknown {name}" for name in sorted(stored) if name not in own and name not in model.aliases]
    if problems:
        raise ModelError(
            f"the weights in {directory} do not fit its config.json: {'; '.join(problems[:5])}"
            + (f" and {len(problems) - 5} more" if len(problems) > 5 else "")
        )
    for aliases in (False, True):
        for file, names in files.items():
            with _open(directory / file) as tensors:
                for name in names:
                    if (name not in own) == aliases:
                        _load_weight(tensors, name, own, model.aliases.get(name), directory / file)


def _load_weight(tensors: Any, name: str, own: Mapping[str, Tensor], alias_of: str | None, file: Path) -> None:
    try:
        value: Tensor = tensors.get_tensor(name)
    except SafetensorError as error:
        raise ModelError(f"{file} holds no {name}, but {INDEX} says so") from error
    target = own[alias_of or name]
    if value.shape != target.shape:
        raise ModelError(f"{name} is {tuple(value.shape)}, config.json asks for {tuple(target.shape)}")
    if alias_of is None:
        with torch.no_grad():
            target.copy_(value)
    elif not torch.equal(value.to(target), target):
        raise ModelError(f"{name} differs from {alias_of}, but config.json ties them")


def save_weights(model: nn.Module, directory: Path, shard_bytes: int = DEFAULT_SHARD_BYTES) -> None:
    """Write the model's weights, see `save_tensors`."""
    save_tensors(model.state_dict(), directory, shard_bytes)


def save_tensors(state: Mapping[str, Tensor], directory: Path, shard_bytes: int = DEFAULT_SHARD_BYTES) -> None:
    """Write weights by name, in shards with an index when they exceed `shard_bytes`.

    What an earlier save left is removed then: its index would be read instead of the new weights.
    """
    shards: list[dict[str, Tensor]] = [{}]
    size = total = 0
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        if size and size + value.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = value
        size += value.nbytes
        total += value.nbytes
    if len(shards) == 1:
        save_file(shards[0], directory / SINGLE, metadata={"format": "pt"})
        _remove_others(directory, {SINGLE})
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")
    _remove_others(directory, {INDEX, *weight_map.values()})


def _remove_others(directory: Path, kept: set[str]) -> None:
    for path in (directory / INDEX, directory / SINGLE, *directory.glob("model-*-of-*.safetensors")):
        if path.name not in kept:
            path.unlink(missing_ok=True)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read as safetensors: {error}") from error
