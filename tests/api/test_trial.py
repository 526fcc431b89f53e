"""What creating a job does with its grader: tried on the first rows, refused or told of, its secrets and headers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.tables import Job
from tests.service import Service

URL = "/v1/fine_tuning/jobs"
ABOUT = "Grader '{}' on the first {} rows of the {}, with an empty answer: "


def rows(count: int = 12, **changes: dict[str, Any]) -> bytes:
    """A dataset; `r2={...}` changes its second row."""
    row = {"messages": [{"role": "user", "content": "2 + 2"}], "answer": "4"}
    made = [row | {"i": i} | changes.get(f"r{i}", {}) for i in range(1, count + 1)]
    return b"".join(json.dumps({k: v for k, v in one.items() if v is not None}).encode() + b"\n" for one in made)


def try_to_create(
    service: Service, grader: Any, train: bytes, valid: bytes | None = None
) -> tuple[int, Any, list[Any]]:
    """Status, answer, and the events about the grader as (level, message)."""
    body = service.body(training_file=service.upload(train).json()["id"])
    body["method"]["reinforcement"]["grader"] = grader
    if valid is not None:
        body["validation_file"] = service.upload(valid).json()["id"]
    with service.http() as http:
        response = http.post(URL, json=body)
        if response.status_code != 200:
            return response.status_code, response.json()["error"], []
        events = http.get(f"{URL}/{response.json()['id']}/events").json()["data"]
    told = [(one["level"], one["message"]) for one in events[::-1] if "rader" in one["message"]]
    return 200, response.json(), told


def string_check(**fields: Any) -> dict[str, Any]:
    grader = {"type": "string_check", "name": "same", "operation": "eq"}
    return grader | {"input": "{{ sample.output_text }}", "reference": "{{ item.answer }}"} | fields


def test_what_it_saw_is_told(service: Service) -> None:
    status, _, told = try_to_create(service, string_check(), rows(r2={"answer": ""}), rows(2))
    assert status == 200
    assert [level for level, _ in told] == ["info", "info"]
    assert told[0][1].startswith(ABOUT.format("same", 3, "training_file") + "rewards 0, 1, 0 (")
    assert told[1][1].startswith(ABOUT.format("same", 2, "validation_file") + "rewards 0, 0 (")


@pytest.mark.parametrize(("line", "refused"), [(1, True), (3, True), (4, False)])
def test_a_template_that_a_row_does_not_have(service: Service, line: int, refused: bool) -> None:
    status, answer, _ = try_to_create(service, string_check(), rows(**{f"r{line}": {"answer": None}}))
    assert (status == 400) == refused
    if refused:
        assert (answer["param"], answer["code"]) == ("method.reinforcement.grader", "invalid_grader")
        assert f"line {line} of the training_file" in answer["message"]


def test_a_row_that_the_grader_cannot_use(service: Service) -> None:
    status, answer, _ = try_to_create(service, {"type": "sudoku", "name": "grid"}, rows())
    assert (status, answer["code"]) == (400, "invalid_grader")


def test_a_formula_that_fails_on_the_empty_answer_is_told(service: Service) -> None:
    multi = {"type": "multi", "name": "m", "graders": {"a": string_check()}, "calculate_output": "log(a)"}
    status, _, told = try_to_create(service, multi, rows())
    assert (status, told[0][0]) == (200, "warn")
    start = ABOUT.format("m", 3, "training_file") + "3 errors, the first on line 1: formula_parse_error: "
    assert told[0][1].startswith(start)


def test_a_part_that_cannot_grade_a_row_refuses_a_multi(service: Service) -> None:
    parts = {"a": string_check(), "b": {"type": "sudoku", "name": "grid"}}
    multi = {"type": "multi", "name": "m", "graders": parts, "calculate_output": "a + b"}
    assert try_to_create(service, multi, rows())[0] == 400


def test_reward_models_are_left_to_the_worker(start_service: Callable[..., Service], tmp_path: Any) -> None:
    (tmp_path / "rewards" / "rm").mkdir(parents=True)
    (tmp_path / "rewards" / "rm" / "config.json").write_text("{}")
    service = start_service(reward_model_root=tmp_path / "rewards")
    model = {"type": "reward_model", "name": "r", "model": "rm"}
    status, _, told = try_to_create(service, model, rows())
    assert (status, told) == (200, [("info", "Grader 'r' is not tried: reward models run on workers only")])
    multi = {"type": "multi", "name": "m", "graders": {"a": string_check(), "b": model}, "calculate_output": "a + b"}
    status, _, told = try_to_create(service, multi, rows())
    assert (status, len(told)) == (200, 2)
    assert told[0][1].startswith(ABOUT.format("same", 3, "training_file"))
    assert try_to_create(service, multi, rows(r1={"answer": None}))[0] == 400
    status, answer, _ = try_to_create(service, model | {"model": "none"}, rows())
    assert (status, answer["param"]) == (400, "method.reinforcement.grader.model")


@pytest.mark.parametrize(
    ("grader", "param", "code"),
    [
        ({"url": "https://10.0.0.1/"}, "url", "invalid_url"),
        ({"url": "https://grader.example.com", "signing_secret": "NONE"}, "signing_secret", "missing_secret"),
        (
            {"url": "https://grader.example.com", "headers": {"X-Key": "{{ secret.NONE }}"}},
            "headers",
            "missing_secret",
        ),
    ],
)
def test_urls_and_secrets_are_checked(service: Service, grader: dict[str, Any], param: str, code: str) -> None:
    endpoint = {"type": "endpoint", "name": "e"} | grader
    status, answer, _ = try_to_create(service, endpoint, rows())
    assert (status, answer["param"], answer["code"]) == (400, f"method.reinforcement.grader.{param}", code)


def test_a_try_that_takes_too_long_is_told(
    start_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BGPO_ALLOW_UNSANDBOXED", "1")
    service = start_service(grader_try_s=1e-6)
    # It starts processes, so it cannot be ready when the wait for it ends.
    status, _, told = try_to_create(service, {"type": "code", "name": "c", "tests": "assert f() == 1"}, rows())
    assert (status, told[-1][0]) == (200, "warn")
    assert "longer than" in told[-1][1]


def test_a_try_that_finds_no_room_is_told(start_service: Callable[..., Service]) -> None:
    service = start_service(grader_runs=1, grader_try_s=0.01)
    end = threading.Event()
    with pytest.raises(TimeoutError):
        service.ctx.grader_slots.run(end.wait, within_s=0)
    status, _, told = try_to_create(service, string_check(), rows())
    end.set()
    assert (status, told) == (200, [("warn", "The grader was not tried: the service runs as many as it may")])


def test_a_dpo_jobs_grader_is_tried_too(service: Service) -> None:
    file_id = service.upload(service.preferences()).json()["id"]
    method = {"type": "dpo", "dpo": {"grader": string_check(reference="{{ item.nothing }}")}}
    with service.http() as http:
        body = service.body(method=method, training_file=file_id, validation_file=file_id)
        error = http.post(URL, json=body).json()["error"]
    assert error["param"] == "method.dpo.grader"
    with service.ctx.db.read() as session:
        assert not list(session.scalars(sa.select(Job)))
