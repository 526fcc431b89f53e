"""Files over HTTP: upload, checks, lists, content with ranges, deletion."""

from __future__ import annotations

import base64
import json
import random
import socket
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.db import now
from jobs.services.upkeep import tend
from jobs.tables import File

EXPIRES = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
"""The fields of a file that is kept for an hour."""


def error_of(response: Any, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def stored(service: Any) -> list[Path]:
    return list(service.ctx.settings.home.joinpath("artifacts", "files").glob("*"))


def left_over(service: Any) -> list[Path]:
    return list(service.ctx.settings.scratch.iterdir())


class TestUpload:
    def test_a_dataset(self, service: Any) -> None:
        content = service.rows(3)
        made = service.upload(content).json()
        assert made.pop("id").startswith("file-")
        assert isinstance(made.pop("created_at"), int)
        assert made == {
            "object": "file", "bytes": len(content), "filename": "train.jsonl", "purpose": "fine-tune",
            "status": "processed", "expires_at": None, "status_details": None,
        }  # fmt: skip
        assert left_over(service) == []

    @pytest.mark.parametrize(
        ("content", "line", "words"),
        [
            (b'{"messages": [{"role": "user", "content": "a"}]}\n' * 2 + b'{"messages": \n', 3, "not valid JSON"),
            (b"[]\n", 1, "object"),
            (b"{}\n", 1, "'messages'"),
            (b'{"messages": []}\n', 1, "'messages'"),
            (b'{"messages": [{"role": "robot", "content": "a"}]}', 1, "messages[0].role"),
            (b'{"messages": [{"role": "user", "content": null}]}', 1, "messages[0].content"),
            (b'{"messages": [{"role": "system", "content": "a"}]}', 1, "end with the user's"),
            (b'{"messages": [{"role": "user", "content": "a"}], "x": NaN}', 1, "NaN"),
            (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 1, "UTF-8"),
            (b'{"messages": [{"role": "user", "content": "\xff"}]}', 1, "UTF-8"),
            (b"[" * 100_000, 1, "nested too deeply"),
            (b'{"messages": [{"role": "user", "content": "a"}]}\n\n{"a": 1}\n', 2, "blank"),
        ],
    )
    def test_a_malformed_line_is_named(self, service: Any, content: bytes, line: int, words: str) -> None:
        error = error_of(service.upload(content))
        assert (error["code"], error["param"]) == ("invalid_file_format", "file")
        assert f"line {line} " in error["message"]
        assert words in error["message"]

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"input": None}, "'input'"),
            ({"input": {"messages": []}}, "'input.messages'"),
            ({"input": {"messages": [{"role": "user", "content": 1}]}}, "input.messages[0].content"),
            ({"input": {"messages": [{"role": "system", "content": "a"}]}}, "input.messages that end with the user's"),
            ({"input": {"messages": [{"role": "user", "content": "a"}], "tools": [{}]}}, "input.tools"),
            ({"preferred_output": "a"}, "'preferred_output'"),
            ({"non_preferred_output": [{"role": "robot", "content": "a"}]}, "non_preferred_output[0].role"),
            ({"preferred_output": [{"role": "user", "content": "a"}]}, "preferred_output to be one message"),
            ({"non_preferred_output": [{"role": "assistant", "content": "4"}]}, "the same answer"),
        ],
    )
    def test_a_malformed_preference_is_named(self, service: Any, changes: dict[str, Any], words: str) -> None:
        row = json.loads(service.preferences(1)) | changes
        error = error_of(service.upload(service.preferences(2) + json.dumps(row).encode()))
        assert (error["code"], error["param"]) == ("invalid_file_format", "file")
        assert "line 3 " in error["message"]
        assert words in error["message"]

    def test_other_fields_of_a_conversation_are_free(self, service: Any) -> None:
        row = json.loads(service.rows(1)) | {"input": "4 5", "preferred_output": None}
        assert service.upload(json.dumps(row).encode()).status_code == 200

    def test_a_line_too_long(self, start_service: Callable[..., Any]) -> None:
        service = start_service(max_line_bytes=1000)
        error = error_of(service.upload(service.rows(1) + b'{"a": "' + b"x" * 1000))
        assert "line 2 is longer than 1000 bytes" in error["message"]

    @pytest.mark.parametrize("content", [b"", b"\n \n"])
    def test_an_empty_file(self, service: Any, content: bytes) -> None:
        error = error_of(service.upload(content))
        assert (error["code"], error["param"]) == ("invalid_file_format", "file")
        assert "empty" in error["message"]

    def test_other_purposes_take_any_bytes(self, service: Any) -> None:
        assert service.upload(b"\x00\xff", purpose="user_data").status_code == 200
        assert error_of(service.upload(b"x", purpose="fine-tune-results"))["param"] == "purpose"
        assert error_of(service.upload(b"", purpose="user_data"))["param"] == "file"

    @pytest.mark.parametrize(
        ("form", "param", "code"),
        [
            ({"data": {"purpose": "batch"}, "files": {"data": b"x"}}, "data", "unknown_parameter"),
            ({"files": {"file": b"x"}}, "purpose", "missing_required_parameter"),
            ({"files": {"purpose": (None, "batch")}}, "file", "missing_required_parameter"),
            ({"data": {"purpose": "x" * 2000}, "files": {"file": b"x"}}, "purpose", "invalid_value"),
            (
                {"data": {"purpose": "batch", "expires_after[seconds]": "3600"}, "files": {"file": b"x"}},
                "expires_after[anchor]", "missing_required_parameter",
            ),
            (
                {"data": {"purpose": "batch", **EXPIRES, "expires_after[anchor]": "now"}, "files": {"file": b"x"}},
                "expires_after[anchor]", "invalid_value",
            ),
            *(
                (
                    {"data": {"purpose": "batch", **EXPIRES, "expires_after[seconds]": each}, "files": {"file": b"x"}},
                    "expires_after[seconds]", "invalid_value",
                )
                for each in ("3599", "2592001", "-3600", "1e4", "", "9" * 40)
            ),
            ({"files": [("file", b"x"), ("file", b"y")]}, "file", "invalid_value"),
        ],
    )  # fmt: skip
    def test_form_faults(self, service: Any, form: dict[str, Any], param: str, code: str) -> None:
        with service.http() as http:
            error = error_of(http.post("/v1/files", **form))
        assert (error["param"], error["code"]) == (param, code)
        assert left_over(service) == []

    def test_bodies_that_are_no_form(self, service: Any) -> None:
        with service.http() as http:
            assert error_of(http.post("/v1/files", json={}), 415)["code"] == "unsupported_media_type"
            headers = {"content-type": "multipart/form-data; boundary=x"}
            cut_off = b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\nab'
            for body in (b"", b"--x\r\n", b"garbage", cut_off):
                error = error_of(http.post("/v1/files", content=body, headers=headers))
                assert "Malformed multipart" in error["message"]
            headers["content-encoding"] = "gzip"
            error_of(http.post("/v1/files", content=b"x", headers=headers), 415)

    @pytest.mark.parametrize(("chunked", "size"), [(False, 538_000_000), (True, 20_000_000)])
    def test_too_large_is_refused_without_keeping_it(
        self, start_service: Callable[..., Any], chunked: bool, size: int
    ) -> None:
        """513 MB against the limit of 512 MiB; without a declared length, 20 MB against 10."""
        service = start_service(**({"max_file_bytes": 10_000_000} if chunked else {}))
        head = b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        head += b'--x\r\ncontent-disposition: form-data; name="file"; filename="big"\r\n\r\n'
        tail = b"\r\n--x--\r\n"
        biggest = 0

        def body() -> Iterator[bytes]:
            nonlocal biggest
            yield head
            for _ in range(size // 1_000_000):
                biggest = max(biggest, sum(path.stat().st_size for path in left_over(service)))
                yield b"a" * 1_000_000
            yield tail

        headers = {"content-type": "multipart/form-data; boundary=x"}
        if not chunked:
            headers["content-length"] = str(len(head) + size + len(tail))
        tracemalloc.start()
        with service.http() as http:
            error = error_of(http.post("/v1/files", content=body(), headers=headers), 413)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert (error["code"], error["param"]) == ("file_too_large", "file")
            assert str(service.ctx.settings.max_file_bytes) in error["message"]
            assert http.get("/v1/files").json()["data"] == []
        assert peak < 50_000_000
        assert biggest <= (service.ctx.settings.max_file_bytes if chunked else 0)
        assert left_over(service) == []
        assert service.upload(service.rows(1)).status_code == 200

    def test_a_broken_connection_leaves_nothing(self, service: Any) -> None:
        host, port = service.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                b"POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9999\r\n"
                b"content-type: multipart/form-data; boundary=x\r\n\r\n"
                b'--x\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\nabc'
            )
        assert service.upload(service.rows(1)).status_code == 200
        deadline = time.monotonic() + 10
        while left_over(service):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def test_the_name_is_display_only(self, service: Any) -> None:
        name = '../../x\r\n"Y" ü.jsonl'
        made = service.upload(service.rows(1), name=name).json()
        assert made["filename"].startswith("../../x")
        with service.http() as http:
            response = http.get(f"/v1/files/{made['id']}/content")
        disposition = response.headers["content-disposition"]
        assert disposition.startswith('attachment; filename="')
        assert "/" not in disposition.replace("UTF-8''", "")
        assert response.headers["x-content-type-options"] == "nosniff"


