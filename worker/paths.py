"""Keeps the worker's own paths, and secrets, out of what users read: messages and log tails name places and secrets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.failures import JobError
from jobs.settings import Settings


def places(settings: Settings, work: Path) -> dict[str, str]:
    """What stands for which folder in texts about an attempt whose folder is `work`; the innermost folder first."""
    named = {work: "<work>", settings.model_root: "<models>", settings.home: "<home>"}
    if settings.reward_model_root is not None:
        named[settings.reward_model_root] = "<reward models>"
    found: dict[str, str] = {}
    for path, name in named.items():
        for spelled in (path, path.resolve()):
            if len(spelled.parts) > 1:  # the root folder would be found in every path
                found.setdefault(str(spelled), name)
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def secret_names(secrets: Mapping[str, str]) -> dict[str, str]:
    """What stands for the values of secrets, which what answers a grader may repeat; the longest first.

    A value of less than 4 characters is no secret, and every text is full of it.
    """
    names = {value: f"<secret {name}>" for name, value in secrets.items() if len(value) >= 4}
    return dict(sorted(names.items(), key=lambda item: -len(item[0])))


def hide_in(value: Any, places: Mapping[str, str]) -> Any:
    """A JSON value with `places` hidden in all its strings."""
    if isinstance(value, str):
        return hide(value, places)
    if isinstance(value, Mapping):
        return {key: hide_in(item, places) for key, item in value.items()}
    return [hide_in(item, places) for item in value] if isinstance(value, list) else value


def hide(text: str, places: Mapping[str, str]) -> str:
    """`text` with the folders of `places` replaced by their names."""
    for path, name in places.items():
        text = text.replace(path, name)
    return text


def hidden(error: JobError, places: Mapping[str, str]) -> JobError:
    """`error` without the folders of `places` in its texts."""
    detail = None if error.detail is None else hide(error.detail, places)
    return replace(error, message=hide(error.message, places), detail=detail)
