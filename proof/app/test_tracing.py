"""Traces as a collector of OpenTelemetry receives them over HTTP, with the packages of the extra `otel`."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from my_agent.conversation.run import trace_group
from my_agent.sessions import SessionRef
from proof.support import slow_agent
from proof.support.command import run

SLOW_AGENT = (sys.executable, str(Path(slow_agent.__file__)))
WITHOUT_OTEL = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter")):  # the SDK brings the API itself
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from my_agent.cli.main import main
main()
"""


class Collector:
    """Keeps what is sent to it."""

    def __init__(self) -> None:
        self.paths, self.bodies, self.spans, self.services = list[str](), list[bytes](), list[Span](), set[str]()

    def receive(self, path: str, body: bytes) -> None:
        self.paths.append(path)
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services |= {
                each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
            }
            for scope in resource.scope_spans:
                self.spans += scope.spans


@pytest.fixture
def collector(server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    received = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.receive(self.path, gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        for name, value in server_environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        yield received
        server.shutdown()


def attribute(span: Span, name: str) -> str:
    return next((each.value.string_value for each in span.attributes if each.key == name), "")


async def test_a_turn_becomes_one_tree_of_spans_without_content(collector: Collector) -> None:
    done = await run("chat", "look up: a secret", "--user", "ada", program=SLOW_AGENT, traceback=True)
    assert done.code == 0, done.err
    assert set(collector.paths) == {"/v1/traces"}
    assert collector.services == {"my-agent"}
    (root,) = [span for span in collector.spans if not span.parent_span_id]
    assert root.name == "my-agent: Slow"
    assert attribute(root, "gen_ai.conversation.id") == trace_group(SessionRef("ada", "default"))
    assert {span.trace_id for span in collector.spans} == {root.trace_id}
    ids = {span.span_id for span in collector.spans}
    assert len(ids) == len(collector.spans)
    assert {span.parent_span_id for span in collector.spans} - {b""} <= ids
    names = {span.name for span in collector.spans}
    assert {"agent Slow", "function look_up"} <= names, names
    assert all(0 < span.start_time_unix_nano <= span.end_time_unix_nano for span in collector.spans)
    failed = [span.name for span in collector.spans if span.status.code == Status.STATUS_CODE_ERROR]
    assert failed == ["function look_up"]
    for body in collector.bodies:
        for secret in (b"secret", b"no entry", b"ada"):
            assert secret not in body


async def test_content_is_in_traces_only_where_that_is_asked_for(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACE_CONTENT", "true")
    await run("chat", "look up: a secret", program=SLOW_AGENT, traceback=True)
    assert any(b"a secret" in body for body in collector.bodies)


async def test_without_an_endpoint_nothing_is_sent(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
    assert (await run("chat", "My name is Ada")).code == 0
    assert collector.bodies == []


async def test_an_endpoint_without_the_packages_is_one_clear_sentence(collector: Collector) -> None:
    done = await run("chat", "Hi", program=(sys.executable, "-c", WITHOUT_OTEL))
    assert (done.code, done.out) == (1, "")
    *_, last = done.err.splitlines()
    assert last == (
        "Error: OTEL_EXPORTER_OTLP_ENDPOINT is set, but the packages for OpenTelemetry are not installed. "
        "Run `uv sync --extra otel`, or unset it."
    )
