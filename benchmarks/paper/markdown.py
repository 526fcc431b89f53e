"""A table as Markdown, for docs/results: what docs/paper.md links to. Written by commands, never by hand."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.paper.tables import Row, Table

_FOLDED = ("_sd", "_ci95", "_each")
"""Columns shown in the cell of the number they belong to."""


def render(table: Table, command: str, png: str | None) -> str:
    """The whole file."""
    parts = [f"# {table.title}", f"Written by `{command}`; do not edit."]
    if png:
        parts.append(f"![{table.title}]({png})")
    parts.append("Mean ± sample standard deviation over the seeds; in brackets each seed's value.")
    for kind in dict.fromkeys(row.get("kind") for row in table.rows):
        parts.append(_grid([row for row in table.rows if row.get("kind") == kind]))
    if table.claims:
        parts.append("## The paper's claims here")
        parts.append(
            "Differences are taken seed by seed; ci95 is half the width of the 95 % Student interval of their mean."
        )
        parts.append(_grid(table.claims))
    return "\n\n".join(parts) + "\n"


def _grid(rows: Sequence[Row]) -> str:
    present = dict.fromkeys(key for row in rows for key in row if any(r.get(key) is not None for r in rows))
    columns = [key for key in present if not (_folded(key, present) or key == "kind")]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row, column) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _folded(key: str, columns: dict[str, None]) -> bool:
    return any(key.endswith(suffix) and key.removesuffix(suffix) in columns for suffix in _FOLDED)


def _cell(row: Row, column: str) -> str:
    value = row.get(column)
    if value is None:
        return "-"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    spread, each = row.get(f"{column}_sd"), row.get(f"{column}_each")
    if spread is not None:
        text += f" ± {spread:.2g}"
    if each and spread is not None:
        text += " [" + ", ".join(f"{float(one):.4g}" for one in str(each).split()) + "]"
    return text.replace("|", "\\|")
