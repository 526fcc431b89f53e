"""`bgpo chat` against a real service whose generator the test plays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.repositories import completions, generators
from tests.generating import Chat, chatting, copied
from tests.running import wait_until

COMMAND = [sys.executable, "-m", "cli.main", "chat"]


@pytest.fixture
def chat(tmp_path: Path, sqlite_template: Path, redis_url: str, model_root: Path) -> Iterator[Chat]:
    with chatting(tmp_path / "home", copied(sqlite_template, tmp_path), redis_url, model_root) as chat:
        yield chat


def start(chat: Chat, *arguments: str) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*COMMAND, *arguments, "--url", chat.url], text=True, env=os.environ, **pipes)


def answer(chat: Chat, *pieces: str) -> list[dict[str, str]]:
    """Answer the next request as a generator does; the messages it had."""

    def waits() -> bool:
        with chat.ctx.db.transaction() as session:
            return completions.count_waiting(session, "")[0] == 1

    wait_until(waits)
    with chat.ctx.db.transaction() as session:
        (claimed,) = completions.claim(session, "g1", 60, 1)
        for seq, piece in enumerate(pieces):
            completions.write_block(session, claimed.id, claimed.epoch, seq, piece)
        completions.finish(session, claimed.id, claimed.epoch, "stop", 3, len(pieces))
    messages: list[dict[str, str]] = claimed.request["messages"]
    return messages


def seen(chat: Chat) -> None:
    with chat.ctx.db.transaction() as session:
        generators.beat(session, "g1", host="h", pid=1, device="cpu", version="1", models=[])


def test_one_message(chat: Chat) -> None:
    seen(chat)
    with start(chat, "tiny", "hello", "--system", "be kind", "--max-tokens", "8") as process:
        asked = answer(chat, "one ", "two")
        assert process.communicate(timeout=30) == ("one two\n", "")
    assert process.returncode == 0
    assert asked == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]


def test_a_conversation(chat: Chat) -> None:
    seen(chat)
    with start(chat, "tiny") as process:
        assert process.stdin is not None
        process.stdin.write("first\n\nsecond\n")
        process.stdin.close()
        answer(chat, "1st")
        asked = answer(chat, "2nd")
        assert process.wait(30) == 0
        assert process.stdout is not None
        assert process.stdout.read() == "1st\n2nd\n"
    assert [message["content"] for message in asked] == ["first", "1st", "second"]


def test_an_error_is_one_line(chat: Chat) -> None:
    with start(chat, "nope", "hello") as process:
        _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert said == "error: model: The model 'nope' does not exist. (status 404, code model_not_found)\n"
