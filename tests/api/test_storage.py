"""What clients hear while the artifact store is away, full, or damaged."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.storage import StorageFull
from tests.service import Service


@pytest.fixture
def folder(service: Service) -> Path:
    return service.ctx.settings.home / "artifacts"


def test_an_outage_is_said_and_over_when_it_is_over(service: Service, folder: Path, tmp_path: Path) -> None:
    content = service.rows()
    file_id, spare = (service.upload(content).json()["id"] for _ in range(2))
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "model.safetensors").write_bytes(b"weights")
    claim = service.claim(service.create()["id"])
    checkpoint = service.checkpoint(claim, 2, tmp_path / "step")
    paths = (
        f"/v1/files/{file_id}/content",
        f"/v1/fine_tuning/checkpoints/{checkpoint}/content",
        f"/v1/fine_tuning/checkpoints/{checkpoint}/files/model.safetensors",
    )
    away = folder.rename(folder.with_name("away"))
    folder.write_bytes(b"not a folder")
    with service.http() as http:
        for path in paths:
            response = http.get(path)
            assert (response.status_code, response.json()["error"]["code"]) == (503, "storage_unavailable"), path
        assert service.upload(content).status_code == 503
        assert http.get("/readyz").json()["checks"]["artifacts"] == "failed"
        assert http.get(f"/v1/fine_tuning/jobs/{claim.job_id}").status_code == 200, "the rest goes on"
        assert http.delete(f"/v1/files/{spare}").status_code == 200, "its bytes are the sweeper's"
        assert http.get(f"/v1/files/{spare}").status_code == 404
        folder.unlink()
        away.rename(folder)
        assert http.get(paths[0]).content == content
        assert http.get(paths[2]).content == b"weights"
        assert http.get(paths[1]).status_code == 200
    assert service.upload(content).status_code == 200


def test_no_room(service: Service, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(source: Path, key: str) -> None:
        raise StorageFull("no space left on device")

    monkeypatch.setattr(service.ctx.store._storage, "put", put)
    response = service.upload(service.rows())
    assert (response.status_code, response.json()["error"]["code"]) == (507, "disk_full")
    with service.http() as http:
        assert http.get("/v1/files").json()["data"] == []
    assert list(service.ctx.settings.scratch.iterdir()) == []


def test_an_api_that_was_killed_leaves_no_uploads_for_ever(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    scratch = tmp_path / "home" / "tmp"
    scratch.mkdir(parents=True)
    for name, age in (("upload-old", 90_000), ("upload-young", 60)):
        (scratch / name).write_bytes(b"x")
        os.utime(scratch / name, (time.time() - age,) * 2)
    start_service()
    assert [path.name for path in scratch.iterdir()] == ["upload-young"]
