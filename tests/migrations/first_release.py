"""A database as the first release left it: schema 0001 with rows in every table and jobs in every state.

Written with plain SQL of that time. Nothing here follows later changes of the code.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from jobs.artifacts import ArtifactStore
from jobs.db import create_engine
from migrations import upgrade

TABLES = ("files", "jobs", "workers", "checkpoints", "job_attempts", "job_events", "job_metrics", "job_samples")
STATES = (
    "validating",
    "queued",
    "running",
    "pausing",
    "paused",
    "cancelling",
    "succeeded",
    "failed",
    "cancelled",
)
STARTED = 1_790_000_000.25
TRAINING_FILE = "file-01990000000070008000000000000001"
ROW = b'{"messages": [{"role": "user", "content": "2 + 2"}], "answer": "4"}\n'
GRADER = {
    "type": "string_check",
    "name": "g",
    "input": "{{ sample.output_text }}",
    "reference": "a",
    "operation": "eq",
}
RECIPE: dict[str, Any] = {
    "seed": 1,
    "method": {"type": "reinforcement", "max_steps": 6, "grader": GRADER},
    "evaluation": {"interval": None, "samples": None, "batch_size": 16, "answers": 1},
    "checkpointing": {"every_steps": 2, "keep_last": 2, "keep_best": True, "best_metric": None},
    "early_stopping": None,
    "sample_log": 4,
    "precision": "float32",
}
METHOD = {
    "type": "reinforcement",
    "reinforcement": {"algorithm": "bgpo", "grader": GRADER, "hyperparameters": {"max_steps": 6}},
}


def job_id(state: str) -> str:
    """The one job in this state."""
    return f"ftjob-0199000000007000800000000000{STATES.index(state):04d}"


def checkpoint_id(state: str, step: int) -> str:
    """A checkpoint of that job."""
    return f"ftckpt_019900000000700080000000{STATES.index(state):04d}{step:04d}"


def checkpoint_key(state: str, step: int) -> str:
    """Where its files are."""
    return f"checkpoints/{job_id(state)}/1/step-{step:06d}"


@dataclass(frozen=True)
class FirstRelease:
    """A filled database of schema 0001."""

    url: str
    rows: dict[str, list[dict[str, Any]]]


def make(url: str, store: ArtifactStore, scratch: Path) -> FirstRelease:
    """Make the schema in an empty database, fill it, and store the files its rows name."""
    upgrade(url, "0001")
    rows = _rows(_store_files(store, scratch))
    engine = create_engine(url)
    with engine.execution_options(bgpo_write=True).begin() as connection:
        metadata = sa.MetaData()
        metadata.reflect(connection)
        for table in TABLES:
            connection.execute(sa.insert(metadata.tables[table]), rows[table])
    engine.dispose()
    return FirstRelease(url, rows)


def read(url: str) -> dict[str, list[dict[str, Any]]]:
    """All rows of the first release's tables, with all columns they have now, by their keys."""
    engine = create_engine(url)
    found = {}
    with engine.connect() as connection:
        metadata = sa.MetaData()
        metadata.reflect(connection)
        for name in TABLES:
            table = metadata.tables[name]
            order = list(table.primary_key.columns)
            found[name] = [dict(row) for row in connection.execute(sa.select(table).order_by(*order)).mappings()]
    engine.dispose()
    return found


def _store_files(store: ArtifactStore, scratch: Path) -> list[dict[str, Any]]:
    """Store the training file and the checkpoints; the manifest they have in common."""
    scratch.mkdir(parents=True)
    (scratch / "train.jsonl").write_bytes(ROW * 12)
    store.put_file(scratch / "train.jsonl", f"files/{TRAINING_FILE}")
    folder = scratch / "step"
    (folder / "trainer_state").mkdir(parents=True)
    (folder / "trainer_state" / "state.json").write_text(json.dumps({"step": 2}))
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "manifest.json").write_bytes(b"{}")
    kinds = {"trainer_state/state.json": "trainer_state", "model.safetensors": "weights", "manifest.json": "config"}
    files = []
    for path, kind in sorted(kinds.items()):
        content = (folder / path).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        files.append({"path": path, "bytes": len(content), "sha256": digest, "kind": kind})
        for state in _TRAINED:
            store.put_file(folder / path, f"{checkpoint_key(state, 2)}/{path}")
    return files


_TRAINED = ("running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled")


