"""The system calls that nothing in a sandbox may make, as a seccomp filter for bubblewrap.

A deny list, because numerical libraries and the interpreter itself use most of the others: it takes away what reaches
other processes, namespaces, the kernel's configuration and its richest interfaces, where most of its faults are found,
and memory that no limit counts (memfd, System V). A denied call fails with EPERM; clone3 says ENOSYS so that libc falls
back to clone, whose flags a filter can read; calls of another architecture end the process.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Iterator, Mapping

# Names with their numbers on x86_64 and aarch64; None where there is no such call.
_DENIED: Mapping[str, tuple[int | None, int | None]] = {
    # Other processes.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # Namespaces and file systems.
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "sysfs": (139, None),
    "ustat": (136, None),
    "uselib": (134, None),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    # The kernel.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "create_module": (174, None),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "syslog": (103, 116),
    "acct": (163, 89),
    "vhangup": (153, 58),
    "vmsplice": (278, 75),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "_sysctl": (156, None),
    # The clock and the names of the machine.
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    # Memory that neither a process's nor a file system's limit counts.
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
}
_CLONE, _CLONE3, _SOCKET = (56, 220), (435, 435), (41, 198)
_PRLIMIT, _PERSONALITY, _IOCTL = (302, 261), (135, 92), (16, 29)

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32 = 0x40000000
_NEW_NAMESPACES = 0x00000080 | 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_AF_UNIX = 1
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_ASK_PERSONALITY = 0xFFFFFFFF

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24

Instruction = tuple[int, int, int, int]
"""Operation, how many instructions to skip if true and if false, operand."""


def supported(machine: str | None = None) -> bool:
    """Whether there is a filter for this architecture."""
    return (machine or platform.machine()) in _ARCHITECTURES


def program(machine: str | None = None) -> bytes:
    """The filter for an architecture, by default this one's, as the kernel reads it.

    Raises:
        KeyError: there is none.
    """
    column, audit = _ARCHITECTURES[machine or platform.machine()]
    return b"".join(struct.pack("=HBBI", *each) for each in _instructions(column, audit))


def denied(machine: str | None = None) -> dict[str, int]:
    """The calls that fail whatever their arguments, by name."""
    column, _ = _ARCHITECTURES[machine or platform.machine()]
    return {name: number for name, numbers in _DENIED.items() if (number := numbers[column]) is not None}


def _instructions(column: int, audit: int) -> Iterator[Instruction]:
    fail = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    yield (_LOAD, 0, 0, _ARCHITECTURE)
    yield (_EQUAL, 1, 0, audit)
    yield (_RETURN, 0, 0, _KILL)
    yield (_LOAD, 0, 0, _NUMBER)
    if column == 0:
        yield (_AT_LEAST, 0, 1, _X32)
        yield (_RETURN, 0, 0, _KILL)
    for numbers in _DENIED.values():
        number = numbers[column]
        if number is not None:
            yield (_EQUAL, 0, 1, number)
            yield fail
    yield (_EQUAL, 0, 1, _CLONE3[column])
    yield (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)
    # What depends on an argument: each block loads it, decides, and ends.
    for numbers, offset, tests in (
        (_CLONE, _FIRST_ARGUMENT, [(_ANY_BIT, 0, 1, _NEW_NAMESPACES)]),
        (_SOCKET, _FIRST_ARGUMENT, [(_EQUAL, 1, 0, _AF_UNIX)]),
        (_PRLIMIT, _FIRST_ARGUMENT, [(_EQUAL, 1, 0, 0)]),  # of another process
        (_PERSONALITY, _FIRST_ARGUMENT, [(_EQUAL, 2, 0, 0), (_EQUAL, 1, 0, _ASK_PERSONALITY)]),
        (_IOCTL, _SECOND_ARGUMENT, [(_EQUAL, 1, 0, _TIOCSTI), (_EQUAL, 0, 1, _TIOCLINUX)]),  # typing for a terminal
    ):
        yield (_EQUAL, 0, len(tests) + 3, numbers[column])
        yield (_LOAD, 0, 0, offset)
        yield from tests
        yield fail
        yield (_RETURN, 0, 0, _ALLOW)
    yield (_RETURN, 0, 0, _ALLOW)
