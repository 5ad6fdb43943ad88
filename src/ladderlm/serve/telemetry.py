"""Traces and metrics for an OpenTelemetry collector, by the semantic conventions for generative AI.

Off unless asked for. What was said is no part of them, unless OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT is
true.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ladderlm.errors import MissingExtra

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider

    from ladderlm.serve.trail import Trail

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
OPERATIONS = {
    "/v1/chat/completions": "chat", "/v1/completions": "text_completion", "/v1/embeddings": "embeddings",
    "/v1/responses": "chat", "/v1/messages": "chat",
}  # fmt: skip
# Fields of a request's body -> attributes of its span.
_ASKED = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens", "seed": "seed", "n": "choice.count", "stream": "stream",
    "presence_penalty": "presence_penalty", "frequency_penalty": "frequency_penalty",
}  # fmt: skip
# The bounds that the conventions advise.
_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_EACH = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)


def wanted() -> bool:
    """Whether the environment names a collector and the packages are there."""
    return bool(os.environ.get(ENDPOINT)) and importlib.util.find_spec("opentelemetry.sdk") is not None


def start() -> Telemetry:
    """Sends to the collector that the OTEL_* variables name. MissingExtra where the packages are missing."""
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "opentelemetry", "otel") from None
    named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "ladderlm"}
    resource = Resource.create(named)
    traces = TracerProvider(resource=resource, shutdown_on_exit=False)
    traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    reader = PeriodicExportingMetricReader(OTLPMetricExporter())
    content = os.environ.get(CONTENT, "").lower() in ("true", "1", "span_only", "span_and_event")
    return Telemetry(traces, MeterProvider([reader], resource=resource, shutdown_on_exit=False), content=content)


class Telemetry:
    """One span for each request that a model answers, and the distributions beside it."""

    def __init__(self, traces: TracerProvider, metrics: MeterProvider, *, content: bool = False) -> None:
        self.content = content
        self._providers = (traces, metrics)
        self._tracer = traces.get_tracer("ladderlm.serve")
        meter = metrics.get_meter("ladderlm.serve")

        def histogram(name: str, unit: str, edges: tuple[float, ...]) -> Any:
            return meter.create_histogram(name, unit, explicit_bucket_boundaries_advisory=edges)

        self._seconds = histogram("gen_ai.server.request.duration", "s", _SECONDS)
        self._first = histogram("gen_ai.server.time_to_first_token", "s", _FIRST)
        self._each = histogram("gen_ai.server.time_per_output_token", "s", _EACH)
        self._tokens = histogram("gen_ai.client.token.usage", "{token}", _TOKENS)

    def answered(self, trail: Trail) -> None:
        """A request has ended; only those that a model answers are told."""
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, Status, StatusCode

        if (operation := OPERATIONS.get(trail.route)) is None:
            return
        asked = trail.json
        model = trail.model or str(asked.get("model") or "unknown")
        shared = {
            "gen_ai.operation.name": operation, "gen_ai.provider.name": "ladderlm", "gen_ai.request.model": model,
            "gen_ai.response.model": model,
        }  # fmt: skip
        failed = trail.status >= 400 or any(m.reason == "error" for m in trail.meters)
        end = time.time_ns()
        span = self._tracer.start_span(
            f"{operation} {model}", extract(trail.parent), SpanKind.SERVER,
            {**shared, **dict(_attributes(trail, asked))}, start_time=end - int(trail.seconds * 1e9),
        )  # fmt: skip
        if failed:
            span.set_status(Status(StatusCode.ERROR))
            shared["error.type"] = str(trail.status) if trail.status >= 400 else "stream"
            span.set_attribute("error.type", shared["error.type"])
        if self.content:
            for name, value in _said(trail, asked):
                span.set_attribute(name, json.dumps(value, ensure_ascii=False))
        span.end(end)
        self._measure(trail, shared)

    def _measure(self, trail: Trail, shared: dict[str, str]) -> None:
        self._seconds.record(trail.seconds, shared)
        for meter in trail.meters:
            if meter.to_first is not None:
                self._first.record(meter.to_first, shared)
            if meter.per_token is not None:
                self._each.record(meter.per_token, shared)
            read = meter.usage.prompt_tokens
            for kind, count in (("input", read), ("output", meter.written)):
                self._tokens.record(count, {**shared, "gen_ai.token.type": kind})

    def close(self) -> None:
        """Sends what is left."""
        for provider in self._providers:
            provider.shutdown()


def _attributes(trail: Trail, asked: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for field, name in _ASKED.items():
        if isinstance(value := asked.get(field), bool | int | float):
            yield f"gen_ai.request.{name}", value
    stop = asked.get("stop")
    if isinstance(stop, str | list) and stop:
        yield "gen_ai.request.stop_sequences", [stop] if isinstance(stop, str) else [str(s) for s in stop]
    yield "http.response.status_code", trail.status or 499
    yield "ladderlm.request.id", trail.id
    if meters := trail.meters:
        yield "gen_ai.usage.input_tokens", sum(m.usage.prompt_tokens for m in meters)
        yield "gen_ai.usage.output_tokens", sum(m.written for m in meters)
        yield "gen_ai.usage.cache_read.input_tokens", sum(m.usage.cached_tokens for m in meters)
        yield "gen_ai.response.finish_reasons", [reason for m in meters for reason in m.reasons or [m.reason]]
        if (first := meters[0].to_first) is not None:
            yield "gen_ai.response.time_to_first_chunk", first


def _said(trail: Trail, asked: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The turns, in the form of the conventions."""
    turns = asked.get("messages")
    if isinstance(turns, list):
        yield "gen_ai.input.messages", [_turn(t.get("role"), t.get("content")) for t in turns if isinstance(t, dict)]
    elif (prompt := asked.get("prompt", asked.get("input"))) is not None:
        yield "gen_ai.input.messages", [_turn("user", prompt)]
    answers = [{**_turn("assistant", "".join(m.text)), "finish_reason": m.reason} for m in trail.meters]
    if answers:
        yield "gen_ai.output.messages", answers


def _turn(role: Any, content: Any) -> dict[str, Any]:
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return {"role": str(role), "parts": [{"type": "text", "content": text}]}
