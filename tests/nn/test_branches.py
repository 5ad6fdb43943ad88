"""Continuations of one prompt that is read once: the same figures and gradients as of each by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import foreign  # noqa: E402

from ladderlm.errors import ContextOverflow, UsageError  # noqa: E402
from ladderlm.models import open_model  # noqa: E402
from ladderlm.nn.decoder import Decoder, load_decoder  # noqa: E402
from ladderlm.nn.loss import Batch, make_batch, make_shared, nats  # noqa: E402
from ladderlm.nn.soft import add_soft  # noqa: E402
from ladderlm.nn.stack import recompute  # noqa: E402
from ladderlm.train.examples import per_document  # noqa: E402

PROMPTS = ([5, 6, 7, 8, 9, 10, 11], [5, 6, 7], [20])
ANSWERS = ([12, 13, 14], [15], [12, 16, 17, 18, 19], [12, 13])


def documents() -> list[tuple[list[int], list[bool]]]:
    """Not in the order of their prompts; one prompt has a single answer, one answer a single token."""
    pairs = [(p, a) for a in ANSWERS for p in PROMPTS[:2]] + [(PROMPTS[2], ANSWERS[0])]
    return [([*p, *a], [False] * len(p) + [True] * len(a)) for p, a in pairs]


def learn(decoder: Decoder, batch: Batch) -> tuple[Any, dict[str, Any]]:
    """nats_N, and the gradients of a sum in which every one weighs otherwise."""
    decoder.zero_grad()
    nats_N = nats(decoder, batch)
    (nats_N * torch.arange(1, len(nats_N) + 1)).sum().backward()
    return nats_N.detach(), {n: p.grad.clone() for n, p in decoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", foreign.MODELS)
def test_figures_and_gradients_are_those_of_each_by_itself(name: str, tmp_path: Path) -> None:
    decoder = load_decoder(open_model(str(foreign.save(foreign.make(name), tmp_path / "m"))))
    apart, shared = make_batch(documents()), make_shared(documents())
    assert shared.tokens < apart.tokens / 1.5
    assert shared.counts == apart.counts
    expected_N, expected = learn(decoder, apart)
    found_N, found = learn(decoder, shared)
    assert torch.allclose(found_N, expected_N, atol=1e-4)
    assert torch.allclose(per_document(found_N, shared), per_document(expected_N, apart), atol=1e-3)
    assert found.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values())  # some, as of keys' biases, are nought but rounding
    assert max(float((found[n] - g).abs().max()) for n, g in expected.items()) < 1e-4 * largest


def test_answers_do_not_see_one_another(tmp_path: Path) -> None:
    decoder = load_decoder(open_model(str(foreign.save(foreign.make("llama"), tmp_path / "m"))))
    recompute(decoder)
    first, *rest = documents()
    with torch.no_grad():
        among = nats(decoder, make_shared([first, *rest]))[: len(ANSWERS[0])]
        alone = nats(decoder, make_shared([first]))
    assert torch.allclose(among, alone, atol=1e-5)
    expected, again = learn(decoder, make_batch(documents()))[1], learn(decoder, make_shared(documents()))[1]
    assert all(torch.allclose(again[n], g, atol=1e-3, rtol=1e-3) for n, g in expected.items())


def test_what_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    decoder = load_decoder(open_model(str(foreign.save(foreign.make("llama"), tmp_path / "m"))))
    room = decoder.arch.context_length
    with pytest.raises(ContextOverflow, match=str(room + 1)):
        nats(decoder, make_shared([([1] * room + [2, 3], [False] * room + [True] * 2)]))
    add_soft(decoder, "prompt", 3)
    with pytest.raises(UsageError, match="virtual tokens"):
        nats(decoder, make_shared(documents()))
