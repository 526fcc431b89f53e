"""Attacks on the wall by whom it holds. The standard library only.

Each attack returns what it reached, or raises OSError where it was stopped. Anything else counts as not held: what
could not be tried proves nothing. A wall that does not hold must not cost more than that: writing changes nothing that
is there, and what it made is removed; the metadata address is looked up in the routes, never called.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

_CLONE_NEWUSER = 0x10000000
_TIMEOUT_S = 2.0


def echo(arguments: dict[str, Any], fds: list[int]) -> Any:
    """What came in: the arguments, standard input, the number of descriptors."""
    return [arguments, sys.stdin.read(), len(fds)]


def attack(arguments: dict[str, Any], fds: list[int]) -> Any:
    """[name, held, detail] of each attack."""
    attacks: dict[str, Callable[[], str]] = {
        "network: a listener on this machine": lambda: _connect(socket.AF_INET, ("127.0.0.1", arguments["port"])),
        "network: an abstract Unix socket": lambda: _connect(socket.AF_UNIX, "\0" + arguments["abstract"]),
        "network: the metadata address": lambda: _route("169.254.169.254"),
        "network: a public address": lambda: _route("1.1.1.1"),
        "network: interfaces": _interfaces,
        "files: accounts": lambda: _read("/etc/passwd"),
        "files: those of the service": lambda: _read(arguments["secret"]),
        "files: write the root": lambda: _write("/"),
        "files: write the libraries": lambda: _write("/usr/lib"),
        "files: write devices": lambda: _write("/dev"),
        "files: write third-party modules": lambda: _write(sys.path[-1]),
        "environment": lambda: _more_than(arguments["environment"]),
        "processes: those outside": _others,
        "processes: as many as I like": lambda: _fork(arguments["processes"]),
        "processes: trace one": lambda: _call("ptrace", 0, 0, 0, 0),
        "kernel: a namespace": lambda: _call("unshare", _CLONE_NEWUSER),
        "kernel: mount": lambda: _call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
        "rights: root": _identity,
        "rights: capabilities, new privileges, no filter": _rights,
    }
    return [[name, *_try(function)] for name, function in attacks.items()]


def execute(arguments: dict[str, Any], fds: list[int]) -> Any:
    """The value of a function given as source, for attacks that are written elsewhere."""
    names: dict[str, Any] = {}
    exec(compile(arguments["source"], "attack", "exec"), names)  # noqa: S102 - its purpose
    return names[arguments["function"]](**arguments["arguments"])


def namespaces(arguments: dict[str, Any], fds: list[int]) -> Any:
    """This process's namespaces."""
    return {name: os.readlink(f"/proc/self/ns/{name}") for name in arguments["names"]}


def _try(function: Callable[[], str]) -> tuple[bool, str]:
    try:
        return False, function()[:200]
    except OSError as error:
        return True, error.strerror or str(error)
    except Exception as error:  # could not be tried
        return False, f"{type(error).__name__}: {error}"[:200]


def _connect(family: int, address: Any) -> str:
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(_TIMEOUT_S)
        connection.connect(address)
    return f"connected to {address!r}"


def _route(host: str) -> str:
    """Connecting a datagram socket looks up the way and sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.connect((host, 53))
    return f"has a route to {host}"


def _interfaces() -> str:
    with open("/proc/self/net/dev") as file:
        names = [line.split(":")[0].strip() for line in file if ":" in line]
    if names == ["lo"]:
        raise OSError("only lo")
    return f"sees {names}"


def _read(path: str) -> str:
    with open(path, "rb") as file:
        return f"read {len(file.read())} bytes of {path}"


def _write(folder: str) -> str:
    path = f"{folder}/bgpo-probe-{os.urandom(8).hex()}"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    os.unlink(path)
    return f"wrote into {folder}"


def _more_than(expected: dict[str, str]) -> str:
    # bubblewrap says where we are, the interpreter how it reads text, the runner where to put files.
    allowed = {*expected, "PWD", "LC_CTYPE", "TMPDIR"}
    if more := sorted(set(os.environ) - allowed):
        return f"holds {', '.join(more)}"
    raise OSError("nothing of the service")


def _others() -> str:
    found = [name for name in os.listdir("/proc") if name.isdigit() and int(name) not in (1, os.getpid())]
    if not found:
        raise OSError("none in sight")
    return f"sees processes {', '.join(found[:10])}"


def _fork(limit: int) -> str:
    children = []
    try:
        for _ in range(limit + 8):
            pid = os.fork()
            if pid == 0:
                signal.pause()
                os._exit(0)
            children.append(pid)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return f"started {len(children)} processes"


def _call(name: str, *arguments: Any) -> str:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return f"{name} succeeded"


def _identity() -> str:
    if 0 in (*os.getresuid(), *os.getresgid(), *os.getgroups()):
        return f"user {os.getresuid()}, group {os.getresgid()}, groups {os.getgroups()}"
    raise OSError(f"user {os.getuid()}")


def _rights() -> str:
    with open("/proc/self/status") as file:
        status = {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
    wanted = {"CapPrm": 0, "CapEff": 0, "CapBnd": 0, "CapInh": 0, "CapAmb": 0, "NoNewPrivs": 1, "Seccomp": 2}
    wrong = [f"{name} {status.get(name)}" for name, value in wanted.items() if int(status.get(name, "99"), 16) != value]
    if wrong:
        return ", ".join(wrong)
    raise OSError("none")
