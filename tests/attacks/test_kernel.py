"""Attacks on the kernel's interfaces: namespaces, mounts, keys, and every call that the filter denies."""

from __future__ import annotations

import errno
import platform
import signal
from collections.abc import Callable

import pytest

from bgpo.sandbox import Sandbox, seccomp
from tests.attacks.conftest import assert_stopped, inside


def call(number: int, arguments: list[int]) -> int:
    """The error number of a system call, 0 for success."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(each) for each in arguments))
    return ctypes.get_errno() if result == -1 else 0


@pytest.mark.parametrize("name", sorted(seccomp.denied()) if seccomp.supported() else [])
def test_a_denied_call_fails(sandbox: Sandbox, name: str) -> None:
    result = inside(sandbox, call, number=seccomp.denied()[name], arguments=[0] * 6)
    assert result.value == errno.EPERM, result


NAMESPACES = {
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "mount": 0x00020000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
    "time": 0x00000080,
}


@pytest.mark.parametrize("name", NAMESPACES)
def test_no_namespace_by_unshare(sandbox: Sandbox, name: str) -> None:
    def unshare(flags: int) -> None:
        import ctypes
        import os

        if ctypes.CDLL(None, use_errno=True).unshare(flags) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    assert_stopped(inside(sandbox, unshare, flags=NAMESPACES[name]), PermissionError)


@pytest.mark.parametrize("name", NAMESPACES)
def test_no_namespace_by_clone(sandbox: Sandbox, name: str) -> None:
    number = {"x86_64": 56, "aarch64": 220}[platform.machine()]
    arguments = [NAMESPACES[name] | signal.SIGCHLD, 0, 0, 0, 0]
    assert inside(sandbox, call, number=number, arguments=arguments).value == errno.EPERM


def test_clone3_is_not_there(sandbox: Sandbox) -> None:
    """Its flags lie in memory, where a filter cannot look; libc then takes clone, and threads work."""
    assert inside(sandbox, call, number=435, arguments=[0, 0]).value == errno.ENOSYS

    def thread() -> str:
        import threading

        said: list[str] = []
        one = threading.Thread(target=said.append, args=("hello",))
        one.start()
        one.join()
        return said[0]

    assert inside(sandbox, thread).value == "hello"


def join_a_namespace() -> None:
    import ctypes
    import os

    fd = os.open("/proc/self/ns/user", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(fd, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def mount() -> None:
    import ctypes
    import os

    if ctypes.CDLL(None, use_errno=True).mount(b"proc", b"/tmp", b"proc", 0, None) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def bind() -> None:
    import ctypes
    import os

    if ctypes.CDLL(None, use_errno=True).mount(b"/usr/lib", b"/tmp", None, 4096, None) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def remount_writable() -> None:
    import ctypes
    import os

    if ctypes.CDLL(None, use_errno=True).mount(None, b"/", None, 32 | 4096, None) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def unmount() -> None:
    import ctypes
    import os

    if ctypes.CDLL(None, use_errno=True).umount2(b"/tmp", 2) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def change_root() -> None:
    import os

    os.chroot("/tmp")


def become_group() -> None:
    import os

    os.setgroups([0])


def rename_the_machine() -> None:
    import socket

    socket.sethostname("mine")


def set_the_clock() -> None:
    import time

    time.clock_settime(time.CLOCK_REALTIME, 0)


def raise_priority() -> None:
    import os

    os.nice(-5)


def real_time() -> None:
    import os

    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


@pytest.mark.parametrize(
    "attack",
    [
        join_a_namespace,
        mount,
        bind,
        remount_writable,
        unmount,
        change_root,
        become_group,
        rename_the_machine,
        set_the_clock,
        raise_priority,
        real_time,
    ],
    ids=lambda each: each.__name__,
)
def test_what_needs_privileges_fails(sandbox: Sandbox, attack: Callable[[], None]) -> None:
    assert_stopped(inside(sandbox, attack), PermissionError)


def test_root_is_nobody_here(sandbox: Sandbox) -> None:
    """User 0 has no number in the namespace, so there is none to become."""

    def become_root() -> None:
        import os

        os.setuid(0)

    assert_stopped(inside(sandbox, become_root), OSError, PermissionError)


@pytest.mark.parametrize("persona", [0x0040000, 0x0008])
def test_no_other_personality(sandbox: Sandbox, persona: int) -> None:
    """Addresses that are not random (ADDR_NO_RANDOMIZE), and 32-bit Linux."""
    number = {"x86_64": 135, "aarch64": 92}[platform.machine()]
    assert inside(sandbox, call, number=number, arguments=[persona]).value == errno.EPERM


@pytest.mark.parametrize("request_number", [0x5412, 0x541C])
def test_nothing_is_typed_for_a_terminal(sandbox: Sandbox, request_number: int) -> None:
    number = {"x86_64": 16, "aarch64": 29}[platform.machine()]
    assert inside(sandbox, call, number=number, arguments=[0, request_number, 0]).value == errno.EPERM


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these ways into the kernel exist on x86_64 only")
def test_calls_of_the_x32_architecture_end_the_process(sandbox: Sandbox) -> None:
    result = inside(sandbox, call, number=0x40000000 | 39, arguments=[])
    assert (result.ended, result.status) == ("exited", -signal.SIGSYS)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these ways into the kernel exist on x86_64 only")
def test_calls_of_the_32_bit_architecture_end_the_process(sandbox: Sandbox) -> None:
    """Their numbers mean other calls: 26 would be ptrace, which the filter knows as 101."""

    def interrupt() -> int:
        import ctypes
        import mmap

        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
        address = ctypes.addressof(ctypes.c_char.from_buffer(code))
        return ctypes.CFUNCTYPE(ctypes.c_int)(address)()

    result = inside(sandbox, interrupt)
    assert (result.ended, result.status) in {("exited", -signal.SIGSYS), ("exited", -signal.SIGSEGV)}, result


def test_the_filter_cannot_be_taken_off(sandbox: Sandbox) -> None:
    def try_to() -> list[str]:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(22, 0, 0, 0, 0)  # PR_SET_SECCOMP, disabled
        libc.prctl(38, 0, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        with open("/proc/self/status") as file:
            return [line.strip() for line in file if line.startswith(("Seccomp:", "NoNewPrivs:"))]

    assert inside(sandbox, try_to).value == ["NoNewPrivs:\t1", "Seccomp:\t2"]
