"""`python -m bgpo.serve --record-fd N`: answer conversations with models from this machine's disk.

Commands come on stdin, records go to the file descriptor, both as `bgpo.serving.protocol` has them. The end of stdin
means that the parent is gone, and ends the process. One batch at a time; models stay loaded for the next one. Opens no
port and reads no settings: who may ask for what is the parent's business.
"""

from __future__ import annotations

import argparse
import os
import queue
import sys
import threading
import traceback

import torch

from bgpo.allocator import keep_freed_memory
from bgpo.errors import BgpoError, OutOfMemory
from bgpo.serving.batch import answer
from bgpo.serving.models import DTYPES, LoadedModels
from bgpo.serving.protocol import (
    BatchCommand,
    CancelCommand,
    FailedRecord,
    IdleRecord,
    ReadyRecord,
    Record,
    parse_command,
)


class Server:
    """Answers batches one after the other; commands are read in a thread of their own."""

    def __init__(self, record_fd: int, models: LoadedModels) -> None:
        self._fd, self._models = record_fd, models
        self._batches: queue.SimpleQueue[BatchCommand] = queue.SimpleQueue()
        self._cancelled: set[str] = set()

    def run(self) -> None:
        """Serve until the parent is gone."""
        threading.Thread(target=self._listen, name="commands", daemon=True).start()
        self._emit(ReadyRecord())
        while True:
            batch = self._batches.get()
            self._answer(batch)
            self._cancelled -= {row.id for row in batch.rows}
            self._emit(IdleRecord(models=self._models.keys))

    def _answer(self, batch: BatchCommand) -> None:
        told: set[str] = set()

        def emit(record: Record) -> None:
            if record.type in ("done", "failed"):
                told.add(record.id)
            self._emit(record)

        try:
            try:
                answer(self._models.get(batch.model), batch, emit, self._cancelled.__contains__)
            except torch.OutOfMemoryError as error:
                self._models.drop_others(batch.model.key)
                raise OutOfMemory(f"the answers do not fit the device's memory: {error}") from error
        except BrokenPipeError:
            raise
        except BgpoError as error:
            self._fail(batch, told, error.code, error.message)
        except Exception as error:  # the process boundary: the parent must hear of it, and other models still work
            traceback.print_exc()
            self._fail(batch, told, BgpoError.code, f"{type(error).__name__} while answering")

    def _fail(self, batch: BatchCommand, told: set[str], code: str, message: str) -> None:
        for row in batch.rows:
            if row.id not in told:
                self._emit(FailedRecord(id=row.id, code=code, message=message))

    def _emit(self, record: Record) -> None:
        line = record.model_dump_json().encode() + b"\n"
        while line:
            line = line[os.write(self._fd, line) :]

    def _listen(self) -> None:
        status = os.EX_SOFTWARE
        try:
            for line in sys.stdin.buffer:
                command = parse_command(line)
                if isinstance(command, CancelCommand):
                    self._cancelled.add(command.id)
                else:
                    self._batches.put(command)
            status = os.EX_OK
        except ValueError:  # a parent of another version; it sees the end and the log why
            traceback.print_exc()
        finally:
            os._exit(status)  # whatever the main thread computes, nobody waits for it


def main(argv: list[str] | None = None) -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(prog="python -m bgpo.serve", description="Answer conversations.")
    parser.add_argument("--record-fd", type=int, required=True, help="where records go")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", choices=["auto", *DTYPES], help="of the weights in memory")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--max-models", type=int, default=2, help="models that stay loaded")
    parser.add_argument("--max-bytes", type=int, help="bytes of weights that stay loaded")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    models = LoadedModels(arguments.device, arguments.dtype, arguments.max_models, arguments.max_bytes)
    try:
        Server(arguments.record_fd, models).run()
    except BrokenPipeError:  # nobody reads the records any more
        return


if __name__ == "__main__":
    main()
