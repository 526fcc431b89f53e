"""Download a tuned model, check every file's hash, and talk to it: over the service, in a stream, and from the disk.

    python examples/download_and_chat.py --base-url http://127.0.0.1:8000/v1

At temperature 0 the service and the downloaded files must give the same answer.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

from helpers import ANSWER, IMITATION, MODEL, connect, puzzles, require, upload, wait
from openai import OpenAI
from openai._legacy_response import HttpxBinaryResponseContent

import bgpo
from bgpo.spec import RolloutSpec

SAMPLER = {"diffusion": {"block_length": ANSWER["block_length"], "steps": ANSWER["diffusion_steps"]}}


def main() -> None:
    client = connect(__doc__)
    shown = upload(client, puzzles("train", 1024, "--demonstrations"), "shown.jsonl")
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": IMITATION}}
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=shown, method=method, seed=7)
    print(f"{job.id} tunes {MODEL}")
    job = wait(client, job.id)
    require(job.status == "succeeded", f"the job has {job.status}: {job.error}")

    question = puzzles("test", 1)[0]["messages"]
    print(f"asked {question[0]['content']}")
    stream = client.chat.completions.create(
        model=str(job.fine_tuned_model),
        messages=question,
        max_tokens=ANSWER["max_completion_length"],
        temperature=0,
        stream=True,
        extra_body=SAMPLER,
    )
    served = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    print(f"served answer      {served}")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = next(iter(client.fine_tuning.jobs.checkpoints.list(job.id)))
        download(client, checkpoint.id, folder)
        policy = bgpo.load_policy(folder)
        answers = bgpo.generate(policy, [question[0]["content"]], RolloutSpec(**ANSWER, temperature=0.0))
    print(f"downloaded answer  {answers[0].text}")
    require(bool(served) and served == answers[0].text, "the two answers differ")


def download(client: OpenAI, checkpoint: str, folder: Path) -> None:
    """Fetch the files of a checkpoint that a model needs, and compare their hashes.

    Each is held in memory here; `bgpo download` streams to the disk and goes on after a cut.
    """
    path = f"/fine_tuning/checkpoints/{checkpoint}/files"
    manifest: Any = client.get(path, cast_to=object)
    for file in manifest["data"]:
        if file["kind"] == "trainer_state":
            continue
        content = client.get(f"{path}/{file['path']}", cast_to=HttpxBinaryResponseContent).content
        require(hashlib.sha256(content).hexdigest() == file["sha256"], f"{file['path']} was altered on the way")
        target = folder / file["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        print(f"  {file['path']}: {file['bytes']} bytes, sha256 is right")


if __name__ == "__main__":
    main()