class TestRead:
    def test_retrieve_and_delete(self, service: Any) -> None:
        made = service.upload(service.rows()).json()
        with service.http() as http:
            assert http.get(f"/v1/files/{made['id']}").json() == made
            gone = http.delete(f"/v1/files/{made['id']}")
            assert gone.json() == {"id": made["id"], "object": "file", "deleted": True}
            for response in (http.get(f"/v1/files/{made['id']}"), http.delete(f"/v1/files/{made['id']}")):
                assert error_of(response, 404)["message"] == f"No such File object: {made['id']}"
        assert list(service.ctx.settings.home.joinpath("artifacts").rglob("file-*")) == []

    @pytest.mark.parametrize("file_id", ["file-x", "ftjob-0", "file-%00", "..%2f..", "file-" + "g" * 32, "%ff"])
    def test_ids_that_cannot_be(self, service: Any, file_id: str) -> None:
        with service.http() as http:
            for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content"):
                error_of(http.get(path), 404)

    def test_a_file_in_use_stays(self, service: Any) -> None:
        job = service.create()
        with service.http() as http:
            error = error_of(http.delete(f"/v1/files/{job['training_file']}"))
            assert (error["code"], error["param"]) == ("file_in_use", "id")
            http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
            assert http.delete(f"/v1/files/{job['training_file']}").status_code == 200

    def test_pages(self, service: Any) -> None:
        made = [service.upload(service.rows(1)).json()["id"] for _ in range(5)]
        other = service.upload(b"x", purpose="batch").json()["id"]
        with service.http() as http:
            for order, expected in (("desc", made[::-1]), ("asc", made)):
                seen: list[str] = []
                params: dict[str, Any] = {"limit": 2, "order": order, "purpose": "fine-tune"}
                while True:
                    page = http.get("/v1/files", params=params).json()
                    seen += [item["id"] for item in page["data"]]
                    assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
                    if not page["has_more"]:
                        break
                    params["after"] = page["last_id"]
                assert seen == expected
            assert [item["id"] for item in http.get("/v1/files", params={"limit": 1}).json()["data"]] == [other]
            assert error_of(http.get("/v1/files", params={"after": "file-none"}))["param"] == "after"
            assert error_of(http.get("/v1/files", params={"limit": 0}))["param"] == "limit"
            assert error_of(http.get("/v1/files", params={"order": "up"}))["param"] == "order"


