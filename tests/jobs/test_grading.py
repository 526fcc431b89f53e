"""What graders get of the settings and the secrets: no more than they name."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from bgpo.rewards import parse_grader_spec
from bgpo.rewards.spec import AnyGraderSpec
from jobs.db import Database
from jobs.errors import InvalidRequest, MissingSecret
from jobs.repositories import secrets
from jobs.services.grading import grader_settings, secrets_for, vault
from jobs.settings import Settings

KEY = base64.b64encode(b"k" * 32).decode()
JUDGES = {name: {"base_url": f"https://{name}.example/v1", "api_key": f"key-of-{name}"} for name in ("a", "b")}
ENDPOINT = {
    "type": "endpoint", "name": "e", "url": "https://example.com", "signing_secret": "SIGN",
    "headers": {"Authorization": "Bearer {{ secret.TOKEN }}", "X-Team": "red"},
}  # fmt: skip
JUDGED = {"type": "score_model", "name": "s", "model": "b", "input": [{"role": "user", "content": "Hi"}]}
PLAIN = {"type": "string_check", "name": "c", "operation": "eq", "input": "a", "reference": "a"}


def spec(*graders: dict[str, Any]) -> AnyGraderSpec:
    parts = dict(zip("xyz", graders, strict=False))
    return parse_grader_spec({"type": "multi", "name": "m", "graders": parts, "calculate_output": "x"})


def settings(tmp_path: Path, **values: Any) -> Settings:
    return Settings(home=tmp_path, secrets_key=values.pop("secrets_key", KEY), judges=JUDGES, **values)


def put(db: Database, given: Settings, name: str, value: str, project: str = "proj") -> None:
    with db.transaction() as session:
        secrets.put(session, project, name, vault(given).seal(project, name, value))


def test_a_grader_gets_the_secrets_that_it_names(db: Database, tmp_path: Path) -> None:
    given = settings(tmp_path)
    for name in ("SIGN", "TOKEN", "OTHER"):
        put(db, given, name, f"value of {name}")
    put(db, given, "TOKEN", "new value")
    put(db, given, "TOKEN", "not ours", project="another")
    expected = {"SIGN": "value of SIGN", "TOKEN": "new value", "judge:b": "key-of-b"}
    assert secrets_for(given, db, "proj", spec(ENDPOINT, JUDGED)) == expected
    assert secrets_for(given, db, "proj", parse_grader_spec(PLAIN)) == {}
    cosine = {"type": "text_similarity", "name": "t", "input": "a", "reference": "b", "evaluation_metric": "cosine"}
    embedding = settings(tmp_path, embedding_model="a")
    assert secrets_for(embedding, db, "proj", parse_grader_spec(cosine)) == {"judge:a": "key-of-a"}


def test_a_missing_secret_is_named_with_its_place(db: Database, tmp_path: Path) -> None:
    given = settings(tmp_path)
    put(db, given, "SIGN", "s")
    put(db, given, "TOKEN", "not ours", project="another")
    with pytest.raises(MissingSecret, match="no secret TOKEN") as caught:
        secrets_for(given, db, "proj", spec(PLAIN, ENDPOINT))
    assert caught.value.param == "graders.y.headers"


def test_a_secret_whose_key_is_gone_is_named(db: Database, tmp_path: Path) -> None:
    for name in ("SIGN", "TOKEN"):
        put(db, settings(tmp_path), name, "s")
    other = settings(tmp_path, secrets_key=base64.b64encode(b"o" * 32).decode())
    with pytest.raises(MissingSecret, match="SIGN cannot be decrypted"):
        secrets_for(other, db, "proj", parse_grader_spec(ENDPOINT))
    both = settings(tmp_path, secrets_key=f"{other.secrets_key.get_secret_value() if other.secrets_key else ''} {KEY}")
    assert secrets_for(both, db, "proj", parse_grader_spec(ENDPOINT)) == {"SIGN": "s", "TOKEN": "s"}


def test_without_a_key_only_an_embedded_service_keeps_secrets(tmp_path: Path) -> None:
    embedded = Settings(home=tmp_path)
    assert vault(embedded).open("p", "N", vault(embedded).seal("p", "N", "v")) == "v"
    shared = Settings(home=tmp_path, database_url="postgresql://host/db")
    with pytest.raises(InvalidRequest, match="BGPO_SECRETS_KEY") as caught:
        vault(shared)
    assert caught.value.code == "secrets_unavailable"


def test_settings_without_any_secret(tmp_path: Path) -> None:
    models = tmp_path / "rewards"
    (models / "rm").mkdir(parents=True)
    (models / "rm" / "config.json").write_text("{}")
    (models / "no-model").mkdir()
    given = settings(
        tmp_path, reward_model_root=models, egress_hosts=("*.example.com",), grader_max_seconds=5, embedding_model="a"
    )
    shown = grader_settings(given)
    assert shown.reward_models == {"rm": str(models / "rm")}
    assert shown.judges["a"].base_url == "https://a.example/v1"
    assert (shown.egress.hosts, shown.egress.ports, shown.egress.allow_private) == (["*.example.com"], [443], False)
    assert (shown.sandbox.max_seconds, shown.embedding_model) == (5, "a")
    assert "key-of" not in shown.model_dump_json() + repr(shown) + repr(given)


def test_an_embedding_model_is_a_judge(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="embedding_model x is not one of judges"):
        settings(tmp_path, embedding_model="x")
