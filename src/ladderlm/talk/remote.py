"""Any OpenAI-compatible server as a Chat: hosted APIs, vLLM, llama-server, Ollama, or another LadderLM.

The key is read from the environment when a request is made, goes to the host it was given for and no other
(redirects are not followed), and is never logged. Connections are not reused: some servers close idle ones.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

from ladderlm import events
from ladderlm.errors import (
    AuthError, Cancelled, DeadlineExceeded, FormatError, LadderError, NetworkError, NotFound, Overloaded, UsageError,
)  # fmt: skip
from ladderlm.talk.prices import price
from ladderlm.text.render import wire_messages, wire_tool
from ladderlm.types import Cancel, Candidate, Conversation, Delta, Sampling, Token, Usage

RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})
TRIES = 4
LONGEST_WAIT = 60.0
TIMEOUT = httpx.Timeout(600.0, connect=10.0)


class RemoteChat:
    """`model` on the server at `url` (".../v1" or the host alone). Without `model`, the server's first is taken."""

    def __init__(self, url: str, model: str = "", *, key_env: str = "OPENAI_API_KEY") -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError("not an http(s) URL", where=url, cure="such as http://127.0.0.1:8000#model")
        if parts.username or parts.password:
            raise UsageError("a key does not belong in a URL", cure=f"put it in the environment as {key_env}")
        base = url.rstrip("/")
        self._base = base if parts.path.strip("/") else f"{base}/v1"
        self._key_env = key_env
        self._client = httpx.Client(timeout=TIMEOUT, limits=httpx.Limits(max_keepalive_connections=0))
        self.name = model or self._first_model()
        self.defaults = Sampling()

    def close(self) -> None:
        self._client.close()

    # --- The Chat protocol ----------------------------------------------------------------------------------------

    def stream(
        self,
        conversation: Conversation,
        sampling: Sampling,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
    ) -> Iterator[Delta]:
        """The answer, as the server sends it."""
        body: dict[str, Any] = {"messages": wire_messages(conversation)}
        if conversation.tools:
            body["tools"] = [wire_tool(t.name, t.description, t.parameters) for t in conversation.tools]
        body |= _sampling(sampling)
        if sampling.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": sampling.logprobs}
        yield from self._deltas("/chat/completions", body, _chat_delta, cancel, deadline)

    def complete(
        self, prompt: str, sampling: Sampling, *, cancel: Cancel | None = None, deadline: float | None = None
    ) -> Iterator[Delta]:
        """Raw continuation of text through the older completions route."""
        body = {"prompt": prompt, **_sampling(sampling)}
        if sampling.logprobs is not None:
            body["logprobs"] = sampling.logprobs
        yield from self._deltas("/completions", body, _text_delta, cancel, deadline)

    def next(self, prompt: str, k: int = 10) -> list[Candidate]:
        """The likeliest next tokens of raw text, as many as the server tells (OpenAI's own: at most 5)."""
        body = {"model": self.name, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": k}
        choice = self._post("/completions", body)["choices"][0]
        tables = (choice.get("logprobs") or {}).get("top_logprobs") or []
        if not tables:
            raise NotFound("the server tells no log-probabilities", where=self._base, cure="use a local model")
        rows = sorted(tables[0].items(), key=lambda item: -item[1])
        return [Candidate(None, float(logprob), text) for text, logprob in rows[:k]]

    def rank(self, prompt: str | Conversation, choices: Sequence[str]) -> list[float]:
        """Log-likelihood of each choice after raw text; the server must support echo with logprobs.

        Raises UsageError for a conversation: chat routes do not score given answers.
        """
        if isinstance(prompt, Conversation):
            raise UsageError("a remote cannot score given answers in a chat", cure="use --raw, or a local model")
        return [self._likelihood(prompt, choice if prompt[-1:].isspace() else " " + choice) for choice in choices]

    def _likelihood(self, prompt: str, choice: str) -> float:
        body = {"model": self.name, "prompt": prompt + choice, "max_tokens": 0, "temperature": 0, "logprobs": 0, "echo": True}
        found = self._post("/completions", body)["choices"][0].get("logprobs") or {}
        logprobs, offsets = found.get("token_logprobs") or [], found.get("text_offset") or []
        scored = [lp for lp, at in zip(logprobs, offsets, strict=False) if at >= len(prompt) and lp is not None]
        if not scored:
            raise NotFound("the server scores no given text", where=self._base, cure="it lacks echo with logprobs")
        return math.fsum(scored)

    # --- HTTP -----------------------------------------------------------------------------------------------------

    def _first_model(self) -> str:
        try:
            return str(self._request("GET", "/models").json()["data"][0]["id"])
        except (LookupError, TypeError, ValueError):
            raise NotFound("the server lists no model", where=self._base, cure="name one: URL#model") from None

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            found = self._request("POST", path, body).json()
            found["choices"][0]  # noqa: B018 - every caller reads it
        except (LookupError, TypeError, ValueError):
            raise FormatError("the server's answer is not what the API says", where=self._base + path) from None
        return dict(found)

    def _deltas(
        self, path: str, body: dict[str, Any], parse: Any, cancel: Cancel | None, deadline: float | None
    ) -> Iterator[Delta]:
        body = {"model": self.name, **body, "stream": True, "stream_options": {"include_usage": True}}
        with contextlib.closing(self._request("POST", path, body, deadline=deadline, cancel=cancel)) as response:
            for event in _events(response):
                if cancel is not None and cancel.is_set():
                    yield Delta(finish_reason="cancelled")
                    return
                if deadline is not None and time.monotonic() > deadline:
                    raise DeadlineExceeded("the deadline passed", where=self._base)
                if isinstance(event.get("error"), Mapping):
                    raise NetworkError(str(event["error"].get("message", "error")), where=self._base)
                for choice in event.get("choices") or ():
                    yield parse(choice)
                if usage := event.get("usage"):
                    yield Delta(usage=self._usage(usage))

    def _usage(self, usage: Mapping[str, Any]) -> Usage:
        read, written = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        return Usage(read, written, cached, price(self.name, read, written))

    def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
    ) -> httpx.Response:
        """The response, its body unread if it streams; tried again with growing pauses while that can help."""
        key = os.environ.get(self._key_env)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        stream = bool(body and body.get("stream"))
        for attempt in range(TRIES):
            error: LadderError
            wait = min(LONGEST_WAIT, 0.5 * 2**attempt * random.uniform(0.75, 1.25))
            try:
                request = self._client.build_request(method, self._base + path, json=body, headers=headers)
                response = self._client.send(request, stream=stream)
            except httpx.TransportError as problem:
                error = NetworkError(
                    f"cannot reach the server: {problem or type(problem).__name__}", where=self._base,
                    cure="is it running, and is the address right?",
                )  # fmt: skip
                if isinstance(problem, httpx.ConnectError):
                    raise error from None
            else:
                if response.is_success:
                    return response
                response.read()
                response.close()
                error = self._refusal(response)
                if response.status_code not in RETRIED:
                    raise error
                wait = _retry_after(response, wait)
            last = attempt == TRIES - 1 or (deadline is not None and time.monotonic() + wait > deadline)
            if last:
                raise error
            events.emit("remote", f"{error.what}; trying again in {wait:.1f} s")
            if cancel is not None and cancel.wait(wait):
                raise Cancelled("cancelled while waiting to try again", where=self._base)
            if cancel is None:
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _refusal(self, response: httpx.Response) -> LadderError:
        status = response.status_code
        try:
            found = response.json()["error"]
            said = str(found.get("message") if isinstance(found, Mapping) else found)
        except (LookupError, TypeError, ValueError, AttributeError):
            said = response.reason_phrase or f"status {status}"
        where = f"{self._base}, status {status}"
        if status in (401, 403):
            return AuthError(said, where=where, cure=f"put the server's key into the environment as {self._key_env}")
        if status == 404:
            return NotFound(said, where=where, cure="check the model's name and the address")
        if status == 429:
            return Overloaded(said, where=where, cure="wait, or lower the concurrency")
        if 400 <= status < 500:
            return UsageError(said, where=where)
        if status < 400:
            return NetworkError("the server redirects", where=where, cure="give the address it redirects to")
        return NetworkError(said, where=where)


