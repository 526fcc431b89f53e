"""What is read of a trainer's log: whole lines, bounded, without secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.repositories.events import Level
from worker import printed
from worker.printed import LogReader


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "trainer.log"
    path.touch()
    return path


def write(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)


def texts(reader: LogReader, *, to_end: bool = False) -> list[str]:
    found = reader.read(to_end=to_end)
    return [] if found is None else [text for _, text in found.lines]


def test_lines_come_whole_and_once_with_their_number(log: Path) -> None:
    reader = LogReader(log, {})
    assert reader.read() is None
    write(log, "one\n\ntw")
    first = reader.read()
    assert first is not None
    assert (first.first, first.lines) == (1, (("info", "one"),))
    assert reader.read() is None
    write(log, "o\nthree")
    second = reader.read()
    assert second is not None
    assert (second.first, second.lines) == (2, (("info", "two"),))
    assert texts(reader, to_end=True) == ["three"]
    assert texts(reader, to_end=True) == []


def test_paths_and_secrets_are_hidden_also_where_a_line_is_cut(log: Path) -> None:
    reader = LogReader(log, {"/srv/work": "<work>", "s3cret": "<secret key>"})
    write(log, "at /srv/work/a with s3cret\n" + "x" * (printed.MAX_TEXT - 3) + "s3cret\n")
    assert texts(reader) == ["at <work>/a with <secret key>", "x" * (printed.MAX_TEXT - 3) + "<se"]


def test_of_a_progress_bar_the_last_form_counts(log: Path) -> None:
    write(log, "10%\r50%\r100%\ndone\r\n")
    assert texts(LogReader(log, {})) == ["100%", "done"]


def test_too_many_lines_are_left_out_and_counted(log: Path) -> None:
    write(log, "".join(f"{number}\n" for number in range(1000)))
    found = texts(LogReader(log, {}))
    assert found[0] == "[900 lines left out]"
    assert found[1:] == [str(number) for number in range(900, 1000)]


def test_what_comes_too_fast_is_passed_over_up_to_a_line(log: Path) -> None:
    reader = LogReader(log, {"s3cret": "<secret>"})
    write(log, "s3cret " * 300_000 + "\nlast\n")
    assert texts(reader) == [f"[{300_000 * 7 + 6 - 64 * 1024} bytes left out]", "last"]


def test_a_line_without_end_is_kept_no_longer_than_shown(log: Path) -> None:
    reader = LogReader(log, {})
    for _ in range(20):
        write(log, "y" * 60_000)
        assert texts(reader) == []
    write(log, "\nafter\n")
    assert texts(reader) == ["y" * printed.MAX_TEXT, "after"]


def test_a_log_that_is_gone_says_nothing(log: Path) -> None:
    reader = LogReader(log, {})
    log.unlink()
    assert reader.read(to_end=True) is None


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("2026-01-01 INFO loaded", "info"),
        ("no errors so far", "info"),
        ("WARNING: slow disk", "warn"),
        ("/x/y.py:3: UserWarning: deprecated", "warn"),
        ("2026 ERROR broke", "error"),
        ("Traceback (most recent call last):", "error"),
        ("ValueError: no", "error"),
    ],
)
def test_levels(log: Path, line: str, level: Level) -> None:
    write(log, line + "\n")
    found = LogReader(log, {}).read()
    assert found is not None
    assert found.lines == ((level, line),)
