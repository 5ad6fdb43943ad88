"""Group-relative policy optimisation (Shao et al. 2024): several answers to a prompt, each judged beside the others.

advantage = (reward - mean of the group) / (deviation of the group + 1e-4), the same for all tokens of an answer;
loss = -min(ratio A, clip(ratio) A) + beta kl, ratio = p / p_drawn, kl = q/p - log q/p - 1 with the reference q
(Schulman 2020). The mean is over all tokens (as DAPO has it) or over answers, each the mean of its own tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ladderlm.errors import UsageError
from ladderlm.models.folder import ModelFiles
from ladderlm.nn.decoder import Decoder
from ladderlm.nn.loss import Batch, nats
from ladderlm.train.aligning import loop_config, panels
from ladderlm.train.distributed import World
from ladderlm.train.loop import fit
from ladderlm.train.page import Page
from ladderlm.train.result import Result, check_finished, conclude, describe_data, destination
from ladderlm.train.rollout import Roller, answers_batch, check
from ladderlm.train.rounds import Drawn, HeldPrompts, Reference, Rounds, compare, setting
from ladderlm.train.settings import AlignConfig
from ladderlm.train.tuning import prepare, save_tuned
from ladderlm.types import Run


@dataclass(frozen=True, slots=True)
class GroupBatch:
    """Answers with their prompts; by token: log-probability when drawn, the reference's, advantage, whose it is."""

    batch: Batch
    drawn_N: Tensor
    reference_N: Tensor
    advantage_N: Tensor
    owners_N: Tensor
    weight: int
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return self.batch.tokens


def advantages(rewards_GS: Tensor) -> Tensor:
    """Rewards of G groups of S answers, each against its group."""
    deviation_G1 = rewards_GS.std(1, keepdim=True)
    return (rewards_GS - rewards_GS.mean(1, keepdim=True)) / (deviation_G1 + 1e-4)


def grpo_loss(
    policy_N: Tensor, batch: GroupBatch, *, beta: float, clip: float, average: str = "token"
) -> tuple[Tensor, dict[str, float]]:
    """The loss of answers whose tokens have the log-probabilities policy_N, and what to watch."""
    ratio_N = (policy_N - batch.drawn_N).exp()
    advantage_N = batch.advantage_N
    bounded_N = ratio_N.clamp(1 - clip, 1 + clip)
    loss_N = -torch.minimum(ratio_N * advantage_N, bounded_N * advantage_N)
    behind_N = batch.reference_N - policy_N
    kl_N = behind_N.exp() - behind_N - 1
    if beta:
        loss_N = loss_N + beta * kl_N
    figures = {
        "kl": kl_N.detach().mean().item(),
        "clipped": (bounded_N * advantage_N < ratio_N * advantage_N).float().mean().item(),
    }
    if average == "token":
        return loss_N.mean(), figures
    counts_B = torch.bincount(batch.owners_N).float()
    return (torch.zeros_like(counts_B).index_add(0, batch.owners_N, loss_N) / counts_B).mean(), figures


def group_batch(drawn: Drawn, some: Sequence[int], samples: int, average: str) -> GroupBatch:
    """The batch of those of a round's answers that `some` names."""
    rewards_GS = torch.tensor([a.reward for a in drawn.answers]).view(-1, samples)
    advantage_B = advantages(rewards_GS).flatten()
    answers = [drawn.answers[i] for i in some]
    batch = answers_batch(drawn.prompts, answers)
    owners_N = batch.owners_N
    values = [torch.tensor([x for a in answers for x in getattr(a, name)]) for name in ("logprobs", "reference")]
    weight = len(owners_N) if average == "token" else len(answers)
    return GroupBatch(batch, values[0], values[1], advantage_B[list(some)][owners_N], owners_N, weight, drawn.figures)


def learn(config: AlignConfig, run: Run, files: ModelFiles) -> Result:
    """Reinforces what the rewards say; `run` and `files` are the run begun and the model to align."""
    if config.samples < 2:
        raise UsageError("a group needs at least two answers", where=f"samples={config.samples}")
    given = setting(config, files)
    decoder, optimiser = prepare(config, files, lora_lr=2e-4, full_lr=2e-6)
    reference = Reference(decoder, files, config.method)

    def complete(drawn: Drawn, before: Mapping[str, Any]) -> Drawn:
        known = reference.logprobs(drawn.prompts, drawn.answers, config.batch_tokens)
        answers = [dataclasses.replace(a, reference=r) for a, r in zip(drawn.answers, known, strict=True)]
        deviation_G = torch.tensor([a.reward for a in answers]).view(-1, config.samples).std(1)
        told = {"told_apart": (deviation_G > 0).float().mean().item()}  # groups that teach anything
        return dataclasses.replace(drawn, answers=answers, figures={**drawn.figures, **told})

    def loss(model: Decoder, batch: GroupBatch) -> tuple[Tensor, dict[str, float]]:
        found, figures = grpo_loss(
            -nats(model, batch.batch), batch, beta=config.price, clip=config.clip, average=config.average
        )
        return found, {**figures, **batch.figures}

    with Roller(decoder, files, config.max_tokens, config.threads) as roller:
        held = HeldPrompts(roller, given)
        told = Page(decoder, files, held, config.seed)
        gap = check(decoder, given.held[:4], roller.sample(given.held[:4], 1, config.seed, -1), config.batch_tokens)
        rounds = Rounds(
            config, run, roller, given, config.updates or 1, complete,
            lambda drawn, some: group_batch(drawn, some, config.samples, config.average),
        )  # fmt: skip
        loop = loop_config(config, rounds.steps_in(config.epochs), rounds.accumulate)
        fitted = fit(decoder, loss, rounds, optimiser, run, loop, stage="align", world=World(device=config.device))
        check_finished(run, fitted, "align")
        outcome = told.after(decoder, destination(config.out).name)
    scores, summary = compare(held, outcome, given, config.seed)
    scores["engine_gap"] = gap
    path = save_tuned(config, files, decoder, describe_data(config.data, given.records), run.id, scores)
    rounds.forget()
    title = f"Alignment of {files.name} by GRPO"
    return conclude(run, title, summary, path, fitted, scores, panels(run), outcome)
