"""Chat completions with a real generator, on both databases: answers, wrong requests, and who gets none and why."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import sqlalchemy as sa

from jobs.ids import COMPLETION, new_id
from jobs.repositories import completions, generators, projects
from jobs.repositories.completions import Claimed
from jobs.services import keys
from jobs.tables import DEFAULT_ORGANIZATION, DEFAULT_PROJECT, Completion
from tests.api.tenants import SETTINGS, Tenants
from tests.generating import HELLO, Chat, body, chatting, chunks_of, copied
from tests.running import wait_until
from tests.service import Service

pytestmark = pytest.mark.timeout(240)  # a serving process loads PyTorch
MANY_TOKENS = 10_000_000
SLOW = {"max_tokens": 96, "diffusion": {"block_length": 1, "steps": 96}}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def chat(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, redis_url: str, model_root: Path
) -> Iterator[Chat]:
    """A service with one generator for all tests here that leave it in order."""
    folder = tmp_path_factory.mktemp("chat")
    if request.param == "sqlite":
        url = copied(request.getfixturevalue("sqlite_template"), folder)
    else:
        url = request.getfixturevalue("new_postgres_database")()
    with chatting(folder / "home", url, redis_url, model_root, rate_inference_tokens=MANY_TOKENS) as chat:
        chat.start_generator()
        yield chat


@pytest.fixture
def lonely(tmp_path: Path, sqlite_template: Path, redis_url: str, model_root: Path) -> Iterator[Callable[..., Chat]]:
    """Starts one service of its own, without a generator."""
    opened = []

    def start(**values: Any) -> Chat:
        bell = values.pop("redis_url", redis_url)
        manager = chatting(tmp_path / "home", copied(sqlite_template, tmp_path), bell, model_root, **values)
        opened.append(manager)
        return manager.__enter__()

    yield start
    for manager in opened:
        manager.__exit__(None, None, None)


def row_of(chat: Chat, id_: str) -> Completion:
    with chat.ctx.db.read() as session:
        return session.get_one(Completion, id_)


def newest(chat: Chat) -> Completion | None:
    with chat.ctx.db.read() as session:
        return session.scalar(sa.select(Completion).order_by(Completion.id.desc()).limit(1))


def content(answer: httpx2.Response) -> str:
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def error(answer: httpx2.Response) -> tuple[int, str | None, str | None]:
    found = answer.json()["error"]
    return answer.status_code, found["code"], found["param"]


def test_an_answer(chat: Chat) -> None:
    answer = chat.ask(seed=1)
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert shown["id"].startswith("chatcmpl-")
    assert (shown["object"], shown["model"]) == ("chat.completion", "tiny")
    (choice,) = shown["choices"]
    assert (choice["index"], choice["message"]["role"]) == (0, "assistant")
    assert choice["finish_reason"] in ("stop", "length")
    usage = shown["usage"]
    assert usage["completion_tokens"] <= 16
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_tokens_are_usage_and_the_quota_ends_them(chat: Chat) -> None:
    def used() -> int:
        with chat.http() as http:
            quota: int = http.get("/quota").json()["quotas"]["inference_tokens_per_month"]["used"]
            return quota

    def limit(**limits: int) -> None:
        with chat.ctx.db.transaction() as session:
            projects.update(session, DEFAULT_ORGANIZATION, DEFAULT_PROJECT, limits=limits)

    before = used()
    for stream in (False, True):
        answer = chat.ask(seed=1, stream=stream)
        assert answer.status_code == 200
        total = chat.ask(seed=1).json()["usage"]["total_tokens"]
        assert used() == before + 2 * total
        before = used()
    limit(inference_tokens_per_month=before)
    assert error(chat.ask(seed=1)) == (429, "insufficient_quota", None)
    limit(inference_tokens_per_month=before + 1)
    answer = chat.ask(seed=1, stream=True)
    limit()
    assert answer.status_code == 200
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) < MANY_TOKENS


def test_the_same_seed_gives_the_same_text(chat: Chat) -> None:
    first = content(chat.ask(seed=1))
    assert content(chat.ask(seed=1)) == first
    assert len({content(chat.ask(seed=seed)) for seed in (1, 2, 3)}) > 1


def test_the_stream_is_the_same_text_in_pieces(chat: Chat) -> None:
    whole = chat.ask(seed=1).json()
    answer = chat.ask(seed=1, stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, last, usage, done = chunks_of(answer.text)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"] == whole["usage"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk["id"] for chunk in [*chunks, last, usage]} == {last["id"]}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta["content"] for delta in deltas) == whole["choices"][0]["message"]["content"]
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]


def test_a_stop_string_ends_the_answer(chat: Chat) -> None:
    whole = content(chat.ask(seed=1))
    stop = whole[2:4]
    for value in (stop, [stop, "never"]):
        answer = chat.ask(seed=1, stop=value)
        assert content(answer) == whole[: whole.index(stop)]
        assert answer.json()["choices"][0]["finish_reason"] == "stop"


def test_many_at_once_are_all_answered(chat: Chat) -> None:
    found: list[httpx2.Response] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(chat.ask(messages=[{"role": "user", "content": str(n)}])))
        for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in found] == [200] * 12
    assert len({answer.json()["id"] for answer in found}) == 12


def test_system_and_developer_messages_and_text_parts(chat: Chat) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    said = {"role": "assistant", "content": "hi", "refusal": None, "tool_calls": None, "annotations": []}
    first = chat.ask(seed=1, messages=[{"role": "system", "content": "be kind"}, said, *HELLO])
    second = chat.ask(
        seed=1, messages=[{"role": "developer", "content": "be kind"}, said, {"role": "user", "content": parts}]
    )
    assert content(first) == content(second)


def test_a_conversation_too_long_for_the_model_is_refused(chat: Chat) -> None:
    for stream in (False, True):
        long = chat.ask(messages=[{"role": "user", "content": "x" * 200}], stream=stream)
        assert error(long) == (400, "context_length_exceeded", "messages")
        assert "128 tokens" in long.json()["error"]["message"]


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"model": "nope"}, "model_not_found", "model"),
        ({"model": "../tiny"}, "model_not_found", "model"),
        ({"model": "ftckpt_" + "0" * 32}, "model_not_found", "model"),
        ({"max_tokens": 128}, "context_length_exceeded", "max_tokens"),
        ({"n": 2}, "unsupported_parameter", "n"),
        ({"tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
        ({"logprobs": True}, "unsupported_parameter", "logprobs"),
        ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
        ({"top_p": 0.9}, "unsupported_parameter", "top_p"),
        ({"diffusion": {"cfg_scale": 1.5}}, "unsupported_parameter", "diffusion.cfg_scale"),
        ({"diffusion": {"step": 3}}, "unknown_parameter", "diffusion.step"),
        ({"diffusion": {"block_length": 4, "steps": 3}}, "invalid_value", "diffusion.steps"),
        ({"diffusion": {"threshold": 0.5, "remasking": "random"}}, "invalid_value", "diffusion.threshold"),
        ({"temprature": 1}, "unknown_parameter", "temprature"),
        ({"temperature": 2.5}, "invalid_value", "temperature"),
        ({"temperature": 1, "diffusion": {"temperature": 0.5}}, "invalid_value", "diffusion.temperature"),
        ({"max_completion_tokens": 8}, "invalid_value", "max_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "invalid_value", "stop"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "unsupported_parameter", "messages.0.role"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "invalid_value", "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "unsupported_parameter",
            "messages.0.content",
        ),
        ({"messages": [{"role": "user", "content": "\x00"}]}, "invalid_value", None),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else None,
)
def test_what_is_wrong_is_said_with_its_parameter(
    chat: Chat, changes: dict[str, Any], code: str, param: str | None
) -> None:
    status = 404 if code == "model_not_found" else 400
    assert error(chat.ask(**changes)) == (status, code, param)


def test_what_asks_for_nothing_passes(chat: Chat) -> None:
    neutral = {"n": 1, "top_p": 1, "presence_penalty": 0, "logprobs": False, "tools": [], "user": "me", "store": False}
    assert content(chat.ask(**neutral, seed=1, response_format={"type": "text"})) == content(chat.ask(seed=1))


def test_tuned_models_and_checkpoints_answer_with_their_own_weights(
    chat: Chat, other_model: Path, tmp_path: Path
) -> None:
    name, checkpoint_id = chat.checkpoint(other_model)
    texts = {content(chat.ask(model=model, seed=1)) for model in (name, checkpoint_id, f"{name}:ckpt-step-5")}
    assert len(texts) == 1
    assert texts != {content(chat.ask(seed=1))}
    answer = chat.ask(model=checkpoint_id)
    assert answer.json()["model"] == checkpoint_id, "as the request named it"


def test_another_project_chats_with_what_is_shared_with_it(lonely: Callable[..., Chat], other_model: Path) -> None:
    chat = lonely(**SETTINGS)
    chat.start_generator()
    admin = keys.create_admin(chat.ctx, DEFAULT_ORGANIZATION, name="root", expires_in_s=None, by=None)
    tenants = Tenants(Service(chat.url, chat.ctx, chat.server), admin.value)
    name, checkpoint_id = chat.checkpoint(other_model)
    project = tenants.project("other")
    key = tenants.key(project, "inference")["value"]
    asked = {"model": f"{name}:ckpt-step-5"}
    with tenants.http(key) as http:
        assert error(http.post("/v1/chat/completions", json=body(**asked)))[:2] == (404, "model_not_found")
        with tenants.http(admin.value) as owner:
            url = f"/v1/fine_tuning/checkpoints/{checkpoint_id}/permissions"
            owner.post(url, json={"project_ids": [project]}).raise_for_status()
        shared = content(http.post("/v1/chat/completions", json=body(**asked, seed=1)))
        assert shared != content(http.post("/v1/chat/completions", json=body(seed=1)))
        whole_model = http.post("/v1/chat/completions", json=body(model=name))
        assert error(whole_model)[:2] == (404, "model_not_found"), "one checkpoint was shared, not the job's result"


def test_a_lora_adapter_answers_over_its_base(chat: Chat, adapter_only: Path) -> None:
    name, _ = chat.checkpoint(adapter_only)
    assert content(chat.ask(model=name, seed=1)) != content(chat.ask(seed=1))


def test_a_damaged_checkpoint_is_said_to_be(chat: Chat, other_model: Path) -> None:
    name, checkpoint_id = chat.checkpoint(other_model, step=6)  # another manifest than any in the cache
    with chat.ctx.db.transaction() as session:
        manifest = [dict(file, sha256="0" * 64) for file in session.execute(_manifest(checkpoint_id)).scalar_one()]
        values = {"id": checkpoint_id, "manifest": json.dumps(manifest), "hash": "1" * 64}
        cast = "CAST(:manifest AS JSONB)" if session.get_bind().dialect.name == "postgresql" else ":manifest"
        session.execute(
            sa.text(f"UPDATE checkpoints SET manifest = {cast}, manifest_sha256 = :hash WHERE id = :id"),  # noqa: S608
            values,
        )
    assert error(chat.ask(model=name)) == (400, "checkpoint_damaged", "model")
    with chat.http() as http:
        shown = http.get(f"/fine_tuning/checkpoints/{checkpoint_id}").json()
    assert shown["rl"]["damaged"]
    assert error(chat.ask(model=name)) == (400, "checkpoint_damaged", "model"), "known from now on"


def _manifest(checkpoint_id: str) -> Any:
    table = sa.table("checkpoints", sa.column("id"), sa.column("manifest", sa.JSON))
    return sa.select(table.c.manifest).where(table.c.id == checkpoint_id)


def test_the_openai_client(chat: Chat) -> None:
    with openai.OpenAI(base_url=f"{chat.url}/v1", api_key="any", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=16, seed=1, extra_body={"diffusion": {"block_length": 4}}
        )
        text = answer.choices[0].message.content
        assert text == content(chat.ask(seed=1))
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        pieces = client.chat.completions.create(
            model="tiny",
            messages=HELLO,
            max_tokens=16,
            seed=1,
            stream=True,
            extra_body={"diffusion": {"block_length": 4}},
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == text
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="tiny", messages=HELLO, n=3)
        assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "n")


async def _ask_async(url: str) -> str:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        answer = await client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=16, seed=1, extra_body={"diffusion": {"block_length": 4}}
        )
        return answer.choices[0].message.content or ""


def test_the_async_openai_client(chat: Chat) -> None:
    assert asyncio.run(_ask_async(chat.url)) == content(chat.ask(seed=1))


def test_a_killed_serving_process_costs_a_second_try(chat: Chat) -> None:
    expected = content(chat.ask(seed=1))
    serving = chat.serving()
    assert serving is not None
    serving.send_signal(signal.SIGSTOP)
    found: list[httpx2.Response] = []
    thread = threading.Thread(target=lambda: found.append(chat.ask(seed=1)))
    thread.start()
    wait_until(lambda: (row := newest(chat)) is not None and row.state == "running")
    serving.kill()
    thread.join()
    assert content(found[0]) == expected
    assert row_of(chat, found[0].json()["id"]).failures == 1


def test_without_a_generator_there_is_no_capacity(lonely: Callable[..., Chat]) -> None:
    answer = lonely().ask()
    assert error(answer) == (503, "no_capacity", None)
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["type"] == "server_error"


def pretend_generator(chat: Chat) -> None:
    """One that is seen and does nothing."""
    with chat.ctx.db.transaction() as session:
        generators.beat(session, "g1", host="h", pid=1, device="cpu", version="1", models=[])


def claim(chat: Chat) -> Claimed:
    """Take the waiting request as a generator does."""
    wait_until(lambda: waiting(chat) == 1)
    with chat.ctx.db.transaction() as session:
        (claimed,) = completions.claim(session, "g1", 60, 1)
    return claimed


def write(chat: Chat, claimed: Claimed, seq: int, text: str) -> bool:
    with chat.ctx.db.transaction() as session:
        return completions.write_block(session, claimed.id, claimed.epoch, seq, text)


def test_a_caller_that_leaves_cancels_its_request(lonely: Callable[..., Chat]) -> None:
    chat = lonely()
    pretend_generator(chat)
    with chat.http() as client:
        thread = threading.Thread(target=_give_up, args=(client,))
        thread.start()
        claimed = claim(chat)
        assert write(chat, claimed, 0, "one")
        thread.join()
        wait_until(lambda: row_of(chat, claimed.id).state == "cancelled")
    assert not write(chat, claimed, 1, "two")


def test_a_reader_that_leaves_cancels_its_stream(lonely: Callable[..., Chat]) -> None:
    chat = lonely()
    pretend_generator(chat)
    claims: list[Claimed] = []

    def generate() -> None:
        claims.append(claim(chat))
        assert write(chat, claims[0], 0, "one")

    thread = threading.Thread(target=generate)
    thread.start()
    with chat.http() as http, http.stream("POST", "/chat/completions", json=body(stream=True)) as answer:
        found = [json.loads(line.removeprefix("data: ")) for line in islice(_lines(answer), 2)]
    thread.join()
    assert found[1]["choices"][0]["delta"] == {"content": "one"}
    wait_until(lambda: row_of(chat, claims[0].id).state == "cancelled")


def _lines(answer: httpx2.Response) -> Iterator[str]:
    return (line for line in answer.iter_lines() if line)


def test_an_answer_that_cannot_be_continued_fails(lonely: Callable[..., Chat]) -> None:
    chat = lonely()
    pretend_generator(chat)
    found: list[httpx2.Response] = []
    thread = threading.Thread(target=lambda: found.append(chat.ask(seed=1, stream=True)))
    thread.start()
    claimed = claim(chat)
    assert write(chat, claimed, 0, "what no model says")
    with chat.ctx.db.transaction() as session:
        assert completions.hand_back(session, claimed.id, claimed.epoch, spend=True)
    chat.start_generator()
    thread.join()
    *_, last = chunks_of(found[0].text)
    assert (last["error"]["code"], last["error"]["type"]) == ("generation_failed", "server_error")


def test_a_full_queue_refuses_and_room_is_made_by_those_who_leave(lonely: Callable[..., Chat]) -> None:
    chat = lonely(max_waiting_completions=2)
    pretend_generator(chat)
    clients = [chat.http() for _ in range(2)]
    threads = [threading.Thread(target=_give_up, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    wait_until(lambda: waiting(chat) == 2)
    assert error(chat.ask()) == (503, "no_capacity", None)
    for thread in threads:
        thread.join()
    wait_until(lambda: waiting(chat) == 0)
    for client in clients:
        client.close()


def _give_up(client: httpx2.Client) -> None:
    with pytest.raises(httpx2.ReadTimeout):
        client.post("/chat/completions", json=body(), timeout=3)


def waiting(chat: Chat) -> int:
    with chat.ctx.db.transaction() as session:
        return completions.count_waiting(session, "")[0]


def test_what_takes_too_long_ends_with_504(lonely: Callable[..., Chat]) -> None:
    chat = lonely(completion_timeout_s=0.5)
    pretend_generator(chat)
    answer = chat.ask()
    assert error(answer) == (504, "timeout", None)
    assert answer.headers["x-should-retry"] == "false"
    wait_until(lambda: waiting(chat) == 0)


def test_a_stopping_service_lets_its_callers_go(lonely: Callable[..., Chat]) -> None:
    chat = lonely()
    pretend_generator(chat)
    found: list[httpx2.Response] = []
    thread = threading.Thread(target=lambda: found.append(chat.ask()))
    thread.start()
    wait_until(lambda: waiting(chat) == 1)
    chat.server.stop()
    thread.join(20)
    assert error(found[0]) == (503, "unavailable", None)


def test_a_request_that_the_generator_cannot_read_is_not_its_end(lonely: Callable[..., Chat]) -> None:
    chat = lonely()
    chat.start_generator()
    row = Completion(id=new_id(COMPLETION), project_id="p", model="tiny", base_model="tiny", request={"odd": 1})
    with chat.ctx.db.transaction() as session:
        completions.insert(session, row, 60)
    wait_until(lambda: row_of(chat, row.id).state == "failed")
    assert row_of(chat, row.id).error_code == "generation_failed"
    assert chat.generator is not None
    assert chat.generator.poll() is None


@pytest.mark.slow
def test_a_serving_process_that_hangs_is_replaced(lonely: Callable[..., Chat]) -> None:
    chat = lonely()
    chat.start_generator(generator_stall_s=25)  # loading counts
    expected = content(chat.ask(seed=1))
    serving = chat.serving()
    assert serving is not None
    serving.send_signal(signal.SIGSTOP)
    answer = chat.ask(seed=1)
    assert content(answer) == expected
    assert row_of(chat, answer.json()["id"]).failures == 1
    assert not serving.is_running()


@pytest.mark.slow
def test_memory_is_given_back_and_taken_again(lonely: Callable[..., Chat]) -> None:
    chat = lonely()
    chat.start_generator(generator_idle_s=0.5)
    first = content(chat.ask(seed=1))
    wait_until(lambda: chat.serving() is None)
    assert content(chat.ask(seed=1)) == first


@pytest.mark.slow
def test_without_redis_requests_are_answered_all_the_same(lonely: Callable[..., Chat]) -> None:
    chat = lonely(redis_url="redis://127.0.0.1:1/0")
    chat.start_generator()
    assert content(chat.ask(seed=1))


@pytest.mark.slow
def test_a_killed_generator_is_replaced_and_the_request_still_answered(lonely: Callable[..., Chat]) -> None:
    chat = lonely()
    chat.start_generator()
    first = chat.generator
    assert first is not None
    found: list[httpx2.Response] = []
    thread = threading.Thread(target=lambda: found.append(chat.ask(**SLOW, seed=5)))
    thread.start()
    wait_until(lambda: (row := newest(chat)) is not None and row.blocks > 0)
    serving = chat.serving()
    first.kill()
    chat.start_generator()
    thread.join()
    assert content(found[0])
    assert serving is not None
    assert not serving.is_running(), "what a generator has started ends with it"


@pytest.mark.slow
def test_a_request_that_kills_twice_fails(lonely: Callable[..., Chat]) -> None:
    chat = lonely()
    chat.start_generator()
    found: list[httpx2.Response] = []
    thread = threading.Thread(target=lambda: found.append(chat.ask(**SLOW, stream=True)))
    thread.start()
    for failures in (0, 1):
        wait_until(lambda f=failures: (r := newest(chat)) is not None and r.failures == f and r.state == "running")
        wait_until(lambda: chat.serving() is not None)
        serving = chat.serving()
        assert serving is not None
        serving.kill()
    thread.join()
    row = newest(chat)
    assert row is not None
    assert (row.state, row.error_code, row.failures) == ("failed", "generation_failed", 1)
    said = found[0].text
    assert "generation_failed" in said
    assert content(chat.ask(seed=1)), "the generator goes on"


@pytest.mark.slow
def test_a_generator_told_to_stop_gives_back_what_it_has(lonely: Callable[..., Chat]) -> None:
    chat = lonely()
    chat.start_generator()
    content(chat.ask(seed=1))
    generator = chat.generator
    assert generator is not None
    serving = chat.serving()
    assert serving is not None
    serving.send_signal(signal.SIGSTOP)  # it would not end by itself in time
    found: list[httpx2.Response] = []
    thread = threading.Thread(target=lambda: found.append(chat.ask(seed=1)))
    thread.start()
    wait_until(lambda: (row := newest(chat)) is not None and row.state == "running")
    generator.terminate()
    assert generator.wait(40)
    assert not chat.has_generator()
    row = newest(chat)
    assert row is not None
    assert (row.state, row.failures) == ("queued", 0)
    chat.start_generator()
    thread.join()
    assert content(found[0])
