"""A trainer without a model, for most scenarios: `stand_in_trainer.py FOLDER SPEC.json --record-fd N`.

Speaks the record protocol, obeys commands and signals, resumes and writes checkpoints as `bgpo.run` does, in
milliseconds and with the standard library alone. A step's value depends on all steps before it (`journal.values`), and
every line of the journal is written before the record it belongs to. It also leaves a process in a session of its own
behind, as graders do, which must not outlive it.

Faults are asked for in FOLDER/plans/<seed>.json, see `Plan`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # a trainer's Python looks in no folder by itself

import journal

# bgpo.records.ExitCode, whose import takes longer than a whole run here; a test holds them against it.
FINISHED, OUT_OF_DISK, STOPPED, CANCELLED = 0, 9, 75, 76


@dataclass
class Plan:
    """What a job's trainers do."""

    step_s: float = 0.05
    load_s: float = 0.0
    """Before the first step."""
    save_s: float = 0.0
    """With a checkpoint half written."""
    evaluate_every: int = 0
    weights_bytes: int = 4096
    hold_at: int | None = None
    """Wait before this step until FOLDER/release/<job> exists (or a request to stop)."""
    crash_at: int | None = None
    """Die by SIGKILL within this step ..."""
    crashes: int | None = None
    """... in the first so many attempts; None = in all."""
    stall_at: int | None = None
    """Hang before this step, deaf to everything, in the first attempt."""
    truncate_manifest_at: int | None = None
    """Report the checkpoint of this step with half a manifest."""
    deaf: bool = False
    """Ignore commands and SIGTERM."""

    @classmethod
    def read(cls, folder: Path, seed: int) -> Plan:
        """The plan of the job with this seed: the one thing of its own a trainer knows and a test may choose."""
        path = folder / "plans" / f"{seed}.json"
        return cls(**json.loads(path.read_text())) if path.exists() else cls()


class Control:
    """What was asked of the run: as `bgpo.training.control`."""

    def __init__(self, deaf: bool) -> None:
        self.stop, self.checkpoint = threading.Event(), threading.Event()
        self._deaf = deaf
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        threading.Thread(target=self._read, daemon=True).start()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._deaf:
            self.stop.set()

    def _read(self) -> None:
        pending = b""
        while chunk := os.read(0, 4096):
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                self._obey(line.decode().strip())
        if not self._deaf:
            self.stop.set()

    def _obey(self, command: str) -> None:
        if command == "checkpoint":
            self.checkpoint.set()
        elif command == "cancel" and not self._deaf:
            os._exit(CANCELLED)
        elif command == "pause" and not self._deaf:
            self.stop.set()


