"""Takes chat completions from the database and has them answered, one batch after the other.

A batch whose serving process dies or hangs goes back to the queue, where each of its completions gets one more try,
alone. What was written stays: a second try must come to the same text, or the completion fails, since somebody may have
read the first one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from bgpo.serving.protocol import (
    BatchCommand,
    BlockRecord,
    DoneRecord,
    FailedRecord,
    IdleRecord,
    Record,
    Row,
    ServedModel,
)
from bgpo.spec import RolloutSpec
from jobs.artifacts import ArtifactError, Manifest, StorageError, is_adapter_only
from jobs.context import Context
from jobs.repositories import checkpoints, completions
from jobs.repositories.completions import Claimed
from jobs.repositories.text import clean
from jobs.tables import Checkpoint
from worker.generator.cache import CheckpointCache
from worker.generator.keeper import LEASE_S, Keeper
from worker.generator.serving import Serving
from worker.outages import DATABASE_OUTAGE
from worker.paths import hide, places

_LOOK_S = 0.5
_READ_S = 0.2
_RETRY_S = 1.0
_DRAIN_S = 10.0
_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


class Refused(Exception):
    """The model of a batch cannot be served: code and message for those who asked."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message


class Generator:
    """Runs in the thread that calls `run`, until `stopping` is set."""

    def __init__(self, ctx: Context, generator_id: str, stopping: threading.Event, serving: Serving) -> None:
        self._ctx, self._id, self._stopping, self._serving = ctx, generator_id, stopping, serving
        settings = ctx.settings
        self._cache = CheckpointCache(ctx.store, settings.home / "generator" / "cache", settings.generator_cache_bytes)
        self._keeper = Keeper(ctx, generator_id)
        self._places = places(settings, settings.home / "generator")

    def run(self) -> None:
        """Answer until told to stop; then end everything."""
        listener = self._ctx.bell.listener()
        used_at = time.monotonic()
        self._keeper.start()
        try:
            while not self._stopping.is_set():
                batch = self._claim()
                if batch:
                    self._answer(batch)
                    used_at = time.monotonic()
                    continue
                if self._serving.running and time.monotonic() - used_at > self._ctx.settings.generator_idle_s:
                    self._serving.stop()
                    self._keeper.models = ()
                listener.wait(_LOOK_S)
        finally:
            listener.close()
            self._serving.stop()
            self._cache.close()
            self._keeper.stop()

    def _claim(self) -> list[Claimed]:
        settings = self._ctx.settings
        try:
            with self._ctx.db.transaction() as session:
                return completions.claim(session, self._id, LEASE_S, settings.generator_batch)
        except DATABASE_OUTAGE as error:
            _log.warning("no claim: the database does not answer", error=str(error))
            self._stopping.wait(_RETRY_S)
            return []

    def _answer(self, batch: Sequence[Claimed]) -> None:
        self._keeper.hold([claimed.id for claimed in batch])
        asked = _Batch(batch, self._write)
        try:
            model = self._model(batch[0])
            self._serving.ask(_command(model, batch))
            self._attend(asked)
        except Refused as refused:
            for claimed in batch:
                self._fail(claimed, refused.code, refused.message)
        except Exception:  # process boundary: a request that we stumble over must not be the last one
            _log.exception("answering failed", open=sorted(asked.open))
            self._serving.stop()
            self._hand_back(asked, spend=True)
        finally:
            self._keeper.hold([])

    def _attend(self, batch: _Batch) -> None:
        """Write what the serving process says until the batch is over, one way or another."""
        drained_at: float | None = None
        while True:
            for completion_id in self._keeper.lost & batch.open.keys():
                batch.drop(completion_id)
            for completion_id in batch.take_unwanted():
                self._serving.cancel(completion_id)
            records = self._serving.records(_READ_S)
            for record in records:
                if isinstance(record, IdleRecord):
                    self._keeper.models = record.models
                    return
                batch.heed(record, lambda text: hide(text, self._places))
            if self._stopping.is_set():
                drained_at = drained_at or time.monotonic()
                if not batch.open or time.monotonic() - drained_at > _DRAIN_S:
                    return self._hand_back(batch, spend=False)
            if not records and not self._serving.running:
                _log.warning("the serving process died", open=sorted(batch.open))
                return self._hand_back(batch, spend=True)
            if self._serving.silent_s > self._ctx.settings.generator_stall_s:
                _log.warning("the serving process hangs", open=sorted(batch.open))
                self._serving.stop()
                return self._hand_back(batch, spend=True)

    def _hand_back(self, batch: _Batch, *, spend: bool) -> None:
        for claimed in batch.open.values():
            self._write(partial(completions.hand_back, completion_id=claimed.id, epoch=claimed.epoch, spend=spend))

    def _model(self, claimed: Claimed) -> ServedModel:
        """The claimed completion's model on this machine's disk. Raises Refused."""
        base = self._ctx.catalog.get(claimed.base_model)
        if claimed.checkpoint_id is None:
            if base is None:
                raise Refused("model_not_found", f"The base model '{claimed.base_model}' is not there any more.")
            return ServedModel(key=f"{base.id}@{base.created_at}", path=str(base.path))
        checkpoint = self._ask(lambda session: checkpoints.by_id(session, claimed.checkpoint_id or ""))
        if checkpoint is None:
            raise Refused("model_not_found", "The model's checkpoint was deleted.")
        folder = self._fetch(checkpoint)
        needs_base = is_adapter_only(Manifest.from_json(checkpoint.manifest))
        if needs_base and base is None:
            raise Refused("model_not_found", f"The base model '{claimed.base_model}' is not there any more.")
        return ServedModel(
            key=checkpoint.manifest_sha256, path=str(folder), base=str(base.path) if needs_base and base else None
        )

    def _fetch(self, checkpoint: Checkpoint) -> Path:
        try:
            return self._cache.fetch(checkpoint)
        except ArtifactError as error:
            _log.warning("checkpoint damaged", checkpoint=checkpoint.id, error=error.message)
            self._write(partial(checkpoints.mark_damaged, checkpoint_id=checkpoint.id))
            message = "The files of the model's checkpoint were found missing or altered: use another checkpoint."
            raise Refused("checkpoint_damaged", message) from error
        except StorageError as error:
            _log.warning("the checkpoint cannot be fetched", checkpoint=checkpoint.id, error=error.message)
            raise Refused("model_unavailable", "The model's files cannot be fetched now; try again later.") from error

    def _fail(self, claimed: Claimed, code: str, message: str, param: str | None = None) -> None:
        param = param or ("model" if code in ("model_not_found", "checkpoint_damaged") else None)
        self._write(lambda session: completions.fail(session, claimed.id, claimed.epoch, code, message, param))

    def _ask(self, question: Callable[..., _T]) -> _T:
        while True:
            try:
                with self._ctx.db.read() as session:
                    return question(session)
            except DATABASE_OUTAGE as error:
                _log.warning("waiting for the database", error=str(error))
                time.sleep(_RETRY_S)

    def _write(self, change: Callable[..., _T]) -> _T:
        """Write, again while the database is away. A lease that ends meanwhile makes the write do nothing."""
        while True:
            try:
                with self._ctx.db.transaction() as session:
                    return change(session)
            except DATABASE_OUTAGE as error:
                _log.warning("waiting for the database", error=str(error))
                time.sleep(_RETRY_S)


