"""Attacks on memory, disk, processor, processes and output: each ends alone, and the service goes on."""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bgpo.sandbox import Limits, Sandbox, Wall
from tests.attacks.conftest import LIMITS, assert_still_works, inside

MIB = 2**20


@pytest.fixture
def own(wall: Wall) -> Iterator[Sandbox]:
    """A sandbox that the attack may end."""
    with Sandbox(wall, LIMITS) as sandbox:
        yield sandbox


def fork_bomb() -> None:
    import os

    while True:
        try:
            os.fork()
        except OSError:
            pass


def fork_tree_of_sessions() -> None:
    import os

    while True:
        try:
            if os.fork() == 0:
                os.setsid()
        except OSError:
            pass


@pytest.mark.parametrize("bomb", [fork_bomb, fork_tree_of_sessions], ids=lambda each: each.__name__)
def test_a_fork_bomb(wall: Wall, own: Sandbox, bomb: Callable[[], None]) -> None:
    assert inside(own, bomb, seconds=1).ended == "timeout"
    assert_still_works(wall, own)


def test_processes_are_counted(own: Sandbox) -> None:
    def count() -> int:
        import os
        import signal

        children: list[int] = []
        try:
            while True:
                pid = os.fork()
                if pid == 0:
                    signal.pause()
                children.append(pid)
        except BlockingIOError:
            return len(children)

    assert 1 <= inside(own, count).value < LIMITS.processes


def test_a_thread_bomb(wall: Wall, own: Sandbox) -> None:
    def threads() -> int:
        import threading

        threading.stack_size(2**16)
        started = 0
        try:
            while True:
                threading.Thread(target=threading.Event().wait, daemon=True).start()
                started += 1
        except RuntimeError:
            return started

    assert 1 <= inside(own, threads).value < LIMITS.processes
    assert_still_works(wall, own)


def all_processes() -> None:
    import os
    import signal

    while True:
        try:
            if os.fork() == 0:
                signal.pause()
        except BlockingIOError:
            break
    tell_and_wait()


def all_files() -> None:
    try:
        for number in range(10_000):
            with open(f"large-{number}", "wb", buffering=0) as file:
                file.write(bytes(2**18))
    except OSError:
        pass
    tell_and_wait()


def tell_and_wait() -> None:
    import os
    import signal

    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.write(int(name), b"x")
            except OSError:
                pass
    signal.pause()


@pytest.mark.parametrize("attack", [all_processes, all_files], ids=lambda each: each.__name__)
def test_a_neighbour_that_has_taken_everything(wall: Wall, own: Sandbox, attack: Callable[[], None]) -> None:
    """A task of the same sandbox may not start then; it is told so, and the sandbox goes on."""
    source = inspect.getsource(attack) + inspect.getsource(tell_and_wait)
    arguments = {"source": source, "function": attack.__name__, "arguments": {}}
    reading, writing = os.pipe()
    try:
        with ThreadPoolExecutor(1) as executor:
            hog = executor.submit(own.run, "probe:execute", arguments, seconds=3, fds=[writing])
            assert os.read(reading, 1) == b"x"
            result = own.run("probe:echo", {})
            assert result.ended in ("lost", "returned"), result
            assert own.alive
            assert hog.result().ended == "timeout"
    finally:
        os.close(reading)
        os.close(writing)
    assert_still_works(wall, own)


def test_memory_of_one_process(wall: Wall, own: Sandbox) -> None:
    def allocate() -> None:
        held = []
        while True:
            held.append(bytearray(2**20))

    assert inside(own, allocate).ended == "memory"
    assert_still_works(wall, own)


def test_memory_mapped_directly(wall: Wall, own: Sandbox) -> None:
    def mapped() -> None:
        import mmap

        held = []
        while True:
            held.append(mmap.mmap(-1, 2**24))
            for page in range(0, 2**24, 4096):
                held[-1][page] = 1

    result = inside(own, mapped)
    assert result.ended == "memory" or "Cannot allocate memory" in result.message, result
    assert_still_works(wall, own)


def test_memory_of_many_processes(wall: Wall, own: Sandbox) -> None:
    def together(each: int) -> None:
        import os
        import signal

        for _ in range(8):
            if os.fork() == 0:
                held = bytearray(each)
                held[::4096] = b"x" * len(range(0, each, 4096))
                signal.pause()
        signal.pause()

    # Each stays below the limit of a process; together they have four times what a task may.
    result = inside(own, together, each=LIMITS.memory // 2)
    assert result.ended == "memory", result
    assert not own.alive
    assert_still_works(wall)


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm", "."])
def test_one_large_file(wall: Wall, own: Sandbox, folder: str) -> None:
    def fill(path: str) -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with open(path, "wb", buffering=0) as file:
            while True:
                file.write(bytes(2**20))

    result = inside(own, fill, path=f"{folder}/large")
    assert result.ended == "raised", result
    assert "File too large" in result.message or "No space left" in result.message
    assert_still_works(wall, own)


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])
def test_many_large_files(wall: Wall, own: Sandbox, folder: str) -> None:
    def fill(folder: str) -> None:
        for number in range(1000):
            with open(f"{folder}/large-{number}", "wb", buffering=0) as file:
                file.write(bytes(2**20))

    result = inside(own, fill, folder=folder)
    assert result.ended == "raised", result
    assert "No space left" in result.message
    assert_still_works(wall, own)


