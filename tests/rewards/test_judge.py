"""Judges over real HTTP: how they are asked, what all graders of a process share, embeddings, and keys kept secret."""

from __future__ import annotations

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bgpo.errors import SpecError
from bgpo.rewards import GraderSettings, Resources, Sample, compile_grader
from bgpo.rewards import judge as judge_module
from bgpo.rewards.grade import GradeFault
from bgpo.rewards.judge import JudgeClient
from bgpo.rewards.settings import JudgeSettings
from bgpo.rewards.spec import SamplingParams
from tests.jobs.receivers import OK, receiver, saying, status
from tests.rewards.servers import KEY, Crowd, asked, completion, computing, judged_by, reply, verdict

MESSAGES = [{"role": "user", "content": "How good is it?"}]
SCHEMA = {"type": "object"}
SPEC = {
    "type": "score_model",
    "name": "taste",
    "model": "critic",
    "input": [{"role": "user", "content": "Rate: {{ sample.output_text }}"}],
}


class TestChat:
    def test_the_request_is_openais(self) -> None:
        with receiver(saying(completion("fine"))) as server:
            params = SamplingParams(max_completions_tokens=50, temperature=0.0, seed=3, reasoning_effort="low")
            answer = JudgeClient("critic", judged_by(server, model="gpt-x")).chat(MESSAGES, SCHEMA, params)
        (request,) = server.requests
        assert request.line == "POST /v1/chat/completions HTTP/1.1"
        assert request.headers["authorization"] == f"Bearer {KEY}"
        assert request.headers["content-type"] == "application/json"
        assert asked(server) == [
            {
                "model": "gpt-x",
                "messages": MESSAGES,
                "max_completion_tokens": 50,
                "temperature": 0.0,
                "seed": 3,
                "reasoning_effort": "low",
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA},
                },
            }
        ]
        assert (answer.text, answer.refusal, answer.cut) == ("fine", None, False)
        assert answer.usage is not None
        assert (answer.usage.model, answer.usage.prompt_tokens, answer.usage.completion_tokens) == ("critic", 7, 3)

    def test_without_key_schema_and_name(self) -> None:
        with receiver(saying(completion("fine"))) as server:
            JudgeClient("critic", judged_by(server, key=None, json_schema=False)).chat(MESSAGES, SCHEMA)
        assert "authorization" not in server.requests[0].headers
        assert asked(server) == [{"model": "critic", "messages": MESSAGES}]

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<html>",
            b"{",
            b"[]",
            b"null",
            b"\xff\xfe",
            b"[" * 100_000,
            {"choices": []},
            {"choices": [{}]},
            {"choices": [{"message": None}]},
            {"choices": [{"message": {"content": 5}}]},
            {"choices": {"message": {"content": "x"}}},
            {"error": {"message": "no"}},
        ],
    )
    def test_something_else_than_a_completion(self, body: Any) -> None:
        with receiver(saying(reply(body))) as server, pytest.raises(GradeFault) as fault:
            JudgeClient("critic", judged_by(server)).chat(MESSAGES, SCHEMA)
        assert fault.value.info.kind == "model_grader_server_error"
        assert "chat completion" in fault.value.info.message
        assert len(server.requests) == 1

    @pytest.mark.parametrize(
        "usage", [None, [], {}, {"prompt_tokens": -1, "completion_tokens": 1}, {"prompt_tokens": 1}]
    )
    def test_usage_that_is_none(self, usage: Any) -> None:
        with receiver(saying(completion("fine", usage=usage))) as server:
            assert JudgeClient("critic", judged_by(server)).chat(MESSAGES, SCHEMA).usage is None

    def test_it_asks_again_and_then_gives_up_with_what_was_said(self) -> None:
        busy = reply({"error": f"busy, {KEY}"}, 503, "Retry-After: 0")
        with receiver(saying(busy, completion("fine"))) as server:
            assert JudgeClient("critic", judged_by(server)).chat(MESSAGES, SCHEMA).text == "fine"
        assert len(server.requests) == 2
        with receiver(saying(reply({"error": f"no, {KEY}"}, 401))) as server, pytest.raises(GradeFault) as fault:
            JudgeClient("critic", judged_by(server)).chat(MESSAGES, SCHEMA)
        info = fault.value.info
        assert (info.kind, info.details) == ("model_grader_server_error", '{"error": "no, [secret]"}')
        assert info.message == "judge critic could not be asked: the answer has status 401"

    def test_it_is_not_waited_for_longer_than_its_time(self) -> None:
        over = threading.Event()
        with receiver(lambda request, connection: over.wait(60) and None) as server:
            with pytest.raises(GradeFault, match="too long"):
                JudgeClient("critic", judged_by(server, timeout_seconds=0.3)).chat(MESSAGES, SCHEMA)
            over.set()

    def test_a_redirect_is_not_followed(self) -> None:
        with receiver(saying(OK)) as other:
            answer = saying(status(307, f"Location: http://127.0.0.1:{other.port}/"))
            with receiver(answer) as server, pytest.raises(GradeFault, match="redirects are not followed"):
                JudgeClient("critic", judged_by(server)).chat(MESSAGES, SCHEMA)
        assert other.connections == 0


