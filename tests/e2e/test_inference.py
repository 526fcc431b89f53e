"""A model is tuned, talked to, tuned further from its result and from a checkpoint, and deleted, by `openai` alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.conftest import Running
from tests.e2e.test_service import create, wait_until_over

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SETTINGS: dict[str, Any] = {"max_tokens": 16, "seed": 1, "extra_body": {"diffusion": {"block_length": 4}}}


@pytest.fixture
def client(service: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def say(client: openai.OpenAI, model: str) -> str:
    messages: Any = [{"role": "user", "content": "hello"}]
    return client.chat.completions.create(model=model, messages=messages, **SETTINGS).choices[0].message.content or ""


def test_tune_talk_and_tune_again(
    client: openai.OpenAI, puzzles: tuple[Path, Path], job_body: Callable[..., dict[str, Any]]
) -> None:
    first = wait_until_over(client, create(client, puzzles, job_body, steps=4, every=2))
    assert first.status == "succeeded", first
    name = first.fine_tuned_model
    checkpoints = {row.step_number: row for row in client.fine_tuning.jobs.checkpoints.list(first.id)}
    assert say(client, name) == say(client, checkpoints[4].id) == say(client, f"{name}:ckpt-step-4")
    for model in (name, checkpoints[2].id):
        body = job_body(first.training_file, first.validation_file, steps=2, every=1) | {"model": model}
        job = client.fine_tuning.jobs.create(**{k: v for k, v in body.items() if k != "rl"})
        second = wait_until_over(client, job.id)
        assert second.status == "succeeded", second
        assert second.model == model
        assert second.rl["base"]["lineage"][0]["job"] == first.id
        assert say(client, second.fine_tuned_model) is not None
    assert client.models.delete(name).deleted
    with pytest.raises(openai.NotFoundError):
        say(client, name)


def test_an_adapter_is_tuned_talked_to_and_started_from(
    client: openai.OpenAI, puzzles: tuple[Path, Path], job_body: Callable[..., dict[str, Any]]
) -> None:
    files = [client.files.create(file=path, purpose="fine-tune").id for path in puzzles]
    body = job_body(*files, steps=2, every=1)
    hyperparameters = body["method"]["reinforcement"]["hyperparameters"]
    hyperparameters["lora"] = {"rank": 2, "checkpoints": "adapter"}
    extra = {"rl": body.pop("rl")}
    first = wait_until_over(client, client.fine_tuning.jobs.create(**body, extra_body=extra).id)
    assert first.status == "succeeded", first
    assert say(client, first.fine_tuned_model) is not None
    hyperparameters["lora"] = {"rank": 2}
    again = body | {"model": first.fine_tuned_model}
    second = wait_until_over(client, client.fine_tuning.jobs.create(**again, extra_body=extra).id)
    assert second.status == "succeeded", second
    assert say(client, second.fine_tuned_model) is not None
