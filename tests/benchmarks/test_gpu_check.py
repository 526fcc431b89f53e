"""The GPU check's program on a CPU, also without the packages that its machine lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bgpo.spec import RunSpec

ROOT = Path(__file__).parents[2]
ABSENT = ("pydantic", "pydantic_core", "math_verify", "rich", "hypothesis", "scipy", "matplotlib", "sqlalchemy")
"""Packages the GPU machine is not promised to have."""

_HIDE = """
import importlib.machinery as machinery
_find = machinery.PathFinder.find_spec
class Hiding:  # an object and no function: pytest keeps it as an attribute of a class, which would bind a function
    def __call__(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent!r} else _find(name, path, target)
machinery.PathFinder.find_spec = Hiding()
"""

SPEC: dict[str, Any] = {
    "method": {
        "type": "reinforcement",
        "grader": {
            "type": "multi",
            "name": "m",
            "graders": {"s": {"type": "sudoku", "name": "s"}},
            "calculate_output": "s",
        },
        "optimizer": {"learning_rate": 1e-4},
        "lora": {"rank": 4},
    },
    "evaluation": {"interval": 3},
    "model": "m",
    "train_data": "t",
    "validation_data": "v",
    "output_dir": "o",
}


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment in which those packages are not found."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_HIDE.format(absent=ABSENT))
    return {**os.environ, "PYTHONPATH": str(tmp_path / "site")}


def check(out: Path, *arguments: str, environment: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    """Run the command; its exit status and JSON."""
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--preset", "tiny", "--json", str(out), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert out.is_file(), done.stderr
    return done.returncode, json.loads(out.read_bytes())


def test_rollout_without_pydantic(tmp_path: Path, bare: dict[str, str]) -> None:
    code, content = check(tmp_path / "out.json", "--parts", "rollout", environment=bare)
    assert code == 0, content["parts"]
    assert content["versions"]["torch"]
    assert [(row["batch"], row["temperature"]) for row in content["rows"]] == [(1, 0.0), (1, 1.0), (2, 0.0), (2, 1.0)]
    assert all(row["part"] == "rollout" and row["tokens_per_second"] > 0 for row in content["rows"])


def test_a_part_without_time_is_reported_and_fails_the_check(tmp_path: Path) -> None:
    code, content = check(tmp_path / "out.json", "--parts", "update", "--limit-seconds", "0")
    assert code == 1
    assert content["parts"]["update"] == {"ok": False, "error": "no time left", "seconds": 0.0}


def test_the_stand_in_builds_what_pydantic_builds(bare: dict[str, str]) -> None:
    code = """
import json, sys
from benchmarks.gpu import standin
assert standin.install()
from bgpo.spec import RunSpec
spec = RunSpec.model_validate_json(sys.argv[1])
print(json.dumps([spec.model_dump(), spec.recipe().model_dump()]))
"""
    command = [sys.executable, "-c", code, json.dumps(SPEC)]
    done = subprocess.run(command, cwd=ROOT, env=bare, capture_output=True, text=True, check=True)
    real = RunSpec.model_validate(SPEC)
    assert json.loads(done.stdout) == [real.model_dump(mode="json"), real.recipe().model_dump(mode="json")]


def test_the_stand_in_refuses_unknown_and_missing_fields_and_runs_validators(bare: dict[str, str]) -> None:
    code = """
from benchmarks.gpu import standin; standin.install()
from bgpo.spec import RolloutSpec, RunSpec
for build in (lambda: RunSpec(model="m"), lambda: RolloutSpec(nonsense=1), lambda: RolloutSpec(block_length=7)):
    try:
        build()
    except ValueError:
        continue
    raise SystemExit("accepted")
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=bare, check=True)


def test_where_pydantic_is_installed_the_stand_in_keeps_away() -> None:
    code = "from benchmarks.gpu import standin; assert not standin.install(); import pydantic; pydantic.VERSION"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_part_runs_on_a_bare_machine(tmp_path: Path, bare: dict[str, str]) -> None:
    code, content = check(tmp_path / "out.json", "--limit-seconds", "3000", environment=bare)
    assert code == 0, content["parts"]
    assert {row["part"] for row in content["rows"]} == {"tests", "update", "rollout", "rl"}
    update = {(row["case"], row["objective"], row["n_t"]) for row in content["rows"] if row["part"] == "update"}
    assert len(update) == 3 * 2 * 2
    tests = [row for row in content["rows"] if row["part"] == "tests"]
    assert len(tests) > 20
    assert {row["outcome"] for row in tests} == {"passed", "skipped"}
