"""Rounds of reinforcement: draw answers, reward them, learn from them for a few steps, and again.

A round depends on the seed, its number and the weights it begins with. Where several steps learn from it, it is kept in
the run's folder, so that a run killed between them goes on with the very same answers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from ladderlm import store
from ladderlm.evals.helped import Scored, did_it_help
from ladderlm.evals.outcome import Outcome, Sample
from ladderlm.models.folder import ModelFiles
from ladderlm.nn.decoder import Decoder, load_decoder
from ladderlm.nn.loss import nats
from ladderlm.nn.tuned import without_adapter
from ladderlm.train.aligning import two_sides
from ladderlm.train.checks import Checks, Reward, checkable
from ladderlm.train.reward import ScoredBy
from ladderlm.train.rollout import Answer, Order, Prompt, Roller, answers_batch, load_prompts, pieces
from ladderlm.train.settings import WEIGHTS, AlignConfig
from ladderlm.types import Record, Run

B = TypeVar("B")
SHOWN = 5  # samples on the page, and of a round in samples.jsonl
CHECKS = "checks"


@dataclass(frozen=True, slots=True)
class Drawn:
    """A round's answers, in the order of their prompts, with rewards and all else that the steps need.

    `beta` is the price of the divergence in this round; `figures` are logged with its steps.
    """

    prompts: Sequence[Prompt]
    answers: Sequence[Answer]
    beta: float
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Setting:
    """What reinforcement works with: both sides of the data, what rewards and what judges."""

    train: list[Prompt]
    held: list[Prompt]
    reward: Reward
    judge: Reward | None
    records: list[Record]


def setting(config: AlignConfig, files: ModelFiles) -> Setting:
    """Reads the data. A prompt without a check is an error where checks reward or judge."""
    records, held_records = two_sides(config)
    longest = min(config.max_length, files.arch.context_length) - 1
    reward = open_reward(config.reward, config.batch_tokens)
    judge = open_reward(config.judge, config.batch_tokens) if config.judge else None
    train = load_prompts(config.data, records, files, longest, skip_bad=config.skip_bad)
    held = load_prompts("held out", held_records, files, longest, skip_bad=config.skip_bad)
    if isinstance(reward, Checks) or isinstance(judge, Checks):
        for prompt in (*train, *held):
            checkable(prompt.record)
    return Setting(train, held, reward, judge, records)


def open_reward(ref: str, budget: int) -> Reward:
    return Checks() if ref in ("", CHECKS) else ScoredBy(ref, budget)


class Reference:
    """The model as it was before: the same one without its adapter, or a second copy."""

    def __init__(self, decoder: Decoder, files: ModelFiles, method: str) -> None:
        self._decoder = decoder
        self._copy: Decoder | None = None
        if method in WEIGHTS:
            self._copy = load_decoder(files).requires_grad_(False).to(torch.get_default_device())

    @torch.no_grad()
    def logprobs(self, prompts: Sequence[Prompt], answers: Sequence[Answer], budget: int) -> list[tuple[float, ...]]:
        """What it thinks of every token of every answer."""
        out: list[tuple[float, ...]] = []
        off: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self._copy is None:
            off = without_adapter(self._decoder)
        with off:
            for group in pieces(prompts, answers, budget):
                some = [answers[i] for i in group]
                values_N = -nats(self._copy or self._decoder, answers_batch(prompts, some))
                out += [tuple(part.tolist()) for part in values_N.split([len(a.ids) for a in some])]
        return out


class Rounds(Generic[B]):
    """The i-th batch of a run that draws what it learns from, for `fit`.

    A step learns from a whole round, in `accumulate` batches; `updates` steps in a row from the same one. `prepare`
    completes what was drawn (prices, values, the reference), with the round before it, if there was one; `make` gives
    the batch of some of its answers.
    """

    def __init__(
        self, config: AlignConfig, run: Run, roller: Roller, given: Setting, updates: int,
        prepare: Callable[[Drawn, Mapping[str, Any]], Drawn], make: Callable[[Drawn, Sequence[int]], B],
    ) -> None:  # fmt: skip
        self._config, self._run, self._roller, self._given = config, run, roller, given
        self.updates, self._prepare, self._make = updates, prepare, make
        self._order = Order(len(given.train), config.prompts, config.seed)
        self._folder = store.make_dir(run.path / "rounds")
        self._number, self._drawn = -1, Drawn((), (), 0.0, {})
        prompts, longest = min(config.prompts, len(given.train)), max(len(p.ids) for p in given.train)
        tokens = prompts * (longest + config.samples * config.max_tokens)
        self.accumulate = min(prompts * config.samples, math.ceil(tokens / config.batch_tokens))

    def steps_in(self, epochs: float) -> int:
        return self._order.rounds_in(epochs) * self.updates

    def __call__(self, i: int) -> B:
        step, part = divmod(i, self.accumulate)
        number, update = divmod(step, self.updates)
        if number != self._number:
            kept = self._path(number)
            self._drawn = self._read(number) if update and kept.exists() else self._draw(number, step)
            self._number = number
        prompts, answers = self._drawn.prompts, self._drawn.answers
        # The answers to a prompt stay together, as they share it.
        order = sorted(range(len(answers)), key=lambda k: (-len(prompts[answers[k].prompt].ids), answers[k].prompt, k))
        first, last = (len(order) * p // self.accumulate for p in (part, part + 1))
        return self._make(self._drawn, order[first:last])

    def _draw(self, number: int, step: int) -> Drawn:
        self._roller.update()
        prompts = [self._given.train[k] for k in self._order(number)]
        answers = self._roller.sample(prompts, self._config.samples, self._config.seed, number)
        records, texts = [prompts[a.prompt].record for a in answers], [a.text for a in answers]
        rewards = self._given.reward(records, texts)
        answers = [dataclasses.replace(a, reward=r) for a, r in zip(answers, rewards, strict=True)]
        count, tokens = len(answers), sum(len(a.ids) for a in answers)
        figures = {
            "reward": sum(rewards) / count,
            "length": tokens / count,
            "entropy": -sum(p for a in answers for p in a.logprobs) / tokens,  # its estimate from what was drawn
            "stopped": sum(a.stopped for a in answers) / count,
        }
        if self._given.judge is not None:
            figures["judged"] = sum(self._given.judge(records, texts)) / count
        drawn = self._prepare(Drawn(prompts, answers, self._config.price, figures), self._before(number))
        self._write(number, drawn)
        for answer in drawn.answers[:: max(1, count // SHOWN)]:
            asked = str(prompts[answer.prompt].record.fields.get("prompt", ""))
            row = {"step": step + 1, "prompt": asked, "answer": answer.text, "reward": answer.reward}
            store.append_jsonl(self._run.samples, row)
        return drawn

    def forget(self) -> None:
        """Drops the rounds that are kept: the result has been saved."""
        shutil.rmtree(self._folder, ignore_errors=True)

    # --- Kept rounds ----------------------------------------------------------------------------------------------

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}.json"

    def _write(self, number: int, drawn: Drawn) -> None:
        """Keeps the round, and drops those before the oldest checkpoint."""
        found: dict[str, Any] = {"format": 1, "beta": drawn.beta, "figures": dict(drawn.figures)}
        store.write_json(self._path(number), found | {"answers": [a.to_dict() for a in drawn.answers]})
        steps = [int(p.name.rpartition("-")[2]) for p in self._run.checkpoints.glob("step-*")]
        oldest = min(steps, default=0) // self.updates - 1
        for path in self._folder.glob("*.json"):
            if int(path.stem) < oldest:
                path.unlink()

    def _read(self, number: int) -> Drawn:
        found = store.read_json(self._path(number))
        prompts = [self._given.train[k] for k in self._order(number)]
        answers = [Answer.from_dict(a) for a in found["answers"]]
        return Drawn(prompts, answers, found["beta"], found["figures"])

    def _before(self, number: int) -> Mapping[str, Any]:
        """What was kept of the last round before this one."""
        numbers = [int(p.stem) for p in self._folder.glob("*.json") if int(p.stem) < number]
        return store.read_json(self._path(max(numbers))) if numbers else {}


# --- Did it help? -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Judged:
    """Greedy answers to the held-out prompts, their rewards, and what the judge says of them."""

    texts: list[str]
    rewards: list[float]
    judged: list[float]
    lengths: list[int]


class HeldPrompts:
    """The held-out prompts for train/page.py, answered by the engine; `seen` keeps each time's answers."""

    def __init__(self, roller: Roller, given: Setting) -> None:
        self._roller, self._given = roller, given
        self.seen: list[Judged] = []

    def measure(self, model: Decoder) -> list[Scored]:
        """The judge's score, where there is one, before the reward, which can be hacked."""
        given = self._given
        self._roller.update()
        answers = self._roller.greedy(given.held)
        records, texts = [p.record for p in given.held], [a.text for a in answers]
        judged = given.judge(records, texts) if given.judge is not None else []
        found = Judged(texts, given.reward(records, texts), judged, [len(a.ids) for a in answers])
        self.seen.append(found)
        names = tuple(record.id for record in records)
        scored = [Scored(f"held-out {given.reward.name}", names, tuple(found.rewards))]
        if given.judge is not None:
            scored.insert(0, Scored(f"held-out {given.judge.name}, which judges", names, tuple(judged)))
        return scored

    def samples(self, model: Decoder) -> list[Sample]:
        last, held = self.seen[-1], self._given.held[:SHOWN]
        asked = [p.record.fields for p in held]
        return [
            Sample(str(fields.get("prompt", "")), str(fields.get("answer", "")), f"{text} [{reward:.3g}]")
            for fields, text, reward in zip(asked, last.texts, last.rewards, strict=False)
        ]


