"""Secrets reach a run and nothing that it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bgpo.errors import SpecError
from bgpo.secrets import VARIABLE, take_secrets


def pipe(content: bytes) -> int:
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    return reader


def test_a_pipe_is_read_once_and_closed() -> None:
    fd = pipe(json.dumps({"TOKEN": "größe", "judge:j": "k"}).encode())
    assert take_secrets(fd) == {"TOKEN": "größe", "judge:j": "k"}
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_the_variable_is_gone_for_what_is_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, '{"TOKEN": "hunter2"}')
    assert take_secrets() == {"TOKEN": "hunter2"}
    assert take_secrets() == {}
    child = [sys.executable, "-c", "import os; print(dict(os.environ))"]
    assert "hunter2" not in subprocess.run(child, capture_output=True, text=True, check=True).stdout


def test_the_descriptor_counts_and_the_variable_goes_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, '{"TOKEN": "old"}')
    assert take_secrets(pipe(b'{"TOKEN": "new"}')) == {"TOKEN": "new"}
    assert VARIABLE not in os.environ


@pytest.mark.parametrize(
    "content", [b"hunter2", b'{"TOKEN": "hunter2"', b'["hunter2"]', b'{"A": 1, "B": "hunter2"}', b""]
)
def test_what_is_no_object_of_strings_is_refused_without_quoting_it(content: bytes) -> None:
    with pytest.raises(SpecError, match="JSON object of strings") as caught:
        take_secrets(pipe(content))
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_what_is_not_text_is_refused() -> None:
    with pytest.raises(SpecError, match="cannot be read: UnicodeDecodeError"):
        take_secrets(pipe(b"\xff"))
    with pytest.raises(SpecError, match="cannot be read: OSError"):
        take_secrets(10**6)
