"""n-grams, xz and tf-idf: what a language model has to beat."""

import lzma
from collections import Counter, defaultdict

import numpy as np
import pytest

from ladderlm.data.records import make_record
from ladderlm.data.tasks import DocsMatch
from ladderlm.errors import FormatError, UsageError
from ladderlm.evals.compress import xz_bits_per_byte
from ladderlm.evals.linear import tfidf_accuracy
from ladderlm.evals.ngram import KneserNey


def slow_kneser_ney(ids, order, vocab):
    """Straight from the formula, with dictionaries."""
    counts = [Counter(tuple(ids[i : i + order]) for i in range(len(ids) - order + 1))]
    for n in range(order - 1, 0, -1):
        counts.insert(0, Counter(gram[1:] for gram in counts[0]))
        assert all(len(g) == n for g in counts[0])
    discounts = []
    for table in counts:
        once, twice = (sum(c == k for c in table.values()) for k in (1, 2))
        discounts.append(once / (once + 2 * twice) if once and twice else 0.5)
    totals, kinds = defaultdict(int), defaultdict(int)
    for n, table in enumerate(counts, 1):
        for gram, c in table.items():
            totals[n, gram[:-1]] += c
            kinds[n, gram[:-1]] += 1

    def p(word, history):
        if len(history) == 0:
            lower = 1 / vocab
        else:
            lower = p(word, history[1:])
        n = len(history) + 1
        if not totals[n, history]:
            return lower
        d = discounts[n - 1]
        return (max(counts[n - 1][(*history, word)] - d, 0) + d * kinds[n, history] * lower) / totals[n, history]

    return p


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_kneser_ney_follows_the_formula(order):
    rng = np.random.default_rng(order)
    train, test = (rng.zipf(1.5, 400) % 12).tolist(), rng.integers(0, 14, 60).tolist()
    model, slow = KneserNey(order, vocab_size=14).fit(train), slow_kneser_ney(train, order, 14)
    wanted = [slow(w, tuple(test[max(0, i - order + 1) : i])) for i, w in enumerate(test)]
    np.testing.assert_allclose(model.probabilities(test), wanted, rtol=1e-12)


def test_kneser_ney_sums_to_one():
    rng = np.random.default_rng(0)
    model = KneserNey(3, vocab_size=40).fit(rng.zipf(1.3, 3000) % 35)
    for history in ([], [3], [3, 4], [39, 1], [38, 39], [0, 0]):
        assert sum(model.probabilities([*history, w])[-1] for w in range(40)) == pytest.approx(1, abs=1e-12)


def test_kneser_ney_learns():
    ids = list(range(20)) * 50
    assert KneserNey(3).fit(ids).bits(ids[:100]) / 100 < 0.5
    assert KneserNey(3, vocab_size=64).fit([1, 2, 3]).perplexity([9, 9, 9]) > 60


def test_kneser_ney_refuses():
    with pytest.raises(UsageError, match="too few"):
        KneserNey(3).fit([1, 2])
    with pytest.raises(UsageError, match="beyond the vocabulary"):
        KneserNey(2).fit([1, 2, 3]).bits([9])
    with pytest.raises(UsageError, match="fitted"):
        KneserNey(2).bits([1])
    with pytest.raises(UsageError, match="too large"):
        KneserNey(5).fit([2**16] * 9)


def test_xz():
    text = "the same words again and again. " * 300
    assert xz_bits_per_byte(text) == 8 * min(
        len(lzma.compress(text.encode(), preset=p)) for p in (9, 9 | lzma.PRESET_EXTREME)
    ) / len(text)  # fmt: skip
    assert xz_bits_per_byte(text) < 0.5
    assert xz_bits_per_byte(np.random.default_rng(0).bytes(5000)) > 8
    with pytest.raises(UsageError):
        xz_bits_per_byte("")


def test_tfidf_learns_words_but_not_which_go_together():
    pytest.importorskip("sklearn")
    rows = [
        make_record("class", {"text": f"{w} film {i}", "label": w}, source="s")
        for i in range(40)
        for w in ("good", "bad")
    ]
    assert tfidf_accuracy(rows[:60], rows[60:]) == 1.0
    task = DocsMatch()
    assert 0.4 < tfidf_accuracy(task.records("train"), task.records("test")) < 0.6
    with pytest.raises(FormatError):
        tfidf_accuracy([make_record("text", {"text": "a"}, source="s")], rows)
    with pytest.raises(UsageError):
        tfidf_accuracy([], rows)
