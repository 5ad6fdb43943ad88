"""Proximal policy optimisation (Schulman et al. 2017) as RLHF uses it (Ziegler et al. 2019, Ouyang et al. 2022).

Each token of an answer costs beta (log p - log q), q the reference; the last one earns the answer's reward, scaled to
deviation 1 over the round. A value head on the policy foresees the sum; advantages are generalised (Schulman et al.
2015) and whitened; policy and values are clipped. With a target, beta is adapted so that an answer's divergence stays
near it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ladderlm.models.folder import ModelFiles
from ladderlm.nn.decoder import Decoder
from ladderlm.nn.linear import Linear
from ladderlm.nn.loss import Batch, nats_of, wanted_hidden
from ladderlm.train.aligning import loop_config, panels
from ladderlm.train.distributed import World
from ladderlm.train.loop import fit
from ladderlm.train.optim import Optimiser
from ladderlm.train.page import Page
from ladderlm.train.result import Result, check_finished, conclude, describe_data, destination
from ladderlm.train.rollout import Answer, Prompt, Roller, answers_batch, check, pieces
from ladderlm.train.rounds import Drawn, HeldPrompts, Reference, Rounds, compare, setting
from ladderlm.train.settings import AlignConfig
from ladderlm.train.tuning import prepare, save_tuned
from ladderlm.types import Run

GAMMA, LAMBDA = 1.0, 0.95
VALUE_WEIGHT = 0.1
UPDATES = 4
ADAPT, MOST = 0.1, 0.2  # beta moves by this share of the error, itself at most so large, in a round


class ActorCritic(nn.Module):
    """A decoder with a value for every position: what the rest of the answer will earn."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.value = Linear(decoder.arch.dim, 1, bias=True)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(log-probabilities, values) of the wanted positions."""
        hidden_ND = wanted_hidden(self.decoder, batch)
        return -nats_of(self.decoder, hidden_ND, batch.targets_N), self.value(hidden_ND).squeeze(1)

    @torch.no_grad()
    def values(self, prompts: Sequence[Prompt], answers: Sequence[Answer], budget: int) -> list[tuple[float, ...]]:
        """Of every token of every answer."""
        self.eval()
        out: list[tuple[float, ...]] = []
        for group in pieces(prompts, answers, budget):
            some = [answers[i] for i in group]
            values_N = self(answers_batch(prompts, some))[1]
            out += [tuple(part.tolist()) for part in values_N.split([len(a.ids) for a in some])]
        return out


def generalised_advantages(
    rewards: Sequence[float], values: Sequence[float], gamma: float = GAMMA, lam: float = LAMBDA
) -> list[float]:
    """GAE of one answer that ends with its last token: A_t = d_t + gamma lam A_t+1, d_t = r_t + gamma V_t+1 - V_t."""
    out, ahead, following = [0.0] * len(rewards), 0.0, 0.0
    for t in reversed(range(len(rewards))):
        ahead = rewards[t] + gamma * following - values[t] + gamma * lam * ahead
        out[t], following = ahead, values[t]
    return out


def token_rewards(answer: Answer, reward: float, beta: float) -> list[float]:
    """What each token earns: less the price of its divergence, and the answer's reward at the end."""
    out = [-beta * (p - q) for p, q in zip(answer.logprobs, answer.reference, strict=True)]
    out[-1] += reward
    return out


def adapted(beta: float, kl: float, target: float) -> float:
    """The price for the next round: higher where an answer diverged by more than `target` nats."""
    error = max(-MOST, min(MOST, kl / target - 1))
    return beta * (1 + ADAPT * error)


@dataclass(frozen=True, slots=True)
class PPOBatch:
    """Answers with their prompts; over their tokens: what was drawn by, values then, advantages, returns."""

    batch: Batch
    drawn_N: Tensor
    values_N: Tensor
    advantage_N: Tensor
    returns_N: Tensor
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return self.batch.tokens

    @property
    def weight(self) -> int:
        return len(self.drawn_N)


