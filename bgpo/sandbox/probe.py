"""Attacks a wall from inside, to see whether it holds on this machine.

A kernel setting, a security module or a container's profile can weaken a wall without an error, so what is promised is
tried out. This is the short form, done whenever a process first needs a wall; tests/attacks is the long one.
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from bgpo.sandbox.launch import ENVIRONMENT, Wall
from bgpo.sandbox.limits import Limits
from bgpo.sandbox.sandbox import Result, Sandbox

LIMITS = Limits(seconds=30, memory=256 * 2**20, disk=16 * 2**20, processes=12)
NAMESPACES = ("user", "pid", "net", "mnt", "ipc", "uts")


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one attack; `detail` is what stopped it, or what it reached."""

    name: str
    held: bool
    detail: str


def probe(wall: Wall) -> list[Finding]:
    """The result of every attack, in the order tried.

    Raises:
        SandboxError: no sandbox starts.
        ValueError: there is no wall: the attacks would reach this machine, its files and its network.
    """
    if not wall.contained:
        raise ValueError("the probe attacks in earnest: only behind a wall")
    with _targets() as targets, Sandbox(wall, LIMITS) as sandbox:
        arguments = {**targets, "environment": ENVIRONMENT, "processes": LIMITS.processes}
        findings = _findings(sandbox.run("probe:attack", arguments))
        return [*findings, _namespaces(sandbox.run("probe:namespaces", {"names": NAMESPACES}))]


@contextmanager
def _targets() -> Iterator[dict[str, Any]]:
    """What an attack from inside must not reach: listeners and a file of this process."""
    with ExitStack() as stack:
        name = f"bgpo-probe-{secrets.token_hex(8)}"
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind("\0" + name)
        abstract.listen()
        secret = stack.enter_context(tempfile.NamedTemporaryFile(prefix="bgpo-probe-"))
        os.chmod(secret.name, 0o644)  # else its mode would protect it, not the wall
        yield {"port": listener.getsockname()[1], "abstract": name, "secret": secret.name}


def _findings(result: Result) -> list[Finding]:
    if result.ended != "returned":
        return [Finding("attacks", False, f"could not be tried: {result.ended} {result.message}")]
    return [Finding(name, held is True, str(detail)) for name, held, detail in result.value]


def _namespaces(result: Result) -> Finding:
    shared = [
        name
        for name in NAMESPACES
        if not result.value or result.value.get(name) == os.readlink(f"/proc/self/ns/{name}")
    ]
    detail = f"shares {', '.join(shared)}" if shared else "all its own"
    return Finding("kernel: namespaces of the service", not shared, detail)
