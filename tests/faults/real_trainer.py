"""The real trainer, `bgpo.run`, with a journal: `real_trainer.py FOLDER SPEC.json ...` takes its other arguments as it
does. A STEP line carries the hash of what the step measured, times and memory aside. Of the stand-in's plan it knows
`hold_at`."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # a trainer's Python looks in no folder by itself

import journal

from bgpo import run
from bgpo.records import RecordWriter


def measured(values: dict[str, float]) -> str:
    """Hash of all values that must be the same when the step is repeated."""
    varying = ("seconds_", "tokens_per_second", "peak_memory_bytes")
    kept = {name: value for name, value in values.items() if not name.startswith(varying)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


class Journaled(RecordWriter):
    """Writes the journal's line before each record it belongs to."""

    folder: Path
    job: str
    epoch: int
    hold_at: int | None = None

    def emit(self, type_: str, **fields: Any) -> None:
        if type_ == "phase" and fields["phase"] == "rollout" and fields["step"] == self.hold_at:
            while not (self.folder / "release" / self.job).exists():
                time.sleep(0.01)
        if type_ == "metric" and fields["split"] == "train":
            value = measured(fields["values"])
            journal.append(self.folder, self.job, "STEP", self.epoch, n=fields["step"], value=value)
        elif type_ == "phase" and fields["phase"] == "checkpointing":
            journal.append(self.folder, self.job, "SAVE", self.epoch, n=fields["step"])
        super().emit(type_, **fields)


def main() -> int:
    folder, *arguments = sys.argv[1:]
    spec = json.loads(Path(arguments[0]).read_text())
    Journaled.folder = Path(folder)
    Journaled.job, Journaled.epoch = journal.job_and_epoch(spec["output_dir"])
    plan = Path(folder, "plans", f"{spec['seed']}.json")
    Journaled.hold_at = json.loads(plan.read_text()).get("hold_at") if plan.exists() else None
    resumed = 0
    if spec["resume_from"]:
        resumed = json.loads(Path(spec["resume_from"], "trainer_state", "state.json").read_text())["step"]
    if main_process := os.environ.get("RANK", "0") == "0":
        journal.begin(Journaled.folder, Journaled.job, Journaled.epoch, resumed)
    run.RecordWriter = Journaled  # type: ignore[misc]
    status = run.main(arguments)
    if main_process:
        journal.append(Journaled.folder, Journaled.job, "END", Journaled.epoch, status=status)
    return status


if __name__ == "__main__":
    sys.exit(main())
