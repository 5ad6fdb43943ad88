"""What a model reads to fill in the middle: as it was trained."""

from __future__ import annotations

from typing import Any

import pytest

from ladderlm.errors import UsageError
from ladderlm.text.bpe import SPECIAL, train_bpe
from ladderlm.text.middle import MIDDLE, middle_ids


@pytest.mark.parametrize(
    "names",
    [MIDDLE, ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")],
)
def test_each_familys_tokens_are_found(names: tuple[str, ...]) -> None:
    tokenizer = train_bpe(["one two three"], 300, (*SPECIAL, *names))
    before, after, between = (tokenizer.control[name] for name in names)
    start = tokenizer.document_start_id
    assert middle_ids(tokenizer, [5], [6, 7]) == [start, before, 5, after, 6, 7, between]


def test_others_say_that_they_cannot() -> None:
    with pytest.raises(UsageError, match="fill in the middle"):
        middle_ids(train_bpe(["one two three"], 300), [5], [6])


def test_it_is_what_training_shows() -> None:
    causal: Any = pytest.importorskip("ladderlm.train.causal")
    tokenizer = train_bpe(["one two three"], 300, (*SPECIAL, *MIDDLE))
    objective = object.__new__(causal.FillMiddle)
    objective.marks, objective.start = tuple(tokenizer.control[name] for name in MIDDLE), tokenizer.document_start_id
    whole = objective.reordered([5], [8, 9], [6, 7], suffix_first=False)
    assert whole[: len(whole) - 3] == middle_ids(tokenizer, [5], [6, 7])
    assert whole[-1] in tokenizer.stop_ids
