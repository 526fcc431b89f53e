"""The pictures: every seed a dot, the mean a mark or a line, the sample standard deviation a bar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.paper.figures import PHASES
from benchmarks.paper.tables import METRICS, Row, Table


def draw(table: Table, path: Path) -> None:
    """Write a table's picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    match table.name:
        case "figure1":
            figure = _memory(plt, table.rows)
        case "figure3":
            figure = _gradients(plt, table.rows)
        case "table2":
            figure = _by_n_t(plt, table.rows)
        case "sweep":
            figure = _by_rate(plt, table.rows)
        case _:
            figure = _methods(plt, table.rows)
    figure.suptitle(table.title, fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _each(row: Row, column: str) -> list[float]:
    return [float(value) for value in str(row.get(f"{column}_each", "")).split()]


def _methods(plt: Any, rows: Sequence[Row]) -> Any:
    """A panel a task and metric, a line a method; chance as a dotted line."""
    panels = [(task, column) for task in dict.fromkeys(r["task"] for r in rows) for column in METRICS[task]]
    figure, axes = plt.subplots(1, len(panels), figsize=(2.6 * len(panels), 3.2), sharey=True, layout="constrained")
    names = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "chance"))
    for axis, (task, column) in zip(_flat(axes), panels, strict=True):
        for row in rows:
            if row["task"] != task or column not in row:
                continue
            if row["method"] == "chance":
                axis.axvline(row[column], color="0.5", linestyle=":")
                continue
            y = names.index(row["method"])
            axis.errorbar(
                row[column], y, xerr=row[f"{column}_sd"] or 0, fmt="D", markersize=6, mfc="none", capsize=3, color="C0"
            )
            each = _each(row, column)
            axis.plot(each, [y] * len(each), ".", color="0.35", markersize=5)
        axis.set(title=f"{task}, {column.replace('_', ' ')}", xlabel="share")
        axis.title.set_fontsize(9)
    _flat(axes)[0].set_yticks(range(len(names)), names)
    _flat(axes)[0].invert_yaxis()
    return figure


def _by_n_t(plt: Any, rows: Sequence[Row]) -> Any:
    columns = METRICS["sudoku"]
    figure, axes = plt.subplots(1, len(columns), figsize=(2.6 * len(columns), 3), layout="constrained")
    for axis, column in zip(_flat(axes), columns, strict=True):
        _curve(axis, [row for row in rows if row["method"] != "base"], column, "bgpo", "C0")
        base = [row[column] for row in rows if row["method"] == "base" and column in row]
        if base:
            axis.axhline(base[0], color="0.5", linestyle=":", label="base")
        axis.set(title=column.replace("_", " "), xlabel="n_t")
        axis.legend(frameon=False, fontsize=8)
    return figure


def _by_rate(plt: Any, rows: Sequence[Row]) -> Any:
    columns = METRICS["sudoku"]
    figure, axes = plt.subplots(1, len(columns), figsize=(3 * len(columns), 3), layout="constrained")
    for axis, column in zip(_flat(axes), columns, strict=True):
        for name in dict.fromkeys(row["method"] for row in rows):
            done = [row for row in rows if row["method"] == name and column in row]
            axis.plot([row["learning_rate"] for row in done], [row[column] for row in done], ".-", label=name)
        axis.set(title=column.replace("_", " "), xlabel="learning rate", xscale="log")
    _flat(axes)[0].legend(frameon=False, fontsize=6)
    return figure


def _memory(plt: Any, rows: Sequence[Row]) -> Any:
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    scaled = [
        row
        | {
            key: value / 1e6
            for key, value in row.items()
            if key.startswith(("saved_bytes", "peak_rss")) and isinstance(value, float | int)
        }
        for row in rows
    ]
    for axis, column, title in zip(
        axes, ("saved_bytes", "peak_rss_bytes"), ("saved for backward, MB", "process peak, MB"), strict=True
    ):
        for color, objective in (("C0", "bgpo"), ("C1", "elbo_ratio")):
            of_it = [{**row, f"{column}_each": ""} for row in scaled if row["objective"] == objective]
            _curve(axis, of_it, column, objective, color)
        axis.set(title=title, xlabel="n_t", yscale="log")
        axis.legend(frameon=False, fontsize=8)
    return figure


def _gradients(plt: Any, rows: Sequence[Row]) -> Any:
    figure, axes = plt.subplots(1, 5, figsize=(15, 3.2), layout="constrained")
    panels = [(case, name) for case in ("on-policy", "off-policy") for name in ("std", "bias")]
    for axis, (case, name) in zip(axes, panels, strict=False):
        for color, algorithm in (("C0", "bgpo"), ("C1", "elbo_ratio"), ("C3", "diffu_grpo")):
            of_it = [row for row in rows if row.get("case") == case and row.get("algorithm") == algorithm]
            _curve(axis, of_it, name, algorithm, color)
            if name == "bias" and algorithm == "bgpo":
                floor = [(row["n_t"], row["noise_floor"]) for row in of_it if "noise_floor" in row]
                axis.plot(*zip(*floor, strict=True), ":", color="0.5", label="noise floor (bgpo)") if floor else None
        n_t = sorted({row["n_t"] for row in rows if row.get("case") == case and "n_t" in row})
        axis.set_xticks(n_t, [str(n) for n in n_t])
        axis.set(title=f"{case}: gradient {name} / |gold|", xlabel="n_t", yscale="log")
        axis.title.set_fontsize(9)
        axis.legend(frameon=False, fontsize=7)
    times = [row for row in rows if row["kind"] == "step time" and "step_seconds" in row]
    below = [0.0] * len(times)
    for phase in PHASES:
        seconds = [row.get(f"{phase}_seconds", 0.0) for row in times]
        axes[-1].bar([str(row["n_t"]) for row in times], seconds, bottom=below, label=phase)
        below = [a + b for a, b in zip(below, seconds, strict=True)]
    axes[-1].set(title="bgpo: seconds of a step", xlabel="n_t")
    axes[-1].set_ylim(top=1.4 * max(below, default=1.0))
    axes[-1].legend(frameon=False, fontsize=7, ncols=2, loc="upper left")
    return figure


def _curve(axis: Any, rows: Sequence[Row], column: str, label: str, color: str) -> None:
    """Mean with its deviation over n_t, and each seed's dot."""
    rows = [row for row in rows if column in row]
    if not rows:
        return
    n_t = [row["n_t"] for row in rows]
    spread = [row[f"{column}_sd"] or 0 for row in rows]
    style = "D--" if label == "elbo_ratio" else "D-"  # on-policy it lies on bgpo's
    axis.errorbar(
        n_t, [row[column] for row in rows], yerr=spread, fmt=style, markersize=4, capsize=3, color=color, label=label
    )
    for row in rows:
        each = _each(row, column)
        axis.plot([row["n_t"]] * len(each), each, ".", color="0.35", markersize=4)
    axis.set_xscale("log", base=2)
    axis.set_xticks(n_t, [str(n) for n in n_t])


def _flat(axes: Any) -> list[Any]:
    return list(axes.flat) if hasattr(axes, "flat") else [axes]
