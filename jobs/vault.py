"""Encryption of stored secrets: AES-256-GCM under the installation's keys, bound to the project and the name.

The binding means that a ciphertext copied to another row does not decrypt. Several keys make rotation possible: the
first encrypts, and each decrypts what carries its id. A lost key cannot be replaced: the secrets have to be set again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FILE = "secrets_key"
"""Name of the key file under home, where no key is set."""
_KEY_BYTES = 32
_NONCE_BYTES = 12


class Undecryptable(Exception):
    """No key of this installation opens a ciphertext, or it was altered."""


@dataclass(frozen=True)
class Sealed:
    """An encrypted value, as a row has it."""

    ciphertext: str
    key_id: str


@dataclass(frozen=True)
class Vault:
    """Encrypts with the first key."""

    keys: Sequence[bytes] = field(repr=False)

    def seal(self, project_id: str, name: str, value: str) -> Sealed:
        """Encrypt a secret of a project."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = AESGCM(self.keys[0]).encrypt(nonce, value.encode(), _bound_to(project_id, name))
        return Sealed(base64.b64encode(nonce + sealed).decode(), key_id(self.keys[0]))

    def open(self, project_id: str, name: str, sealed: Sealed) -> str:
        """Decrypt it. Raises Undecryptable."""
        key = next((key for key in self.keys if key_id(key) == sealed.key_id), None)
        if key is None:
            raise Undecryptable(f"key {sealed.key_id} is not one of BGPO_SECRETS_KEY")
        content = base64.b64decode(sealed.ciphertext)
        try:
            value = AESGCM(key).decrypt(content[:_NONCE_BYTES], content[_NONCE_BYTES:], _bound_to(project_id, name))
        except InvalidTag as error:
            raise Undecryptable("the stored value was altered") from error
        return value.decode()


def key_id(key: bytes) -> str:
    """What a row remembers of the key; tells nothing about it."""
    return hashlib.sha256(b"bgpo secrets key id\0" + key).hexdigest()[:8]


def parse_keys(text: str) -> list[bytes]:
    """The keys of a setting, base64 separated by white space.

    Raises:
        ValueError: one of them is not 32 bytes of base64, or there is none.
    """
    try:
        found = [base64.b64decode(part, validate=True) for part in text.split()]
    except binascii.Error as error:
        raise ValueError("must be base64, as `openssl rand -base64 32` writes it") from error
    if not found or any(len(key) != _KEY_BYTES for key in found):
        raise ValueError(f"must be {_KEY_BYTES} bytes in base64, as `openssl rand -base64 32` writes them")
    return found


def key_of_home(home: Path, file: str = FILE) -> bytes:
    """The key kept in a file of a home folder, made on first use; processes that start at once get the same one."""
    path = home / file
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        unfinished = home / f"{file}.{os.getpid()}.{secrets.token_hex(4)}"
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(base64.b64encode(secrets.token_bytes(_KEY_BYTES)) + b"\n")
            out.flush()
            os.fsync(out.fileno())
        try:
            os.link(unfinished, path)
        except FileExistsError:  # another process was quicker
            pass
        finally:
            unfinished.unlink()
    return parse_keys(path.read_text())[0]


def _bound_to(project_id: str, name: str) -> bytes:
    return f"{project_id}\0{name}".encode()
