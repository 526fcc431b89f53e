"""The embedded stack in one home folder: a private Redis, the database schema, the API, workers and a generator, as
child processes.

`with Stack(...) as stack` returns when the API answers. `stack.check()` raises when a part died; leaving the block
stops every part, whatever the reason: workers first, which lets their trainers write a checkpoint, Redis last. A
SIGKILL of this process ends the parts too (`cli.part`). The parts' output goes to `<home>/logs`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from cli.errors import CliError
from cli.home import Home
from cli.part import Part, guarded
from cli.ports import LOOPBACK, free_port, is_free
from cli.redis_server import start_redis
from cli.secret import webhook_secret

DEFAULT_PORT = 8000
_READY_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = {"redis": 5.0, "api": 15.0, "generator": 30.0}  # a worker's is its trainer's grace and some
_WORKER_STOP_TIMEOUT_S = 120.0


def choose_port(wanted: int | None) -> int:
    """`wanted` if it is free; without a wish the default port, or any free one.

    Raises:
        CliError: the wanted port is taken.
    """
    if wanted is None:
        return DEFAULT_PORT if is_free(DEFAULT_PORT) else free_port()
    if not is_free(wanted):
        raise CliError(f"port {wanted} of {LOOPBACK} is taken: choose another --port, or none to get a free one")
    return wanted


class Stack:
    """Everything `bgpo up` starts. Use it from the main thread."""

    def __init__(
        self,
        home: Path,
        *,
        port: int | None = None,
        workers: int = 1,
        env: dict[str, str] | None = None,
        drain: bool = True,
        chat: bool = True,
    ) -> None:
        """`env` is added to the parts' environment. Without `drain` trainers are killed on leaving, saving nothing.

        `chat`: also a generator, which answers chat completions. It takes memory only once it is asked.
        """
        self.home = Home(home)
        self.logs = self.home.path / "logs"
        self.port = port
        self.url = ""
        self._workers = workers
        self._extra_env = env or {}
        self._drain = drain
        self._chat = chat
        self._parts: list[Part] = []

    def __enter__(self) -> Self:
        self.home.__enter__()
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stop()
        finally:
            self.home.__exit__(kind, error, trace)

    def check(self) -> None:
        """Raise CliError, with the end of its log, when a part has ended."""
        for part in self._parts:
            status = part.poll()
            if status is not None:
                how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
                raise CliError(f"{part.name} {how}; the end of {part.log_path}:\n{part.log_tail()}")

    def _start(self) -> None:
        port = choose_port(self.port)
        threads = {"BGPO_TRAINER_THREADS": str(max(1, (os.cpu_count() or 1) // self._workers))}
        env = threads | os.environ | self._extra_env
        redis_folder = self.home.path / "redis"
        for folder in (self.logs, redis_folder):
            folder.mkdir(exist_ok=True, mode=0o700)
        redis, redis_url = start_redis(folder=redis_folder, log_path=self.logs / "redis.log", env=os.environ)
        self._parts.append(redis)
        env = {"BGPO_WEBHOOK_SECRET": webhook_secret(self.home.path)} | env
        env |= {
            "BGPO_HOME": str(self.home.path),
            "BGPO_DATABASE_URL": f"sqlite:///{self.home.path / 'bgpo.db'}",
            "BGPO_ARTIFACTS_URL": f"file://{self.home.path / 'artifacts'}",
            "BGPO_REDIS_URL": redis_url,
            "BGPO_HOST": LOOPBACK,
            "BGPO_PORT": str(port),
            "PYTHONUNBUFFERED": "1",
            "PYTHONSAFEPATH": "1",  # our modules come from the installation, never from the home folder
        }
        self._migrate(env)
        self._add("api", "api", env)
        for number in range(1, self._workers + 1):
            self._add(f"worker-{number}" if self._workers > 1 else "worker", "worker", env)
        if self._chat:
            self._add("generator", "worker.generator", {"BGPO_GENERATOR_THREADS": env["BGPO_TRAINER_THREADS"]} | env)
        self.url = f"http://{LOOPBACK}:{port}"
        self._await_ready()

    def _add(self, name: str, module: str, env: dict[str, str]) -> None:
        log_path = self.logs / f"{name}.log"
        command = [sys.executable, "-m", module]
        self._parts.append(Part(name, command, env=env, cwd=self.home.path, log_path=log_path))

    def _migrate(self, env: dict[str, str]) -> None:
        log_path = self.logs / "migrations.log"
        with log_path.open("ab") as log:
            command = guarded([sys.executable, "-m", "migrations"])
            status = subprocess.run(command, env=env, cwd=self.home.path, stdout=log, stderr=log).returncode
        if status:
            end = "\n".join(log_path.read_text(errors="replace").splitlines()[-15:])
            raise CliError(f"the database schema cannot be brought up to date; the end of {log_path}:\n{end}")

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        with httpx2.Client(base_url=self.url, timeout=5, trust_env=False) as client:
            while True:
                self.check()
                try:
                    if client.get("/readyz").status_code == 200:
                        return
                except httpx2.TransportError:  # not listening yet
                    pass
                if time.monotonic() > deadline:
                    raise CliError(f"the API is not ready after {_READY_TIMEOUT_S:.0f} s; see {self.logs}")
                time.sleep(0.1)

    def _stop(self) -> None:
        """Stop in reverse order of start; a second interrupt stops waiting for anyone."""
        try:
            workers = [part for part in self._parts if part.name.startswith("worker")]
            if not self._drain:
                for part in workers:
                    part.kill()
            for group in (workers, *[[part] for part in reversed(self._parts) if part not in workers]):
                for part in group:
                    part.terminate()
                for part in group:
                    part.wait(_STOP_TIMEOUT_S.get(part.name, _WORKER_STOP_TIMEOUT_S))
        except KeyboardInterrupt:
            pass
        finally:
            for part in self._parts:
                part.kill()


@contextmanager
def stop_signals() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP interrupt like Ctrl-C, so that one path cleans up after all of them.

    SIGINT as well: a shell without job control starts what it puts in the background with SIGINT ignored, and Python
    leaves it so. An ignored SIGHUP stays ignored: that is what nohup is for.
    """

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("signals are handled in the main thread only")
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
