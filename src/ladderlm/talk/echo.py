"""A Chat that says back what it heard: the public test double, so that applications are tested without a model."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from ladderlm.errors import DeadlineExceeded
from ladderlm.types import Cancel, Conversation, Delta, Sampling, Token, Usage


class EchoChat:
    """Streams the last user message back word by word. A word counts as a token and has probability 1."""

    name = "echo"
    defaults = Sampling()

    def stream(
        self,
        conversation: Conversation,
        sampling: Sampling,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
    ) -> Iterator[Delta]:
        heard = next((m.text for m in reversed(conversation.messages) if m.role == "user"), "")
        return self._say(heard, sum(len(m.text.split()) for m in conversation.messages), sampling, cancel, deadline)

    def complete(
        self, prompt: str, sampling: Sampling, *, cancel: Cancel | None = None, deadline: float | None = None
    ) -> Iterator[Delta]:
        return self._say(prompt, len(prompt.split()), sampling, cancel, deadline)

    def close(self) -> None:
        """Nothing to let go of."""

    def _say(
        self, text: str, heard: int, sampling: Sampling, cancel: Cancel | None, deadline: float | None
    ) -> Iterator[Delta]:
        cut = min((at for s in sampling.stop if (at := text.find(s)) >= 0), default=len(text))
        words = re.findall(r"\s*\S+|\s+", text[:cut])
        limit = len(words) if sampling.max_tokens is None else min(len(words), sampling.max_tokens)
        said = 0
        for index in range(sampling.n):
            reason = "stop" if limit == len(words) else "length"
            for word in words[:limit]:
                if deadline is not None and time.monotonic() > deadline:
                    raise DeadlineExceeded("the deadline passed", where="echo")
                if cancel is not None and cancel.is_set():
                    reason = "cancelled"
                    break
                said += 1
                yield Delta(index, text=word, tokens=(Token(None, 0.0, text=word, data=tuple(word.encode())),))
            yield Delta(index, finish_reason=reason)  # type: ignore[arg-type]
        yield Delta(usage=Usage(heard, said))
