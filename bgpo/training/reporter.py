"""What a run tells the outside: typed shorthands over the record protocol, and the phase it is in."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bgpo.records import Phase, RecordWriter, Split


class Reporter:
    """Emits records and remembers phase and step, which error records name."""

    def __init__(self, writer: RecordWriter, total_steps: int) -> None:
        self._writer = writer
        self._total_steps = total_steps
        self.phase: Phase = "loading_model"
        self.step = 0

    def enter(self, phase: Phase, step: int) -> None:
        """The run enters a phase."""
        self.phase, self.step = phase, step
        self._writer.emit("phase", phase=phase, step=step)

    def metrics(self, step: int, split: Split, values: dict[str, float]) -> None:
        """Values of a step; a value that is not finite has no JSON form and is left out, with a warning."""
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        if len(finite) < len(values):
            self.log("warn", f"step {step}: not finite: {', '.join(sorted(values.keys() - finite.keys()))}")
        self._writer.emit("metric", step=step, total_steps=self._total_steps, split=split, values=finite)

    def sample(self, **fields: Any) -> None:
        """One rollout."""
        self._writer.emit("sample", **fields)

    def checkpoint(self, step: int, path: str, final: bool, metrics: dict[str, float]) -> None:
        """A complete checkpoint exists."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._writer.emit("checkpoint", step=step, path=path, final=final, metrics=finite)

    def log(self, level: str, message: str) -> None:
        """A message for people."""
        self._writer.emit("log", level=level, message=message)

    def error(self, code: str, message: str, param: str | None = None) -> None:
        """Why the run fails."""
        self._writer.emit("error", code=code, phase=self.phase, step=self.step, message=message, param=param)


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
