"""What a sandbox does for its caller, behind a wall and without; tests/attacks has what it does against a task."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from bgpo.sandbox import Limits, Result, Sandbox, SandboxError, Wall
from bgpo.sandbox.launch import Launch, Unwalled
from tests.sandbox.conftest import LIMITS


def execute(sandbox: Sandbox, body: str, *, seconds: float | None = None, memory: int | None = None) -> Result:
    source = "def task():\n" + "".join(f"    {line}\n" for line in body.splitlines())
    arguments = {"source": source, "function": "task", "arguments": {}}
    return sandbox.run("probe:execute", arguments, seconds=seconds, memory=memory)


def test_arguments_input_and_descriptors_go_in_and_the_value_comes_out(sandbox: Sandbox) -> None:
    reading, writing = os.pipe()
    try:
        result = sandbox.run("probe:echo", {"a": [1, "ü", None]}, stdin=b"text", fds=[reading, writing])
    finally:
        os.close(reading)
        os.close(writing)
    assert (result.ended, result.value, result.status) == ("returned", [{"a": [1, "ü", None]}, "text", 2], 0)


def test_without_input_there_is_nothing_to_read(sandbox: Sandbox) -> None:
    assert sandbox.run("probe:echo", {}).value == [{}, "", 0]


def test_large_input_and_arguments(sandbox: Sandbox) -> None:
    text = "x" * 2**21
    assert sandbox.run("probe:echo", {"text": text}, stdin=text.encode()).value == [{"text": text}, text, 0]


def test_output_is_kept_apart(sandbox: Sandbox) -> None:
    result = execute(sandbox, "import sys\nprint('out')\nprint('err', file=sys.stderr)\nreturn 1.5")
    assert (result.value, result.stdout, result.stderr) == (1.5, b"out\n", b"err\n")


def test_an_exception_comes_with_its_traceback(sandbox: Sandbox) -> None:
    result = execute(sandbox, "print('before')\nreturn {}['missing']")
    assert (result.ended, result.message, result.stdout) == ("raised", "KeyError: 'missing'", b"before\n")
    assert 'File "attack", line 3, in task' in result.traceback


def test_a_value_that_is_no_json_is_an_exception(sandbox: Sandbox) -> None:
    assert execute(sandbox, "return object()").message.startswith("TypeError: Object of type object is not JSON")


@pytest.mark.parametrize(("code", "status"), [("3", 3), ("None", 0), ("'text'", 1), ("256 + 7", 7)])
def test_an_exit_has_the_status_of_the_interpreter(sandbox: Sandbox, code: str, status: int) -> None:
    result = execute(sandbox, f"raise SystemExit({code})")
    assert (result.ended, result.status, result.value) == ("exited", status, None)
    assert result.stderr == (b"text\n" if status == 1 else b"")


def test_a_task_that_does_not_exist(sandbox: Sandbox) -> None:
    assert sandbox.run("probe:missing", {}).ended == "raised"
    assert sandbox.run("missing:echo", {}).ended == "raised"


def test_limits_may_be_lowered_for_a_task_and_not_raised(sandbox: Sandbox) -> None:
    allocate = "return len(bytearray(128 * 2**20))"
    assert execute(sandbox, allocate).value == 128 * 2**20
    assert execute(sandbox, allocate, memory=64 * 2**20).ended == "memory"
    assert execute(sandbox, "return len(bytearray(512 * 2**20))", memory=2**40).ended == "memory"
    assert execute(sandbox, "import time; time.sleep(60)", seconds=0.2).ended == "timeout"


def test_each_task_has_a_process_and_an_empty_folder_of_its_own(sandbox: Sandbox) -> None:
    body = (
        "import os, sys\nassert os.listdir() == []\nopen('file', 'w').close()\n"
        "assert os.environ['TMPDIR'] == os.environ['HOME'] == os.getcwd()\n"
        "assert 'left' not in sys.modules\nsys.modules['left'] = sys\nreturn os.getpid()"
    )
    values = [execute(sandbox, body).value for _ in range(3)]
    assert len(set(values)) == 3
    assert None not in values


def test_tasks_run_side_by_side(sandbox: Sandbox) -> None:
    """Two that can end only together."""
    there, back = os.pipe(), os.pipe()
    body = "import os\ndef task(fds):\n    os.write(fds[1], b'x')\n    return os.read(fds[0], 1).decode()\n"
    try:
        with ThreadPoolExecutor(2) as executor:
            ends = [(there[0], back[1]), (back[0], there[1])]
            futures = [executor.submit(_meet, sandbox, body, pair) for pair in ends]
            assert [future.result().value for future in futures] == ["x", "x"]
    finally:
        for fd in (*there, *back):
            os.close(fd)


def _meet(sandbox: Sandbox, body: str, pair: tuple[int, int]) -> Result:
    """The descriptors' numbers inside are the two lowest above the streams that are no reply."""
    find = (
        "def find():\n    import fcntl\n    found = {}\n"
        "    for fd in sorted(int(name) for name in os.listdir('/proc/self/fd')):\n"
        "        try:\n            flags = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE\n"
        "            if fd > 2 and os.readlink(f'/proc/self/fd/{fd}').startswith('pipe'): found.setdefault(flags, fd)\n"
        "        except OSError: pass\n    return task([found[os.O_RDONLY], found[os.O_WRONLY]])\n"
    )
    arguments = {"source": body + find, "function": "find", "arguments": {}}
    return sandbox.run("probe:execute", arguments, fds=pair)


