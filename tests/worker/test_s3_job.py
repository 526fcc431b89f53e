"""One whole job with its artifacts on S3: uploaded, trained, downloaded, deleted, by API and worker processes."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from migrations import upgrade
from tests.running import running, wait_for_job
from tests.s3 import S3Server

ROW = b'{"messages": [{"role": "user", "content": "2 + 2"}], "answer": "4"}\n'
GRADER = {"type": "string_check", "name": "g", "operation": "eq", "reference": "4", "input": "{{ sample.output_text }}"}


@pytest.mark.timeout(300)
def test_a_job_on_s3(tmp_path: Path, sqlite_url: str, redis_url: str) -> None:
    server, home = S3Server(tmp_path), tmp_path / "home"
    home.mkdir()
    server.start()
    server.bucket("artifacts")
    upgrade(sqlite_url)
    env = {
        **server.environment,
        "BGPO_ARTIFACTS_URL": "s3://artifacts/bgpo",
        "BGPO_DATABASE_URL": sqlite_url,
        "BGPO_REDIS_URL": redis_url,
    }

    def stored() -> set[str]:
        found = server.client().list_objects_v2(Bucket="artifacts").get("Contents", [])
        return {entry["Key"].removeprefix("bgpo/") for entry in found} - {"clock"}

    try:
        with running(home, env) as client:
            form: dict[str, Any] = {"data": {"purpose": "fine-tune"}, "files": {"file": ("train.jsonl", ROW * 12)}}
            file_id = client.post("/v1/files", **form).json()["id"]
            part = client.get(f"/v1/files/{file_id}/content", headers={"range": "bytes=3-9"})
            assert (part.status_code, part.content) == (206, ROW[3:10])
            block = {"grader": GRADER, "hyperparameters": {"max_steps": 6}}
            body = {
                "model": "tiny",
                "training_file": file_id,
                "method": {"type": "reinforcement", "reinforcement": block},
                "rl": {"checkpointing": {"every_steps": 2, "keep_last": 2}},
            }
            job = client.post("/v1/fine_tuning/jobs", json=body).json()
            job = wait_for_job(client, job["id"], "succeeded")
            made = client.get(f"/v1/fine_tuning/jobs/{job['id']}/checkpoints").json()["data"]
            assert [checkpoint["step_number"] for checkpoint in made] == [6, 4], "the last two"
            url = f"/v1/fine_tuning/checkpoints/{made[0]['id']}"
            files = {file["path"]: file for file in client.get(f"{url}/files").json()["data"]}
            weights = (6).to_bytes(4, "big") * 1000  # what the stand-in writes
            part = client.get(f"{url}/files/model.safetensors", headers={"range": "bytes=1000-1999"})
            assert (part.status_code, part.content) == (206, weights[1000:2000])
            with tarfile.open(fileobj=io.BytesIO(client.get(f"{url}/content").content)) as tar:
                unpacked = {info.name.partition("/")[2]: tar.extractfile(info) for info in tar}
                assert unpacked.keys() == files.keys()
                assert unpacked["model.safetensors"].read() == weights  # type: ignore[union-attr]
            folders = {tuple(key.split("/")[1:4]) for key in stored() if key.startswith("checkpoints/")}
            assert folders == {(job["id"], "1", "step-000004"), (job["id"], "1", "step-000006")}
            assert client.delete(f"/v1/files/{file_id}").status_code == 200
            assert f"files/{file_id}" not in stored()
        assert not (home / "artifacts").exists()
    finally:
        server.kill()
