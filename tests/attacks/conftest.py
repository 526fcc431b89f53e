"""The wall under attack, and how an attack gets inside: as the source of a function of the test.

The attacks are real, so they run behind bubblewrap that has been proven only, never without a wall.
"""

from __future__ import annotations

import inspect
import os
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bgpo.errors import SandboxError
from bgpo.sandbox import Limits, Result, Sandbox, Wall
from bgpo.sandbox.wall import proven_bubblewrap

LIMITS = Limits(seconds=20, memory=256 * 2**20, disk=32 * 2**20, processes=16, output=2**16)
Attack = Callable[..., Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder runs by `make test-attacks` only."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.attacks)


@pytest.fixture(scope="session")
def wall() -> Wall:
    """Bubblewrap. CI must have it; elsewhere the reason for skipping is what is missing."""
    try:
        return proven_bubblewrap()
    except SandboxError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no wall to attack: {error}")


@pytest.fixture(scope="module")
def sandbox(wall: Wall) -> Iterator[Sandbox]:
    """One for the attacks of a file that end nothing but their own task."""
    with Sandbox(wall, LIMITS) as made:
        yield made


def inside(sandbox: Sandbox, attack: Attack, *, seconds: float | None = None, **arguments: Any) -> Result:
    """Run a function in a sandbox. It must bring its imports."""
    source = textwrap.dedent(inspect.getsource(attack))
    wrapped = {"source": source, "function": attack.__name__, "arguments": arguments}
    return sandbox.run("probe:execute", wrapped, seconds=seconds)


def assert_stopped(result: Result, *errors: type[OSError]) -> None:
    """The attack itself ran into one of the errors."""
    assert result.ended == "raised", result
    assert result.message.split(":")[0] in {error.__name__ for error in errors}, result.message


def assert_still_works(wall: Wall, sandbox: Sandbox | None = None) -> None:
    """A task returns in a new sandbox, and in this one if it has not ended."""
    if sandbox is not None and sandbox.alive:
        assert sandbox.run("probe:echo", {"still": "here"}).value == [{"still": "here"}, "", 0]
    with Sandbox(wall, LIMITS) as fresh:
        assert fresh.run("probe:echo", {"still": "here"}).value == [{"still": "here"}, "", 0]
