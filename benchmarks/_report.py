"""How every benchmark reports: a table for people, `--json PATH` for programs, and where the numbers come from.

    parser = _report.argument_parser(__doc__)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    _report.report("Policy memory", rows, arguments.json)

The JSON object holds `title`, `rows` (what was measured, a dict a row), `machine`, `versions`, `command` and `date`.
What it does not cover: timing and statistics; a row holds finished numbers. Nothing here imports torch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table

Value = str | int | float | bool | None
Row = Mapping[str, Value]

_LIBRARIES = ("bgpo", "torch", "transformers", "numpy")


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options all benchmarks share. Pass the module's docstring."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the rows, machine and versions to PATH")
    return parser


def report(
    title: str,
    rows: Sequence[Row],
    json_path: Path | None,
    console: Console | None = None,
    *,
    conditions: Mapping[str, Value] | None = None,
) -> None:
    """Print `rows` as a table with the machine and versions under it, and write them to `json_path` if given.

    Args:
        conditions: what else decided the measurement, by name.
    """
    facts = machine()
    versions = library_versions()
    console = console or Console(width=None if sys.stdout.isatty() else 200)
    console.print(_table(title, rows))
    console.print(" · ".join(_describe(facts)), highlight=False)
    console.print(" · ".join(f"{name} {version}" for name, version in versions.items()), highlight=False)
    if conditions:
        console.print(" · ".join(f"{name} {value}" for name, value in conditions.items()), highlight=False)
    if json_path is not None:
        content = {
            "title": title,
            "rows": [dict(row) for row in rows],
            "machine": facts,
            "versions": versions,
            **({"conditions": dict(conditions)} if conditions else {}),
            "command": shlex.join(sys.argv),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        json_path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
        console.print(f"written to {json_path}", highlight=False)


def machine() -> dict[str, Value]:
    """Processor, usable cores, memory, system and GPUs of this machine."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "platform": platform.platform(),
        "gpu": _gpus(),
    }


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a measurement."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in _LIBRARIES}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _gpus() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    names = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    return "; ".join(names) if result.returncode == 0 and names else None


def _describe(facts: Mapping[str, Value]) -> list[str]:
    memory = facts["memory_bytes"]
    assert isinstance(memory, int)
    parts = [str(facts["cpu"]), f"{facts['cores']} cores", f"{memory / 2**30:.0f} GiB", str(facts["platform"])]
    return [*parts, f"GPU {facts['gpu'] or 'none'}"]


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    return table


def _cell(value: Value) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
