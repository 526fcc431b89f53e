"""The trainer's tests on this device, with pytest and nothing else installed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.sizes import Sizes

ROOT = Path(__file__).parents[2]


def measure(sizes: Sizes, emit: Callable[[dict[str, Any]], None]) -> None:
    """A row for each test."""
    with tempfile.TemporaryDirectory(prefix="bgpo-gpu-") as name:
        report, config = Path(name) / "report.xml", Path(name) / "pytest.ini"
        # The project's own settings name plugins that this machine lacks, and its tests/conftest.py the service.
        config.write_text("[pytest]\naddopts = --import-mode=importlib\nmarkers =\n    gpu\n    slow\n")
        command = [sys.executable, "-m", "pytest", "-q", "-c", str(config), f"--rootdir={ROOT}"]
        command += ["--confcutdir=tests/bgpo", "-p", "benchmarks.gpu.standin", "-p", "no:cacheprovider"]
        command += [f"--junitxml={report}", "tests/bgpo/gpu"]
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # whatever else is installed there
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        cases = ET.parse(report).iter("testcase") if report.is_file() else []  # noqa: S314 - as above
        found = [_row(case) for case in cases]
    for row in found:
        emit(row)
    if done.returncode and not any(row.get("failed") for row in found):
        emit({"error": f"pytest exit status {done.returncode}: {(done.stdout + done.stderr)[-500:]}", "failed": True})


def _row(case: ET.Element) -> dict[str, Any]:
    row: dict[str, Any] = {"test": case.get("name"), "seconds": float(case.get("time") or 0), "outcome": "passed"}
    for kind in ("failure", "error", "skipped"):
        found = case.find(kind)
        if found is not None:
            row |= {"outcome": kind, "message": (found.get("message") or "")[:300]}
            row |= {"failed": True} if kind != "skipped" else {}
    return row
