"""A local model as a Chat: rendering before the engine, detokenising after it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from ladderlm.engine import load_embedder
from ladderlm.errors import UsageError
from ladderlm.models.reference import open_adapter, open_model
from ladderlm.talk.telling import Saying, Telling
from ladderlm.text.detokenise import Detokeniser
from ladderlm.text.middle import middle_ids
from ladderlm.text.render import Rendered, render
from ladderlm.text.template import ChatTemplate
from ladderlm.text.tools import fitted
from ladderlm.types import Cancel, Candidate, Conversation, Delta, Sampling, Usage

if TYPE_CHECKING:
    from ladderlm.engine.embed import Embedder
    from ladderlm.engine.engine import Engine
    from ladderlm.models.folder import ModelFiles

DEFAULTS = Sampling(temperature=0.7, top_p=0.95)
_KNOWN = ("temperature", "top_p", "top_k", "min_p", "typical", "repetition_penalty")
_NUMBERS = itertools.count()  # of adapters: each chat has its own, for a folder may be replaced while it is in use
_THEIRS = {"typical_p": "typical"}  # generation_config.json's names, where they differ


class LocalChat:
    """A model's files and an engine that holds its weights, speaking text."""

    def __init__(
        self,
        files: ModelFiles,
        engine: Engine,
        *,
        adapter: str | None = None,
        release: Callable[[], None] | None = None,
    ) -> None:
        """With `adapter`, a name that `engine` knows, everything is said through it. Closing calls `release`, which is
        to close the engine unless others share it."""
        self.files, self.engine, self.adapter = files, engine, adapter
        self.tokenizer = files.tokenizer
        self._tokens_with = functools.lru_cache(16)(self._holding)
        self._release = release or engine.close

    def adapted(self, ref: str, path: Path, release: Callable[[], None]) -> LocalChat:
        """Another chat, `ref`, on the same engine: it speaks through the adapter in the folder `path`.

        Closing it takes the adapter away and calls `release`. Raises FormatError where the adapter does not fit.
        """
        opened = open_adapter(ref, self.files, path)
        name = f"{path}#{next(_NUMBERS)}"
        self.engine.add_adapter(name, opened.adapter)

        def close() -> None:
            self.engine.remove_adapter(name)
            release()

        return LocalChat(opened.files, self.engine, adapter=name, release=close)

    @property
    def name(self) -> str:
        return self.files.name

    @property
    def defaults(self) -> Sampling:
        """The model's own generation settings over ours."""
        told = {_THEIRS.get(k, k): v for k, v in self.files.generation.items() if v is not None}
        if told.get("do_sample") is False:
            return dataclasses.replace(DEFAULTS, temperature=0.0, top_p=1.0)
        return dataclasses.replace(DEFAULTS, **{k: v for k, v in told.items() if k in _KNOWN})

    def stream(
        self,
        conversation: Conversation,
        sampling: Sampling,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
        priority: int = 0,
    ) -> Iterator[Delta]:
        """The answer to a conversation; a last assistant message is continued.

        Reasoning and tool calls come as parts of their own, calls in the form that the model's template writes.
        """
        rendered = self._rendered(conversation)
        telling = Telling.of(self._template, self.tokenizer, conversation, rendered.text, sampling)
        sampling = dataclasses.replace(sampling, response_format=telling.form)
        return self._speak(rendered.ids, sampling, cancel, deadline, priority, telling)

    def complete(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
        priority: int = 0,
    ) -> Iterator[Delta]:
        """Raw continuation of text (after the document-start token) or of ids as they are."""
        ids = self.prompt_ids(prompt) if isinstance(prompt, str) else list(prompt)
        return self._speak(ids, sampling, cancel, deadline, priority)

    def between(self, prompt: str | Sequence[int], suffix: str) -> list[int]:
        """What to `complete` so that the text between is written. UsageError where the model has not learnt it."""
        before = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        return middle_ids(self.tokenizer, before, self.tokenizer.encode(suffix, continues=True))

    def count(self, prompt: str | Conversation) -> int:
        """How many tokens of it the model reads."""
        return len(self._ids(prompt))

    def prompt_ids(self, prompt: str) -> list[int]:
        start = self.tokenizer.document_start_id
        return ([] if start is None else [start]) + self.tokenizer.encode(prompt)

    def _speak(
        self,
        ids: list[int],
        sampling: Sampling,
        cancel: Cancel | None,
        deadline: float | None,
        priority: int,
        telling: Telling | None = None,
    ) -> Iterator[Delta]:
        inner = dataclasses.replace(
            sampling, stop=(), stop_ids=tuple(dict.fromkeys((*sampling.stop_ids, *self.tokenizer.stop_ids)))
        )
        if sampling.dry_multiplier:
            breakers = (*sampling.dry_breaker_ids, *self._tokens_with(sampling.dry_breakers))
            inner = dataclasses.replace(inner, dry_breakers=(), dry_breaker_ids=breakers)
        choices = [Saying(self.tokenizer, sampling.stop, i, telling) for i in range(sampling.n)]
        tokens, running, usage = 0, set(range(sampling.n)), None
        stream = cast(
            "Generator[Delta]",
            self.engine.generate(ids, inner, cancel=cancel, deadline=deadline, priority=priority, adapter=self.adapter),
        )
        with contextlib.closing(stream):
            for delta in stream:
                usage = delta.usage or usage
                if delta.prompt:
                    reader = Detokeniser(self.tokenizer)
                    yield Delta(prompt=tuple(reader.feed(t)[1] for t in delta.prompt))
                if delta.index not in running or not (delta.tokens or delta.finish_reason):
                    continue
                tokens += len(delta.tokens)
                for said in choices[delta.index].say(delta):
                    if said.finish_reason:
                        running.discard(delta.index)
                    yield said
                if not running and usage is None and any(c.stopped for c in choices):
                    break  # a stop string ended the last choice: the engine need not go on
        yield Delta(usage=usage or Usage(len(ids), tokens))

    @functools.cached_property
    def embedder(self) -> Embedder:
        """The same model as one that turns texts into vectors: a second copy of its weights, as float32.

        UsageError for a tuned prompt or prefix.
        """
        return load_embedder(self.files if self.adapter is None else open_model(self.files.ref))

    def next(self, prompt: str | Conversation, k: int = 10) -> list[Candidate]:
        """The `k` likeliest next tokens of raw text, or of the answer to a conversation."""
        logprobs_V = self._logprobs(self._ids(prompt))
        best = np.argsort(-logprobs_V, kind="stable")[:k]
        return [Candidate(int(i), float(logprobs_V[i]), self._text(int(i))) for i in best]

    def word_sums(self, prompt: str, words: Sequence[str]) -> dict[str, float]:
        """Probability that the text goes on with each whole word, over however many tokens the word takes.

        The product over the word's tokens, times the probability that what follows does not continue the word.
        """
        (prefix, lead), out = self._before(prompt), {}
        inside = self._inside_word
        for word in words:
            if not (ids := self.tokenizer.encode(lead + word)):
                raise UsageError("a word is empty")
            spelled = math.fsum(self.engine.score(prefix, [ids], adapter=self.adapter)[0])
            after_V = np.exp(self._logprobs(prefix + ids))
            out[word] = math.exp(spelled) * float(1 - after_V[inside].sum())
        return out

    def rank(self, prompt: str | Conversation, choices: Sequence[str]) -> list[float]:
        """Log-likelihood of each choice as the answer (a conversation) or as the continuation (text)."""
        if not choices:
            raise UsageError("no choices to rank")
        ids, lead = (self._ids(prompt), "") if isinstance(prompt, Conversation) else self._before(prompt)
        continuations = [self.tokenizer.encode(lead + c) for c in choices]
        if not all(continuations):
            raise UsageError("a choice is empty")
        return [math.fsum(row) for row in self.engine.score(ids, continuations, adapter=self.adapter)]

    def close(self) -> None:
        release, self._release = self._release, lambda: None
        release()

    def _ids(self, prompt: str | Conversation) -> list[int]:
        if isinstance(prompt, str):
            return self.prompt_ids(prompt)
        return self._rendered(prompt).ids

    def conversation_ids(self, conversation: Conversation, *, add_generation_prompt: bool = True) -> list[int]:
        """What the model reads of a conversation: up to where the answer begins, or, for training, all of it."""
        fit = fitted(conversation, self._template)
        return render(fit, self.tokenizer, self._template, add_generation_prompt=add_generation_prompt).ids

    def _rendered(self, conversation: Conversation) -> Rendered:
        return render(fitted(conversation, self._template), self.tokenizer, self._template)

    @property
    def _template(self) -> ChatTemplate:
        if self.files.template is None:
            cure = "give it raw text (ask --raw), or fine-tune it for chat"
            raise UsageError("this model has no chat template", where=self.name, cure=cure)
        return self.files.template

    def _before(self, prompt: str) -> tuple[list[int], str]:
        """The prompt's ids, and the space that a word after it begins with.

        A space at the prompt's end moves to the word: vocabularies hold " word", rarely " " and "word".
        """
        if prompt.endswith(" ") and prompt.strip():
            return self.prompt_ids(prompt[:-1]), " "
        return self.prompt_ids(prompt), "" if not prompt or prompt[-1].isspace() else " "

    @functools.cached_property
    def _inside_word(self) -> np.ndarray:
        """Which tokens of the vocabulary would continue a word rather than begin or end one."""
        first = [self.tokenizer.token_bytes(i)[:1] for i in range(self.tokenizer.vocab_size)]
        wordlike = [bool(b) and (b.isalnum() or b >= b"\x80" or b == b"'") for b in first]
        return np.array(wordlike + [False] * (self.engine.vocab_size - len(wordlike)))

    def _holding(self, texts: tuple[str, ...]) -> tuple[int, ...]:
        """Tokens whose text holds one of `texts`."""
        return tuple(i for i in range(self.tokenizer.vocab_size) if any(t in self._text(i) for t in texts))

    def _logprobs(self, ids: Sequence[int]) -> np.ndarray:
        row_V = self.engine.next_logits(ids, adapter=self.adapter).astype(np.float64)
        row_V -= row_V.max()
        return row_V - math.log(np.exp(row_V).sum())

    def _text(self, id: int) -> str:
        return self.tokenizer.token_bytes(id).decode("utf-8", "replace")
