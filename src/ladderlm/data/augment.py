"""What people type, more than once and not always well: variants of records with typos, keyboard slips, other case and
blanks, or told in other words by a model.

Only what is read is varied, never what a model shall learn to write: the user's turns, prompts, questions, texts to be
labelled. The same seed gives the same variants on every machine.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ladderlm.data.rewrite import Edit, apply, moved_spans
from ladderlm.data.stages import Dropped, Stage
from ladderlm.errors import UsageError, nearest
from ladderlm.types import Record

Paraphrase = Callable[[str], str]
_WORD = re.compile(r"[^\W\d_]{3,}")
_INPUTS = {
    "text": "text", "completion": "prompt", "preference": "prompt", "kto": "prompt", "class": "text", "spans": "text",
    "qa": "question", "translation": "source", "triple": "anchor", "answer": "prompt",
}  # fmt: skip
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _neighbours() -> dict[str, str]:
    """Letter -> the letters beside it on a QWERTY keyboard, whose rows are shifted by about half a key."""
    near = {}
    for y, row in enumerate(_ROWS):
        for x, letter in enumerate(row):
            around = [(y, x - 1), (y, x + 1), (y - 1, x), (y - 1, x + 1), (y + 1, x - 1), (y + 1, x)]
            near[letter] = "".join(_ROWS[j][i] for j, i in around if 0 <= j < 3 and 0 <= i < len(_ROWS[j]))
    return near


_NEAR = _neighbours()


def _typo(word: str, rng: random.Random) -> str:
    """Two letters exchanged, one lost, or one doubled."""
    at, what = rng.randrange(len(word) - 1), rng.randrange(3)
    if what == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return word[:at] + word[at + 1 :] if what == 1 else word[: at + 1] + word[at:]


def _keyboard(word: str, rng: random.Random) -> str:
    """A letter's neighbour on the keyboard in its place."""
    at = rng.randrange(len(word))
    near = _NEAR.get(word[at].lower())
    if not near:
        return word
    slip = rng.choice(near)
    return word[:at] + (slip.upper() if word[at].isupper() else slip) + word[at + 1 :]


def _words(change: Callable[[str, random.Random], str]) -> Callable[[str, random.Random, float], list[Edit]]:
    def edits(text: str, rng: random.Random, rate: float) -> list[Edit]:
        found = [m for m in _WORD.finditer(text) if rng.random() < rate]
        return [Edit(m.start(), m.end(), new) for m in found if (new := change(m[0], rng)) != m[0]]

    return edits


def _case(text: str, rng: random.Random, rate: float) -> list[Edit]:
    """The whole text in small letters, in capitals, or With Capitals Like A Title."""
    change = rng.choice((str.lower, str.upper, str.title))
    return [Edit(m.start(), m.end(), new) for m in re.finditer(r"\w+", text) if (new := change(m[0])) != m[0]]


def _space(text: str, rng: random.Random, rate: float) -> list[Edit]:
    """Blanks doubled, lost, or turned into line ends."""
    found = [m for m in re.finditer(r" +", text) if rng.random() < rate]
    return [Edit(m.start(), m.end(), rng.choice(("", "  ", "\n", "\t"))) for m in found]


WAYS: Mapping[str, Callable[[str, random.Random, float], list[Edit]]] = {
    "typo": _words(_typo), "keyboard": _words(_keyboard), "case": _case, "space": _space,
}  # fmt: skip


def augment_stage(
    ways: Sequence[str] = tuple(WAYS),
    *,
    copies: int = 1,
    rate: float = 0.05,
    keep: bool = True,
    seed: int = 0,
    paraphrase: Paraphrase | None = None,
    counts: Counter[str] | None = None,
) -> Stage:
    """Each record (with `keep`), then `copies` variants of it ("ID.1", ...; meta.augmented names the way), the ways
    taking turns at random. `rate`: the share of words or blanks that change. "paraphrase" is a way where given.

    A variant equal to its record, or an empty one, is left out. Raises UsageError for an unknown way.
    """
    known = [*WAYS, *(["paraphrase"] if paraphrase else [])]
    for way in ways:
        if way not in known:
            raise UsageError(f"unknown way {way!r}", where="augment", cure=nearest(way, known))
    if copies < 1 or not 0 < rate <= 1 or not ways:
        raise UsageError("at least one way and one copy, and a rate in (0, 1]", where=f"copies={copies}, rate={rate}")
    counts = Counter() if counts is None else counts

    def stage(records: Iterable[Record]) -> Iterator[Record | Dropped]:
        for record in records:
            if keep:
                yield record
            for number in range(1, copies + 1):
                rng = random.Random(f"{seed}:{record.id}:{number}")
                way = rng.choice(list(ways))
                fields = varied(record, lambda text, way=way, rng=rng: _edits(text, way, rng))  # type: ignore[misc]
                if fields == record.fields:
                    continue
                counts[way] += 1
                meta = {**record.meta, "augmented": way, "of": record.id}
                yield dataclasses.replace(record, id=f"{record.id}.{number}", fields=fields, meta=meta)

    def _edits(text: str, way: str, rng: random.Random) -> list[Edit]:
        if way != "paraphrase" or paraphrase is None:
            return WAYS[way](text, rng, rate)
        new = paraphrase(text).strip() if text.strip() else ""
        return [Edit(0, len(text), new)] if new and new != text else []

    return stage


def varied(record: Record, edits: Callable[[str], list[Edit]]) -> dict[str, Any]:
    """The fields with what is read edited: a record's one input, or the user's turns."""
    if record.kind == "messages":
        return {**record.fields, "messages": [_turn(turn, edits) for turn in record["messages"]]}
    name = _INPUTS[record.kind]
    found = edits(record[name])
    fields = {**record.fields, name: apply(record[name], found)}
    if record.kind == "spans":
        fields["spans"] = moved_spans(record["spans"], found)
    return fields


def _turn(turn: Any, edits: Callable[[str], list[Edit]]) -> Any:
    if not isinstance(turn, Mapping) or turn.get("role") != "user" or not isinstance(turn.get("content"), str):
        return turn
    return {**turn, "content": apply(turn["content"], edits(turn["content"]))}
