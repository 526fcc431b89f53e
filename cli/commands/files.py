"""Commands about files: upload, list, check, download, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.app import DEFAULT_URL, Url, app, errors
from cli.client import Service
from cli.errors import CliError
from cli.table import moment, table
from cli.upload import upload

files = typer.Typer(help="Upload, check and delete files.", no_args_is_help=True)
app.add_typer(files, name="files")


@files.command("upload")
def upload_file(
    path: Path,
    purpose: Annotated[str, typer.Option(help="fine-tune, user_data, ...")] = "fine-tune",
    expires_after: Annotated[int | None, typer.Option(help="Seconds to keep it.", min=3600, max=2_592_000)] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Upload a file and print its id; one of more than 64 MB goes in parts, with progress on stderr."""
    with errors(), Service(url) as service:

        def told(sent: int, size: int) -> None:
            typer.echo(f"{sent / 1e6:.0f} of {size / 1e6:.0f} MB", err=True)

        file = upload(service, path, purpose=purpose, expires_s=expires_after, progress=told)
        typer.echo(file["id"])
        if file["status"] == "error":
            hint = f"bgpo files validate {file['id']} shows all problems"
            raise CliError(f"{path} is no dataset: {file['status_details']} ({hint})")


@files.command("list")
def list_files(
    purpose: Annotated[str | None, typer.Option(help="Only files with this purpose.")] = None, url: Url = DEFAULT_URL
) -> None:
    """Print all files, newest first."""
    with errors(), Service(url) as service:
        found = service.all_of("files", **({"purpose": purpose} if purpose is not None else {}))
        rows = [
            (
                file["id"],
                moment(file["created_at"]),
                f"{file['bytes'] / 1e6:.1f}",
                file["purpose"],
                file["status"],
                "" if file["expires_at"] is None else moment(file["expires_at"]),
                file["filename"],
            )
            for file in found
        ]
        for line in table(("file", "created", "MB", "purpose", "status", "expires", "name"), rows):
            typer.echo(line)


@files.command()
def validate(file_id: str, url: Url = DEFAULT_URL) -> None:
    """Check a file as a dataset, line by line; exit status 1 when a line cannot be used."""
    with errors(), Service(url) as service:
        report = service.call("POST", f"files/{file_id}/validate", timeout=600)
        for problem in report["problems"]:
            typer.echo(problem["message"])
        if not report["valid"]:
            raise CliError(f"{report['problem_count']} of {report['rows']} rows cannot be used")
        held = {name: report["statistics"][name] for name in ("prompts", "answered", "preferences")}
        typer.echo(", ".join(f"{count} {name}" for name, count in held.items() if count))


@files.command("download")
def download_file(
    file_id: str, target: Annotated[Path, typer.Argument(help="A new file.")], url: Url = DEFAULT_URL
) -> None:
    """Download a file and verify it."""
    with errors(), Service(url) as service:
        size = service.download_file(file_id, target)
        typer.echo(f"{file_id} -> {target} ({size / 1e6:.1f} MB)")


@files.command()
def delete(file_ids: list[str], url: Url = DEFAULT_URL) -> None:
    """Delete files that no unfinished job uses."""
    with errors(), Service(url) as service:
        for file_id in file_ids:
            service.call("DELETE", f"files/{file_id}")
            typer.echo(f"deleted {file_id}")
