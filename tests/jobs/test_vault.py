"""Encryption of secrets: bound to its row, several keys, a key file made once; and what of it ends up on disk."""

from __future__ import annotations

import base64
import secrets
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from jobs.settings import Settings
from jobs.vault import FILE, Undecryptable, Vault, key_id, key_of_home, parse_keys

OLD, NEW = bytes(range(32)), bytes(range(1, 33))


def test_what_is_sealed_opens_again_and_is_aes_gcm() -> None:
    sealed = Vault([OLD]).seal("proj", "NAME", "välue")
    assert Vault([OLD]).open("proj", "NAME", sealed) == "välue"
    content = base64.b64decode(sealed.ciphertext)
    assert "välue".encode() not in content
    assert AESGCM(OLD).decrypt(content[:12], content[12:], b"proj\0NAME") == "välue".encode()
    assert Vault([OLD]).seal("proj", "NAME", "välue") != sealed  # another nonce


@pytest.mark.parametrize(("project", "name"), [("other", "NAME"), ("proj", "OTHER")])
def test_a_ciphertext_of_another_row_does_not_open(project: str, name: str) -> None:
    sealed = Vault([OLD]).seal("proj", "NAME", "value")
    with pytest.raises(Undecryptable, match="altered"):
        Vault([OLD]).open(project, name, sealed)


def test_an_altered_one_does_not_open() -> None:
    sealed = Vault([OLD]).seal("proj", "NAME", "value")
    content = bytearray(base64.b64decode(sealed.ciphertext))
    content[-1] ^= 1
    with pytest.raises(Undecryptable):
        Vault([OLD]).open("proj", "NAME", replace(sealed, ciphertext=base64.b64encode(content).decode()))


def test_rotation() -> None:
    sealed = Vault([OLD]).seal("proj", "NAME", "value")
    both = Vault([NEW, OLD])
    assert both.open("proj", "NAME", sealed) == "value"
    assert both.seal("proj", "NAME", "value").key_id == key_id(NEW)
    with pytest.raises(Undecryptable, match=key_id(OLD)):
        Vault([NEW]).open("proj", "NAME", sealed)
    assert NEW.hex() not in repr(both)
    assert repr(NEW) not in repr(both)


def test_keys_of_a_setting() -> None:
    texts = [base64.b64encode(key).decode() for key in (NEW, OLD)]
    assert parse_keys("  \n".join(texts)) == [NEW, OLD]
    for wrong in ("", "not base64!", base64.b64encode(b"short").decode()):
        with pytest.raises(ValueError, match="openssl rand -base64 32"):
            parse_keys(wrong)
    secret = secrets.token_hex(8)
    with pytest.raises(ValueError, match="secrets_key") as caught:
        Settings(secrets_key=secret)
    assert secret not in str(caught.value)
    assert Settings(secrets_key="").secrets_key is None  # as compose passes a variable that is not set


def test_the_key_of_a_home_is_made_once_and_for_its_owner(tmp_path: Path) -> None:
    home = tmp_path / "home"
    code = (
        f"from pathlib import Path; from jobs.vault import key_of_home; print(key_of_home(Path({str(home)!r})).hex())"
    )
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(4)]
    assert {process.communicate()[0].strip() for process in started} == {key_of_home(home).hex().encode()}
    assert [path.name for path in home.iterdir()] == [FILE]
    assert (home / FILE).stat().st_mode & 0o777 == 0o600
