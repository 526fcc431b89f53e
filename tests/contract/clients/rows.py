"""Each row of the core of the contract: what the client's own methods do, in order of its sections."""

from __future__ import annotations

import base64
import hashlib
import json

import openai

from tests.contract.clients.contract import GRADER, VERSION, Contract, check, method, rows


@check()
async def headers_of_a_response(t: Contract) -> None:
    raw = await t.got(t.client.models.with_raw_response.list())
    assert raw.headers["x-request-id"].startswith("req_")
    assert int(raw.headers["openai-processing-ms"]) >= 0
    assert raw.headers["openai-version"]
    assert raw.headers["openai-organization"]
    assert t.requests[0].headers["authorization"] == "Bearer any"


@check()
async def files_create_retrieve_delete(t: Contract) -> None:
    files = t.client.files
    file = await t.got(files.create(file=("train.jsonl", rows()), purpose="fine-tune"))
    assert (file.object, file.purpose, file.status, file.filename) == ("file", "fine-tune", "processed", "train.jsonl")
    assert (file.id[:5], file.bytes) == ("file-", len(rows()))
    assert isinstance(file.created_at, int)
    assert (await t.got(files.retrieve(file.id))).to_dict() == file.to_dict()
    assert (await t.got(files.content(file.id))).content == rows()
    deleted = await t.got(files.delete(file.id))
    assert (deleted.id, deleted.deleted, deleted.object) == (file.id, True, "file")
    error = await t.refused(openai.NotFoundError, lambda: files.retrieve(file.id))
    assert (error.param, error.type) == ("id", "invalid_request_error")


@check()
async def files_of_every_upload_purpose(t: Contract) -> None:
    for purpose in ("assistants", "batch", "vision", "user_data", "evals"):
        file = await t.got(t.client.files.create(file=("any.bin", b"\x00any"), purpose=purpose))
        assert (file.purpose, file.status) == (purpose, "processed")
    error = await t.refused(openai.BadRequestError, lambda: t.client.files.create(file=b"x", purpose="nonsense"))
    assert error.param == "purpose"


@check()
async def files_list_is_paged_ordered_and_filtered(t: Contract) -> None:
    made = [(await t.got(t.client.files.create(file=b"x", purpose="vision"))).id for _ in range(3)]
    listed = await t.every(t.client.files.list(purpose="vision", limit=1, order="asc"))
    assert [file.id for file in listed][-3:] == made
    listed = await t.every(t.client.files.list(purpose="vision", after=made[2]))
    assert [file.id for file in listed][:2] == made[1::-1]
    assert {file.purpose for file in listed} == {"vision"}
    await t.refused(openai.APIStatusError, lambda: t.client.files.list(after="file-none"))


@check()
async def a_dataset_is_checked_at_once(t: Contract) -> None:
    error = await t.refused(openai.BadRequestError, lambda: t.client.files.create(file=b"{", purpose="fine-tune"))
    assert "line 1 " in str(error)


