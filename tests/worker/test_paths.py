"""Users are shown the names of places, not the folders of a machine."""

from __future__ import annotations

from pathlib import Path

from jobs.failures import JobError
from jobs.settings import Settings
from worker.paths import hidden, hide, hide_in, places, secret_names


def test_the_innermost_folder_gives_the_name(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", model_root=tmp_path / "home" / "models")
    named = places(settings, tmp_path / "home" / "work" / "job" / "1")
    text = f"{tmp_path}/home/work/job/1/spec.json {tmp_path}/home/work/job/2 {tmp_path}/home/models/tiny {tmp_path}/x"
    assert hide(text, named) == f"<work>/spec.json <home>/work/job/2 <models>/tiny {tmp_path}/x"


def test_a_folder_behind_a_link_is_found_by_both_names(tmp_path: Path) -> None:
    (tmp_path / "real" / "models").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    settings = Settings(home=tmp_path / "home", model_root=tmp_path / "link" / "models")
    named = places(settings, tmp_path / "link" / "work")
    text = f"{tmp_path}/link/work/a {tmp_path}/real/work/a {tmp_path}/real/models/tiny"
    assert hide(text, named) == "<work>/a <work>/a <models>/tiny"


def test_the_root_folder_is_in_every_path_and_hides_nothing() -> None:
    settings = Settings(home=Path("/"), model_root=Path("/srv/models"))
    assert hide("/etc/passwd /srv/models/x", places(settings, Path("/work"))) == "/etc/passwd <models>/x"


def test_an_errors_message_and_log_are_both_cleaned() -> None:
    error = hidden(JobError("oom", "in /a/b", "p", "see /a/b/log", "rollout", 3), {"/a/b": "<work>"})
    assert error == JobError("oom", "in <work>", "p", "see <work>/log", "rollout", 3)


def test_the_folder_of_reward_models_has_a_name_too(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", reward_model_root=tmp_path / "rm")
    text = f"cannot load {tmp_path / 'rm' / 'small'}"
    assert hide(text, places(settings, tmp_path / "work")) == "cannot load <reward models>/small"


def test_secrets_are_called_by_their_names() -> None:
    named = secret_names({"SHORT": "abc", "KEY": "hunter2", "LONG": "hunter2-and-more"})
    assert list(named) == ["hunter2-and-more", "hunter2"]
    value = {"a": ["Bearer hunter2", 7, None], "b": {"c": "hunter2-and-more abc"}}
    assert hide_in(value, named) == {"a": ["Bearer <secret KEY>", 7, None], "b": {"c": "<secret LONG> abc"}}