def _retry_after(response: httpx.Response, default: float) -> float:
    try:
        return min(LONGEST_WAIT, max(0.0, float(response.headers["retry-after"])))
    except (KeyError, ValueError):
        return default


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The JSON of each server-sent event, to "[DONE]"."""
    try:
        for line in response.iter_lines():
            if not line.startswith("data:"):
                continue
            data = line[5:].strip()
            if data == "[DONE]":
                return
            event = json.loads(data)
            if isinstance(event, dict):
                yield event
    except httpx.TransportError as problem:
        raise NetworkError("the connection broke in mid-answer", where=str(problem) or type(problem).__name__) from None
    except ValueError:
        raise FormatError("the server's stream is not JSON", where=str(response.url)) from None


def _sampling(s: Sampling) -> dict[str, Any]:
    """The settings that differ from their defaults; ours beyond OpenAI's have the names vLLM gave them."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
             "max_tokens", "min_tokens", "seed", "n", "best_of", "response_format")  # fmt: skip
    default = Sampling()
    body = {name: getattr(s, name) for name in names if getattr(s, name) != getattr(default, name)}
    if s.stop:
        body["stop"] = list(s.stop)
    if s.logit_bias:
        body["logit_bias"] = {str(i): bias for i, bias in s.logit_bias}
    return body


def _chat_delta(choice: Mapping[str, Any]) -> Delta:
    delta = choice.get("delta") or {}
    index, reason = int(choice.get("index") or 0), choice.get("finish_reason")
    if thought := delta.get("reasoning_content") or delta.get("reasoning"):
        return Delta(index, "reasoning", str(thought), finish_reason=reason)
    if delta.get("tool_calls"):
        return Delta(index, "tool_call", json.dumps(delta["tool_calls"]), finish_reason=reason)
    rows = (choice.get("logprobs") or {}).get("content") or ()
    tokens = tuple(
        Token(
            None, row["logprob"], tuple(Candidate(None, t["logprob"], t["token"]) for t in row.get("top_logprobs") or ()),
            row["token"], tuple(row.get("bytes") or ()),
        )
        for row in rows
    )  # fmt: skip
    return Delta(index, text=delta.get("content") or "", tokens=tokens, finish_reason=reason)


def _text_delta(choice: Mapping[str, Any]) -> Delta:
    found = choice.get("logprobs") or {}
    tables = found.get("top_logprobs") or [{}] * len(found.get("tokens") or ())
    rows = zip(found.get("tokens") or (), found.get("token_logprobs") or (), tables, strict=False)
    tokens = tuple(
        Token(None, logprob, tuple(Candidate(None, lp, t) for t, lp in (table or {}).items()), text, tuple(text.encode()))
        for text, logprob, table in rows
    )
    return Delta(int(choice.get("index") or 0), text=choice.get("text") or "", tokens=tokens,
                 finish_reason=choice.get("finish_reason"))  # fmt: skip
