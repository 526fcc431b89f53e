"""A trainer without a model: speaks the real record protocol and obeys commands, and misbehaves on request.

    stand_in.py MODE SPEC.json --record-fd N | --record-path FIFO [--secret-fd N]

Each step takes a moment, counts one up, and every second step makes a checkpoint. The count goes on from `resume_from`.
A task is done at once; its result says what it was told and which files it was given.

    normal         does nothing wrong
    deaf           hears neither commands nor SIGTERM
    loading        loads its model for ever
    silent         never says anything
    stalled        hangs in step 4, in its first attempt only
    slow-save      takes a second for each checkpoint
    killed-once    is killed in step 4, in its first attempt only
    killed-always  is killed in step 1
    oom            runs out of memory in step 3
    full           has no room for the checkpoint of step 4
    talkative      names its folders in its log, its messages and its error
    damaged        writes checkpoints that are not what their manifest says
    no-final       ends without a final checkpoint
    ungradable     fails on its grader, and says which secrets it has
    hidden         fails with status 6, which a launcher turns into 1
    N              fails with status N
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from bgpo.records import ExitCode, RecordWriter
from bgpo.secrets import take_secrets
from bgpo.spec import RunSpec
from bgpo.task_spec import EvaluationTask, ExportTask, parse_spec

STEP_S = 0.05


class Run:
    def __init__(self, mode: str, spec: RunSpec, writer: RecordWriter, secrets: dict[str, str]) -> None:
        self.secrets = secrets
        self.mode, self.spec, self.writer = mode, spec, writer
        self.stop, self.checkpoint_now = threading.Event(), threading.Event()
        self.first = 0
        if spec.resume_from:
            self.first = json.loads(Path(spec.resume_from, "trainer_state", "state.json").read_text())["step"]

    def commands(self) -> None:
        for line in sys.stdin:
            if line.strip() == "cancel" and self.mode != "deaf":
                os._exit(ExitCode.CANCELLED)
            elif line.strip() == "checkpoint":
                self.checkpoint_now.set()
            elif self.mode != "deaf":
                self.stop.set()
        if self.mode != "deaf":
            self.stop.set()

    def checkpoint(self, step: int, final: bool) -> None:
        directory = Path(self.spec.output_dir, "checkpoints", f"step-{step:06d}")
        (directory / "trainer_state").mkdir(parents=True, exist_ok=True)
        if self.mode == "slow-save":
            self.writer.emit("phase", phase="checkpointing", step=step)
            time.sleep(1)
        (directory / "config.json").write_text("{}")
        (directory / "model.safetensors").write_bytes(step.to_bytes(4, "big") * 1000)
        (directory / "trainer_state" / "state.json").write_text(json.dumps({"step": step}))
        files = listed(directory)
        if self.mode == "damaged":
            (directory / "model.safetensors").write_bytes(b"not what the manifest says")
        (directory / "manifest.json").write_text(json.dumps({"step": step, "files": files}))
        self.writer.emit("checkpoint", step=step, path=str(directory), final=final, metrics={"reward_mean": 0.5})

    def step(self, step: int, total: int) -> None:
        self.writer.emit("phase", phase="rollout", step=step)
        time.sleep(STEP_S)
        values = {"reward_mean": step / total, "solved_rate": 0.25, "loss": 0.1}
        self.writer.emit("metric", step=step, total_steps=total, split="train", values=values)
        self.writer.emit(
            "sample", step=step, split="train", index=0, prompt="p", completion="c", reward=1.0, scores={}, error=None
        )

    def fail(
        self, status: int, code: str, step: int, message: str, phase: str = "rollout", details: str | None = None
    ) -> None:
        print("about to fail", flush=True)
        self.writer.emit("error", code=code, phase=phase, step=step, message=message, param="m", details=details)
        self.exit(status)

    def exit(self, status: int) -> None:
        self.writer.end(status)
        sys.stdout.flush()
        os._exit(status if self.mode != "hidden" else min(status, 1))  # the command thread may hold stdin's lock

    def misbehave(self, step: int) -> None:
        first_attempt = not self.spec.resume_from
        if self.mode == "killed-once" and step == 4 and first_attempt:
            # After the checkpoint of step 2 has surely been taken.
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        if self.mode == "killed-always":
            print("last words", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if self.mode == "stalled" and step == 4 and first_attempt:
            time.sleep(600)
        if self.mode == "oom" and step == 3:
            self.fail(ExitCode.OUT_OF_MEMORY, "oom", step, "does not fit", "training")
        if self.mode == "full" and step == 4:
            self.fail(ExitCode.DISK_FULL, "disk_full", step, "no room for the checkpoint", "checkpointing")
        if self.mode == "talkative" and step == 2:
            print(f"reading {self.spec.model}/config.json and {self.spec.train_data}", flush=True)
            self.writer.emit("log", level="info", message=f"looking at {self.spec.output_dir}")
            self.fail(ExitCode.UNEXPECTED, "server_error", step, f"cannot read {self.spec.model}")
        if self.mode == "ungradable" and step == 2:
            told = json.dumps(self.secrets, sort_keys=True)
            data = {"grader": "g", "kind": "other_error", "traceback": f"no\0thing in {self.spec.model} but {told}"}
            self.writer.emit("log", level="warn", message=f"with {told}", data=data)
            details = f"Traceback ...\nKeyError: {told}"
            self.fail(ExitCode.GRADER, "grader_error", step, f"9 of 9 failed with {told}", "grading", details)
        if self.mode == "hidden":
            self.fail(ExitCode.NON_FINITE, "nan", step, "the loss is NaN", "training")
        if self.mode.isdigit():
            self.fail(int(self.mode), "bad_model", step, "no such layer")

    def run(self) -> int:
        total = self.spec.method.max_steps
        if self.mode == "silent":
            time.sleep(600)
        if self.mode == "loading":
            self.writer.emit("phase", phase="loading_model", step=0)
            time.sleep(600)
        self.writer.emit("log", level="info", message="hello from the trainer")
        os.write(self.writer._fd, b"this is not a record\n")
        for step in range(self.first + 1, total + 1):
            self.step(step, total)
            self.misbehave(step)
            if self.stop.is_set():
                self.checkpoint(step, final=False)
                return ExitCode.STOPPED
            if step % 2 == 0 and step < total:
                self.checkpoint(step, final=False)
        if self.mode != "no-final":
            self.checkpoint(total, final=True)
        return ExitCode.FINISHED


def listed(directory: Path) -> list[dict[str, object]]:
    """The files of a manifest."""
    return [
        {
            "path": path.relative_to(directory).as_posix(),
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "kind": "config",
        }
        for path in directory.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    ]


def do_task(mode: str, spec: EvaluationTask | ExportTask, writer: RecordWriter, secrets: dict[str, str]) -> None:
    """Do a task as the mode says, and exit."""
    writer.emit("phase", phase="evaluating", step=0)
    if mode == "killed-always":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "killed-once" and "/1/" in spec.output_dir:
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "waiting":
        sys.stdin.read()  # the command that ends it, or the end of the worker
    if mode.isdigit():
        fields = {"code": "dataset_error", "phase": "evaluating", "step": 0, "message": "bad", "param": "data"}
        writer.emit("error", **fields)
        writer.end(int(mode))
        os._exit(int(mode))
    model = Path(spec.model)
    given = sorted(path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file())
    told = {"spec": spec.model_dump(mode="json"), "files": given, "secrets": secrets}
    directory = Path(spec.output_dir, "checkpoints", "step-000000")
    directory.mkdir(parents=True)
    (directory / "results.jsonl").write_text(json.dumps(told))
    (directory / "manifest.json").write_text(json.dumps({"step": 0, "files": listed(directory)}))
    sample = {"prompt": "p", "completion": "c", "reward": 1.0, "scores": {}, "error": None}
    writer.emit("sample", step=0, split="validation", index=0, **sample)
    metrics = {"sampled_reward_mean": 0.5}
    writer.emit("metric", step=0, total_steps=0, split="validation", values=metrics)
    writer.emit("checkpoint", step=0, path=str(directory), final=True, metrics=metrics)
    writer.end(ExitCode.FINISHED)
    os._exit(ExitCode.FINISHED)


def main() -> None:
    mode, spec_path, flag, target, *rest = sys.argv[1:]
    assert flag in ("--record-fd", "--record-path")
    assert rest[:1] in ([], ["--secret-fd"])
    secrets = take_secrets(int(rest[1]) if rest else None)
    if os.environ.get("RANK", "0") != "0":
        return  # of several processes the first one does everything
    fd = int(target) if flag == "--record-fd" else os.open(target, os.O_WRONLY)
    if mode == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    spec = parse_spec(spec_path)
    if not isinstance(spec, RunSpec):
        do_task(mode, spec, RecordWriter(fd), secrets)
    run = Run(mode, spec, RecordWriter(fd), secrets)
    threading.Thread(target=run.commands, daemon=True).start()
    run.exit(run.run())


if __name__ == "__main__":
    main()