def ppo_loss(policy_N: Tensor, values_N: Tensor, batch: PPOBatch, *, clip: float) -> tuple[Tensor, dict[str, float]]:
    """The clipped losses of policy and values, and what to watch."""
    ratio_N = (policy_N - batch.drawn_N).exp()
    bounded_N = ratio_N.clamp(1 - clip, 1 + clip)
    policy_loss = -torch.minimum(ratio_N * batch.advantage_N, bounded_N * batch.advantage_N).mean()
    near_N = batch.values_N + (values_N - batch.values_N).clamp(-clip, clip)
    errors_N = torch.maximum((values_N - batch.returns_N).square(), (near_N - batch.returns_N).square())
    value_loss = 0.5 * errors_N.mean()
    figures = {
        "policy_loss": policy_loss.item(),
        "value_loss": value_loss.item(),
        "clipped": (bounded_N * batch.advantage_N < ratio_N * batch.advantage_N).float().mean().item(),
    }
    return policy_loss + VALUE_WEIGHT * value_loss, figures


def ppo_batch(drawn: Drawn, some: Sequence[int]) -> PPOBatch:
    """The batch of those of a round's answers that `some` names; whitened over the whole round."""
    scale = max(torch.tensor([a.reward for a in drawn.answers]).std(correction=0).item(), 1e-4)
    advantages = [
        generalised_advantages(token_rewards(a, a.reward / scale, drawn.beta), a.values) for a in drawn.answers
    ]
    all_N = torch.tensor([x for row in advantages for x in row])
    mean, deviation = all_N.mean(), all_N.std(correction=0) + 1e-8
    answers = [drawn.answers[i] for i in some]
    advantage_N = torch.tensor([x for i in some for x in advantages[i]])
    values_N = torch.tensor([v for a in answers for v in a.values])
    return PPOBatch(
        answers_batch(drawn.prompts, answers), torch.tensor([p for a in answers for p in a.logprobs]), values_N,
        (advantage_N - mean) / deviation, advantage_N + values_N, drawn.figures,
    )  # fmt: skip


def learn(config: AlignConfig, run: Run, files: ModelFiles) -> Result:
    """Reinforces what the rewards say; `run` and `files` are the run begun and the model to align."""
    given = setting(config, files)
    decoder, tuned = prepare(config, files, lora_lr=1e-4, full_lr=2e-6)
    model = ActorCritic(decoder).to(config.device)
    optimiser = Optimiser(model.named_parameters(), tuned.lr)
    reference = Reference(decoder, files, config.method)

    def complete(drawn: Drawn, before: Mapping[str, Any]) -> Drawn:
        known = reference.logprobs(drawn.prompts, drawn.answers, config.batch_tokens)
        values = model.values(drawn.prompts, drawn.answers, config.batch_tokens)
        answers = [
            dataclasses.replace(a, reference=r, values=v) for a, r, v in zip(drawn.answers, known, values, strict=True)
        ]
        tokens = sum(len(a.ids) for a in answers)
        nats = sum(sum(a.logprobs) - sum(a.reference) for a in answers)
        beta = drawn.beta
        if config.target_kl and before:
            beta = adapted(before["beta"], before["figures"]["answer_kl"], config.target_kl)
        told = {"kl": nats / tokens, "answer_kl": nats / len(answers), "beta": beta}
        return dataclasses.replace(drawn, answers=answers, beta=beta, figures={**drawn.figures, **told})

    def loss(model: ActorCritic, batch: PPOBatch) -> tuple[Tensor, dict[str, float]]:
        policy_N, values_N = model(batch.batch)
        found, figures = ppo_loss(policy_N, values_N, batch, clip=config.clip)
        return found, {**figures, **batch.figures}

    with Roller(decoder, files, config.max_tokens, config.threads) as roller:
        held = HeldPrompts(roller, given)
        told = Page(decoder, files, held, config.seed)
        gap = check(decoder, given.held[:4], roller.sample(given.held[:4], 1, config.seed, -1), config.batch_tokens)
        rounds = Rounds(config, run, roller, given, config.updates or UPDATES, complete, ppo_batch)
        loop = loop_config(config, rounds.steps_in(config.epochs), rounds.accumulate)
        fitted = fit(model, loss, rounds, optimiser, run, loop, stage="align", world=World(device=config.device))
        check_finished(run, fitted, "align")
        outcome = told.after(decoder, destination(config.out).name)
    scores, summary = compare(held, outcome, given, config.seed)
    scores["engine_gap"] = gap
    path = save_tuned(config, files, decoder, describe_data(config.data, given.records), run.id, scores)
    rounds.forget()
    title = f"Alignment of {files.name} by PPO"
    return conclude(run, title, summary, path, fitted, scores, panels(run), outcome)
