"""Traces of the SDK as spans of OpenTelemetry, sent to a collector over HTTP. Needs the extra `otel`.

`OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_SERVICE_NAME` and the other variables of OpenTelemetry work as always; it reads them
from the environment, not from `.env`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from hashlib import sha256
from typing import Any

from agents import Span, Trace, TracingProcessor, set_trace_processors, set_tracing_disabled
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

PROJECT = __name__.partition(".")[0].replace("_", "-")


class OpenTelemetryProcessor(TracingProcessor):
    """Turns each trace and each span of the SDK into one span, under the ids that the SDK gave them.

    Args:
        endpoint: Base address of the collector, such as http://localhost:4318.
    """

    def __init__(self, endpoint: str) -> None:
        # Any: not all of it has types, and it need not be installed.
        self._sender: Any = BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces"))
        named = Resource.create()  # from OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
        unnamed = str(named.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service")
        self._resource = named.merge(Resource({SERVICE_NAME: PROJECT})) if unnamed else named
        self._begun: dict[str, int] = {}

    def on_trace_start(self, trace: Trace) -> None:
        self._begun[trace.trace_id] = time.time_ns()

    def on_trace_end(self, trace: Trace) -> None:
        now = time.time_ns()
        group = (trace.export() or {}).get("group_id")
        attributes = {} if group is None else {"gen_ai.conversation.id": group}
        root = _context(trace.trace_id, trace.trace_id)
        self._send(trace.name, root, None, attributes, self._begun.pop(trace.trace_id, now), now, None)

    def on_span_start(self, span: Span[Any]) -> None:
        """All that is known of a span is known at its end."""

    def on_span_end(self, span: Span[Any]) -> None:
        data: Mapping[str, Any] = span.span_data.export()
        name = " ".join(str(data[key]) for key in ("type", "name") if data.get(key))
        parent = _context(span.trace_id, span.parent_id or span.trace_id)
        context = _context(span.trace_id, span.span_id)
        start, end = _nanoseconds(span.started_at), _nanoseconds(span.ended_at)
        self._send(name, context, parent, _flat(data), start, end, span.error["message"] if span.error else None)

    def _send(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        attributes: Mapping[str, Any],
        start: int,
        end: int,
        error: str | None,
    ) -> None:
        status = Status(StatusCode.ERROR, error) if error is not None else Status(StatusCode.UNSET)
        self._sender.on_end(
            ReadableSpan(
                name, context, parent, self._resource, attributes, status=status, start_time=start, end_time=end
            )
        )

    def shutdown(self) -> None:
        self._sender.shutdown()

    def force_flush(self) -> None:
        self._sender.force_flush()


@contextmanager
def traces_sent_to(endpoint: str) -> Iterator[None]:
    """Send all traces of this process to a collector, and to nobody else; what is left is sent at the end."""
    processor = OpenTelemetryProcessor(endpoint)
    set_trace_processors([processor])
    set_tracing_disabled(False)
    try:
        yield
    finally:
        set_tracing_disabled(True)
        set_trace_processors([])
        processor.shutdown()


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(_number(trace_id, 32), _number(span_id, 16), is_remote=False, trace_flags=TraceFlags(1))


def _number(text: str, digits: int) -> int:
    """The id of the SDK ("span_" and hexadecimal digits) as a number; a hash of one that an app made up."""
    try:
        return int(text.rpartition("_")[2][:digits], 16)
    except ValueError:
        return int(sha256(text.encode()).hexdigest()[:digits], 16)


def _nanoseconds(moment: str | None) -> int:
    return time.time_ns() if moment is None else int(datetime.fromisoformat(moment).timestamp() * 1e9)


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes are simple values; what is not becomes JSON."""
    simple = (str, bool, int, float)
    return {
        f"agents.{name}": value if isinstance(value, simple) else json.dumps(value, default=str)
        for name, value in data.items()
        if value is not None
    }
