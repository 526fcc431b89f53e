"""What `bgpo.allocator` saves: processor seconds of a forward and backward pass, with glibc as it is and tuned.

    python -m benchmarks.allocator [--json PATH]

The shipped base model, 128 canvases of 43 tokens, one thread. Each case runs in fresh processes, in turns, and the
median is reported; processor time (user and system) rather than wall time, so that a busy machine matters less.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import _report

ROWS, LENGTH, PASSES = 128, 43, 4
MODEL = Path(__file__).parent.parent / "examples" / "models" / "tiny-llada"


def main() -> None:
    """Measure both cases and report."""
    parser = _report.argument_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", choices=("default", "tuned"), help="measure one case, print it as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        sys.stdout.write(json.dumps(measure(tuned=arguments.one == "tuned")) + "\n")
        return
    found: dict[str, list[dict[str, float]]] = {"default": [], "tuned": []}
    for _ in range(arguments.repeats):
        for case, results in found.items():
            command = [sys.executable, "-m", "benchmarks.allocator", "--one", case]
            results.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    rows: list[dict[str, Any]] = [
        {"allocator": case, **{name: round(statistics.median(r[name] for r in results), 3) for name in results[0]}}
        for case, results in found.items()
    ]
    for row in rows:
        row["ratio"] = round((row["user_s"] + row["system_s"]) / (rows[0]["user_s"] + rows[0]["system_s"]), 3)
    _report.report("Processor seconds of one forward and backward pass", rows, arguments.json)


def measure(*, tuned: bool) -> dict[str, float]:
    """Seconds of one pass in this process, after one to warm up."""
    import torch

    from bgpo.allocator import keep_freed_memory
    from bgpo.models import load_policy

    torch.set_num_threads(1)
    if tuned and not keep_freed_memory():
        raise SystemExit("this machine has no glibc: nothing to compare")
    model = load_policy(MODEL).model
    tokens = torch.randint(0, 200, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))

    def run() -> None:
        model.logits(model(tokens).flatten(0, 1)).sum().backward()

    run()
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(PASSES):
        run()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "user_s": (after.ru_utime - before.ru_utime) / PASSES,
        "system_s": (after.ru_stime - before.ru_stime) / PASSES,
    }


if __name__ == "__main__":
    main()
