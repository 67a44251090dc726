"""OpenTelemetry spans of a flow, received by a collector of our own."""

import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from pipeline.runtime.spans import Tracing
from tests.test_runtime import run

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collected() -> Iterator[tuple[str, list[Any]]]:
    """The address of a collector, and the spans that it was sent."""
    spans: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces":
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        spans.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", spans
    server.shutdown()
    server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    return {
        pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes
    }


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_every_call_of_a_stage_is_a_span_of_its_flow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collected: tuple[str, list[Any]]
) -> None:
    endpoint, spans = collected
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("TRACEPARENT", f"00-{TRACE}-{PARENT}-01")
    run(tmp_path, [["a", "b", "c"], ["d", "e"]])
    (flow,) = [span for span in spans if span.name == "flow"]
    assert (flow.trace_id.hex(), flow.parent_span_id.hex()) == (TRACE, PARENT)
    assert attributes(flow) == {"segmill.run_id": "run", "segmill.images": 5}
    calls = [span for span in spans if span.name != "flow"]
    images: Counter[str] = Counter()
    for span in calls:
        assert span.trace_id == flow.trace_id and span.parent_span_id == flow.span_id
        assert flow.start_time_unix_nano <= span.end_time_unix_nano <= flow.end_time_unix_nano
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        images[span.name] += attributes(span)["segmill.images"]
    assert images == {"decode": 5, "mark": 5, "write": 5}


@pytest.mark.parametrize(
    "variables, endpoint",
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/"}, "http://c:4318/v1/traces"),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t/x",
            },
            "http://t/x",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "true"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"}, None),
    ],
)
def test_the_standard_variables_decide(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], endpoint: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = Tracing.of_environment()
    assert (found and found.endpoint) == endpoint
