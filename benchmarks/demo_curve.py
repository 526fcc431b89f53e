"""Draw what a demo run learned, from what it left behind: docs/images/demo.png.

    make demo
    python -m benchmarks.demo_curve --home .demo --png docs/images/demo.png [--json PATH]

Left: mean reward and solved rate of each step's rollouts. Right: solved rate on the held-out puzzles, base and tuned,
with 95 % Wilson intervals. The series are read from the demo's own database file, the rates from its summary.json;
the rows reported are the demo's table, with the 95 % interval of the gain.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks import _report
from cli.intervals import wilson

SERIES = ("reward_mean", "solved_rate")
MEASURES = ("solved", "solved_greedy", "cell_accuracy", "cell_accuracy_greedy")


def main() -> None:
    """Read, draw, report."""
    parser = _report.argument_parser(__doc__)
    parser.add_argument("--home", type=Path, default=Path(".demo"), help="the demo's home folder")
    parser.add_argument("--png", type=Path, required=True)
    arguments = parser.parse_args()
    summary = json.loads((arguments.home / "summary.json").read_bytes())
    draw(read_series(arguments.home / "stack" / "bgpo.db"), summary, arguments.png)
    _report.report(
        f"Demo, {summary['held_out_puzzles']} held-out puzzles",
        [row(summary, name) for name in MEASURES],
        arguments.json,
    )


def row(summary: dict[str, Any], name: str) -> dict[str, Any]:
    """One line of the demo's table."""
    rates = {who: round(summary[f"{who}_{name}"], 4) for who in ("base", "tuned", "redownloaded")}
    low, high = summary.get(f"{name}_gain_interval_95", (None, None))
    return {"measure": name, **rates, "gain_low_95": low, "gain_high_95": high, "seconds": summary["seconds"]}


def read_series(database: Path) -> list[dict[str, Any]]:
    """Train metrics by step."""
    steps: dict[int, dict[str, Any]] = defaultdict(dict)
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        query = "SELECT step, name, value FROM job_metrics WHERE split = 'train' ORDER BY step"
        for step, name, value in connection.execute(query):
            if name in SERIES:
                steps[step] |= {"step": step, name: round(value, 4)}
    return [{"step": step, **{name: steps[step].get(name) for name in SERIES}} for step in sorted(steps)]


def draw(rows: list[dict[str, Any]], summary: dict[str, Any], path: Path) -> None:
    """Write the picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), width_ratios=(2, 1), layout="constrained")
    steps = [row["step"] for row in rows]
    left.plot(steps, [row["reward_mean"] for row in rows], label="mean reward")
    left.plot(steps, [row["solved_rate"] for row in rows], label="solved")
    left.set(xlabel="step", ylim=(0, 1), title="training rollouts")
    left.legend(frameon=False, loc="lower right")
    names = ("base", "tuned", "redownloaded")
    rates = [summary[f"{name}_solved"] for name in names]
    bounds = [wilson(rate, summary["held_out_puzzles"]) for rate in rates]
    errors = [
        [r - low for r, (low, _) in zip(rates, bounds, strict=True)],
        [h - r for r, (_, h) in zip(rates, bounds, strict=True)],
    ]
    bars = right.bar(("base", "tuned", "downloaded"), rates, yerr=errors, capsize=4, color=("C7", "C2", "C2"))
    right.bar_label(bars, [f"{rate:.0%}" for rate in rates], label_type="center", color="white")
    right.set(ylim=(0, 1), title=f"{summary['held_out_puzzles']} held-out puzzles solved")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
