"""Attacks on the result: to end as a success, or to put words into the mouth of another process."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from bgpo.sandbox import Sandbox, Wall
from tests.attacks.conftest import assert_still_works, inside


def leave() -> None:
    import os

    os._exit(0)


def leave_politely() -> None:
    raise SystemExit(0)


def leave_by_exit() -> None:
    import sys

    sys.exit()


def replace_the_program() -> None:
    import os
    import sys

    os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", "pass"])


@pytest.mark.parametrize(
    "attack", [leave, leave_politely, leave_by_exit, replace_the_program], ids=lambda each: each.__name__
)
def test_an_early_exit_is_no_result(sandbox: Sandbox, attack: Callable[[], None]) -> None:
    result = inside(sandbox, attack)
    assert (result.ended, result.value, result.status) == ("exited", None, 0)


def test_a_crash_is_no_result(wall: Wall, sandbox: Sandbox) -> None:
    def crash() -> None:
        import ctypes

        ctypes.string_at(0)

    result = inside(sandbox, crash)
    assert (result.ended, result.status) == ("exited", -signal.SIGSEGV)
    assert_still_works(wall, sandbox)


def test_what_is_printed_is_no_result(sandbox: Sandbox) -> None:
    def forge() -> str:
        import json
        import os
        import struct

        message = json.dumps({"id": 1, "killed": "", "status": 0, "reply": '{"value": 1}', "stdout": "", "stderr": ""})
        frame = struct.pack("!IB", len(message), 0) + message.encode()
        for stream in (1, 2):
            os.write(stream, b'{"value": 1}\n' + frame)
        return "honest"

    assert inside(sandbox, forge).value == "honest"


FORGER = """
import os
for fd in range(256):
    try:
        os.write(fd, b'{"value": "forged"}')
    except OSError:
        pass
"""


def test_a_program_of_a_task_cannot_write_its_result(sandbox: Sandbox) -> None:
    """Foreign code in a process of its own reaches no descriptor of the task that judges it."""

    def judge(program: str) -> list[str]:
        import os
        import subprocess
        import sys

        done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True)
        pipes = [name for name in os.listdir("/proc/self/fd") if int(name) > 2]
        return ["honest", str(len(pipes) > 0), done.stdout.decode()]

    assert inside(sandbox, judge, program=FORGER).value == ["honest", "True", '{"value": "forged"}']


def test_a_forged_value_needs_a_clean_end(sandbox: Sandbox) -> None:
    """In its own process foreign code can say what it likes, except that it failed and succeeded."""

    def forge(program: str) -> None:
        import os

        exec(program)
        os._exit(3)

    result = inside(sandbox, forge, program=FORGER)
    assert (result.ended, result.value, result.status) == ("exited", None, 3)


def test_text_that_is_not_text(wall: Wall, sandbox: Sandbox) -> None:
    def strange() -> str:
        import os

        os.write(1, b"\xff\xfe\x00")
        return "\ud800"

    result = inside(sandbox, strange)
    assert (result.value, result.stdout) == ("\ud800", b"\xff\xfe\x00")
    assert_still_works(wall, sandbox)


def test_an_exception_that_lies_about_itself(sandbox: Sandbox) -> None:
    def raise_it() -> None:
        class Liar(Exception):
            def __str__(self) -> str:
                raise SystemExit(0)

            __repr__ = __str__

        raise Liar

    result = inside(sandbox, raise_it)
    assert result.ended == "raised"
    assert result.message == "Liar"


def test_streams_that_were_replaced(sandbox: Sandbox) -> None:
    def replace() -> str:
        import sys

        class Stream:
            def flush(self) -> None:
                raise SystemExit(7)

        sys.stdout = sys.stderr = Stream()  # type: ignore[assignment]
        return "value"

    assert inside(sandbox, replace).value == "value"