@check(feature="uploads")
async def uploads_in_parts(t: Contract) -> None:
    content = rows(200)
    parts = [content[:5000], content[5000:]]
    given = {"filename": "big.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
    upload = await t.got(t.client.uploads.create(bytes=len(content), **given))
    assert (upload.object, upload.status, upload.id[:7]) == ("upload", "pending", "upload_")
    assert upload.expires_at > upload.created_at
    ids = []
    for part in parts:
        made = await t.got(t.client.uploads.parts.create(upload.id, data=part))
        assert (made.object, made.upload_id) == ("upload.part", upload.id)
        ids.append(made.id)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    done = await t.got(t.client.uploads.complete(upload.id, part_ids=ids, md5=md5))
    assert (done.status, done.file.filename, done.file.bytes) == ("completed", "big.jsonl", len(content))
    assert (await t.got(t.client.files.content(done.file.id))).content == content
    upload = await t.got(t.client.uploads.create(bytes=10, **given))
    part = await t.got(t.client.uploads.parts.create(upload.id, data=b"short"))
    error = await t.refused(openai.BadRequestError, lambda: t.client.uploads.complete(upload.id, part_ids=[part.id]))
    assert error.type == "invalid_request_error"
    assert (await t.got(t.client.uploads.cancel(upload.id))).status == "cancelled"


@check(feature="uploads")
async def uploads_by_the_clients_own_helper(t: Contract) -> None:
    content = rows(200)
    given = {"filename": "big.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune", "bytes": len(content)}
    done = await t.got(t.client.uploads.upload_file_chunked(file=content, part_size=4000, **given))
    assert (done.status, done.file.bytes) == ("completed", len(content))


@check()
async def a_reinforcement_job_from_creation_to_success(t: Contract) -> None:
    jobs = t.client.fine_tuning.jobs
    job = await t.job(suffix="demo", seed=5, metadata={"who": "life"})
    assert (job.object, job.status, job.model, job.seed) == ("fine_tuning.job", "queued", "tiny", 5)
    assert (job.fine_tuned_model, job.finished_at, job.error, job.result_files) == (None, None, None, [])
    assert job.method.reinforcement.hyperparameters.batch_size == 16, "auto is resolved"
    assert job.method.reinforcement.grader.to_dict() == GRADER
    assert job.organization_id
    t.step("claim", job=job.id)
    assert (await t.got(jobs.retrieve(job.id))).status == "running"
    t.step("checkpoint", job=job.id, step=20, final=True)
    t.step("finish", job=job.id, state="succeeded")
    job = await t.got(jobs.retrieve(job.id))
    assert (job.status, job.metadata) == ("succeeded", {"who": "life"})
    assert job.fine_tuned_model.startswith("ft:tiny:proj_default:demo:")
    assert isinstance(job.finished_at, int)
    told = [event.message for event in await t.every(jobs.list_events(job.id))]
    assert told[0] == "The job has successfully completed"
    assert told[-1] == f"Created fine-tuning job: {job.id}"


@check()
async def a_job_without_method_is_supervised(t: Contract) -> None:
    file = await t.file(rows(answered=True))
    job = await t.got(t.client.fine_tuning.jobs.create(model="tiny", training_file=file))
    assert (job.method.type, job.status) == ("supervised", "queued")
    assert 0 <= job.seed < 2**31, "drawn, and told"
    old = {"n_epochs": 2, "batch_size": 4}
    job = await t.got(t.client.fine_tuning.jobs.create(model="tiny", training_file=file, hyperparameters=old))
    assert job.method.supervised.hyperparameters.batch_size == 4


@check()
async def a_preference_job(t: Contract) -> None:
    answers = {
        name: [{"role": "assistant", "content": text}]
        for name, text in (("preferred_output", "4"), ("non_preferred_output", "5"))
    }
    row = {"input": {"messages": [{"role": "user", "content": "2 + 2"}]}, **answers}
    content = b"".join(json.dumps({**row, "i": i}).encode() + b"\n" for i in range(12))
    block = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 2, "batch_size": "auto"}}}
    job = await t.job(training_file=await t.file(content), method=block)
    assert (job.method.type, job.method.dpo.hyperparameters.beta) == ("dpo", 0.2)


@check()
async def jobs_that_cannot_be(t: Contract) -> None:
    file = await t.file()
    create = t.client.fine_tuning.jobs.create
    error = await t.refused(openai.NotFoundError, lambda: create(model="gpt", training_file=file, method=method()))
    assert (error.code, error.param) == ("model_not_found", "model")
    error = await t.refused(
        openai.APIStatusError, lambda: create(model="tiny", training_file="file-none", method=method())
    )
    assert error.param == "training_file"
    unknown = {"type": "alchemy", "alchemy": {}}
    error = await t.refused(openai.BadRequestError, lambda: create(model="tiny", training_file=file, method=unknown))
    assert error.param.startswith("method")
    wandb = [{"type": "wandb", "wandb": {"project": "p"}}]
    given = {"model": "tiny", "training_file": file, "method": method(), "integrations": wandb}
    error = await t.refused(openai.BadRequestError, lambda: create(**given))
    assert (error.code, error.param) == ("unsupported_parameter", "integrations")


