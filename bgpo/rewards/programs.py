"""One program against its tests: it runs in a sandbox of its own, what is expected of it stays in another.

Each test has a freshly forked process in both: the program's host, and the checker, which asks the host for plain
values over a socket of their own and compares (`bgpo.sandbox.inside.tasks`). A program that reads standard input runs
alone, and what it wrote is compared here. What breaks the program's sandbox once the program has started is the
program's doing, and fails its tests; before that it is the machine's.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from dataclasses import dataclass
from typing import IO, Any

from bgpo.rewards.sandboxes import SharedSandbox
from bgpo.sandbox.sandbox import Result, Sandbox

STARTED = b"started\n"
"""As in `bgpo.sandbox.inside.tasks.code_program`."""
CHECKER_MODULES = ("tasks.code_check",)
PYTEST_MODULES = ("tasks.code_pytest", "pytest", "unittest", "difflib", "_pytest.skipping", "_pytest.unittest")
PROGRAM_MODULES = ("tasks.code_program",)


class StartError(RuntimeError):
    """A sandbox did not do its part: the machine is at fault, not the program."""


class UnusableTest(ValueError):
    """A test that cannot be run, whatever the program is."""


@dataclass(frozen=True, slots=True)
class Assertions:
    """A test as the source of assertions."""

    source: str


@dataclass(frozen=True, slots=True)
class Case:
    """A test of a whole program: what it reads and what it should write."""

    input: str
    output: str


@dataclass(frozen=True, slots=True)
class PytestFile:
    """A test file for pytest; each of its test functions is a test."""

    source: str


Test = Assertions | Case | PytestFile


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a test ended; `message` says why it failed, `name` is the function's in a pytest file."""

    passed: bool
    message: str = ""
    timed_out: bool = False
    name: str = ""


class _Call:
    """A task of the program's sandbox, run by a thread beside the checker's."""

    def __init__(self, sandbox: Sandbox, source: str, end: socket.socket) -> None:
        self._result: Result | None = None
        self._thread = threading.Thread(target=self._run, args=(sandbox, source, end), daemon=True)
        self._thread.start()

    def _run(self, sandbox: Sandbox, source: str, end: socket.socket) -> None:
        with end:  # our copy: with the host's gone too, the checker sees the end
            self._result = sandbox.run("code_program:host", {"source": source}, fds=(end.fileno(),))

    def result(self) -> Result:
        """Wait for the end of the task, at most its time limit."""
        self._thread.join()
        assert self._result is not None
        return self._result


