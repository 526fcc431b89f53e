"""Which accelerators a worker has, and that two trainers never get the same one. Locks are real, between processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml
import pytest

from tests.worker.trees import TREE, wait_until
from worker.gpus import Accelerators, GpuBusy, GpuError, GpuLocks, discover, slug, visible
from worker.process import TrainerProcess

H200 = {"GPU-aaaa-1": "NVIDIA H200", "GPU-bbbb-2": "NVIDIA H200", "GPU-cccc-3": "NVIDIA H200"}
Machine = Callable[[dict[str, str] | None], None]
MIXED = {"GPU-aaaa-1": "NVIDIA H200", "GPU-bbbb-2": "NVIDIA A100-SXM4-80GB"}

# A worker that dies at once and leaves a process with the lock; its id is printed.
WORKER = """
import os, subprocess, sys
from pathlib import Path
from worker.gpus import GpuLocks
with GpuLocks(Path(sys.argv[1]), ["GPU-1"]).hold() as fds:
    print(subprocess.Popen(["sleep", "600"], pass_fds=fds, stdout=subprocess.DEVNULL).pid, flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Puts GPUs into the machine: NVML with a list of them behind it, or with no driver."""

    def install(gpus: dict[str, str] | None) -> None:
        def init() -> None:
            if gpus is None:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

        listed = list((gpus or {}).items())
        functions = {
            "nvmlInit": init,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetCount": lambda: len(listed),
            "nvmlDeviceGetHandleByIndex": lambda index: listed[index],
            "nvmlDeviceGetUUID": lambda handle: handle[0],
            "nvmlDeviceGetName": lambda handle: handle[1],
        }
        assert all(callable(getattr(pynvml, name)) for name in functions), "the real library has them"
        monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**functions, NVMLError=pynvml.NVMLError))

    return install


@pytest.mark.parametrize(
    ("wanted", "hidden", "expected"),
    [
        ("auto", None, ("h200", ("GPU-aaaa-1", "GPU-bbbb-2", "GPU-cccc-3"))),
        ("auto", "2,0", ("h200", ("GPU-cccc-3", "GPU-aaaa-1"))),
        ("auto", "GPU-bbbb", ("h200", ("GPU-bbbb-2",))),
        ("auto", "", ("cpu", ("cpu",))),
        ("auto", "-1", ("cpu", ("cpu",))),
        ("1", None, ("h200", ("GPU-bbbb-2",))),
        ("1", "0", ("h200", ("GPU-bbbb-2",))),  # said explicitly
        ("2,1", None, ("h200", ("GPU-cccc-3", "GPU-bbbb-2"))),
        ("cpu", None, ("cpu", ("cpu",))),
        ("cpu:3", None, ("cpu", ("cpu", "cpu", "cpu"))),
    ],
)
def test_a_worker_has_the_gpus_it_was_given(
    machine: Machine, wanted: str, hidden: str | None, expected: Accelerators
) -> None:
    machine(H200)
    assert discover(wanted, hidden) == expected


def test_a_machine_without_driver_or_library_is_a_cpu(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(None)
    assert discover("auto") == ("cpu", ("cpu",))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert discover("auto") == ("cpu", ("cpu",))
    with pytest.raises(GpuError, match="no GPU '0'; this machine has: none"):
        discover("0")


def test_a_gpu_that_does_not_exist_is_named(machine: Machine) -> None:
    machine(H200)
    with pytest.raises(GpuError, match="no GPU '3'; this machine has: GPU-aaaa-1, GPU-bbbb-2, GPU-cccc-3"):
        discover("0,3")


def test_a_worker_has_gpus_of_one_kind(machine: Machine) -> None:
    machine(MIXED)
    with pytest.raises(GpuError, match="a100 and h200: set BGPO_WORKER_GPUS"):
        discover("auto")
    assert discover("1") == ("a100", ("GPU-bbbb-2",))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("GPU", "gpu"),
    ],
)
def test_names_are_short_and_fit_a_request(name: str, expected: str) -> None:
    assert slug(name) == expected


def test_a_job_sees_its_own_devices_only() -> None:
    assert visible(tuple(H200), 2) == "GPU-aaaa-1,GPU-bbbb-2"
    assert visible(("cpu", "cpu"), 2) == ""


def test_a_lock_is_held_once_and_names_its_holder(tmp_path: Path) -> None:
    locks, again = (GpuLocks(tmp_path / "locks", ["GPU-2", "GPU-1"]) for _ in range(2))
    with locks.hold() as fds:
        assert len(fds) == 2
        assert sorted(path.name for path in (tmp_path / "locks").iterdir()) == ["gpu-1", "gpu-2"]
        with pytest.raises(GpuBusy, match=f"GPU-1 is in use by process {os.getpid()}"), again.hold():
            pass
        with GpuLocks(tmp_path / "locks", ["GPU-3", "cpu"]).hold() as others:
            assert len(others) == 1
    with again.hold():
        pass


def test_whoever_does_not_get_all_keeps_none(tmp_path: Path) -> None:
    with GpuLocks(tmp_path, ["GPU-2"]).hold():
        with pytest.raises(GpuBusy) as caught, GpuLocks(tmp_path, ["GPU-1", "GPU-2"]).hold():
            pass
        assert (caught.value.device, caught.value.holder) == ("GPU-2", os.getpid())
        with GpuLocks(tmp_path, ["GPU-1"]).hold():
            pass


def test_cpus_are_not_locked(tmp_path: Path) -> None:
    with GpuLocks(tmp_path, ["cpu", "cpu"]).hold() as fds:
        assert fds == ()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_comes_free_in_time_is_taken(tmp_path: Path) -> None:
    locks = GpuLocks(tmp_path, ["GPU-1"])
    waiting, got = threading.Event(), threading.Event()

    def wait() -> None:
        waiting.set()
        with GpuLocks(tmp_path, ["GPU-1"]).hold(deadline_s=60):
            got.set()

    with locks.hold():
        thread = threading.Thread(target=wait)
        thread.start()
        assert waiting.wait(10)
        assert not got.wait(0.3)
    thread.join(30)
    assert got.is_set()


def test_a_killed_worker_leaves_the_lock_to_what_it_started(tmp_path: Path) -> None:
    locks = GpuLocks(tmp_path, ["GPU-1"])
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    out, _ = worker.communicate()
    assert worker.returncode == -signal.SIGKILL
    zombie = psutil.Process(int(out))
    with pytest.raises(GpuBusy) as caught, locks.hold(deadline_s=0.3):
        pass
    assert caught.value.holder == worker.pid
    zombie.kill()
    with locks.hold(deadline_s=30):
        pass


def test_the_lock_of_a_trainer_is_free_when_all_of_it_is_dead(tmp_path: Path) -> None:
    locks = GpuLocks(tmp_path / "locks", ["GPU-1"])
    with locks.hold() as fds:
        trainer = TrainerProcess(
            [sys.executable, str(TREE), "hydra"],
            cwd=tmp_path,
            env={},
            log_path=tmp_path / "log",
            fence_s=3600,
            lock_fds=fds,
        )
        lines: list[bytes] = []
        wait_until(lambda: lines.extend(trainer.read_lines(0.1)) or lines, "the trainer said nothing")
    with pytest.raises(GpuBusy) as caught, locks.hold():
        pass
    assert caught.value.holder == json.loads(lines[0])["pids"][0]
    trainer.kill_tree()
    with locks.hold():
        pass
    trainer.close()