class TestSharedLimits:
    def test_graders_that_use_a_judge_share_its_places(self) -> None:
        crowd = Crowd(2, lambda _: verdict(1))
        with receiver(crowd) as server:
            resources = judged_by(server, concurrency=2)
            graders = [compile_grader(SPEC, resources) for _ in range(3)]
            with ThreadPoolExecutor(3) as pool:
                columns = list(pool.map(lambda one: one.grade_all([Sample("x")] * 4, [{}] * 4), graders))
        assert [grade.error for grades in columns for grade in grades] == [None] * 12
        assert crowd.most == 2

    def test_the_gate_is_one_for_a_judge_and_another_for_another(self) -> None:
        settings = JudgeSettings(base_url="https://judge.example/v1", requests_per_minute=5)
        same = JudgeSettings(base_url="https://judge.example/v1", requests_per_minute=5)
        assert judge_module._gate("a", settings) is judge_module._gate("a", same)
        assert judge_module._gate("a", settings) is not judge_module._gate("b", settings)

    def test_the_rate_of_the_settings_holds(self) -> None:
        """The third request would wait for most of a minute: its turn is asked for here, and not waited for."""
        with receiver(saying(completion("fine"))) as server:
            resources = judged_by(server, requests_per_minute=2)
            for _ in range(2):
                JudgeClient("critic", resources).chat(MESSAGES, SCHEMA)
        gate = judge_module._gate("critic", resources.settings.judges["critic"])
        assert 0 < gate._reserve() <= 60


class TestSettings:
    def test_a_judge_that_is_not_configured(self) -> None:
        judges = {name: JudgeSettings(base_url="https://judge.example/v1") for name in ("b", "a")}
        with pytest.raises(SpecError, match="it has a, b") as error:
            compile_grader(SPEC, Resources(settings=GraderSettings(judges=judges)))
        assert error.value.param == "model"
        with pytest.raises(SpecError, match="it has none"):
            compile_grader(SPEC)

    @pytest.mark.parametrize(
        ("base_url", "allow_private", "problem"),
        [
            ("http://judge.example/v1", False, "https"),
            ("https://127.0.0.1/v1", False, "not public"),
            ("https://user:secret@judge.example/v1", False, "user name"),
            ("http://169.254.169.254/v1", True, "not public"),
        ],
    )
    def test_a_base_url_that_no_request_may_go_to(self, base_url: str, allow_private: bool, problem: str) -> None:
        judges = {"critic": JudgeSettings(base_url=base_url, allow_private=allow_private)}
        with pytest.raises(SpecError, match=problem) as error:
            compile_grader(SPEC, Resources(settings=GraderSettings(judges=judges)))
        assert "secret" not in str(error.value)

    def test_the_operators_port_is_free_and_the_users_list_of_hosts_is_not_his(self) -> None:
        settings = GraderSettings.model_validate(
            {
                "judges": {"critic": {"base_url": "https://judge.example:8443/v1"}},
                "egress": {"hosts": ["other.example"]},
            }
        )
        compile_grader(SPEC, Resources(settings=settings))

    def test_a_key_that_would_add_a_header(self) -> None:
        judges = {"critic": JudgeSettings(base_url="https://judge.example/v1")}
        with pytest.raises(SpecError, match="key of judge critic") as error:
            compile_grader(SPEC, Resources(GraderSettings(judges=judges), {"judge:critic": "sk-1\r\nX-Other: 2"}))
        assert "sk-1" not in str(error.value)


class TestEmbeddings:
    def test_vectors_come_back_in_the_order_of_the_texts(self) -> None:
        def backwards(request: Any) -> bytes:
            rows = [{"index": i, "embedding": [float(text), 1]} for i, text in enumerate(request["input"])]
            return reply({"data": rows[::-1]})

        texts = [str(i) for i in range(150)]
        with receiver(computing(backwards)) as server:
            vectors = JudgeClient("critic", judged_by(server)).embed(texts)
        assert vectors == [[float(text), 1.0] for text in texts]
        assert [len(request["input"]) for request in asked(server)] == [64, 64, 22]
        assert asked(server)[0]["model"] == "critic"
        assert server.requests[0].line == "POST /v1/embeddings HTTP/1.1"
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"

    @pytest.mark.parametrize(
        "data",
        [
            [],
            [{"index": 0, "embedding": [1.0]}],
            [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}],
            [{"index": 0, "embedding": [1.0]}, {"index": 2, "embedding": [1.0]}],
            [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": []}],
            [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [True]}],
            [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [float("nan")]}],
            [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": "AAAA"}],
            [{"index": 0, "embedding": [1.0]}, {"index": "1", "embedding": [1.0]}],
            [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}],
            "text",
            None,
        ],
    )
    def test_something_else_than_embeddings(self, data: Any) -> None:
        with receiver(saying(reply({"data": data}))) as server, pytest.raises(GradeFault, match="embeddings") as fault:
            JudgeClient("critic", judged_by(server)).embed(["a", "b"])
        assert fault.value.info.kind == "model_grader_server_error"

    def test_nothing_to_embed(self) -> None:
        with receiver(saying(OK)) as server:
            assert JudgeClient("critic", judged_by(server)).embed([]) == []
        assert server.connections == 0


def test_the_key_shows_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """The judge echoes it in every place there is."""
    caplog.set_level(logging.DEBUG)
    echoes = [
        reply({"error": KEY}, 400, f"X-Echo: {KEY}"),
        reply(KEY.encode()),
        completion(KEY),
        completion(None, refusal=f"no, {KEY}"),
        verdict(KEY),
        completion(json.dumps({"steps": [{"description": KEY, "conclusion": "x" * 990 + KEY}], "result": 1})),
    ]
    for content in echoes:
        with receiver(saying(content)) as server:
            resources = judged_by(server)
            grader = compile_grader(SPEC, resources)
            grade = grader.grade(Sample("x"), {})
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
        for text in (
            repr(grade),
            repr(grader),
            repr(resources),
            str(vars(grade) if hasattr(grade, "__dict__") else ""),
        ):
            assert KEY[:12] not in text
    assert KEY not in caplog.text
