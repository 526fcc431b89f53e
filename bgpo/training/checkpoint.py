"""Checkpoints: the model in its published layout, the trainer's state beside it, and a manifest of both.

    step-000020/
        config.json, model.safetensors, tokenizer files     what `bgpo.load_policy` and the original code open
        adapter/                                            with LoRA: the adapter in PEFT's layout
        trainer_state/optimizer.safetensors, state.json     what resuming needs
        manifest.json                                       path, bytes, sha256, kind of every other file

A checkpoint appears under its name only when complete: it is written to `step-000020.tmp`, flushed to disk file by
file, and renamed; where that fails, nothing is left. Randomness is counter-based, so no generator state is stored.

Where processes divide the optimizer's state ("fsdp2"), each writes its own slice, cut along the first dimension:
`optimizer-00001-of-00002.safetensors`. Any number of processes can go on from either form. All of them must reach the
same folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import bgpo
from bgpo.errors import DiskFullError, ModelError
from bgpo.models import Policy, save_policy
from bgpo.spec import Recipe
from bgpo.training.optimizer import DIVIDED, Optimizer

STATE_DIR = "trainer_state"
WHOLE_STATE = "optimizer.safetensors"
MANIFEST = "manifest.json"
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def write_checkpoint(
    root: Path,
    step: int,
    policy: Policy,
    optimizer: Optimizer,
    recipe: Recipe,
    metrics: dict[str, float],
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write the checkpoint of a step below `root` and return its directory. Collective.

    Args:
        metrics: of an evaluation of these very weights, or empty.
        extra: further entries of state.json.

    Raises:
        DiskFullError: there is no room for it. What was written of it is deleted.
    """
    final = root / f"step-{step:06d}"
    temporary = final.with_name(final.name + ".tmp")
    summary = {
        "step": step,
        "metrics": metrics,
        **(extra or {}),
        "recipe": recipe.model_dump(mode="json"),
        "versions": {"bgpo": bgpo.__version__, "torch": torch.__version__},
    }
    try:
        with disk_errors(f"the checkpoint of step {step} does not fit on the disk"):
            _write(temporary, final, policy, optimizer, summary)
    except BaseException:
        if optimizer.sharing.cluster.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Raise DiskFullError, saying `what`, where the disk is the reason of an error within the block."""
    try:
        yield
    except Exception as error:  # every library that writes raises its own
        if _is_full(error):
            raise DiskFullError(f"{what}: {error}") from error
        raise


def complete(temporary: Path, step: int) -> Path:
    """Add the manifest to a directory `NAME.tmp`, flush it to disk, and rename it to `NAME`, which is returned."""
    final = temporary.with_suffix("")
    manifest = build_manifest(temporary, step)
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    _flush(temporary)
    temporary.rename(final)
    _fsync(final.parent)
    return final


def _write(temporary: Path, final: Path, policy: Policy, optimizer: Optimizer, summary: dict[str, Any]) -> None:
    sharing = optimizer.sharing
    cluster = sharing.cluster
    state = temporary / STATE_DIR
    if cluster.is_main:
        for leftover in (temporary, final):
            if leftover.exists():
                shutil.rmtree(leftover)
        save_policy(policy, temporary)
        state.mkdir()
    cluster.wait()
    if sharing.sharded:
        save_file(optimizer.state_tensors(), state / _slice_name(cluster.rank, cluster.size))
    elif cluster.is_main:
        save_file(optimizer.state_tensors(), state / WHOLE_STATE)
    cluster.wait()
    if cluster.is_main:
        (state / "state.json").write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
        complete(temporary, summary["step"])
    cluster.wait()


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
        ModelError: a file is missing or damaged, or belongs to a run that trains other parameters.
    """
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(path, framework="pt")) for path in _state_files(directory)]
            optimizer.load_state_tensors(_StoredState(files))
    except ValueError as error:
        raise ModelError(f"the optimizer state in {directory} does not fit this run: {error}", "resume_from") from error
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


def prune(root: Path, keep_last: int, best_step: int | None = None) -> None:
    """Delete all but the newest `keep_last` checkpoints below `root`, and the best one."""
    complete = [p for p in root.glob("step-*") if p.is_dir() and p.suffix != ".tmp"]
    complete.sort(key=lambda p: (len(p.name), p.name))  # from a million on, steps have more digits
    for old in complete[:-keep_last]:
        if best_step is None or old.name != f"step-{best_step:06d}":
            shutil.rmtree(old)


class _StoredState(Mapping[str, Tensor]):
    """The whole state, from one file or put together from its slices, tensor by tensor as they are asked for."""

    def __init__(self, files: Sequence[Any]) -> None:
        self._files: dict[str, list[Any]] = {}
        for file in files:
            for name in file.keys():  # noqa: SIM118  # safetensors' files are not iterable
                self._files.setdefault(name, []).append(file)

    def __getitem__(self, name: str) -> Tensor:
        files = self._files[name]
        divided = name.partition("/")[0] in DIVIDED
        parts = [file.get_tensor(name) for file in (files if divided else files[:1])]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _slice_name(index: int, count: int) -> str:
    return f"optimizer-{index + 1:05d}-of-{count:05d}.safetensors"


def _state_files(directory: Path) -> list[Path]:
    """The optimizer's files, in the order of the slices. Raises OSError when there are not all of them."""
    state = directory / STATE_DIR
    slices = sorted(state.glob("optimizer-*-of-*.safetensors"))
    if not slices:
        return [state / WHOLE_STATE]
    expected = [_slice_name(index, len(slices)) for index in range(len(slices))]
    if [path.name for path in slices] != expected:
        raise FileNotFoundError(f"incomplete: {', '.join(path.name for path in slices)}")
    return slices


def _is_full(error: BaseException) -> bool:
    """Whether the disk, the user's quota or the largest allowed file is the reason. safetensors and tokenizers, written
    in Rust, have the operating system's number in their message only."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (named := _OS_ERROR.search(str(error))) is not None:
        number = int(named[1])
    return number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _kind(name: str) -> str:
    if name.startswith(f"{STATE_DIR}/"):
        return "trainer_state"
    if name.endswith((".safetensors", ".safetensors.index.json")):
        return "weights"
    return "config" if name.endswith("config.json") and not name.startswith("tokenizer") else "tokenizer"


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