class _Batch:
    """The completions being answered, and what becomes of each record about them."""

    def __init__(self, batch: Sequence[Claimed], write: Callable[[Callable[..., bool]], bool]) -> None:
        self.open = {claimed.id: claimed for claimed in batch}
        """Those without an end."""
        self._unwanted: list[str] = []
        self._write = write

    def drop(self, completion_id: str) -> None:
        """Nobody wants this one from us any more."""
        if self.open.pop(completion_id, None) is not None:
            self._unwanted.append(completion_id)

    def take_unwanted(self) -> list[str]:
        """Those dropped since the last call, which the serving process is still busy with."""
        taken, self._unwanted = self._unwanted, []
        return taken

    def heed(self, record: Record, shown: Callable[[str], str]) -> None:
        """Write what a record says. `shown` takes paths out of a message."""
        claimed = self.open.get(getattr(record, "id", ""))
        if claimed is None:
            return
        id_, epoch = claimed.id, claimed.epoch
        if isinstance(record, BlockRecord):
            self._block(claimed, record)
        elif isinstance(record, DoneRecord):
            reason, usage = record.finish_reason, (record.prompt_tokens, record.completion_tokens)
            self._write(lambda session: completions.finish(session, id_, epoch, reason, *usage))
            del self.open[id_]
        elif isinstance(record, FailedRecord):
            code, message, param = record.code, shown(record.message), record.param
            self._write(lambda session: completions.fail(session, id_, epoch, code, message, param))
            del self.open[id_]

    def _block(self, claimed: Claimed, record: BlockRecord) -> None:
        id_, epoch = claimed.id, claimed.epoch
        if record.seq >= len(claimed.written):
            if not self._write(lambda session: completions.write_block(session, id_, epoch, record.seq, record.text)):
                self.drop(id_)
        elif clean(record.text) != claimed.written[record.seq]:
            message = "The answer was interrupted and could not be continued where it was."
            self._write(lambda session: completions.fail(session, id_, epoch, "generation_failed", message))
            self.drop(id_)


def _command(model: ServedModel, batch: Sequence[Claimed]) -> BatchCommand:
    rows = [
        Row(
            id=claimed.id,
            messages=claimed.request["messages"],
            max_tokens=claimed.request["max_tokens"],
            stop=claimed.request["stop"],
            seed=claimed.request["seed"],
        )
        for claimed in batch
    ]
    return BatchCommand(model=model, rollout=RolloutSpec.model_validate(batch[0].request["rollout"]), rows=rows)
