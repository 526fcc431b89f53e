"""/healthz and /readyz, for supervisors and load balancers; no key needed."""

from __future__ import annotations

from typing import Literal

import structlog
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

from api.deps import Ctx
from jobs.context import Context
from jobs.repositories.schema import is_current
from jobs.storage import StorageError

router = APIRouter(tags=["Health"])
_log = structlog.get_logger(__name__)


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether requests can be served, and each part's state."""

    status: Literal["ok", "unavailable"]
    checks: dict[str, Literal["ok", "failed", "outdated"]]


@router.get("/healthz")
def health() -> Health:
    """Whether the process is alive."""
    return Health()


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
def readiness(ctx: Ctx) -> JSONResponse:
    """Whether database, broker and artifact store can be used."""
    checks = {"database": _database(ctx), "broker": _reachable(ctx.doorbell), "artifacts": _reachable(ctx.store)}
    ready = set(checks.values()) == {"ok"}
    body = {"status": "ok" if ready else "unavailable", "checks": checks}
    return JSONResponse(body, 200 if ready else 503)


def _database(ctx: Context) -> str:
    try:
        with ctx.db.read() as session:
            return "ok" if is_current(session) else "outdated"
    except SQLAlchemyError as error:
        _log.warning("readiness.database", error=str(error))
        return "failed"


def _reachable(part: object) -> str:
    try:
        part.check()  # type: ignore[attr-defined]
    except (OSError, StorageError) as error:
        _log.warning("readiness.failed", part=type(part).__name__, error=str(error))
        return "failed"
    return "ok"
