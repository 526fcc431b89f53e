"""One trainer process: spawn it apart from the worker, talk to it, stop it for certain.

A warden (`worker.warden`) stands between the worker and the trainer and ends everything the trainer started when the
trainer has exited, the worker is gone, or the lease was not good for too long. The trainer gets an environment built
from an allow-list (no database, Redis or API secrets), records on an inherited pipe, commands on stdin, stdout and
stderr in a log file, the secrets of its graders on a pipe of their own. A job on several accelerators runs under
`accelerate launch`, which passes no descriptors on: then the records come through a FIFO in the working directory, and
the secrets in an environment variable that the trainer deletes (`bgpo.secrets`).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from bgpo.secrets import VARIABLE as SECRETS_VARIABLE
from worker import warden

# What a numerical program needs from its surroundings. Everything else, secrets first, stays here.
_ALLOWED = frozenset(
    {"PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV"}
    | {"BGPO_ALLOW_UNSANDBOXED"}  # the operator's consent, which the trainer's graders ask for
    | {"BGPO_PROCESS_TIMEOUT_S"}  # how long the processes of a run wait for each other
)
_ALLOWED_PREFIXES = ("LC_", "CUDA_", "CUBLAS_", "NVIDIA_", "NCCL_", "GLOO_", "TORCH_", "PYTORCH_", "TRITON_")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
# Of a launcher and its processes, where the operator says nothing else. They are on one machine, so nothing listens
# beyond it; and when one has died the others, which may hang in an exchange with it, are killed after so many seconds.
_GROUP = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "10"}
_MARK = "BGPO_TRAINER_ID"
_FIFO, _LAUNCH = "records.fifo", "launch"
_WARDEN = str(Path(warden.__file__).resolve())
_MAX_LINE = 8 * 2**20


def clean_environment(source: Mapping[str, str], threads: int | None) -> dict[str, str]:
    """The trainer's environment: allow-listed variables of `source`, thread counts, offline model loading."""
    env = {key: value for key, value in source.items() if key in _ALLOWED or key.startswith(_ALLOWED_PREFIXES)}
    env |= {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # Threads that spin while they wait starve the ones they wait for when cores are shared: 10x slower was measured.
    env["OMP_WAIT_POLICY"] = "PASSIVE"
    if threads is not None:
        env |= dict.fromkeys(_THREAD_VARIABLES, str(threads))
    return env


def launched(command: Sequence[str], processes: int, folder: Path) -> list[str]:
    """`command` run by several processes of this machine; `folder` takes the launcher's own files.

    `--multi_gpu` without GPUs as well: accelerate's `--cpu` would start one process, or ask for MPI.
    """
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines=1"]
    options = {"num_processes": processes, "main_process_port": 0, "mixed_precision": "no", "dynamo_backend": "no"}
    return [
        *launch,
        *(f"--{name}={value}" for name, value in options.items()),
        f"--log_dir={folder}",
        "--no_python",
        *command,
    ]


class TrainerProcess:
    """A running trainer. Create, read, signal and reap it from one thread: it dies when that thread ends."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        log_path: Path,
        fence_s: float,
        age: float = 0.0,
        lock_fds: Sequence[int] = (),
        processes: int = 1,
        graders_secrets: Mapping[str, str] | None = None,
    ) -> None:
        """Start `command` with `--record-fd N` appended, or, by several processes, with `--record-path FIFO`.

        Args:
            fence_s: everything is killed when the lease was not good for so many seconds.
            age: seconds since the lease was surely good, as for `keep_alive`.
            lock_fds: descriptors of lock files, held for as long as the trainer or a warden lives.
            processes: above 1 the command runs under `accelerate launch`.
            graders_secrets: values by name; with any, one process has `--secret-fd N` appended as well.
        """
        self.log_path = log_path
        self._mark = f"{_MARK}={secrets.token_hex(8)}"
        self._partial = b""
        env = {**env, **dict([self._mark.split("=")])}
        with ExitStack() as on_failure, ExitStack() as passed_on:
            signs, control = os.pipe()
            passed_on.callback(os.close, signs)
            on_failure.callback(os.close, control)
            os.set_blocking(control, False)  # a warden that is stopped must not stop us
            if processes == 1:
                reader, writer = os.pipe()
                command = [*command, "--record-fd", str(writer)]
            else:
                reader, writer = _open_fifo(cwd / _FIFO)
                command = launched([*command, "--record-path", str(cwd / _FIFO)], processes, cwd / _LAUNCH)
                env = _GROUP | env | {"HF_HOME": str(cwd / _LAUNCH)}  # no accelerate configuration of the user's
            passed_on.callback(os.close, writer)
            on_failure.callback(os.close, reader)
            inherited = [signs, writer, *lock_fds]
            if graders_secrets and processes == 1:
                inherited.append(_fed_pipe(json.dumps(dict(graders_secrets)).encode()))
                passed_on.callback(os.close, inherited[-1])
                command = [*command, "--secret-fd", str(inherited[-1])]
            elif graders_secrets:
                env = {**env, SECRETS_VARIABLE: json.dumps(dict(graders_secrets))}
            begin = [str(number) for number in (fence_s, warden.now() - age, os.getpid(), signs)]
            guard = [sys.executable, "-I", "-S", _WARDEN, *begin, ",".join(map(str, lock_fds))]
            with log_path.open("ab") as log:
                self._popen = subprocess.Popen(
                    [*guard, *command],
                    cwd=cwd,
                    env=env,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=inherited,
                    start_new_session=True,
                )
            on_failure.pop_all()
        if self._popen.stdin is None:  # never: it was asked for above
            raise RuntimeError("the trainer has no stdin")
        self._stdin: IO[bytes] = self._popen.stdin
        self._control: int | None = control
        self._records: int | None = reader

    @property
    def pid(self) -> int:
        """The outer warden's: a signal to it ends the trainer with all it started."""
        return self._popen.pid

    @property
    def records_ended(self) -> bool:
        """Every writer of the records is gone, the wardens included, and all they wrote was read."""
        return self._records is None

    def keep_alive(self, age: float = 0.0) -> None:
        """Tell the warden that the lease is good: it was surely ours `age` seconds ago, and the fence counts from then.

        Call it often, and only while the lease is good. A warden that is gone is no error: `poll` tells.
        """
        if self._control is not None:
            with contextlib.suppress(BrokenPipeError, BlockingIOError):
                os.write(self._control, warden.SIGN.pack(warden.now() - age))

    def read_lines(self, timeout: float) -> list[bytes]:
        """Complete record lines that arrive within `timeout` seconds; returns as soon as there are some."""
        if self._records is None:
            if self._popen.poll() is None:
                time.sleep(timeout)  # nothing to wait on but time
            return []
        if not _ready(self._records, select.POLLIN, timeout):
            return []
        chunk = os.read(self._records, 2**20)
        if not chunk:
            os.close(self._records)
            self._records = None
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        if len(self._partial) > _MAX_LINE:  # a record is never this long: drop it instead of growing without bound
            self._partial = b""
        return [line for line in lines if line]

    def send(self, command: str) -> None:
        """Write one command line to the trainer's stdin; a trainer that is already gone is no error."""
        with contextlib.suppress(BrokenPipeError, ValueError):  # ValueError: closed by an earlier failure
            self._stdin.write(command.encode() + b"\n")
            self._stdin.flush()

    def poll(self) -> int | None:
        """Exit status (negative = signal number), or None while it runs. A launcher's own status is 0 or 1, whatever
        the processes it started ended with; what theirs means is in the EndRecord."""
        return self._popen.poll()

    def members(self) -> list[int]:
        """Ids of the trainer's living processes, all that it started included, the wardens not."""
        return [pid for pid in warden.descendants(self.pid) if not _is_warden(pid)]

    def signal_tree(self, number: signal.Signals) -> None:
        """Send a signal to every process of the trainer."""
        for pid in self.members():
            _send(pid, number)

    def kill_tree(self) -> int:
        """SIGKILL everything, until nothing of it lives; returns the trainer's exit status."""
        pause = 0.01
        while (status := self._popen.poll()) is None or self._left():
            for pid in {*warden.descendants(self.pid), *self._left()}:
                if _is_warden(pid):  # it kills, and it alone knows when the last one is dead
                    _send(pid, signal.SIGCONT)
                    _send(pid, signal.SIGTERM)
                else:
                    _send(pid, signal.SIGKILL)
            time.sleep(pause)
            pause = min(0.5, pause * 1.5)
        return status

    def _left(self) -> list[int]:
        """What can still be found, also when both wardens were killed: processes with our mark in their environment, as
        the wardens have it, and, where the records have not ended, those that could write more of them."""
        if self._records is None or _ready(self._records, 0, 0):
            return _marked(self._mark)
        return _marked(self._mark) or _writers(self._records)

    def close(self) -> None:
        """Release the pipes of an ended trainer."""
        with contextlib.suppress(BrokenPipeError):  # an unsent command: nobody is left to read it
            self._stdin.close()
        for end in (self._records, self._control):
            if end is not None:
                os.close(end)
        self._records = self._control = None

    def log_tail(self, limit: int = 4096) -> str:
        """The end of what the trainer printed, at most `limit` bytes, from a line start where possible."""
        with self.log_path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - limit))
            data = log.read()
        if size > limit and b"\n" in data:
            data = data.split(b"\n", 1)[1]
        return data.decode(errors="replace").strip()


