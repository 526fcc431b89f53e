"""A whole service as real processes on this machine, and the faults a test may ask for.

A scenario that loses a worker has a SHORT_LEASE, so that it takes seconds; the order of the guards is that of the
defaults: beat < self-fence < lease < lease + reap_after. Any other keeps the default lease, which a busy machine cannot
endanger. What became of the jobs is checked by `oracle`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import sqlalchemy as sa

from jobs.artifacts import ArtifactStore
from jobs.db import Database
from jobs.services.result_files import write_all
from jobs.services.sweep import sweep
from jobs.settings import Settings
from jobs.tables import DEFAULT_PROJECT, Attempt, Checkpoint, Job, Worker
from tests.faults import journal
from tests.faults.processes import PATIENCE_S, Process, kill_marked, marked, wait_empty, wait_for
from tests.faults.proxy import TcpProxy
from tests.faults.servers import PostgresServer, RedisServer, unused_port

HERE = Path(__file__).parent
LEASE_S, FENCE_S, REAP_AFTER_S = 6.0, 3.5, 1.0
SHORT_LEASE: dict[str, object] = {
    "lease_s": LEASE_S,
    "beat_s": 1.0,
    "self_fence_s": FENCE_S,
    "reap_after_s": REAP_AFTER_S,
}
SETTINGS: dict[str, object] = {
    "reconcile_s": 0.5,
    "stop_grace_s": 10.0,
    "min_free_bytes": 0,
    "max_queued_jobs": 1000,
    "trainer_threads": 1,
    "trainer_device": "cpu",
    "worker_gpus": "cpu",
    "log_format": "json",
}
DEAD_FOR_SURE_S = LEASE_S + REAP_AFTER_S
"""After so long without a renewal another worker may have the job."""
TERMINAL = ("succeeded", "failed", "cancelled")


@dataclass
class Cluster:
    """Made by the `cluster` fixture."""

    folder: Path
    redis: RedisServer
    trainer: Sequence[str]
    model_root: Path
    true_database_url: str
    """The database past any proxy, for the test's own looks."""
    database_name: str
    """Of the PostgreSQL database; empty with SQLite."""
    postgres: PostgresServer | None
    redis_proxy: TcpProxy | None
    database_proxy: TcpProxy | None
    settings: dict[str, object]
    """On top of SETTINGS."""
    seed: int
    workers: list[Process] = field(default_factory=list)
    steps: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Seed and steps of each job."""

    def __post_init__(self) -> None:
        self.mark, self.locks = self.folder / "tmp", self.folder / "locks"
        self.home = Path(str(self.settings.setdefault("home", self.folder / "home")))
        self.store = Path(str(self.settings.get("artifacts_url", self.home / "artifacts")).removeprefix("file://"))
        self.random = random.Random(self.seed)
        self.db = Database(self.true_database_url)
        self.port = unused_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.api: Process | None = None
        self.reconciler: Process | None = None
        self._started = 0
        self._file_id: str | None = None
        self._seeds = itertools.count(100)
        for name in ("tmp", "plans", "release"):
            (self.folder / name).mkdir(exist_ok=True)

    # Processes

    def environment(self) -> dict[str, str]:
        """Of every process of the service."""
        values = SETTINGS | {
            "database_url": self.database_url(),
            "redis_url": self.redis.url(self.redis_proxy.port if self.redis_proxy else None),
            "model_root": self.model_root,
            "port": self.port,
            "lock_dir": self.locks,
            "trainer_command": json.dumps(list(self.trainer)),
        }
        values |= self.settings
        outside = {key: value for key, value in os.environ.items() if not key.startswith("BGPO_")}
        return (
            outside | {f"BGPO_{key.upper()}": str(value) for key, value in values.items()} | {"TMPDIR": str(self.mark)}
        )

    def database_url(self) -> str:
        """Where the service's processes find the database."""
        if self.postgres is None or self.database_proxy is None:
            return self.true_database_url
        return self.postgres.url(self.database_name, self.database_proxy.port)

    def start(self, module: str, name: str | None = None) -> Process:
        """`python -m module`."""
        return Process(name or module, [sys.executable, "-m", module], self.environment(), self.folder)

    def start_api(self) -> None:
        """Start the API and wait until it serves."""
        self.api = self.start("api")
        wait_for(self._serves, "the API serves")

    def _serves(self) -> bool:
        assert self.api is not None
        assert self.api.running(), self.api.tail()
        try:
            with self.http(timeout=5) as http:
                return http.get("/healthz").status_code == 200
        except httpx2.TransportError:
            return False

    def start_worker(self) -> Process:
        """Start one more worker; it is not waited for."""
        self._started += 1
        worker = self.start("worker", f"worker-{self._started}")
        self.workers.append(worker)
        return worker

    def start_workers(self, count: int) -> None:
        """Several."""
        for _ in range(count):
            self.start_worker()

    def worker_of(self, job_id: str) -> Process:
        """The worker that holds the job."""

        def find() -> Process | None:
            owner = self.job(job_id).lease_owner or ""
            return next((worker for worker in self.workers if f"-{worker.pid}-" in owner), None)

        return wait_for(find, f"some worker holds {job_id}")

    def another_than(self, worker: Process) -> Process:
        """Some other worker."""
        return next(other for other in self.workers if other is not worker)

    def children_of(self, process: Process) -> list[int]:
        """Ids of the processes it started itself and that live."""
        children = Path(f"/proc/{process.pid}/task").glob("*/children")
        return [int(pid) for path in children for pid in path.read_text().split()]

    def services(self) -> list[Process]:
        """The processes this scenario started itself, whether they live or not."""
        return [process for process in (self.api, self.reconciler, *self.workers) if process is not None]

    def kill_services(self) -> None:
        """SIGKILL all of them, the broker as well, as a power cut would; what they started is to notice by itself."""
        for process in self.services():
            process.signal(signal.SIGKILL)
        for process in self.services():
            process.kill()
        self.redis.kill()

    def check_dead(self) -> None:
        """After `kill_services` nothing of the scenario may live on."""
        wait_empty(lambda: marked(self.mark).items(), "outlived the processes that started it")

    def close(self) -> None:
        """End whatever is left."""
        kill_marked(self.mark)
        for process in self.services():
            process.kill()
        self.db.dispose()

    def sweep(self) -> None:
        """Take what only the sweeper takes, and write the result files, without waiting for their day."""
        settings = Settings(
            home=self.home,
            database_url=self.true_database_url,
            artifacts_url=str(self.settings.get("artifacts_url", "")),
            orphan_age_s=0.001,
        )
        store = ArtifactStore(settings.artifacts_url)
        write_all(settings, self.db, store)
        sweep(settings, self.db, store)

    def strangers(self) -> dict[int, str]:
        """Command lines of all living processes of the scenario but its services."""
        services = {process.pid for process in self.services()}
        return {pid: command for pid, command in marked(self.mark).items() if pid not in services}

    # Jobs

    def http(self, **options: Any) -> httpx2.Client:
        """A client of the API."""
        headers = {"Authorization": "Bearer any"}
        return httpx2.Client(**{"base_url": self.url, "trust_env": False, "timeout": 60, "headers": headers} | options)

    def upload(self) -> str:
        """The id of a training file."""
        rows = [{"messages": [{"role": "user", "content": f"{i} + 2"}], "answer": str(i + 2)} for i in range(12)]
        content = "".join(json.dumps(row) + "\n" for row in rows)
        with self.http() as http:
            response = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", content)})
        assert response.status_code == 200, response.text
        return str(response.json()["id"])

    def body(
        self, *, steps: int = 12, every: int | None = 3, seed: int | None = None, **changes: Any
    ) -> dict[str, Any]:
        """A create request; each has a seed of its own unless one is given."""
        grader = {"type": "string_check", "name": "letter", "operation": "ilike"}  # some random answers have it
        grader |= {"input": "{{ sample.output_text }}", "reference": "e"}
        shape = {
            "max_steps": steps,
            "batch_size": 4,
            "group_size": 4,
            "mc_samples": 2,
            "learning_rate": 1e-3,
            "max_completion_length": 16,
            "block_length": 16,
            "diffusion_steps": 4,
        }
        if self._file_id is None:
            self._file_id = self.upload()
        rl = {"checkpointing": {"every_steps": every}} | changes.pop("rl", {})
        body = {
            "model": "tiny",
            "training_file": self._file_id,
            "seed": next(self._seeds) if seed is None else seed,
            "method": {"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": shape}},
            "rl": rl,
        }
        return body | changes

    def submit(self, *, plan: dict[str, Any] | None = None, key: str | None = None, **options: Any) -> str:
        """Create a job over HTTP; `plan` is what its stand-in trainers do."""
        body = self.body(**options)
        self._plan(body["seed"], plan or {})
        headers = {"Idempotency-Key": key} if key else {}
        with self.http() as http:
            response = http.post("/v1/fine_tuning/jobs", json=body, headers=headers)
        assert response.status_code == 200, response.text
        return self.adopt(response.json()["id"], body)

    def submit_held(
        self, *, at: int = 6, every: int | None = 3, plan: dict[str, Any] | None = None, **more: Any
    ) -> str:
        """A job whose trainers wait before step `at` until `release`; it is there, and its checkpoints are durable."""
        job_id = self.submit(plan=(plan or {}) | {"hold_at": at}, every=every, **more)
        self.wait_line(job_id, "STEP", n=at - 1)
        if every is not None and at > every:
            self.wait_checkpoint(job_id, (at - 1) // every * every)
        return job_id

    def adopt(self, job_id: str, body: dict[str, Any]) -> str:
        """Remember what a job was asked to do."""
        steps = body["method"]["reinforcement"]["hyperparameters"]["max_steps"]
        self.steps[job_id] = (body["seed"], steps)
        return job_id

    def plan(self, job_id: str, **values: Any) -> None:
        """What the stand-in trainers of a job do that start from now on."""
        self._plan(self.steps[job_id][0], values)

    def _plan(self, seed: int, values: dict[str, Any]) -> None:
        path = self.folder / "plans" / f"{seed}.json"
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(values))
        unfinished.replace(path)

    def release(self, job_id: str) -> None:
        """Let trainers go on that wait where their plan says."""
        (self.folder / "release" / job_id).touch()

    def ask(self, job_id: str, wish: str) -> httpx2.Response:
        """POST cancel, pause or resume."""
        with self.http() as http:
            return http.post(f"/v1/fine_tuning/jobs/{job_id}/{wish}")

    def shown(self, job_id: str) -> dict[str, Any]:
        """The job as the API shows it."""
        with self.http() as http:
            shown: dict[str, Any] = http.get(f"/v1/fine_tuning/jobs/{job_id}").json()
        return shown

    def job(self, job_id: str) -> Job:
        """The job's row."""
        with self.db.read() as session:
            return session.get_one(Job, job_id)

    def jobs(self) -> list[Job]:
        """All of them."""
        with self.db.read() as session:
            return list(session.scalars(sa.select(Job).where(Job.project_id == DEFAULT_PROJECT)))

    def attempts(self, job_id: str) -> list[Attempt]:
        """Its attempts, oldest first."""
        with self.db.read() as session:
            return list(session.scalars(sa.select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.epoch)))

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """Its checkpoints, lowest step first."""
        with self.db.read() as session:
            found = sa.select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.step)
            return list(session.scalars(found))

    # Waiting

    def journal(self, job_id: str) -> list[journal.Line]:
        """What its trainers wrote."""
        return journal.read(self.folder, job_id)

    def wait_line(self, job_id: str, kind: journal.Kind, *, n: int = 0, epoch: int = 0) -> journal.Line:
        """The first line of a kind with at least this step and epoch."""

        def find() -> journal.Line | None:
            lines = self.journal(job_id)
            wanted = (line for line in lines if line.kind == kind and line.epoch >= epoch and (line.n or 0) >= n)
            return next(wanted, None)

        return wait_for(find, f"{kind} of step {n} or later, epoch {epoch} or later, of {job_id}")

    def wait_checkpoint(self, job_id: str, step: int = 1) -> None:
        """Until a checkpoint of this step or a later one is durable."""
        wait_for(lambda: any(row.step >= step for row in self.checkpoints(job_id)), f"a checkpoint at step {step}")

    def wait_state(self, job_id: str, *states: str, timeout: float = PATIENCE_S) -> Job:
        """Until the job's row is in one of these states."""
        wait_for(lambda: self.job(job_id).state in states, f"{job_id} is {' or '.join(states)}", timeout, every=0.05)
        return self.job(job_id)

    def wait_registered(self, count: int) -> None:
        """Until so many workers have reported themselves."""

        def registered() -> bool:
            with self.db.read() as session:
                return len(list(session.scalars(sa.select(Worker)))) >= count

        wait_for(registered, f"{count} workers are in the registry")

    def doorbells(self) -> int:
        """Messages that wait in the broker."""
        with self.redis.client() as client:
            return sum(int(str(client.llen(key))) for key in client.scan_iter("bgpo.*", _type="list"))

    def wait_phase(self, job_id: str, phase: str) -> None:
        """Until its trainer has reported to be in this phase."""
        wait_for(lambda: self.job(job_id).phase == phase, f"{job_id} is in phase {phase}")

    def wait_over(self, job_id: str, timeout: float = PATIENCE_S) -> Job:
        """Until it is in a terminal state."""
        return self.wait_state(job_id, *TERMINAL, timeout=timeout)

    def wait_dead(self, pid: int) -> None:
        """Until a process is gone."""
        wait_for(lambda: not journal.lives(pid), f"process {pid} is dead")

    # Faults

    def trainer_pid(self, job_id: str) -> int:
        """The trainer that started last."""
        return next(line.pid for line in reversed(self.journal(job_id)) if line.kind == "START")

    def freeze(self, worker: Process, *, in_transaction: bool = False) -> None:
        """SIGSTOP a worker, outside any transaction of its own or within one.

        Within one it keeps its locks. PostgreSQL takes them away after a while; SQLite's are the kernel's, so that
        nobody could write until the worker is back.
        """
        deadline = time.monotonic() + PATIENCE_S
        while True:
            worker.signal(signal.SIGSTOP)
            if self._in_transaction() == in_transaction:
                return
            worker.signal(signal.SIGCONT)
            assert time.monotonic() < deadline, "the worker was never in that state"
            time.sleep(0.1)

    def freeze_worker_of(self, job_id: str, *, in_transaction: bool = False) -> Process:
        """SIGSTOP the worker that holds the job, and still does when it stands."""
        while True:
            worker = self.worker_of(job_id)
            self.freeze(worker, in_transaction=in_transaction)
            if f"-{worker.pid}-" in (self.job(job_id).lease_owner or ""):
                return worker
            worker.signal(signal.SIGCONT)

    def _in_transaction(self) -> bool:
        """Whether anybody holds a transaction open for longer than one takes."""
        if self.postgres is not None:
            return bool(self.postgres.idle_transactions(self.database_name))
        with contextlib.closing(sqlite3.connect(self.folder / "bgpo.db", timeout=0.05, isolation_level=None)) as other:
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            other.execute("ROLLBACK")
        return False

    def trainer_pids(self) -> list[int]:
        """The stand-in trainers that live."""
        pids = [line.pid for job_id in list(self.steps) for line in self.journal(job_id) if line.kind == "START"]
        return [pid for pid in pids if journal.lives(pid)]

    def kill_trainer(self, job_id: str) -> None:
        """SIGKILL the trainer itself."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.trainer_pid(job_id), signal.SIGKILL)

    @contextlib.contextmanager
    def evidence(self) -> Iterator[None]:
        """Add seed, folder and the ends of the logs to whatever fails within."""
        try:
            yield
        except BaseException as error:
            tails = [f"--- {process.log}\n{process.tail()}" for process in self.services()]
            error.add_note("\n".join([f"seed {self.seed}; everything is kept in {self.folder}", *tails]))
            raise
