"""The application: routes, error envelope, lifetime. `uvicorn --factory api.main:create_app`, or `python -m api`."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI

from api import errors
from api.audit import AuditMiddleware
from api.auth import AuthMiddleware, check_exposure
from api.completions import Waiters
from api.feeds import Feeds
from api.keyring import Keyring
from api.middleware import RequestMiddleware
from api.openapi import describe
from api.poll import PollMiddleware, Polls
from api.prometheus import Metrics
from api.rates import Rates
from api.routes import (
    base_models,
    capabilities,
    chat,
    checkpoints,
    evaluations,
    exports,
    files,
    graders,
    health,
    jobs,
    models,
    organization,
    permissions,
    progress,
    project_secrets,
    queue,
    secrets,
    uploads,
    usage,
    webhook_endpoints,
    webhooks,
)
from api.sandbox import SandboxCheck
from api.streams import Streams
from jobs.context import Context
from jobs.services.sweep import sweep_scratch
from jobs.settings import Settings

_DESCRIPTION = """\
Reinforcement learning and supervised fine-tuning for diffusion language models, as OpenAI's fine-tuning API: the \
`openai` client works with `base_url` set to `/v1` of this service. Extensions live under `rl` and in paths OpenAI's \
API does not have. Every error is an `ErrorEnvelope`.
"""


def create_app(settings: Settings | None = None) -> FastAPI:
    """Make the application. It touches neither disk nor network before its lifespan begins.

    Raises:
        ValueError: the settings would open the service to other machines without a key.
    """
    settings = settings or Settings()
    check_exposure(settings)
    app = _Application(
        title="bgpo",
        version=version("bgpo"),
        description=_DESCRIPTION,
        docs_url=None,  # they load scripts from other sites
        redoc_url=None,
        lifespan=_lifespan,
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.stopping = threading.Event()
    app.state.sandbox = SandboxCheck()
    errors.install(app)
    app.add_middleware(PollMiddleware)
    app.add_middleware(AuditMiddleware)
    app.add_middleware(AuthMiddleware)
    app.add_middleware(RequestMiddleware)  # the last one added is the outermost
    for part in (
        files,
        uploads,
        jobs,
        progress,
        permissions,
        checkpoints,
        evaluations,
        exports,
        graders,
        secrets,
        webhooks,
        webhook_endpoints,
        queue,
        models,
        base_models,
        chat,
        usage,
        organization,
        project_secrets,
        capabilities,
        health,
    ):
        app.include_router(part.router)
    return app


class _Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = describe(self, self.description)
        return self.openapi_schema


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings = app.state.settings
    app.state.context = Context.open(settings)
    sweep_scratch(settings.scratch, time.time() - settings.orphan_age_s)  # no worker need share this machine
    app.state.metrics = Metrics(app.state.context.db)
    app.state.streams = Streams(settings.max_streams)
    app.state.polls = Polls(app.state.context.db)
    app.state.feeds = Feeds(app.state.polls, app.state.stopping)
    app.state.rates = Rates(settings.redis_url.get_secret_value())
    app.state.keyring = Keyring(app.state.context, app.state.rates)
    app.state.waiters = Waiters(app.state.context, app.state.stopping)
    yield
    app.state.waiters.close()
    await app.state.rates.close()
    app.state.polls.close()
    app.state.context.close()
