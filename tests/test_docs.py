"""The documentation against the code: links that resolve, pictures that still show what they picture."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import generate_api
from jobs.failures import FAILURES
from jobs.settings import Settings
from jobs.states import TRANSITIONS

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


def test_the_state_diagram_is_the_transition_table() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    arrows = re.findall(r"^ +(\w+) --> (\w+): ([\w, ]+)$", text.partition("stateDiagram-v2")[2], flags=re.MULTILINE)
    shown = {(source, target): set(actors.split(", ")) for source, target, actors in arrows}
    assert shown == {
        (source.value, target.value): {actor.value for actor in actors}
        for (source, target), actors in TRANSITIONS.items()
    }


def test_the_failure_codes_are_those_of_the_service() -> None:
    text = (ROOT / "docs" / "failures.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (yes|no) \| (.+) \|$", text, flags=re.MULTILINE)
    shown = [(code, meaning, retry == "yes", advice) for code, meaning, retry, advice in rows]
    assert shown == [(code, kind.meaning, kind.retry, kind.advice) for code, kind in FAILURES.items()]


@pytest.mark.parametrize("page", ["deployment", "operations", "security"])
def test_the_settings_named_exist(page: str) -> None:
    named = set(re.findall(r"`(BGPO_[A-Z_]+)(?:=[^`]*)?`", (ROOT / "docs" / f"{page}.md").read_text()))
    compose_only = {"BGPO_MODELS"}
    assert named - compose_only <= {f"BGPO_{name.upper()}" for name in Settings.model_fields}


def test_the_tests_named_as_proof_exist() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    for row in re.findall(r"^\| API\d+ .*$", text, flags=re.MULTILINE):
        folder = ROOT / "tests"
        names = re.findall(r"`((?:tests/)?[\w/]+(?:\.py)?)`", row.rpartition(" | ")[2])
        assert names
        for name in names:
            folder = (ROOT / name).parent if name.startswith("tests/") else folder
            assert (ROOT / name if name.startswith("tests/") else folder / name).exists(), name


def test_the_metrics_named_are_those_there_are() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    code = (ROOT / "api" / "prometheus.py").read_text()
    assert set(re.findall(r'"(bgpo_\w+)"', code)) == {
        name.removesuffix("_total") for name in re.findall(r"`(bgpo_\w+)`", text)
    }


def test_the_api_reference_is_up_to_date() -> None:
    assert generate_api.PAGE.read_text() == generate_api.page(generate_api.description()), "run `make docs`"
