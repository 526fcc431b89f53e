"""Jobs: what is run, named by its settings, and the small JSON file that holds what came out.

The key hashes kind and settings and nothing else, so equal configurations of two tables are one job. It does not cover
the code: after a change of the trainer remove the files (or `run --fresh`). Each file names the commit it ran at.
"""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from benchmarks import _report

Kind = Literal["train", "memory", "gradient"]


@dataclass(frozen=True)
class Job:
    """One process to run."""

    kind: Kind
    label: str
    """For people and file names; not part of the key."""
    settings: dict[str, Any] = field(hash=False)
    """Everything the result depends on, as JSON."""

    @property
    def key(self) -> str:
        """12 hex digits that name the settings."""
        text = json.dumps({"kind": self.kind, "settings": self.settings}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """File name without its ending."""
        return f"{self.label}-{self.key}"


@dataclass(frozen=True)
class Outcome:
    """What a job came to."""

    result: dict[str, Any] | None
    """None when it failed."""
    error: str | None
    seconds: float


class Results:
    """The result files of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, job: Job) -> Outcome | None:
        """A job's outcome, also a failed one; None where it has not run."""
        path = self._path(job)
        if not path.is_file():
            return None
        content = json.loads(path.read_bytes())
        return Outcome(content["result"], content["error"], content["seconds"])

    def write(self, job: Job, outcome: Outcome) -> None:
        """Store an outcome, in place of an earlier one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "kind": job.kind,
            "label": job.label,
            "settings": job.settings,
            "error": outcome.error,
            "seconds": round(outcome.seconds, 1),
            "machine": _report.machine(),
            "versions": _report.library_versions(),
            "commit": commit(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "result": outcome.result,
        }
        part = self._path(job).with_suffix(".part")
        part.write_text(json.dumps(content, allow_nan=False) + "\n")
        part.replace(self._path(job))

    def missing(self, jobs: Iterable[Job], *, fresh: bool = False) -> list[Job]:
        """The jobs still to run, each once; a failed one is run again."""
        wanted = {job.key: job for job in jobs}.values()
        return [job for job in wanted if fresh or (outcome := self.read(job)) is None or outcome.error]

    def _path(self, job: Job) -> Path:
        return self.folder / f"{job.name}.json"


@functools.cache
def commit() -> str | None:
    """The repository's commit, with a plus sign where trainer or benchmark differ from it; None outside a checkout."""
    root = Path(__file__).parents[2]
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, check=False)
        if head.returncode:
            return None
        changed = subprocess.run(
            ["git", "diff", "--quiet", "HEAD", "--", "bgpo", "benchmarks/paper"], cwd=root, check=False
        )
    except FileNotFoundError:  # no git on this machine
        return None
    return head.stdout.decode().strip() + ("+" if changed.returncode else "")
