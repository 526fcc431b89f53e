"""Commands that have a model evaluated or exported by the service, and wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.app import DEFAULT_URL, Url, app, errors, read_json
from cli.client import TERMINAL, Service, require_empty
from cli.errors import CliError
from cli.table import table

_LOOK_S = 1.0


class Content(StrEnum):
    """Of an export."""

    MERGED = "merged"
    ADAPTER = "adapter"


class Dtype(StrEnum):
    """Of exported weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


@app.command()
def evaluate(
    source: Annotated[str, typer.Argument(help="A checkpoint (ftckpt_...), a tuned model or a base model.")],
    file: Annotated[str | None, typer.Option(help="Id of a dataset. Default: as the model's job has it.")] = None,
    grader: Annotated[Path | None, typer.Option(help="JSON. Default: as the model's job has it.")] = None,
    sampler: Annotated[Path | None, typer.Option(help="JSON. Default: as the model's job has it.")] = None,
    answers: Annotated[int | None, typer.Option(min=1, help="Sampled answers per row.")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Have a model answer the rows of a file, and print what the grader made of it."""
    with errors(), Service(url) as service:
        body: dict[str, Any] = {"file": file, "answers": answers, "seed": seed}
        body |= {name: read_json(path) for name, path in (("grader", grader), ("sampler", sampler)) if path is not None}
        made = service.evaluate(source, {name: value for name, value in body.items() if value is not None})
        results = _over(made["id"], service.evaluation)["results"]
        rows = [
            (
                decoding,
                results[decoding]["graded"],
                results[decoding]["errors"],
                _with_error(results[decoding], "mean", "stderr"),
                _with_error(results[decoding], "pass_rate", "pass_rate_stderr"),
            )
            for decoding in ("sampled", "greedy")
        ]
        for line in table(("answers", "graded", "errors", "reward", "solved"), rows):
            typer.echo(line)


@app.command()
def export(
    checkpoint_id: str,
    target: Annotated[Path, typer.Argument(help="A new folder.")],
    content: Annotated[Content, typer.Option(help="Whole weights, or the adapter alone.")] = Content.MERGED,
    dtype: Annotated[Dtype, typer.Option(help="Of the exported weights.")] = Dtype.BFLOAT16,
    url: Url = DEFAULT_URL,
) -> None:
    """Have a checkpoint's weights made ready for use elsewhere, and download them."""
    with errors(), Service(url) as service:
        require_empty(target)  # before it takes minutes
        made = service.export(checkpoint_id, {"content": content.value, "dtype": dtype.value})
        export_id = _over(made["id"], service.exported)["id"]
        size = service.download_export(export_id, target)
        typer.echo(f"{export_id} -> {target} ({size / 1e6:.1f} MB)")


def _over(task_id: str, look: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """The task once it has succeeded. Raises CliError when it ends otherwise or is paused."""
    typer.echo(f"waiting for {task_id}; it goes on if you interrupt this", err=True)
    while (task := look(task_id))["status"] not in (*TERMINAL, "paused"):
        time.sleep(_LOOK_S)
    if task["status"] == "succeeded":
        return task
    why = (task["error"] or {}).get("message") or (task["pause_reason"] or {}).get("message") or ""
    raise CliError(f"{task_id} is {task['status']}. {why}".strip())


def _with_error(score: dict[str, Any], name: str, error: str) -> str | None:
    """A value and its standard error, as far as there are any."""
    if score[name] is None:
        return None
    return f"{score[name]:.3f}" + (f" ± {score[error]:.3f}" if score[error] is not None else "")