class Program:
    """A program in a one-shot sandbox. Not for several threads."""

    def __init__(self, sandbox: Sandbox, source: str, entry_point: str, seconds: float) -> None:
        self._sandbox, self._source, self._entry_point, self._seconds = sandbox, source, entry_point, seconds
        self._started = False

    def run(self, test: Test, checker: SharedSandbox) -> list[Outcome]:
        """Run one test: one outcome, or those of the functions of a pytest file.

        Raises:
            StartError: a sandbox is at fault.
            UnusableTest: the test is.
            GradeFault: the checker's sandbox does not start.
        """
        if isinstance(test, Case):
            return [self._case(test)]
        if isinstance(test, PytestFile):
            return self._pytest(test, checker)
        return [self._assertions(test, checker)]

    def _case(self, case: Case) -> Outcome:
        reading, writing = os.pipe()
        with open(reading, "rb", 0) as started, open(writing, "wb", 0) as marker:
            os.set_blocking(reading, False)  # a process that the program leaves behind may hold the other end
            stdin = case.input.encode(errors="replace")
            result = self._sandbox.run(
                "code_program:script", {"source": self._source}, fds=(marker.fileno(),), stdin=stdin
            )
            self._note(started.read(len(STARTED)) == STARTED)
        if result.ended == "raised":
            return Outcome(False, f"exit status 1: {result.message}")
        if result.ended not in ("returned", "exited"):
            return self._failure(result)
        if result.ended == "exited" and result.status != 0:
            return Outcome(False, f"exit status {result.status}: {_last_line(result.stderr)}")
        printed = result.stdout.decode(errors="replace")
        if _words(printed) == _words(case.output):
            return Outcome(True)
        return Outcome(False, f"wrote {printed[:80]!r}, not {case.output[:80]!r}")

    def _assertions(self, test: Assertions, checker: SharedSandbox) -> Outcome:
        arguments = {"test": test.source, "entry_point": self._entry_point}
        result, host = self._checked("code_check:assertions", arguments, checker)
        if result.ended == "timeout":
            return self._out_of_time()
        verdict = self._verdict(result)
        if not verdict:
            return self._failure(host.result())
        message = str(verdict["message"])
        if not verdict["passed"] and "has ended" in message and host.result().ended != "returned":
            return self._failure(host.result())
        return Outcome(bool(verdict["passed"]), message)

    def _pytest(self, test: PytestFile, checker: SharedSandbox) -> list[Outcome]:
        with open(os.memfd_create("results"), "w+b") as file:
            result, host = self._checked("code_pytest:pytest_file", {"test": test.source}, checker, file)
            file.seek(0)
            lines = [json.loads(line) for line in file.read().splitlines() if line.endswith(b"}")]
        if result.ended != "timeout" and not self._verdict(result):
            return [self._failure(host.result())]
        names: list[str] = next((line["collected"] for line in lines if "collected" in line), [])
        ran = {line["test"]: line for line in lines if "test" in line}
        outcomes = [
            Outcome(ran[name]["passed"], ran[name]["message"], name=name)
            for name in names
            if name in ran and not ran[name]["skipped"]
        ]
        missing = [name for name in names if name not in ran]
        if result.ended == "timeout":
            outcomes.append(self._out_of_time(*missing[:1]))
            missing = missing[1:]
        outcomes += [Outcome(False, "not run", name=name) for name in missing]
        if not outcomes:
            raise UnusableTest("every test function is skipped")
        return outcomes

    def _checked(
        self, task: str, arguments: dict[str, Any], checker: SharedSandbox, *files: IO[bytes]
    ) -> tuple[Result, _Call]:
        """Run a task of the checker that speaks with the program's host."""
        sandbox = checker.get()
        ours, theirs = socket.socketpair()
        with theirs:
            host = _Call(self._sandbox, self._source, ours)
            fds = (theirs.fileno(), *(file.fileno() for file in files))
            return sandbox.run(task, arguments, fds=fds), host

    def _verdict(self, result: Result) -> dict[str, Any]:
        """What the checker says; nothing when the program's sandbox was broken by an earlier test."""
        if result.ended == "exited":
            raise UnusableTest(f"the test ends its process (status {result.status})")
        if result.ended == "memory":
            return {"passed": False, "message": "the values of this test take more than its memory"}
        if result.ended != "returned":
            raise StartError(f"the checker's sandbox failed: {result.message or result.ended}")
        verdict: dict[str, Any] = result.value
        if "no_host" in verdict:
            self._note(False)
            return {}
        self._started = True
        if verdict.get("untestable"):
            raise UnusableTest(str(verdict.get("message", verdict["untestable"])))
        return verdict or {"passed": True}

    def _note(self, started: bool) -> None:
        """Remember that the program has run. Raises StartError when it never could."""
        self._started = self._started or started
        if not self._started:
            raise StartError("the program's sandbox did not start it")

    def _failure(self, result: Result) -> Outcome:
        """Why the program's process did not do its part."""
        if result.ended == "timeout":
            return self._out_of_time()
        reasons = {
            "memory": "used more than its memory",
            "output": "wrote more than its limit",
            "lost": "the program has broken its sandbox",
            "exited": f"the program has ended (status {result.status})",
            "raised": result.message,
            "returned": "the program has ended",
        }
        return Outcome(False, reasons[result.ended])

    def _out_of_time(self, name: str = "") -> Outcome:
        return Outcome(False, f"ran longer than {self._seconds:g} s", timed_out=True, name=name)


def _last_line(text: bytes) -> str:
    return text[-500:].decode(errors="replace").strip().rpartition("\n")[2]


def _words(text: str) -> list[list[str]]:
    """The words of each line; empty lines at the end do not count."""
    return [line.split() for line in text.rstrip().splitlines()]
