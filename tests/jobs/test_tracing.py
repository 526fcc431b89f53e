"""Spans of the process: none by default, and one trace from the request to the attempt."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from jobs import tracing
from jobs.repositories import claims
from jobs.settings import Settings
from tests.service import service, start_service

__all__ = ["service", "start_service"]


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.start("test", SimpleSpanProcessor(exporter))
    yield exporter
    tracing.stop()


def test_nothing_without_an_endpoint(tmp_path: Path) -> None:
    tracing.configure(Settings(home=tmp_path), "x")
    with tracing.span("a", b=1) as span:
        span.set(c=2)
        span.rename("b")
        span.fail()
        assert span.traceparent is None


def test_nothing_is_imported_until_it_is_asked_for() -> None:
    """Of ours; the client of Redis imports the SDK where it is installed."""
    code = "import sys, api.main, worker.answering; sys.exit('opentelemetry.exporter' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_span_belongs_to_its_parent(spans: InMemorySpanExporter) -> None:
    with tracing.span("request", kind="SERVER") as request:
        origin = {"traceparent": request.traceparent or ""}
    with tracing.span("attempt", parent=origin, bgpo__job="ftjob-1", none=None) as attempt:
        tracing.past("claim", 1)
        attempt.set(bgpo__outcome="succeeded")
    made = {span.name: span for span in spans.get_finished_spans()}
    assert made["attempt"].parent.span_id == made["request"].context.span_id  # type: ignore[union-attr]
    assert made["claim"].parent.span_id == made["attempt"].context.span_id  # type: ignore[union-attr]
    assert len({span.context.trace_id for span in made.values()}) == 1
    assert made["attempt"].attributes == {"bgpo.job": "ftjob-1", "bgpo.outcome": "succeeded"}


@pytest.mark.parametrize("text", ["", "rubbish", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_parent_that_is_none(spans: InMemorySpanExporter, text: str) -> None:
    with tracing.span("alone", parent={"traceparent": text}):
        pass
    assert spans.get_finished_spans()[0].parent is None


def test_an_exception_fails_the_span(spans: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="x"), tracing.span("broken"):
        raise ValueError("x")
    assert not spans.get_finished_spans()[0].status.is_ok


def test_a_job_carries_the_trace_of_its_request(spans: InMemorySpanExporter, service: Any) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    file_id = service.upload(service.rows()).json()["id"]
    with service.http() as http:
        headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        job_id = http.post("/v1/fine_tuning/jobs", json=service.body(training_file=file_id), headers=headers).json()[
            "id"
        ]
        assert http.get("/v1/files/none").status_code == 404
    with service.ctx.db.transaction() as session:
        claim = claims.claim(session, job_id, "worker-1", 60)
    assert claim is not None
    with tracing.span("attempt", parent=claim.origin):
        pass
    made = {span.name: span for span in spans.get_finished_spans()}
    created, attempt = made["POST /v1/fine_tuning/jobs"], made["attempt"]
    assert f"{created.context.trace_id:032x}" == trace
    assert attempt.parent.span_id == created.context.span_id  # type: ignore[union-attr]
    assert attempt.context.trace_id == created.context.trace_id
    assert created.attributes is not None
    assert created.attributes["http.response.status_code"] == 200
    assert created.attributes["bgpo.request"] == claim.origin["request_id"]
    assert "GET /v1/files/{file_id}" in made


def test_spans_reach_a_collector(tmp_path: Path) -> None:
    got: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Not to stderr."""

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            endpoint = f"http://127.0.0.1:{server.server_port}"
            tracing.configure(Settings(home=tmp_path, otel_endpoint=endpoint), "bgpo-test")
            with tracing.span("hello"):
                pass
            tracing.stop()
        finally:
            server.shutdown()
            thread.join()
    assert [path for path, _ in got] == ["/v1/traces"]
    assert b"hello" in got[0][1]
    assert b"bgpo-test" in got[0][1]
