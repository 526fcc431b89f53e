"""The `metrics` event's lists of graders, in OpenAI's keys."""

from __future__ import annotations

from typing import Any

from jobs.services.messages import metrics_event

NONE: dict[str, float] = {
    f"train_{kind}_{what}": 0.0
    for kind in (
        *("other_error", "sample_parse_error", "invalid_variable_error"),
        *("python_grader_server_error", "python_grader_runtime_error", "model_grader_server_error"),
    )
    for what in ("mean", "count")
}
MULTI: dict[str, Any] = {
    "type": "multi",
    "name": "both",
    "graders": {
        "tests": {"type": "python", "name": "python", "source": "..."},
        "judge": {"type": "score_model", "name": "style", "model": "gpt", "input": []},
    },
    "calculate_output": "tests + judge",
}


def event(grader: dict[str, Any], values: dict[str, float], split: Any = "train") -> dict[str, Any]:
    return metrics_event(3, 9, split, values, grader)[1]


def test_a_single_grader() -> None:
    values = {
        "responses": 64.0,
        "reward_mean": 0.5,
        "reward/g": 0.5,
        "grader_errors": 16.0,
        "grader_errors/g/python_grader_runtime_error": 14.0,
        "grader_errors/g/unresponsive_reward_error": 2.0,
        "seconds_grader/g": 0.125,
        "seconds_step": 2.0,
    }
    data = event({"type": "python", "name": "g", "source": "..."}, values)
    named = {"name": "g", "type": "python"}
    assert data["scores"] == {"graders": [named | {"train_reward_mean": 0.5}], "train_reward_mean": 0.5}
    assert data["errors"] == {
        "graders": [
            named
            | NONE
            | {
                "train_python_grader_runtime_error_mean": 0.21875,
                "train_python_grader_runtime_error_count": 14.0,
                "train_unresponsive_reward_error_mean": 0.03125,
                "train_unresponsive_reward_error_count": 2.0,
            }
        ]
    }
    assert data["timing"] == {
        "step": {"full_iteration": 2.0},
        "graders": [{"name": "g", "train_execution_latency_mean": 0.125}],
    }
    assert (data["usage"], data["model_graders_token_usage"]) == ({"graders": []}, {})


def test_the_parts_of_a_multi_grader() -> None:
    values = {
        "responses": 8.0,
        "reward_mean": 1.25,
        "reward/tests": 0.75,
        "reward/judge": 0.5,
        "grader_errors/both/formula_parse_error": 2.0,
        "grader_errors/judge/model_grader_server_error": 1.0,
        "grader_tokens/judge/prompt": 800.0,
        "grader_tokens/judge/completion": 20.0,
        "judge_tokens/gpt/prompt": 800.0,
        "judge_tokens/gpt/completion": 20.0,
        "seconds_grader/tests": 0.25,
        "seconds_grader/judge": 1.5,
    }
    data = event(MULTI, values)
    both, tests = {"name": "both", "type": "multi"}, {"name": "tests", "type": "python"}
    judge = {"name": "judge", "type": "score_model"}
    assert data["scores"]["graders"] == [
        both | {"train_reward_mean": 1.25},
        tests | {"train_reward_mean": 0.75},
        judge | {"train_reward_mean": 0.5},
    ]
    assert data["errors"]["graders"] == [
        both | NONE | {"train_formula_parse_error_mean": 0.25, "train_formula_parse_error_count": 2.0},
        tests | NONE,
        judge | NONE | {"train_model_grader_server_error_mean": 0.125, "train_model_grader_server_error_count": 1.0},
    ]
    assert data["usage"]["graders"] == [
        judge
        | {
            "model": "gpt",
            "train_prompt_tokens_mean": 100.0,
            "train_prompt_tokens_count": 800.0,
            "train_completion_tokens_mean": 2.5,
            "train_completion_tokens_count": 20.0,
        }
    ]
    assert data["model_graders_token_usage"] == {
        "gpt": {"prompt_tokens": 800.0, "completion_tokens": 20.0, "total_tokens": 820.0}
    }
    assert data["timing"]["graders"] == [
        {"name": "tests", "train_execution_latency_mean": 0.25},
        {"name": "judge", "train_execution_latency_mean": 1.5},
    ]


def test_evaluations_tell_of_the_sampled_answers() -> None:
    values = {
        "sampled_responses": 4.0,
        "sampled_reward_mean": 0.5,
        "sampled_grader_errors/g/other_error": 1.0,
        "greedy_responses": 2.0,
        "greedy_reward_mean": 0.75,
        "greedy_grader_errors/g/other_error": 2.0,
        "seconds_grader/g": 0.5,
    }
    data = event({"type": "sudoku", "name": "g"}, values, "validation")
    assert data["scores"]["graders"] == [{"name": "g", "type": "sudoku", "valid_reward_mean": 0.5}]
    (errors,) = data["errors"]["graders"]
    assert (errors["valid_other_error_mean"], errors["valid_other_error_count"]) == (0.25, 1.0)
    assert data["timing"]["graders"] == [{"name": "g", "valid_execution_latency_mean": 0.5}]
    assert data["valid"] == values


def test_metrics_of_before_errors_were_counted_by_kind() -> None:
    data = event({"type": "sudoku", "name": "g"}, {"reward_mean": 0.5})
    (errors,) = data["errors"]["graders"]
    assert errors["train_other_error_count"] == 0
    assert "train_other_error_mean" not in errors


def test_a_job_without_a_grader_has_none_of_it() -> None:
    data = metrics_event(3, 9, "train", {"loss": 2.0})[1]
    assert not {"scores", "errors", "usage", "model_graders_token_usage"} & data.keys()
