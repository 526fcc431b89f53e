"""Checkpoints over HTTP: the manifest, single files, the tar, and what is not there."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "step-000020"
    (folder / "trainer_state").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 9000)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("")
    (folder / "trainer_state" / "optimizer.safetensors").write_bytes(b"x" * 513)
    (folder / "manifest.json").write_text('{"files": []}')
    return folder


@pytest.fixture
def url(service: Any, folder: Path) -> str:
    claim = service.claim(service.create()["id"])
    return f"/v1/fine_tuning/checkpoints/{service.checkpoint(claim, 20, folder, final=True)}"


def test_manifest_and_files(service: Any, url: str, folder: Path) -> None:
    with service.http() as http:
        assert http.get(url).json()["step_number"] == 20
        listed = http.get(f"{url}/files").json()["data"]
        kinds = {file["path"]: file["kind"] for file in listed}
        assert kinds == {
            "config.json": "config", "manifest.json": "config", "model.safetensors": "weights",
            "tokenizer.json": "tokenizer", "trainer_state/optimizer.safetensors": "trainer_state",
        }  # fmt: skip
        for file in listed:
            answer = http.get(f"{url}/files/{file['path']}")
            assert answer.content == (folder / file["path"]).read_bytes()
            assert len(answer.content) == file["bytes"]
            assert hashlib.sha256(answer.content).hexdigest() == file["sha256"]
            assert answer.headers["x-checksum-sha256"] == file["sha256"]
            assert answer.headers["etag"] == f'"{file["sha256"]}"'
        part = http.get(f"{url}/files/model.safetensors", headers={"range": "bytes=5-"})
        assert (part.status_code, part.content) == (206, (folder / "model.safetensors").read_bytes()[5:])


@pytest.mark.parametrize(
    "path", ["nope", "../config.json", "..%2f..%2fbgpo.db", "trainer_state", "", "%00", "/etc/passwd"]
)
def test_only_files_of_the_manifest(service: Any, url: str, path: str) -> None:
    with service.http() as http:
        assert http.get(f"{url}/files/{path}").status_code == 404


def test_tar(service: Any, url: str, folder: Path) -> None:
    with service.http() as http:
        answer = http.get(f"{url}/content")
        assert http.get(f"{url}/content").content == answer.content
        etag = {"if-none-match": answer.headers["etag"]}
        assert http.get(f"{url}/content", headers=etag).status_code == 304
    assert int(answer.headers["content-length"]) == len(answer.content)
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        found = {member.name.partition("/")[2]: archive.extractfile(member) for member in archive.getmembers()}
        assert all(member.isreg() for member in archive.getmembers())
        paths = [path for path in folder.rglob("*") if path.is_file()]
        assert len(found) == len(paths)
        for path in paths:
            file = found[path.relative_to(folder).as_posix()]
            assert file is not None
            assert file.read() == path.read_bytes()


def test_damage_in_the_store_shows(service: Any, url: str) -> None:
    for path in service.ctx.settings.home.joinpath("artifacts").rglob("model.safetensors"):
        path.write_bytes(b"short")
    with service.http() as http:
        for tail in ("/files/model.safetensors", "/content"):
            with pytest.raises(Exception, match=r"(?i)incomplete|closed"):
                http.get(url + tail)


@pytest.mark.parametrize("tail", ["", "/files", "/files/config.json", "/content"])
def test_unknown_checkpoints(service: Any, tail: str) -> None:
    with service.http() as http:
        for checkpoint_id in ("ftckpt_0", "ftckpt_" + "0" * 32, "x"):
            answer = http.get(f"/v1/fine_tuning/checkpoints/{checkpoint_id}{tail}")
            assert answer.status_code == 404
            assert answer.json()["error"]["code"]
            for method in ("PATCH", "DELETE") if not tail else ():
                url = f"/v1/fine_tuning/checkpoints/{checkpoint_id}"
                assert http.request(method, url, json={"pinned": True}).status_code == 404


def test_pinning(service: Any, url: str) -> None:
    with service.http() as http:
        shown = http.get(url).json()["rl"]
        assert (shown["pinned"], shown["best"], shown["damaged"], shown["final"]) == (False, False, False, True)
        for pinned in (True, True, False):
            assert http.patch(url, json={"pinned": pinned}).json()["rl"]["pinned"] is pinned
            assert http.get(url).json()["rl"]["pinned"] is pinned
        for body, param, code in (
            ({"pinned": "yes"}, "pinned", "invalid_value"),
            ({}, "pinned", "missing_required_parameter"),
            ({"name": "default", "pinned": True}, "name", "unsupported_parameter"),
            ({"ttl": 60, "pinned": True}, "ttl", "unsupported_parameter"),
            ({"nmae": "x", "pinned": True}, "nmae", "unknown_parameter"),
        ):
            response = http.patch(url, json=body)
            error = response.json()["error"]
            assert (response.status_code, error["param"], error["code"]) == (400, param, code)


def test_deleting(service: Any, folder: Path) -> None:
    claim = service.claim(service.create()["id"])
    first, second, final = (service.checkpoint(claim, step, folder, final=step == 3) for step in (1, 2, 3))
    base = "/v1/fine_tuning/checkpoints"
    with service.http() as http:

        def refused(checkpoint: str, words: str) -> None:
            response = http.delete(f"{base}/{checkpoint}")
            assert response.status_code == 400, response.text
            assert words in response.json()["error"]["message"]
            assert http.get(f"{base}/{checkpoint}").status_code == 200

        refused(final, "result of its job")
        http.patch(f"{base}/{first}", json={"pinned": True})
        refused(first, "pinned")
        http.patch(f"{base}/{first}", json={"pinned": False})
        for checkpoint in (first, second):
            assert http.delete(f"{base}/{checkpoint}").json()["deleted"] is True
            assert http.get(f"{base}/{checkpoint}/content").status_code == 404
        listed = http.get(f"/v1/fine_tuning/jobs/{claim.job_id}/checkpoints").json()["data"]
        assert [item["id"] for item in listed] == [final]
    assert [path.parent.name for path in service.ctx.settings.home.rglob("config.json")] == ["step-000003"]
