"""The command that looks over this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from pydantic import ValidationError

from cli.app import app, errors
from cli.errors import CliError
from cli.table import table


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")] = False,
) -> None:
    """Check what a worker here needs, and attack the sandbox. Exit status 1 when something needed is missing."""
    # Here, because the database, the queue and the storage take most of a second to load, which no other command needs.
    from cli.doctor import examine
    from jobs.settings import Settings

    with errors():
        try:
            settings = Settings()
        except ValidationError as error:
            raise CliError(f"the BGPO_* settings are not valid: {error}") from error
        checks = list(examine(settings))
    healthy = all(check.ok or not check.needed for check in checks)
    if as_json:
        typer.echo(json.dumps({"ok": healthy, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        for line in table(("check", "status", "detail"), [(each.name, each.status, each.detail) for each in checks]):
            typer.echo(line)
    if not healthy:
        raise typer.Exit(1)
