"""Making an export of a checkpoint."""

from __future__ import annotations

from sqlalchemy.orm import Session

from jobs.artifacts import Manifest, has_adapter
from jobs.context import Context
from jobs.errors import InvalidRequest
from jobs.kinds import Kind
from jobs.services import scheduling, tuned_models
from jobs.services.jobs import checkpoint as find_checkpoint
from jobs.services.once import Ticket
from jobs.services.submit import repeated, submission, submit
from jobs.services.tasks import enter_queue
from jobs.tables import Job
from jobs.wire.request import Scheduling
from jobs.wire.tasks import ExportCheckpoint


def create(
    ctx: Context,
    project_id: str,
    checkpoint_id: str,
    body: ExportCheckpoint,
    idempotency_key: str | None = None,
    ticket: Ticket | None = None,
) -> Job:
    """Queue the export of a checkpoint, the project's own or shared with it.

    Raises:
        NotFound: no such checkpoint.
        InvalidRequest: it is damaged, or has no adapter to export.
        InsufficientQuota: as many jobs of the project wait as may.
        Conflict: the key was used with another body.
    """
    asked = {"export": checkpoint_id, "body": body.model_dump(mode="json", exclude_unset=True)}
    wanted = submission(project_id, idempotency_key, asked, ticket)
    if (made := repeated(ctx, wanted)) is not None:
        return made
    found = find_checkpoint(ctx, project_id, checkpoint_id)
    with ctx.db.read() as session:
        tuned_models.resolve(ctx, session, project_id, found.id)
    if body.content == "adapter" and not has_adapter(Manifest.from_json(found.manifest)):
        message = f"Checkpoint {checkpoint_id} has no adapter: its job trained all weights. Export it merged."
        raise InvalidRequest(message, "content", "checkpoint_without_adapter")
    where = scheduling.columns(ctx, Scheduling())

    def enter(session: Session) -> Job:
        return enter_queue(
            ctx,
            session,
            Kind.EXPORT,
            wanted,
            found.id,
            seed=0,
            method={},
            recipe={"content": body.content, "dtype": body.dtype},
            total_steps=0,
            request=asked,
            tags=body.metadata or None,
            **where,
        )

    return submit(ctx, wanted, enter)
