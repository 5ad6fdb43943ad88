"""The pieces of work that `bench` times, the same for every system."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from ladderlm.errors import LadderError

Ids = list[int]
Ask = Callable[[Ids, int], Iterator[int]]  # a prompt and how much to write; counts of tokens, as they come


class Work(NamedTuple):
    """`sequences`, each with a `prompt` of so many tokens, of which each writes `tokens`.

    kind "prefill": reading, "decode": writing one token of each a step, both without sampling and in tok/s; "first":
    seconds from asking to the first token; "answers": tok/s written from asking to the last token of all, requests
    sent at once.
    """

    name: str
    says: str
    kind: str
    sequences: int
    prompt: int
    tokens: int

    @property
    def unit(self) -> str:
        return "s" if self.kind == "first" else "tok/s"

    @property
    def length(self) -> int:
        """Positions that a sequence takes."""
        return self.prompt + self.tokens


def works(tokens: int) -> tuple[Work, ...]:
    """What is measured; `tokens` are written by each sequence."""
    together = tuple(
        Work(f"decode_{n}_together", f"decode, {n} together", "decode", n, 64, tokens) for n in (8, 32)
    )  # fmt: skip
    answers = tuple(
        Work(f"answers_{n}", f"answers, {n} at once", "answers", n, 64, tokens) for n in (1, 8, 32)
    )  # fmt: skip
    return (
        Work("decode_128", "decode at 128", "decode", 1, 128, tokens),
        Work("decode_1024", "decode at 1,024", "decode", 1, 1024, tokens),
        Work("prefill_512", "prefill of 512", "prefill", 1, 512, 0),
        *together,
        Work("first_token_512", "first token after 512", "first", 1, 512, 1),
        *answers,
    )


class System(Protocol):
    """Something that runs a model. `about` says what it is: version, processor, memory.

    `warms_up`: whether it does so by itself before every measurement.
    """

    name: str
    warms_up: bool
    about: dict[str, Any]

    def measure(self, work: Work) -> float | None:
        """The figure, on prompts never seen before; None for work that it has no door for."""

    def close(self) -> None: ...


def through_the_door(ask: Ask, prompts: Sequence[Ids], work: Work) -> float:
    """Work of the kinds "first" and "answers"."""
    if work.kind == "first":
        start = time.perf_counter()
        stream = ask(prompts[0], 1)
        next(count for count in stream if count)
        seconds = time.perf_counter() - start
        for _ in stream:  # to its end, so that it is not cancelled
            pass
        return seconds
    written: list[int] = []
    failed: list[BaseException] = []

    def one(prompt: Ids) -> None:
        try:
            written.append(sum(ask(prompt, work.tokens)))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=one, args=(prompt,), daemon=True) for prompt in prompts]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return sum(written) / (time.perf_counter() - start)


def fresh_prompts(random: np.random.Generator, vocab: int, work: Work) -> list[Ids]:
    """A prompt for each sequence; of sequences that are decoded together all begin with the same one."""
    if work.kind == "decode":
        return [[int(i) for i in random.integers(0, vocab, work.prompt)]] * work.sequences
    return [[int(i) for i in random.integers(0, vocab, work.prompt)] for _ in range(work.sequences)]


def need(found: Mapping[str, Any], name: str, where: str) -> float:
    """A number out of another program's JSON."""
    value = found.get(name)
    if not isinstance(value, (int, float)):
        raise LadderError(f"no {name!r} in what it printed", where=where, cure="use a version from 2026 on")
    return float(value)
