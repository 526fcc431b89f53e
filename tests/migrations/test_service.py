"""The service on an upgraded database of the first release: its jobs are shown, and one that was paused goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrations import upgrade
from tests.migrations.first_release import STATES, FirstRelease, checkpoint_id, job_id
from tests.running import running, wait_for_job

SHOWN = {"validating": "validating_files", "pausing": "running", "cancelling": "cancelled"}


@pytest.mark.timeout(300)
def test_the_service_goes_on(old: FirstRelease, redis_url: str, tmp_path: Path) -> None:
    upgrade(old.url)
    env = {"BGPO_DATABASE_URL": old.url, "BGPO_REDIS_URL": redis_url}
    env |= {"BGPO_LEASE_S": "8", "BGPO_SELF_FENCE_S": "6", "BGPO_BEAT_S": "1", "BGPO_REAP_AFTER_S": "0"}
    with running(tmp_path / "home", env) as client:

        def job(state: str) -> str:
            return f"/v1/fine_tuning/jobs/{job_id(state)}"

        for state in STATES:
            shown = client.get(job(state)).json()
            assert shown.get("model") == "tiny", shown
            if state in ("succeeded", "failed", "cancelled", "cancelling"):
                assert shown["status"] == SHOWN.get(state, state)
            assert shown["rl"]["priority"] == "normal"
            assert shown["rl"]["resources"]["gpus"] == 1
        assert client.get(job("failed")).json()["error"]["code"] == "nan"
        assert len(client.get(f"{job('succeeded')}/attempts").json()["data"]) == 1
        made = client.get(f"/v1/fine_tuning/checkpoints/{checkpoint_id('succeeded', 2)}/files/model.safetensors")
        assert made.content == b"weights"
        # Paused at step 2 by the first release: goes on from its checkpoint, which stays.
        assert client.post(f"{job('paused')}/resume").status_code == 200
        wait_for_job(client, job_id("paused"), "succeeded")
        made = client.get(f"{job('paused')}/checkpoints").json()["data"]
        assert [checkpoint["step_number"] for checkpoint in made] == [6, 4, 2]
        assert made[-1]["id"] == checkpoint_id("paused", 2)
        # Queued, and running at a worker that is gone: both run now.
        for state in ("queued", "running"):
            wait_for_job(client, job_id(state), "succeeded")
        wait_for_job(client, job_id("pausing"), "paused")
        # Ended jobs: one is retried from its checkpoint; one from before requests were kept cannot be cloned.
        again = client.post(f"{job('failed')}/retry", json={})
        assert again.status_code == 200, again.text
        wait_for_job(client, again.json()["id"], "succeeded")
        refused = client.post(f"{job('succeeded')}/clone", json={})
        assert refused.status_code == 400, refused.text