def _rows(manifest: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    train = ROW * 12
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    rows["files"].append(
        {
            "id": TRAINING_FILE,
            "project_id": "proj_default",
            "created_at": STARTED,
            "filename": "träin.jsonl",
            "purpose": "fine-tune",
            "bytes": len(train),
            "sha256": hashlib.sha256(train).hexdigest(),
            "key": f"files/{TRAINING_FILE}",
            "summary": {"rows": 12, "fields": ["answer"]},
        }
    )
    rows["workers"].append(
        {
            "id": "host-1-abc",
            "host": "host",
            "pid": 17,
            "device": "auto",
            "version": "0.1.0",
            "started_at": STARTED,
            "last_seen": STARTED + 60,
        }
    )
    for number, state in enumerate(STATES):
        rows["jobs"].append(_job(state, STARTED + number))
        if state in _TRAINED:
            _add_run(rows, state, manifest, digest)
    return rows


def _job(state: str, created_at: float) -> dict[str, Any]:
    ended, trained = state in ("succeeded", "failed", "cancelled"), state in _TRAINED
    held = state in ("running", "pausing", "cancelling")
    desired = {"pausing": "pause", "paused": "pause", "cancelling": "cancel", "cancelled": "cancel"}
    resume = checkpoint_id(state, 2) if trained else None
    return {
        "id": job_id(state),
        "project_id": "proj_default",
        "created_at": created_at,
        "idempotency_key": f"key-{state}" if state != "queued" else None,
        "request_hash": "0" * 64,
        "model": "tiny",
        "training_file": TRAINING_FILE,
        "validation_file": None,
        "suffix": "first",
        "metadata": {"team": "ü"} if state == "succeeded" else None,
        "seed": 2**31 - 1,
        "method": METHOD,
        "recipe": RECIPE,
        "tuned_model": f"ft:tiny:proj_default:first:{state}",
        "total_steps": 6,
        "state": state,
        "desired": desired.get(state, "run"),
        "phase": "rollout" if held else None,
        "epoch": 1 if trained else 0,
        "attempts_left": 0 if state == "failed" else 3,
        "max_attempts": 3,
        "lease_owner": "host-1-abc" if held else None,
        "lease_until": STARTED + 120 if held else None,
        "not_before": 0.0,
        "rung_at": STARTED + 1,
        "last_step": 3 if trained else 0,
        "resume_checkpoint_id": resume,
        "final_checkpoint_id": resume if state == "succeeded" else None,
        "event_seq": 2 if trained else 0,
        "error_code": "nan" if state == "failed" else None,
        "error_message": "loss became NaN (step 3, rollout)" if state == "failed" else None,
        "error_param": None,
        "started_at": created_at + 5 if trained else None,
        "finished_at": created_at + 99 if ended or state == "cancelling" else None,
    }


def _add_run(rows: dict[str, list[dict[str, Any]]], state: str, manifest: list[dict[str, Any]], digest: str) -> None:
    job, at = job_id(state), STARTED + 10
    rows["job_attempts"].append(
        {
            "job_id": job,
            "epoch": 1,
            "worker_id": "host-1-abc",
            "started_at": at,
            "ended_at": at + 9,
            "outcome": state,
            "exit_code": 0,
            "signal": None,
        }
    )
    for seq, (kind, data) in enumerate((("message", None), ("metrics", {"step": 1, "train": {"loss": 0.5}})), start=1):
        rows["job_events"].append(
            {
                "job_id": job,
                "seq": seq,
                "id": f"ftevent-{job[-4:]}{seq}",
                "epoch": 1,
                "created_at": at + seq,
                "level": "info",
                "type": kind,
                "message": f"Ereignis № {seq}",
                "data": data,
            }
        )
    for step in (1, 2, 3):
        rows["job_metrics"].append(
            {
                "job_id": job,
                "step": step,
                "split": "train",
                "name": "loss",
                "value": 1e-300 if step == 1 else 1 / step,
                "epoch": 1,
                "created_at": at + step,
            }
        )
        rows["job_samples"].append(
            {
                "job_id": job,
                "step": step,
                "split": "train",
                "index": 0,
                "prompt": "2 + 2",
                "completion": "4",
                "reward": None if step == 2 else 1.0,
                "scores": {"g": 1.0},
                "error": "timeout" if step == 2 else None,
                "epoch": 1,
                "created_at": at + step,
            }
        )
    rows["checkpoints"].append(
        {
            "id": checkpoint_id(state, 2),
            "job_id": job,
            "epoch": 1,
            "step": 2,
            "created_at": at + 3,
            "name": f"ft:tiny:proj_default:first:{state}:ckpt-step-2",
            "key": checkpoint_key(state, 2),
            "manifest": manifest,
            "manifest_sha256": digest,
            "bytes": sum(file["bytes"] for file in manifest),
            "final": state == "succeeded",
            "metrics": {"sampled_reward_mean": 0.5},
        }
    )
