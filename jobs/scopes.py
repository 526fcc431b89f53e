"""What a project's key may do. Who may write a kind of object may read it, too, and who may store graders may run
them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, get_args

Scope = Literal[
    "files:read",
    "files:write",
    "jobs:read",
    "jobs:write",
    "models:read",
    "models:write",
    "graders:read",
    "graders:run",
    "graders:write",
    "inference",
]
Preset = Literal["all", "read_only"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
ALL: frozenset[str] = frozenset(SCOPES)
PRESETS: dict[Preset, frozenset[str]] = {
    "all": ALL,
    "read_only": frozenset(scope for scope in SCOPES if scope.endswith(":read")),
}


def expand(wanted: Collection[str]) -> list[str]:
    """The scopes that a list of scopes and presets stands for, in order, with what writing implies."""
    found: set[str] = set()
    for name in wanted:
        found |= next((scopes for preset, scopes in PRESETS.items() if preset == name), frozenset({name}))
    implied = {scope.replace(":write", ":read") for scope in found}
    if "graders:write" in found:
        implied.add("graders:run")
    return [scope for scope in SCOPES if scope in found | implied]


def missing(needed: Sequence[str], held: Collection[str]) -> list[str]:
    """Which of the scopes an operation needs a key lacks. An operation that names none needs them all."""
    return [scope for scope in needed or SCOPES if scope not in held]
