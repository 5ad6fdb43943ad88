"""What Prometheus, a log collector and an OpenTelemetry collector are told."""

from __future__ import annotations

import io
import json
import logging
import shutil
import subprocess
import time
from collections.abc import Iterator

import httpx
import pytest
from live import WORDS, Endless, Scripted, served

from ladderlm.errors import FormatError
from ladderlm.serve import json_lines
from ladderlm.serve.models import Models
from ladderlm.talk import open_chat
from ladderlm.types import Chat

pytest.importorskip("uvicorn")
parser = pytest.importorskip("prometheus_client.parser")

HELLO = [{"role": "user", "content": "hello"}]
# What dashboards and autoscalers for vLLM ask for.
NAMES = [
    "num_requests_running", "num_requests_waiting", "prompt_tokens_total", "generation_tokens_total",
    "time_to_first_token_seconds_bucket", "request_time_per_output_token_seconds_sum",
    "e2e_request_latency_seconds_count", "request_success_total", "request_queue_time_seconds_sum",
    "request_prefill_time_seconds_sum", "request_decode_time_seconds_sum", "prefix_cache_queries_total",
    "prefix_cache_hits_total", "request_prompt_tokens_bucket", "request_generation_tokens_bucket",
]  # fmt: skip


def read(url: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = httpx.get(f"{url}/metrics").text
    return {
        (s.name, frozenset(s.labels.items())): s.value
        for family in parser.text_string_to_metric_families(text)
        for s in family.samples
    }


def told(url: str, name: str, **labels: str) -> float:
    return read(url)[(name, frozenset(labels.items()))]


def chat(url: str, model: str = "scripted", **more: object) -> httpx.Response:
    body = {"model": model, "messages": HELLO, **more}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    chats: dict[str, Chat] = {"scripted": Scripted(), "endless": Endless()}
    with served(Models(("scripted", "endless"), opener=chats.__getitem__)) as url:
        yield url


def test_the_names_that_dashboards_know(url: str) -> None:
    chat(url)
    names = {name for name, _ in read(url)}
    assert {f"vllm:{name}" for name in NAMES} <= names
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "http_requests_total"} <= names


def test_what_a_request_adds(url: str) -> None:
    model = {"model_name": "scripted"}
    before = read(url)
    chat(url, stream=True)
    chat(url, max_tokens=2)
    after = read(url)

    def added(name: str, **labels: str) -> float:
        key = name, frozenset(labels.items())
        return after[key] - before.get(key, 0.0)

    assert added("vllm:generation_tokens_total", **model) == len(WORDS) + 2
    assert added("vllm:prompt_tokens_total", **model) == 6
    assert added("vllm:request_success_total", **model, finished_reason="stop") == 1
    assert added("vllm:request_success_total", **model, finished_reason="length") == 1
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds"):
        assert added(f"vllm:{name}_count", **model) == 2
    assert added("http_requests_total", method="POST", handler="/v1/chat/completions", status="200") == 2


