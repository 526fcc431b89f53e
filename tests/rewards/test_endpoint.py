"""`endpoint`: requests and signatures as published, answers held to their form, secrets kept secret."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgpo.errors import SpecError
from bgpo.rewards import Grade, Grader, GraderSettings, Resources, Sample, compile_grader
from bgpo.rewards.settings import EgressSettings
from tests.jobs.receivers import OK, Receiver, receiver, saying, status
from tests.rewards.servers import Crowd, asked, computing, open_resources, reply

KEY = b"k" * 32
OTHER = b"o" * 32
SIGNING = "whsec_" + base64.b64encode(KEY).decode()
TOKEN = "tok-very-secret-0123456789"
EXAMPLE = Path(__file__).parents[2] / "examples" / "endpoint_grader" / "server.py"


def endpoint(server: Receiver, secrets: dict[str, str] | None = None, **spec: Any) -> Grader:
    url = f"http://127.0.0.1:{server.port}/grade?x=1"
    return compile_grader({"type": "endpoint", "name": "mine", "url": url, **spec}, open_resources(secrets))


def graded(answer: bytes, **spec: Any) -> Grade:
    with receiver(saying(answer)) as server:
        return endpoint(server, **spec).grade(Sample("out"), {"a": [1, "ä"]})


class TestOneSample:
    def test_the_request(self) -> None:
        with receiver(saying(reply({"score": 0.25}))) as server:
            headers = {"Authorization": "Bearer {{ secret.t }}", "X-A": "b"}
            grade = endpoint(server, {"t": TOKEN}, headers=headers).grade(Sample("out"), {"a": [1, "ä"]})
        (request,) = server.requests
        (body,) = asked(server)
        assert request.line == "POST /grade?x=1 HTTP/1.1"
        assert request.headers["content-type"] == "application/json"
        assert (request.headers["authorization"], request.headers["x-a"]) == (f"Bearer {TOKEN}", "b")
        assert "webhook-signature" not in request.headers
        choice = {"index": 0, "message": {"role": "assistant", "content": "out"}}
        sample = {"output_text": "out", "output_tools": [], "choices": [choice]}
        assert body == {"sample": sample, "item": {"a": [1, "ä"]}, "trace_id": body["trace_id"]}
        assert uuid.UUID(body["trace_id"]).version == 4
        assert (grade.score, grade.solved, grade.error, grade.sub_scores) == (0.25, False, None, {"mine": 0.25})

    @pytest.mark.parametrize(
        ("score", "range_", "expected", "solved"),
        [
            (1, None, 1.0, True),
            (0.99, None, 0.99, False),
            (-7.5, None, -7.5, False),
            (9, [0, 5], 5.0, True),
            (-9, [-1, 5], -1.0, False),
        ],
    )
    def test_scores(self, score: float, range_: list[float] | None, expected: float, solved: bool) -> None:
        grade = graded(reply({"score": score, "comment": "more is ignored"}), range=range_)
        assert (grade.score, grade.solved, grade.error) == (expected, solved, None)

    @pytest.mark.parametrize(
        ("body", "problem"),
        [
            (b"", "not JSON"),
            (b"0.5", "no JSON object with 'score'"),
            (b"{", "not JSON"),
            (b"\xff", "not JSON"),
            (b"[" * 100_000, "not JSON"),
            ({}, "no JSON object with 'score'"),
            ({"reward": 1}, "no JSON object with 'score'"),
            ({"scores": [1]}, "no JSON object with 'score'"),
            ({"score": None}, "null, not a number"),
            ({"score": True}, "a boolean, not a number"),
            ({"score": "1"}, "a text, not a number"),
            ({"score": [1]}, "a list, not a number"),
            ({"score": float("nan")}, "not a finite number"),
            ({"score": float("-inf")}, "not a finite number"),
            (b'{"score": 1e999}', "not a finite number"),
            (b'{"score": 1' + b"0" * 400 + b"}", "not a finite number"),
        ],
    )
    def test_answers_that_are_no_score(self, body: Any, problem: str) -> None:
        grade = graded(reply(body), range=[0, 1])
        assert grade.error is not None
        assert grade.error.kind == "other_error"
        assert problem in grade.error.message
        assert (grade.score, grade.solved) == (0.0, False)

    def test_a_failing_endpoint_is_asked_again_with_the_same_ids(self) -> None:
        with receiver(saying(status(500), status(429, "Retry-After: 0"), reply({"score": 1}))) as server:
            assert endpoint(server, {"s": SIGNING}, signing_secret="s").grade(Sample("out"), {}).score == 1
        assert len(server.requests) == 3
        assert len({request.body for request in server.requests}) == 1
        assert len({request.headers["webhook-id"] for request in server.requests}) == 1

    def test_what_it_says_of_a_failure_is_shown(self) -> None:
        error = graded(reply(b"no item.keywords", 422)).error
        assert error is not None
        assert error.message == "the endpoint could not be asked: the answer has status 422"
        assert error.details == "no item.keywords"

    def test_a_redirect_is_not_followed(self) -> None:
        with receiver(saying(OK)) as other:
            error = graded(status(302, f"Location: http://127.0.0.1:{other.port}/")).error
        assert error is not None
        assert "redirects are not followed" in error.message
        assert other.connections == 0

    def test_an_answer_beyond_a_megabyte(self) -> None:
        error = graded(reply(b" " * (1 << 20) + b'{"score": 1}')).error
        assert error is not None
        assert "more than 1048576 bytes" in error.message

    def test_one_that_never_answers(self) -> None:
        over = threading.Event()
        with receiver(lambda request, connection: over.wait(60) and None) as server:
            error = endpoint(server, timeout_seconds=0.3).grade(Sample("out"), {}).error
            over.set()
        assert error is not None
        assert "too long" in error.message

    def test_an_item_that_json_cannot_hold(self) -> None:
        with receiver(saying(OK)) as server:
            error = endpoint(server).grade(Sample("out"), {"a": float("nan")}).error
        assert error is not None
        assert "NaN" in error.message
        assert server.connections == 0

    def test_so_many_at_a_time(self) -> None:
        crowd = Crowd(3, lambda body: reply({"score": body["item"]["n"]}))
        with receiver(crowd) as server:
            grades = endpoint(server, concurrency=3).grade_all([Sample("x")] * 9, [{"n": n} for n in range(9)])
        assert [grade.score for grade in grades] == list(range(9))
        assert crowd.most == 3
        assert len({body["trace_id"] for body in asked(server)}) == 9

    def test_the_rate_is_counted(self) -> None:
        with receiver(saying(reply({"score": 1}))) as server:
            grader = endpoint(server, requests_per_minute=2)
            grader.grade_all([Sample("x")] * 2, [{}] * 2)
        gate = vars(vars(grader)["_caller"])["_gate"]
        assert 0 < gate._reserve() <= 60  # what the third request would wait


class TestBatches:
    def test_requests_of_batch_size_and_scores_in_order(self) -> None:
        def answer(body: Any) -> bytes:
            return reply({"scores": [one["item"]["n"] for one in body["samples"]]})

        with receiver(computing(answer)) as server:
            grader = endpoint(server, batch=True, batch_size=4)
            grades = grader.grade_all([Sample(f"o{n}") for n in range(10)], [{"n": n} for n in range(10)])
            assert grader.grade_all([], []) == []
            assert grader.grade(Sample("o"), {"n": 5}).score == 5
        assert [grade.score for grade in grades] == list(range(10))
        assert sorted(len(body["samples"]) for body in asked(server)) == [1, 2, 4, 4]
        ones = [one for body in asked(server) for one in body["samples"]]
        assert len({one["trace_id"] for one in ones}) == 11
        assert {one["sample"]["output_text"] for one in ones if one["item"]["n"] == 3} == {"o3"}
        assert grades[3].parts["mine"].score == 3

    @pytest.mark.parametrize("scores", [[], [1], [1, 2, 3], None, "ab", {"0": 1, "1": 2}, 2])
    def test_a_wrong_number_of_scores_is_an_error_of_all(self, scores: Any) -> None:
        with receiver(saying(reply({"scores": scores}))) as server:
            grades = endpoint(server, batch=True).grade_all([Sample("x")] * 2, [{}] * 2)
        for grade in grades:
            assert grade.error is not None
            assert "a list of 2 numbers" in grade.error.message

    def test_a_bad_score_is_an_error_of_its_sample(self) -> None:
        with receiver(saying(reply(b'{"scores": [1, NaN, true, "1", 0.5]}'))) as server:
            grades = endpoint(server, batch=True).grade_all([Sample("x")] * 5, [{}] * 5)
        assert [grade.error is None for grade in grades] == [True, False, False, False, True]
        assert grades[1].error is not None
        assert "scores[1]" in grades[1].error.message
        assert [grade.score for grade in grades] == [1.0, 0.0, 0.0, 0.0, 0.5]

    def test_a_failed_batch_leaves_the_others(self) -> None:
        def answer(body: Any) -> bytes:
            if any(one["item"]["n"] == 2 for one in body["samples"]):
                return reply(b"no", 400)
            return reply({"scores": [1] * len(body["samples"])})

        with receiver(computing(answer)) as server:
            grader = endpoint(server, batch=True, batch_size=2)
            grades = grader.grade_all([Sample("x")] * 6, [{"n": n} for n in range(6)])
        assert [grade.error is None for grade in grades] == [True, True, False, False, True, True]


class TestSignatures:
    def test_it_is_that_of_standard_webhooks(self) -> None:
        with receiver(saying(reply({"score": 1}))) as server:
            endpoint(server, {"s": SIGNING}, signing_secret="s").grade(Sample("out"), {})
        (request,) = server.requests
        timestamp = request.headers["webhook-timestamp"]
        assert abs(time.time() - int(timestamp)) < 300
        signed = b".".join([request.headers["webhook-id"].encode(), timestamp.encode(), request.body])
        digest = hmac.new(KEY, signed, hashlib.sha256).digest()
        assert request.headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()

    def test_two_secrets_while_one_replaces_the_other(self) -> None:
        both = f"{SIGNING} whsec_{base64.b64encode(OTHER).decode()}"
        with receiver(saying(reply({"score": 1}))) as server:
            endpoint(server, {"s": both}, signing_secret="s").grade(Sample("out"), {})
        assert len(server.requests[0].headers["webhook-signature"].split()) == 2


class TestSpecifications:
    def refused(self, resources: Resources, **spec: Any) -> SpecError:
        with pytest.raises(SpecError) as error:
            compile_grader({"type": "endpoint", "name": "e", "url": "https://a.example.com/", **spec}, resources)
        return error.value

    @pytest.mark.parametrize(
        ("url", "rules", "problem"),
        [
            ("http://a.example.com/", {}, "https"),
            ("https://127.0.0.1/", {}, "not public"),
            ("https://a.example.com:8443/", {}, "port 443"),
            ("https://a.example.com/", {"hosts": ["*.example.org"]}, "list of hosts"),
        ],
    )
    def test_a_url_that_is_not_allowed(self, url: str, rules: dict[str, Any], problem: str) -> None:
        error = self.refused(Resources(settings=GraderSettings(egress=EgressSettings(**rules))), url=url)
        assert error.param == "url"
        assert problem in error.message

    def test_the_operators_rules_open_more(self) -> None:
        settings = GraderSettings(egress=EgressSettings(ports=[443, 8443], hosts=["*.Example.com"]))
        spec = {"type": "endpoint", "name": "e", "url": "https://a.example.com:8443/"}
        compile_grader(spec, Resources(settings=settings))

    def test_a_secret_that_is_not_stored(self) -> None:
        error = self.refused(Resources(), headers={"X-Key": "{{ secret.mine }}"})
        assert (error.param, error.message) == ("headers.X-Key", "there is no secret mine: store it first")
        assert self.refused(Resources(), signing_secret="mine").param == "signing_secret"

    def test_a_judges_key_cannot_be_named(self) -> None:
        resources = Resources(secrets={"judge:critic": TOKEN})
        error = self.refused(resources, headers={"Authorization": "{{ secret.judge:critic }}"})
        assert "must name a stored secret" in error.message
        error = self.refused(resources, headers={"X-Key": "{{ secret.judge }}"})
        assert "no secret judge" in error.message

    @pytest.mark.parametrize("value", ["plain", "whsec_", "whsec_%%%", "whsec_c2hvcnQ=", "", " "])
    def test_a_secret_that_cannot_sign(self, value: str) -> None:
        error = self.refused(Resources(secrets={"s": value}), signing_secret="s")
        assert error.param == "signing_secret"
        assert value.removeprefix("whsec_") in ("", " ") or value not in error.message

    @pytest.mark.parametrize("value", ["a\r\nX-Other: b", "a\nb", "a\x00", "ä", "\ud800"])
    def test_a_secret_that_no_header_can_hold(self, value: str) -> None:
        error = self.refused(Resources(secrets={"s": value}), headers={"X-Key": "{{ secret.s }}"})
        assert error.param == "headers.X-Key"
        assert value not in error.message


def test_a_name_that_leads_inward_is_an_error_and_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver(saying(OK)) as server:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        settings = GraderSettings(egress=EgressSettings(ports=[server.port]))
        spec = {"type": "endpoint", "name": "e", "url": f"https://a.example.com:{server.port}/"}
        error = compile_grader(spec, Resources(settings=settings)).grade(Sample("x"), {}).error
    assert error is not None
    assert "the URL leads to an address that is not public" in error.message
    assert server.connections == 0


def test_secrets_show_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """The endpoint echoes them in every place there is."""
    caplog.set_level(logging.DEBUG)
    secrets = {"t": TOKEN, "s": SIGNING}
    spec = {"headers": {"Authorization": "Bearer {{ secret.t }}"}, "signing_secret": "s"}
    both = f"{TOKEN} {SIGNING}"
    answers = [
        reply(both.encode(), 400, f"X-Echo: {both}"),
        reply(both.encode()),
        reply({"score": both}),
        reply({both: 1}),
        reply({"scores": both}),
    ]
    for batch in (False, True):
        for answer in answers:
            with receiver(saying(answer)) as server:
                grader = endpoint(server, secrets, batch=batch, **spec)
                grade = grader.grade(Sample("x"), {})
            assert grade.error is not None
            for secret in (TOKEN, SIGNING):
                assert secret[:14] not in repr(grade)
                assert secret[:14] not in repr(grader)
    assert TOKEN not in caplog.text
    assert SIGNING not in caplog.text


class TestExample:
    @pytest.fixture
    def port(self) -> Iterator[int]:
        """The server of the example, with SIGNING as its secret."""
        command = [sys.executable, str(EXAMPLE), "0"]
        environment = os.environ | {"GRADER_SECRET": SIGNING}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield int(process.stdout.readline().removeprefix("listening on "))
            finally:
                process.terminate()

    @pytest.mark.parametrize("batch", [False, True])
    def test_it_grades_what_is_signed(self, port: int, batch: bool) -> None:
        spec = {"type": "endpoint", "name": "e", "url": f"http://127.0.0.1:{port}/", "batch": batch}
        item = {"keywords": ["sun", "moon"]}
        signed = compile_grader(spec | {"signing_secret": "s"}, open_resources({"s": SIGNING}))
        grades = signed.grade_all([Sample("The Sun"), Sample("sun, moon"), Sample("")], [item] * 3)
        assert [(grade.score, grade.error) for grade in grades] == [(0.5, None), (1.0, None), (0.0, None)]
        error = signed.grade(Sample("x"), {}).error
        assert error is not None
        assert "keywords" in (error.details or "")

        replacing = {"s": f"whsec_{base64.b64encode(OTHER).decode()} {SIGNING}"}
        rotated = compile_grader(spec | {"signing_secret": "s"}, open_resources(replacing))
        assert rotated.grade(Sample("moon"), item).score == 0.5

    def test_it_refuses_what_is_not(self, port: int) -> None:
        spec = {"type": "endpoint", "name": "e", "url": f"http://127.0.0.1:{port}/"}
        foreign = open_resources({"s": f"whsec_{base64.b64encode(OTHER).decode()}"})
        unsigned = compile_grader(spec, open_resources())
        for grader in (unsigned, compile_grader(spec | {"signing_secret": "s"}, foreign)):
            error = grader.grade(Sample("sun"), {"keywords": ["sun"]}).error
            assert error is not None
            assert "401" in error.message
            assert json.loads(error.details or "")["error"] == "the signature is not valid"
