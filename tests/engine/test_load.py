"""Under load: who goes first, how long a step may last, and what ends one request ends no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import EOS, KindWeights, byte_tokenizer, tiny

from ladderlm import engine as engines
from ladderlm.engine import on_cpu
from ladderlm.engine.engine import Engine
from ladderlm.engine.scheduler import AGE, LATENCY
from ladderlm.errors import ContextOverflow, DeadlineExceeded, FormatError, UsageError
from ladderlm.models.folder import load_folder, save_model
from ladderlm.types import Completion, Delta, Sampling

FREE = ((EOS, -1000.0),)
BLOCK_BYTES = 2 * 2 * 32 * (16 + 32) * 4  # of the tiny model


class Held:
    """An engine whose steps wait until they are let go, with what each step did written down."""

    def __init__(self, **options: Any) -> None:
        arch = tiny()
        backend = on_cpu(arch, KindWeights(arch), threads=1)
        self._run, backend.run = backend.run, self._held  # type: ignore[method-assign]
        self.steps: list[list[int]] = []  # tokens of each piece
        self.begun: list[int] = []  # the first tokens of prompts, in the order they were read
        self.go, self.inside = threading.Event(), threading.Event()
        self.pause, self.paused = -1, threading.Event()  # before this step they are held again
        self.engine = Engine(backend, byte_tokenizer(), speculate=False, **options)

    def _held(self, pieces: Any) -> Any:
        if len(self.steps) == self.pause:
            self.go.clear()
            self.paused.set()
        self.inside.set()
        self.go.wait(20)
        self.steps.append([len(piece.ids) for piece in pieces])
        self.begun += [piece.ids[0] for piece in pieces if not len(piece.cache)]
        return self._run(pieces)

    def wait(self, requests: int) -> None:
        """Until so many have come, none of them further than its first step."""
        scheduler = self.engine._scheduler
        until = time.monotonic() + 20
        while len(scheduler._waiting) + len(scheduler._active) < requests and time.monotonic() < until:
            time.sleep(0.001)


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    made.go.set()
    made.engine.close()


class Asked(threading.Thread):
    """A request in a thread of its own: its answer or its error, and when it ended."""

    def __init__(self, engine: Engine, ids: Sequence[int], **options: Any) -> None:
        super().__init__()
        self._request = {key: options.pop(key) for key in ("priority", "cancel", "deadline") if key in options}
        self._engine, self._ids = engine, ids
        self._sampling = Sampling(**{"logit_bias": FREE, "seed": 1, "max_tokens": 8, **options})
        self.deltas: list[Delta] = []
        self.error: Exception | None = None
        self.began = self.ended = 0.0
        self.start()

    def run(self) -> None:
        try:
            for delta in self._engine.generate(self._ids, self._sampling, **self._request):
                self.began = self.began or time.monotonic()
                self.deltas.append(delta)
        except Exception as error:
            self.error = error
        self.ended = time.monotonic()

    @property
    def answer(self) -> Completion:
        self.join()
        if self.error:
            raise self.error
        return Completion.fold(iter(self.deltas))


def test_a_higher_priority_goes_first_but_not_before_all_that_waited_long(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(kv_bytes=2 * BLOCK_BYTES)  # one request of these at a time
    first = Asked(held.engine, [1] * 40)
    assert held.inside.wait(20)
    now, later = time.monotonic(), 0.0
    monkeypatch.setattr("ladderlm.engine.scheduler.time.monotonic", lambda: now + later)
    old = Asked(held.engine, [2] * 40)
    held.wait(2)
    later = 1.5 * AGE
    low, high = Asked(held.engine, [3] * 40), None
    held.wait(3)
    high = Asked(held.engine, [4] * 40, priority=1)
    held.wait(4)
    monkeypatch.undo()
    held.go.set()
    for asked in (first, old, low, high):
        assert len(asked.answer.choices[0].ids) == 8
    assert held.begun == [1, 2, 4, 3]
    held.engine.close()


def test_who_is_displaced_goes_on_later_with_the_same_answer(held: Held) -> None:
    held.go.set()
    expected = Asked(held.engine, [1] * 40, max_tokens=60).answer.choices
    tight = Held(kv_bytes=4 * BLOCK_BYTES)
    low = Asked(tight.engine, [1] * 40, max_tokens=60, priority=-1)
    tight.wait(1)
    high = Asked(tight.engine, [2] * 40, max_tokens=60)
    tight.wait(2)
    tight.go.set()
    assert len(high.answer.choices[0].ids) == 60
    assert low.answer.choices == expected
    assert high.ended <= low.ended
    tight.engine.close()


def test_a_long_prompt_leaves_the_answers_of_others_their_pace(held: Held) -> None:
    clock = held.engine._scheduler._clock
    clock.add_prompt = lambda *_: None  # type: ignore[method-assign]
    clock.prompt_row = LATENCY / 20  # a step has room for twenty of its tokens
    writing = Asked(held.engine, [1, 2, 3], max_tokens=60)
    assert held.inside.wait(20)
    held.pause = 3
    held.go.set()
    reading = Asked(held.engine, list(range(150)), max_tokens=2)
    held.wait(2)
    assert held.paused.wait(20)
    held.go.set()
    reading.join()
    writing.join()
    mixed = [step for step in held.steps if len(step) == 2 and max(step) > 1]
    assert len(mixed) >= 7
    assert all(min(step) == 1 and max(step) <= 20 for step in mixed)


def test_cancel_and_deadline_under_load_end_only_their_own(held: Held) -> None:
    cancel = threading.Event()
    others = [Asked(held.engine, [i] * 20, max_tokens=40) for i in range(1, 7)]
    late = Asked(held.engine, [90] * 20, max_tokens=100, deadline=time.monotonic() + 0.05)
    stopped = Asked(held.engine, [91] * 20, max_tokens=100, cancel=cancel)
    held.wait(8)
    cancel.set()
    time.sleep(0.06)
    held.go.set()
    with pytest.raises(DeadlineExceeded):
        _ = late.answer
    assert stopped.answer.choices[0].finish_reason == "cancelled"
    assert all(len(other.answer.choices[0].ids) == 40 for other in others)


def test_what_cannot_be_answered_fails_alone(held: Held) -> None:
    held.go.set()
    fine = Asked(held.engine, [1] * 20, max_tokens=60)
    (letter,) = byte_tokenizer().encode("a")
    only_a = {"type": "regex", "regex": "a"}
    nothing = Asked(held.engine, [2] * 20, response_format=only_a, logit_bias=((letter, -np.inf), *FREE))
    long = Asked(held.engine, [3] * 500)
    with pytest.raises(UsageError):
        _ = nothing.answer
    with pytest.raises(ContextOverflow):
        _ = long.answer
    assert len(fine.answer.choices[0].ids) == 60


def test_fifty_continuations_are_scored_in_few_steps(held: Held) -> None:
    held.go.set()
    continuations = [[i, i + 1, i + 2] for i in range(50)]
    prefix = list(range(100))
    found = held.engine.score(prefix, continuations)
    assert len(held.steps) <= 3
    assert sum(map(sum, held.steps)) <= 100 + 50 * 2
    alone = held.engine.score(prefix, [continuations[7]])[0]
    assert found[7] == alone


def test_a_folder_of_weights_that_are_no_numbers_says_so(tmp_path: Path) -> None:
    arch = tiny()
    weights = KindWeights(arch)
    damaged = {name: weights.float32(name).copy() for name in weights.names()}
    damaged["model.norm.weight"][3] = np.nan
    folder = tmp_path / "m"
    save_model(folder, arch, damaged, byte_tokenizer(), None, generation={}, lineage={})
    engine = engines.load(load_folder(folder, str(folder), "m"), threads=1)
    with engine, pytest.raises(FormatError, match="not numbers"):
        Completion.fold(engine.generate([1, 2, 3], Sampling(max_tokens=4)))
