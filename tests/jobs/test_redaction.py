"""Secrets that are logged anyway do not reach the log."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from jobs.keys import new_key
from jobs.redaction import GONE, Redactor, secrets_of
from jobs.settings import Settings

KEY = new_key("live").text
PROGRAM = """
import logging, sys
import structlog
from jobs.log import configure_logging
from jobs.settings import Settings
configure_logging(Settings())
log = structlog.get_logger()
key, secret = sys.argv[1:]
log.info("a key " + key, authorization="Bearer abcdefgh", nested={"password": "pw", "list": [{"api_key": "k"}]})
log.warning("said", headers={"Authorization": "x", "accept": "text/plain"}, url="https://user:hunter22@example.org/x")
logging.getLogger("lib").error("library says %s and %s", secret, "whsec_c2VjcmV0")
try:
    raise ValueError(f"could not use {secret}")
except ValueError:
    log.exception("broke", count=3, none=None)
"""


def redacted(**event: Any) -> dict[str, Any]:
    return dict(Redactor(frozenset({"correct horse"}))(None, "info", event))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (KEY, f"{KEY[:18]}_{GONE}"),
        (f"key={KEY}, next", f"key={KEY[:18]}_{GONE}, next"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", f"whsec_{GONE}"),
        ("Authorization: Bearer abc.def-ghi", f"Authorization: Bearer {GONE}"),
        ("postgresql+psycopg://bgpo:s3cret@db:5432/x", f"postgresql+psycopg://bgpo:{GONE}@db:5432/x"),
        ("redis://:pass@host", f"redis://:{GONE}@host"),
        ("sk-proj-0123456789abcdef", f"sk-{GONE}"),
        ("hf_0123456789abcdefABCD", f"hf_{GONE}"),
        ("AKIAIOSFODNN7EXAMPLE", GONE),
        ("it is the correct horse, yes", f"it is the {GONE}, yes"),
    ],
    ids=lambda text: text.replace(KEY, "KEY").replace(KEY[:18], "ID"),  # each process makes another key
)
def test_forms(text: str, shown: str) -> None:
    assert redacted(event=text)["event"] == shown


@pytest.mark.parametrize(
    "name",
    ["authorization", "Authorization", "api_key", "password", "signing_secret", "hf_token", "key_pepper", "Cookie"],
)
def test_fields(name: str) -> None:
    assert redacted(**{name: "x"})[name] == GONE
    assert redacted(outer=[{name: ["x"]}])["outer"] == [{name: GONE}]


def test_the_rest_stays() -> None:
    event = {"event": "job ftjob-1 of proj_x: step 3", "key": "checkpoints/a", "idempotency_key": "i", "tokens": 5}
    event |= {"ok": True, "none": None, "ratio": 0.5, "path": "/v1/files/x", "url": "https://example.org:443/a@b"}
    assert redacted(**event) == event


def test_other_objects_are_shown_without_their_secrets() -> None:
    shown = redacted(settings=SecretStr("abc"), error=ValueError(f"no {KEY}"))
    assert shown["settings"] == GONE
    assert KEY not in shown["error"]


def test_the_secrets_of_the_settings(tmp_path: Path) -> None:
    judge = {"base_url": "https://j.example/v1", "model": "m", "api_key": "judge-key"}
    settings = Settings(
        home=tmp_path,
        api_key=SecretStr("the-api-key"),
        redis_url=SecretStr("redis://:redis-password@h:6379/0"),
        database_url="postgresql://u:p%40ss-word@h/d",
        judges={"j": judge},  # type: ignore[dict-item]  # validated
    )
    assert {"the-api-key", "redis-password", "p@ss-word", "judge-key"} <= secrets_of(settings)
    assert not {text for text in secrets_of(settings) if "example" in text or "redis://" in text}


def test_whatever_a_process_logs(tmp_path: Path) -> None:
    secret = "looks-like-nothing"
    env = {"BGPO_HOME": str(tmp_path), "BGPO_LOG_FORMAT": "json", "BGPO_ADMIN_KEY": secret}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, KEY, secret], env=env, capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    assert [line["level"] for line in lines] == ["info", "warning", "error", "error"]
    for leaked in (KEY, secret, "abcdefgh", "hunter22", "c2VjcmV0", '"pw"', '"k"'):
        assert leaked not in ran.stderr
    assert lines[1]["headers"] == {"Authorization": GONE, "accept": "text/plain"}
    assert lines[3]["exception"].endswith(f"could not use {GONE}")
    assert (lines[3]["count"], lines[3]["none"]) == (3, None)
