"""What route functions ask for: the context, the caller's project, list parameters."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Request

from api.auth import Project
from jobs.context import Context

__all__ = ["After", "Ctx", "Limit", "Project"]


async def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Ctx = Annotated[Context, Depends(_context)]
After = Annotated[str | None, Query(max_length=64, description="Id of the last object of the page before.")]
Limit = Annotated[int, Query(ge=1, le=100, description="Objects in a page.")]
