"""Scores of predictions against the truth. Classification in numpy; BLEU and ROUGE by the field's own packages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ladderlm.errors import MissingExtra, UsageError
from ladderlm.evals.intervals import Interval
from ladderlm.types import Value


@dataclass(frozen=True, slots=True)
class ClassScore(Value):
    """Precision, recall and F1 of one label; `support` is how often it is the truth. 0 where undefined (0/0)."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class Classification(Value):
    """Scores of a classifier. `macro_*` are the means over labels; `confusion[i][j]` counts truth i, predicted j."""

    accuracy: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    labels: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]


def accuracy(truth: Sequence[str], predicted: Sequence[str]) -> float:
    _check(truth, predicted)
    return float(np.mean([a == b for a, b in zip(truth, predicted, strict=True)]))


def classification(
    truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str] | None = None
) -> Classification:
    """Accuracy, and precision, recall and F1 per label and averaged.

    `labels` gives the order and which labels count; by default all that occur, sorted.
    """
    _check(truth, predicted)
    names = list(labels) if labels is not None else sorted({*truth, *predicted})
    missing = {*truth, *predicted} - {*names}
    if missing:
        raise UsageError("labels that are not listed", where=", ".join(sorted(missing)))
    place = {name: i for i, name in enumerate(names)}
    confusion = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(confusion, ([place[t] for t in truth], [place[p] for p in predicted]), 1)
    hit, said, true = np.diag(confusion), confusion.sum(0), confusion.sum(1)
    precision, recall = _ratio(hit, said), _ratio(hit, true)
    f1 = _ratio(2 * hit, said + true)
    scores = tuple(
        ClassScore(n, float(p), float(r), float(f), int(s))
        for n, p, r, f, s in zip(names, precision, recall, f1, true, strict=True)
    )
    rows = tuple(tuple(int(x) for x in row) for row in confusion)
    overall = float(hit.sum() / confusion.sum())
    return Classification(overall, float(precision.mean()), float(recall.mean()), float(f1.mean()), scores, rows)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)


def _check(truth: Sequence[str], predicted: Sequence[str]) -> None:
    if len(truth) != len(predicted) or not truth:
        raise UsageError("truth and predictions must be as many, and not empty", where=f"{len(truth)}/{len(predicted)}")


def bleu(hypotheses: Sequence[str], references: Sequence[str], seed: int = 0, rounds: int = 1000) -> Interval:
    """Corpus BLEU in [0, 100] by sacrebleu (13a tokenization, exponential smoothing), with its 95 % interval."""
    _check(references, hypotheses)
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise MissingExtra("sacrebleu", "eval") from None
    each = [BLEU().sentence_score(h, [r]) for h, r in zip(hypotheses, references, strict=True)]
    counts = np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in each], dtype=np.int64)

    def score(row: np.ndarray) -> float:
        n = (len(row) - 2) // 2
        found, totals = row[:n].tolist(), row[n : 2 * n].tolist()
        return float(BLEU.compute_bleu(found, totals, int(row[-2]), int(row[-1]), smooth_method="exp").score)

    rng = np.random.default_rng(seed)
    drawn = [score(counts[rng.integers(0, len(counts), len(counts))].sum(0)) for _ in range(rounds)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(score(counts.sum(0)), float(low), float(high))


def rouge(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """ROUGE F-measures in [0, 1] of each pair: `rouge1`, `rouge2` and `rougeL`, with stemming."""
    _check(references, hypotheses)
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise MissingExtra("rouge-score", "eval") from None
    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(list(names), use_stemmer=True)
    scores = [scorer.score(r, h) for r, h in zip(references, hypotheses, strict=True)]
    return {name: [float(s[name].fmeasure) for s in scores] for name in names}
