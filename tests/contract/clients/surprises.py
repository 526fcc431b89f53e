"""The 21 surprises of section 1.12: where the client does what one would not expect, and what the service answers.

A name begins with the surprise's number; docs/clients.md tells them in the same order.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import warnings
from typing import Any

import openai
from openai.types.fine_tuning import FineTuningJobEvent

from tests.contract.clients.contract import GRADER, Contract, check, httpx, method, rows

PYTHON = {
    "type": "python",
    "source": "def grade(sample, item):\n    return float(item['answer'] == sample['output_text'])",
}
BOTH = {
    "type": "multi",
    "name": "both",
    "graders": {"exact": GRADER, "part": GRADER | {"operation": "like", "name": "part"}},
    "calculate_output": "(exact + part) / 2",
}


def losing(t: Contract, ending: str) -> Any:
    """A transport that loses the first answer to a POST there: the service has done it, the client does not know."""
    lost: list[str] = []

    def loses(request: Any) -> bool:
        if request.method != "POST" or not request.url.path.endswith(ending) or lost:
            return False
        lost.append(request.url.path)
        return True

    class Losing(httpx.HTTPTransport):
        def handle_request(self, request: Any) -> Any:
            response = super().handle_request(request)
            if loses(request):
                response.read()
                raise httpx.ReadError("the connection was cut", request=request)
            return response

    class AsyncLosing(httpx.AsyncHTTPTransport):
        async def handle_async_request(self, request: Any) -> Any:
            response = await super().handle_async_request(request)
            if loses(request):
                await response.aread()
                raise httpx.ReadError("the connection was cut", request=request)
            return response

    return (AsyncLosing if t.asynchronous else Losing)()


@check()
async def s01_a_repeated_create_with_a_key_is_one_job(t: Contract) -> None:
    client = t.new_client(max_retries=2, transport=losing(t, "/jobs"))
    file = await t.file()
    given = {"model": "tiny", "training_file": file, "method": method(), "metadata": {"made": "with a key"}}
    headers = {"Idempotency-Key": file}
    job = await t.got(client.fine_tuning.jobs.create(**given, extra_headers=headers))
    assert len(t.sent("/jobs")) == 2, "the client has retried"
    assert [job.id] == [row.id for row in await t.every(client.fine_tuning.jobs.list(metadata=given["metadata"]))]
    other = given | {"seed": 7}
    t.requests.clear()
    error = await t.refused(
        openai.ConflictError, lambda: client.fine_tuning.jobs.create(**other, extra_headers=headers)
    )
    assert error.code == "idempotency_key_reused"
    assert len(t.sent("/jobs")) == 1, "it is told not to retry"


@check(feature="retries")
async def s01_a_repeated_create_without_a_key_is_one_job(t: Contract) -> None:
    client = t.new_client(max_retries=2, transport=losing(t, "/jobs"))
    given = {"model": "tiny", "training_file": await t.file(), "method": method(), "metadata": {"made": "by a retry"}}
    job = await t.got(client.fine_tuning.jobs.create(**given))
    assert len(t.sent("/jobs")) == 2
    assert [job.id] == [row.id for row in await t.every(client.fine_tuning.jobs.list(metadata=given["metadata"]))]
    again = await t.got(client.fine_tuning.jobs.create(**given))
    assert again.id != job.id, "who asks twice wants two"


@check(feature="retries")
async def s01_a_repeated_upload_is_one_file(t: Contract) -> None:
    client = t.new_client(max_retries=2, transport=losing(t, "/files"))
    content = rows(13)
    file = await t.got(client.files.create(file=("twice.jsonl", content), purpose="fine-tune"))
    assert len(t.sent("/files")) == 2
    twins = [row.id for row in await t.every(client.files.list(purpose="fine-tune")) if row.filename == "twice.jsonl"]
    assert twins == [file.id]


@check()
async def s02_wishes_have_empty_bodies(t: Contract) -> None:
    job = await t.job()
    jobs = t.client.fine_tuning.jobs
    for wish, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        assert (await t.got(getattr(jobs, wish)(job.id))).status == status
        (request,) = t.sent(f"/{wish}")
        assert not request.content


@check()
async def s03_a_conflict_and_a_full_queue_are_not_retried(t: Contract) -> None:
    full = t.step("full_queue")
    client = t.new_client(base_url=f"{full['url']}/v1", max_retries=2)
    jobs = client.fine_tuning.jobs
    await t.got(jobs.cancel(full["cancelled"]))
    error = await t.refused(openai.BadRequestError, lambda: jobs.resume(full["cancelled"]))
    assert error.code == "invalid_state"
    assert len(t.sent("/resume")) == 1
    given = {"model": "tiny", "training_file": full["file"], "method": method()}
    error = await t.refused(openai.RateLimitError, lambda: jobs.create(**given))
    assert (error.code, error.type) == ("insufficient_quota", "insufficient_quota")
    assert error.response.headers["x-should-retry"] == "false"
    assert len(t.sent("/jobs")) == 1


@check()
async def s03_a_wait_is_short_enough_to_be_honoured(t: Contract) -> None:
    t.step("busy_graders")
    try:
        run = t.client.fine_tuning.alpha.graders.run
        error = await t.refused(openai.InternalServerError, lambda: run(grader=GRADER, model_sample="4"))
    finally:
        t.step("free_graders")
    assert error.code == "busy"
    assert 0 < int(error.response.headers["retry-after"]) <= 60, "1.x and 2.x ignore longer ones, 3.x gives up over 120"


@check()
async def s04_every_error_has_all_its_parts(t: Contract) -> None:
    client = t.client
    bad = {"name": "x", "type": "string_check"}
    calls = [
        (400, lambda: client.fine_tuning.alpha.graders.validate(grader=bad)),
        (400, lambda: client.post("/fine_tuning/jobs", body={"model": 3}, cast_to=object)),
        (400, lambda: client.fine_tuning.jobs.list(limit=0)),
        (404, lambda: client.files.retrieve("file-none")),
        (404, lambda: client.get("/nothing/here", cast_to=object)),
        (405, lambda: client.patch("/models", cast_to=object)),
        (413, lambda: client.post("/fine_tuning/jobs", body={"model": "x" * 5_000_000}, cast_to=object)),
        (415, lambda: client.post("/files", body={"no": "form"}, cast_to=object)),
    ]
    for status, call in calls:
        error = await t.refused(openai.APIStatusError, call)
        assert error.status_code == status, error
        assert set(error.body) == {"message", "type", "param", "code"}, error.body
        assert error.type == "invalid_request_error"
        assert error.body["message"] in str(error)
        assert error.request_id.startswith("req_")


@check()
async def s05_extra_body_is_merged_at_the_top_only(t: Contract) -> None:
    file = await t.file()
    block = method(hyperparameters={"max_steps": 3})
    job = await t.job(training_file=file, method=method(), extra_body={"method": block, "rl": {"sample_log": 2}})
    assert job.method.reinforcement.hyperparameters.max_steps == 3, "extra_body's method takes the other's place"
    assert job.method.reinforcement.hyperparameters.group_size, "and what it leaves out has its default"
    for extra, param in (({"rll": {}}, "rll"), ({"rl": {"sample_logs": 2}}, "rl.sample_logs")):
        error = await t.refused(openai.BadRequestError, lambda extra=extra: t.job(training_file=file, extra_body=extra))
        assert (error.code, error.param) == ("unknown_parameter", param)


@check()
async def s06_ids_with_slashes(t: Contract) -> None:
    for name in ("a/b", "..%2Fadmin", "%2e%2e%2fadmin"):
        error = await t.refused(openai.NotFoundError, lambda name=name: t.client.models.retrieve(name))
        assert error.code == "model_not_found"
    job = await t.finished_job(suffix="with/slash")
    assert "/" not in job.fine_tuned_model
    assert (await t.got(t.client.models.retrieve(job.fine_tuned_model))).id == job.fine_tuned_model


@check()
async def s07_hyperparameters_are_there_though_deprecated(t: Contract) -> None:
    strict = t.new_client(_strict_response_validation=True)
    given = {"model": "tiny", "training_file": await t.file(), "method": method()}
    job = await t.got(strict.fine_tuning.jobs.create(**given))
    assert job.hyperparameters.to_dict() == {}
    assert job.to_dict()["hyperparameters"] == {}


@check()
async def s08_a_multi_grader_is_a_dict(t: Contract) -> None:
    graders = t.client.fine_tuning.alpha.graders
    ran = await t.got(graders.run(grader=BOTH, model_sample="44", item={"answer": "4"}))
    assert (ran.reward, ran.sub_rewards) == (0.5, {"exact": 0.0, "part": 1.0})
    assert (await t.got(graders.validate(grader=BOTH))).grader.to_dict()["graders"] == BOTH["graders"]
    job = await t.job(method=method(grader=BOTH))
    shown = job.method.reinforcement.grader.to_dict()
    assert {name: shown[name] for name in BOTH} == BOTH


@check()
async def s09_a_python_grader_needs_no_name(t: Contract) -> None:
    """Where no sandbox runs it is refused by its type, and not for the missing name."""
    graders = t.client.fine_tuning.alpha.graders
    try:
        ran = await t.got(graders.run(grader=PYTHON, model_sample="4", item={"answer": "4"}))
    except openai.BadRequestError as error:
        assert (error.code, error.param) == ("unsupported_grader", "grader.type")  # noqa: PT017  # no pytest in these environments
    else:
        assert (ran.reward, ran.metadata.type) == (1.0, "python")


@check(feature="result_files")
async def s10_result_files_are_raw_and_base64_on_request(t: Contract) -> None:
    job = await t.finished_job()
    files = [await t.got(t.client.files.retrieve(name)) for name in job.result_files]
    assert {file.purpose for file in files} == {"fine-tune-results"}
    (table,) = (file for file in files if file.filename == "step_metrics.csv")
    raw = (await t.got(t.client.files.content(table.id))).content
    assert next(csv.reader(io.StringIO(raw.decode())))[0] == "step"
    coded = (await t.got(t.client.files.content(table.id, extra_query={"encoding": "base64"}))).content
    assert base64.b64decode(coded) == raw


@check()
async def s11_no_list_costs_a_request_too_many(t: Contract) -> None:
    file = await t.file()
    for _ in range(4):
        await t.job(training_file=file, metadata={"batch": "requests"})
    job = await t.finished_job()
    jobs = t.client.fine_tuning.jobs
    events = len(await t.every(jobs.list_events(job.id, limit=100)))
    for listing, ending, pages in (
        (lambda: jobs.list(limit=2, metadata={"batch": "requests"}), "/jobs", 2),
        (lambda: jobs.list_events(job.id, limit=1), "/events", events),
        (lambda: jobs.checkpoints.list(job.id, limit=2), "/checkpoints", 1),
        (lambda: t.client.files.list(purpose="batch_output"), "/files", 1),
    ):
        t.requests.clear()
        await t.every(listing())
        assert len(t.sent(ending, "GET")) == pages, ending


@check()
async def s12_metadata_filters(t: Contract) -> None:
    file, jobs = await t.file(), t.client.fine_tuning.jobs
    tagged = [
        (await t.job(training_file=file, metadata={"filter": value, "odd [key]": "ö&="})).id for value in ("a", "b", "")
    ]
    plain = (await t.job(training_file=file)).id

    async def found(metadata: Any) -> list[str]:
        return [job.id for job in await t.every(jobs.list(metadata=metadata))]

    assert await found({"filter": "a"}) == tagged[:1]
    assert await found({"filter": "a", "odd [key]": "ö&="}) == tagged[:1]
    # The clients leave a parameter with an empty value out, so this one has to stand in the path.
    listed = await t.got(t.client.get("/fine_tuning/jobs?metadata[filter]=", cast_to=object))
    assert [job["id"] for job in listed["data"]] == tagged[2:]
    assert await found({"filter": "c"}) == []
    t.requests.clear()
    await t.got(jobs.list(metadata=None))
    assert "metadata" not in str(t.requests[0].url), "the clients do not send null"
    untagged = [job.id for job in await t.every(jobs.list(extra_query={"metadata": "null"}))]
    assert plain in untagged
    assert not set(untagged) & set(tagged)


@check()
async def s13_filenames_arrive_as_they_are(t: Contract) -> None:
    for name in ("../../x%0D%0AY", "a\"b'c;d.jsonl", "grüße.jsonl", "..\\..\\x"):
        file = await t.got(t.client.files.create(file=(name, rows()), purpose="fine-tune"))
        assert (await t.got(t.client.files.retrieve(file.id))).filename == file.filename
        content = await t.got(t.client.files.content(file.id))
        assert content.content == rows()
        disposition = content.response.headers["content-disposition"]
        assert disposition.startswith("attachment")
        assert not set("\r\n") & set(disposition)
        assert content.response.headers["x-content-type-options"] == "nosniff"


@check()
async def s14_every_answer_is_200_with_json(t: Contract) -> None:
    file, job = await t.file(), await t.job()
    jobs = t.client.fine_tuning.jobs.with_raw_response
    for call in (
        lambda: jobs.pause(job.id),
        lambda: jobs.resume(job.id),
        lambda: jobs.cancel(job.id),
        lambda: t.client.files.with_raw_response.delete(file),
        lambda: t.client.fine_tuning.jobs.with_raw_response.retrieve(job.id),
    ):
        raw = await t.got(call())
        assert raw.http_response.status_code == 200
        assert raw.headers["content-type"].split(";")[0] == "application/json"
        assert json.loads(raw.http_response.content)["id"]


@check()
async def s15_no_event_of_a_stream_looks_like_an_error(t: Contract) -> None:
    job = await t.job()
    t.step("claim", job=job.id)
    t.step("event", job=job.id, message="odd", level="error", data={"error": {"message": "inside"}})
    t.step("finish", job=job.id, state="failed", code="oom", message="No memory.")
    stream = openai.AsyncStream if t.asynchronous else openai.Stream
    options = {"cast_to": FineTuningJobEvent, "stream": True, "stream_cls": stream[FineTuningJobEvent]}
    events = await t.every(t.client.get(f"/fine_tuning/jobs/{job.id}/events/stream", **options))
    assert "odd" in [event.message for event in events]
    assert not any(event.to_dict().get("error") for event in events)


@check()
async def s16_retrieve_content_is_text_whatever_it_asks_for(t: Contract) -> None:
    file = await t.file()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        text = await t.got(t.client.files.retrieve_content(file))
    (request,) = t.sent("/content", "GET")
    assert request.headers["accept"] == "application/json"
    assert text == rows().decode()


@check()
async def s17_models_come_in_one_answer(t: Contract) -> None:
    file = await t.file()
    made = {(await t.finished_job(training_file=file)).fine_tuned_model for _ in range(3)}
    t.requests.clear()
    listed = await t.every(t.client.models.list())
    assert made <= {model.id for model in listed}
    assert len(t.sent("/models", "GET")) == 1


@check()
async def s18_prefixes_of_ids(t: Contract) -> None:
    job = await t.finished_job()
    checkpoints = await t.every(t.client.fine_tuning.jobs.checkpoints.list(job.id))
    events = await t.every(t.client.fine_tuning.jobs.list_events(job.id))
    assert job.id.startswith("ftjob-")
    assert {item.id[:7] for item in checkpoints} == {"ftckpt_"}
    assert {item.id[:8] for item in events} == {"ftevent-"}
    assert job.training_file.startswith("file-")


@check()
async def s19_files_are_listed_by_the_ten_thousand(t: Contract) -> None:
    t.step("many_files", count=150)
    t.requests.clear()
    listed = await t.every(t.client.files.list(purpose="user_data"))
    assert len(listed) >= 150
    assert len(t.sent("/files", "GET")) == 1
    error = await t.refused(openai.BadRequestError, lambda: t.client.files.list(limit=10_001))
    assert error.param == "limit"


@check(feature="expires_after")
async def s20_expires_after_comes_in_brackets(t: Contract) -> None:
    create = t.client.files.create
    asked = {"anchor": "created_at", "seconds": 3600}
    file = await t.got(create(file=b"x", purpose="batch", expires_after=asked))
    assert file.expires_at == file.created_at + 3600
    short = asked | {"seconds": 60}
    error = await t.refused(openai.BadRequestError, lambda: create(file=b"x", purpose="batch", expires_after=short))
    assert error.param.startswith("expires_after")


@check()
async def s21_a_file_is_processed_when_it_is_there(t: Contract) -> None:
    file = await t.file()
    t.requests.clear()
    assert (await t.got(t.client.files.wait_for_processing(file, max_wait_seconds=20))).status == "processed"
    assert len(t.requests) == 1, "a second look comes after five seconds"
