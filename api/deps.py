"""What route functions ask for: the context, the caller's project, list parameters."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Request

from api.auth import needs
from jobs.context import Context


async def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Ctx = Annotated[Context, Depends(_context)]
ReadsFiles = Annotated[str, needs("files:read")]
"""The caller's project, for keys with this scope; the others alike."""
WritesFiles = Annotated[str, needs("files:write")]
ReadsJobs = Annotated[str, needs("jobs:read")]
WritesJobs = Annotated[str, needs("jobs:write")]
ReadsModels = Annotated[str, needs("models:read")]
WritesModels = Annotated[str, needs("models:write")]
ReadsGraders = Annotated[str, needs("graders:read")]
RunsGraders = Annotated[str, needs("graders:run")]
WritesGraders = Annotated[str, needs("graders:write")]
Infers = Annotated[str, needs("inference")]
After = Annotated[str | None, Query(max_length=64, description="Id of the last object of the page before.")]
Limit = Annotated[int, Query(ge=1, le=100, description="Objects in a page.")]
