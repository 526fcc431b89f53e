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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bgpo.rewards.sandboxes import SharedSandbox
from bgpo.sandbox.sandbox import Result, Sandbox

STARTED = b"started\n"
"""As in `bgpo.sandbox.inside.tasks.code_program`."""
BATCH = 8
"""Assertions that go to the sandboxes together: each needs a socket."""
CHECKER_MODULES = ("tasks.code_check",)
PYTEST_MODULES = ("tasks.code_pytest", "pytest", "unittest", "difflib", "_pytest.skipping", "_pytest.unittest")
PROGRAM_MODULES = ("tasks.code_program",)

_NO_VERDICT = "the test destroys its own result"


class StartError(RuntimeError):
    """A sandbox did not do its part: the machine is at fault, not the program."""


class UnusableTest(ValueError):
    """A test that cannot be run, whatever the program is; `position` among those run together."""

    def __init__(self, message: str, position: int = 0) -> None:
        super().__init__(message)
        self.position = position


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


class Program:
    """A program in a one-shot sandbox. Not for several threads."""

    def __init__(self, sandbox: Sandbox, source: str, entry_point: str, seconds: float) -> None:
        self._sandbox, self._source, self._entry_point, self._seconds = sandbox, source, entry_point, seconds
        self._started = False

    def assertions(self, tests: Sequence[Assertions], checker: SharedSandbox, timeouts: int) -> list[Outcome]:
        """Run at most BATCH tests; those after as many timeouts are left out.

        Raises:
            StartError: a sandbox is at fault.
            UnusableTest: a test is; `position` says which.
            GradeFault: the checker's sandbox does not start.
        """
        arguments = {
            "tests": [test.source for test in tests],
            "entry_point": self._entry_point,
            "seconds": self._seconds,
            "timeouts": timeouts,
        }
        result, lines = self._checked("code_check:assertions", arguments, checker, len(tests))
        outcomes: list[Outcome] = []
        for line in lines[: len(tests)]:
            if line.get("untestable"):
                raise UnusableTest(str(line.get("message")), len(outcomes))
            if line.get("no_host"):
                self._note(False)
                outcomes.append(Outcome(False, "the program has broken its sandbox"))
            elif line.get("timeout"):
                outcomes.append(self._out_of_time())
            else:
                outcomes.append(Outcome(line.get("passed") is True, str(line.get("message"))))
            self._started = True
        if len(outcomes) == len(tests):
            return outcomes
        if result.ended == "returned":
            if not outcomes:
                raise UnusableTest(_NO_VERDICT)
            return outcomes
        if result.ended == "timeout":  # a test that does not let itself be stopped
            return [*outcomes, self._out_of_time()]
        return [*outcomes, self._unchecked(result, len(outcomes))]

    def case(self, case: Case) -> Outcome:
        """Run the program with an input; it passes with exit status 0 and the output, lines compared word by word.

        Raises:
            StartError: the sandbox is at fault.
        """
        reading, writing = os.pipe()
        with open(reading, "rb", 0) as started, open(writing, "wb", 0) as marker:
            os.set_blocking(reading, False)  # a process that the program leaves behind may hold the other end
            stdin = case.input.encode(errors="replace")
            result = self._sandbox.run(
                "code_program:script",
                {"source": self._source},
                fds=(marker.fileno(),),
                stdin=stdin,
                seconds=self._seconds,
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

    def pytest(self, test: PytestFile, checker: SharedSandbox) -> list[Outcome]:
        """Run a test file: an outcome for each of its test functions. Raises as `assertions`."""
        result, lines = self._checked("code_pytest:pytest_file", {"test": test.source}, checker, 1)
        verdict = result.value if isinstance(result.value, dict) else {}
        if verdict.get("no_host"):
            self._note(False)
            return [Outcome(False, "the program has broken its sandbox")]
        self._started = True
        if verdict.get("untestable"):
            raise UnusableTest(str(verdict["untestable"]))
        collected: Any = next((line["collected"] for line in lines if "collected" in line), [])
        names = [str(name) for name in collected] if isinstance(collected, list) else []
        ran = {str(line["test"]): line for line in lines if "test" in line}
        outcomes = [
            Outcome(ran[name].get("passed") is True, str(ran[name].get("message")), name=name)
            for name in names
            if name in ran and not ran[name].get("skipped")
        ]
        missing = [name for name in names if name not in ran]
        if result.ended == "timeout":
            outcomes.append(self._out_of_time(*missing[:1]))
            missing = missing[1:]
        elif result.ended != "returned":
            outcomes.append(self._unchecked(result))
        outcomes += [Outcome(False, "not run", name=name) for name in missing]
        if not outcomes:
            raise UnusableTest("every test function is skipped")
        return outcomes

    def _checked(
        self, task: str, arguments: dict[str, Any], checker: SharedSandbox, count: int
    ) -> tuple[Result, list[dict[str, Any]]]:
        """Run a task of the checker that speaks with the program's host over so many sockets; also what it wrote."""
        sandbox = checker.get()
        pairs = [socket.socketpair() for _ in range(count)]
        ends = [[ours for ours, _ in pairs], [theirs for _, theirs in pairs]]
        seconds = self._seconds * count + 1
        with open(os.memfd_create("results"), "w+b") as file:
            threading.Thread(target=self._host, args=(ends[0], seconds), daemon=True).start()
            fds = (file.fileno(), *(end.fileno() for end in ends[1]))
            result = sandbox.run(task, arguments, fds=fds, seconds=self._seconds if count == 1 else seconds)
            for end in ends[1]:
                end.close()
            file.seek(0)
            return result, _lines(file.read())

    def _host(self, ends: list[socket.socket], seconds: float) -> None:
        """The program's side, beside the checker's; it ends when the checker's sockets close, or with its sandbox."""
        fds = tuple(end.fileno() for end in ends)
        self._sandbox.run("code_program:host", {"source": self._source}, fds=fds, seconds=seconds)
        for end in ends:
            end.close()

    def _unchecked(self, result: Result, position: int = 0) -> Outcome:
        """Of a test that ended the checker's process."""
        if result.ended == "exited":
            raise UnusableTest(f"the test ends its process (status {result.status})", position)
        if result.ended == "memory":
            return Outcome(False, "the values of this test take more than its memory")
        raise StartError(f"the checker's sandbox failed: {result.message or result.ended}")

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
        }
        return Outcome(False, reasons[result.ended])

    def _out_of_time(self, name: str = "") -> Outcome:
        return Outcome(False, f"ran longer than {self._seconds:g} s", timed_out=True, name=name)


def _lines(text: bytes) -> list[dict[str, Any]]:
    """What a checker wrote, as far as it is whole. Raises UnusableTest: a row's test may have written there itself."""
    try:
        lines = [json.loads(line) for line in text.splitlines() if line.endswith(b"}")]
    except (ValueError, RecursionError):
        raise UnusableTest(_NO_VERDICT) from None
    if not all(isinstance(line, dict) for line in lines):
        raise UnusableTest(_NO_VERDICT)
    return lines


def _last_line(text: bytes) -> str:
    return text[-500:].decode(errors="replace").strip().rpartition("\n")[2]


def _words(text: str) -> list[list[str]]:
    """The words of each line; empty lines at the end do not count."""
    return [line.split() for line in text.rstrip().splitlines()]
