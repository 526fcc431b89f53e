"""What a run tells the outside: typed shorthands over the record protocol, and the phase it is in.

Metrics also go to the run's sinks. A sink is a copy for people: one that fails is reported and left out from then on.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from bgpo.records import Phase, RecordWriter, Split
from bgpo.training.sinks import Sink


class Reporter:
    """Emits records and remembers phase and step, which error records name.

    Without a writer (all processes of a run but the main one) it says nothing, save errors: on stderr, and as records
    to `errors` if somebody reads those.
    """

    def __init__(self, writer: RecordWriter | None, total_steps: int, errors: RecordWriter | None = None) -> None:
        self._writer, self._errors = writer, errors
        self._total_steps = total_steps
        self._sinks: list[Sink] = []
        self.phase: Phase = "loading_model"
        self.step = 0

    def enter(self, phase: Phase, step: int) -> None:
        """The run enters a phase."""
        self.phase, self.step = phase, step
        self._emit("phase", phase=phase, step=step)

    def metrics(self, step: int, split: Split, values: dict[str, float]) -> None:
        """Values of a step; a value that is not finite has no JSON form and is left out, with a warning."""
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        if len(finite) < len(values):
            self.log("warn", f"step {step}: not finite: {', '.join(sorted(values.keys() - finite.keys()))}")
        self._emit("metric", step=step, total_steps=self._total_steps, split=split, values=finite)
        for sink in list(self._sinks):
            try:
                sink.log(step, split, finite)
            except Exception as error:  # each tracker raises what it likes, and none may end the run
                self._sinks.remove(sink)
                self.log("warn", f"{type(sink).__name__} is left out from now on: {type(error).__name__}: {error}")

    def sample(self, **fields: Any) -> None:
        """One rollout."""
        self._emit("sample", **fields)

    def checkpoint(
        self, step: int, path: str, *, final: bool, best: bool, metrics: dict[str, float], seconds: float
    ) -> None:
        """A complete checkpoint exists."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._emit(
            "checkpoint", step=step, path=path, final=final, best=best, metrics=finite, seconds=round(seconds, 3)
        )

    def log(self, level: str, message: str, data: dict[str, Any] | None = None) -> None:
        """A message for people, with the same for programs."""
        self._emit("log", level=level, message=message, **({} if data is None else {"data": data}))

    def error(self, code: str, message: str, param: str | None = None, details: str | None = None) -> None:
        """Why the run fails. `details` is too long for records that must be short."""
        fields = {"code": code, "phase": self.phase, "step": self.step, "param": param}
        if self._errors is not None:
            self._errors.emit_short("error", message, **fields)
        self._emit("error", message=message, details=details, **fields)
        if self._writer is None:
            with suppress(OSError):  # a full disk, perhaps the very error
                sys.stderr.write(f"{self.phase}, step {self.step}: {message}\n")

    def attach(self, sinks: Sequence[Sink]) -> None:
        """From now on metrics also go to these."""
        self._sinks += sinks

    def close(self) -> None:
        """End the sinks' runs."""
        while self._sinks:
            sink = self._sinks.pop()
            try:
                sink.close()
            except Exception as error:  # as in `metrics`
                self.log("warn", f"{type(sink).__name__} could not be closed: {type(error).__name__}: {error}")

    def _emit(self, type_: str, **fields: Any) -> None:
        if self._writer is not None:
            self._writer.emit(type_, **fields)


class Stopwatch:
    """Seconds spent by name within one step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the block's duration to `seconds[name]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory in use at once: on a GPU by tensors since the last call, on a CPU by the process since it began;
    0 where that cannot be known."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"), re.MULTILINE)
    except OSError:  # no Linux
        return 0
    return int(found[1]) * 1024 if found else 0
