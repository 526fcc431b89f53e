"""Stored graders: kept under an id, in versions that never change, and put where a reference to one stands.

A job or a run gets the definition itself. So what becomes of the stored grader later concerns no job that is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from bgpo.errors import SpecError
from bgpo.rewards import parse_grader_spec
from bgpo.rewards.spec import AnyGraderSpec, GraderRefSpec, MultiSpec
from jobs.context import Context
from jobs.errors import InvalidRequest, NotFound
from jobs.repositories import graders
from jobs.services.grading import parts
from jobs.services.paging import Page, cut
from jobs.tables import GraderVersion, StoredGrader
from jobs.wire import graders as wire

MAX_GRADERS, MAX_VERSIONS = 1000, 1000
"""Of a project; of a grader."""


@dataclass(frozen=True)
class Stored:
    """A grader with one of its versions."""

    grader: StoredGrader
    version: GraderVersion


@dataclass(frozen=True)
class Resolved:
    """A grader without references."""

    spec: AnyGraderSpec
    shown: dict[str, Any]
    """As its author sees it: the references, each with the version it stood for; header values hidden."""


def create(ctx: Context, project_id: str, body: wire.StoreGrader) -> Stored:
    """Keep a grader as version 1. Raises InvalidRequest."""
    definition = _definition(body.grader)
    with ctx.db.transaction() as session:
        grader = graders.insert(session, project_id, body.name, definition)
        if graders.count(session, project_id) > MAX_GRADERS:
            raise InvalidRequest(f"A project has at most {MAX_GRADERS} stored graders: delete one first.")
        return _stored(session, grader, 1)


def add_version(ctx: Context, project_id: str, grader_id: str, body: wire.StoreGraderVersion) -> Stored:
    """Keep the next version. Raises NotFound, InvalidRequest."""
    definition = _definition(body.grader)
    with ctx.db.transaction() as session:
        number = graders.add_version(session, project_id, grader_id, definition)
        if number is not None and number > MAX_VERSIONS:
            raise InvalidRequest(f"A grader has at most {MAX_VERSIONS} versions: store a new one.")
        return _stored(session, _existing(session, project_id, grader_id), number)


def get(ctx: Context, project_id: str, grader_id: str, number: int | None = None) -> Stored:
    """A grader, its newest version unless another is named. Raises NotFound."""
    with ctx.db.read() as session:
        return _stored(session, _existing(session, project_id, grader_id), number)


def page(ctx: Context, project_id: str, *, after: str | None, limit: int) -> Page[Stored]:
    """Graders, newest first, each with its newest version. Raises InvalidRequest for an unknown `after`."""
    with ctx.db.read() as session:
        start = graders.get(session, project_id, after) if after is not None else None
        if after is not None and start is None:
            raise InvalidRequest(f"No such grader: {after}", "after")
        found = [Stored(*pair) for pair in graders.page(session, project_id, after=start, limit=limit + 1)]
    return cut(found, limit)


def versions(ctx: Context, project_id: str, grader_id: str, *, after: int | None, limit: int) -> Page[Stored]:
    """Versions of a grader, newest first, older than `after`. Raises NotFound."""
    with ctx.db.read() as session:
        grader = _existing(session, project_id, grader_id)
        rows = graders.versions(session, grader_id, before=after, limit=limit + 1)
        found = [Stored(grader, row) for row in rows]
    return cut(found, limit)


def delete(ctx: Context, project_id: str, grader_id: str) -> None:
    """Delete a grader with its versions; jobs made with it have its definition. Raises NotFound."""
    with ctx.db.transaction() as session:
        if not graders.delete(session, project_id, grader_id):
            raise NotFound(f"No such grader: {grader_id}", "id")


def resolve(ctx: Context, project_id: str, spec: AnyGraderSpec) -> Resolved:
    """Put stored definitions where references stand.

    Raises:
        InvalidRequest: there is no such grader or version, or it is a multi grader inside another. `param` is a path in
            the grader.
    """
    if isinstance(spec, GraderRefSpec):
        found = _referred(ctx, project_id, spec, "")
        return Resolved(_parsed(found, ""), _reference(found))
    definition = spec.model_dump(mode="json")
    display = wire.shown(definition)
    if not isinstance(spec, MultiSpec) or not _references(spec):
        return Resolved(spec, display)
    for key, part in spec.graders.items():
        if isinstance(part, GraderRefSpec):
            path = f"graders.{key}."
            found = _referred(ctx, project_id, part, path)
            if isinstance(_parsed(found, path), MultiSpec):
                raise InvalidRequest(f"{part.id} is a multi grader, which cannot be inside another.", f"{path}id")
            definition["graders"][key] = found.version.definition
            display["graders"][key] = _reference(found)
    return Resolved(parse_grader_spec(definition), display)


def _referred(ctx: Context, project_id: str, reference: GraderRefSpec, path: str) -> Stored:
    code = "grader_not_found"
    with ctx.db.read() as session:
        grader = graders.get(session, project_id, reference.id)
        if grader is None:
            raise InvalidRequest(f"There is no stored grader {reference.id}.", f"{path}id", code)
        number = reference.version or grader.latest
        version = graders.version(session, grader.id, number)
    if version is None:
        message = f"{reference.id} has no version {number}; its newest is {grader.latest}."
        raise InvalidRequest(message, f"{path}version", code)
    return Stored(grader, version)


def _parsed(stored: Stored, path: str) -> AnyGraderSpec:
    try:
        return parse_grader_spec(stored.version.definition)
    except SpecError as error:  # written by a version of this program that knew other fields
        message = f"Version {stored.version.version} of {stored.grader.id} cannot be used any more: {error}"
        raise InvalidRequest(message, f"{path}id", "invalid_grader") from error


def _reference(stored: Stored) -> dict[str, Any]:
    return {"type": "grader_ref", "id": stored.grader.id, "version": stored.version.version}


def _references(spec: AnyGraderSpec) -> Sequence[str]:
    return [path for path, part in parts(spec) if isinstance(part, GraderRefSpec)]


def _definition(spec: AnyGraderSpec) -> dict[str, Any]:
    for path in _references(spec):
        message = "a stored grader cannot refer to another one: give the definition itself"
        raise InvalidRequest(message, f"grader.{path}type", "invalid_grader")
    return spec.model_dump(mode="json")


def _existing(session: Session, project_id: str, grader_id: str) -> StoredGrader:
    grader = graders.get(session, project_id, grader_id)
    if grader is None:
        raise NotFound(f"No such grader: {grader_id}", "id")
    return grader


def _stored(session: Session, grader: StoredGrader, number: int | None) -> Stored:
    version = graders.version(session, grader.id, number if number is not None else grader.latest)
    if version is None:
        raise NotFound(f"{grader.id} has no version {number}; its newest is {grader.latest}.", "version")
    return Stored(grader, version)
