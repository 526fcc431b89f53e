"""API keys: making, listing, revoking and rotating them, and telling whose a key in a request is.

A key is shown by the function that makes it and by nothing else. Rotation makes a second key that may do the same and
lets the first one live on for a while, so that clients can be changed one by one.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import structlog
from sqlalchemy.exc import SQLAlchemyError

from jobs import keys as text
from jobs.context import Context
from jobs.db import Database
from jobs.errors import InvalidRequest, NotFound
from jobs.keys import Key
from jobs.repositories import keys, projects
from jobs.repositories.keys import Found
from jobs.scopes import expand
from jobs.services.paging import Page, cut, require_start
from jobs.settings import Settings
from jobs.tenant_tables import AdminKey, ApiKey
from jobs.vault import key_of_home

PEPPER_FILE = "key_pepper"
"""Name of the pepper's file under home, where none is set."""
ENVIRONMENT = "BGPO_ADMIN_KEY"
Order = Literal["asc", "desc"]
Row = TypeVar("Row", ApiKey, AdminKey)
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Made(Generic[Row]):
    """A new key: its row, and the only sight of the key itself."""

    row: Row
    value: str = field(repr=False)


def pepper(settings: Settings) -> bytes:
    """What this installation hashes keys with; made under home on first use where none is set."""
    if settings.key_pepper is not None:
        return base64.b64decode(settings.key_pepper.get_secret_value().split()[0])
    return key_of_home(settings.home, PEPPER_FILE)


def check(database: Database, key: Key, digest: str) -> Found | None:
    """The row of a key if `digest` is its hash, and note that it was used; None when it is not a key of ours."""
    with database.read() as session:
        found = keys.find(session, key.id) if key.kind == "live" else keys.find_admin(session, key.id)
    same = text.is_same(found.digest if found is not None else "0" * len(digest), digest)
    if found is None or not same:
        return None
    if found.used_at is None or found.used_at < found.read_at - keys.USED_EVERY_S:
        _touch(database, found)
    return found


def _touch(database: Database, found: Found) -> None:
    try:
        with database.transaction() as session:
            keys.touch(session, AdminKey if found.project_id is None else ApiKey, found.id)
    except SQLAlchemyError as error:  # no reason to refuse a good key
        _log.warning("key.untouched", key_id=found.id, error=str(error))


def create(
    ctx: Context,
    organization_id: str,
    project_id: str,
    *,
    name: str,
    scopes: Sequence[str],
    expires_in_s: float | None,
    by: str | None,
) -> Made[ApiKey]:
    """Make a key of a project. Raises NotFound, InvalidRequest for an archived project or no scope."""
    granted = expand(scopes)
    if not granted:
        raise InvalidRequest("scopes: name at least one.", "scopes")
    key = text.new_key("live")
    digest = text.digest(pepper(ctx.settings), key)
    with ctx.db.transaction() as session:
        project = projects.get(session, organization_id, project_id)
        if project is None:
            raise NotFound(f"No such project: {project_id}", "project_id")
        if project.archived_at is not None:
            raise InvalidRequest(f"Project {project_id} is archived: it gets no more keys.", "project_id")
        values = {"name": name, "digest": digest, "scopes": granted, "created_by": by}
        row = keys.insert(session, project_id, id=key.id, expires_in_s=expires_in_s, **values)
    return Made(row, key.text)


def page(
    ctx: Context, organization_id: str, project_id: str, *, after: str | None, limit: int, order: Order = "desc"
) -> Page[ApiKey]:
    """Keys of a project that are not revoked. Raises NotFound, InvalidRequest for an unknown `after`."""
    with ctx.db.read() as session:
        if projects.get(session, organization_id, project_id) is None:
            raise NotFound(f"No such project: {project_id}", "project_id")
        start = keys.get(session, project_id, after) if after is not None else None
        require_start(after, start)
        return cut(keys.page(session, project_id, after=start, limit=limit + 1, order=order), limit)


def get(ctx: Context, organization_id: str, project_id: str, key_id: str) -> ApiKey:
    """One key of a project. Raises NotFound."""
    with ctx.db.read() as session:
        known = projects.get(session, organization_id, project_id)
        row = keys.get(session, project_id, key_id) if known is not None else None
    return _not_none(row, key_id)


