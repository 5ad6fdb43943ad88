"""Near-duplicates with a known answer: texts, edits of them, and distractors that are only alike. Seeded.

Likeness is the Jaccard index of the sets of word 5-grams (lower case, punctuation aside). Edits have 0.7 to 0.95 with
their original, distractors 0.4 to 0.6. The originals are stretches of the standard library's documentation that share
hardly a 5-gram, so that nothing else in the set is alike.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from ladderlm.data.collect import python_modules, readable
from ladderlm.data.records import make_record
from ladderlm.types import Record

EDITS, DISTRACTORS = (0.7, 0.95), (0.4, 0.6)


def shingles(text: str, n: int = 5) -> set[tuple[str, ...]]:
    words = re.findall(r"[^\W_]+", text.lower())
    return {tuple(words[i : i + n]) for i in range(max(len(words) - n + 1, 1))}


def jaccard(a: str, b: str) -> float:
    x, y = shingles(a), shingles(b)
    return len(x & y) / len(x | y)


def originals(count: int, rng: random.Random, words: tuple[int, int] = (80, 600)) -> list[str]:
    """Stretches of text of `words` words, no two of which share more than a tenth of their 5-grams."""
    seen: set[tuple[str, ...]] = set()
    found: list[str] = []
    for name, source in python_modules():
        if len(found) == count:
            break
        pieces, at = re.findall(r"\S+\s*", readable(name, source)), 0
        while at + words[0] < len(pieces) and len(found) < count:
            length = rng.randint(*words)
            text = "".join(pieces[at : at + length]).strip()
            at += length
            grams = shingles(text)
            if len(grams) > words[0] // 2 and len(grams & seen) < len(grams) / 10:
                found.append(text)
                seen |= grams
    rng.shuffle(found)
    return found


def edited(text: str, within: tuple[float, float], rng: random.Random, vocabulary: Sequence[str]) -> str:
    """`text` with words replaced, left out, put in and swapped until its likeness lies `within`."""
    while True:
        wanted = rng.uniform(*within)
        pieces = re.findall(r"\S+\s*", text)
        for _ in range(max(1, round(len(pieces) * (1 - wanted) / (5 * (1 + wanted))))):
            at = rng.randrange(len(pieces) - 1)
            match rng.randrange(4):
                case 0:
                    pieces[at] = rng.choice(vocabulary) + " "
                case 1:
                    del pieces[at : at + rng.randint(1, 2)]
                case 2:
                    pieces.insert(at, rng.choice(vocabulary) + " ")
                case _:
                    pieces[at : at + 2] = reversed([piece.strip() + " " for piece in pieces[at : at + 2]])
        new = "".join(pieces)
        if within[0] <= jaccard(text, new) <= within[1]:
            return new


def near_duplicates(groups: int, seed: int = 0) -> list[Record]:
    """Shuffled text records; meta has `group` and `role` (original, edit, distractor). A group has 1 to 3 of each."""
    rng = random.Random(seed)
    texts = originals(groups, rng)
    vocabulary = sorted({word for text in texts[:200] for word in text.split()})
    records = []
    for group, text in enumerate(texts):
        rows = [("original", text)]
        rows += [("edit", edited(text, EDITS, rng, vocabulary)) for _ in range(rng.randint(1, 3))]
        rows += [("distractor", edited(text, DISTRACTORS, rng, vocabulary)) for _ in range(rng.randint(1, 3))]
        records += [make_record("text", {"text": t}, source="near", group=group, role=role) for role, t in rows]
    rng.shuffle(records)
    return records


def judged(records: Sequence[Record], dropped: Sequence[tuple[Record, str]]) -> dict[str, float]:
    """Recall and precision of what was left out: (record, id of the one that stayed).

    Of a group's originals and edits all but one ought to go; a drop is right when it and what stayed are such.
    """
    true = {r.id: r.meta["group"] for r in records if r.meta["role"] != "distractor"}
    right = sum(r.id in true and true.get(stayed) == true[r.id] for r, stayed in dropped)
    wanted = len(true) - len(set(true.values()))
    return {"wanted": wanted, "left_out": len(dropped), "recall": right / wanted,
            "precision": right / max(len(dropped), 1)}  # fmt: skip
