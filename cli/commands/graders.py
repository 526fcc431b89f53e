"""Commands about graders and their secrets: try one, check one, set what endpoints need."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.app import DEFAULT_URL, Url, app, errors, read_json
from cli.client import Service
from cli.errors import CliError
from cli.table import moment, table

graders = typer.Typer(help="Try and check graders.", no_args_is_help=True)
secrets = typer.Typer(help="Set and delete the secrets that graders use.", no_args_is_help=True)
app.add_typer(graders, name="grader")
app.add_typer(secrets, name="secret")

Grader = Annotated[Path, typer.Option(help="The grader, JSON.")]


@graders.command()
def run(
    grader: Grader,
    sample: Annotated[str, typer.Option(help="The model's answer; @FILE reads it from a file.")],
    item: Annotated[Path | None, typer.Option(help="The dataset row, JSON.")] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Grade one answer and print the result as JSON; exit status 1 when the grader failed."""
    with errors(), Service(url) as service:
        row = read_json(item) if item is not None else {}
        result = service.run_grader(read_json(grader), _text(sample), row)
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
        for error in result["rl"]["errors"]:
            raise CliError(f"{error['grader']} failed: {error['kind']}: {error['message']}")


@graders.command()
def validate(grader: Grader, url: Url = DEFAULT_URL) -> None:
    """Check a grader and print it with every default filled in."""
    with errors(), Service(url) as service:
        typer.echo(json.dumps(service.validate_grader(read_json(grader)), indent=2, ensure_ascii=False))


@secrets.command("set")
def set_secret(name: str, url: Url = DEFAULT_URL) -> None:
    """Set a secret to what stdin holds: `bgpo secret set NAME < file`. Arguments would show in the process list."""
    with errors(), Service(url) as service:
        terminal = sys.stdin.isatty()
        value = typer.prompt("value", hide_input=True) if terminal else sys.stdin.read().removesuffix("\n")
        typer.echo(f"set {service.set_secret(name, value)['name']}")


@secrets.command("list")
def list_secrets(url: Url = DEFAULT_URL) -> None:
    """Print names and times."""
    with errors(), Service(url) as service:
        rows = [(each["name"], moment(each["created_at"]), moment(each["updated_at"])) for each in service.secrets()]
    for line in table(("name", "created", "updated"), rows):
        typer.echo(line)


@secrets.command("delete")
def delete_secret(name: str, url: Url = DEFAULT_URL) -> None:
    """Delete a secret that no unfinished job needs."""
    with errors(), Service(url) as service:
        service.delete_secret(name)
        typer.echo(f"deleted {name}")


def _text(given: str) -> str:
    if not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text()
    except (OSError, UnicodeError) as error:
        raise CliError(f"cannot read {given[1:]}: {error}") from error
