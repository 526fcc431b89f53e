"""`bgpo admin`: projects, keys, limits and the audit log, with BGPO_ADMIN_KEY or a stored administrator's key.

Only `bootstrap` goes to the database, in a process of its own: it makes the first key (`jobs.bootstrap`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from cli.admin_client import Admin
from cli.app import DEFAULT_URL, Url, app, errors
from cli.errors import CliError
from cli.table import moment, table

admin = typer.Typer(help="Projects, keys, limits and the audit log of a service.", no_args_is_help=True)
project = typer.Typer(help="Projects.", no_args_is_help=True)
key = typer.Typer(help="Keys of projects and administrators.", no_args_is_help=True)
app.add_typer(admin, name="admin")
admin.add_typer(project, name="project")
admin.add_typer(key, name="key")

AdminKey = Annotated[str, typer.Option(envvar="BGPO_ADMIN_KEY", show_default=False, help="An administrator's key.")]
OfProject = Annotated[str | None, typer.Option("--project", help="Its project; without, an administrator's key.")]


@admin.command()
def bootstrap(name: Annotated[str, typer.Option(help="Name of the key.")] = "bootstrap") -> None:
    """Make an administrator's key in the database of the BGPO_* settings, and print it: the first one."""
    os.execv(sys.executable, [sys.executable, "-m", "jobs.bootstrap", name])  # noqa: S606 - no shell is wanted


@project.command("create")
def create_project(name: str, url: Url = DEFAULT_URL, admin_key: AdminKey = "") -> None:
    """Make a project and print its id."""
    with _service(url, admin_key) as service:
        typer.echo(service.create_project(name)["id"])


@project.command("list")
def list_projects(
    archived: Annotated[bool, typer.Option("--archived", help="Archived ones, too.")] = False,
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = "",
) -> None:
    """Print all projects, newest first."""
    with _service(url, admin_key) as service:
        found = service.projects(archived=archived)
    rows = [(each["id"], each["name"], moment(each["created_at"]), each["status"]) for each in found]
    _print(("project", "name", "created", "status"), rows)


@project.command("archive")
def archive_project(project_id: str, url: Url = DEFAULT_URL, admin_key: AdminKey = "") -> None:
    """Refuse a project's keys for good; its objects stay."""
    with _service(url, admin_key) as service:
        typer.echo(f"{project_id} {service.archive_project(project_id)['status']}")


@key.command("create")
def create_key(
    name: str,
    of: OfProject = None,
    scope: Annotated[list[str] | None, typer.Option(help="Repeat it; or all, read_only. Default: all.")] = None,
    expires_in: Annotated[int | None, typer.Option(min=1, help="Seconds the key is good for.")] = None,
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = "",
) -> None:
    """Make a key and print it, this once; its id goes to stderr."""
    if of is None and scope:
        raise typer.BadParameter("an administrator's key has no scopes: name a --project")
    body: dict[str, Any] = {"name": name, "expires_in_seconds": expires_in}
    with _service(url, admin_key) as service:
        _show(service.create_key(of, body | ({"scopes": scope} if scope else {})))


@key.command("list")
def list_keys(of: OfProject = None, url: Url = DEFAULT_URL, admin_key: AdminKey = "") -> None:
    """Print the keys that are not revoked, newest first."""
    with _service(url, admin_key) as service:
        found = service.keys(of)
    rows = [(each["id"], each["name"], " ".join(each.get("scopes", ())), *map(_time, _times(each))) for each in found]
    _print(("key", "name", "scopes", "created", "expires", "last used"), rows)


@key.command("revoke")
def revoke_key(key_id: str, of: OfProject = None, url: Url = DEFAULT_URL, admin_key: AdminKey = "") -> None:
    """Refuse a key within seconds."""
    with _service(url, admin_key) as service:
        service.revoke_key(of, key_id)
        typer.echo(f"{key_id} revoked")


@key.command("rotate")
def rotate_key(
    key_id: str,
    of: OfProject = None,
    overlap: Annotated[int, typer.Option(min=0, help="Seconds the old key is good for yet.")] = 0,
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = "",
) -> None:
    """Print a key that takes another one's place."""
    with _service(url, admin_key) as service:
        _show(service.rotate_key(of, key_id, overlap))


@admin.command()
def limits(
    project_id: str,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=NUMBER", help="Repeat it; NAME= takes a limit away.")
    ] = None,
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = "",
) -> None:
    """Print what a project may use, after changing it if asked."""
    with _service(url, admin_key) as service:
        found = service.limits(project_id)
        if set_:
            found = service.set_limits(project_id, found["limits"] | dict(_change(text) for text in set_))
    rows = [(name, _limit(value), _limit(found["effective"][name])) for name, value in found["limits"].items()]
    _print(("limit", "of the project", "in effect"), rows)


@admin.command()
def audit(
    of: Annotated[list[str] | None, typer.Option("--project", help="Only of this project; repeat it.")] = None,
    event: Annotated[list[str] | None, typer.Option(help="Only of this type; repeat it.")] = None,
    number: Annotated[int, typer.Option("-n", min=1, max=100, help="Entries.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = "",
) -> None:
    """Print who did what, newest first."""
    with _service(url, admin_key) as service:
        found = service.audit(number, project_ids=of or [], event_types=event or [])
    if as_json:
        for each in found:
            typer.echo(json.dumps(each))
        return
    rows = [
        (
            moment(each["effective_at"]),
            each["type"],
            each["actor"]["api_key"]["id"] if each["actor"] else "nobody",
            each["ip_address"],
            each["resource_id"],
            each["status"],
        )
        for each in found
    ]
    _print(("when", "what", "key", "from", "object", "status"), rows)


@contextmanager
def _service(url: str, admin_key: str) -> Iterator[Admin]:
    with errors(), Admin(url, admin_key or None) as service:
        yield service


def _show(made: dict[str, Any]) -> None:
    typer.echo(f"{made['id']}; it is shown only now", err=True)
    typer.echo(made["value"])


def _print(headings: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    for line in table(headings, rows):
        typer.echo(line)


def _times(each: dict[str, Any]) -> list[int | None]:
    return [each["created_at"], each["expires_at"], each["last_used_at"]]


def _time(seconds: int | None) -> str:
    return "" if seconds is None else moment(seconds)


def _limit(value: int | None) -> str:
    return "-" if value is None else str(value)


def _change(text: str) -> tuple[str, int | None]:
    name, separator, number = text.partition("=")
    if not separator or not (number.isdecimal() or not number):
        raise CliError(f"--set takes NAME=NUMBER, not {text}")
    return name, int(number) if number else None