@check()
async def jobs_list_is_newest_first(t: Contract) -> None:
    file = await t.file()
    made = [(await t.job(training_file=file, metadata={"batch": "order"})).id for _ in range(3)]
    listed = await t.every(t.client.fine_tuning.jobs.list(limit=1, metadata={"batch": "order"}))
    assert [job.id for job in listed] == made[::-1], "also within the same second"
    listed = await t.every(t.client.fine_tuning.jobs.list(after=made[1], metadata={"batch": "order"}))
    assert [job.id for job in listed] == made[:1]


@check()
async def pause_resume_cancel(t: Contract) -> None:
    jobs = t.client.fine_tuning.jobs
    job = await t.job()
    assert (await t.got(jobs.pause(job.id))).status == "paused"
    assert (await t.got(jobs.pause(job.id))).status == "paused", "asking again changes nothing"
    assert (await t.got(jobs.resume(job.id))).status == "queued"
    t.step("claim", job=job.id)
    assert (await t.got(jobs.pause(job.id))).status == "running", "until its checkpoint is stored"
    t.step("checkpoint", job=job.id, step=4)
    t.step("finish", job=job.id, state="paused")
    assert (await t.got(jobs.retrieve(job.id))).status == "paused"
    assert (await t.got(jobs.cancel(job.id))).status == "cancelled"
    assert (await t.got(jobs.cancel(job.id))).fine_tuned_model is None
    error = await t.refused(openai.BadRequestError, lambda: jobs.resume(job.id))
    assert error.code == "invalid_state"


@check()
async def a_failed_job_says_why(t: Contract) -> None:
    job = await t.job()
    t.step("claim", job=job.id)
    t.step("finish", job=job.id, state="failed", code="oom", message="No memory.")
    job = await t.got(t.client.fine_tuning.jobs.retrieve(job.id))
    assert (job.status, job.error.code) == ("failed", "oom"), job.error
    assert job.error.message.startswith("No memory.")
    assert job.error.param is None


@check()
async def events_are_paged(t: Contract) -> None:
    job = await t.job()
    t.step("claim", job=job.id)
    for number in range(5):
        t.step("event", job=job.id, message=f"note {number}", data={"step": number})
    listed = await t.every(t.client.fine_tuning.jobs.list_events(job.id, limit=2))
    assert [event.message for event in listed][:5] == [f"note {number}" for number in (4, 3, 2, 1, 0)]
    assert len({event.id for event in listed}) == len(listed)
    event = listed[0]
    assert (event.object, event.level, event.id[:8]) == ("fine_tuning.job.event", "info", "ftevent-")
    assert (event.type, event.data) == ("message", {"step": 4})


