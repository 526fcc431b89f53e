"""The scripts of examples/, each as a person runs it, against a whole service. They check their own results."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.ports import free_port
from cli.stack import Stack
from tests.e2e.conftest import SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != "helpers.py")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    env = SETTINGS | {"BGPO_MODEL_ROOT": str(EXAMPLES / "models"), "BGPO_GENERATOR_THREADS": "1"}
    with Stack(tmp_path_factory.mktemp("home"), port=free_port(), env=env) as stack:
        yield f"{stack.url}/v1"
        stack.check()


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)


@pytest.mark.parametrize("script", SCRIPTS)
def test_example(url: str, script: str) -> None:
    done = run(script, "--base-url", url)
    assert done.returncode == 0, done.stdout
    print(done.stdout)


def test_an_example_without_a_service_fails() -> None:
    done = run("rl_python_grader.py", "--base-url", f"http://127.0.0.1:{free_port()}/v1")
    assert done.returncode != 0
    assert "Connection error" in done.stdout


def test_the_quickstart_names_every_example() -> None:
    page = (EXAMPLES.parent / "docs" / "quickstart.md").read_text()
    assert set(re.findall(r"examples/(\w+\.py)\)", page)) == set(SCRIPTS)
