"""What a GPU does for the trainer, in one command of less than nine minutes.

    python -m benchmarks.gpu_check --json gpu.json [--parts tests update rollout rl] [--preset h200]

Needs PyTorch, transformers, accelerate, peft and pytest; where pydantic is missing a stand-in takes its place. Parts:

* `tests`: the trainer's tests on the device (`tests/bgpo/gpu`), float32 and bfloat16;
* `update`: memory and time of the policy update of a random LLaDA-8B by n_t, bgpo and elbo_ratio until out of memory;
* `rollout`: tokens a second of the sampler with that model;
* `rl`: the example's reinforcement run with the shipped model.

Each part is a process of its own with a time limit. The JSON is written after each part and holds what was measured
before a crash; the exit status is 1 when anything failed. `--preset tiny` runs all of it on a CPU in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PARTS = {"tests": 0.22, "update": 0.45, "rollout": 0.13, "rl": 0.2}
"""Name of each part and the share of the time it may take."""
LIBRARIES = ("torch", "transformers", "accelerate", "peft", "pytest", "safetensors", "numpy", "pydantic")


def main() -> int:
    """Run the parts, write the JSON, print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--json", type=Path, metavar="PATH", default=Path("gpu_check.json"), help="default: %(default)s"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--preset", choices=("h200", "tiny"), default="h200")
    parser.add_argument("--limit-seconds", type=float, default=530.0, help="for all parts (default 530)")
    arguments = parser.parse_args()
    content: dict[str, Any] = {
        "title": "GPU check",
        "preset": arguments.preset,
        "rows": [],
        "parts": {},
        "machine": machine(),
        "versions": versions(),
        "command": shlex.join(sys.argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    start = time.monotonic()
    for name in arguments.parts:
        left = arguments.limit_seconds - (time.monotonic() - start)
        limit = min(PARTS[name] * arguments.limit_seconds, left)
        print(f"== {name} (at most {max(limit, 0):.0f} s)", flush=True)
        rows, summary = run_part(name, arguments.preset, limit)
        content["rows"] += [{"part": name, **row} for row in rows]
        content["parts"][name] = summary
        write(arguments.json, content)
        show(rows)
        print(" ".join(f"{key}={value}" for key, value in summary.items()), flush=True)
    failed = [name for name, summary in content["parts"].items() if not summary["ok"]]
    print(f"written to {arguments.json}; {'FAILED: ' + ', '.join(failed) if failed else 'all parts ok'}")
    return 1 if failed else 0


def run_part(name: str, preset: str, limit: float) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One part: its rows, and how it ended."""
    if limit <= 0:
        return [], {"ok": False, "error": "no time left", "seconds": 0.0}
    start = time.monotonic()
    error = None
    with tempfile.TemporaryDirectory(prefix="bgpo-gpu-") as folder:
        file, log = Path(folder) / "rows.jsonl", Path(folder) / "log.txt"
        file.touch()
        command = [sys.executable, "-m", "benchmarks.gpu.part", name, preset, str(file)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path_with_root()}
        environment.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        with log.open("wb") as output:
            try:
                done = subprocess.run(
                    command, cwd=ROOT, env=environment, stdout=output, stderr=output, timeout=limit, check=False
                )
            except subprocess.TimeoutExpired:
                error = f"stopped at the limit of {limit:.0f} s"
            else:
                if done.returncode:
                    error = f"exit status {done.returncode}: {log.read_text(errors='replace').strip()[-1500:]}"
        rows = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
    broken = [row for row in rows if row.get("failed")]
    summary: dict[str, Any] = {"ok": error is None and not broken and bool(rows), "rows": len(rows)}
    summary["seconds"] = round(time.monotonic() - start, 1)
    if error or broken:
        summary["error"] = error or f"{len(broken)} of {len(rows)} rows failed"
    return rows, summary


def path_with_root() -> str:
    """PYTHONPATH with the repository in front: nothing of it is installed on that machine."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def write(path: Path, content: dict[str, Any]) -> None:
    """Replace the file at once, so that there is never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    part.replace(path)


def show(rows: list[dict[str, Any]]) -> None:
    """A plain table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)] if rows else []
    for line in [columns, *cells] if rows else []:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)[:100]


def machine() -> dict[str, Any]:
    """What this ran on."""
    facts: dict[str, Any] = {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    try:
        import torch

        if torch.cuda.is_available():
            properties = torch.cuda.get_device_properties(0)
            facts |= {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    except (ImportError, RuntimeError) as error:
        facts["gpu_error"] = str(error)
    return facts


def versions() -> dict[str, str | None]:
    """Of the libraries; None where one is not installed."""
    found: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


if __name__ == "__main__":
    sys.exit(main())
