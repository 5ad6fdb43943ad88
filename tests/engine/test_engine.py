"""The engine's promises: exact, deterministic, cancellable, fair; one request's error is its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
from engine_models import EOS, KindWeights, tiny

from ladderlm.engine import on_cpu
from ladderlm.engine.engine import Engine
from ladderlm.engine.request import QUEUE
from ladderlm.engine.sample import logprob
from ladderlm.engine.uniform import Uniform
from ladderlm.errors import ContextOverflow, DeadlineExceeded, UsageError
from ladderlm.types import Completion, Model, Sampling

PROMPT = list(range(40, 60))
BANNED_END = ((EOS, -1000.0),)


def write(model: Model, ids: Sequence[int], **sampling: object) -> Completion:
    return Completion.fold(model.generate(ids, Sampling(**sampling)))  # type: ignore[arg-type]


def test_is_a_model(engine: Engine) -> None:
    assert isinstance(engine, Model)
    assert isinstance(Uniform(10), Model)


def test_greedy_takes_the_likeliest_of_the_logits(engine: Engine) -> None:
    found = write(engine, PROMPT, temperature=0, max_tokens=12, logit_bias=BANNED_END, logprobs=2)
    choice = found.choices[0]
    rows = engine.logits([*PROMPT, *choice.ids])[len(PROMPT) - 1 :]
    for row, token in zip(rows, choice.tokens, strict=False):
        assert token.id == np.argmax(row[:EOS])
        assert token.logprob == pytest.approx(logprob(row, token.id))
        assert [c.logprob for c in token.top] == sorted((c.logprob for c in token.top), reverse=True)
        assert len(token.top) == 2
    assert choice.finish_reason == "length"
    assert found.usage.prompt_tokens == len(PROMPT)
    assert found.usage.completion_tokens == 12


def test_a_stop_id_ends_it_and_is_not_part_of_the_answer(engine: Engine) -> None:
    free = write(engine, PROMPT, temperature=0, max_tokens=12, logit_bias=BANNED_END).choices[0].ids
    found = write(engine, PROMPT, temperature=0, max_tokens=12, logit_bias=BANNED_END, stop_ids=(free[4],)).choices[0]
    assert found.ids == free[: free.index(free[4])]
    assert found.finish_reason == "stop"


def test_min_tokens_hold_the_end_back(engine: Engine) -> None:
    wants_end = ((EOS, 1000.0),)
    assert write(engine, PROMPT, max_tokens=9, logit_bias=wants_end).choices[0].ids == ()
    assert len(write(engine, PROMPT, max_tokens=9, min_tokens=5, logit_bias=wants_end).choices[0].ids) == 5


def test_a_seed_gives_the_same_answer_alone_and_in_company(engine: Engine) -> None:
    prompts = [PROMPT[: 3 + i] * (1 + i % 3) for i in range(8)]
    alone = [write(engine, p, seed=i, max_tokens=20).choices for i, p in enumerate(prompts)]
    together: dict[int, object] = {}

    def one(i: int) -> None:
        together[i] = write(engine, prompts[i], seed=i, max_tokens=20).choices

    threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [together[i] for i in range(8)] == alone
    assert len({c[0].ids for c in alone}) > 1


def test_several_answers_share_the_prompt_and_keep_their_seeds(engine: Engine) -> None:
    three = write(engine, PROMPT, seed=7, max_tokens=10, n=3)
    five = write(engine, PROMPT, seed=7, max_tokens=10, n=5)
    assert [c.index for c in three.choices] == [0, 1, 2]
    assert three.choices == five.choices[:3]
    assert len({c.ids for c in five.choices}) > 1
    assert three.usage.prompt_tokens == len(PROMPT)


def test_best_of_returns_the_likeliest(engine: Engine) -> None:
    every = write(engine, PROMPT, seed=3, max_tokens=8, n=6, logprobs=0, logit_bias=BANNED_END).choices
    best = write(engine, PROMPT, seed=3, max_tokens=8, n=2, best_of=6, logprobs=0, logit_bias=BANNED_END).choices

    def mean(choice: object) -> float:
        return float(np.mean([t.logprob for t in choice.tokens]))  # type: ignore[attr-defined]

    assert [c.ids for c in best] == [c.ids for c in sorted(every, key=mean, reverse=True)[:2]]


def test_prompt_logprobs_are_those_of_the_logits(engine: Engine) -> None:
    found = write(engine, PROMPT, prompt_logprobs=3, max_tokens=0).prompt
    rows = engine.logits(PROMPT)
    assert found[0].logprob is None
    for i, token in enumerate(found[1:]):
        assert token.logprob == pytest.approx(logprob(rows[i], PROMPT[i + 1]))
        assert token.top[0].id == np.argmax(rows[i])
    assert [t.id for t in found] == PROMPT


def test_next_logits_are_the_last_row(engine: Engine) -> None:
    assert np.array_equal(engine.next_logits(PROMPT), engine.logits(PROMPT)[-1])


def test_score_agrees_with_logits(engine: Engine) -> None:
    continuations = [[5], [6, 7, 8], [], [5, 9]]
    scores = engine.score(PROMPT, continuations)
    assert [len(s) for s in scores] == [1, 3, 0, 2]
    for continuation, score in zip(continuations, scores, strict=True):
        rows = engine.logits([*PROMPT, *continuation])[len(PROMPT) - 1 :]
        assert score == [pytest.approx(logprob(r, i)) for r, i in zip(rows, continuation, strict=False)]


def test_a_known_prefix_is_not_computed_again_and_changes_nothing() -> None:
    arch = tiny(context_length=160)
    long = [i % 250 for i in range(100)]
    with Engine(on_cpu(arch, KindWeights(arch), threads=1)) as fresh:
        expected = write(fresh, [*long, 7, 8], seed=1, max_tokens=10, logprobs=1)
    with Engine(on_cpu(arch, KindWeights(arch), threads=1)) as warm:
        write(warm, long, seed=9, max_tokens=5)
        found = write(warm, [*long, 7, 8], seed=1, max_tokens=10, logprobs=1)
    assert expected.usage.cached_tokens == 0
    assert found.usage.cached_tokens == 100
    assert found.choices == expected.choices


def test_cancel_ends_it_and_says_so(engine: Engine) -> None:
    cancel = threading.Event()
    deltas = engine.generate(PROMPT, Sampling(logit_bias=BANNED_END), cancel=cancel)
    first = next(deltas)
    cancel.set()
    rest = Completion.fold([first, *deltas])
    assert rest.choices[0].finish_reason == "cancelled"
    assert len(rest.choices[0].ids) < 140


def test_a_passed_deadline_raises(engine: Engine) -> None:
    with pytest.raises(DeadlineExceeded):
        list(engine.generate(PROMPT, Sampling(), deadline=time.monotonic() - 1))


def test_closing_the_iterator_frees_the_request(engine: Engine) -> None:
    deltas = engine.generate(PROMPT, Sampling(logit_bias=BANNED_END))
    next(deltas)
    deltas.close()  # type: ignore[attr-defined]
    until = time.monotonic() + 5
    while engine._scheduler._active and time.monotonic() < until:
        time.sleep(0.01)
    assert not engine._scheduler._active


def test_a_slow_reader_pauses_only_itself(engine: Engine) -> None:
    slow = engine.generate(PROMPT, Sampling(logit_bias=BANNED_END, seed=1))
    next(slow)
    assert len(write(engine, PROMPT, max_tokens=100, logit_bias=BANNED_END).choices[0].ids) == 100
    (request,) = engine._scheduler._active
    assert request.deltas.qsize() <= QUEUE + 1
    assert len(Completion.fold(slow).choices[0].ids) == 160 - len(PROMPT) - 1


@pytest.mark.parametrize("model", ["engine", "uniform"])
@pytest.mark.parametrize(
    ("ids", "error"), [([], UsageError), ([1, 257], UsageError), ([-1], UsageError), ([1] * 161, ContextOverflow)]
)
def test_a_bad_prompt_is_refused_at_once(model: str, ids: list[int], error: type[Exception], engine: Engine) -> None:
    target = engine if model == "engine" else Uniform(257, 160)
    with pytest.raises(error):
        target.generate(ids, Sampling())
    with pytest.raises(error):
        target.logits(ids)


def test_a_full_context_has_no_room(engine: Engine) -> None:
    with pytest.raises(ContextOverflow):
        engine.generate([1] * 160, Sampling())
    assert write(engine, [1] * 160, max_tokens=0).usage.completion_tokens == 0
    assert len(write(engine, [1] * 158, max_tokens=9, logit_bias=BANNED_END).choices[0].ids) == 2


def test_a_failing_step_ends_its_requests_and_not_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    arch = tiny()
    with Engine(on_cpu(arch, KindWeights(arch), threads=1)) as engine:
        run = engine._backend.run
        monkeypatch.setattr(engine._backend, "run", lambda pieces: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.logits(PROMPT)
        monkeypatch.setattr(engine._backend, "run", run)
        assert engine.logits(PROMPT).shape == (20, 257)


def test_a_closed_engine_refuses() -> None:
    arch = tiny()
    engine = Engine(on_cpu(arch, KindWeights(arch), threads=2))
    engine.close()
    engine.close()
    with pytest.raises(UsageError):
        list(engine.generate(PROMPT, Sampling()))


def test_uniform_draws_every_token_alike() -> None:
    found = write(Uniform(8, 2000), [1], seed=0, max_tokens=1600).choices[0]
    counts = np.bincount(found.ids, minlength=8)
    assert len(found.ids) == 1600
    assert counts.min() > 150
    assert found.ids == write(Uniform(8, 2000), [1], seed=0, max_tokens=1600).choices[0].ids
