"""Metrics against scikit-learn, sacrebleu and rouge_score; intervals; verdicts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ladderlm.errors import UsageError
from ladderlm.evals.helped import did_it_help
from ladderlm.evals.intervals import bootstrap, bootstrap_ratio
from ladderlm.evals.metrics import accuracy, bleu, classification, rouge


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=40))
def test_classification_agrees_with_scikit_learn(pairs):
    sklearn = pytest.importorskip("sklearn.metrics")
    truth, predicted = [t for t, _ in pairs], [p for _, p in pairs]
    ours = classification(truth, predicted)
    names = [s.label for s in ours.labels]
    p, r, f, n = sklearn.precision_recall_fscore_support(truth, predicted, labels=names, zero_division=0)
    for score, *theirs in zip(ours.labels, p, r, f, n, strict=True):
        assert (score.precision, score.recall, score.f1, score.support) == pytest.approx(theirs)
    assert ours.macro_f1 == pytest.approx(f.mean())
    assert ours.macro_precision == pytest.approx(p.mean())
    assert ours.macro_recall == pytest.approx(r.mean())
    assert ours.accuracy == accuracy(truth, predicted) == pytest.approx(sklearn.accuracy_score(truth, predicted))
    assert ours.confusion == tuple(map(tuple, sklearn.confusion_matrix(truth, predicted, labels=names).tolist()))


def test_classification_refuses():
    with pytest.raises(UsageError):
        accuracy([], [])
    with pytest.raises(UsageError, match="not listed"):
        classification(["a"], ["b"], ["a"])


def test_bleu_agrees_with_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    said = ["the cat sat on the mat", "a dog ran home", "birds fly over the house today"]
    wanted = ["the cat sat on a mat", "the dog ran home", "birds fly over a house"]
    ours = bleu(said, wanted)
    assert ours.mean == pytest.approx(sacrebleu.corpus_bleu(said, [wanted]).score)
    assert ours.low <= ours.mean <= ours.high
    assert bleu(wanted, wanted).mean == pytest.approx(100)
    assert bleu(["", "x"], ["a b", "c d"]).mean == pytest.approx(
        sacrebleu.corpus_bleu(["", "x"], [["a b", "c d"]]).score
    )


def test_rouge():
    pytest.importorskip("rouge_score")
    scores = rouge(["the cat sat", ""], ["the cat sat", "a dog"])
    assert scores["rouge1"] == scores["rouge2"] == scores["rougeL"] == [1.0, 0.0]


def test_bootstrap_is_repeatable_and_covers():
    rng = np.random.default_rng(3)
    assert bootstrap([0, 1, 1], seed=5) == bootstrap([0, 1, 1], seed=5)
    assert bootstrap([2.0] * 9).low == bootstrap([2.0] * 9).high == 2.0
    inside = 0
    for _ in range(200):
        found = bootstrap((rng.random(100) < 0.7).astype(float), rounds=400)
        inside += found.low <= 0.7 <= found.high
    assert inside > 180  # 95 % by design; the percentile bootstrap runs a little short


def test_paired_intervals_are_narrower():
    rng = np.random.default_rng(0)
    before = rng.normal(size=300) * 10
    after = before + 0.5 + rng.normal(size=300)
    paired = bootstrap(before, after)
    assert 0 < paired.low < 0.5 < paired.high < 1
    with pytest.raises(UsageError):
        bootstrap([1.0], [1.0, 2.0])
    with pytest.raises(UsageError):
        bootstrap([])


def test_ratio_weighs_items():
    found = bootstrap_ratio([1.0, 9.0], [1.0, 3.0])
    assert found.mean == 2.5
    assert (found.low, found.high) == (1.0, 3.0)


@pytest.mark.parametrize(
    ("after", "higher", "verdict"),
    [([1] * 50, True, "helped"),
     ([0] * 50, True, "harmed"), ([1] * 50, False, "harmed"), ([1, 0] * 25, True, "no evidence")],
)  # fmt: skip
def test_verdicts(after, higher, verdict):
    found = did_it_help("accuracy", [1, 0, 0, 1, 0] * 10, after, higher_is_better=higher)
    assert found.verdict == verdict
    assert verdict in str(found)
    assert "50 held-out items" in str(found)
