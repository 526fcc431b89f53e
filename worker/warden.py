"""Runs one trainer and lets nothing of it outlive its owner.

    python -I -S warden.py FENCE_S GOOD_AT PARENT_PID CONTROL_FD LOCK_FD,... PROGRAM [ARGUMENT...]

    worker -> outer warden -> inner warden -> trainer (a session of its own) -> whatever it starts, wherever it hides

Both wardens are child subreapers: the kernel hands every orphan below them to the inner one, or, when that was killed,
to the outer one. So no double fork, session or cleared environment hides a process from them. They kill everything
below when

- the trainer has exited;
- the worker is gone: the control pipe has ended, or PR_SET_PDEATHSIG fired. That signal also fires when only the
  *thread* that started us ends, so the worker starts us from the thread that supervises;
- the worker's lease was not good for FENCE_S seconds. The worker writes times at which it surely was to the control
  pipe, beginning with GOOD_AT, so neither a frozen worker nor one that cannot reach its database keeps a trainer whose
  job somebody else may claim. The clock is CLOCK_BOOTTIME, which goes on while the machine sleeps;
- they are told to: SIGTERM, SIGINT, SIGHUP, SIGQUIT.

Then they wait until nothing lives and end as the trainer did, by its status or its signal. Two of them, so that either
may be killed with SIGKILL: the other one notices and clears up. The trainer itself dies with the inner one by
PR_SET_PDEATHSIG.

Not covered: SIGKILL to both at once leaves what the trainer started, save processes that set PR_SET_PDEATHSIG
themselves (as `bgpo.run` does under a launcher); the worker finds those that kept their environment (`worker.process`).

Run with `-I -S` and without imports of ours, because it runs before every trainer and must start fast.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence

SIGN = struct.Struct("=d")
"""A sign of life: the time (`now`) at which the lease was surely good."""

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 1, 4, 36
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_LOOK_S = 1.0
_SWEEP_S = 0.005


def now() -> float:
    """Seconds on the clock that the fence is measured with."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def processes() -> Iterator[tuple[int, int, int, bool]]:
    """Process id, parent's id, process group and whether it lives (is no zombie), of all processes."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as stat:
                # The command (field 2) may hold spaces and parentheses; fields count from behind its last parenthesis.
                state, parent, group = stat.read().rpartition(b")")[2].split(maxsplit=3)[:3]
        except OSError:  # ended while we looked
            continue
        yield int(name), int(parent), int(group), state not in (b"Z", b"X")


def descendants(root: int) -> dict[int, int]:
    """The living processes below `root`, parents first, and the process group of each."""
    children: dict[int, list[int]] = {}
    groups = {}
    for pid, parent, group, lives in processes():
        children.setdefault(parent, []).append(pid)
        if lives:
            groups[pid] = group
    found: dict[int, int] = {}
    queue = [root]
    while queue:
        queue = [child for pid in queue for child in children.get(pid, ())]
        found |= {pid: groups[pid] for pid in queue if pid in groups}
    return found


class Warden:
    """One of the two: watches over one child and clears up behind it."""

    def __init__(self, parent: int) -> None:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._told = False
        self._wake, writer = os.pipe()
        for end in (self._wake, writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only to wake up
        for number in _STOP_SIGNALS:
            signal.signal(number, self._tell)
        _die_with(parent, signal.SIGTERM)

    def _tell(self, *_: object) -> None:
        self._told = True

    def guard(self, child: int, control: int | None = None, good_at: float = 0.0, fence_s: float = 0.0) -> int:
        """Watch until the child has ended or must; then kill all that is left. Returns the child's wait status."""
        waiter = select.poll()
        waiter.register(self._wake, select.POLLIN)
        if control is not None:
            waiter.register(control, select.POLLIN)
        while not self._told:
            timeout = _LOOK_S if control is None else min(_LOOK_S, good_at + fence_s - now())
            ready = {fd for fd, _ in waiter.poll(max(0.0, timeout) * 1000)}
            if self._wake in ready:
                os.read(self._wake, 4096)
            if control in ready and control is not None:
                signs = os.read(control, 512 * SIGN.size)
                if not signs:
                    break
                good_at = max([good_at, *(value for (value,) in SIGN.iter_unpack(signs))])
            if control is not None and now() - good_at > fence_s:
                _say(f"the worker gave no sign for {fence_s:g} s: everything is killed")
                break
            status = _reap(child)[0]
            if status is not None:
                return self._sweep(child, status)
        return self._sweep(child, None)

    def _sweep(self, child: int, status: int | None) -> int:
        """Kill until there is nobody left to wait for."""
        while True:
            for pid, group in descendants(os.getpid()).items():
                _kill(os.kill, pid)
                if group != os.getpgrp():  # all at once, and also those that are being forked
                    _kill(os.killpg, group)
            found, left = _reap(child)
            status = status if found is None else found
            if not left:
                return status or 0
            time.sleep(_SWEEP_S)


def main(argv: Sequence[str]) -> None:
    """See the module's docstring."""
    fence_s, good_at, parent, control = float(argv[0]), float(argv[1]), int(argv[2]), int(argv[3])
    locks, command = [int(fd) for fd in argv[4].split(",") if fd], list(argv[5:])
    os.set_inheritable(control, False)
    outer_pid = os.getpid()
    warden = Warden(parent)
    child = os.fork()
    if child == 0:
        warden = Warden(outer_pid)
        child = _start(command)
        for lock in locks:
            _name_holder(lock, child)
        _let_go_of_stdin()
        _end_as(warden.guard(child, control, good_at, fence_s))
    os.close(control)
    _let_go_of_stdin()
    _end_as(warden.guard(child))


def _start(command: list[str]) -> int:
    """Start the trainer and return its process id."""
    parent = os.getpid()
    child = os.fork()
    if child != 0:
        return child
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (*_STOP_SIGNALS, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        _die_with(parent, signal.SIGKILL)
        os.environ["BGPO_LEADER_PID"] = str(os.getpid())
        os.execvp(command[0], command)  # noqa: S606 - no shell is wanted
    except (OSError, ValueError) as error:
        _say(f"{command[0]} cannot be started: {error}")
    finally:
        os._exit(127)


def _kill(kill: Callable[[int, int], None], pid: int) -> None:
    try:
        kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _reap(child: int) -> tuple[int | None, bool]:
    """Wait for all that have ended: the child's wait status if it is among them, and whether any process is left."""
    status = None
    while True:
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status, False
        if pid == 0:
            return status, True
        if pid == child:
            status = ended


def _die_with(parent: int, number: signal.Signals) -> None:
    """Get a signal when the parent ends; a parent that ended before sends none."""
    _prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def _let_go_of_stdin() -> None:
    """So that a trainer's closed stdin is noticed by who writes to it."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def _name_holder(lock: int, pid: int) -> None:
    """Write into a lock file who holds it (see `worker.gpus`); one we may not write to keeps what it says."""
    try:
        os.pwrite(lock, b"%-10d\n" % pid, 0)
    except OSError:
        return


def _say(message: str) -> None:
    try:
        os.write(2, f"warden: {message}\n".encode())
    except OSError:  # the log's disk is full: no reason to stop here
        return


def _end_as(status: int) -> None:
    """End as a process with this wait status did."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        _prctl(_PR_SET_DUMPABLE, 0)  # one core file is enough
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
