"""The contract's core rows and its 21 surprises, by the unmodified `openai` clients of three releases, sync and async.

The checks are `tests.contract.clients`: one program, run by the interpreter of each client's own environment. Here is
the other side: a service for each client, and the steps on it that a check asks for.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.contract.clients import CHECKS
from tests.contract.environments import RELEASES, ROOT, interpreter
from tests.contract.steps import Steps
from tests.generating import chatting, copied
from tests.service import services

pytestmark = pytest.mark.timeout(300)  # making an environment counts with the first test that uses it
FEATURES: frozenset[str] = frozenset(
    {"expires_after", "inference", "permissions", "result_files", "retries", "uploads", "webhook_endpoints"}
)
"""What the service has; a check that needs another is left out."""
CLIENTS = [(release, mode) for release in RELEASES for mode in ("sync", "async")]
NAMES = [name for name, entry in CHECKS.items() if entry.feature is None or entry.feature in FEATURES]


@dataclass
class Client:
    """A running client, and the steps it may ask for."""

    process: subprocess.Popen[str]
    steps: Steps

    def say(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a line and read the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        return self.hear()

    def hear(self) -> dict[str, Any]:
        """Read a line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the client's program ended with {self.process.wait()}"
        heard: dict[str, Any] = json.loads(line)
        return heard

    def run(self, name: str) -> str | None:
        """Run a check: None, or its traceback."""
        message = self.say({"check": name, "url": self.steps.service.url})
        while "step" in message:
            try:
                answer = {"result": getattr(self.steps, message["step"])(**message["arguments"])}
            except Exception as error:  # boundary to the client's process: the check shows it
                answer = {"error": repr(error)}
            message = self.say(answer)
        failed: str | None = message["failed"]
        return failed


@pytest.fixture(scope="module")
def chat(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, redis_url: str, model_root: Path
) -> Iterator[Callable[[], str]]:
    """Gives the URL of a service with a generator. It starts with the first call: it takes seconds."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def url() -> str:
            folder = tmp_path_factory.mktemp("chat")
            chat = stack.enter_context(chatting(folder, copied(sqlite_template, folder), redis_url, model_root))
            chat.start_generator()
            return chat.url

        yield url


@pytest.fixture(scope="module", params=CLIENTS, ids=lambda client: "-".join(client))
def client(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, chat: Callable[[], str]
) -> Iterator[Client]:
    """A client's process with a service of its own."""
    release, mode = request.param
    command = [str(interpreter(release)), "-m", "tests.contract.clients", mode]
    folder = tmp_path_factory.mktemp("service")
    with contextlib.ExitStack() as stack:
        start = stack.enter_context(services(folder))
        pipe = subprocess.PIPE
        process = stack.enter_context(subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True))
        stack.callback(process.kill)
        client = Client(process, Steps(start(max_queued_jobs=10_000), start, folder, chat))
        stack.callback(client.steps.close)
        assert ".".join(map(str, client.hear()["version"])) == release
        yield client


@pytest.mark.parametrize("name", NAMES)
def test_check(client: Client, name: str) -> None:
    failed = client.run(name)
    if failed is not None:
        pytest.fail(failed, pytrace=False)


def test_each_surprise_has_a_check() -> None:
    numbers = {int(found[1]) for name in CHECKS if (found := re.match(r"s(\d\d)_", name))}
    assert numbers == set(range(1, 22))


def test_the_page_names_the_releases_and_the_surprises() -> None:
    page = (ROOT / "docs" / "clients.md").read_text()
    assert tuple(re.findall(r"^\| (\d+\.\d+\.\d+) \|", page, flags=re.MULTILINE)) == RELEASES
    assert [int(number) for number in re.findall(r"^\| (\d+) \|", page, flags=re.MULTILINE)] == list(range(1, 22))
