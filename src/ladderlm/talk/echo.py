"""A Chat that says back what it is told: for trying things out, and the test double that others may use."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from typing import NoReturn

from ladderlm.errors import DeadlineExceeded, UsageError
from ladderlm.talk.images import images_of
from ladderlm.types import Cancel, Candidate, Conversation, Delta, FinishReason, Sampling, Token, Usage

_WORD = re.compile(r"\s*\S+\s*?(?=\s|$)|\s+$")


class EchoChat:
    """Streams the last user message back, one word (with the space before it) a token, `delay` seconds each.

    Deterministic. Honours stop strings, max_tokens, n, logprobs (always 0: it is certain), cancel and deadline.
    """

    name = "echo"
    defaults = Sampling()

    def __init__(self, delay: float = 0.0) -> None:
        self._delay = delay

    def stream(
        self,
        conversation: Conversation,
        sampling: Sampling,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
        priority: int = 0,
    ) -> Iterator[Delta]:
        if images_of(conversation):
            raise UsageError("this model reads text only", where="echo", cure="leave out images")
        said = next((m.text for m in reversed(conversation.messages) if m.role == "user"), "")
        return self._speak(said, self.count(conversation), sampling, cancel, deadline)

    def complete(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
        priority: int = 0,
    ) -> Iterator[Delta]:
        """Says the prompt back. Raises UsageError for token ids: it has no vocabulary."""
        if not isinstance(prompt, str):
            raise UsageError("the echo model has no token ids", cure="give it text")
        return self._speak(prompt, len(_words(prompt)), sampling, cancel, deadline)

    def _speak(
        self, text: str, read: int, sampling: Sampling, cancel: Cancel | None, deadline: float | None
    ) -> Iterator[Delta]:
        cut, by = min(((at, s) for s in sampling.stop if (at := text.find(s)) >= 0), default=(len(text), ""))
        words = _words(text[:cut])
        reason: FinishReason = "stop"
        if sampling.max_tokens is not None and len(words) > sampling.max_tokens:
            words, reason, by = words[: sampling.max_tokens], "length", ""
        written = 0
        for word in words:
            if self._delay:
                cancel.wait(self._delay) if cancel is not None else time.sleep(self._delay)
            if cancel is not None and cancel.is_set():
                reason, by = "cancelled", ""
                break
            if deadline is not None and time.monotonic() > deadline:
                raise DeadlineExceeded("the deadline passed", where="echo")
            certain = None if sampling.logprobs is None else 0.0
            top = (Candidate(None, 0.0, word),) if sampling.logprobs else ()
            for index in range(sampling.n):
                written += 1
                yield Delta(index, text=word, tokens=(Token(None, certain, top, word, tuple(word.encode())),))
        for index in range(sampling.n):
            usage = Usage(read, written) if index == sampling.n - 1 else None
            yield Delta(index, finish_reason=reason, usage=usage, stopped_by=by)

    def count(self, prompt: str | Conversation) -> int:
        """How many words it reads."""
        texts = [prompt] if isinstance(prompt, str) else [m.text for m in prompt.messages]
        return sum(len(_words(text)) for text in texts)

    def next(self, prompt: str | Conversation, k: int = 10) -> list[Candidate]:
        _certain()

    def word_sums(self, prompt: str, words: Sequence[str]) -> dict[str, float]:
        _certain()

    def rank(self, prompt: str | Conversation, choices: Sequence[str]) -> list[float]:
        _certain()

    def close(self) -> None:
        """Nothing to give back."""


def _words(text: str) -> list[str]:
    """`text` cut before each run of spaces; joined they are `text` again."""
    return _WORD.findall(text)


def _certain() -> NoReturn:
    raise UsageError("the echo model has no probabilities", where="echo", cure="choose another model with -m")