class TestExpiry:
    @pytest.fixture
    def expire(self, service: Any) -> Callable[[str], None]:
        """Moves a file's time into the past."""

        def move(file_id: str) -> None:
            with service.ctx.db.transaction() as session:
                session.execute(sa.update(File).where(File.id == file_id).values(expires_at=now() - 1))

        return move

    @pytest.mark.parametrize("order", [1, -1], ids=["fields first", "file first"])
    def test_the_object_says_when(self, service: Any, order: int) -> None:
        parts = [("purpose", (None, "batch")), *((name, (None, value)) for name, value in EXPIRES.items())]
        with service.http() as http:
            made = http.post("/v1/files", files=[*parts, ("file", ("x", b"x"))][::order]).json()
            assert made["expires_at"] - made["created_at"] == 3600
            assert http.get(f"/v1/files/{made['id']}").json() == made

    def test_an_expired_file_is_not_there(self, service: Any, expire: Callable[[str], None]) -> None:
        kept, gone, last = (service.upload(service.rows()).json()["id"] for _ in range(3))
        expire(gone)
        with service.http() as http:
            for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", ""), ("POST", "/validate")):
                error_of(http.request(method, f"/v1/files/{gone}{path}"), 404)
            assert [item["id"] for item in http.get("/v1/files").json()["data"]] == [last, kept]
            after = http.get("/v1/files", params={"after": gone}).json()["data"]
            assert [item["id"] for item in after] == [kept], "a page that began before goes on"
            body = service.body(training_file=gone)
            assert error_of(http.post("/v1/fine_tuning/jobs", json=body))["param"] == "training_file"

    def test_a_job_keeps_its_file(self, service: Any, expire: Callable[[str], None]) -> None:
        job = service.create()
        expire(job["training_file"])
        tend(service.ctx.settings, service.ctx.db, service.ctx.store)
        with service.http() as http:
            url = f"/v1/files/{job['training_file']}"
            assert http.get(f"{url}/content").content == service.rows()
            http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
            error_of(http.get(url), 404)
            retried = error_of(http.post(f"/v1/fine_tuning/jobs/{job['id']}/retry"))
            assert (retried["param"], "was deleted" in retried["message"]) == ("training_file", True)
        assert len(stored(service)) == 1
        tend(service.ctx.settings, service.ctx.db, service.ctx.store)
        assert stored(service) == []


