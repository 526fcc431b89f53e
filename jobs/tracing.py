"""Traces by OpenTelemetry, if the operator wants them: a span for each request, claim and attempt.

Off unless BGPO_OTEL_ENDPOINT is set, and no exporter is imported until then (`pip install 'bgpo[otel]'`).
An attempt is a child of the request that made its job: the job carries that request's `traceparent` (`jobs.origin`), so
a trace goes from the client through the API to the worker, hours later if need be. The trainer makes no spans; its
numbers are the job's metrics.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from jobs.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Span

Attribute = str | int | float | bool
_provider: TracerProvider | None = None


def configure(settings: Settings, service: str) -> None:
    """Send this process's spans to the endpoint of the settings; call once, at its start.

    Raises:
        RuntimeError: the extra is not installed.
    """
    if settings.otel_endpoint is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise RuntimeError("BGPO_OTEL_ENDPOINT is set, which needs the extra: pip install 'bgpo[otel]'") from error
    endpoint = f"{settings.otel_endpoint.rstrip('/')}/v1/traces"
    start(service, BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))


def start(service: str, processor: SpanProcessor) -> None:
    """Hand spans to `processor` from now on."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    global _provider
    _provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
    _provider.add_span_processor(processor)


def stop() -> None:
    """Send what is still here, and make no more spans."""
    global _provider
    if _provider is not None:
        _provider.shutdown()
        _provider = None


class Here:
    """A span that is open; does nothing where there are no traces."""

    def __init__(self, span: Span | None) -> None:
        self._span = span

    def set(self, **attributes: Attribute | None) -> None:
        """Add what has become known."""
        if self._span is not None:
            self._span.set_attributes(_named(attributes))

    def rename(self, name: str) -> None:
        """Give the name that has become known."""
        if self._span is not None:
            self._span.update_name(name)

    def fail(self) -> None:
        """Mark it as one that went wrong."""
        if self._span is not None:
            from opentelemetry.trace import StatusCode

            self._span.set_status(StatusCode.ERROR)

    @functools.cached_property
    def traceparent(self) -> str | None:
        """What makes a later span its child, as W3C's Trace Context writes it."""
        if self._span is None:
            return None
        from opentelemetry import trace

        carrier: dict[str, str] = {}
        _propagator().inject(carrier, trace.set_span_in_context(self._span))
        return carrier.get("traceparent")


@contextmanager
def span(
    name: str,
    *,
    kind: Literal["SERVER", "CONSUMER", "INTERNAL"] = "INTERNAL",
    parent: Mapping[str, str] | None = None,
    **attributes: Attribute | None,
) -> Iterator[Here]:
    """A span around the block; an exception marks it as failed.

    Args:
        parent: holds the `traceparent` of the span it belongs to, if there is one.
        attributes: `__` in a name becomes a dot; None is left out.
    """
    if _provider is None:
        yield Here(None)
        return
    from opentelemetry.trace import SpanKind

    with _provider.get_tracer("bgpo").start_as_current_span(
        name,
        context=_propagator().extract(dict(parent)) if parent else None,
        kind=SpanKind[kind],
        attributes=_named(attributes),
    ) as opened:
        yield Here(opened)


def past(name: str, began_ns: int, **attributes: Attribute | None) -> None:
    """A span of what is over, below the one that is open: for what deserves a span only when it led to something."""
    if _provider is not None:
        made = _provider.get_tracer("bgpo").start_span(name, start_time=began_ns, attributes=_named(attributes))
        made.end()


def _propagator() -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()


def _named(attributes: Mapping[str, Attribute | None]) -> dict[str, Attribute]:
    return {name.replace("__", "."): value for name, value in attributes.items() if value is not None}
