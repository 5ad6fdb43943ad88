"""What a written answer is worth beside the one wanted: in [0, 1], by the kind of its record.

class: 1 for the label; spans: F1 over (label, words); qa: SQuAD's F1 over words (Rajpurkar et al. 2016);
translation and all others: chrF over characters (Popovic 2015).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from ladderlm.data.asking import NOTHING
from ladderlm.data.shapes import conversation
from ladderlm.types import Record

METRICS = {"class": "accuracy", "spans": "entity F1", "qa": "answer F1"}
ORDER, BETA = 6, 2.0  # chrF's longest n-grams, and the weight of recall
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def metric(kind: str) -> str:
    """The name of what `score` gives for records of a kind."""
    return METRICS.get(kind, "chrF")


def score(record: Record, said: str) -> float:
    """How good `said` is as the answer to `record`."""
    said = said.strip()
    if record.kind == "class":
        return float(said.lower() == record["label"].lower())
    if record.kind == "spans":
        wanted = [(s["label"], record["text"][s["start"] : s["end"]]) for s in record["spans"]]
        return f1(told_spans(said), wanted)
    if record.kind == "qa":
        return best_f1(said, [a["text"] for a in record["answers"]] or [NOTHING])
    wanted_text = record["target"] if record.kind == "translation" else conversation(record).messages[-1].text
    return chrf(said, wanted_text)


def told_spans(said: str) -> list[tuple[str, str]]:
    """(label, words) of each line "label: words"."""
    lines = (line.partition(":") for line in said.splitlines())
    return [(label.strip(), words.strip()) for label, colon, words in lines if colon and words.strip()]


def f1(said: Iterable[Hashable], wanted: Iterable[Hashable]) -> float:
    """F1 of two multisets; 1 where both are empty."""
    a, b = Counter(said), Counter(wanted)
    total = a.total() + b.total()
    return 2 * (a & b).total() / total if total else 1.0


def normalised(text: str) -> str:
    """SQuAD's: lower case, without punctuation, articles and doubled blanks."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact(said: str, answers: Sequence[str]) -> float:
    """1 when `said` is one of the answers, SQuAD's normalisation aside."""
    return float(normalised(said) in {normalised(a) for a in answers})


def best_f1(said: str, answers: Sequence[str]) -> float:
    """F1 over words against the answer that fits best."""
    return max(f1(normalised(said).split(), normalised(a).split()) for a in answers)


def chrf(said: str, wanted: str) -> float:
    """chrF2 of one text, blanks left out, as sacrebleu counts it: an order that a side has no n-gram of is left out."""
    a, b = ("".join(text.split()) for text in (said, wanted))
    precision = recall = 0.0
    orders = 0
    for n in range(1, ORDER + 1):
        found, truth = (Counter(t[i : i + n] for i in range(len(t) - n + 1)) for t in (a, b))
        if not (found and truth):
            continue
        common, orders = (found & truth).total(), orders + 1
        precision += common / found.total()
        recall += common / truth.total()
    if not orders or not precision + recall:
        return 0.0
    p, r = precision / orders, recall / orders
    return (1 + BETA**2) * p * r / (BETA**2 * p + r)