def compare(held: HeldPrompts, outcome: Outcome, given: Setting, seed: int) -> tuple[dict[str, Any], str]:
    """Whether the held-out score rose: the judge's where there is one, for the reward itself can be hacked."""
    before, after = held.seen[0], held.seen[-1]
    reward = did_it_help(f"held-out {given.reward.name}", before.rewards, after.rewards, seed=seed)
    helped = reward
    if given.judge is not None:
        helped = did_it_help(f"held-out {given.judge.name}, which judges", before.judged, after.judged, seed=seed)
    lengths = [sum(side.lengths) / len(side.lengths) for side in (before, after)]
    scores: dict[str, Any] = {
        **outcome.scores(),
        "reward_before": reward.before.mean,
        "reward": reward.after.mean,
        "answer_tokens_before": lengths[0],
        "answer_tokens": lengths[1],
        "reward_change": reward.to_dict(),
        "helped": helped.to_dict(),
    }
    summary = str(helped)
    if given.judge is not None:
        scores |= {"judged_before": helped.before.mean, "judged": helped.after.mean}
        scores["hacked"] = reward.verdict == "helped" and helped.verdict == "harmed"
        summary += f" The reward: {reward.change}."
        if scores["hacked"]:
            summary += " The reward is hacked: it went up while what judges the answers went down."
    return scores, summary