class Run:
    """One attempt."""

    def __init__(self, folder: Path, spec: dict[str, Any], record_fd: int) -> None:
        self.folder, self.spec, self.fd = folder, spec, record_fd
        self.job, self.epoch = journal.job_and_epoch(spec["output_dir"])
        self.plan = Plan.read(folder, spec["seed"])
        self.total: int = spec["method"]["max_steps"]
        self.every: int | None = spec["checkpointing"]["every_steps"]
        self.seq = 0
        self.step, self.value = 0, journal.first_value(spec["seed"])
        if spec["resume_from"]:
            state = json.loads(Path(spec["resume_from"], "trainer_state", "state.json").read_text())
            self.step, self.value = state["step"], state["value"]

    def main(self) -> int:
        journal.begin(self.folder, self.job, self.epoch, self.step)
        subprocess.Popen(["sleep", "900"], start_new_session=True)
        status = self.train(Control(self.plan.deaf))
        journal.append(self.folder, self.job, "END", self.epoch, status=status)
        self.emit("end", status=status)
        return status

    def train(self, control: Control) -> int:
        self.emit("phase", phase="loading_model", step=0)
        time.sleep(self.plan.load_s)
        saved = self.step
        try:
            while self.step < self.total and not control.stop.is_set():
                if not self.wait_for_release(control):
                    break
                self.one_step()
                wanted = control.checkpoint.is_set() or control.stop.is_set()
                control.checkpoint.clear()
                if wanted or self.step == self.total or (self.every and self.step % self.every == 0):
                    self.save()
                    saved = self.step
            if saved < self.step or (self.step == 0 and self.total > 0):
                self.save()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.emit("error", code="disk_full", phase="checkpointing", step=self.step, message=str(error))
            return OUT_OF_DISK
        return FINISHED if self.step == self.total else STOPPED

    def wait_for_release(self, control: Control) -> bool:
        """Wait where the plan says so; False when told to stop there."""
        upcoming = self.step + 1
        if upcoming == self.plan.stall_at and self.epoch == 1:
            while True:
                time.sleep(60)
        if upcoming == self.plan.hold_at:
            self.emit("phase", phase="training", step=upcoming)
            while not (self.folder / "release" / self.job).exists():
                if control.stop.is_set():
                    return False
                time.sleep(0.005)
        return True

    def one_step(self) -> None:
        self.emit("phase", phase="training", step=self.step + 1)
        time.sleep(self.plan.step_s)
        self.step += 1
        if self.step == self.plan.crash_at and self.attempt() <= (self.plan.crashes or 1 << 30):
            print(f"last words at step {self.step}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        self.value = journal.next_value(self.value, self.step)
        journal.append(self.folder, self.job, "STEP", self.epoch, n=self.step, value=self.value)
        self.report("train")
        self.emit(
            "sample", step=self.step, split="train", index=0, prompt="p", completion=self.value, reward=1.0,
            scores={}, error=None,
        )  # fmt: skip
        if self.plan.evaluate_every and self.step % self.plan.evaluate_every == 0:
            self.report("validation")

    def report(self, split: str) -> None:
        values = journal.metrics_of(self.value)
        self.emit("metric", step=self.step, total_steps=self.total, split=split, values=values)

    def attempt(self) -> int:
        """Which attempt that got as far as a trainer this is, from 1."""
        return len({line.epoch for line in journal.read(self.folder, self.job)})

    def save(self) -> None:
        self.emit("phase", phase="checkpointing", step=self.step)
        journal.append(self.folder, self.job, "SAVE", self.epoch, n=self.step)
        root = Path(self.spec["output_dir"], "checkpoints")
        final = root / f"step-{self.step:06d}"
        unfinished = root / f"{final.name}.tmp"
        for leftover in (final, unfinished):
            shutil.rmtree(leftover, ignore_errors=True)
        contents = {
            "config.json": b"{}",
            "model.safetensors": journal.weights_of(self.value, self.plan.weights_bytes),
            "trainer_state/state.json": json.dumps({"step": self.step, "value": self.value}).encode(),
        }
        files = []
        for name, data in contents.items():
            path = unfinished / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            kind = "weights" if name == "model.safetensors" else "config"
            files.append({"path": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "kind": kind})
            time.sleep(self.plan.save_s / len(contents))
        manifest = json.dumps({"step": self.step, "files": files})
        if self.step == self.plan.truncate_manifest_at:
            manifest = manifest[: len(manifest) // 2]
        (unfinished / "manifest.json").write_text(manifest)
        unfinished.rename(final)
        done = self.step == self.total
        self.emit("checkpoint", step=self.step, path=str(final), final=done, metrics={}, best=False, seconds=0.0)

    def emit(self, type_: str, **fields: Any) -> None:
        self.seq += 1
        record = {"type": type_, "seq": self.seq, "time": round(time.time(), 3), **fields}
        data = json.dumps(record).encode() + b"\n"
        while data:
            data = data[os.write(self.fd, data) :]


def main() -> int:
    folder, spec, flag, fd = sys.argv[1:]
    if flag != "--record-fd":
        raise SystemExit(f"not a flag of this stand-in: {flag}")
    return Run(Path(folder), json.loads(Path(spec).read_text()), int(fd)).main()


if __name__ == "__main__":
    try:
        code = main()
    except BrokenPipeError:  # nobody reads the records any more
        code = 70
    sys.stdout.flush()
    os._exit(code)  # the command thread may hold stdin's lock