@check()
async def checkpoints_are_paged(t: Contract) -> None:
    job = await t.finished_job()
    listed = await t.every(t.client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    assert [item.step_number for item in listed] == [20, 10]
    first = listed[0]
    assert (first.object, first.fine_tuning_job_id) == ("fine_tuning.job.checkpoint", job.id)
    assert first.fine_tuned_model_checkpoint == f"{job.fine_tuned_model}:ckpt-step-20"
    assert first.metrics is not None


@check(feature="permissions")
async def checkpoint_permissions(t: Contract) -> None:
    job = await t.finished_job()
    permissions = t.client.fine_tuning.checkpoints.permissions
    other = t.step("project")
    checkpoint = (await t.every(t.client.fine_tuning.jobs.checkpoints.list(job.id)))[0].id
    (made,) = await t.every(permissions.create(checkpoint, project_ids=[other]))
    assert (made.object, made.project_id) == ("checkpoint.permission", other)
    seen = await t.got(permissions.retrieve(checkpoint, limit=1))
    assert [item.id for item in seen.data] == [made.id]
    if VERSION >= (2,):
        assert [item.id for item in await t.every(permissions.list(checkpoint, limit=1))] == [made.id]
    deleted = await t.got(permissions.delete(made.id, fine_tuned_model_checkpoint=checkpoint))
    assert (deleted.id, deleted.deleted, deleted.object) == (made.id, True, "checkpoint.permission")


@check()
async def graders_run(t: Contract) -> None:
    graders = t.client.fine_tuning.alpha.graders
    ran = await t.got(graders.run(grader=GRADER, model_sample="4", item={"answer": "4"}))
    assert (ran.reward, ran.sub_rewards, ran.api_model_grader_token_usage_per_model) == (1.0, {}, {})
    assert (ran.metadata.name, ran.metadata.type, ran.metadata.token_usage) == ("same", "string_check", None)
    assert ran.metadata.execution_time >= 0
    assert not any(ran.metadata.errors.to_dict().values())
    ran = await t.got(graders.run(grader=GRADER, model_sample="4"))
    assert (ran.reward, ran.metadata.errors.invalid_variable_error) == (0.0, True), "a failing grader is an answer"
    strict = t.new_client(_strict_response_validation=True)
    await t.got(strict.fine_tuning.alpha.graders.run(grader=GRADER, model_sample="4", item={"answer": "4"}))


@check()
async def graders_validate(t: Contract) -> None:
    validate = t.client.fine_tuning.alpha.graders.validate
    assert (await t.got(validate(grader=GRADER))).grader.to_dict() == GRADER
    error = await t.refused(openai.BadRequestError, lambda: validate(grader=GRADER | {"input": "{{ nobody.x }}"}))
    assert (error.param, error.code) == ("grader.input", "invalid_value")
    error = await t.refused(openai.BadRequestError, lambda: validate(grader=GRADER | {"operation": "neq"}))
    assert error.param == "grader.operation"


@check()
async def models_list_and_retrieve(t: Contract) -> None:
    job = await t.finished_job()
    models = {model.id: model for model in await t.every(t.client.models.list())}
    assert {"tiny", job.fine_tuned_model} <= set(models)
    for name in ("tiny", job.fine_tuned_model):
        model = await t.got(t.client.models.retrieve(name))
        assert (model.object, model.id) == ("model", name)
        assert isinstance(model.created, int)
    error = await t.refused(openai.NotFoundError, lambda: t.client.models.retrieve("gpt"))
    assert error.code == "model_not_found"


@check(feature="inference")
async def models_delete(t: Contract) -> None:
    job = await t.finished_job()
    deleted = await t.got(t.client.models.delete(job.fine_tuned_model))
    assert (deleted.id, deleted.deleted, deleted.object) == (job.fine_tuned_model, True, "model")
    await t.refused(openai.NotFoundError, lambda: t.client.models.retrieve(job.fine_tuned_model))


@check(feature="inference")
async def a_tuned_model_is_a_base_model(t: Contract) -> None:
    job = await t.finished_job()
    again = await t.job(model=job.fine_tuned_model)
    assert again.model == job.fine_tuned_model
    checkpoint = (await t.every(t.client.fine_tuning.jobs.checkpoints.list(job.id)))[-1]
    again = await t.job(model=checkpoint.fine_tuned_model_checkpoint)
    assert again.model == checkpoint.fine_tuned_model_checkpoint


@check(feature="inference")
async def chat_without_a_generator_asks_to_wait(t: Contract) -> None:
    messages = [{"role": "user", "content": "hello"}]
    error = await t.refused(
        openai.InternalServerError, lambda: t.client.chat.completions.create(model="tiny", messages=messages)
    )
    assert (error.status_code, error.code) == (503, "no_capacity")
    assert int(error.response.headers["retry-after"]) > 0


@check(feature="inference")
async def chat_refuses_what_it_has_not(t: Contract) -> None:
    create = t.client.chat.completions.create
    messages = [{"role": "user", "content": "hello"}]
    for name, value in (("n", 2), ("logprobs", True), ("tools", [{"type": "function", "function": {"name": "f"}}])):
        given = {"model": "tiny", "messages": messages, name: value}
        error = await t.refused(openai.BadRequestError, lambda given=given: create(**given))
        assert (error.code, error.param) == ("unsupported_parameter", name)


@check(feature="inference")
async def chat_answers_whole_and_in_blocks(t: Contract) -> None:
    url = t.step("generator")
    client = t.new_client(base_url=f"{url}/v1", max_retries=2)
    given = {
        "model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16, "seed": 1,
        "extra_body": {"diffusion": {"block_length": 4}},
    }  # fmt: skip
    answer = await t.got(client.chat.completions.create(**given))
    assert (answer.object, answer.model) == ("chat.completion", "tiny")
    (choice,) = answer.choices
    assert (choice.index, choice.message.role) == (0, "assistant")
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    chunks = await t.every(client.chat.completions.create(**given, stream=True))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == choice.message.content
    assert chunks[-1].choices[0].finish_reason == choice.finish_reason


@check(feature="webhook_endpoints")
async def webhook_endpoints(t: Contract) -> None:
    hooks = t.client.webhooks if VERSION >= (3, 54) else None
    if hooks is None:  # releases without the methods
        kinds = await t.got(t.client.get("/webhook_event_types", cast_to=object))
        assert "fine_tuning.job.succeeded" in kinds["data"]
        return
    kinds = (await t.got(hooks.event_types.list())).data
    assert kinds == [f"fine_tuning.job.{end}" for end in ("succeeded", "failed", "cancelled")]
    given = {"url": "https://receiver.example/hook", "event_types": kinds[:2]}
    made = [await t.got(hooks.create(name=f"number {number}", **given)) for number in range(3)]
    first = made[0]
    assert (first.object, first.name, first.url, first.event_types) == ("webhook_endpoint", "number 0", *given.values())
    assert first.signing_secret.startswith("whsec_")
    shown = await t.got(hooks.retrieve(first.id))
    assert (shown.id, shown.created_at, shown.updated_at) == (first.id, first.created_at, first.updated_at)
    assert first.signing_secret not in str(shown.to_dict())
    listed = [each.id for each in await t.every(hooks.list(limit=1))]
    assert listed[:3] == [each.id for each in made[::-1]]
    changed = await t.got(hooks.update(first.id, event_types=kinds))
    assert (changed.event_types, changed.name) == (kinds, "number 0")
    rotated = await t.got(hooks.rotate_secret(first.id))
    kept = await t.got(hooks.rotate_secret(first.id, keep_old_secret_active_for_24_hours=True))
    assert len({each.signing_secret for each in (first, rotated, kept)}) == 3
    assert kept.signing_secret_hint.endswith(kept.signing_secret.rstrip("=")[-4:])
    error = await t.refused(openai.BadRequestError, lambda: hooks.create(name="x", **{**given, "url": "http://x/"}))
    assert error.param == "url"
    error = await t.refused(openai.BadRequestError, lambda: hooks.update(first.id, event_types=["batch.failed"]))
    assert error.param == "event_types.0"
    deleted = await t.got(hooks.delete(first.id))
    assert (deleted.id, deleted.deleted, deleted.object) == (first.id, True, "webhook_endpoint.deleted")
    await t.refused(openai.NotFoundError, lambda: hooks.test(first.id, event_type=kinds[0]))


@check(feature="webhook_endpoints")
async def webhook_endpoints_are_tried_out(t: Contract) -> None:
    if VERSION < (3, 54):
        return
    receiver = t.step("receiver")
    hooks = t.new_client(base_url=f"{receiver['service']}/v1").webhooks
    endpoint = await t.got(hooks.create(name="x", url=receiver["url"], event_types=["fine_tuning.job.failed"]))
    tried = await t.got(hooks.test(endpoint.id, event_type="fine_tuning.job.failed"))
    assert (tried.object, tried.webhook_endpoint_id) == ("webhook_endpoint.test", endpoint.id)
    assert (tried.event_type, tried.status_code, tried.success) == ("fine_tuning.job.failed", 200, True)
    sent = t.step("received")
    event = await t.got(hooks.unwrap(sent["body"], sent["headers"], secret=endpoint.signing_secret))
    assert (event.type, event.object, event.data.id[:6]) == ("fine_tuning.job.failed", "event", "ftjob-")


@check()
async def webhooks_are_unwrapped(t: Contract) -> None:
    sent = t.step("webhook", type="fine_tuning.job.succeeded", job="ftjob-1")
    event = t.client.webhooks.unwrap(sent["body"], sent["headers"], secret=sent["secret"])
    event = await t.got(event)
    assert (event.type, event.data.id, event.object) == ("fine_tuning.job.succeeded", "ftjob-1", "event")
    wrong = "whsec_" + base64.b64encode(b"u" * 32).decode()
    try:
        await t.got(t.client.webhooks.unwrap(sent["body"], sent["headers"], secret=wrong))
    except openai.InvalidWebhookSignatureError:
        return
    raise AssertionError("another secret was taken")
