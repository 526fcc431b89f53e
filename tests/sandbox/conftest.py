"""A sandbox for tests of what any sandbox does: behind bubblewrap where it holds, and as a plain process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from bgpo.sandbox import Limits, Sandbox, SandboxError, Wall
from bgpo.sandbox.launch import Unwalled
from bgpo.sandbox.wall import proven_bubblewrap

LIMITS = Limits(seconds=20, memory=256 * 2**20, disk=32 * 2**20, processes=16, output=2**16)


@pytest.fixture(scope="session")
def bubblewrap() -> Wall:
    """The real wall. CI must have it; elsewhere the reason for skipping is what is missing."""
    try:
        return proven_bubblewrap()
    except SandboxError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no wall here: {error}")


@pytest.fixture(params=["bubblewrap", "none"])
def wall(request: pytest.FixtureRequest) -> Wall:
    """Each kind of wall."""
    if request.param == "none":
        return Unwalled()
    found: Wall = request.getfixturevalue("bubblewrap")
    return found


@pytest.fixture
def sandbox(wall: Wall) -> Iterator[Sandbox]:
    """A running sandbox."""
    with Sandbox(wall, LIMITS) as made:
        yield made