def revoke(ctx: Context, organization_id: str, project_id: str, key_id: str) -> None:
    """Refuse a key from now on. Raises NotFound."""
    row = get(ctx, organization_id, project_id, key_id)
    with ctx.db.transaction() as session:
        keys.revoke(session, ApiKey, row.id)


def rotate(
    ctx: Context, organization_id: str, project_id: str, key_id: str, *, overlap_s: float, by: str | None
) -> Made[ApiKey]:
    """A new key with the same name and scopes; the old one expires after the overlap. Raises NotFound."""
    key = text.new_key("live")
    digest = text.digest(pepper(ctx.settings), key)
    old = get(ctx, organization_id, project_id, key_id)
    _require_alive(old)
    with ctx.db.transaction() as session:
        values = {"name": old.name, "digest": digest, "scopes": old.scopes, "created_by": by}
        row = keys.insert(session, project_id, id=key.id, expires_in_s=_lifetime(old), **values)
        keys.expire_in(session, ApiKey, old.id, overlap_s)
    return Made(row, key.text)


def create_admin(
    ctx: Context, organization_id: str, *, name: str, expires_in_s: float | None, by: str | None
) -> Made[AdminKey]:
    """Make an administrator's key."""
    return make_admin(ctx.settings, ctx.db, organization_id, name=name, expires_in_s=expires_in_s, by=by)


def make_admin(
    settings: Settings,
    database: Database,
    organization_id: str,
    *,
    name: str,
    expires_in_s: float | None,
    by: str | None,
) -> Made[AdminKey]:
    """`create_admin` without a running service: for the first one."""
    key = text.new_key("admin")
    values = {"name": name, "digest": text.digest(pepper(settings), key), "created_by": by}
    with database.transaction() as session:
        row = keys.insert_admin(session, organization_id, id=key.id, expires_in_s=expires_in_s, **values)
    return Made(row, key.text)


def page_admin(
    ctx: Context, organization_id: str, *, after: str | None, limit: int, order: Order = "desc"
) -> Page[AdminKey]:
    """Administrators' keys that are not revoked. Raises InvalidRequest for an unknown `after`."""
    with ctx.db.read() as session:
        start = keys.get_admin(session, organization_id, after) if after is not None else None
        require_start(after, start)
        return cut(keys.page_admin(session, organization_id, after=start, limit=limit + 1, order=order), limit)


def get_admin(ctx: Context, organization_id: str, key_id: str) -> AdminKey:
    """One administrator's key. Raises NotFound."""
    with ctx.db.read() as session:
        row = keys.get_admin(session, organization_id, key_id)
    return _not_none(row, key_id)


def revoke_admin(ctx: Context, organization_id: str, key_id: str) -> None:
    """Refuse an administrator's key from now on. Raises NotFound."""
    row = get_admin(ctx, organization_id, key_id)
    with ctx.db.transaction() as session:
        keys.revoke(session, AdminKey, row.id)


def rotate_admin(
    ctx: Context, organization_id: str, key_id: str, *, overlap_s: float, by: str | None
) -> Made[AdminKey]:
    """As `rotate`."""
    key = text.new_key("admin")
    old = get_admin(ctx, organization_id, key_id)
    _require_alive(old)
    values = {"name": old.name, "digest": text.digest(pepper(ctx.settings), key), "created_by": by}
    with ctx.db.transaction() as session:
        row = keys.insert_admin(session, organization_id, id=key.id, expires_in_s=_lifetime(old), **values)
        keys.expire_in(session, AdminKey, old.id, overlap_s)
    return Made(row, key.text)


def _lifetime(old: ApiKey | AdminKey) -> float | None:
    """A key that lived for a limited time is followed by one that lives for as long."""
    return None if old.expires_at is None else old.expires_at - old.created_at


def _require_alive(row: ApiKey | AdminKey) -> None:
    if row.revoked_at is not None:
        raise InvalidRequest(f"Key {row.id} is revoked: make a new one.", "key_id", "key_revoked")


def _not_none(row: Row | None, key_id: str) -> Row:
    if row is None:
        raise NotFound(f"No such API key: {key_id}", "key_id")
    return row
