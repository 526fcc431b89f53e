"""Names of a tracker's series and parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bgpo.records import Split


def prefixed(split: Split, values: Mapping[str, float]) -> dict[str, float]:
    """The values under the names trackers group by: `train/reward_mean`."""
    return {f"{split}/{name}": value for name, value in values.items()}


def flatten(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted path; a list is a leaf."""
    leaves: dict[str, Any] = {}
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
