"""Projects and their limits, for administrators."""

from __future__ import annotations

from jobs.context import Context
from jobs.errors import InvalidRequest, NotFound
from jobs.limits import ProjectLimits
from jobs.repositories import projects
from jobs.services.paging import Page, cut, require_start
from jobs.tenant_tables import DEFAULT_PROJECT, Project


def create(ctx: Context, organization_id: str, name: str) -> Project:
    """Make a project."""
    with ctx.db.transaction() as session:
        return projects.insert(session, organization_id, name)


def page(ctx: Context, organization_id: str, *, after: str | None, limit: int, include_archived: bool) -> Page[Project]:
    """Projects, newest first. Raises InvalidRequest for an unknown `after`."""
    with ctx.db.read() as session:
        start = projects.get(session, organization_id, after) if after is not None else None
        require_start(after, start)
        found = projects.page(session, organization_id, after=start, limit=limit + 1, archived=include_archived)
    return cut(found, limit)


def get(ctx: Context, organization_id: str, project_id: str) -> Project:
    """One project. Raises NotFound."""
    with ctx.db.read() as session:
        return _found(projects.get(session, organization_id, project_id), project_id)


def rename(ctx: Context, organization_id: str, project_id: str, name: str) -> Project:
    """Give a project another name. Raises NotFound."""
    with ctx.db.transaction() as session:
        return _found(projects.update(session, organization_id, project_id, name=name), project_id)


def archive(ctx: Context, organization_id: str, project_id: str) -> Project:
    """Refuse the project's keys for good; its objects stay. Raises NotFound, InvalidRequest for the first project."""
    if project_id == DEFAULT_PROJECT:
        raise InvalidRequest("The default project cannot be archived: BGPO_API_KEY belongs to it.", "project_id")
    with ctx.db.transaction() as session:
        return _found(projects.archive(session, organization_id, project_id), project_id)


def set_limits(ctx: Context, organization_id: str, project_id: str, limits: ProjectLimits) -> Project:
    """Replace the limits of a project. Raises NotFound."""
    values = limits.model_dump(exclude_none=True)
    with ctx.db.transaction() as session:
        return _found(projects.update(session, organization_id, project_id, limits=values), project_id)


def _found(project: Project | None, project_id: str) -> Project:
    if project is None:
        raise NotFound(f"No such project: {project_id}", "project_id")
    return project
