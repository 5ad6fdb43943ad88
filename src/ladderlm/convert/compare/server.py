"""A model's files against a server that claims to run it (url#model): what can be seen through the OpenAI wire.

Log-probabilities of given text (echo on /v1/completions) show the tokenizer and the weights; a chat's prompt length
and the probabilities of its first token show the template; greedy answers show where it ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ladderlm import engine, events
from ladderlm.convert.compare.cells import rounding
from ladderlm.convert.compare.logits import PROMPTS, ROOM, TEXT, text_ids
from ladderlm.convert.compare.text import TEXTS
from ladderlm.convert.compare.verdict import Check, failed, passed, skipped
from ladderlm.engine.engine import Engine
from ladderlm.engine.reference import ReferenceDecoder
from ladderlm.errors import FormatError, LadderError, NetworkError, NotFound, UsageError
from ladderlm.models.folder import ModelFiles
from ladderlm.models.weights import Blocks, Weights
from ladderlm.talk.local import LocalChat
from ladderlm.talk.remote import RemoteChat
from ladderlm.text.conversations import CONVERSATIONS
from ladderlm.text.render import render
from ladderlm.text.tokenizer import Tokenizer
from ladderlm.text.tools import fitted
from ladderlm.types import Conversation, Delta, FloatArray, Sampling, Token

_READ = Sampling(temperature=0, max_tokens=1, prompt_logprobs=0)
_SAID = 24  # tokens of a greedy answer
_TOP = 5
_NOISE = 0.01  # on one layer: what the bound is measured against
_FINE = 100  # part of that noise's effect that two implementations in float32 may differ by
_FAR = 8  # times the rms of log-probabilities: what a single one may differ by
_TIE = 1e-3


def compare(a: ModelFiles, url: str, *, precision: str = "same", key_env: str = "OPENAI_API_KEY") -> list[Check]:
    """All that a server lets one check. NetworkError when it does not answer at all, AuthError for a wrong key."""
    base, _, model = url.partition("#")
    remote = RemoteChat(base, model, key_env=key_env)
    checks: list[Check] = []
    unheard: list[NetworkError] = []
    try:
        with engine.load(a) as local:
            seen = _Seen(a, local, remote, precision)
            for step in (seen.tokenizer, seen.logits, seen.template, seen.greedy):
                try:
                    checks.append(step())
                except (UsageError, NotFound, FormatError, NetworkError) as error:  # what this server cannot do
                    checks.append(skipped(step.__name__, str(error)))
                    unheard += [error] if isinstance(error, NetworkError) else []
    finally:
        remote.close()
    if len(unheard) == len(checks):
        raise unheard[0]
    return checks


class _Moved:
    """Weights with noise: `amount(name, values)` is its standard deviation (or half width) at each value."""

    def __init__(self, weights: Weights, amount: Callable[[str, FloatArray], FloatArray | None]) -> None:
        self._weights, self._amount, self._random = weights, amount, np.random.default_rng(0)

    def names(self) -> list[str]:
        return self._weights.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights.shape(name)

    def blocks(self, name: str) -> Blocks | None:
        return None

    def float32(self, name: str) -> FloatArray:
        values = self._weights.float32(name)
        flat = values.reshape(-1, values.shape[-1])
        if (width := self._amount(name, flat)) is None:
            return values
        noise = self._random.random(flat.shape, np.float32) * 2 - 1
        return (flat + noise * width).reshape(values.shape)


class _Bound(NamedTuple):
    """How far log-probabilities may differ (rms), and what noise of 1 % on one layer would make of them."""

    limit: float
    effect: float

    @property
    def smallest(self) -> float:
        """The least noise on one layer, in percent, that would exceed the limit; it acts in proportion."""
        return 100 * _NOISE * self.limit / max(self.effect, 1e-12)


class _Seen:
    """One server beside one local model."""

    def __init__(self, a: ModelFiles, local: Engine, remote: RemoteChat, precision: str) -> None:
        self.a, self.local, self.remote, self.precision = a, local, remote, precision
        self._bound: _Bound | None = None
        self._differ = 0.0  # of given text (rms): what chats differ by on account of the weights alone

    # --- Given text -----------------------------------------------------------------------------------------------

    def tokenizer(self) -> Check:
        """The server cuts texts into the same tokens."""
        name = "tokenizer"
        spelled = [t for t in TEXTS if not _spells(self.a.tokenizer, t) and "\0" not in t]
        for text in events.track(spelled, "verify tokenizer", unit="texts"):
            ids = text_ids(self.a.tokenizer, text, self.a.arch.context_length)
            if len(ids) >= self.a.arch.context_length - 1:
                continue
            ours, theirs = [self.a.tokenizer.token_text(i) for i in ids], [t.text for t in self._read(text)]
            if len(theirs) == len(ours) - 1:  # some do not show what stands before a document
                ours = ours[1:]
            clean = [
                i for i, (x, y) in enumerate(zip(ours, theirs, strict=False)) if _whole(x) and _whole(y) and x != y
            ]
            if len(ours) != len(theirs) or clean:
                at = clean[0] if clean else min(len(ours), len(theirs))
                words = f"{text[:40]!r} has {len(ours)} tokens in A, {len(theirs)} on the server"
                words += f"; token {at + 1} is {_at(ours, at)} in A, {_at(theirs, at)} there"
                return failed(name, words, "serve the folder whose tokenizer A has; does the server add or lack a BOS?")
        return passed(name, f"{len(spelled)} texts are cut into the same tokens")

    def logits(self) -> Check:
        """The server gives given text the same probabilities."""
        name = "logits"
        ids = text_ids(self.a.tokenizer, TEXT, min(ROOM, self.a.arch.context_length - 1))
        text = self.a.tokenizer.decode(ids)
        ids = text_ids(self.a.tokenizer, text, self.a.arch.context_length - 1)
        theirs = [t.logprob for t in self._read(text)][1 - len(ids) :]
        if len(theirs) != len(ids) - 1 or None in theirs:
            return skipped(name, "the server cuts the text otherwise: see tokenizer")
        ours = _of_tokens(self.local.logits(ids), ids)
        differ = self._differ = _rms(ours - np.array(theirs, np.float64))
        bound = self.bound(ids, ours)
        told = f"log-probabilities of {len(theirs)} tokens differ by {differ:.2g} (bound {bound.limit:.2g})"
        if differ <= bound.limit:
            return passed(name, f"{told}; noise of {bound.smallest:.2g} % on one layer would have shown")
        likely = differ / max(bound.effect, 1e-12)
        words = f"{told}: as noise of {likely:.2g} % on one layer would do"
        cure = "is it the same checkpoint? If the server computes in fewer bits than A holds, say so with --precision"
        return failed(name, words, cure)

    def bound(self, ids: Sequence[int] | None = None, ours: FloatArray | None = None) -> _Bound:
        """From what A's own two implementations differ by, what noise does, and the server's precision."""
        if self._bound is not None:
            return self._bound
        ids = list(ids or text_ids(self.a.tokenizer, TEXT, min(ROOM, self.a.arch.context_length - 1)))
        ours = _of_tokens(self.local.logits(ids), ids) if ours is None else ours
        arch, layer = self.a.arch, f"model.layers.{self.a.arch.layers // 2}."
        plain = self._reference(self.a.weights, ids)

        def noise(name: str, values: FloatArray) -> FloatArray | None:
            size = np.float32(math.sqrt(3) * _NOISE * _rms(values))
            return np.full((1, 1), size) if name.startswith(layer) else None

        def rounded(name: str, values: FloatArray) -> FloatArray | None:
            return rounding(values, self.precision) if len(arch.tensor_shapes()[name]) > 1 else None

        effect = _rms(self._reference(_Moved(self.a.weights, noise), ids) - plain)
        limit = max(4 * _rms(ours - plain), effect / _FINE)
        if self.precision != "same":
            limit = max(limit, 2.5 * _rms(self._reference(_Moved(self.a.weights, rounded), ids) - plain))
        self._bound = _Bound(limit, effect)
        return self._bound

    def _reference(self, weights: Weights, ids: Sequence[int]) -> FloatArray:
        return _of_tokens(ReferenceDecoder(self.a.arch, weights).logits(ids), ids)

    def _read(self, text: str) -> list[Token]:
        deltas = list(self.remote.complete(text, _READ))
        tokens = [t for delta in deltas for t in (*delta.prompt, *delta.tokens)]
        if not any(t.logprob is not None for t in tokens):
            raise NotFound("the server scores no given text (it lacks echo with logprobs)")
        # One more was written, since not all servers write none. A first token that has a probability follows one that
        # is counted and not shown.
        count = next((d.usage.prompt_tokens for d in deltas if d.usage), 0)
        count = count - (tokens[0].logprob is not None) if count else len(tokens) - 1
        return tokens[:count]

    # --- Chat -----------------------------------------------------------------------------------------------------

    def template(self) -> Check:
        """A chat's prompt is as long, and its first token as likely."""
        name = "template"
        if self.a.template is None:
            return skipped(name, "A has no chat template")
        refused = compared = 0
        why = ""
        for label, conversation, _ in events.track(CONVERSATIONS, "verify template", unit="conversations"):
            if conversation.messages[-1].role == "assistant" or _spelled(self.a.tokenizer, conversation):
                continue  # servers differ in what they make of a begun answer and of forged turns
            if fitted(conversation, self.a.template) != conversation:
                continue  # and in how they tell of tools that a template has no place for
            try:
                ids = render(conversation, self.a.tokenizer, self.a.template).ids
            except LadderError:
                continue
            if len(ids) >= self.a.arch.context_length:
                continue
            try:
                found = self._first(label, conversation, ids)
            except (UsageError, FormatError) as error:
                refused, why = refused + 1, str(error)
                continue
            if found is not None:
                return found
            compared += 1
        told = f"{compared} conversations are read alike" + (f"; the server refuses {refused} more" if refused else "")
        if refused and not compared:
            cure = "serve a model with A's chat template"
            return failed(name, f"the server refuses all {refused} conversations: {why}", cure)
        return passed(name, told) if compared else skipped(name, "no conversation suits both")

    def _first(self, label: str, conversation: Conversation, ids: list[int]) -> Check | None:
        """What differs before an answer's first token."""
        cure = "give the server A's chat template (chat_template in tokenizer_config.json)"
        drawn = Sampling(temperature=0, max_tokens=1, logprobs=_TOP)
        deltas = list(self.remote.stream(conversation, drawn))
        read = next((d.usage.prompt_tokens for d in deltas if d.usage), len(ids))
        if read != len(ids):
            words = f"the conversation {label!r} has {len(ids)} tokens in A's template, {read} on the server"
            return failed("template", words, cure)
        row_V = _logprobs(self.local.next_logits(ids))
        best = {self.a.tokenizer.token_text(int(i)): float(row_V[i]) for i in np.argsort(row_V)[-4 * _TOP :]}
        for candidate in (c for d in deltas for t in d.tokens for c in t.top if _whole(c.text)):
            ours = best.get(candidate.text)
            if ours is None or abs(candidate.logprob - ours) > self._far():
                words = f"after the conversation {label!r} {candidate.text!r} has log-probability "
                words += f"{candidate.logprob:.3f} on the server, "
                words += "and is far from likely in A" if ours is None else f"{ours:.3f} in A"
                return failed("template", words, f"if the logits agree, {cure}")
        return None

    def _far(self) -> float:
        return max(_TIE, _FAR * self.bound().limit, _FAR * self._differ)

    def greedy(self) -> Check:
        """Greedy answers are the same, and end at the same place."""
        chat = LocalChat(self.a, self.local)
        drawn = Sampling(temperature=0, max_tokens=min(_SAID, self.a.arch.context_length // 4), logprobs=2)
        same = 0
        for prompt in events.track(PROMPTS, "verify greedy", unit="prompts"):
            asked: Conversation | str = Conversation.of(prompt) if self.a.template else prompt
            ours, theirs = (
                _Answer.of(c.stream(asked, drawn) if isinstance(asked, Conversation) else c.complete(asked, drawn))
                for c in (chat, self.remote)
            )
            if words := self._part(prompt, ours, theirs):
                return failed("greedy", words, "see the checks above; if they pass, eos_token_id differs on the server")
            same += ours.texts == theirs.texts
        return passed("greedy", f"{same} of {len(PROMPTS)} answers the same, token for token, to their end")

    def _part(self, prompt: str, ours: _Answer, theirs: _Answer) -> str:
        """Where two answers part for no good reason."""
        for at, (x, y) in enumerate(zip(ours.texts, theirs.texts, strict=False)):
            if x != y:
                close = ours.gaps[at] <= 2 * self._far() or not (_whole(x) and _whole(y))
                return "" if close else f"answering {prompt!r} A says {x!r} as token {at + 1}, the server {y!r}"
        if (ours.ended, len(ours.texts)) != (theirs.ended, len(theirs.texts)):
            first = "A" if len(ours.texts) < len(theirs.texts) or (ours.ended and not theirs.ended) else "the server"
            count = min(len(ours.texts), len(theirs.texts))
            return f"answering {prompt!r} only {first} ends after {count} tokens: the other runs on"
        return ""


@dataclass(frozen=True, slots=True)
class _Answer:
    """A greedy answer: its tokens, by how much each was the likeliest, and whether the model ended it."""

    texts: list[str]
    gaps: list[float]
    ended: bool

    @classmethod
    def of(cls, deltas: Iterable[Delta]) -> _Answer:
        texts: list[str] = []
        gaps: list[float] = []
        ended = False
        for delta in deltas:
            ended = ended or delta.finish_reason == "stop"
            for token in delta.tokens:
                texts.append(token.text)
                rest = [c.logprob for c in token.top if c.id != token.id or c.id is None]
                gaps.append((token.logprob or 0.0) - max(rest, default=-math.inf))
        return cls(texts, gaps, ended)


def _whole(text: str) -> bool:
    """Whether a token is whole characters: parts are shown in many ways."""
    return bool(text) and "\ufffd" not in text and "\\x" not in text and not text.startswith("bytes:")


def _spells(tokenizer: Tokenizer, text: str) -> bool:
    return any(name in text for name in tokenizer.control)


def _spelled(tokenizer: Tokenizer, conversation: Conversation) -> bool:
    return any(_spells(tokenizer, str(m.to_dict())) for m in conversation.messages)


def _at(texts: Sequence[str], at: int) -> str:
    return repr(texts[at]) if at < len(texts) else "missing"


def _logprobs(row_V: FloatArray) -> FloatArray:
    row = row_V.astype(np.float64)
    row -= row.max()
    return row - np.log(np.exp(row).sum())


def _of_tokens(logits_TV: FloatArray, ids: Sequence[int]) -> FloatArray:
    """Log-probabilities of ids[1:]."""
    return np.array([_logprobs(row)[id] for row, id in zip(logits_TV, ids[1:], strict=False)])


def _rms(x: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))
