"""How long grading a batch takes, grader by grader.

    python -m benchmarks.rewards [--samples 128] [--json PATH]

One batch of right and wrong completions for each grader, graded as the trainer does it; the `code` rows have three
tests, the `math` rows are half numbers and half formulas, the `python` grader imports numpy. Each is timed from the
second batch on, when helper processes that live on have started. The targets are for 128 samples on two idle cores;
`load` is what else ran on the machine when a row began (1 minute's average). `python` and `code` need a sandbox, or the
consent to do without (docs/sandbox.md).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks import _report
from bgpo.rewards import Sample, compile_grader
from bgpo.tasks import countdown, sudoku

Batch = list[tuple[str, dict[str, Any]]]


def _sudoku(samples: int) -> Batch:
    rows = sudoku.generate(samples, 0, "test")
    return [(row["solution"] if i % 2 else row["puzzle"], row) for i, row in enumerate(rows)]


def _countdown(samples: int) -> Batch:
    rows = countdown.generate(samples, 0, "test")
    return [(row["expression"] if i % 2 else "1+1", row) for i, row in enumerate(rows)]


def _math(samples: int) -> Batch:
    batch: Batch = []
    for i in range(samples):
        answer = f"\\sqrt{{{i * i + i % 3}}}" if i % 2 else f"{i + i % 3:,}"
        batch.append((f"<answer>\n\\boxed{{{answer}}}\n</answer>", {"answer": str(i)}))
    return batch


def _code(samples: int) -> Batch:
    tests = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0", "assert add('a', 'b') == 'ab'"]
    programs = ("def add(a, b):\n    return a + b", "def add(a, b):\n    return b + a")
    return [(f"```python\n{programs[i % 2]}\n```", {"tests": tests}) for i in range(samples)]


SOURCE = """
import numpy as np


def grade(sample, item):
    answer = np.array(sample["output_text"].split(), dtype=float)
    return float(np.allclose(answer, item["expected"]))
"""


def _python(samples: int) -> Batch:
    return [(f"{i} {i + i % 2}", {"expected": [i, i]}) for i in range(samples)]


TARGETS = {"python": 1.0, "code": 6.0}
"""Seconds for 128 samples."""
GRADERS: dict[str, tuple[dict[str, Any], Callable[[int], Batch]]] = {
    "sudoku": (sudoku.grader_spec(), _sudoku),
    "countdown": (countdown.grader_spec(), _countdown),
    "math": ({"type": "math", "name": "math"}, _math),
    "python": ({"type": "python", "source": SOURCE}, _python),
    "code": ({"type": "code", "name": "code"}, _code),
}


def main() -> None:
    """Measure and report."""
    parser = _report.argument_parser(__doc__)
    parser.add_argument("--samples", type=int, default=128)
    arguments = parser.parse_args()
    rows = [measure(name, arguments.samples) for name in GRADERS]
    _report.report("Grading one batch", rows, arguments.json)


def measure(name: str, samples: int) -> dict[str, _report.Value]:
    """Seconds for one batch, the share solved, and errors (which would make the time meaningless)."""
    spec, make = GRADERS[name]
    batch = make(samples)
    texts, items = [Sample(text) for text, _ in batch], [item for _, item in batch]
    load = os.getloadavg()[0]
    with compile_grader(spec) as grader:
        grader.grade_all(texts[: min(8, samples)], items[: min(8, samples)])
        start = time.perf_counter()
        grades = grader.grade_all(texts, items)
        seconds = time.perf_counter() - start
    return {
        "grader": name,
        "samples": samples,
        "seconds": round(seconds, 3),
        "target": TARGETS.get(name),
        "ms_per_sample": round(1000 * seconds / samples, 2),
        "solved": round(sum(grade.solved for grade in grades) / samples, 3),
        "errors": sum(grade.error is not None for grade in grades),
        "load": round(load, 1),
    }


if __name__ == "__main__":
    main()
