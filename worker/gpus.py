"""The accelerators of this machine: which a worker has, and locks that keep each with one trainer at a time.

A GPU is named by its UUID, which means the same to NVML, to CUDA_VISIBLE_DEVICES and in a lock's file name, whatever
order each of them counts in. Nothing here imports torch: a process that initialized CUDA could not leave the GPUs to
its children.

Not covered: MIG instances; and that another program uses a GPU without asking for its lock.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

CPU = "cpu"
_POLL_S = 0.1
_MAKER = frozenset({"nvidia", "tesla", "quadro", "geforce"})
_FORM = re.compile(r"sxm\d*|pcie|nvl|hbm\d\w*|\d+gb|generation|gpu")


class Accelerators(NamedTuple):
    """What a worker's slot consists of."""

    gpu_type: str
    """Lower-case name ("h200"), or cpu."""
    devices: tuple[str, ...]
    """GPU UUIDs, or "cpu" for each process."""


class GpuError(RuntimeError):
    """The GPUs asked for cannot be had."""


class GpuBusy(GpuError):
    """A GPU's lock is held; `holder` is the process id of the trainer or, before there is one, of its worker. None
    where the holder did not say."""

    def __init__(self, device: str, holder: int | None) -> None:
        super().__init__(device, holder)
        self.device, self.holder = device, holder

    def __str__(self) -> str:
        return f"{self.device} is in use by process {self.holder or 'unknown'}"


def discover(wanted: str, visible: str | None = None) -> Accelerators:
    """The accelerators of a worker.

    Args:
        wanted: the setting `worker_gpus`: "auto", "cpu", "cpu:N", or GPU indexes as NVML (nvidia-smi) counts.
        visible: CUDA_VISIBLE_DEVICES of the worker; "auto" keeps to it. None = all.

    Raises:
        GpuError: a GPU does not exist, or they are of several kinds. A job asks for a kind, so a worker has one.
    """
    if wanted.startswith(CPU):
        return Accelerators(CPU, (CPU,) * int(wanted.partition(":")[2] or 1))
    gpus = _list_gpus()
    if wanted != "auto":
        chosen = wanted.split(",")
    elif visible is None:
        chosen = list(gpus)
    else:
        chosen = [entry.strip() for entry in visible.split(",") if entry.strip() not in ("", "-1")]
    found = dict(_find(entry, gpus) for entry in chosen)
    kinds = sorted({slug(name) for name in found.values()})
    if len(kinds) > 1:
        raise GpuError(f"a worker's GPUs must be of one kind, these are {' and '.join(kinds)}: set BGPO_WORKER_GPUS")
    return Accelerators(kinds[0], tuple(found)) if found else Accelerators(CPU, (CPU,))


def slug(name: str) -> str:
    """The short name of a GPU model: "NVIDIA A100-SXM4-80GB" is "a100", "NVIDIA GeForce RTX 4090" is "rtx-4090"."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    kept = [word for word in words if word not in _MAKER and not _FORM.fullmatch(word)]
    return "-".join(kept or words)


def visible(devices: Sequence[str], count: int) -> str:
    """CUDA_VISIBLE_DEVICES for a job on the first `count` of a slot's devices; a CPU slot hides every GPU."""
    return ",".join(device for device in devices[:count] if device != CPU)


class GpuLocks:
    """Locks for a job's devices: files `gpu-<uuid>` of one folder, locked with flock; none for CPUs.

    Such a lock belongs to the open file. Whoever inherits the descriptor holds it as well, so a trainer that outlives
    its worker keeps the next one away from its GPU until it is dead.
    """

    def __init__(self, lock_dir: Path | None, devices: Sequence[str]) -> None:
        """`lock_dir` None: /run/lock, or the folder for temporary files where that is not ours to write."""
        self._devices = sorted({device for device in devices if device != CPU})  # one order: no two wait in a ring
        self._folder = lock_dir if lock_dir is not None else _default_folder()

    @contextmanager
    def hold(self, deadline_s: float = 0.0) -> Iterator[tuple[int, ...]]:
        """Take all locks and give their descriptors, for `TrainerProcess(lock_fds=)`. Afterwards they are free, unless
        a trainer that got them lives.

        Args:
            deadline_s: try for so many seconds; 0 = once.

        Raises:
            GpuBusy: a lock is still held by then. None is kept.
            OSError: the folder cannot be written.
        """
        end = time.monotonic() + deadline_s
        with ExitStack() as stack:
            self._folder.mkdir(parents=True, exist_ok=True)
            taken = []
            for device in self._devices:
                fd = _open(self._folder / f"gpu-{device.lower().removeprefix('gpu-')}")
                stack.callback(os.close, fd)  # and no more: unlocking would unlock it for the trainer too
                while not _lock(fd):
                    if time.monotonic() >= end:
                        raise GpuBusy(device, _holder(fd))
                    time.sleep(_POLL_S)
                _sign(fd)
                taken.append(fd)
            yield tuple(taken)


def _list_gpus() -> dict[str, str]:
    """Name by UUID, in NVML's order; empty without a driver or without nvidia-ml-py."""
    try:
        import pynvml
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, no GPU
        return {}
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return {str(pynvml.nvmlDeviceGetUUID(handle)): str(pynvml.nvmlDeviceGetName(handle)) for handle in handles}
    finally:
        pynvml.nvmlShutdown()


def _find(entry: str, gpus: dict[str, str]) -> tuple[str, str]:
    """UUID and name of a GPU given by its index or the beginning of its UUID."""
    if entry.isdigit():
        matching = list(gpus.items())[int(entry) : int(entry) + 1]
    else:
        matching = [item for item in gpus.items() if item[0].startswith(entry)]
    if len(matching) != 1:
        known = ", ".join(gpus) or "none"
        raise GpuError(f"there is no GPU {entry!r}; this machine has: {known}")
    return matching[0]


def _default_folder() -> Path:
    folder = Path("/run/lock")
    return folder if os.access(folder, os.W_OK) else Path(tempfile.gettempdir())


def _open(path: Path) -> int:
    """A lock file, another user's as well: locking asks for no permission to write."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(fd: int) -> None:
    """Write who holds the lock; the warden does the same for the trainer it starts (`worker.warden`)."""
    try:
        os.pwrite(fd, b"%-10d\n" % os.getpid(), 0)
    except OSError:  # not ours to write to: the lock holds all the same
        return


def _holder(fd: int) -> int | None:
    text = os.pread(fd, 10, 0).strip()
    return int(text) if text.isdigit() else None
