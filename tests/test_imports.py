"""The parts that must stay light are imported in fresh interpreters: none may load torch or transformers.

The import contracts read the source; these tests see what really happens, lazy imports and third parties included.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers")
# What to import of each package: itself with all its modules, or the modules named.
PACKAGES = ("api", "jobs", "worker", "cli", "migrations", "bgpo.egress", "bgpo.rewards", "bgpo.sandbox", "bgpo.tasks")
MODULES = ("bgpo", "bgpo.errors", "bgpo.records", "bgpo.spec")

IMPORT_ALL = """
import importlib, json, pkgutil, sys

name, whole = sys.argv[1], sys.argv[2] == "whole"
package = importlib.import_module(name)
imported = [name]
for module in pkgutil.walk_packages(package.__path__, f"{name}.") if whole else ():
    # A __main__ runs its command; alembic alone can import an environment and its versions; what runs inside a sandbox
    # is started by path, with the standard library alone.
    elsewhere = ("migrations.env", "migrations.versions", "bgpo.sandbox.inside")
    if not module.name.endswith(".__main__") and not module.name.startswith(elsewhere):
        importlib.import_module(module.name)
        imported.append(module.name)
print(json.dumps({"imported": imported, "loaded": sorted(sys.modules)}))
"""


@functools.cache  # a new interpreter and all imports take seconds
def import_in_fresh_interpreter(name: str, *, whole: bool) -> dict[str, list[str]]:
    command = [sys.executable, "-c", IMPORT_ALL, name, "whole" if whole else "one"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert result.returncode == 0, result.stderr
    report: dict[str, list[str]] = json.loads(result.stdout.splitlines()[-1])
    return report


@pytest.mark.parametrize("name", PACKAGES)
def test_no_module_of_the_package_loads_torch(name: str) -> None:
    report = import_in_fresh_interpreter(name, whole=True)
    assert not set(HEAVY) & set(report["loaded"]), f"importing {report['imported']} loaded a library of the trainer"


@pytest.mark.parametrize("name", MODULES)
def test_the_module_does_not_load_torch(name: str) -> None:
    assert not set(HEAVY) & set(import_in_fresh_interpreter(name, whole=False)["loaded"])


@pytest.mark.parametrize("name", ["api.main", "cli.main", "jobs.settings", "worker.app"])
def test_the_walk_reaches_the_entry_points(name: str) -> None:
    assert name in import_in_fresh_interpreter(name.partition(".")[0], whole=True)["imported"]


def test_the_trainer_does_load_torch() -> None:
    """The check above can fail: the same report names torch when a module does load it."""
    assert "torch" in import_in_fresh_interpreter("bgpo.models", whole=False)["loaded"]
