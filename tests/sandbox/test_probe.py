"""The probe finds each hole: walls are weakened on purpose, one thing at a time, and only where that does no harm."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from bgpo.sandbox import Limits, SandboxError, Wall
from bgpo.sandbox.bubblewrap import Bubblewrap
from bgpo.sandbox.launch import Launch, Unwalled
from bgpo.sandbox.probe import probe
from bgpo.sandbox.wall import prove


class Weakened(Bubblewrap):
    """Bubblewrap with some options of the innermost stage left out, others put before its command."""

    def __init__(self, program: str, *, without: tuple[str, ...] = (), more: tuple[str, ...] = ()) -> None:
        super().__init__(program)
        self._without, self._more = without, more

    @contextmanager
    def launch(self, limits: Limits) -> Iterator[Launch]:
        with super().launch(limits) as launch:
            command = list(launch.command)
            for option in self._without:  # each with one value
                place = len(command) - 1 - command[::-1].index(option)
                del command[place : place + 2]
            end = len(command) - 1 - command[::-1].index("--")
            yield replace(launch, command=[*command[:end], *self._more, *command[end:]])


@pytest.fixture
def program(bubblewrap: Wall) -> str:
    assert isinstance(bubblewrap, Bubblewrap)
    return bubblewrap.program


def broken(wall: Wall) -> set[str]:
    return {finding.name for finding in probe(wall) if not finding.held}


def test_a_whole_wall_holds(program: str) -> None:
    findings = probe(Bubblewrap(program))
    assert [finding for finding in findings if not finding.held] == []
    assert len({finding.name for finding in findings}) == len(findings) >= 20
    assert all(finding.detail for finding in findings)


def test_a_network_that_is_left_is_found(program: str) -> None:
    found = broken(Weakened(program, without=("--seccomp",), more=("--share-net",)))
    assert {"network: a listener on this machine", "network: an abstract Unix socket", "network: interfaces"} <= found
    assert "kernel: namespaces of the service" in found


def test_a_filter_that_is_missing_is_found(program: str) -> None:
    found = broken(Weakened(program, without=("--seccomp",)))
    assert "rights: capabilities, new privileges, no filter" in found
    assert "processes: trace one" in found


def test_files_that_are_in_sight_are_found(program: str) -> None:
    source = "/usr/lib/os-release" if os.geteuid() == 0 else "/etc/passwd"  # as root only what the outer stage shows
    more = ("--ro-bind", source, "/etc/passwd")
    assert "files: accounts" in broken(Weakened(program, without=("--remount-ro",), more=more))


def test_an_environment_that_is_handed_on_is_found(program: str) -> None:
    assert "environment" in broken(Weakened(program, more=("--setenv", "BGPO_API_KEY", "secret")))


def test_a_root_that_can_be_written_is_found(program: str) -> None:
    assert {"files: write the root"} <= broken(Weakened(program, without=("--remount-ro",)))


def test_a_wall_with_a_hole_is_refused_by_name(program: str) -> None:
    with pytest.raises(SandboxError, match=r"does not hold.*files: write the root") as caught:
        prove(Weakened(program, without=("--remount-ro",)))
    assert caught.value.code == "sandbox_unavailable"


def test_without_a_wall_there_is_no_probe() -> None:
    """Its attacks would reach this machine."""
    with pytest.raises(ValueError, match="only behind a wall"):
        probe(Unwalled())
