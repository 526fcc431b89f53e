"""A catalog of models: the sub-folders of `model_root` (or `reward_model_root`) with a config.json, by folder name.

Ids from requests are looked up in the listing and never joined to a path. Tuned models are rows, see `tuned_models`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class BaseModel:
    """A model jobs can start from."""

    id: str
    path: Path
    created_at: int


class Catalog:
    """Read anew on every call, so that an administrator can add models while the service runs."""

    def __init__(self, root: Path | None) -> None:
        self._root = root

    def list(self) -> list[BaseModel]:
        """All base models by id."""
        if self._root is None or not self._root.is_dir():
            return []
        configs = sorted(self._root.glob("*/config.json"))
        return [
            BaseModel(config.parent.name, config.parent, int(config.stat().st_mtime))
            for config in configs
            if _ID.fullmatch(config.parent.name)
        ]

    def get(self, model_id: str) -> BaseModel | None:
        """The base model with this id."""
        return next((model for model in self.list() if model.id == model_id), None)
