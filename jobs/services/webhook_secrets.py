"""Signing secrets of webhook endpoints: made here, shown once, kept encrypted, opened where a webhook is signed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from bgpo.egress.signing import keys, new_secret
from jobs.services.grading import vault
from jobs.settings import Settings
from jobs.vault import Sealed

_SHOWN = 4


@dataclass(frozen=True)
class NewSecret:
    """A secret that no one has seen yet."""

    text: str = field(repr=False)
    sealed: Sealed

    @property
    def hint(self) -> str:
        """What tells it from others of the same endpoint: too little to guess it from."""
        return f"whsec_...{self.text.rstrip('=')[-_SHOWN:]}"


def make(settings: Settings, project_id: str, endpoint_id: str) -> NewSecret:
    """A new secret for an endpoint. Raises InvalidRequest when this installation has no key to keep it with."""
    text = new_secret()
    return NewSecret(text, vault(settings).seal(project_id, _name(endpoint_id), text))


def opened(settings: Settings, project_id: str, endpoint_id: str, sealed: Iterable[Sealed]) -> list[bytes]:
    """The signing keys. Raises Undecryptable, InvalidRequest."""
    safe = vault(settings)
    return [key for each in sealed for key in keys(safe.open(project_id, _name(endpoint_id), each))]


def _name(endpoint_id: str) -> str:
    return f"webhook_endpoint/{endpoint_id}"  # a secret of graders has no slash in its name
