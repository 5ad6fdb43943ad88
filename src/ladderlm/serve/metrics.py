"""What Prometheus reads: the names that dashboards for vLLM know, this process, and each route.

Gauges are read from the engines when somebody asks; counters and histograms come from the streams' meters.
"""

from __future__ import annotations

import threading
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_open
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from ladderlm.serve.meter import Meter
    from ladderlm.serve.models import Models
    from ladderlm.serve.trail import Trail

LABEL = "model_name"
SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
PER_TOKEN = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
OPEN = "application/openmetrics-text"
# What each measures of a request that has ended; where it is None there is nothing to tell.
_TIMES: dict[str, tuple[str, Callable[[Meter], float | None]]] = {
    "time_to_first_token_seconds": ("Seconds from arrival to the first token", lambda m: m.to_first),
    "request_queue_time_seconds": ("Seconds before a request is read", lambda m: m.queued),
    "request_prefill_time_seconds": ("Seconds in which a prompt is read", lambda m: m.prefill),
    "request_decode_time_seconds": ("Seconds from the first token to the last", lambda m: m.decode),
    "e2e_request_latency_seconds": ("Seconds from arrival to the end", lambda m: m.seconds),
}


class Metrics:
    """One server's. `models` tells of its engines, `draining` whether it is about to end."""

    def __init__(self, models: Models, draining: Callable[[], bool]) -> None:
        self._models, self._draining = models, draining
        self._lock = threading.Lock()
        self._waiting, self._running = Tally[str](), Tally[str]()
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        registry.register(_State(self))

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels or (LABEL,), registry=registry)

        def histogram(name: str, text: str, edges: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, labels or (LABEL,), buckets=edges, registry=registry)

        self._prompt = counter("vllm:prompt_tokens", "Prompt tokens of requests that have ended")
        self._written = counter("vllm:generation_tokens", "Tokens written")
        self._looked = counter("vllm:prefix_cache_queries", "Prompt tokens looked up among those read before")
        self._found = counter("vllm:prefix_cache_hits", "Prompt tokens that had been read before")
        self._success = counter("vllm:request_success", "Requests that ended, by why", LABEL, "finished_reason")
        self._times = {name: histogram(f"vllm:{name}", text, SECONDS) for name, (text, _) in _TIMES.items()}
        self._per_token = histogram(
            "vllm:request_time_per_output_token_seconds", "Seconds a token after a request's first", PER_TOKEN
        )
        self._prompts = histogram("vllm:request_prompt_tokens", "Prompt tokens of a request", TOKENS)
        self._answers = histogram("vllm:request_generation_tokens", "Tokens that a request wrote", TOKENS)
        self._requests = counter("http_requests", "Requests, by route and status", "method", "handler", "status")
        self._seconds = histogram(
            "http_request_duration_seconds", "Seconds a request took", SECONDS, "method", "handler"
        )

    # --- Told by the meters, from any thread ----------------------------------------------------------------------

    def opened(self, meter: Meter) -> None:
        with self._lock:
            self._waiting[meter.model] += 1

    def began(self, meter: Meter) -> None:
        with self._lock:
            self._waiting[meter.model] -= 1
            self._running[meter.model] += 1

    def wrote(self, meter: Meter, tokens: int) -> None:
        self._written.labels(meter.model).inc(tokens)

    def ended(self, meter: Meter) -> None:
        model = meter.model
        with self._lock:
            (self._running if meter.begun else self._waiting)[model] -= 1
        self._success.labels(model, meter.reason).inc()
        for name, (_, measured) in _TIMES.items():
            if (value := measured(meter)) is not None:
                self._times[name].labels(model).observe(value)
        if meter.per_token is not None:
            self._per_token.labels(model).observe(meter.per_token)
        usage = meter.usage
        self._prompt.labels(model).inc(usage.prompt_tokens)
        self._looked.labels(model).inc(usage.prompt_tokens)
        self._found.labels(model).inc(usage.cached_tokens)
        self._prompts.labels(model).observe(usage.prompt_tokens)
        self._answers.labels(model).observe(meter.written)

    def answered(self, trail: Trail) -> None:
        """A request has got its last byte, or its client went away (499)."""
        self._requests.labels(trail.method, trail.route, str(trail.status or 499)).inc()
        self._seconds.labels(trail.method, trail.route).observe(trail.seconds)

    # --- For Prometheus -------------------------------------------------------------------------------------------

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """All of it and its content type: OpenMetrics for those who ask for it."""
        if OPEN in accept:
            return generate_open(self.registry), f"{OPEN}; version=1.0.0; charset=utf-8"
        return generate_latest(self.registry), "text/plain; version=0.0.4; charset=utf-8"

    def gauges(self) -> Iterator[Any]:
        """The state of this moment."""
        running = GaugeMetricFamily("vllm:num_requests_running", "Requests being read or written", labels=[LABEL])
        waiting = GaugeMetricFamily("vllm:num_requests_waiting", "Requests that wait for their turn", labels=[LABEL])
        used = GaugeMetricFamily("vllm:kv_cache_usage_perc", "Share of the memory for keys and values", labels=[LABEL])
        memory = GaugeMetricFamily("ladderlm:model_memory_bytes", "Memory set aside for a model", labels=[LABEL])
        with self._lock:
            begun, queued = self._running.copy(), self._waiting.copy()
        engines = self._models.engines()
        for name in sorted({*self._models.named, *begun, *queued, *engines}):
            state = engines.get(name)
            inside, held = (begun[name], 0) if state is None else (state.running, state.waiting)
            running.add_metric([name], inside)
            waiting.add_metric([name], queued[name] + held)
            if state is not None:
                used.add_metric([name], state.kv_used)
        for name, size in self._models.memory().items():
            memory.add_metric([name], size)
        draining = GaugeMetricFamily("ladderlm:draining", "1 while the server is about to end", self._draining())
        yield from (running, waiting, used, memory, draining)


class _State(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Any]:
        return self._metrics.gauges()

    def describe(self) -> Iterator[Any]:
        return iter(())
