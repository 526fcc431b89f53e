"""`python -m bgpo.run SPEC.json`: train from a shell, or under a supervisor. A task's specification (`bgpo.task_spec`)
makes it evaluate or export instead.

Records (see `bgpo.records`) go to stdout, to the file descriptor given by `--record-fd`, or to the file or FIFO of
`--record-path`. These flags also make the run supervised: the end of stdin then means that the parent is gone, and the
run checkpoints and exits. Commands (`checkpoint`, `pause`, `cancel`) are read from stdin. Exit codes are
`bgpo.records.ExitCode`; the last record repeats them. Secrets of graders come by `--secret-fd` or the environment, see
`bgpo.secrets`.

Several processes: `accelerate launch -m bgpo.run SPEC.json`, see docs/distributed.md. The main one (RANK 0) does the
talking; the others say only why they fail, on stderr and in a supervised run in an error record.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from bgpo.allocator import keep_freed_memory
from bgpo.errors import BgpoError, OutOfMemory, PeerLost, SpecError
from bgpo.records import ExitCode, RecordWriter, exit_code
from bgpo.secrets import take_secrets
from bgpo.spec import RunSpec
from bgpo.task_spec import EvaluationTask, ExportTask, Spec, parse_spec

if TYPE_CHECKING:
    from bgpo.training.cluster import Cluster
    from bgpo.training.control import Control
    from bgpo.training.reporter import Reporter

_PR_SET_PDEATHSIG = 1


def main(argv: list[str] | None = None) -> int:
    """Run and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bgpo.run", description="Train a diffusion language model.")
    parser.add_argument("spec", help="a JSON file (bgpo.spec.RunSpec, or a task of bgpo.task_spec)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--record-fd", type=int, help="write records here instead of stdout; the run is supervised")
    where.add_argument("--record-path", help="the same by name, for processes of a launcher; it must exist")
    parser.add_argument("--secret-fd", type=int, help="read the secrets of graders here, a JSON object of strings")
    arguments = parser.parse_args(argv)
    supervised = arguments.record_fd is not None or arguments.record_path is not None
    _end_with_launcher()
    records = sys.stdout.fileno() if arguments.record_fd is None else arguments.record_fd
    if arguments.record_path is not None:
        records = os.open(arguments.record_path, os.O_WRONLY | os.O_APPEND)
    writer = RecordWriter(records)
    try:
        status = _run(arguments.spec, arguments.secret_fd, writer, supervised)
        if _is_main():
            writer.end(status)
    except BrokenPipeError:
        # Nobody reads the records any more; there is no one to report to.
        return ExitCode.UNEXPECTED
    return status


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _end_with_launcher() -> None:
    """Under a warden that started a launcher: ask the kernel to end this process with the launcher, which puts its
    processes into sessions of their own and, killed, ends none of them."""
    launcher = os.environ.get("BGPO_LEADER_PID")
    if sys.platform != "linux" or launcher is None or int(launcher) == os.getpid():
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != int(launcher):  # it ended before we asked
        sys.exit("the launcher is gone")


def _run(path: str, secret_fd: int | None, writer: RecordWriter, supervised: bool) -> int:
    try:
        secrets = take_secrets(secret_fd)
        spec = parse_spec(path)
    except SpecError as error:
        if _is_main():
            details = {"code": error.code, "message": error.message, "param": error.param}
            writer.emit("error", phase="loading_model", step=0, **details)
        return ExitCode.BAD_SPEC
    return _work(spec, secrets, writer, supervised)


def _work(spec: Spec, secrets: Mapping[str, str], writer: RecordWriter, supervised: bool) -> int:
    import torch  # after the spec is known to be valid: a bad spec fails in milliseconds

    from bgpo.training.cluster import join_cluster
    from bgpo.training.control import Control
    from bgpo.training.reporter import Reporter

    keep_freed_memory()
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    steps = spec.method.max_steps if isinstance(spec, RunSpec) else 0
    reporter = Reporter(writer, steps) if _is_main() else Reporter(None, steps, errors=writer if supervised else None)
    # A task has nothing to save when it is to stop.
    on_stop = _nothing if isinstance(spec, RunSpec) else _stop_at_once
    control = Control(on_cancel=lambda: writer.end(ExitCode.CANCELLED), on_stop=on_stop)
    control.listen(supervised=supervised, commands=_is_main())
    try:
        cluster = join_cluster(spec.device)
        finished = _finish(spec, reporter, control, supervised, cluster, secrets)
        status = ExitCode.FINISHED if finished else ExitCode.STOPPED
        reporter.close()
        if _is_main():
            writer.end(status)
        _part_from(cluster)
        return status
    except BgpoError as error:
        reporter.error(error.code, error.message, error.param, error.details)
        return exit_code(error)
    except torch.OutOfMemoryError as error:
        reporter.error(OutOfMemory.code, f"{error}; lower the batch size or max_completion_length")
        return ExitCode.OUT_OF_MEMORY
    except BrokenPipeError:
        raise
    except Exception as error:  # the process boundary: whatever it is, the supervisor must hear of it
        reporter.error(BgpoError.code, f"{type(error).__name__}: {error}")
        with suppress(OSError):  # the log's disk may be full
            traceback.print_exc()
        return ExitCode.UNEXPECTED
    finally:
        reporter.close()


def _finish(
    spec: Spec, reporter: Reporter, control: Control, supervised: bool, cluster: Cluster, secrets: Mapping[str, str]
) -> bool:
    """Do the work; False when it was stopped with a checkpoint to resume from."""
    if isinstance(spec, EvaluationTask | ExportTask):
        from bgpo.training.task_run import run_task

        run_task(spec, reporter, secrets)
        return True
    from bgpo.training.loop import Run

    return Run(spec, reporter, control, supervised, cluster, secrets).train()


def _nothing() -> None:
    pass


def _stop_at_once() -> None:
    """From a signal handler too, which may have interrupted the writing of a record: says nothing."""
    os._exit(ExitCode.STOPPED)


def _part_from(cluster: Cluster) -> None:
    """Leave together: a launcher that sees one process end with a status kills those that have something left to do."""
    try:
        cluster.wait()
        cluster.leave()
    except PeerLost as error:  # after the last record: what this process had to do is done
        with suppress(OSError):
            sys.stderr.write(f"{error}\n")


if __name__ == "__main__":
    sys.exit(main())
