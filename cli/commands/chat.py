"""`bgpo chat`: talk to a model of a service."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from cli.app import DEFAULT_URL, Url, app, errors
from cli.client import Service


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="A base model, a tuned model, or a checkpoint.")],
    message: Annotated[str | None, typer.Argument(help="Without it, each line of stdin is a message.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 = greedy.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answers.")] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Ask a model, and print its answer block by block."""
    options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    given = {name: value for name, value in options.items() if value is not None}
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    with errors(), Service(url) as service:
        if message is not None:
            _turn(service, {"model": model, **given}, messages, message)
            return
        while True:
            if sys.stdin.isatty():
                typer.echo("> ", nl=False)
            line = sys.stdin.readline()
            if not line:
                return
            if line.strip():
                _turn(service, {"model": model, **given}, messages, line.rstrip("\n"))


def _turn(service: Service, body: dict[str, Any], messages: list[dict[str, str]], message: str) -> None:
    """One message and its answer, which both become part of the conversation."""
    messages.append({"role": "user", "content": message})
    answer = ""
    for piece in service.chat(body | {"messages": messages}):
        answer += piece
        typer.echo(piece, nl=False)
    typer.echo()
    messages.append({"role": "assistant", "content": answer})
