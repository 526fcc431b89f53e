"""Sharing a checkpoint with other projects of the organisation: they may read, download and train from it.

`project_id` is the owner's, or None for an administrator, who may share any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sqlalchemy.orm import Session

from jobs.context import Context
from jobs.errors import InvalidRequest, NotFound
from jobs.repositories import checkpoints, permissions, projects
from jobs.services.paging import Page, cut, require_start
from jobs.tables import Checkpoint
from jobs.tenant_tables import CheckpointPermission


def share(
    ctx: Context, organization_id: str, project_id: str | None, reference: str, project_ids: Sequence[str]
) -> list[CheckpointPermission]:
    """Share a checkpoint. Raises NotFound, InvalidRequest for a project that does not exist or is archived."""
    wanted = list(dict.fromkeys(project_ids))
    with ctx.db.transaction() as session:
        checkpoint = _find(session, project_id, reference)
        known = projects.existing(session, organization_id, wanted)
        unknown = next((each for each in wanted if each not in known), None)
        if unknown is not None:
            raise InvalidRequest(f"No such project: {unknown}", "project_ids")
        return permissions.share(session, checkpoint.id, wanted)


def page(
    ctx: Context,
    project_id: str | None,
    reference: str,
    *,
    after: str | None,
    limit: int,
    order: Literal["ascending", "descending"],
    shared_with: str | None,
) -> Page[CheckpointPermission]:
    """Whom a checkpoint is shared with. Raises NotFound, InvalidRequest for an unknown `after`."""
    with ctx.db.read() as session:
        checkpoint_id = _find(session, project_id, reference).id
        start = permissions.get(session, checkpoint_id, after) if after is not None else None
        require_start(after, start)
        found = permissions.page(
            session, checkpoint_id, after=start, limit=limit + 1, order=order, project_id=shared_with
        )
    return cut(found, limit)


def withdraw(ctx: Context, project_id: str | None, reference: str, permission_id: str) -> None:
    """Stop sharing. What was made from the checkpoint stays. Raises NotFound."""
    with ctx.db.transaction() as session:
        checkpoint = _find(session, project_id, reference)
        if not permissions.delete(session, checkpoint.id, permission_id):
            raise NotFound(f"No such permission: {permission_id}", "permission_id")


def _find(session: Session, project_id: str | None, reference: str) -> Checkpoint:
    found = checkpoints.find(session, project_id, reference) if "\x00" not in reference else None
    if found is None:
        raise NotFound(f"No such checkpoint: {reference}", "id")
    return found
