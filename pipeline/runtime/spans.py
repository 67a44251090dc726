"""OpenTelemetry spans of a flow: one for it, and one for every call of a stage inside.

They are sent where the standard variables of OpenTelemetry say (OTEL_EXPORTER_OTLP_ENDPOINT), by
the board alone, to which every worker tells its calls. TRACEPARENT, as schedulers set it, makes a
flow part of a larger trace.
"""

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Final

from pipeline.meter import Spent

_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_TRACES_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_SOON_MS: Final = 1_000  # a board is killed when its flow is over
_NS: Final = 10**9

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tracing:
    """Where spans go, as the driver found it; headers, which may be secret, stay environment."""

    endpoint: str  # with the path of traces
    parent: str | None  # a W3C traceparent

    @classmethod
    def of_environment(cls) -> "Tracing | None":
        """Return what the environment asks for; None: no spans."""
        endpoint = os.environ.get(_TRACES_ENDPOINT)
        if not endpoint and (base := os.environ.get(_ENDPOINT)):
            endpoint = f"{base.rstrip('/')}/v1/traces"
        off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
        if not endpoint or off or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
            return None
        try:
            import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        except ImportError:
            logger.warning(
                "no spans are sent to %s: pip install 'segmill[tracing]' for them", endpoint
            )
            return None
        return cls(endpoint, os.environ.get("TRACEPARENT"))


class Spans:
    """The spans of one flow, on their way to a collector."""

    def __init__(self, tracing: Tracing, run_id: str, images: int) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._run = {"segmill.run_id": run_id}
        self._provider = TracerProvider(resource=Resource.create({"service.name": "segmill"}))
        exporter = OTLPSpanExporter(endpoint=tracing.endpoint)
        processor = BatchSpanProcessor(exporter, schedule_delay_millis=_SOON_MS)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("segmill")
        carrier = {"traceparent": tracing.parent} if tracing.parent else {}
        self._flow = self._tracer.start_span(
            "flow",
            context=TraceContextTextMapPropagator().extract(carrier),
            attributes={**self._run, "segmill.images": images},
        )
        self._inside = trace.set_span_in_context(self._flow)

    def add(self, spent: Mapping[str, Spent]) -> None:
        """Tell a call that has just ended; the steps in it come one after the other."""
        start = time.time_ns() - round(_NS * sum(what.busy_s for what in spent.values()))
        for step, what in spent.items():
            end = start + round(_NS * what.busy_s)
            attributes: dict[str, str | float] = {
                **self._run,
                "segmill.images": what.images,
                "segmill.bytes": what.size_bytes,
                "segmill.cpu_seconds": what.cpu_s,
            }
            span = self._tracer.start_span(
                step, self._inside, attributes=attributes, start_time=start
            )
            span.end(end)
            start = end

    def close(self) -> None:
        """End the flow's span and send what is left."""
        self._flow.end()
        self._provider.shutdown()
