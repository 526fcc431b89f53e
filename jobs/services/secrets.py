"""A project's secrets: set, listed by name, deleted. No function here gives a value back."""

from __future__ import annotations

import re
from collections.abc import Sequence

import structlog
from sqlalchemy.orm import Session

from bgpo.errors import SpecError
from bgpo.rewards import parse_grader_spec
from jobs.context import Context
from jobs.errors import InvalidRequest, MissingSecret, NotFound
from jobs.repositories import secrets
from jobs.services.grading import needed, vault
from jobs.tables import Secret
from jobs.wire.graders import StoreSecret

MAX_SECRETS = 100
"""Of a project."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_log = structlog.get_logger(__name__)


def put(ctx: Context, project_id: str, body: StoreSecret) -> Secret:
    """Create a secret or replace its value.

    Raises:
        InvalidRequest: this installation has no key, or the project has as many secrets as it may.
    """
    sealed = vault(ctx.settings).seal(project_id, body.name, body.value.get_secret_value())
    with ctx.db.transaction() as session:
        stored = secrets.put(session, project_id, body.name, sealed)
        if secrets.count(session, project_id) > MAX_SECRETS:
            raise InvalidRequest(f"A project has at most {MAX_SECRETS} secrets: delete one first.", "name")
    _log.info("secret set", project_id=project_id, name=body.name)
    return stored


def list_all(ctx: Context, project_id: str) -> Sequence[Secret]:
    """All of them by name."""
    with ctx.db.read() as session:
        return secrets.all_of(session, project_id)


def delete(ctx: Context, project_id: str, name: str) -> None:
    """Delete a secret. Raises NotFound, and InvalidRequest while an unfinished job needs it."""
    missing = NotFound(f"No such secret: {name[:64]}", "name")
    if _NAME.fullmatch(name) is None:
        raise missing
    with ctx.db.transaction() as session:
        if not secrets.delete(session, project_id, name):
            raise missing
        for job_id, recipe in secrets.recipes_in_use(session, project_id):
            if name in _named(recipe):
                raise InvalidRequest(
                    f"Secret {name} is needed by the unfinished job {job_id}: cancel that first, or set another value.",
                    "name",
                    "secret_in_use",
                )
    _log.info("secret deleted", project_id=project_id, name=name)


def hold(session: Session, project_id: str, recipe: dict[str, object]) -> None:
    """Nobody may delete what a job needs before its row exists; until the end of the transaction.

    Raises:
        MissingSecret: one of them is gone already.
    """
    named = _named(recipe)
    found = {row.name for row in secrets.all_of(session, project_id, list(named), lock=True)} if named else set()
    for name in sorted(named - found):
        raise MissingSecret(f"There is no secret {name}: store it with POST /v1/fine_tuning/secrets.", "method")


def _named(recipe: dict[str, object]) -> frozenset[str]:
    method = recipe.get("method")
    grader = method.get("grader") if isinstance(method, dict) else None
    if grader is None:
        return frozenset()
    try:
        return frozenset(needed(parse_grader_spec(grader)))
    except SpecError:  # of a version of this program with other graders: its worker will say so
        return frozenset()