def test_a_stream_is_counted_while_it_runs_and_as_aborted_when_its_client_goes(url: str) -> None:
    body = {"model": "endless", "messages": HELLO, "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        lines = answer.iter_lines()  # dropping it would close the stream
        next(lines)
        assert told(url, "vllm:num_requests_running", model_name="endless") == 1
    until = time.monotonic() + 5
    while told(url, "vllm:num_requests_running", model_name="endless") and time.monotonic() < until:
        time.sleep(0.02)
    assert told(url, "vllm:num_requests_running", model_name="endless") == 0
    assert told(url, "vllm:request_success_total", model_name="endless", finished_reason="abort") == 1


def test_a_wrong_request_is_counted_by_its_status_and_paths_are_not_labels(url: str) -> None:
    httpx.get(f"{url}/v1/models/nothing-like-it")
    httpx.get(f"{url}/no/such/path/{time.time()}")
    httpx.request("BREW", f"{url}/v1/models")
    handlers = {dict(labels).get("handler") for name, labels in read(url) if name == "http_requests_total"}
    assert "/v1/models/{name:path}" in handlers
    assert not any(h and "no/such" in h for h in handlers)
    methods = {dict(labels).get("method") for name, labels in read(url) if name == "http_requests_total"}
    assert "BREW" not in methods


def test_open_metrics_where_it_is_asked_for(url: str) -> None:
    answer = httpx.get(f"{url}/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_finds_no_fault(url: str) -> None:
    chat(url)
    text = httpx.get(f"{url}/metrics").content
    found = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    faults = [
        line
        for line in (found.stdout + found.stderr).decode().splitlines()
        # vLLM's own names have a colon, which promtool keeps for recording rules; "perc" is theirs too.
        if "metric names should not contain ':'" not in line
    ]
    assert faults == []


def test_the_engine_tells_of_itself(default_model: str) -> None:
    """A prompt that was read before is found; the memory of keys and values is told; a wait is measured."""
    with served(Models(("m",), opener=lambda ref: open_chat(default_model, kv_bytes=2**24))) as url:
        long = [{"role": "user", "content": "one two three four five six seven eight nine ten " * 8}]
        for _ in range(2):
            httpx.post(f"{url}/v1/chat/completions", json={"messages": long, "max_tokens": 4}, timeout=120)
        model = {"model_name": "m"}
        assert told(url, "vllm:prefix_cache_hits_total", **model) >= 32
        assert told(url, "vllm:prefix_cache_queries_total", **model) == told(url, "vllm:prompt_tokens_total", **model)
        assert told(url, "vllm:kv_cache_usage_perc", **model) < 1
        assert told(url, "vllm:num_requests_waiting", **model) == 0
        assert 2 <= told(url, "vllm:generation_tokens_total", **model) <= 8


# --- Health and readiness -----------------------------------------------------------------------------------------


def test_alive_is_not_ready() -> None:
    def broken(ref: str) -> Scripted:
        raise FormatError("not a model", where=ref)

    models = Models(("m",), opener=broken)
    with served(models) as url:
        models.preload(["m"]).join(5)
        assert httpx.get(f"{url}/health").status_code == 200
        answer = httpx.get(f"{url}/ready")
        assert (answer.status_code, answer.json()["status"]) == (503, "failed")
        assert "not a model" in answer.json()["error"]


# --- Request ids and logs -----------------------------------------------------------------------------------------


def test_every_answer_has_an_id_and_a_fit_one_is_kept(url: str) -> None:
    given = httpx.get(f"{url}/health", headers={"x-request-id": "mine-1.2_3"})
    assert given.headers["x-request-id"] == "mine-1.2_3"
    made = {httpx.get(f"{url}/health", headers={"x-request-id": "no spaces"}).headers["x-request-id"] for _ in "ab"}
    assert len(made) == 2
    assert httpx.get(f"{url}/nothing").headers["x-request-id"].startswith("req-")


def test_json_lines_tell_each_request_and_nothing_of_what_was_said(url: str) -> None:
    root, access = logging.getLogger(), logging.getLogger("ladderlm.serve")
    before, level, own = root.handlers[:], root.level, access.level
    stream = io.StringIO()
    try:
        tell = json_lines.start(stream)
        httpx.post(
            f"{url}/v1/chat/completions", json={"messages": HELLO, "model": "scripted"}, headers={"x-request-id": "r1"}
        )
        from ladderlm.events import Event

        tell(Event("serve", "m is ready", data={"seconds": 1.5}))
        until = time.monotonic() + 3
        while '"r1"' not in stream.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        access.setLevel(own)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    request = next(line for line in lines if line.get("request_id") == "r1")
    assert (request["message"], request["path"], request["status"]) == ("request", "/v1/chat/completions", 200)
    assert (request["model"], request["prompt_tokens"], request["completion_tokens"]) == ("scripted", 3, 4)
    assert request["seconds_to_first_token"] >= 0
    assert any(line["message"] == "m is ready" and line["seconds"] == 1.5 for line in lines)
    assert "hello" not in stream.getvalue()


# --- OpenTelemetry ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [False, True])
def test_a_span_by_the_conventions_and_content_only_when_asked_for(content: bool) -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from ladderlm.serve.telemetry import Telemetry

    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    traces = TracerProvider()
    traces.add_span_processor(SimpleSpanProcessor(spans))
    telemetry = Telemetry(traces, MeterProvider([reader]), content=content)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with served(Models(("m",), opener=lambda ref: Scripted()), telemetry=telemetry) as url:
        body = {"model": "m", "messages": HELLO, "temperature": 0.5, "seed": 3, "max_tokens": 2, "stream": True}
        httpx.post(f"{url}/v1/chat/completions", json=body, headers={"traceparent": parent})
        httpx.post(f"{url}/v1/chat/completions", json={"model": "other", "messages": HELLO})
        httpx.get(f"{url}/health")
        until = time.monotonic() + 3
        while len(spans.get_finished_spans()) < 2 and time.monotonic() < until:
            time.sleep(0.01)
    good, bad = spans.get_finished_spans()
    told = dict(good.attributes or {})
    assert good.name == "chat m"
    assert f"{good.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert (told["gen_ai.operation.name"], told["gen_ai.provider.name"]) == ("chat", "ladderlm")
    assert (told["gen_ai.request.temperature"], told["gen_ai.request.seed"]) == (0.5, 3)
    assert (told["gen_ai.request.max_tokens"], told["gen_ai.request.stream"]) == (2, True)
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (3, 2)
    assert told["gen_ai.response.finish_reasons"] == ("length",)
    assert bad.attributes is not None
    assert bad.attributes["error.type"] == "404"
    assert ("hello" in str(told)) == ("Héllo" in str(told)) == content
    if content:
        sent = json.loads(str(told["gen_ai.input.messages"]))
        assert sent == [{"role": "user", "parts": [{"type": "text", "content": "hello"}]}]
    data = reader.get_metrics_data()
    assert data is not None
    names = {m.name for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics}
    assert {"gen_ai.server.request.duration", "gen_ai.server.time_to_first_token", "gen_ai.client.token.usage"} <= names


def test_what_nobody_foresaw_has_an_id_is_counted_and_shows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Breaks(Scripted):
        def stream(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            raise RuntimeError("a secret path")
            yield

    with served(Models(("m",), opener=lambda ref: Breaks())) as url:
        answer = httpx.post(f"{url}/v1/chat/completions", json={"messages": HELLO}, headers={"x-request-id": "r9"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (500, "r9")
        assert answer.json()["error"]["message"] == "internal error"
        labels = {"method": "POST", "handler": "/v1/chat/completions", "status": "500"}
        assert told(url, "http_requests_total", **labels) == 1
        assert told(url, "vllm:request_success_total", model_name="m", finished_reason="error") == 1
    assert "a secret path" in caplog.text
