"""Uploads in parts over HTTP: parts, completion, the file that comes of it, cancellation, expiry."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.db import now
from jobs.services import sweep, upkeep
from jobs.tables import Part, Upload
from tests.api.test_files import error_of, left_over

URL = "/v1/uploads"


def begin(service: Any, size: int, **changes: Any) -> str:
    body = {"bytes": size, "filename": "train.jsonl", "mime_type": "application/jsonl", "purpose": "fine-tune"}
    with service.http() as http:
        response = http.post(URL, json=body | changes)
    assert response.status_code == 200, response.text
    upload_id: str = response.json()["id"]
    return upload_id


def send(service: Any, upload_id: str, content: bytes, **headers: str) -> Any:
    with service.http(headers=headers) as http:
        return http.post(f"{URL}/{upload_id}/parts", files={"data": ("upload", content)})


def part(service: Any, upload_id: str, content: bytes) -> str:
    response = send(service, upload_id, content)
    assert response.status_code == 200, response.text
    part_id: str = response.json()["id"]
    return part_id


def complete(service: Any, upload_id: str, part_ids: list[str], **more: Any) -> Any:
    with service.http() as http:
        return http.post(f"{URL}/{upload_id}/complete", json={"part_ids": part_ids} | more)


def stored(service: Any, folder: str = "uploads") -> list[Path]:
    return [path for path in service.ctx.settings.home.joinpath("artifacts", folder).rglob("*") if path.is_file()]


class TestComplete:
    def test_parts_in_the_order_named(self, service: Any) -> None:
        content = service.rows(30)
        upload_id = begin(service, len(content), expires_after={"anchor": "created_at", "seconds": 3600})
        cuts = (content[700:], content[:100], content[100:700])  # no cut is the end of a line
        last, first, middle = (part(service, upload_id, piece) for piece in cuts)
        spare = part(service, upload_id, b"not named later")
        done = complete(
            service,
            upload_id,
            [first, middle, last],
            md5=hashlib.md5(content, usedforsecurity=False).hexdigest().upper(),
        )
        assert done.status_code == 200, done.text
        upload = done.json()
        file = upload.pop("file")
        assert upload.pop("expires_at") - upload.pop("created_at") == 3600
        assert upload == {
            "id": upload_id, "object": "upload", "bytes": len(content), "filename": "train.jsonl",
            "purpose": "fine-tune", "status": "completed",
        }  # fmt: skip
        assert (file["status"], file["bytes"], file["filename"]) == ("processed", len(content), "train.jsonl")
        assert file["expires_at"] - file["created_at"] == 3600
        with service.http() as http:
            assert http.get(f"/v1/files/{file['id']}").json() == file
            response = http.get(f"/v1/files/{file['id']}/content")
            assert response.content == content
            assert response.headers["x-checksum-sha256"] == hashlib.sha256(content).hexdigest()
        assert service.create(training_file=file["id"])["status"] == "queued"
        assert stored(service) == left_over(service) == []
        assert spare not in [first, middle, last]

    def test_the_same_completion_gives_the_same_file(self, service: Any) -> None:
        content = service.rows(3)
        upload_id = begin(service, len(content))
        part_ids = [part(service, upload_id, content)]
        answers = []
        barrier = threading.Barrier(3)

        def post() -> None:
            barrier.wait(20)
            answers.append(complete(service, upload_id, part_ids))

        threads = [threading.Thread(target=post) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        answers.append(complete(service, upload_id, part_ids))
        assert [answer.status_code for answer in answers] == [200] * 4, [answer.text for answer in answers]
        assert len({answer.json()["file"]["id"] for answer in answers}) == 1
        assert len(stored(service, "files")) == 1
        other = error_of(complete(service, upload_id, ["part_0"]))
        assert (other["code"], "completed" in other["message"]) == ("invalid_state", True)

    def test_what_is_no_dataset_is_kept_with_its_problems(self, service: Any) -> None:
        content = service.rows(2) + b"{\n"
        upload_id = begin(service, len(content))
        file = complete(service, upload_id, [part(service, upload_id, content)]).json()["file"]
        assert (file["status"], "line 3 " in file["status_details"]) == ("error", True)
        with service.http() as http:
            assert http.post(f"/v1/files/{file['id']}/validate").json()["problems"][0]["line"] == 3
            error = error_of(http.post("/v1/fine_tuning/jobs", json=service.body(training_file=file["id"])))
            assert (error["param"], "line 3 " in error["message"]) == ("training_file", True)
        assert left_over(service) == []

    def test_what_does_not_fit_is_refused(self, service: Any) -> None:
        upload_id, other = begin(service, 10, purpose="batch"), begin(service, 5, purpose="batch")
        five, six, foreign = (part(service, upload_id, b"a" * size) for size in (5, 6, 1))
        foreign = part(service, other, b"bbbbb")
        for part_ids, param, words in (
            ([five, six], "part_ids", "come to 11 bytes"),
            ([five], "part_ids", "come to 5 bytes"),
            ([five, five], "part_ids", "named twice"),
            ([five, foreign], "part_ids[1]", "has no part"),
            ([], "part_ids", ""),
        ):
            error = error_of(complete(service, upload_id, part_ids))
            assert (error["param"], words in error["message"]) == (param, True), error
        pair = [five, part(service, upload_id, b"ccccc")]
        assert error_of(complete(service, upload_id, pair, md5="0" * 32))["param"] == "md5"
        assert error_of(complete(service, upload_id, pair, md5="0"))["param"] == "md5"
        assert complete(service, upload_id, pair).json()["status"] == "completed"

    def test_a_damaged_part_makes_no_file(self, service: Any) -> None:
        upload_id = begin(service, 3, purpose="batch")
        part_ids = [part(service, upload_id, b"abc")]
        stored(service)[0].write_bytes(b"abd")
        assert complete(service, upload_id, part_ids).status_code == 500
        assert stored(service, "files") == []
        assert complete(service, upload_id, part_ids).status_code == 500, "it is still pending"

    def test_on_postgresql(self, start_service: Callable[..., Any], new_postgres_database: Callable[[], str]) -> None:
        service = start_service(database_url=new_postgres_database())
        self.test_parts_in_the_order_named(service)
        service.ctx.store.delete_directory("files")
        self.test_the_same_completion_gives_the_same_file(service)


class TestParts:
    def test_the_object(self, service: Any) -> None:
        upload_id = begin(service, 3)
        made = send(service, upload_id, b"abc").json()
        assert made.pop("id").startswith("part_")
        assert isinstance(made.pop("created_at"), int)
        assert made == {"object": "upload.part", "upload_id": upload_id}

    def test_forms_that_are_refused(self, start_service: Callable[..., Any]) -> None:
        service = start_service(max_part_bytes=1_000_000)
        upload_id = begin(service, 3_000_000)
        with service.http() as http:
            url = f"{URL}/{upload_id}/parts"
            assert error_of(http.post(url, files={"file": b"x"}))["code"] == "unknown_parameter"
            assert error_of(http.post(url, files={"data": b""}))["param"] == "data"
            error_of(http.post(url, json={}), 415)
            error = error_of(http.post(url, files={"data": b"x" * 1_000_001}), 413)
            assert (error["param"], "1000000 bytes" in error["message"]) == ("data", True)
            for missing in ("upload_" + "0" * 32, "upload_x", "..%2f.."):
                error_of(http.post(f"{URL}/{missing}/parts", files={"data": b"x" * 1_000_000}), 404)
        assert stored(service) == left_over(service) == []

    def test_not_far_more_than_announced(self, start_service: Callable[..., Any]) -> None:
        """A part whose answer was lost may be sent again, but an announced byte buys no disk."""
        service = start_service(max_part_bytes=1000)
        upload_id = begin(service, 1000, purpose="batch")
        sizes = [send(service, upload_id, b"x" * 1000).status_code for _ in range(4)]
        assert sizes == [200, 200, 200, 400]
        assert len(stored(service)) == 3


class TestCreate:
    @pytest.mark.parametrize(
        ("changes", "param"),
        [
            ({"bytes": 0}, "bytes"),
            ({"bytes": 8 * 1024**3 + 1}, "bytes"),
            ({"bytes": "3"}, "bytes"),
            ({"purpose": "fine-tune-results"}, "purpose"),
            ({"purpose": ""}, "purpose"),
            ({"filename": ""}, "filename"),
            ({"filename": "\x00"}, None),
            ({"expires_after": {"anchor": "now", "seconds": 3600}}, "expires_after.anchor"),
            ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "expires_after.seconds"),
            ({"size": 1}, "size"),
        ],
    )
    def test_refused(self, service: Any, changes: dict[str, Any], param: str | None) -> None:
        body = {"bytes": 3, "filename": "x", "mime_type": "text/plain", "purpose": "batch"}
        with service.http() as http:
            assert error_of(http.post(URL, json=body | changes))["param"] == param

    def test_a_quota_counts_what_is_announced(self, tenants: Any) -> None:
        project = tenants.project("p", file_bytes=100)
        body = {"bytes": 60, "filename": "x", "mime_type": "text/plain", "purpose": "batch"}
        with tenants.http(tenants.key(project)["value"]) as http:
            first = http.post(URL, json=body).json()["id"]
            assert error_of(http.post(URL, json=body), 429)["code"] == "insufficient_quota"
            made = http.post(f"{URL}/{first}/parts", files={"data": b"x" * 60}).json()["id"]
            done = http.post(f"{URL}/{first}/complete", json={"part_ids": [made]})
            assert done.json()["status"] == "completed", "the file is not counted beside its upload"
            assert error_of(http.post(URL, json=body), 429)["code"] == "insufficient_quota"
            http.delete(f"/v1/files/{done.json()['file']['id']}")
            second = http.post(URL, json=body).json()["id"]
            http.post(f"{URL}/{second}/cancel")
            assert http.post(URL, json=body).status_code == 200


class TestEnds:
    def test_cancel(self, service: Any) -> None:
        upload_id = begin(service, 3)
        part_id = part(service, upload_id, b"abc")
        with service.http() as http:
            cancelled = http.post(f"{URL}/{upload_id}/cancel").json()
            assert (cancelled["status"], cancelled["file"]) == ("cancelled", None)
            assert http.post(f"{URL}/{upload_id}/cancel").json() == cancelled
        assert stored(service) == []
        for response in (send(service, upload_id, b"abc"), complete(service, upload_id, [part_id])):
            assert error_of(response)["code"] == "invalid_state"
            assert response.headers["x-should-retry"] == "false"

    def test_expiry(self, service: Any) -> None:
        upload_id, other = begin(service, 3), begin(service, 3)
        part_id = part(service, upload_id, b"abc")
        kept = part(service, other, b"abc")
        with service.ctx.db.transaction() as session:
            session.execute(sa.update(Upload).where(Upload.id == upload_id).values(expires_at=now() - 1))
        with service.http() as http:
            cancel = http.post(f"{URL}/{upload_id}/cancel")
        for response in (cancel, send(service, upload_id, b"abc"), complete(service, upload_id, [part_id])):
            error = error_of(response)
            assert (error["code"], "is expired" in error["message"]) == ("invalid_state", True)
        upkeep.tend(service.ctx.settings, service.ctx.db, service.ctx.store)
        with service.ctx.db.read() as session:
            states = {row.id: row.state for row in session.scalars(sa.select(Upload))}
            assert states == {upload_id: "expired", other: "pending"}
            assert list(session.scalars(sa.select(Part.id))) == [kept]
        assert [path.name for path in stored(service)] == [kept]

    def test_parts_without_a_row_are_swept(self, start_service: Callable[..., Any]) -> None:
        service = start_service(orphan_age_s=1e-9)
        upload_id = begin(service, 3)
        kept = part(service, upload_id, b"abc")
        orphan = f"uploads/{upload_id}/part_{'0' * 32}"
        service.ctx.store.put_file(Path(__file__), orphan)
        sweep.sweep(service.ctx.settings, service.ctx.db, service.ctx.store)
        assert [path.name for path in stored(service)] == [kept]
