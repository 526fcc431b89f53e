"""`python -m bgpo.run SPEC.json`: train from a shell, or under a supervisor.

Records (see `bgpo.records`) go to stdout, or to the file descriptor given by `--record-fd`; that flag also makes the
run supervised: the end of stdin then means that the parent is gone, and the run checkpoints and exits. Commands
(`checkpoint`, `pause`, `cancel`) are read from stdin. Exit codes are `bgpo.records.ExitCode`.

Several processes: `accelerate launch -m bgpo.run SPEC.json`, see docs/distributed.md. The main one (RANK 0) does the
talking; the others say only on stderr why they fail.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback

from bgpo.allocator import keep_freed_memory
from bgpo.errors import BgpoError, OutOfMemory, SpecError
from bgpo.records import ExitCode, RecordWriter, exit_code
from bgpo.spec import RunSpec, parse_run_spec


def main(argv: list[str] | None = None) -> int:
    """Run and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bgpo.run", description="Train a diffusion language model.")
    parser.add_argument("spec", help="run specification, a JSON file (bgpo.spec.RunSpec)")
    parser.add_argument("--record-fd", type=int, help="write records here instead of stdout; the run is supervised")
    arguments = parser.parse_args(argv)
    supervised = arguments.record_fd is not None
    main_process = os.environ.get("RANK", "0") == "0"
    writer = RecordWriter(arguments.record_fd if supervised else sys.stdout.fileno()) if main_process else None
    try:
        spec = parse_run_spec(arguments.spec)
    except SpecError as error:
        if writer is not None:
            details = {"code": error.code, "message": error.message, "param": error.param}
            writer.emit("error", phase="loading_model", step=0, **details)
        return ExitCode.BAD_SPEC
    try:
        return _train(spec, writer, supervised)
    except BrokenPipeError:
        # Nobody reads the records any more; there is no one to report to.
        return ExitCode.UNEXPECTED


def _train(spec: RunSpec, writer: RecordWriter | None, supervised: bool) -> int:
    import torch  # after the spec is known to be valid: a bad spec fails in milliseconds

    from bgpo.training.cluster import join_cluster
    from bgpo.training.control import Control
    from bgpo.training.loop import Run
    from bgpo.training.reporter import Reporter

    keep_freed_memory()
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    reporter = Reporter(writer, spec.method.max_steps)
    control = Control()
    control.listen(supervised=supervised, commands=writer is not None)
    try:
        cluster = join_cluster(spec.device)
        finished = Run(spec, reporter, control, supervised, cluster).train()
        cluster.leave()
    except BgpoError as error:
        reporter.error(error.code, error.message, error.param)
        return exit_code(error)
    except torch.OutOfMemoryError as error:
        reporter.error(OutOfMemory.code, f"{error}; lower the batch size or max_completion_length")
        return ExitCode.OUT_OF_MEMORY
    except BrokenPipeError:
        raise
    except Exception as error:  # the process boundary: whatever it is, the supervisor must hear of it
        traceback.print_exc()
        reporter.error(BgpoError.code, f"{type(error).__name__}: {error}")
        return ExitCode.UNEXPECTED
    finally:
        reporter.close()
    return ExitCode.FINISHED if finished else ExitCode.STOPPED


if __name__ == "__main__":
    sys.exit(main())
