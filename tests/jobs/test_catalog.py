"""Catalogs of models: which folders count, and a service that has none."""

from __future__ import annotations

from pathlib import Path

from jobs.services.models import Catalog
from jobs.settings import Settings


def test_folders_with_a_config_are_models(tmp_path: Path) -> None:
    for name in ("small-rm", "empty", "with space"):
        (tmp_path / name).mkdir()
        if name != "empty":
            (tmp_path / name / "config.json").write_text("{}")
    settings = Settings(home=tmp_path / "home", reward_model_root=tmp_path / "link" / ".." / "small-rm" / "..")
    catalog = Catalog(settings.reward_model_root)
    assert [(model.id, model.path) for model in catalog.list()] == [("small-rm", tmp_path / "small-rm")]
    assert catalog.get("../small-rm") is None


def test_there_need_be_no_reward_models(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert settings.reward_model_root is None
    assert Catalog(settings.reward_model_root).list() == []
    assert Catalog(tmp_path / "missing").list() == []
