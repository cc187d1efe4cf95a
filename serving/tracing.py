"""Traces of calls by OpenTelemetry, sent by OTLP where the standard variables name a receiver."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

from models.errors import BadSetting
from serving.calls import Call

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_CONTEXT = ("traceparent", "tracestate")
# Of gRPC's codes, by OpenTelemetry's conventions, those that are the server's fault.
_FAILURES = frozenset(
    ["UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"]
)


class Tracing:
    """A span for each call, the child of the client's where its headers say so."""

    def __init__(self, provider: Any) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("fucina")
        self._extract = TraceContextTextMapPropagator().extract
        self._kind = SpanKind.SERVER

    def begin(self, call: Call, headers: Iterable[tuple[str | bytes, str | bytes]]) -> None:
        """Begin a call's span."""
        carrier = {}
        for key, value in headers:
            name = key.decode("latin-1") if isinstance(key, bytes) else key
            if name in _CONTEXT:
                carrier[name] = value.decode("latin-1") if isinstance(value, bytes) else value
        context = self._extract(carrier) if carrier else None
        span = self._tracer.start_span(call.route or "unknown", context, self._kind)
        call.span, call.trace = span, f"{span.get_span_context().trace_id:032x}"

    def end(self, call: Call) -> None:
        """End it, with all that is known of the call now."""
        span = call.span
        if span.is_recording():
            span.set_attributes(_attributes(call))
            if call.code[:1] == "5" or call.code in _FAILURES:
                from opentelemetry.trace import StatusCode

                span.set_status(StatusCode.ERROR)
        span.end()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def open_tracing(environment: Mapping[str, str]) -> Tracing | None:
    """Tracing as the standard `OTEL_*` variables ask for it; None when they name no receiver.

    Of them the SDK reads sampling, headers, time limits and the service's name by itself. Raises
    `BadSetting` when the exporter is not installed.
    """
    if not any(environment.get(name) for name in ENDPOINTS):
        return None
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError as error:
        raise BadSetting(
            f"{ENDPOINTS[0]} asks for traces", got=f"no package {error.name!r}",
            expected="the extra 'trace'", fix="pip install 'fucina[trace]'",
        ) from error  # fmt: skip
    facts = {"service.version": metadata.version("fucina")}
    if "OTEL_SERVICE_NAME" not in environment:
        facts["service.name"] = "fucina"
    provider = TracerProvider(resource=Resource.create(facts))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


def _attributes(call: Call) -> dict[str, str | int | float]:
    """A call in the words of OpenTelemetry's conventions, and in ours where they have none."""
    http = call.transport == "http"
    said: dict[str, str | int | float] = {
        "http.route" if http else "rpc.method": call.route,
        "fucina.request.id": call.id,
        "fucina.received": call.received,
        "fucina.sent": call.sent,
        "fucina.seconds": time.perf_counter() - call.started,
    }
    if http and call.code:
        said["http.response.status_code"] = int(call.code)
    elif call.code:
        said["rpc.response.status_code"] = call.code
    if call.model:
        said |= {"fucina.model": call.model, "fucina.version": call.version}
    if call.rows:
        said |= {
            "fucina.batch.rows": call.rows,
            "fucina.queue.seconds": call.queued,
            "fucina.engine.seconds": call.engine,
        }
    return said