def test_modules_can_be_loaded_ahead(wall: Wall) -> None:
    body = "import sys\nreturn [name in sys.modules for name in ('sympy', 'antigravity')]"
    with Sandbox(wall, LIMITS, modules=("sympy", "tasks.probe")) as sandbox:
        assert execute(sandbox, body).value == [True, False]
        assert execute(sandbox, "import sympy\nreturn str(sympy.Integer(2) ** 100)").value == str(2**100)


def test_third_party_modules_can_be_imported(sandbox: Sandbox) -> None:
    assert execute(sandbox, "import numpy\nreturn float(numpy.ones((100, 100)).sum())", memory=2**31).value == 10000.0


def test_arguments_that_are_no_json_are_the_callers_mistake(sandbox: Sandbox) -> None:
    with pytest.raises(TypeError):
        sandbox.run("probe:echo", {"value": object()})
    assert sandbox.run("probe:echo", {}).ended == "returned"


_STARTED = """
import os, time
def task():
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.write(int(name), b"x")
            except OSError:
                pass
    time.sleep(60)
"""


def test_a_closed_sandbox_loses_tasks(wall: Wall) -> None:
    sandbox = Sandbox(wall, LIMITS)
    results: list[Result] = []
    reading, writing = os.pipe()
    arguments = {"source": _STARTED, "function": "task", "arguments": {}}
    thread = threading.Thread(target=lambda: results.append(sandbox.run("probe:execute", arguments, fds=[writing])))
    thread.start()
    assert os.read(reading, 1) == b"x"
    sandbox.close()
    thread.join()
    os.close(reading)
    os.close(writing)
    assert results[0].ended == "lost"
    assert not sandbox.alive
    assert sandbox.run("probe:echo", {}).ended == "lost"
    sandbox.close()  # again is fine


def test_a_module_that_cannot_be_loaded_is_told(wall: Wall) -> None:
    with pytest.raises(SandboxError, match="No module named 'missing_module'"):
        Sandbox(wall, LIMITS, modules=("missing_module",))


class Broken:
    """A wall whose program fails as bubblewrap does."""

    name, contained = "broken", True

    def __init__(self, command: list[str]) -> None:
        self._command = command

    def launch(self, limits: Limits) -> AbstractContextManager[Launch]:
        return nullcontext(Launch(self._command, "/nowhere", []))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["/bin/sh", "-c", "echo 'bwrap: No permissions to create new namespace' >&2; exit 1"], "No permissions"),
        (["/nowhere/bwrap"], "/nowhere/bwrap"),
        (["/bin/true"], "ended"),
    ],
)
def test_why_it_does_not_start_is_told(command: list[str], words: str) -> None:
    with pytest.raises(SandboxError, match=words) as caught:
        Sandbox(Broken(command), LIMITS)
    assert caught.value.code == "sandbox_unavailable"


def test_nothing_stays_open(wall: Wall) -> None:
    Sandbox(wall, LIMITS).close()
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with Sandbox(wall, LIMITS) as sandbox:
            assert sandbox.run("probe:echo", {}, stdin=b"x").ended == "returned"
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert not [thread for thread in threading.enumerate() if thread.name == "sandbox"]


def test_a_plain_process_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Sandbox(Unwalled(), LIMITS) as sandbox:
        assert execute(sandbox, "open('file', 'w').close()").ended == "returned"
        assert [path.name for path in tmp_path.glob("*/*")] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["seconds", "memory", "disk", "processes", "output"])
def test_limits_are_above_zero(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Limits(**{name: 0})
