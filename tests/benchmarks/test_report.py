"""The shared report of the benchmarks: what it prints and what it writes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import _report

ROOT = Path(__file__).parents[2]
ROWS: list[_report.Row] = [
    {"objective": "bgpo", "n_t": 2, "saved_bytes": 1_234_567, "seconds": 0.123456},
    {"objective": "elbo_ratio", "n_t": 64, "saved_bytes": 7, "seconds": 12345.6, "note": "linear"},
]


@pytest.fixture
def printed(tmp_path: Path) -> str:
    console = Console(file=io.StringIO(), width=200)
    _report.report("Policy memory", ROWS, tmp_path / "out.json", console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_shows_every_column_of_every_row(printed: str) -> None:
    for cell in ("Policy memory", "objective", "note", "1,234,567", "0.1235", "12,346", "linear"):
        assert cell in printed


def test_the_machine_and_versions_are_named(printed: str) -> None:
    assert f"{_report.machine()['cores']} cores" in printed
    assert f"torch {_report.library_versions()['torch']}" in printed


def test_the_json_holds_rows_machine_and_versions(printed: str, tmp_path: Path) -> None:
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["rows"] == ROWS
    assert content["machine"] == _report.machine()
    assert content["versions"] == _report.library_versions()
    assert content["machine"]["cpu"]
    assert content["machine"]["memory_bytes"] > 2**20


def test_a_row_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        _report.report("broken", [{"loss": float("nan")}], tmp_path / "out.json", Console(file=io.StringIO()))
    assert not (tmp_path / "out.json").exists()


def test_without_json_nothing_is_written(tmp_path: Path) -> None:
    assert _report.argument_parser("About this.").parse_args([]).json is None
    assert _report.argument_parser("About this.").parse_args(["--json", "a.json"]).json == Path("a.json")


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(ROOT.glob("benchmarks/[!_]*.py")), ids=lambda path: path.stem)
def test_every_benchmark_is_a_command_with_the_shared_options(script: Path) -> None:
    result = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "--json PATH" in result.stdout