def test_files_that_have_no_name_any_more(wall: Wall, own: Sandbox) -> None:
    def fill() -> None:
        import os

        held = []
        for number in range(200):
            held.append(open(str(number), "wb", buffering=0))  # noqa: SIM115
            os.unlink(str(number))
            held[-1].write(bytes(2**20))

    result = inside(own, fill)
    assert "No space left" in result.message, result
    assert_still_works(wall, own)


def test_empty_files_without_end(wall: Wall, own: Sandbox) -> None:
    def fill() -> None:
        number = 0
        while True:
            open(str(number), "w").close()
            number += 1

    result = inside(own, fill)
    assert (result.ended, result.message) == ("memory", "too many files")
    assert_still_works(wall, own)


def test_open_files_without_end(wall: Wall, own: Sandbox) -> None:
    def hold() -> None:
        held = []
        while True:
            held.append(open("/dev/null"))  # noqa: SIM115

    result = inside(own, hold)
    assert "Too many open files" in result.message, result
    assert_still_works(wall, own)


def memory_file() -> None:
    import os

    os.memfd_create("hidden")


def shared_memory_of_the_kernel() -> None:
    import ctypes
    import os

    if ctypes.CDLL(None, use_errno=True).shmget(0, 2**20, 0o1600) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.mark.parametrize("attack", [memory_file, shared_memory_of_the_kernel], ids=lambda each: each.__name__)
def test_memory_that_nobody_counts(own: Sandbox, attack: Callable[[], None]) -> None:
    result = inside(own, attack)
    assert result.message.startswith("PermissionError"), result


@pytest.mark.parametrize("stream", [1, 2])
def test_a_flood_of_output(wall: Wall, own: Sandbox, stream: int) -> None:
    def flood(stream: int) -> None:
        import os

        while True:
            os.write(stream, b"x" * 65536)

    result = inside(own, flood, stream=stream)
    assert result.ended == "output"
    assert len(result.stdout + result.stderr) <= LIMITS.output
    assert_still_works(wall, own)


def test_a_flood_of_output_after_the_task(wall: Wall, own: Sandbox) -> None:
    def flood() -> str:
        import os

        if os.fork() == 0:
            os.setsid()
            while True:
                os.write(1, b"x" * 65536)
        return "done"

    result = inside(own, flood)
    assert result.ended in ("returned", "output")
    assert len(result.stdout) <= LIMITS.output
    assert_still_works(wall, own)


def test_a_value_without_end(wall: Wall, own: Sandbox) -> None:
    def value() -> str:
        return "x" * 2**26

    assert inside(own, value).ended == "output"
    assert_still_works(wall, own)


def deep_value() -> Any:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


def deep_text() -> None:
    import os

    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.write(int(name), b'{"value": ' + b"[" * 200_000)
            except OSError:
                pass
    os._exit(0)


def endless_number() -> None:
    import os

    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.write(int(name), b'{"value": ' + b"9" * 50_000 + b"}")
            except OSError:
                pass
    os._exit(0)


@pytest.mark.parametrize("attack", [deep_value, deep_text, endless_number], ids=lambda each: each.__name__)
def test_a_value_that_chokes_its_reader(wall: Wall, own: Sandbox, attack: Callable[[], Any]) -> None:
    assert inside(own, attack).ended in ("raised", "exited")
    assert_still_works(wall, own)


def endless_loop() -> None:
    while True:
        pass


def endless_sleep() -> None:
    import time

    time.sleep(3600)


def deaf_sleep() -> None:
    import signal
    import time

    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(number, signal.SIG_IGN)
        except OSError:
            pass
    while True:
        time.sleep(1)


def stopped() -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGSTOP)


def endless_regular_expression() -> None:
    import re

    re.match(r"(a+)+$", "a" * 60 + "b")


def endless_exit_handler() -> None:
    import atexit
    import threading
    import time

    atexit.register(time.sleep, 3600)
    threading.Thread(target=time.sleep, args=(3600,)).start()
    time.sleep(3600)


@pytest.mark.parametrize(
    "attack",
    [endless_loop, endless_sleep, deaf_sleep, stopped, endless_regular_expression, endless_exit_handler],
    ids=lambda each: each.__name__,
)
def test_a_task_that_does_not_end(wall: Wall, own: Sandbox, attack: Callable[[], None]) -> None:
    assert inside(own, attack, seconds=0.5).ended == "timeout"
    assert_still_works(wall, own)


def test_processor_time_of_hidden_children(wall: Wall) -> None:
    """A process that only lives on its children's time has no more of it than wall time for all."""

    def spin() -> None:
        import os

        os.fork()
        os.fork()
        while True:
            pass

    with Sandbox(wall, Limits(seconds=1, memory=64 * MIB, disk=MIB, processes=8)) as sandbox:
        result = inside(sandbox, spin)
        assert result.ended == "timeout" or result.status == -signal.SIGXCPU
        assert_still_works(wall, sandbox)
