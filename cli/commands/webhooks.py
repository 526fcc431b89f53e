"""`bgpo webhook`: the endpoints that are told when a project's jobs are over."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.app import DEFAULT_URL, Url, app, errors
from cli.client import Service
from cli.table import moment, table

webhook = typer.Typer(help="Endpoints that are told when jobs are over.", no_args_is_help=True)
app.add_typer(webhook, name="webhook")

Events = Annotated[list[str] | None, typer.Option("--event", help="Type of event, such as fine_tuning.job.failed.")]


@webhook.command()
def create(name: str, target: str, event: Events = None, url: Url = DEFAULT_URL) -> None:
    """Have events sent to a URL (default: all types); print the signing secret, this once, and the id to stderr."""
    with errors(), Service(url) as service:
        types = event or service.webhook_event_types()
        _show(service.create_webhook_endpoint({"name": name, "url": target, "event_types": types}))


@webhook.command("list")
def list_endpoints(url: Url = DEFAULT_URL) -> None:
    """Print all endpoints, newest first."""
    with errors(), Service(url) as service:
        found = service.webhook_endpoints()
    rows = [
        (
            each["id"],
            each["name"],
            moment(each["created_at"]),
            "yes" if each["rl"]["active"] else "no",
            ",".join(each["event_types"]),
            each["url"],
        )
        for each in found
    ]
    for line in table(("endpoint", "name", "created", "active", "events", "url"), rows):
        typer.echo(line)


@webhook.command()
def update(
    endpoint_id: str,
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
    target: Annotated[str | None, typer.Option(help="Another URL to send to.")] = None,
    event: Events = None,
    active: Annotated[bool | None, typer.Option("--active/--inactive", help="Whether events are sent.")] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Change what is named."""
    wish: dict[str, Any] = {"name": name, "url": target, "event_types": event, "rl": {"active": active}}
    with errors(), Service(url) as service:
        typer.echo(f"updated {service.update_webhook_endpoint(endpoint_id, wish)['id']}")


@webhook.command()
def rotate(
    endpoint_id: str,
    keep_old: Annotated[bool, typer.Option("--keep-old", help="The old one signs as well for 24 hours.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Give an endpoint another signing secret and print it, this once."""
    with errors(), Service(url) as service:
        _show(service.rotate_webhook_secret(endpoint_id, keep_old=keep_old))


@webhook.command("test")
def try_out(
    endpoint_id: str,
    event: Annotated[str, typer.Option(help="Type of the event to send.")] = "fine_tuning.job.succeeded",
    url: Url = DEFAULT_URL,
) -> None:
    """Send one event about a job that does not exist and print the status of the answer."""
    with errors(), Service(url) as service:
        typer.echo(service.test_webhook_endpoint(endpoint_id, event)["status_code"])


@webhook.command()
def delete(endpoint_id: str, url: Url = DEFAULT_URL) -> None:
    """Delete an endpoint; what it has not got yet is not sent."""
    with errors(), Service(url) as service:
        service.delete_webhook_endpoint(endpoint_id)
        typer.echo(f"deleted {endpoint_id}")


def _show(endpoint: dict[str, Any]) -> None:
    typer.echo(f"{endpoint['id']}; its secret is shown only now", err=True)
    typer.echo(endpoint["signing_secret"])
