"""Commands about checkpoints: list, pin, unpin, download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.app import DEFAULT_URL, Url, app, errors
from cli.client import Service
from cli.errors import CliError
from cli.table import moment, table

_FLAGS = ("final", "best", "pinned", "damaged")


@app.command("checkpoints")
def list_checkpoints(job_id: str, url: Url = DEFAULT_URL) -> None:
    """Print a job's checkpoints, newest first."""
    with errors(), Service(url) as service:
        rows = [
            (
                found["id"],
                found["step_number"],
                moment(found["created_at"]),
                f"{found['rl']['bytes'] / 1e6:.1f}",
                " ".join(flag for flag in _FLAGS if found["rl"][flag]),
            )
            for found in service.checkpoints(job_id)
        ]
        for line in table(("checkpoint", "step", "created", "MB", ""), rows):
            typer.echo(line)


@app.command()
def pin(checkpoint_id: str, url: Url = DEFAULT_URL) -> None:
    """Keep a checkpoint until it is unpinned."""
    _pin(checkpoint_id, True, url)


@app.command()
def unpin(checkpoint_id: str, url: Url = DEFAULT_URL) -> None:
    """Leave a checkpoint to retention again."""
    _pin(checkpoint_id, False, url)


@app.command()
def download(
    source: Annotated[str, typer.Argument(help="A checkpoint (ftckpt_...) or a job (its newest checkpoint).")],
    target: Annotated[Path, typer.Argument(help="A new folder.")],
    url: Url = DEFAULT_URL,
) -> None:
    """Download a checkpoint and verify every file."""
    with errors(), Service(url) as service:
        checkpoint_id = source
        if source.startswith("ftjob-"):
            found = service.checkpoints(source)
            if not found:
                raise CliError(f"job {source} has no checkpoint yet")
            checkpoint_id = found[0]["id"]
        size = service.download(checkpoint_id, target)
        typer.echo(f"{checkpoint_id} -> {target} ({size / 1e6:.1f} MB)")


def _pin(checkpoint_id: str, pinned: bool, url: str) -> None:
    with errors(), Service(url) as service:
        shown = service.pin(checkpoint_id, pinned)
        typer.echo(f"{checkpoint_id} {'pinned' if shown['rl']['pinned'] else 'not pinned'}")
