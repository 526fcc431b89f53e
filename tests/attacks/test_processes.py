"""Attacks on other processes: the runner, other tasks, the service; and processes that want to outlive their task."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from bgpo.sandbox import Result, Sandbox, Wall
from bgpo.sandbox.processes import descendants
from tests.attacks.conftest import LIMITS, assert_still_works, assert_stopped, inside


@pytest.fixture
def own(wall: Wall) -> Iterator[Sandbox]:
    """A sandbox that the attack may end."""
    with Sandbox(wall, LIMITS) as sandbox:
        yield sandbox


def pids() -> list[int]:
    import os

    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def child_left() -> str:
    import os
    import signal

    if os.fork() == 0:
        signal.pause()
    return "done"


def session_left() -> str:
    import os
    import signal

    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pause()
    return "done"


def daemon_left() -> str:
    import os
    import signal

    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for fd in range(256):
                try:
                    os.close(fd)
                except OSError:
                    pass
            while True:
                signal.pause()
        os._exit(0)
    os.wait()
    return "done"


def relay_left() -> str:
    """Each one starts the next and ends, so that a list of processes is always out of date."""
    import os

    if os.fork() == 0:
        while True:
            try:
                if os.fork() != 0:
                    os._exit(0)
            except OSError:
                pass
    return "done"


@pytest.mark.parametrize("attack", [child_left, session_left, daemon_left, relay_left], ids=lambda each: each.__name__)
def test_nothing_outlives_its_task(wall: Wall, own: Sandbox, attack: Callable[[], str]) -> None:
    assert inside(own, attack).value == "done"
    assert inside(own, pids).value == [1]
    assert_still_works(wall, own)


def test_nothing_outlives_its_task_while_another_runs(own: Sandbox) -> None:
    with ThreadPoolExecutor(1) as executor:
        reading, writing = os.pipe()
        try:
            other = executor.submit(_wait_for_pipe, own, reading)
            for attack in (child_left, session_left, daemon_left):
                assert inside(own, attack).value == "done"
            assert len(inside(own, pids).value) <= 2  # the runner, and the other task if it has begun
            os.write(writing, b"x")
            assert other.result().value == "x"
        finally:
            os.close(reading)
            os.close(writing)


def _wait_for_pipe(sandbox: Sandbox, fd: int) -> Result:
    source = "import os\ndef wait(fd): return os.read(fd, 1).decode()"
    # Descriptors keep no number on their way: the only pipe above the streams that can be read is ours.
    source += (
        "\ndef find():\n import select\n"
        " for name in sorted(map(int, os.listdir('/proc/self/fd'))):\n"
        "  if name > 2:\n"
        "   try:\n"
        "    if os.readlink(f'/proc/self/fd/{name}').startswith('pipe') and not _writable(name): return wait(name)\n"
        "   except OSError: pass\n"
        "def _writable(fd):\n import fcntl\n return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY"
    )
    return sandbox.run("probe:execute", {"source": source, "function": "find", "arguments": {}}, fds=[fd])


def test_closing_ends_everything(wall: Wall) -> None:
    def crowd() -> None:
        import os
        import signal

        for _ in range(5):
            if os.fork() == 0:
                os.setsid()
        signal.pause()

    sandbox = Sandbox(wall, LIMITS)
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(inside(sandbox, crowd)))
    before = set(descendants(os.getpid()))
    thread.start()
    _until(lambda: len(set(descendants(os.getpid())) - before) >= 8)
    mine = set(descendants(os.getpid()))
    sandbox.close()
    thread.join()
    assert results[0].ended == "lost"
    assert not [pid for pid in mine - {os.getpid()} if pid not in before and os.path.exists(f"/proc/{pid}")]


def test_a_killed_service_takes_its_sandboxes_along(wall: Wall) -> None:
    code = (
        "import sys; from bgpo.sandbox import *; from bgpo.sandbox.wall import proven_bubblewrap\n"
        "sandbox = Sandbox(proven_bubblewrap(), Limits(seconds=100))\n"
        "source = 'import os, signal\\ndef f():\\n os.fork(); os.setsid() if os.fork() == 0 else 0; signal.pause()'\n"
        "print('started', flush=True)\n"
        "sandbox.run('probe:execute', {'source': source, 'function': 'f', 'arguments': {}})\n"
    )
    service = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert service.stdout is not None
    with service, service.stdout:
        assert service.stdout.readline() == b"started\n"
        _until(lambda: len(descendants(service.pid)) >= 7)
        below = descendants(service.pid)[1:]
        service.kill()
        service.wait()
    _until(lambda: not [pid for pid in below if os.path.exists(f"/proc/{pid}")])


def _until(condition: Callable[[], bool]) -> None:
    """Wait for it; the test's time limit ends a wait in vain."""
    tick = threading.Event()
    while not condition():
        tick.wait(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("target", ["runner", "all"])
def test_the_runner_cannot_be_ended_or_stopped(wall: Wall, own: Sandbox, target: str, number: int) -> None:
    def send(pid: int, number: int) -> str:
        import os

        try:
            os.kill(pid, number)
        except ProcessLookupError:  # -1 reaches everybody but the sender and process 1: nobody
            return "nobody"
        return "sent"

    result = inside(own, send, pid=1 if target == "runner" else -1, number=number)
    assert result.value == ("sent" if target == "runner" else "nobody")
    assert own.alive
    assert_still_works(wall, own)


def test_the_service_cannot_be_signalled(own: Sandbox) -> None:
    def send(pid: int) -> None:
        import os

        os.kill(pid, 0)

    assert_stopped(inside(own, send, pid=os.getpid()), ProcessLookupError)
    assert_stopped(inside(own, send, pid=os.getppid()), ProcessLookupError)


def test_the_runners_limits_cannot_be_changed(wall: Wall, own: Sandbox) -> None:
    def starve() -> None:
        import resource

        resource.prlimit(1, resource.RLIMIT_NOFILE, (3, 3))

    assert_stopped(inside(own, starve), PermissionError)
    assert_still_works(wall, own)


def test_limits_cannot_be_raised(own: Sandbox) -> None:
    def raise_limits() -> list[str]:
        import resource

        raised = []
        for name in ("AS", "NPROC", "FSIZE", "NOFILE", "CPU", "CORE"):
            kind = getattr(resource, f"RLIMIT_{name}")
            _, hard = resource.getrlimit(kind)
            try:
                resource.setrlimit(kind, (hard + 1, hard + 1))
                raised.append(name)
            except (ValueError, OSError):
                pass
        return raised

    assert inside(own, raise_limits).value == []


def trace_the_runner() -> None:
    import ctypes
    import os

    if ctypes.CDLL(None, use_errno=True).ptrace(16, 1, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def trace_a_child() -> None:
    import ctypes
    import os
    import signal

    pid = os.fork()
    if pid == 0:
        signal.pause()
    if ctypes.CDLL(None, use_errno=True).ptrace(16, pid, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def read_memory_of_the_runner() -> None:
    import ctypes
    import os

    buffer = (ctypes.c_char * 8)()
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
    if ctypes.CDLL(None, use_errno=True).process_vm_readv(1, vector, 1, vector, 1, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def open_the_runners_descriptors() -> None:
    for number in range(64):
        try:
            open(f"/proc/1/fd/{number}", "wb").close()
            return
        except FileNotFoundError:
            continue
    raise PermissionError("none opens")


def take_a_descriptor_of_the_runner() -> None:
    import ctypes
    import os

    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(1)
    if libc.syscall(438, pidfd, 0, 0) < 0:  # pidfd_getfd
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.mark.parametrize(
    "attack",
    [
        trace_the_runner,
        trace_a_child,
        read_memory_of_the_runner,
        open_the_runners_descriptors,
        take_a_descriptor_of_the_runner,
    ],
    ids=lambda each: each.__name__,
)
def test_the_runner_cannot_be_looked_into(own: Sandbox, attack: Callable[[], None]) -> None:
    assert_stopped(inside(own, attack), PermissionError)


def test_another_tasks_pipes_cannot_be_opened(own: Sandbox) -> None:
    """Two tasks of one sandbox belong to one user, and even so neither writes into the other's result."""

    def meddle() -> list[str]:
        import os

        reached = []
        for pid in os.listdir("/proc"):
            if pid.isdigit() and int(pid) not in (1, os.getpid()):
                for what in ("fd/1", "fd/2", "mem", "environ", "cwd"):
                    try:
                        os.stat(f"/proc/{pid}/{what}") if what != "mem" else open(f"/proc/{pid}/mem", "rb").close()
                        with open(f"/proc/{pid}/{what}", "rb"):
                            reached.append(what)
                    except OSError:
                        continue
                reached.append("seen")
        return reached

    reading, writing = os.pipe()
    try:
        with ThreadPoolExecutor(1) as executor:
            other = executor.submit(_wait_for_pipe, own, reading)
            seen: list[str] = []
            while not seen:
                seen = inside(own, meddle).value
            os.write(writing, b"x")
            assert seen == ["seen"]
            result = other.result()
    finally:
        os.close(reading)
        os.close(writing)
    assert (result.value, result.stdout) == ("x", b"")
