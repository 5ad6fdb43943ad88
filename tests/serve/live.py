"""A served app on a free port, and Chats that do what a test asks for."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from ladderlm.engine.scheduler import State
from ladderlm.serve.app import build_app
from ladderlm.serve.models import Models
from ladderlm.serve.run import bind
from ladderlm.talk.echo import EchoChat
from ladderlm.text.bpe import train_bpe
from ladderlm.text.render import render
from ladderlm.text.template import CHATML, ChatTemplate
from ladderlm.types import Cancel, Candidate, Conversation, Delta, FloatArray, Sampling, Token, ToolCall, Usage

WORDS = ("Hé", "llo", " wor", "ld")


def token(number: int, text: str) -> Token:
    logprob = -0.25 * (number + 1)
    top = (Candidate(number, logprob, text), Candidate(99, -3.0, " other"))
    return Token(number, logprob, top, text, tuple(text.encode()))


class Scripted:
    """Says WORDS; remembers what it was asked; reads a prompt as one token per word."""

    defaults = Sampling(temperature=0.3, top_k=7)

    def __init__(self) -> None:
        self.asked: list[tuple[Any, Sampling]] = []
        self.closed = False

    def stream(
        self,
        conversation: Conversation,
        sampling: Sampling,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
        priority: int = 0,
    ) -> Iterator[Delta]:
        self.asked.append((conversation, sampling))
        limit = len(WORDS) if sampling.max_tokens is None else sampling.max_tokens
        for index in range(sampling.n):
            for number, word in enumerate(WORDS[:limit]):
                said = token(number, word)
                if sampling.logprobs is None:
                    said = Token(number, None, (), word, said.data)
                yield Delta(index, text=word, tokens=(said,))
            yield Delta(index, finish_reason="stop" if limit >= len(WORDS) else "length")
        yield Delta(usage=Usage(3, min(limit, len(WORDS)) * sampling.n))

    def complete(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
        priority: int = 0,
    ) -> Iterator[Delta]:
        if sampling.prompt_logprobs is not None:
            words = prompt.split(" ") if isinstance(prompt, str) else [f"<{i}>" for i in prompt]
            texts = [words[0], *(f" {w}" for w in words[1:])] if isinstance(prompt, str) else words
            start = (Token(0, None, (), "<start>", tuple(b"<start>")),) if isinstance(prompt, str) else ()
            yield Delta(prompt=(*start, *(token(i, t) for i, t in enumerate(texts))))
        yield from self.stream(Conversation.of("raw"), sampling)

    def next(self, prompt: str, k: int = 10) -> list[Candidate]:
        return [Candidate(i, -float(i + 1), f" w{i}") for i in range(k)]

    def close(self) -> None:
        self.closed = True


class Acting:
    """Says the Deltas of `script`, whatever it is asked; remembers what it was asked."""

    def __init__(self, *script: Delta) -> None:
        self.script = script
        self.asked: list[tuple[Conversation, Sampling]] = []

    def stream(
        self,
        conversation: Conversation,
        sampling: Sampling,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
        priority: int = 0,
    ) -> Iterator[Delta]:
        self.asked.append((conversation, sampling))
        yield from self.script


def calling() -> Acting:
    """Thinks, speaks, and calls two tools, the first in pieces; its tokens have log-probabilities."""
    return Acting(
        Delta(part="reasoning", text="hm", tokens=(token(0, "hm"),)),
        Delta(text="Let me ", tokens=(token(1, "Let me "),)),
        Delta(text="look.", tokens=(token(2, "look."),)),
        Delta(part="tool_call", call=ToolCall("c1", "look", ""), tokens=(token(3, "<call>"),)),
        Delta(part="tool_call", call=ToolCall("c1", "look", '{"q": '), tokens=(token(4, '{"q": '),)),
        Delta(part="tool_call", call=ToolCall("c1", "look", '"é"}'), tokens=(token(5, '"é"}'),)),
        Delta(part="tool_call", call=ToolCall("c2", "ask", "{}"), tokens=(token(6, "{}"),)),
        Delta(finish_reason="tool_calls"),
        Delta(usage=Usage(3, 7)),
    )


class Able(EchoChat):
    """An echo that has what every route asks for: a tokenizer, vectors, a next-token table, a middle."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = train_bpe(["one two three four"], 300)
        self.engine = SimpleNamespace(context_length=512, state=State(0, 0, 0.0))
        self.files = SimpleNamespace(template=ChatTemplate(CHATML))
        self.embedder = SimpleNamespace(ids=self.prompt_ids, embed=self._vectors)

    def prompt_ids(self, prompt: str) -> list[int]:
        return self.tokenizer.encode(prompt)

    def conversation_ids(self, conversation: Conversation, *, add_generation_prompt: bool = True) -> list[int]:
        template = self.files.template
        return render(conversation, self.tokenizer, template, add_generation_prompt=add_generation_prompt).ids

    def _vectors(self, rows: Sequence[Sequence[int]], dimensions: int | None = None) -> FloatArray:
        return np.ones((len(rows), min(dimensions or 8, 8)), np.float32)

    def next(self, prompt: str | Conversation, k: int = 10) -> list[Candidate]:
        return [Candidate(i, -float(i + 1), f" w{i}") for i in range(k)]

    def between(self, prompt: str | Sequence[int], suffix: str) -> tuple[int, ...]:
        return (1, 2)

    def complete(self, prompt: str | Sequence[int], sampling: Sampling, **settings: Any) -> Iterator[Delta]:
        text = prompt if isinstance(prompt, str) else self.tokenizer.decode(i for i in prompt if i < 256)
        if sampling.prompt_logprobs is not None:
            yield Delta(prompt=(token(0, text),))
        yield from super().complete(text, sampling, **settings)


class Endless:
    """Talks until it is cancelled or closed, and says so."""

    def __init__(self) -> None:
        self.said = 0
        self.ended = threading.Event()

    def stream(
        self,
        conversation: Conversation,
        sampling: Sampling,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
        priority: int = 0,
    ) -> Iterator[Delta]:
        try:
            while not (cancel and cancel.is_set()):
                self.said += 1
                yield Delta(text="more ")
                time.sleep(0.005)
        finally:
            self.ended.set()


@contextlib.contextmanager
def served(models: Models, **settings: Any) -> Iterator[str]:
    """The base URL of an app that answers while the block runs."""
    import uvicorn

    listening = bind("127.0.0.1", 0)
    app = build_app(models, **settings)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="on", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()
