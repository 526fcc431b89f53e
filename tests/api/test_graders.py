"""/v1/fine_tuning/graders: run, validate, run_batch; a grader that fails is an answer, one that cannot run is not."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.service import Service

URL = "/v1/fine_tuning/graders"
OPENAIS = "/v1/fine_tuning/alpha/graders"
SAME = {
    "type": "string_check", "name": "same", "operation": "eq",
    "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}",
}  # fmt: skip
MULTI = {
    "type": "multi", "name": "both", "calculate_output": "0.5 * exact + log(part)",
    "graders": {"exact": SAME, "part": SAME | {"operation": "like", "name": "p"}},
}  # fmt: skip
FLAGS = {
    "formula_parse_error", "sample_parse_error", "truncated_observation_error", "unresponsive_reward_error",
    "invalid_variable_error", "other_error", "python_grader_server_error", "python_grader_runtime_error",
    "model_grader_server_error", "model_grader_refusal_error", "model_grader_parse_error",
}  # fmt: skip
DETAILS = {
    "python_grader_server_error_type", "python_grader_runtime_error_details", "model_grader_server_error_details",
}  # fmt: skip


def post(service: Service, path: str, body: Any, status: int = 200) -> dict[str, Any]:
    with service.http() as http:
        response = http.post(path, json=body)
    assert response.status_code == status, response.text
    answer: dict[str, Any] = response.json()
    return answer if status == 200 else answer["error"]


def run(service: Service, grader: Any, sample: str, item: Any = None, path: str = f"{URL}/run") -> dict[str, Any]:
    body = {"grader": grader, "model_sample": sample} | ({"item": item} if item is not None else {})
    return post(service, path, body)


def flags(answer: dict[str, Any]) -> set[str]:
    errors = answer["metadata"]["errors"]
    assert set(errors) == FLAGS | DETAILS
    return {name for name in FLAGS if errors[name]}


def test_without_a_key(start_service: Callable[..., Service]) -> None:
    service = start_service(api_key="key")
    paths = ("/run", "/validate", "/run_batch", "", "/grader-1/versions")
    for path in (*(URL + path for path in paths), f"{OPENAIS}/run", f"{OPENAIS}/validate"):
        post(service, path, {}, 401)
    with service.http() as http:
        for method, path in (("GET", ""), ("GET", "/grader-1"), ("DELETE", "/grader-1"), ("GET", "/grader-1/versions")):
            assert http.request(method, URL + path).status_code == 401


class TestRun:
    @pytest.mark.parametrize("path", [f"{URL}/run", f"{OPENAIS}/run"])
    def test_every_key_is_there(self, service: Service, path: str) -> None:
        answer = run(service, SAME, "4", {"answer": "4"}, path)
        metadata = answer["metadata"]
        assert (answer["reward"], answer["sub_rewards"]) == (1.0, {})
        assert answer["model_grader_token_usage_per_model"] == {}
        assert (metadata["name"], metadata["type"], metadata["scores"]) == ("same", "string_check", {})
        assert (metadata["token_usage"], metadata["sampled_model_name"]) == (None, None)
        assert metadata["execution_time"] >= 0
        assert flags(answer) == set()
        assert answer["rl"] == {"solved": True, "errors": [], "details": [], "metrics": {}}

    def test_multi(self, service: Service) -> None:
        answer = run(service, MULTI, "4", {"answer": "4"})
        assert (answer["reward"], answer["sub_rewards"]) == (0.5, {"exact": 1.0, "part": 1.0})
        assert answer["metadata"]["scores"] == answer["sub_rewards"]

    def test_failures_are_flags(self, service: Service) -> None:
        unresolved = run(service, SAME, "4")
        assert (flags(unresolved), unresolved["reward"]) == ({"invalid_variable_error"}, 0)
        assert unresolved["rl"]["errors"][0]["grader"] == "same"
        formula = run(service, MULTI, "4", {"answer": "5"})  # log(0)
        assert (flags(formula), formula["reward"]) == ({"formula_parse_error"}, 0)
        assert formula["sub_rewards"] == {"exact": 0.0, "part": 0.0}
        both = run(service, MULTI, "4")
        assert [error["grader"] for error in both["rl"]["errors"]] == ["exact", "part"]

    @pytest.mark.parametrize(
        ("body", "param", "code"),
        [
            ({"grader": SAME}, "model_sample", "missing_required_parameter"),
            ({"model_sample": "4"}, "grader", "missing_required_parameter"),
            ({"grader": SAME, "model_sample": 4}, "model_sample", "invalid_value"),
            ({"grader": SAME, "model_sample": "4", "item": []}, "item", "invalid_value"),
            ({"grader": SAME, "model_sample": "4", "reference_answer": "4"}, "reference_answer", "unknown_parameter"),
            ({"grader": SAME | {"operation": "neq"}, "model_sample": "4"}, "grader.operation", "invalid_value"),
            ({"grader": SAME | {"type": "magic"}, "model_sample": "4"}, "grader.type", "invalid_value"),
        ],
    )
    def test_faults(self, service: Service, body: dict[str, Any], param: str, code: str) -> None:
        for path in (f"{URL}/run", f"{OPENAIS}/run"):
            error = post(service, path, body, 400)
            assert (error["param"], error["code"]) == (param, code)

    def test_what_cannot_run_here(self, start_service: Callable[..., Service], tmp_path: Any) -> None:
        (tmp_path / "rewards" / "rm").mkdir(parents=True)
        (tmp_path / "rewards" / "rm" / "config.json").write_text("{}")
        service = start_service(reward_model_root=tmp_path / "rewards")
        model = {"type": "reward_model", "name": "r", "model": "rm"}
        error = post(service, f"{URL}/run", {"grader": model, "model_sample": "4"}, 400)
        assert (error["param"], error["code"]) == ("grader.type", "unsupported_grader")
        assert "workers only" in error["message"]
        multi = MULTI | {"graders": {"exact": SAME, "part": model}}
        error = post(service, f"{URL}/run", {"grader": multi, "model_sample": "4"}, 400)
        assert error["param"] == "grader.graders.part.type"
        unknown = post(service, f"{URL}/run", {"grader": model | {"model": "x"}, "model_sample": "4"}, 400)
        assert (unknown["param"], unknown["code"]) == ("grader.model", "model_not_found")
        assert "rm" in unknown["message"]

    def test_a_source_that_is_no_python(self, service: Service) -> None:
        python = {"type": "python", "source": "def grade(sample, item)\n    return 1"}
        for path, more in ((f"{URL}/run", {"model_sample": "4"}), (f"{URL}/validate", {})):
            error = post(service, path, {"grader": python, **more}, 400)
            assert (error["param"], error["code"]) == ("grader.source", "invalid_grader")
            assert error["message"].startswith("line 1: ")

    def test_what_it_names_must_exist(self, service: Service) -> None:
        judge = {"type": "score_model", "name": "j", "model": "gpt", "input": [{"role": "user", "content": "?"}]}
        error = post(service, f"{URL}/run", {"grader": judge, "model_sample": "4"}, 400)
        assert (error["param"], error["code"]) == ("grader.model", "model_not_found")
        endpoint = {"type": "endpoint", "name": "e", "url": "https://example.com", "signing_secret": "NONE"}
        error = post(service, f"{URL}/run", {"grader": endpoint, "model_sample": "4"}, 400)
        assert (error["param"], error["code"]) == ("grader.signing_secret", "missing_secret")
        for url in ("http://example.com", "https://127.0.0.1", "https://localhost", "https://a@example.com"):
            error = post(service, f"{URL}/run", {"grader": endpoint | {"url": url}, "model_sample": "4"}, 400)
            assert (error["param"], error["code"]) == ("grader.url", "invalid_url")

    def test_no_more_than_so_many_at_a_time(self, start_service: Callable[..., Service]) -> None:
        service = start_service(grader_runs=1)
        begun, end = threading.Event(), threading.Event()

        def hold() -> bool:
            begun.set()
            return end.wait(60)

        holder = threading.Thread(target=service.ctx.grader_slots.run, args=(hold,), kwargs={"within_s": 60})
        holder.start()
        assert begun.wait(60)
        try:
            with service.http() as http:
                refused = http.post(f"{URL}/run", json={"grader": SAME, "model_sample": "4"})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
            assert refused.json()["error"]["code"] == "busy"
        finally:
            end.set()
            holder.join()
        assert run(service, SAME, "4", {"answer": "4"})["reward"] == 1


class TestValidate:
    @pytest.mark.parametrize("path", [f"{URL}/validate", f"{OPENAIS}/validate"])
    def test_the_normalised_grader(self, service: Service, path: str) -> None:
        assert post(service, path, {"grader": SAME}) == {"grader": SAME}
        length = {"type": "math", "name": "m"}
        normalised = post(service, path, {"grader": length})["grader"]
        assert set(normalised) > {"type", "name"}

    @pytest.mark.parametrize(
        ("grader", "param"),
        [
            (SAME | {"input": "{{ nobody.x }}"}, "grader.input"),
            (SAME | {"input": "{{ item.x"}, "grader.input"),
            (MULTI | {"calculate_output": "exact +"}, "grader.calculate_output"),
            (MULTI | {"graders": {"exact": SAME, "part": {"type": "string_check"}}}, "grader.graders.part.name"),
            (MULTI | {"graders": {"exact": MULTI}}, "grader.graders.exact.type"),
            ({"name": "x"}, "grader.type"),
        ],
    )
    def test_the_field_is_named(self, service: Service, grader: dict[str, Any], param: str) -> None:
        assert post(service, f"{URL}/validate", {"grader": grader}, 400)["param"] == param

    def test_header_values_are_hidden(self, service: Service) -> None:
        with service.http() as http:
            http.post("/v1/fine_tuning/secrets", json={"name": "T", "value": "v"})
        headers = {
            "Authorization": "Bearer {{ secret.T }}",
            "X-Key": "{{secret.T}}",
            "X-Plain": "red",
            "X-Mix": "a{{ secret.T }}",
        }
        endpoint = {"type": "endpoint", "name": "e", "url": "https://example.com/score", "headers": headers}
        made = post(service, URL, {"name": "e", "grader": endpoint})
        assert made["grader"]["headers"] == headers | {"X-Plain": "***", "X-Mix": "***"}
        multi = {"type": "multi", "name": "m", "graders": {"e": endpoint}, "calculate_output": "e"}
        made = post(service, URL, {"name": "e", "grader": multi})
        assert made["grader"]["graders"]["e"]["headers"]["X-Plain"] == "***"


class TestBatch:
    def test_samples(self, service: Service) -> None:
        given = [("4", {"answer": "4"}), ("5", {"answer": "4"}), ("6", {}), ("44", {"answer": "4"})]
        samples = [{"model_sample": text, "item": item} for text, item in given]
        answer = post(service, f"{URL}/run_batch", {"grader": MULTI, "samples": samples})
        assert [one["reward"] for one in answer["data"]] == [0.5, 0.0, 0.0, 0.0]
        statistics = answer["statistics"]
        assert (statistics["samples"], statistics["failed"], statistics["formula_errors"]) == (4, 2, 1)
        assert (statistics["reward_mean"], statistics["solved_rate"]) == (0.25, 0.5)
        exact, part = statistics["graders"]
        assert (exact["name"], exact["type"], exact["samples"], exact["reward_mean"]) == (
            "exact",
            "string_check",
            4,
            1 / 3,
        )
        assert part["reward_mean"] == 2 / 3
        (errors,) = exact["errors"]
        assert (errors["kind"], errors["count"]) == ("invalid_variable_error", 1)
        assert "item.answer" in errors["messages"][0]
        assert 0 <= exact["latency_p50"] <= exact["latency_p95"]

    def test_a_file(self, service: Service) -> None:
        rows = [{"messages": [{"role": "user", "content": "?"}], "answer": "4", "said": str(i)} for i in range(12)]
        file_id = service.upload(b"".join(json.dumps(row).encode() + b"\n" for row in rows)).json()["id"]
        body = {"grader": SAME, "file": file_id, "completion_field": "said", "limit": 6}
        answer = post(service, f"{URL}/run_batch", body)
        assert [one["reward"] for one in answer["data"]] == [0, 0, 0, 0, 1, 0]
        error = post(service, f"{URL}/run_batch", {"grader": SAME, "file": file_id}, 400)
        assert (error["param"], error["code"]) == ("completion_field", "invalid_file_format")
        assert "Line 1" in error["message"]

    @pytest.mark.parametrize(
        "content", [b'{"output_text": "a"}\n{', b'{"output_text": "a"}\n[]\n', b'{"a": "\\ud800"}']
    )
    def test_a_file_of_another_purpose_is_checked(self, service: Service, content: bytes) -> None:
        file_id = service.upload(content, purpose="user_data").json()["id"]
        error = post(service, f"{URL}/run_batch", {"grader": SAME, "file": file_id}, 400)
        assert (error["param"], "Line" in error["message"]) == ("file", True)

    def test_faults(self, service: Service) -> None:
        sample = {"model_sample": "4"}
        for body, param in (
            ({"grader": SAME}, None),
            ({"grader": SAME, "samples": [sample], "file": "file-1"}, None),
            ({"grader": SAME, "samples": []}, "samples"),
            ({"grader": SAME, "samples": [sample] * 257}, "samples"),
            ({"grader": SAME, "samples": [{}]}, "samples.0.model_sample"),
            ({"grader": SAME, "file": "file-none"}, "file"),
            ({"grader": SAME, "file": "file-none", "limit": 257}, "limit"),
        ):
            assert post(service, f"{URL}/run_batch", body, 400)["param"] == param

    def test_what_is_too_late_is_an_error_of_its_sample(self, start_service: Callable[..., Service]) -> None:
        service = start_service(grader_run_s=1e-9)
        answer = post(service, f"{URL}/run_batch", {"grader": SAME, "samples": [{"model_sample": "4"}] * 3})
        assert [flags(one) for one in answer["data"]] == [{"other_error"}] * 3
        assert answer["statistics"]["failed"] == 3
        assert "not graded within" in answer["data"][0]["rl"]["errors"][0]["message"]
