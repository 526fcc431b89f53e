"""`client.fine_tuning.alpha.graders` of the unmodified `openai` client, and its surprises."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest

SAME = {
    "type": "string_check", "name": "same", "operation": "eq",
    "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}",
}  # fmt: skip
PYTHON = {
    "type": "python",
    "source": "def grade(sample, item):\n    return float(item['answer'] == sample['output_text'])",
}


@pytest.fixture
def client(service: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_run(client: Any) -> None:
    ran = client.fine_tuning.alpha.graders.run(grader=SAME, model_sample="4", item={"answer": "4"})
    assert (ran.reward, ran.sub_rewards, ran.api_model_grader_token_usage_per_model) == (1.0, {}, {})
    assert (ran.metadata.name, ran.metadata.type, ran.metadata.token_usage) == ("same", "string_check", None)
    errors = ran.metadata.errors
    assert not errors.api_model_grader_server_error
    assert not errors.api_model_grader_refusal_error
    assert not errors.api_model_grader_parse_error
    assert errors.api_model_grader_server_error_details is None
    assert not any(value for value in errors.to_dict().values())


def test_a_failing_grader_is_an_answer(client: Any) -> None:
    ran = client.fine_tuning.alpha.graders.run(grader=SAME, model_sample="4")
    assert (ran.reward, ran.metadata.errors.invalid_variable_error) == (0.0, True)


def test_every_required_key_is_there_for_a_strict_client(service: Any) -> None:
    options = {"base_url": f"{service.url}/v1", "api_key": "any", "max_retries": 0}
    with openai.OpenAI(**options, _strict_response_validation=True) as strict:
        grader: Any = SAME
        ran = strict.fine_tuning.alpha.graders.run(grader=grader, model_sample="4", item={"answer": "4"})
        assert ran.reward == 1.0
        assert strict.fine_tuning.alpha.graders.validate(grader=grader).grader is not None


def test_multi_is_a_dict_of_graders(client: Any) -> None:
    parts = {"exact": SAME, "part": SAME | {"operation": "like", "name": "p"}}
    multi = {"type": "multi", "name": "both", "graders": parts, "calculate_output": "(exact + part) / 2"}
    ran = client.fine_tuning.alpha.graders.run(grader=multi, model_sample="44", item={"answer": "4"})
    assert (ran.reward, ran.sub_rewards) == (0.5, {"exact": 0.0, "part": 1.0})
    assert client.fine_tuning.alpha.graders.validate(grader=multi).grader.to_dict()["graders"] == parts


def test_validate_points_at_the_field(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.fine_tuning.alpha.graders.validate(grader=SAME | {"input": "{{ nobody.x }}"})
    assert (caught.value.param, caught.value.code) == ("grader.input", "invalid_value")


def test_a_python_grader_needs_no_name(service: Any, client: Any) -> None:
    """Where there is a sandbox it runs; elsewhere it is refused, and not for the missing name."""
    with service.http() as http:
        checked = http.post("/v1/fine_tuning/alpha/graders/validate", json={"grader": PYTHON})
    if checked.status_code == 400:
        error = checked.json()["error"]
        assert (error["param"], error["code"]) == ("grader.type", "unsupported_grader")
        return
    ran = client.fine_tuning.alpha.graders.run(grader=PYTHON, model_sample="4", item={"answer": "4"})
    assert (ran.reward, ran.metadata.name) == (1.0, "python")
    failed = client.fine_tuning.alpha.graders.run(grader=PYTHON, model_sample="4")
    assert failed.metadata.errors.python_grader_runtime_error
    assert "KeyError" in (failed.metadata.errors.python_grader_runtime_error_details or "")
    with pytest.raises(openai.BadRequestError) as caught:
        client.fine_tuning.alpha.graders.validate(grader=PYTHON | {"source": "def grade(sample, item:"})
    assert caught.value.param == "grader.source"


def test_a_busy_service_asks_to_wait(service: Any, client: Any) -> None:
    end = threading.Event()
    for _ in range(service.ctx.settings.grader_runs):
        with pytest.raises(TimeoutError):
            service.ctx.grader_slots.run(end.wait, within_s=0)
    with pytest.raises(openai.InternalServerError) as caught:
        client.fine_tuning.alpha.graders.run(grader=SAME, model_sample="4")
    end.set()
    assert (caught.value.code, caught.value.response.headers["retry-after"]) == ("busy", "2")
