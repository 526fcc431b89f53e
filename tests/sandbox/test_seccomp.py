"""The filter, run by an interpreter of its own kind of program; tests/attacks has the kernel run it."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from bgpo.sandbox import seccomp

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, KILL = 0x7FFF0000, 0x80000000
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
# By machine: clone, clone3, socket, prlimit64, personality, ioctl, and read, getpid, openat as ones to be let through.
NUMBERS = {
    "x86_64": {"clone": 56, "clone3": 435, "socket": 41, "prlimit64": 302, "personality": 135, "ioctl": 16},
    "aarch64": {"clone": 220, "clone3": 435, "socket": 198, "prlimit64": 261, "personality": 92, "ioctl": 29},
}
HARMLESS = {"x86_64": (0, 39, 257), "aarch64": (63, 172, 56)}


def verdict(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What a filter says of a call: an interpreter of the few operations that ours uses."""
    data = struct.pack("=iIQ6Q", number, architecture, 0, *(*arguments, *[0] * (6 - len(arguments))))
    code = list(struct.iter_unpack("=HBBI", program))
    place, loaded = 0, 0
    while True:
        operation, yes, no, operand = code[place]
        place += 1
        if operation == 0x06:
            return int(operand)
        if operation == 0x20:
            (loaded,) = struct.unpack_from("=I", data, operand)
            continue
        truth = {0x15: loaded == operand, 0x35: loaded >= operand, 0x45: bool(loaded & operand)}[operation]
        place += yes if truth else no


def refused(number: int) -> int:
    return 0x00050000 | number


@pytest.fixture(params=sorted(ARCHITECTURES))
def machine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_what_is_on_the_list_is_refused(machine: str) -> None:
    program, architecture = seccomp.program(machine), ARCHITECTURES[machine]
    for name, number in seccomp.denied(machine).items():
        assert verdict(program, architecture, number) == refused(errno.EPERM), name
    wanted = {
        "ptrace",
        "process_vm_readv",
        "mount",
        "fsopen",
        "pivot_root",
        "chroot",
        "unshare",
        "setns",
        "keyctl",
        "bpf",
    }
    wanted |= {"perf_event_open", "userfaultfd", "io_uring_setup", "kexec_load", "init_module", "reboot", "pidfd_getfd"}
    assert wanted <= set(seccomp.denied(machine))


def test_everything_else_is_allowed(machine: str) -> None:
    program, architecture = seccomp.program(machine), ARCHITECTURES[machine]
    special = {*seccomp.denied(machine).values(), *NUMBERS[machine].values()}
    assert not special & set(HARMLESS[machine])
    for number in set(range(500)) - special:
        assert verdict(program, architecture, number) == ALLOW, number


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("clone", (17,), ALLOW),  # fork
        ("clone", (0x003D0F00,), ALLOW),  # a thread
        ("clone", (0x10000000 | 17,), refused(errno.EPERM)),
        ("clone", (0x40000000,), refused(errno.EPERM)),
        ("clone", (0x00020000,), refused(errno.EPERM)),
        ("clone3", (0, 0), refused(errno.ENOSYS)),
        ("socket", (1, 1), ALLOW),
        ("socket", (2, 1), refused(errno.EPERM)),
        ("socket", (10, 1), refused(errno.EPERM)),
        ("socket", (16, 3), refused(errno.EPERM)),
        ("socket", ((1 << 32) | 1, 1), ALLOW),  # the kernel reads 32 bits, too
        ("socket", ((1 << 32) | 2, 1), refused(errno.EPERM)),
        ("prlimit64", (0, 7), ALLOW),
        ("prlimit64", (1, 7), refused(errno.EPERM)),
        ("personality", (0xFFFFFFFF,), ALLOW),
        ("personality", (0,), ALLOW),
        ("personality", (0x40000,), refused(errno.EPERM)),
        ("ioctl", (0, 0x5401), ALLOW),
        ("ioctl", (0, 0x5412), refused(errno.EPERM)),
        ("ioctl", (0, 0x541C), refused(errno.EPERM)),
    ],
)
def test_calls_that_depend_on_an_argument(machine: str, name: str, arguments: tuple[int, ...], expected: int) -> None:
    program = seccomp.program(machine)
    assert verdict(program, ARCHITECTURES[machine], NUMBERS[machine][name], *arguments) == expected


def test_other_architectures_are_killed(machine: str) -> None:
    program = seccomp.program(machine)
    for architecture in (0x40000003, 0x40000028, *ARCHITECTURES.values()):
        if architecture != ARCHITECTURES[machine]:
            assert verdict(program, architecture, HARMLESS[machine][0]) == KILL
    if machine == "x86_64":
        assert verdict(program, ARCHITECTURES[machine], 0x40000000 | 1) == KILL


def test_the_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip(f"{HEADERS[machine]} is not there (package linux-libc-dev)")
    text = HEADERS[machine].read_text()
    numbers = {name: int(value) for name, value in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\b", text)}
    newer_than_headers = {"open_tree_attr"}
    for name, number in (seccomp.denied(machine) | NUMBERS[machine]).items():
        assert numbers.get(name) == number or (name not in numbers and name in newer_than_headers), name


def test_an_unknown_machine_has_no_filter() -> None:
    assert not seccomp.supported("riscv64")
    with pytest.raises(KeyError):
        seccomp.program("riscv64")
