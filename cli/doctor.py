"""What a worker on this machine needs, each tried out: `bgpo doctor`.

Settings are those of the environment, as a worker reads them. A file is written to the artifact store and removed;
nothing else is changed. Whether the wall of the sandbox holds is found by attacking it from inside (`bgpo.sandbox`).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from bgpo.errors import BgpoError, SandboxError
from bgpo.sandbox.bubblewrap import Bubblewrap, find_bubblewrap
from bgpo.sandbox.consent import UNSANDBOXED, unsandboxed_allowed
from bgpo.sandbox.probe import probe
from bgpo.sandbox.wall import MISSING
from cli.errors import CliError
from cli.redis_server import find_binary
from jobs.artifacts import ArtifactStore
from jobs.db import Database
from jobs.doorbell import Doorbell
from jobs.services.models import Catalog
from jobs.settings import Settings

_TORCH_S = 120
_TORCH = "import torch; print(torch.__version__, f'{torch.cuda.device_count()} CUDA devices')"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at; a worker cannot do all its work when a `needed` one is not `ok`."""

    name: str
    ok: bool
    detail: str
    needed: bool = True

    @property
    def status(self) -> str:
        """For people."""
        return "ok" if self.ok else "failed" if self.needed else "missing"


class _Failed(Exception):
    """What a check found wrong."""


def examine(settings: Settings) -> Iterator[Check]:
    """All checks, one after the other."""
    yield Check("python", True, f"{platform.python_version()} ({sys.executable})")
    yield _check("torch", _torch)
    yield _check("redis", lambda: _redis(settings), needed=False)  # a worker without doorbell looks by itself
    yield _check("database", lambda: _database(settings))
    yield _check("artifacts", lambda: _artifacts(settings))
    yield _check("models", lambda: _models(settings))
    yield _check("disk", lambda: _disk(settings))
    yield from _sandbox()


def _check(name: str, look: Callable[[], str], *, needed: bool = True) -> Check:
    try:
        return Check(name, True, look(), needed)
    except (_Failed, BgpoError, CliError, OSError, ValueError, SQLAlchemyError, subprocess.TimeoutExpired) as error:
        return Check(name, False, str(error).splitlines()[0], needed)


def _torch() -> str:
    """In a process of its own: the command line never loads it."""
    done = subprocess.run([sys.executable, "-c", _TORCH], capture_output=True, text=True, check=False, timeout=_TORCH_S)
    if done.returncode:
        raise _Failed(f"cannot be imported: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return done.stdout.strip()


def _redis(settings: Settings) -> str:
    if "BGPO_REDIS_URL" not in os.environ:
        return f"BGPO_REDIS_URL is not set; `bgpo up` starts {find_binary()}"
    doorbell = Doorbell(settings.redis_url.get_secret_value())
    try:
        doorbell.check()
    finally:
        doorbell.close()
    return "the server of BGPO_REDIS_URL answers"


def _database(settings: Settings) -> str:
    url = sa.make_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).exists():
        return f"{url.database} will be made by the first start"
    database = Database(settings.database_url)
    try:
        with database.read() as session:
            session.execute(sa.text("SELECT 1"))
    finally:
        database.dispose()
    return f"{url.render_as_string(hide_password=True)} answers"


def _artifacts(settings: Settings) -> str:
    store = ArtifactStore(settings.artifacts_url)
    key = f"doctor/{uuid.uuid4().hex}"
    with tempfile.NamedTemporaryFile() as file:
        store.put_file(Path(file.name), key)
    store.delete(key)
    return f"{settings.artifacts_url} is writable"


def _models(settings: Settings) -> str:
    models = Catalog(settings.model_root).list()
    if not models:
        raise _Failed(f"no base model in {settings.model_root} (BGPO_MODEL_ROOT)")
    return f"{len(models)} in {settings.model_root}"


def _disk(settings: Settings) -> str:
    folder = next(each for each in (settings.home, *settings.home.parents) if each.exists())
    free = shutil.disk_usage(folder).free
    if free < settings.min_free_bytes:
        raise _Failed(f"{free / 1e9:.1f} GB free in {folder}, needed {settings.min_free_bytes / 1e9:.1f}")
    return f"{free / 1e9:.1f} GB free in {folder}"


def _sandbox() -> Iterator[Check]:
    needed = not unsandboxed_allowed()
    program = find_bubblewrap()
    if program is None:
        yield Check("sandbox", False, MISSING, needed)
    else:
        try:
            wall = Bubblewrap(program)
            findings = probe(wall)
        except SandboxError as error:
            yield Check("sandbox", False, f"{error.message} (docs/sandbox.md)", needed)
        else:
            yield Check("sandbox", True, f"{wall.name}, user {os.geteuid()}", needed)
            for finding in findings:
                yield Check(f"sandbox: {finding.name}", finding.held, finding.detail, needed)
    if not needed:
        yield Check("consent", True, f"{UNSANDBOXED}=1: where the sandbox fails, programs run without any wall", False)
