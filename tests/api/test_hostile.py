"""What a hostile client sends. Each gets an envelope or a closed connection, and afterwards the service goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.routing import APIRoute, iter_route_contexts

from api.json_body import MAX_DEPTH, JsonRoute
from api.main import create_app
from api.middleware import MAX_BODY_BYTES, MAX_HEAD_BYTES
from jobs.settings import Settings
from tests.api.hostile import IMPATIENT, error_of
from tests.api.wire import Wire
from tests.running import wait_until

JOBS, FILES = "/v1/fine_tuning/jobs", "/v1/files"
BOUNDARY = "multipart/form-data; boundary=b"


class TestJson:
    """Bodies that are no JSON, or JSON that is a trap."""

    @pytest.mark.parametrize(
        ("body", "code", "words"),
        [
            (b"", "missing_required_parameter", "required"),
            (b"{", "invalid_json", "not valid JSON"),
            (b'{"model": "tiny"} x', "invalid_json", "not valid JSON"),
            (b"\xff\xfe{}", "invalid_json", "UTF-8"),
            (b'{"model": "\xc3\x28"}', "invalid_json", "UTF-8"),
            (b"\xef\xbb\xbf{}", "invalid_json", "not valid JSON"),
            (b'{"model": "a", "model": "b"}', "duplicate_key", "'model'"),
            (b'{"metadata": {"a": "1", "a": "1"}}', "duplicate_key", "'a'"),
            (b'{"a": 1, "\\u0061": 2}', "duplicate_key", "'a'"),
            (b'{"seed": NaN}', "invalid_json", "NaN"),
            (b'{"seed": -Infinity}', "invalid_json", "-Infinity"),
            (b'{"seed": 1e999}', "invalid_json", "too large"),
            (b'{"seed": ' + b"9" * 100_000 + b"}", "invalid_json", "too large"),
            (b'{"model": "a\nb"}', "invalid_json", "not valid JSON"),
            (b"[" * 100_000, "invalid_json", "nested more than 64"),
            (b'{"a":' * 200 + b"1" + b"}" * 200, "invalid_json", "nested more than 64"),
            (b"[]", "invalid_value", "dictionary"),
            (b"null", "invalid_value", "dictionary"),
            (b'"text"', "invalid_value", "dictionary"),
        ],
    )
    def test_is_refused_with_the_reason(self, hostile: Any, body: bytes, code: str, words: str) -> None:
        with hostile.http() as http:
            for path in (JOBS, "/v1/fine_tuning/graders/validate"):
                response = http.post(path, content=body, headers={"content-type": "application/json"})
                error = error_of(response, 400)
                assert error["code"] == code, error
                assert words in error["message"]

    def test_the_duplicate_key_is_named(self, hostile: Any) -> None:
        with hostile.http() as http:
            response = http.post(JOBS, content=b'{"seed":1,"seed":2}', headers={"content-type": "application/json"})
        assert error_of(response, 400)["param"] == "seed"

    def test_ten_megabytes_of_nesting_never_reach_the_parser(self, hostile: Any) -> None:
        with hostile.http() as http:
            response = http.post(JOBS, content=b"[" * 10_000_000, headers={"content-type": "application/json"})
        assert error_of(response, 413)["code"] == "request_too_large"

    def test_the_deepest_that_may_be(self, hostile: Any) -> None:
        """The limit is where it says: one level less is read, and refused for what it says."""
        body = b'{"x":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH
        with hostile.http() as http:
            response = http.post(JOBS, content=body, headers={"content-type": "application/json"})
        assert error_of(response, 400)["code"] != "invalid_json"

    @pytest.mark.parametrize("seed", [2**63, 2**64, -(2**63) - 1, 10**400])
    def test_a_huge_integer(self, hostile: Any, seed: int) -> None:
        with hostile.http() as http:
            response = http.post(JOBS, json=hostile.body(training_file="file-x", seed=seed))
        assert error_of(response, 400)["param"] == "seed"

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
    def test_another_content_type(self, hostile: Any, kind: str | None) -> None:
        headers = {} if kind is None else {"content-type": kind}
        with hostile.http() as http:
            response = http.post(JOBS, content=json.dumps(hostile.body()).encode(), headers=headers)
            assert error_of(response, 415)["code"] == "unsupported_media_type"

    def test_a_compressed_body(self, hostile: Any) -> None:
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        with hostile.http() as http:
            assert "gzip" in error_of(http.post(JOBS, content=b"\x1f\x8b", headers=headers), 415)["message"]

    def test_every_route_reads_json_strictly(self) -> None:
        """Also those without a body, which may get one."""
        routes = [route for route in _routes(create_app(Settings())) if route.path.startswith("/v1/")]
        assert len(routes) > 60
        loose = [route.path for route in routes if type(route) is not JsonRoute]
        assert not loose, "give the router route_class=JsonRoute"


class TestNames:
    """Names and texts that would be something else somewhere else."""

    TEXTS = ("a\tb", "line\nbreak", "\x1b[31mred", "\u202eltr", "\x7f", "'; DROP TABLE jobs;--", "{{ 7*7 }}", "../../x")

    @pytest.mark.parametrize("text", TEXTS)
    def test_metadata_comes_back_as_it_was(self, hostile: Any, text: str) -> None:
        made = hostile.create(metadata={"key": text})
        with hostile.http() as http:
            assert http.get(f"{JOBS}/{made['id']}").json()["metadata"] == {"key": text}
            found = http.get(JOBS, params={"metadata[key]": text}).json()["data"]
        assert [job["id"] for job in found] == [made["id"]]

    @pytest.mark.parametrize("text", ["\x00", "a\x00b", "\ud800"])
    def test_what_no_database_holds(self, hostile: Any, text: str) -> None:
        bodies = [
            (JOBS, hostile.body(metadata={"key": text})),
            (JOBS, hostile.body(suffix=text)),
            ("/v1/organization/projects", {"name": text}),
            ("/v1/fine_tuning/secrets", {"name": "n", "value": text}),
            ("/v1/fine_tuning/secrets", {"name": text, "value": "v"}),
        ]
        with hostile.http() as http:
            for path, body in bodies:
                content = json.dumps(body).encode()
                response = http.post(path, content=content, headers={"content-type": "application/json"})
                error_of(response, 400)

    @pytest.mark.parametrize("name", ["../../etc/passwd", "..\\..\\x", "/etc/passwd", "x%00.jsonl", "%2e%2e%2f"])
    def test_a_file_name_is_only_a_name(self, hostile: Any, name: str) -> None:
        made = hostile.upload(hostile.rows(), name=name).json()
        assert made["filename"] == name
        with hostile.http() as http:
            response = http.get(f"{FILES}/{made['id']}/content")
        assert response.status_code == 200
        plain = response.headers["content-disposition"].partition('filename="')[2].partition('"')[0]
        assert not set(plain) & set('/\\"%;')
        home = hostile.ctx.settings.home
        assert not [path for path in home.rglob("*") if "passwd" in path.name or path.name.startswith("x")]

    @pytest.mark.parametrize(
        "name", [b"a\r\nset-cookie: x=1", b'a"; filename="b', b"a%0d%0aset-cookie: x=1", b"\xff\xfe", b"\xe2\x80\xae"]
    )
    def test_a_file_name_injects_no_header(self, hostile: Any, name: bytes) -> None:
        with Wire(hostile.url) as wire:
            rows = hostile.rows()
            body = b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--b\r\n'
            body += b'content-disposition: form-data; name="file"; filename="' + name + b'"\r\n\r\n' + rows
            body += b"\r\n--b--\r\n"
            wire.head(f"POST {FILES} HTTP/1.1", f"content-type: {BOUNDARY}", f"content-length: {len(body)}")
            wire.send(body)
            status, _, made = wire.answer()
        if status == 400:  # no multipart at all
            assert made["error"]["code"]
            return
        assert status == 200
        with hostile.http() as http:
            response = http.get(f"{FILES}/{made['id']}/content")
        assert response.content == rows
        assert "set-cookie" not in response.headers
        assert response.headers["content-disposition"].startswith('attachment; filename="')
        assert response.headers["content-disposition"].count("filename=") == 1


class TestPaths:
    """Ids and paths that climb."""

    @pytest.mark.parametrize(
        "path",
        [
            "/v1/files/..%2F..%2Fetc%2Fpasswd",
            "/v1/files/%2e%2e/content",
            "/v1/files/..%5C..%5Cx/content",
            "/v1/files/file-%00",
            "/v1/files/file-x%0d%0aset-cookie:%20a=b",
            "/v1/files/%ff%fe",
            "/v1/fine_tuning/jobs/..%2f..",
            "/v1/fine_tuning/jobs/ftjob-%00/events",
            "/v1/fine_tuning/checkpoints/..%2F..%2F/files/..%2F..%2Fbgpo.db",
            "/v1/fine_tuning/checkpoints/x/files/..%2F..%2F..%2Fetc%2Fpasswd",
            "/v1/models/..%2F..%2Fbgpo.db",
            "/v1/models/%00",
            "/v1/fine_tuning/graders/..%2Fx",
            "/v1/organization/projects/..%2Fx",
            "//v1/files",
            "/v1/../v1/files",
            "http://other.example/v1/files",
            "/" + "a" * 8000,
        ],
    )
    def test_find_nothing(self, hostile: Any, path: str) -> None:
        with Wire(hostile.url) as wire:
            wire.head(f"GET {path} HTTP/1.1")
            status, headers, body = wire.answer()
        assert (status, body["error"]["type"]) == (404, "invalid_request_error")
        assert "set-cookie" not in headers

    @pytest.mark.parametrize(
        "query", ["after=%00", "after=%ff", "after=" + "9" * 65, "limit=1e9", "limit=" + "9" * 5000]
    )
    def test_queries_too(self, hostile: Any, query: str) -> None:
        with hostile.http() as http:
            for path in (FILES, JOBS, "/v1/fine_tuning/graders", "/v1/organization/audit_logs"):
                error_of(http.get(f"{path}?{query}"), 400)


@IMPATIENT
class TestConnections:
    """Connections that are slow, cut off, or not HTTP."""

    def test_a_head_that_trickles(self, hostile: Any) -> None:
        with Wire(hostile.url) as wire:
            wire.send(b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nx-slow: ")
            status, headers, body = wire.answer()
            assert (status, body["error"]["code"]) == (408, "request_timeout")
            assert headers["x-request-id"].startswith("req_")
            assert headers["x-content-type-options"] == "nosniff"
            assert wire.closed()

    def test_a_second_head_that_trickles(self, hostile: Any) -> None:
        with Wire(hostile.url) as wire:
            wire.head("GET /healthz HTTP/1.1")
            assert wire.answer()[0] == 200
            wire.send(b"GET /healthz HT")
            assert wire.answer()[0] == 408

    def test_a_connection_that_says_nothing(self, hostile: Any) -> None:
        with Wire(hostile.url) as wire:
            assert wire.closed()

    @pytest.mark.parametrize("path", [JOBS, FILES])
    def test_a_body_that_never_comes(self, hostile: Any, path: str) -> None:
        kind = BOUNDARY if path == FILES else "application/json"
        with Wire(hostile.url) as wire:
            wire.head(f"POST {path} HTTP/1.1", "content-length: 1000", f"content-type: {kind}")
            wire.send(b"-" if path == FILES else b"{")
            status, _, body = wire.answer()
            assert (status, body["error"]["code"]) == (408, "request_timeout")
            assert wire.closed()

    def test_a_body_nobody_asked_for(self, hostile: Any) -> None:
        """The answer comes at once; the rest is not waited for."""
        with Wire(hostile.url) as wire:
            wire.head("GET /healthz HTTP/1.1", "content-length: 1000")
            wire.send(b"x")
            assert wire.answer()[0] == 200
            assert wire.closed()

    def test_an_answer_nobody_takes(self, hostile: Any, tmp_path: Path) -> None:
        """More than the sockets hold: the server must not keep it for a client that has stopped reading."""
        (tmp_path / "big").mkdir()
        (tmp_path / "big" / "model.safetensors").write_bytes(bytes(64 << 20))
        checkpoint = hostile.checkpoint(hostile.claim(hostile.create()["id"]), 1, tmp_path / "big")
        in_flight = re.compile(r"^bgpo_requests_in_flight (\d+)", re.MULTILINE)

        def others() -> int:
            with hostile.http() as http:
                found = in_flight.search(http.get("/metrics").text)
            assert found is not None
            return int(found[1]) - 1

        with Wire(hostile.url) as wire:
            wire.head(f"GET /v1/fine_tuning/checkpoints/{checkpoint}/content HTTP/1.1")
            assert wire.status() == 200
            assert others() == 1
            wait_until(lambda: others() == 0, seconds=30)

    def test_an_upload_that_is_half_closed(self, hostile: Any) -> None:
        part = b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--b\r\n'
        part += b'content-disposition: form-data; name="file"; filename="a"\r\n\r\n{"mess'
        with Wire(hostile.url) as wire:
            wire.head(f"POST {FILES} HTTP/1.1", f"content-type: {BOUNDARY}", "content-length: 5000")
            wire.send(part)
            wire.half_close()
            assert wire.closed()
        with hostile.http() as http:
            assert http.get(FILES).json()["data"] == []

    def test_chunks_beyond_the_limit(self, hostile: Any) -> None:
        def pieces() -> Iterator[bytes]:
            for _ in range(MAX_BODY_BYTES // 65536 + 1):
                yield b" " * 65536

        with hostile.http() as http:
            response = http.post(JOBS, content=pieces(), headers={"content-type": "application/json"})
        assert error_of(response, 413)["code"] == "request_too_large"

    @pytest.mark.parametrize("chunk", [b"zz\r\n{}\r\n0\r\n\r\n", b"-1\r\n{}\r\n", b"2\r\n{}XX"])
    def test_chunks_that_are_none(self, hostile: Any, chunk: bytes) -> None:
        with Wire(hostile.url) as wire:
            wire.head(f"POST {JOBS} HTTP/1.1", "transfer-encoding: chunked", "content-type: application/json")
            wire.send(chunk)
            status, _, body = wire.answer()
            assert (status, body["error"]["code"]) == (400, "malformed_request")
            assert wire.closed()

    def test_expect_100_continue(self, hostile: Any) -> None:
        body = json.dumps({"model": 1}).encode()
        with Wire(hostile.url) as wire:
            line, kind = f"POST {JOBS} HTTP/1.1", "content-type: application/json"
            wire.head(line, kind, f"content-length: {len(body)}", "expect: 100-continue")
            assert wire.answer()[0] == 100
            wire.send(body)
            assert wire.answer()[0] == 400
        with Wire(hostile.url) as wire:  # what is too large is not asked for
            wire.head(line, kind, f"content-length: {MAX_BODY_BYTES + 1}", "expect: 100-continue")
            status, _, answer = wire.answer()
            assert (status, answer["error"]["code"]) == (413, "request_too_large")

    def test_pipelined_garbage(self, hostile: Any) -> None:
        with Wire(hostile.url) as wire:
            wire.send(f"GET /healthz HTTP/1.1\r\nhost: {wire.host}\r\n\r\n".encode() * 2 + b"\x00\x01 garbage\r\n\r\n")
            assert [wire.answer()[0] for _ in range(3)] == [200, 200, 400]
            assert wire.closed()

    @pytest.mark.parametrize(
        "head",
        [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
            b"GET / HTTP/1.1\r\n\r\n",  # no Host
            b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
            b"GET /a b HTTP/1.1\r\nhost: a\r\n\r\n",
            b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: a\r\nbad name: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: a\r\nx: a\x00b\r\n\r\n",
            b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
            b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        ],
    )
    def test_what_is_not_http(self, hostile: Any, head: bytes) -> None:
        with Wire(hostile.url) as wire:
            wire.send(head)
            status, headers, body = wire.answer()
            assert (status, body["error"]["code"]) == (400, "malformed_request")
            assert "server" not in headers
            assert wire.closed()

    def test_transfer_encoding_smuggles_nothing(self, hostile: Any) -> None:
        """Both lengths at once: whichever is taken, what follows is no second request of ours."""
        with Wire(hostile.url) as wire:
            wire.head(f"POST {JOBS} HTTP/1.1", "content-length: 4", "transfer-encoding: chunked", "connection: close")
            wire.send(b"0\r\n\r\nGET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
            assert wire.answer()[0] == 400
            assert wire.closed()
        with Wire(hostile.url) as wire:
            wire.head(f"POST {JOBS} HTTP/1.1", "transfer-encoding: gzip, chunked")
            assert wire.answer()[0] == 501
            assert wire.closed()

    def test_a_head_that_is_too_large(self, hostile: Any) -> None:
        with Wire(hostile.url) as wire:
            wire.head("GET /healthz HTTP/1.1", *(f"x-{i}: {'a' * 1000}" for i in range(40)))
            status, _, body = wire.answer()
            assert (status, body["error"]["code"]) == (431, "headers_too_large")
        with Wire(hostile.url) as wire:  # one that does not even end
            wire.send(b"GET /healthz HTTP/1.1\r\nx: " + b"a" * MAX_HEAD_BYTES)
            status, _, body = wire.answer()
            assert (status, body["error"]["code"]) == (431, "headers_too_large")

    @pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND", "BREW", "get"])
    def test_other_methods(self, hostile: Any, method: str) -> None:
        with Wire(hostile.url) as wire:
            wire.head(f"{method} {FILES} HTTP/1.1", "x-secret: echoed?")
            status, headers, body = wire.answer()
        assert (status, body["error"]["code"]) == (405, "method_not_allowed")
        assert headers["allow"] == "GET, POST"
        assert "echoed" not in json.dumps(body)


class TestForms:
    """Multipart bodies that are too many of something."""

    def send(self, service: Any, body: bytes, kind: str = BOUNDARY) -> httpx2.Response:
        with service.http() as http:
            return http.post(FILES, content=body, headers={"content-type": kind})

    def test_too_many_parts(self, hostile: Any) -> None:
        part = b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        assert error_of(self.send(hostile, part * 5000 + b"--b--\r\n"), 400)["param"] == "purpose"
        many = b"".join(b'--b\r\ncontent-disposition: form-data; name="f%d"\r\n\r\nx\r\n' % i for i in range(5000))
        assert error_of(self.send(hostile, many + b"--b--\r\n"), 400)["code"] == "unknown_parameter"

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"--b--\r\n",
            b"x" * 100_000,
            b"--b\r\n\r\nx\r\n--b--\r\n",
            b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\n' + b"x" * 10_000 + b"\r\n--b--\r\n",
            b"--b\r\n" + b"x-h: 1\r\n" * 10_000 + b"\r\n\r\n--b--\r\n",
            b"--b\r\nx-h: " + b"1" * 200_000 + b"\r\n\r\n\r\n--b--\r\n",
            b'--b\r\ncontent-disposition: form-data; name="' + b"n" * 50_000 + b'"\r\n\r\nx\r\n--b--\r\n',
        ],
    )
    def test_malformed(self, hostile: Any, body: bytes) -> None:
        assert len(error_of(self.send(hostile, body), 400)["message"]) < 500

    @pytest.mark.parametrize(
        "kind", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/mixed; boundary=b"]
    )
    def test_other_types(self, hostile: Any, kind: str) -> None:
        error_of(self.send(hostile, b"--b--", kind), 415)

    def test_what_ends_exactly_beyond_the_limit(self, hostile: Any) -> None:
        """The piece that is too much is also the last one: nothing is left to wait for."""
        head = b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--b\r\n'
        head += b'content-disposition: form-data; name="file"; filename="a"\r\n\r\n'
        body = head + b"x" * ((1 << 20) + 1) + b"\r\n--b--\r\n"
        with hostile.http() as http:
            response = http.post(FILES, content=iter([body]), headers={"content-type": BOUNDARY})
        assert error_of(response, 413)["code"] == "file_too_large"

    def test_a_boundary_without_end(self, hostile: Any) -> None:
        error_of(self.send(hostile, b"--b--", f"multipart/form-data; boundary={'b' * 5000}"), 400)


def _routes(app: Any) -> list[Any]:
    return [
        context.original_route
        for context in iter_route_contexts(app.routes)
        if isinstance(context.original_route, APIRoute)
    ]
