"""Any OpenAI-compatible server as a Chat: hosted APIs, vLLM, llama-server, Ollama, or another LadderLM."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from ladderlm.errors import Cancelled, FormatError, NetworkError, NotFound, UsageError
from ladderlm.talk.images import data_url, images_of
from ladderlm.talk.prices import Budget, price
from ladderlm.talk.transport import ATTEMPTS, Transport
from ladderlm.talk.wire import Reader, chat_body, completion_body
from ladderlm.types import Cancel, Candidate, Conversation, Delta, Sampling, Token

DEFAULT_KEY = "OPENAI_API_KEY"
_TOP = 20  # the most alternatives that servers tell of one token
_UNLIMITED = 2048  # tokens of raw text where no limit was named: that route's own default is 16
_TURN = 16  # tokens around one message, at most
_IMAGE = 50_000  # tokens that an image may be counted as: what it costs is told by the usage


class RemoteChat:
    """`model` on the server at `url` (".../v1" or the host alone). Without `model`, the server's only or first one.

    The key is read from the environment variable `key_env` when a request is made, goes to this host and no other
    (redirects are not followed), and is never logged. `max_cost` stops before more than that would be spent.
    """

    def __init__(
        self,
        url: str,
        model: str = "",
        *,
        key_env: str = DEFAULT_KEY,
        max_cost: float | None = None,
        attempts: int = ATTEMPTS,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError("not an http(s) URL", where=url, cure="such as http://127.0.0.1:8000#model")
        if parts.username or parts.password:
            raise UsageError("a key does not belong in a URL", cure=f"put it into the environment as {key_env}")
        base = url.rstrip("/")
        self._http = Transport(base if parts.path.strip("/") else f"{base}/v1", key_env, attempts)
        # OpenAI's newer models refuse the old name, many other servers do not know the new one.
        self._limit = "max_completion_tokens" if parts.hostname.endswith("openai.com") else "max_tokens"
        self.name = model or self._first_model()
        self.defaults = Sampling()
        self._budget = None if max_cost is None else Budget(max_cost, self.name)

    def close(self) -> None:
        self._http.close()

    # --- The Chat protocol ----------------------------------------------------------------------------------------

    def stream(
        self,
        conversation: Conversation,
        sampling: Sampling,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
        priority: int = 0,
    ) -> Iterator[Delta]:
        """The answer, as the server sends it. The usage (with its cost, where the price is known) comes last.

        A `priority` goes out as vLLM's field of that name, where the lowest number comes first.
        """
        size = sum(_TURN + len(m.text.encode()) for m in conversation.messages)
        size += sum(len(str(t.to_dict()).encode()) for t in conversation.tools) + _IMAGE * len(images_of(conversation))

        def body(paid: Sampling) -> dict[str, Any]:
            return chat_body(self.name, conversation, paid, self._limit, priority, data_url)

        return self._deltas("/chat/completions", body, size, sampling, cancel, deadline)

    def complete(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
        priority: int = 0,
    ) -> Iterator[Delta]:
        """Raw continuation of text (or of the server's own token ids) through the older completions route."""
        if sampling.max_tokens is None:
            sampling = dataclasses.replace(sampling, max_tokens=_UNLIMITED)
        size = len(prompt.encode() if isinstance(prompt, str) else prompt) + _TURN

        def body(paid: Sampling) -> dict[str, Any]:
            return completion_body(self.name, prompt, paid, priority)

        stream = self._deltas("/completions", body, size, sampling, cancel, deadline)
        return stream if sampling.prompt_logprobs is None else _echoed(stream, prompt)

    # --- Probabilities --------------------------------------------------------------------------------------------

    def next(self, prompt: str | Conversation, k: int = 10) -> list[Candidate]:
        """The likeliest next tokens, as many as the server tells (usually at most 20, OpenAI's raw route 5)."""
        drawn = Sampling(max_tokens=1, logprobs=min(k, _TOP) if isinstance(prompt, Conversation) else k)
        deltas = self.stream(prompt, drawn) if isinstance(prompt, Conversation) else self.complete(prompt, drawn)
        token = next((t for d in deltas for t in d.tokens), None)
        if token is None or not token.top:
            raise NotFound("the server tells no log-probabilities", where=self._http.host, cure="use a local model")
        return list(token.top[:k])

    def rank(self, prompt: str | Conversation, choices: Sequence[str]) -> list[float]:
        """Log-likelihood of each choice.

        After raw text: of all its tokens (the server must support echo with logprobs). In a chat, where no server
        scores given answers: of the first token alone, which must tell the choices apart; one that is not among the
        likeliest 20 gets the most it can have.
        """
        if not choices or not all(choices):
            raise UsageError("a choice is empty" if choices else "no choices to rank")
        if isinstance(prompt, Conversation):
            return _by_first_token(self.next(prompt, _TOP), choices)
        return [self._score(prompt, choice)[0] for choice in choices]

    def word_sums(self, prompt: str, words: Sequence[str]) -> dict[str, float]:
        """Probability that the text goes on with each whole word: the product over the word's tokens, times the
        probability that what follows does not continue the word (as far as the server tells that)."""
        out = {}
        for word in words:
            spelled, after = self._score(prompt, word, peek=True)
            inside = math.fsum(math.exp(c.logprob) for c in after if c.text[:1].isalnum() or c.text[:1] == "'")
            out[word] = math.exp(spelled) * max(0.0, 1 - inside)
        return out

    def _score(self, prompt: str, continuation: str, peek: bool = False) -> tuple[float, tuple[Candidate, ...]]:
        """Log-likelihood of `continuation`, and if `peek` what may follow it."""
        lead = "" if not prompt or prompt[-1:].isspace() else " "
        drawn = Sampling(temperature=0, max_tokens=int(peek), logprobs=_TOP if peek else 0, prompt_logprobs=0)
        read: list[Token] = []
        after: tuple[Candidate, ...] = ()
        for delta in self.complete(prompt + lead + continuation, drawn):
            read += delta.prompt
            after = delta.tokens[0].top if delta.tokens else after
        at, scored = 0, []
        for token in read:
            at += len(token.text)
            if at > len(prompt) and token.logprob is not None:
                scored.append(token.logprob)
        if not scored:
            raise NotFound(
                "the server scores no given text (it lacks echo with logprobs)", where=self._http.host,
                cure="use a local model",
            )  # fmt: skip
        return math.fsum(scored), after

    # --- Vectors and lists ----------------------------------------------------------------------------------------

    def embed(
        self, documents: Sequence[str | Sequence[int]], dimensions: int | None = None
    ) -> tuple[list[list[float]], int]:
        """A vector for each document, and the tokens that were read."""
        texts = [document if isinstance(document, str) else list(document) for document in documents]
        body: dict[str, Any] = {"model": self.name, "input": texts, "encoding_format": "float"}
        found = self._http.call("/embeddings", body if dimensions is None else body | {"dimensions": dimensions})
        try:
            rows = [list(map(float, row["embedding"])) for row in sorted(found["data"], key=lambda r: int(r["index"]))]
            return rows, int((found.get("usage") or {}).get("prompt_tokens") or 0)
        except (LookupError, TypeError, ValueError):
            raise FormatError("the server's vectors are not in the OpenAI form", where=self._http.host) from None

    def models(self) -> list[str]:
        """What the server lists."""
        try:
            return [str(row["id"]) for row in self._http.get("/models")["data"]]
        except (LookupError, TypeError):
            raise FormatError("the server's list of models is not in the OpenAI form", where=self._http.host) from None

    # --- The rest -------------------------------------------------------------------------------------------------

    def _deltas(
        self,
        path: str,
        body: Callable[[Sampling], dict[str, Any]],
        size: int,
        sampling: Sampling,
        cancel: Cancel | None,
        deadline: float | None,
    ) -> Iterator[Delta]:
        """One request; `size` bounds its prompt's tokens. A request that broke off counts as costing all it could."""
        count = sampling.best_of or sampling.n
        claimed, allowed = self._budget.claim(size, sampling.max_tokens, count) if self._budget else (0.0, None)
        cost = 0.0
        try:
            if self._budget:
                sampling = dataclasses.replace(sampling, max_tokens=allowed)
            reader = Reader()
            with contextlib.closing(self._http.post(path, body(sampling), cancel=cancel, deadline=deadline)) as chunks:
                try:
                    for chunk in chunks:
                        cost = claimed if not reader.finished else cost
                        for delta in reader.read(chunk):
                            if delta.usage is not None:
                                paid = price(self.name, delta.usage.prompt_tokens, delta.usage.completion_tokens)
                                cost = paid or 0.0
                                delta = dataclasses.replace(delta, usage=dataclasses.replace(delta.usage, cost=paid))
                            yield delta
                except Cancelled:
                    for index in sorted({*range(sampling.n)} - reader.finished):
                        yield Delta(index, finish_reason="cancelled")
                    return
            if not reader.finished:
                raise NetworkError("the answer broke off", where=self._http.host, cure="try again")
        finally:
            if self._budget:
                self._budget.settle(claimed, cost)

    def _first_model(self) -> str:
        try:
            return str(self._http.get("/models")["data"][0]["id"])
        except (LookupError, TypeError):
            raise NotFound("the server lists no model", where=self._http.host, cure="name one: URL#model") from None


def _echoed(stream: Iterator[Delta], prompt: str | Sequence[int]) -> Iterator[Delta]:
    """Splits an echoed prompt, in the first choice, from what was written after it."""
    length = len(prompt) if isinstance(prompt, str) else None
    told = False
    for delta in stream:
        if not delta.text and not delta.tokens:
            yield delta
            continue
        at = count = 0
        for count, token in enumerate(delta.tokens):
            if at >= length if length is not None else count >= len(prompt):
                break
            at += len(token.text)
        else:
            count = len(delta.tokens)
        if not told:
            yield Delta(delta.index, prompt=delta.tokens[:count])
            told = True
        text = delta.text[length if length is not None else at :]
        yield dataclasses.replace(delta, text=text, tokens=delta.tokens[count:])


def _by_first_token(table: Sequence[Candidate], choices: Sequence[str]) -> list[float]:
    """The log-probability that an answer begins as each choice does; "Yes" counts for "yes"."""
    rest = 1 - math.fsum(math.exp(c.logprob) for c in table)
    most = min(math.log(max(rest, 1e-12)), table[-1].logprob)
    mass = [0.0] * len(choices)
    for candidate in table:
        begun = candidate.text.strip().casefold()
        claims = [i for i, choice in enumerate(choices) if begun and choice.strip().casefold().startswith(begun)]
        if len(claims) > 1:
            raise UsageError(
                f"the choices begin alike ({begun!r}), and a remote chat tells first tokens only",
                cure="use choices that differ in their first letters, --raw, or a local model",
            )
        for i in claims:
            mass[i] += math.exp(candidate.logprob)
    if not any(mass):
        what = f"no choice begins with one of the {len(table)} likeliest tokens"
        raise UsageError(what, where=", ".join(choices), cure="name the choices in the question, or use --raw")
    return [math.log(m) if m else most for m in mass]
