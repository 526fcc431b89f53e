"""/healthz, /readyz and /metrics, for supervisors, load balancers and Prometheus; no project's key needed."""

from __future__ import annotations

from typing import Any, Literal

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

from api.auth import require_scraper
from api.deps import Ctx
from api.errors import ErrorEnvelope
from api.prometheus import Metrics
from jobs.context import Context
from jobs.repositories.schema import is_current
from jobs.storage import StorageError

router = APIRouter(tags=["Health"])
_REFUSED: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorEnvelope, "description": "Not the token of the settings."},
    403: {"model": ErrorEnvelope, "description": "There is no such token, and the request is from another machine."},
}
_log = structlog.get_logger(__name__)


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether requests can be served, and each part's state."""

    status: Literal["ok", "unavailable"]
    checks: dict[str, Literal["ok", "failed", "outdated"]]


@router.get("/healthz")
async def health() -> Health:
    """Whether the process is alive. Nothing else is asked, so that an outage elsewhere restarts nobody."""
    return Health()


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
def readiness(ctx: Ctx) -> JSONResponse:
    """Whether database, broker and artifact store can be used."""
    checks = {"database": _database(ctx), "broker": _reachable(ctx.doorbell), "artifacts": _reachable(ctx.store)}
    ready = set(checks.values()) == {"ok"}
    body = {"status": "ok" if ready else "unavailable", "checks": checks}
    return JSONResponse(body, 200 if ready else 503)


@router.get("/metrics", response_class=PlainTextResponse, responses=_REFUSED)
def metrics(request: Request) -> PlainTextResponse:
    """Numbers for Prometheus: requests of this process, and queue, workers and running jobs of the service.

    With `BGPO_METRICS_TOKEN` set it takes that as bearer token; else it answers programs of this machine only.
    """
    require_scraper(request)
    found: Metrics = request.app.state.metrics
    return PlainTextResponse(found.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


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
