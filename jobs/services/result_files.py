"""The result files of a job that has succeeded: its metrics as CSV, like OpenAI's, and as JSON lines.

Their rows come with the end of the job; their bytes are written later, by whoever is first: the reconciler, or the API
when somebody asks for them. Metrics of a job that has ended never change, so every writer writes the same.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import IO

from sqlalchemy.orm import Session

from jobs.artifacts import ArtifactStore, sha256_of
from jobs.db import Database
from jobs.repositories import files, metrics
from jobs.settings import Settings
from jobs.tables import File, Job

SUPERVISED = ("train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
"""Columns that OpenAI's file has, in its order."""
_SHORT = {"train": "train", "validation": "valid"}


def write_all(settings: Settings, database: Database, store: ArtifactStore) -> int:
    """Write those that nobody has asked for yet; how many that were."""
    with database.read() as session:
        found = files.unwritten(session)
    for file in found:
        write(settings, database, store, file)
    return len(found)


def write(settings: Settings, database: Database, store: ArtifactStore, file: File) -> File | None:
    """The same file with its bytes stored; None when it was deleted meanwhile."""
    settings.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=settings.scratch, prefix="result-", encoding="utf-8", newline=""
    ) as target:
        with database.read() as session:
            _write_metrics(session, file, target)
        target.flush()
        path = Path(target.name)
        size, sha256 = path.stat().st_size, sha256_of(path)
        store.put_file(path, file.key)
    with database.transaction() as session:
        written = files.set_written(session, file.id, size, sha256)
    if written is None:
        store.delete(file.key)
    return written


def _write_metrics(session: Session, file: File, target: IO[str]) -> None:
    job = session.get_one(Job, file.job_id)
    if file.filename.endswith(".jsonl"):
        for (step, split), values in _points(session, job.id):
            target.write(json.dumps({"step": step, "split": split, "values": values}) + "\n")
        return
    found = {f"{_SHORT[split]}_{name}" for split, name in metrics.all_names(session, job.id)}
    first = SUPERVISED if job.method.get("type") == "supervised" else ()  # a job just deleted has none
    columns = [*first, *sorted(found - set(first))]
    rows = csv.DictWriter(target, ["step", *columns], restval="", lineterminator="\n")
    rows.writeheader()
    for step, points in groupby(_points(session, job.id), key=lambda point: point[0][0]):
        row: dict[str, float] = {"step": step}
        for (_, split), values in points:
            row |= {f"{_SHORT[split]}_{name}": value for name, value in values.items()}
        rows.writerow(row)


def _points(session: Session, job_id: str) -> Iterator[tuple[tuple[int, str], dict[str, float]]]:
    """The values of each step and split, in order."""
    rows = metrics.stream(session, job_id)
    for key, group in groupby(rows, key=lambda row: (row.step, row.split)):
        yield key, {row.name: row.value for row in group}
