"""What all sub-commands share: the application, the option for the service's URL, errors as lines and statuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.errors import CliError

app = typer.Typer(
    name="bgpo",
    help="Reinforcement learning for diffusion language models, as a service.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Url = Annotated[str, typer.Option(envvar="BGPO_URL", help="Where the service is.")]
DEFAULT_URL = "http://127.0.0.1:8000"


@contextmanager
def errors() -> Iterator[None]:
    """What went wrong, on stderr, and the exit status: 1 for errors, 130 after an interrupt."""
    try:
        yield
    except CliError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CliError."""
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CliError(f"cannot read {path}: {error}") from error
    if not isinstance(body, dict):
        raise CliError(f"{path} must hold a JSON object")
    return body
