"""Do two forms of a model say the same: logits of a fixed text, and greedy continuations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ladderlm import engine, events
from ladderlm.convert.compare.cells import Held
from ladderlm.convert.compare.verdict import Check, failed, passed, skipped
from ladderlm.convert.compare.weights import Source
from ladderlm.engine.reference import ReferenceDecoder
from ladderlm.models.folder import ModelFiles
from ladderlm.models.weights import Blocks, Weights
from ladderlm.text.tokenizer import Tokenizer
from ladderlm.types import FloatArray, Sampling

TEXT = (
    "The sun had set when the travellers reached the old bridge. Twelve miles lay behind them, and 3 more to go.\n"
    "Q: What is 17 + 25? A: 42. def add(a, b): return a + b. Le chat dort sur le canapé."
)
PROMPTS = ("Once upon a time", "The capital of France is", "def fibonacci(n):\n")
SAID = 16  # tokens of each greedy continuation
ROOM = 96  # tokens of the text: a tiny model's context may be shorter still
_FLOOR = 1e-4  # of the logits' spread: float32 in another order
_TIE = 1e-2  # logits so close are a matter of the order of sums
_FAR = 6  # times the root mean square: what single logits may differ by
_TIMES = 2.5  # the effect of rounding, drawn at random, against what was found: few tiny tensors scatter


def text_ids(tokenizer: Tokenizer, text: str, room: int) -> list[int]:
    """As a model reads a document."""
    start = tokenizer.document_start_id
    return [*([] if start is None else [start]), *tokenizer.encode(text)][:room]


class Dithered:
    """A's weights moved at random within the cells of a form that was rounded: what rounding does to a model.

    `rounded` are those forms, each with the names of tensors that it keeps under another.
    """

    def __init__(self, a: Weights, rounded: Sequence[tuple[Weights, Mapping[str, str]]]) -> None:
        self._a, self._rounded = a, rounded
        self._random = np.random.default_rng(0)

    def names(self) -> list[str]:
        return self._a.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._a.shape(name)

    def blocks(self, name: str) -> Blocks | None:
        return None

    def float32(self, name: str) -> FloatArray:
        out = self._a.float32(name).copy()
        flat = out.reshape(-1, out.shape[-1])
        for weights, names in self._rounded:
            held = Held.of(weights, names.get(name, name), "F16")
            for rows in held.chunks():
                noise = self._random.random(flat[rows].shape, np.float32)
                noise *= 2
                noise -= 1
                noise *= held.half(rows)
                flat[rows] += noise
        return out


class Heard(NamedTuple):
    """The Check, and how far logits may differ (rms)."""

    check: Check
    bound: float


def logits(a: ModelFiles, b: ModelFiles, source: Source) -> Heard:
    """Teacher-forced logits of both in plain float32 arithmetic, no kernels: the forms alone differ.

    The bound is what moving weights at random within the cells of what was rounded does to A's logits; `source` is
    the form that was not.
    """
    name = "logits"
    if a.arch.kind != "decoder" or b.arch.kind != "decoder":
        return Heard(skipped(name, "not a decoder: its weights were compared one by one"), 0.0)
    shapes = [{k: v for k, v in x.arch.tensor_shapes().items() if k != "lm_head.weight"} for x in (a, b)]
    if shapes[0] != shapes[1]:
        return Heard(skipped(name, "the two have other tensors, or the same in other shapes"), 0.0)
    ids = text_ids(a.tokenizer, TEXT, min(ROOM, a.arch.context_length, b.arch.context_length))
    both = events.track((a, b), "verify logits", unit="models")
    rows = [_spread(ReferenceDecoder(x.arch, x.weights).logits(ids)) for x in both]
    differ = _rms(rows[0] - rows[1])
    bound = _FLOOR * _rms(rows[0])
    if differ > bound:
        renamed = {"lm_head.weight": "model.embed_tokens.weight"} if b.arch.tied else {}
        rounded = [] if source == "B" else [(b.weights, renamed)]
        rounded += [] if source == "A" else [(a.weights, {})]
        moved = Dithered(a.weights, rounded)
        bound += _TIMES * _rms(rows[0] - _spread(ReferenceDecoder(a.arch, moved).logits(ids)))
    top = int((rows[0].argmax(-1) == rows[1].argmax(-1)).sum())
    told = f"those of {len(ids)} tokens differ by {differ:.2g} (bound {bound:.2g}); likeliest token the same at {top}"
    if differ <= bound:
        return Heard(passed(name, told), bound)
    at = int(np.argmax(np.abs(rows[0] - rows[1]).max(-1) > 4 * bound))
    words = f"{told}; the first large difference is after {a.tokenizer.token_text(ids[at])!r}, token {at + 1}"
    cure = "the weights or facts above tell why; where those agree, this is a fault of LadderLM"
    return Heard(failed(name, words, cure), bound)


def _spread(logits_TV: FloatArray) -> FloatArray:
    """Logits but for a constant, which no probability depends on."""
    return logits_TV - logits_TV.mean(axis=-1, keepdims=True)


def _rms(x: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


@dataclass(frozen=True, slots=True)
class _Said:
    """A greedy continuation, and B's logits along it."""

    prompt: str
    ids: list[int]
    logits_TV: FloatArray


def greedy(a: ModelFiles, b: ModelFiles, bound: float) -> Check:
    """Continuations as the engine runs both forms: A writes, B is asked what it would have written.

    Where B would have gone on otherwise, both tokens must be as likely as logits that differ by `bound` (rms) allow.
    """
    name = "greedy"
    if a.arch.kind != "decoder" or b.arch.kind != "decoder":
        return skipped(name, "not a decoder")
    room = min(a.arch.context_length, b.arch.context_length)
    said = _said(a, b, room)
    total = sum(len(s.ids) for s in said)
    if not total:
        return skipped(name, "A ends every continuation at once")
    agree, worst, where = 0, 0.0, ""
    for one in said:
        for at, id in enumerate(one.ids):
            row = one.logits_TV[at]
            gap = float(row.max() - row[id])
            agree += gap == 0
            if gap > worst:
                words = a.tokenizer.decode(one.ids[:at])
                other = b.tokenizer.token_text(int(row.argmax()))
                where = f"after {one.prompt + words!r} A says {a.tokenizer.token_text(id)!r}, B {other!r}"
                worst = gap
    told = f"{agree} of {total} tokens of {len(said)} continuations the same"
    if worst <= max(_TIE, _FAR * bound):
        return passed(name, told + (f"; where not, their logits are {worst:.2g} apart" if worst else ""))
    return failed(name, f"{told}; {where}", "see the checks above for why")


def _said(a: ModelFiles, b: ModelFiles, room: int) -> list[_Said]:
    prompts = [text_ids(a.tokenizer, p, room // 2) for p in PROMPTS]
    written: list[list[int]] = []
    sampling = Sampling(temperature=0, max_tokens=max(1, min(SAID, room // 2)))
    with engine.load(a, exact=True) as model:
        for ids in events.track(prompts, "verify greedy", unit="prompts"):
            written.append([i for delta in model.generate(ids, sampling) for i in delta.ids])
    found = []
    with engine.load(b, exact=True) as model:
        for text, ids, more in zip(PROMPTS, prompts, written, strict=True):
            if more:
                rows = model.logits([*ids, *more])[len(ids) - 1 : -1]
                found.append(_Said(text, more, rows))
    return found
