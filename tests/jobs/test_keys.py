"""API keys: their text, what is stored of them, how they end, and what their scopes stand for. On both databases."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobs import keys as text
from jobs.db import Database, now
from jobs.repositories import keys
from jobs.scopes import SCOPES, expand, missing
from jobs.services import keys as service
from jobs.settings import Settings
from jobs.tables import DEFAULT_ORGANIZATION, DEFAULT_PROJECT
from jobs.tenant_tables import AdminKey, ApiKey

PEPPER = b"p" * 32
BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def base62(number: int) -> str:
    return base62(number // 62) + BASE62[number % 62] if number else ""


class TestText:
    def test_the_form_and_the_checksum(self) -> None:
        key = text.new_key("live")
        assert re.fullmatch(r"bgpo_live_[0-9A-Za-z]{8}_[0-9A-Za-z]{38}", key.text)
        body, checksum = key.text[:-6], key.text[-6:]
        assert checksum.lstrip("0") == base62(zlib.crc32(body.encode()))
        assert key.id == "key_" + key.text.split("_")[2]
        assert text.parse(key.text) == key
        assert text.new_key("admin").text.startswith("bgpo_admin_")

    def test_what_is_mistyped_is_no_key(self) -> None:
        key = text.new_key("live").text
        swapped = key[:12] + key[13] + key[12] + key[14:]
        for wrong in (
            "",
            "sk-x",
            key[:-1],
            key + "0",
            key.upper(),
            f" {key}",
            key + "\n",
            key.replace("live", "admin"),
        ):
            assert text.parse(wrong) is None
        assert swapped == key or text.parse(swapped) is None

    def test_keys_do_not_repeat_and_do_not_show(self) -> None:
        made = [text.new_key("live") for _ in range(200)]
        assert len({key.text for key in made}) == len({key.text[19:51] for key in made}) == 200
        assert made[0].text not in repr(made[0])
        assert made[0].text[19:51] not in text.redacted("live", made[0].id)

    def test_the_digest_is_an_hmac_under_the_pepper(self) -> None:
        key = text.new_key("live")
        assert text.digest(PEPPER, key) == hmac.new(PEPPER, key.text.encode(), hashlib.sha256).hexdigest()
        assert text.digest(b"q" * 32, key) != text.digest(PEPPER, key)


class TestScopes:
    def test_writing_implies_reading(self) -> None:
        assert expand(["jobs:write"]) == ["jobs:read", "jobs:write"]
        assert expand(["graders:write"]) == ["graders:read", "graders:run", "graders:write"]
        assert expand(["graders:run"]) == ["graders:run"]

    def test_presets(self) -> None:
        assert expand(["all"]) == list(SCOPES)
        assert expand(["read_only", "inference"]) == [
            "files:read", "jobs:read", "models:read", "graders:read", "inference",
        ]  # fmt: skip

    def test_an_operation_without_scopes_needs_all(self) -> None:
        assert missing(["jobs:read"], ["jobs:read"]) == []
        assert missing(["jobs:read", "inference"], ["jobs:read"]) == ["inference"]
        assert missing([], SCOPES[1:]) == [SCOPES[0]]


class TestPepper:
    def test_is_made_once_and_for_its_owner_only(self, tmp_path: Path) -> None:
        settings = Settings(home=tmp_path)
        first = service.pepper(settings)
        assert service.pepper(settings) == first
        assert len(first) == 32
        path = tmp_path / service.PEPPER_FILE
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600

    def test_may_be_set(self, tmp_path: Path) -> None:
        assert (
            service.pepper(Settings(home=tmp_path, key_pepper="cGVwcGVy" * 4 + "cGVwcGVycGU="))
            == b"pepper" * 4 + b"pepperpe"
        )
        assert not (tmp_path / service.PEPPER_FILE).exists()
        with pytest.raises(ValueError, match="32 bytes"):
            Settings(home=tmp_path, key_pepper="c2hvcnQ=")


@pytest.fixture
def insert(db: Database) -> Callable[..., text.Key]:
    """Stores a key of the default project."""

    def make(expires_in_s: float | None = None) -> text.Key:
        key = text.new_key("live")
        values = {"name": "k", "digest": text.digest(PEPPER, key), "scopes": ["jobs:read"], "created_by": None}
        with db.transaction() as session:
            keys.insert(session, DEFAULT_PROJECT, id=key.id, expires_in_s=expires_in_s, **values)
        return key

    return make


class TestRows:
    def test_a_key_is_found_by_its_hash_alone(self, db: Database, insert: Callable[..., text.Key]) -> None:
        key, other = insert(), insert()
        found = service.check(db, key, text.digest(PEPPER, key))
        assert found is not None
        assert (found.project_id, found.organization_id, found.scopes) == (
            DEFAULT_PROJECT,
            DEFAULT_ORGANIZATION,
            ["jobs:read"],
        )
        assert service.check(db, key, text.digest(PEPPER, other)) is None
        unknown = text.new_key("live")
        assert service.check(db, unknown, text.digest(PEPPER, unknown)) is None
        with db.read() as session:
            stored = str(session.execute(sa.select(ApiKey.__table__)).all())  # type: ignore[arg-type]
        assert key.text not in stored
        assert key.text[19:51] not in stored

    def test_the_last_use_is_noted_to_the_minute(self, db: Database, insert: Callable[..., text.Key]) -> None:
        key = insert()
        digest = text.digest(PEPPER, key)

        def used() -> float | None:
            with db.read() as session:
                return session.get_one(ApiKey, key.id, populate_existing=True).last_used_at

        assert used() is None
        service.check(db, key, digest)
        first = used()
        assert first is not None
        service.check(db, key, digest)
        assert used() == first
        with db.transaction() as session:
            session.execute(sa.update(ApiKey).values(last_used_at=first - 61))
        service.check(db, key, digest)
        assert used() >= first  # type: ignore[operator]

    def test_expiry_is_never_put_off(self, db: Database, insert: Callable[..., text.Key]) -> None:
        soon, never = insert(10), insert()
        with db.transaction() as session:
            for key in (soon, never):
                keys.expire_in(session, ApiKey, key.id, 1000)
        with db.read() as session:
            left = {
                key: session.scalars(sa.select(ApiKey.expires_at - now()).where(ApiKey.id == key.id)).one()
                for key in (soon, never)
            }
        assert 0 < left[soon] <= 10
        assert 990 < left[never] <= 1000

    def test_revoking_again_keeps_the_first_time(self, db: Database, insert: Callable[..., text.Key]) -> None:
        key = insert()
        times = []
        for _ in range(2):
            with db.transaction() as session:
                keys.revoke(session, ApiKey, key.id)
            with db.read() as session:
                times.append(session.get_one(ApiKey, key.id).revoked_at)
        assert times[0] is not None
        assert times[0] == times[1]

    def test_the_kinds_are_apart(self, db: Database, tmp_path: Path) -> None:
        settings = Settings(home=tmp_path)
        made = service.make_admin(settings, db, DEFAULT_ORGANIZATION, name="root", expires_in_s=None, by=None)
        key = text.parse(made.value)
        assert key is not None
        digest = text.digest(service.pepper(settings), key)
        found = service.check(db, key, digest)
        assert found is not None
        assert found.project_id is None
        with db.read() as session:
            assert session.get(AdminKey, key.id) is not None
            assert keys.find(session, key.id) is None
