"""One test of one program, in processes with limits: nothing of it outlives the call.

Each process is a fresh interpreter (`-I -S`: no environment, no user code, the standard library only) in a session of
its own, in an empty temporary folder, under limits on processor time, memory, file size, open files and processes that
it sets before it runs anything. The caller bounds the wall time and kills the whole session. Not covered, and why the
operator has to consent: the network, files that this user may read, signals to this user's processes, and programs that
leave their session on purpose.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bgpo.rewards.children import code_child

_BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv[1]); import code_child; del sys.path[0]; code_child.main(*sys.argv[2:])"
)
_FOLDER = str(Path(code_child.__file__).parent)
MAX_VERDICT = 65_536
_OUT_OF_TIME = (-signal.SIGXCPU, -signal.SIGKILL)


class StartError(RuntimeError):
    """A process could not be started: the machine is at fault, not the program."""


class UnusableTest(ValueError):
    """A test that cannot be run, whatever the program is."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one test: seconds of wall time, and of processor time for each process; bytes of address space."""

    seconds: float
    memory: int


@dataclass(frozen=True, slots=True)
class Case:
    """A test of a whole program: what it reads and what it should write."""

    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a test ended; `message` says why it failed."""

    passed: bool
    message: str = ""
    timed_out: bool = False


def run_case(program: str, case: Case, limits: Limits) -> Outcome:
    """Run a program with an input; it passes with exit status 0 and the output, lines compared word by word.

    Raises:
        StartError: the process could not be started.
    """
    with ExitStack() as stack:
        folder = _folder(stack, program)
        given, out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        given.write(case.input.encode(errors="replace"))
        given.seek(0)
        command = [code_child.SCRIPT, "program.py"]
        process = _start(stack, command, limits, folder, stdin=given, stdout=out, stderr=err)
        status = _wait(process, time.monotonic() + limits.seconds)
        if status is None or status in _OUT_OF_TIME:
            return _out_of_time(limits)
        if status != 0:
            return Outcome(False, f"exit status {status}: {_last_line(err)}")
        out.seek(0)
        printed = out.read(code_child.FILE_BYTES).decode(errors="replace")
    if _words(printed) == _words(case.output):
        return Outcome(True)
    return Outcome(False, f"wrote {printed[:80]!r}, not {case.output[:80]!r}")


def run_assertions(program: str, test: str, entry_point: str, limits: Limits) -> Outcome:
    """Run the source of a test against a program.

    Raises:
        StartError: a process could not be started.
        UnusableTest: the test is not Python, or passes what cannot cross to the program.
    """
    deadline = time.monotonic() + limits.seconds
    with ExitStack() as stack:
        folder = _folder(stack, program)
        to_host, from_host = _pipe(stack), _pipe(stack)
        host_ends = (to_host[0].fileno(), from_host[1].fileno())
        checker_ends = (to_host[1].fileno(), from_host[0].fileno())
        error_file = stack.enter_context(tempfile.TemporaryFile())
        host = _start(stack, [code_child.HOST, *map(str, host_ends), "program.py"], limits, folder, pass_fds=host_ends)
        checker = _start(
            stack,
            [code_child.CHECKER, *map(str, checker_ends)],
            limits,
            folder,
            pass_fds=checker_ends,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=error_file,
        )
        for end in (*to_host, *from_host):  # else neither would see the other's end
            end.close()
        assert checker.stdin is not None
        assert checker.stdout is not None
        with suppress(BrokenPipeError):  # it has ended; what follows says why
            checker.stdin.write(json.dumps([test, entry_point]).encode())
            checker.stdin.close()
        text = _read(checker.stdout, deadline)
        if text is None:
            return _out_of_time(limits)
        if not text:
            status = _wait(checker, deadline)
            if status in _OUT_OF_TIME:
                return _out_of_time(limits)
            raise StartError(f"the checker ended with status {status}: {_last_line(error_file)}")
        verdict = json.loads(text)
        if "no_host" in verdict:
            raise StartError(f"the program's process did not start (status {_wait(host, deadline)})")
        if verdict.get("untestable"):
            raise UnusableTest(verdict["message"])
        if not verdict["passed"] and "has ended" in verdict["message"] and _wait(host, deadline) in _OUT_OF_TIME:
            return _out_of_time(limits)
    return Outcome(verdict["passed"], verdict["message"])


def _folder(stack: ExitStack, program: str) -> Path:
    """A temporary folder with the program."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bgpo-code-", ignore_cleanup_errors=True)))
    (folder / "program.py").write_text(program, encoding="utf-8", errors="replace")
    return folder


def _pipe(stack: ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    """A pipe as files, whose `close` may be called again: the number of a closed descriptor is another thread's."""
    reading, writing = os.pipe()
    return stack.enter_context(open(reading, "rb", 0)), stack.enter_context(open(writing, "wb", 0))


def _start(
    stack: ExitStack,
    arguments: list[str],
    limits: Limits,
    folder: Path,
    *,
    pass_fds: tuple[int, ...] = (),
    stdin: int | IO[Any] = subprocess.DEVNULL,
    stdout: int | IO[Any] = subprocess.DEVNULL,
    stderr: int | IO[Any] = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start a process that is killed, with all of its session, and waited for when the stack closes."""
    role, *rest = arguments
    bounds = [str(max(1, math.ceil(limits.seconds))), str(limits.memory)]
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-X", "utf8", "-c", _BOOTSTRAP, _FOLDER, role, *bounds, *rest],
            cwd=folder,
            env={},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    except OSError as error:
        raise StartError(f"cannot start a process: {error}") from error
    stack.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # not reaped yet, so the id is still its own
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()


def _wait(process: subprocess.Popen[bytes], deadline: float) -> int | None:
    """The exit status of a process, which is not reaped; None when it runs beyond the deadline."""
    descriptor = os.pidfd_open(process.pid)
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return None
    finally:
        os.close(descriptor)
    info = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert info is not None
    return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status


def _read(stream: IO[bytes], deadline: float) -> bytes | None:
    """What a process writes until it closes the stream; None when that takes beyond the deadline."""
    poller = select.poll()
    poller.register(stream, select.POLLIN)
    text = b""
    while poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
        chunk = os.read(stream.fileno(), 4096)
        text += chunk
        if not chunk or len(text) > MAX_VERDICT:
            return text
    return None


def _out_of_time(limits: Limits) -> Outcome:
    return Outcome(False, f"ran longer than {limits.seconds:g} s", timed_out=True)


def _last_line(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 500))
    return file.read().decode(errors="replace").strip().rpartition("\n")[2]


def _words(text: str) -> list[list[str]]:
    """The words of each line; empty lines at the end do not count."""
    return [line.split() for line in text.rstrip().splitlines()]
