"""A bag of words and a straight line: what a fine-tuned language model has to beat on a classification task."""

from __future__ import annotations

from collections.abc import Sequence

from ladderlm.errors import FormatError, MissingExtra, UsageError
from ladderlm.types import Record


def tfidf_predictions(train: Sequence[Record], test: Sequence[Record]) -> list[str]:
    """Labels of `test` by logistic regression on tf-idf of words and word pairs, learnt from `train`."""
    for record in (*train, *test):
        if record.kind != "class":
            raise FormatError(f"needs class records, not {record.kind}", where=f"record {record.id}")
    if not train or not test:
        raise UsageError("both training and test records are needed", where=f"{len(train)} and {len(test)}")
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise MissingExtra("scikit-learn", "eval") from None
    labels = [r["label"] for r in train]
    if len(set(labels)) < 2:
        return [labels[0]] * len(test)
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = LogisticRegression(max_iter=1000, C=10.0).fit(words.fit_transform(r["text"] for r in train), labels)
    return [str(label) for label in model.predict(words.transform(r["text"] for r in test))]


def tfidf_accuracy(train: Sequence[Record], test: Sequence[Record]) -> float:
    """The share of `test` that tf-idf with logistic regression labels right."""
    predicted = tfidf_predictions(train, test)
    return sum(p == r["label"] for p, r in zip(predicted, test, strict=True)) / len(test)
