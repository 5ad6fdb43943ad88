"""Perplexity and choosing by likelihood, over a tiny model whose probabilities are known."""

import math

import numpy as np
import pytest

from ladderlm.data.records import make_record
from ladderlm.data.tasks import ClassTask, forgetting_probe
from ladderlm.errors import FormatError, UsageError
from ladderlm.evals.classify import choose, classify, pick_examples, prompt_ids, with_examples
from ladderlm.evals.perplexity import evaluate, token_logprobs

VOCAB = 257  # bytes, and 256 begins a document


class Bytes:
    """A tokenizer of bytes."""

    def __init__(self, start: int | None = 256) -> None:
        self.document_start_id = start

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


class Bigram:
    """A model that thinks a byte is followed by itself with probability 1/2, and by anything else evenly.

    After a document start everything is alike.
    """

    vocab_size, context_length = VOCAB, 16

    def __init__(self) -> None:
        self.longest = 0

    def logits(self, ids):
        self.longest = max(self.longest, len(ids))
        out = np.full((len(ids), VOCAB), math.log(0.5 / (VOCAB - 1)), dtype=np.float32)
        out[np.arange(len(ids)), ids] = math.log(0.5)
        out[np.asarray(ids) == 256] = 0
        return out + 3  # logits need not be normalised

    def score(self, prefix_ids, continuations):
        return [token_logprobs(self, [*prefix_ids, *c])[len(prefix_ids) - 1 :].tolist() for c in continuations]


def test_perplexity_is_exact():
    found = evaluate(Bigram(), Bytes(), ["aaaa", "ab"])
    start, same, other = math.log(257), math.log(2), math.log(512)
    assert found.nats_each == pytest.approx((start + 3 * same, start + other))
    assert found.tokens == 6
    assert found.bytes == 6
    assert found.bits_per_byte == pytest.approx(found.nats / math.log(2) / 6)
    assert found.perplexity == pytest.approx(math.exp(found.nats / 6))
    assert found.interval.low <= found.interval.mean <= found.interval.high
    assert found.bits_each == pytest.approx([n / math.log(2) / b for n, b in zip(found.nats_each, (4, 2), strict=True)])


def test_windows_score_each_token_once_and_never_exceed_the_context():
    model = Bigram()
    found = evaluate(model, Bytes(), ["a" * 100], context=8)
    assert model.longest == 8
    assert found.tokens == 100  # each window spends one place on the document start
    assert found.nats == pytest.approx(15 * math.log(257) + 85 * math.log(2))


def test_without_a_document_start_the_first_byte_is_not_counted():
    found = evaluate(Bigram(), Bytes(None), ["a" * 10])
    assert (found.tokens, found.bytes) == (9, 9)
    assert found.bits_per_byte == pytest.approx(1)


def test_bytes_are_bytes_not_characters():
    assert evaluate(Bigram(), Bytes(), ["é"]).bytes == 2


def test_nothing_to_score():
    for texts in ([], ["", ""]):
        with pytest.raises(UsageError):
            evaluate(Bigram(), Bytes(), texts)
    with pytest.raises(UsageError):
        evaluate(Bigram(), Bytes(), ["a"], context=1)


def rows(*pairs):
    return [make_record("class", {"text": text, "label": label}, source="s") for text, label in pairs]


def test_classify_takes_the_likeliest_label():
    records = rows(("x", "y"), ("z", "n"))
    task = ClassTask("t", {"test": tuple(records)}, ("n", "y"))

    class Fixed:
        def score(self, prefix_ids, continuations):
            return [[-1.0], [-1.0, -1.0]] if ord("z") in prefix_ids else [[-3.0], [-1.0, -1.0]]

    found = classify(Fixed(), Bytes(), None, task, records)
    assert found.predictions == ("y", "n")
    assert found.correct == (1.0, 1.0)
    assert found.accuracy.mean == 1.0
    assert found.probabilities[0] == pytest.approx((1 / (1 + math.e), math.e / (1 + math.e)))
    # calibration divides by what an empty text gives: here it removes the model's leaning altogether
    found = classify(Fixed(), Bytes(), None, task, records, calibrate=True)
    assert found.probabilities[0] == pytest.approx((0.5, 0.5))


def test_classify_refuses():
    task = ClassTask("t", {}, ("n", "y"))
    with pytest.raises(UsageError):
        classify(Bigram(), Bytes(), None, task, [])
    with pytest.raises(FormatError, match="does not have: other"):
        classify(Bigram(), Bytes(), None, task, rows(("x", "other")))


def test_examples_are_earlier_turns_and_the_same_for_all():
    records = rows(("a", "y"), ("b", "n"), ("c", "y"), ("d", "y"))
    task = ClassTask("t", {"train": tuple(records)}, ("n", "y"), "Text: {text}", "Judge.")
    examples = pick_examples(records, 2)
    assert sorted(r["label"] for r in examples) == ["n", "y"]
    assert pick_examples(records[::-1], 2) == examples
    talk = with_examples(task, records[0], examples)
    assert [m.role for m in talk.messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert talk.messages[2].text == examples[0]["label"]
    text = bytes(i for i in prompt_ids(Bytes(), None, talk) if i < 256).decode()
    assert text.startswith("Judge.\nText: ")
    assert text.endswith("Text: a\nAnswer:")
    assert f"Answer: {examples[0]['label']}\n" in text


def test_choose():
    known = {"prompt": "aa", "choices": ["aa", "bc"]}
    records = [make_record("answer", {**known, "answer": answer}, source="s") for answer in ("aa", "bc")]
    assert choose(Bigram(), Bytes(), records).correct == (1.0, 0.0)
    assert len(choose(Bigram(), Bytes(), forgetting_probe()).correct) == len(forgetting_probe())
    with pytest.raises(FormatError):
        choose(Bigram(), Bytes(), rows(("a", "b")))