class TestValidate:
    def test_a_good_file(self, service: Any) -> None:
        made = service.upload(service.rows(3) + service.rows(1, answered=True) + service.preferences(2)).json()
        with service.http() as http:
            report = http.post(f"/v1/files/{made['id']}/validate").json()
        assert report == {
            "object": "file.validation", "file_id": made["id"], "valid": True, "rows": 6,
            "problems": [], "problem_count": 0,
            "statistics": {
                "prompts": 3, "answered": 1, "preferences": 2, "messages_mean": (3 + 2 + 2 * 3) / 6,
                "messages_max": 3, "characters_mean": (3 * 5 + 6 + 2 * 7) / 6, "characters_max": 7,
            },
        }  # fmt: skip

    def test_every_bad_line_is_told(self, start_service: Callable[..., Any]) -> None:
        service = start_service(max_line_bytes=200_000)
        good = service.rows(1)
        lines = [
            good, b"{\n", b"\n", good, b" \n", b"\n", b"[1]\n", b'{"messages": [{"role": "x", "content": "a"}]}\n',
            b"a" * 3_000_000 + b"\n", b"\xff\n", good, b"\n", b"\n",
        ]  # fmt: skip
        made = service.upload(b"".join(lines), purpose="user_data").json()
        with service.http() as http:
            report = http.post(f"/v1/files/{made['id']}/validate").json()
        assert [(each["line"], each["code"]) for each in report["problems"]] == [
            (2, "invalid_json"), (3, "blank_line"), (5, "blank_line"), (7, "not_an_object"), (8, "invalid_value"),
            (9, "line_too_long"), (10, "invalid_utf8"),
        ]  # fmt: skip
        assert report["problems"][4]["param"] == "messages[0].role"
        assert report["problems"][4]["message"].startswith("Line 8 needs messages[0].role")
        assert (report["valid"], report["rows"], report["problem_count"]) == (False, 8, 7)
        assert report["statistics"]["prompts"] == 3

    def test_the_first_hundred(self, service: Any) -> None:
        made = service.upload(b"{}\n" * 250, purpose="user_data").json()
        empty = service.upload(b" ", purpose="user_data").json()
        with service.http() as http:
            report = http.post(f"/v1/files/{made['id']}/validate").json()
            assert (len(report["problems"]), report["problem_count"], report["rows"]) == (100, 250, 250)
            assert report["statistics"]["messages_mean"] is None
            nothing = http.post(f"/v1/files/{empty['id']}/validate").json()
            assert (nothing["valid"], nothing["rows"], nothing["problems"]) == (False, 0, [])


class TestContent:
    @pytest.mark.parametrize("size", [1, 2, 3, 1 << 20, (1 << 21) + 1])
    def test_base64(self, service: Any, size: int) -> None:
        content = random.Random(size).randbytes(size)
        made = service.upload(content, purpose="user_data").json()
        with service.http() as http:
            response = http.get(f"/v1/files/{made['id']}/content", params={"encoding": "base64"})
            assert base64.b64decode(response.text, validate=True) == content
            assert int(response.headers["content-length"]) == len(response.content)
            assert error_of(http.get(f"/v1/files/{made['id']}/content?encoding=hex"))["param"] == "encoding"

    def test_ranges(self, service: Any) -> None:
        content = bytes(range(256)) * 8000  # two pieces of the store
        made = service.upload(content, purpose="user_data").json()
        url = f"/v1/files/{made['id']}/content"
        with service.http() as http:
            whole = http.get(url)
            assert whole.content == content
            assert whole.headers["content-length"] == str(len(content))
            etag = whole.headers["etag"]
            for text, expected in (
                ("bytes=0-9", content[:10]),
                ("bytes=1048570-1048590", content[1048570:1048591]),
                ("bytes=2047990-", content[2047990:]),
                ("bytes=-7", content[-7:]),
                ("bytes=2047990-99999999", content[2047990:]),
            ):
                part = http.get(url, headers={"range": text, "if-range": etag})
                assert (part.status_code, part.content) == (206, expected)
                first = content.find(expected) if len(expected) > 10 else None
                assert part.headers["content-range"].endswith(f"/{len(content)}")
                assert first is None or part.headers["content-length"] == str(len(expected))
            for text in ("bytes=0-1,3-4", "bytes=9-1", "items=1-2", "bytes=-"):
                assert http.get(url, headers={"range": text}).status_code == 200
            for text in ("bytes=2048000-", "bytes=-0"):
                response = http.get(url, headers={"range": text})
                error_of(response, 416)
                assert response.headers["content-range"] == f"bytes */{len(content)}"
            assert http.get(url, headers={"range": "bytes=0-1", "if-range": '"other"'}).status_code == 200
            not_modified = http.get(url, headers={"if-none-match": f'"x", {etag}'})
            assert (not_modified.status_code, not_modified.content) == (304, b"")
