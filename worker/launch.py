"""Run a program that dies with whoever started it: `python launch.py PARENT_PID PROGRAM [ARG...]`.

Sets PR_SET_PDEATHSIG and replaces itself by PROGRAM, so a SIGKILLed parent leaves nothing behind. The setting survives
execve. Two traps: the signal also fires when only the *thread* that spawned us ends, so callers spawn from the thread
that waits; and a parent that dies before the prctl sends nothing, hence the getppid check after it.

A separate program rather than Popen's preexec_fn, which can deadlock in a process with threads. It must not import
anything outside the standard library: it runs before every trainer. Processes PROGRAM starts are not covered.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel to SIGKILL this process when its parent's thread ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        sys.exit("the parent process is gone")


def main(argv: list[str]) -> None:
    """`argv` is [parent pid, program, arguments...]."""
    if len(argv) < 2:
        sys.exit("usage: launch.py PARENT_PID PROGRAM [ARG...]")
    if sys.platform == "linux":
        die_with_parent(int(argv[0]))
    os.execvp(argv[1], argv[1:])  # noqa: S606 - replacing ourselves is the point; no shell is wanted


if __name__ == "__main__":
    main(sys.argv[1:])
