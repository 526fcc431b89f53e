"""What the service says of itself."""

from __future__ import annotations

import time
from importlib.metadata import version

from bgpo.rewards.spec import parse_grader_spec
from bgpo.sandbox import SandboxError, find_wall
from tests.contract.environments import RELEASES
from tests.service import Service

URL = "/v1/capabilities"


def test_it_says_what_there_is(service: Service) -> None:
    with service.http() as http:
        found = http.get(URL).json()
    assert (found["version"], found["clients"]) == (version("bgpo"), {"openai-python": list(RELEASES)})
    assert {"reinforcement", "supervised", "dpo"} == set(found["methods"])
    assert {"bgpo", "spg"} <= set(found["algorithms"])
    assert "antithetic" in found["estimators"]
    assert {"string_check", "python", "multi", "endpoint"} <= set(found["graders"])
    assert found["limits"]["wait_seconds"] == 300
    assert found["project_limits"]["queued_jobs"] == service.ctx.settings.max_queued_jobs
    assert found["webhooks"] is False


def test_what_it_says_of_the_sandbox_is_what_graders_get(service: Service) -> None:
    deadline = time.monotonic() + 60
    with service.http() as http:
        while (found := http.get(URL).json()["sandbox"])["state"] == "checking":
            assert time.monotonic() < deadline
            time.sleep(0.05)
    try:
        wall = find_wall()
        expected = ("holds" if wall.contained else "allowed_without", wall.name, None)
    except SandboxError as error:
        expected = ("none", None, error.message)
    assert (found["state"], found["backend"], found["problem"]) == expected


def test_a_type_of_grader_is_one_that_can_be_asked_for(service: Service) -> None:
    sudoku = parse_grader_spec({"type": "sudoku", "name": "s"})
    with service.http() as http:
        assert sudoku.type in http.get(URL).json()["graders"]