class StopLadder:
    """Stops a trainer with rising force: command, then SIGTERM, then SIGKILL. Call `tick` until it has exited."""

    def __init__(self, trainer: TrainerProcess, command: str, *, grace_s: float, term_grace_s: float) -> None:
        self.command = command
        self._trainer = trainer
        self._steps = [(grace_s, signal.SIGTERM), (grace_s + term_grace_s, signal.SIGKILL)]
        self._start = time.monotonic()
        trainer.send(command)

    def tick(self) -> None:
        """Take the next step when its time has come."""
        while self._steps and time.monotonic() - self._start >= self._steps[0][0]:
            self._trainer.signal_tree(self._steps.pop(0)[1])


def _open_fifo(path: Path) -> tuple[int, int]:
    """Both ends of a new FIFO. Whoever keeps the writing one open decides when the reader can see an end."""
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # does not wait for a writer
    try:
        return reader, os.open(path, os.O_WRONLY)
    except BaseException:
        os.close(reader)
        raise


def _fed_pipe(content: bytes) -> int:
    """The reading end of a pipe with this content; a thread writes, since a pipe may hold less than there is."""
    reader, writer = os.pipe()

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError), open(writer, "wb") as pipe:  # it ended before it read
            pipe.write(content)

    threading.Thread(target=feed, name="secrets", daemon=True).start()
    return reader


def _ready(fd: int, events: int, timeout: float) -> bool:
    """Whether one of the events, or the end of the pipe, is there within `timeout` seconds."""
    poller = select.poll()
    poller.register(fd, events)
    return bool(poller.poll(timeout * 1000))


def _marked(mark: str) -> list[int]:
    """The processes with this entry in their environment."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as environ:
                if mark.encode() in environ.read().split(b"\0"):
                    found.append(int(name))
    return found


def _writers(reader: int) -> list[int]:
    """The other processes that hold the writing end of a pipe."""
    pipe = os.fstat(reader)
    found = []
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # ended or closed while we looked
            if os.path.samestat(path.stat(), pipe) and path.lstat().st_mode & stat.S_IWUSR:
                found.append(int(path.parts[2]))
    return [pid for pid in found if pid != os.getpid()]


def _is_warden(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as cmdline:
            return cmdline.read().split(b"\0")[3:4] == [_WARDEN.encode()]
    except OSError:  # ended while we looked
        return False


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
