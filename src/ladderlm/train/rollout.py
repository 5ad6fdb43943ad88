"""Rollouts: what the policy answers now, drawn by our own engine, whose weights are those that train.

Answers are drawn from the policy itself (temperature 1, no filters), so that the engine's log-probabilities are the
policy's; `check` says how nearly. The engine works in float32 whatever the base was stored in, and takes new weights
in place. What is drawn depends on the seed, the number of the round and the weights alone, so a run that is killed and
goes on draws the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from ladderlm import engine, events
from ladderlm.data.shapes import conversation
from ladderlm.engine.backend import Backend
from ladderlm.engine.engine import Engine
from ladderlm.errors import LadderError, NotFound, UsageError
from ladderlm.models.folder import ModelFiles
from ladderlm.models.weights import Blocks
from ladderlm.nn.backend import TorchBackend
from ladderlm.nn.decoder import Decoder
from ladderlm.nn.loss import Batch, make_shared, nats
from ladderlm.nn.tuned import merged_state
from ladderlm.text.render import render
from ladderlm.train.examples import make_all
from ladderlm.train.result import bad_rows
from ladderlm.types import FloatArray, Record, Sampling, Value

TOGETHER = 64  # prompts that are answered at a time
KV_BYTES = 2**31  # for keys and values on a GPU, whose memory the training needs
AGREE = 0.01  # nats by which engine and training model may differ over a token, in the mean


class PolicyWeights:
    """A copy of a decoder's weights as they are now, its adapters merged, in float32.

    Raises UsageError for virtual tokens, which are no part of the weights.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._held = merged_state(decoder)
        self._shapes = decoder.arch.tensor_shapes()

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def float32(self, name: str) -> FloatArray:
        if name not in self._held:
            raise NotFound(f"the model has no tensor {name!r}", where="policy")
        return self._held[name]

    def blocks(self, name: str) -> Blocks | None:
        return None


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked, and the record that says what a good answer is."""

    record: Record
    ids: list[int]


@dataclass(frozen=True, slots=True)
class Answer(Value):
    """What was drawn for a prompt (by its number): tokens, the one that ended it among them, and their
    log-probabilities. `stopped`: whether it ended before its room did. `reference` and `values`: what the reference
    and the value head think of every token, where that is needed."""

    prompt: int
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    stopped: bool
    reward: float = 0.0
    reference: tuple[float, ...] = ()
    values: tuple[float, ...] = ()


def load_prompts(
    name: str, records: Sequence[Record], files: ModelFiles, longest: int, *, skip_bad: bool
) -> list[Prompt]:
    """Records as prompts of at most `longest` tokens. A bad one is an error, or is left out with `skip_bad`."""

    def make(record: Record) -> Prompt:
        ids = render(conversation(record, answer=False), files.tokenizer, files.template).ids
        if len(ids) > longest:
            raise UsageError(f"a prompt of {len(ids)} tokens", where=f"most {longest}")
        return Prompt(record, ids)

    prompts, problems = make_all(records, make)
    bad_rows(name, problems, skip_bad)
    if not prompts:
        raise UsageError("no usable prompt", where=name)
    return prompts


class Roller:
    """Draws answers from a decoder that trains, or without one from the model in `files`. Close it, or use `with`."""

    def __init__(self, decoder: Decoder | None, files: ModelFiles, max_tokens: int, threads: int = 0) -> None:
        engine.check(files)
        self._decoder, self._tokenizer, self._max_tokens = decoder, files.tokenizer, max_tokens
        if decoder is None:
            self._engine = engine.load(files, threads=threads or None, speculate=False)
            return
        self._engine = Engine(_backend(decoder, threads), files.tokenizer, speculate=False)

    def update(self) -> None:
        """Takes over the decoder's weights as they are now."""
        if self._decoder is not None:
            self._engine.update(PolicyWeights(self._decoder))

    def sample(self, prompts: Sequence[Prompt], count: int, seed: int, round_: int) -> list[Answer]:
        """`count` answers to every prompt, in the order of the prompts."""
        return self._answers(prompts, [
            Sampling(max_tokens=self._max_tokens, n=count, logprobs=0, seed=_seed(seed, round_, i))
            for i in range(len(prompts))
        ])  # fmt: skip

    def greedy(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """The likeliest answer to every prompt."""
        sampling = Sampling(temperature=0, max_tokens=self._max_tokens, logprobs=0)
        return self._answers(prompts, [sampling] * len(prompts))

    def _answers(self, prompts: Sequence[Prompt], samplings: Sequence[Sampling]) -> list[Answer]:
        with ThreadPoolExecutor(min(TOGETHER, len(prompts))) as pool:
            found = pool.map(self._answer, range(len(prompts)), prompts, samplings)
            return [answer for answers in found for answer in answers]

    def _answer(self, number: int, prompt: Prompt, sampling: Sampling) -> list[Answer]:
        tokens: list[list[tuple[int, float]]] = [[] for _ in range(sampling.n)]
        ends = [False] * sampling.n
        for delta in self._engine.generate(prompt.ids, sampling):
            drawn = (*delta.tokens, *((delta.stop,) if delta.stop else ()))
            tokens[delta.index] += [(t.id or 0, t.logprob or 0.0) for t in drawn]
            ends[delta.index] |= delta.stop is not None
        return [
            Answer(
                number, tuple(i for i, _ in drawn), tuple(p for _, p in drawn),
                self._tokenizer.decode([i for i, _ in (drawn[:-1] if stopped else drawn)]).strip(), stopped,
            )
            for drawn, stopped in zip(tokens, ends, strict=True)
        ]  # fmt: skip

    def close(self) -> None:
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _backend(decoder: Decoder, threads: int) -> Backend:
    """Runs the decoder's weights where it trains, in float32 as the processor's engine does."""
    weights, device = PolicyWeights(decoder), decoder.model.embed_tokens.weight.device
    if device.type == "cpu":
        return engine.on_cpu(decoder.arch, weights, threads=threads or None)
    return TorchBackend(decoder.arch, weights, device=str(device), dtype=torch.float32, kv_bytes=KV_BYTES)


def _seed(*parts: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big")


class Order:
    """Which prompts a round asks: all of them again and again, each time shuffled anew."""

    def __init__(self, count: int, each: int, seed: int) -> None:
        self._count, self._each, self._seed = count, min(each, count), seed

    def __call__(self, round_: int) -> list[int]:
        return [self._at(round_ * self._each + k) for k in range(self._each)]

    def rounds_in(self, epochs: float) -> int:
        return max(1, round(epochs * self._count / self._each))

    def _at(self, place: int) -> int:
        epoch, i = divmod(place, self._count)
        return int(np.random.default_rng([self._seed, epoch]).permutation(self._count)[i])


def answers_batch(prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Batch:
    """Prompts with answers as documents, of which the answers' tokens are wanted; a prompt is read once."""
    documents = []
    for answer in answers:
        ids = prompts[answer.prompt].ids
        documents.append(([*ids, *answer.ids], [False] * len(ids) + [True] * len(answer.ids)))
    return make_shared(documents)


def pieces(prompts: Sequence[Prompt], answers: Sequence[Answer], budget: int) -> Iterator[list[int]]:
    """Indices of answers, in order, a token budget at a time. Prompts are counted once where answers share them."""
    group: list[int] = []
    filled = 0
    for i, answer in enumerate(answers):
        again = bool(group) and answers[group[-1]].prompt == answer.prompt
        size = len(answer.ids) + (0 if again else len(prompts[answer.prompt].ids))
        if group and filled + size > budget:
            yield group
            group, filled, size = [], 0, len(answer.ids) + len(prompts[answer.prompt].ids)
        group.append(i)
        filled += size
    if group:
        yield group


@torch.no_grad()
def check(decoder: Decoder, prompts: Sequence[Prompt], answers: Sequence[Answer], budget: int) -> float:
    """The mean difference, in nats a token, between what the engine and the training model think of the answers.

    Raises LadderError where it is above AGREE: rollouts of another model teach nothing.
    """
    decoder.eval()
    total, count = 0.0, 0
    for group in pieces(prompts, answers, budget):
        some = [answers[i] for i in group]
        sampled_N = torch.tensor([p for answer in some for p in answer.logprobs])
        total += (sampled_N + nats(decoder, answers_batch(prompts, some))).abs().sum().item()
        count += len(sampled_N)
    gap = total / max(count, 1)
    if not gap <= AGREE:
        raise LadderError(f"engine and training model differ by {gap:.3g} nats a token", where="rollouts",
                          cure="report this: their log-probabilities must be equal")  # fmt: skip
    events.emit("align", f"engine and training model agree within {gap:.2g} nats a token", data={"gap": gap})
    return gap
