"""What the service has beyond OpenAI's API, called with the client as it is (section 1.11 of the contract)."""

from __future__ import annotations

import json
import tarfile
import tempfile
from pathlib import Path

import openai
from openai._legacy_response import HttpxBinaryResponseContent
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent

from tests.contract.clients.contract import Contract, check, method, rows


@check()
async def get_and_post_as_objects(t: Contract) -> None:
    job = await t.job(extra_body={"rl": {"checkpointing": {"every_steps": 7}, "priority": "high"}})
    assert (job.rl["checkpointing"]["every_steps"], job.rl["priority"]) == (7, "high")
    path = f"/fine_tuning/jobs/{job.id}"
    metrics = await t.got(t.client.get(f"{path}/metrics", cast_to=object))
    assert metrics == {"object": "list", "data": [], "has_more": False}
    queue = await t.got(t.client.get("/fine_tuning/queue", cast_to=object))
    assert job.id in [entry["job"] for entry in queue["waiting"]]
    changes = {"method": {"reinforcement": {"hyperparameters": {"group_size": 16}}}}
    cloned = await t.got(t.client.post(f"{path}/clone", body=changes, cast_to=FineTuningJob))
    assert cloned.method.reinforcement.hyperparameters.group_size == 16
    assert cloned.rl["source_job"] == job.id


@check()
async def events_are_streamed(t: Contract) -> None:
    job = await t.finished_job()
    listed = [event.id for event in await t.every(t.client.fine_tuning.jobs.list_events(job.id))]
    stream = openai.AsyncStream if t.asynchronous else openai.Stream
    options = {"cast_to": FineTuningJobEvent, "stream": True, "stream_cls": stream[FineTuningJobEvent]}
    path = f"/fine_tuning/jobs/{job.id}/events/stream"
    streamed = await t.every(t.client.get(path, **options))
    assert [event.id for event in streamed] == listed[::-1]
    rest = await t.every(t.client.get(f"{path}?after={streamed[1].id}", **options))
    assert [event.id for event in rest] == [event.id for event in streamed[2:]]
    again = {"headers": {"Last-Event-ID": streamed[1].id}}
    rest = await t.every(t.client.get(path, options=again, **options))
    assert [event.id for event in rest] == [event.id for event in streamed[2:]]


@check()
async def a_checkpoint_is_downloaded(t: Contract) -> None:
    job = await t.finished_job()
    checkpoint = (await t.every(t.client.fine_tuning.jobs.checkpoints.list(job.id)))[0]
    path = f"/fine_tuning/checkpoints/{checkpoint.id}"
    manifest = await t.got(t.client.get(f"{path}/files", cast_to=object))
    (entry,) = manifest["data"]
    one = await t.got(t.client.get(f"{path}/files/{entry['path']}", cast_to=HttpxBinaryResponseContent))
    assert (len(one.content), json.loads(one.content)) == (entry["bytes"], {})
    archive = await t.got(t.client.get(f"{path}/content", cast_to=HttpxBinaryResponseContent))
    with tempfile.TemporaryFile() as file:
        file.write(archive.content)
        file.seek(0)
        with tarfile.open(fileobj=file) as tar:
            assert any(name.endswith(entry["path"]) for name in tar.getnames())


@check()
async def a_file_is_streamed_to_disk(t: Contract) -> None:
    content = rows(500)
    file = await t.file(content)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "copy"
        async with t.streaming(t.client.files.with_streaming_response.content(file)) as response:
            await t.got(response.stream_to_file(path))
        assert path.read_bytes() == content


@check()
async def unknown_values_survive_the_clients_parsing(t: Contract) -> None:
    """Its types know neither `paused` nor our fields; the objects show them all the same."""
    job = await t.job()
    paused = await t.got(t.client.fine_tuning.jobs.pause(job.id))
    assert (paused.status, paused.rl["step"]) == ("paused", 0)
    row = {"messages": [{"role": "user", "content": "0310200404001043"}], "puzzle": "0310200404001043"}
    content = b"".join(json.dumps({**row, "i": i}).encode() + b"\n" for i in range(12))
    sudoku = {"type": "sudoku", "name": "s"}
    job = await t.job(training_file=await t.file(content), method=method(grader=sudoku))
    assert job.method.reinforcement.grader.to_dict()["type"] == "sudoku"
