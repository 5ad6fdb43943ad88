"""Direct alignment on preferences: DPO and its relatives, which differ by one line each.

dpo    -log sigmoid(beta (r+ - r-)), r the log-ratio of policy and reference           Rafailov et al. 2023
ipo    (r+ - r- - 1/(2 beta))^2 with log-ratios per token: no pair is ever won for good     Azar et al. 2023
kto    1 - sigmoid(+-beta (r - kl)): answers that are liked or not, no pairs          Ethayarajh et al. 2024
orpo   -log p(chosen) - beta log sigmoid(log-odds+ - log-odds-), per token, no reference    Hong et al. 2024
simpo  -log sigmoid(beta (log p+ - log p-) - gamma), per token, no reference                 Meng et al. 2024

Of those that only tell two answers apart, both may become unlikelier: `sft` weighs the chosen answers' own loss a token
beside it, which keeps them likely (Pang et al. 2024).

p is the model that trains, q the one it started from. What q thinks never changes, so it is computed once: of an
adapter's base when a pair is first learnt from, before the first step where q's own weights are to change.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ladderlm import events
from ladderlm.evals.helped import did_it_help
from ladderlm.evals.intervals import bootstrap
from ladderlm.models.folder import ModelFiles
from ladderlm.nn.decoder import Decoder
from ladderlm.nn.linear import products
from ladderlm.nn.loss import nats
from ladderlm.nn.tuned import without_adapter
from ladderlm.train.aligning import loop_config, panels, precision, two_sides
from ladderlm.train.distributed import World
from ladderlm.train.examples import Packing, per_document
from ladderlm.train.held import HeldPairs
from ladderlm.train.loop import fit
from ladderlm.train.page import Page
from ladderlm.train.pairs import Pair, PairBatch, load, pair_batch, thought_of, with_reference
from ladderlm.train.result import Result, check_finished, conclude, describe_data, destination
from ladderlm.train.settings import SOFT, WEIGHTS, AlignConfig
from ladderlm.train.tuning import prepare, room, save_tuned
from ladderlm.train.watching import watch
from ladderlm.types import Run

REFERENCE_FREE = ("orpo", "simpo")
COMPARING = ("dpo", "ipo", "simpo")  # their losses say nothing of the chosen answer by itself
ALIKE = 0.2  # answers whose lengths differ by less than this share are of one length


class Terms(NamedTuple):
    """What a loss sees of P pairs (chosen, rejected): log-probabilities, tokens, and whether the first is liked."""

    policy_P2: Tensor
    reference_P2: Tensor
    counts_P2: Tensor
    liked_P: Tensor

    @property
    def ratio_P2(self) -> Tensor:
        return self.policy_P2 - self.reference_P2

    @property
    def mean_P2(self) -> Tensor:
        """Log-probability of a token."""
        return self.policy_P2 / self.counts_P2


def dpo(terms: Terms, beta: float, gamma: float) -> Tensor:
    return -F.logsigmoid(beta * _gap(terms.ratio_P2))


def ipo(terms: Terms, beta: float, gamma: float) -> Tensor:
    return (_gap(terms.ratio_P2 / terms.counts_P2) - 1 / (2 * beta)).square()


def kto(terms: Terms, beta: float, gamma: float) -> Tensor:
    kl = terms.ratio_P2[:, 1].mean().detach().clamp(min=0)
    return 1 - torch.sigmoid(beta * torch.where(terms.liked_P, 1, -1) * (terms.ratio_P2[:, 0] - kl))


def orpo(terms: Terms, beta: float, gamma: float) -> Tensor:
    logodds_P2 = terms.mean_P2 - torch.log1p(-torch.exp(terms.mean_P2.clamp(max=-1e-6)))
    return -terms.mean_P2[:, 0] - beta * F.logsigmoid(_gap(logodds_P2))


def simpo(terms: Terms, beta: float, gamma: float) -> Tensor:
    return -F.logsigmoid(beta * _gap(terms.mean_P2) - gamma)


LOSSES: dict[str, Callable[[Terms, float, float], Tensor]] = {
    "dpo": dpo, "ipo": ipo, "kto": kto, "orpo": orpo, "simpo": simpo,
}  # fmt: skip


def _gap(values_P2: Tensor) -> Tensor:
    return values_P2[:, 0] - values_P2[:, 1]


def preference_loss(
    name: str, terms: Terms, beta: float, gamma: float = 0.0, sft: float = 0.0
) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
    """The mean loss over the pairs, with `sft` times that of a token of the chosen answers, and what to watch.

    `reward_accuracy`: share of pairs whose chosen answer gained more (of KTO's answers: that moved the right way);
    `margin`: mean difference of rewards; the two log-ratios tell how far the model has moved on either side.
    """
    ratio_P2 = (terms.mean_P2 if name in REFERENCE_FREE else terms.ratio_P2).detach()
    margin_P = beta * _gap(ratio_P2)
    if name == "kto":
        margin_P = beta * torch.where(terms.liked_P, 1, -1) * ratio_P2[:, 0]
    figures = {
        "reward_accuracy": (margin_P > 0).float().mean().item(),
        "margin": margin_P.mean().item(),
        "chosen_logratio": ratio_P2[:, 0].mean().item(),
        "rejected_logratio": ratio_P2[:, 1].mean().item(),
    }
    loss = LOSSES[name](terms, beta, gamma).mean()
    if sft:
        told = -terms.policy_P2[:, 0].sum() / terms.counts_P2[:, 0].sum()
        loss, figures["chosen_loss"] = loss + sft * told, told.item()
    return loss, figures


def learn(config: AlignConfig, run: Run, files: ModelFiles) -> Result:
    """Trains on pairs; `run` and `files` are the run begun and the model to align."""
    name, kto = config.objective, config.objective == "kto"
    shared = config.method not in SOFT
    train, held_records = two_sides(config)
    longest = min(config.max_length, room(config, files))
    pairs = load(config.data, train, files, longest, skip_bad=config.skip_bad, kto=kto)
    single = any(r.kind == "kto" for r in held_records)
    held = load("held out", held_records, files, longest, skip_bad=config.skip_bad, kto=single)
    decoder, optimiser = prepare(config, files, lora_lr=1e-4, full_lr=1e-5)
    events.emit("align", f"{len(pairs):,} pairs, {sum(p.tokens for p in pairs):,} tokens")
    untuned = functools.partial(without_adapter, decoder)
    referenced = reference(decoder, pairs, config, shared=shared)
    measured = HeldPairs(held, held_records, files, shared=shared)
    page = None if single else Page(decoder, files, measured, config.seed, untuned)
    if single:
        with untuned():
            measured.measure(decoder)
    before = measured.pairs
    packing = Packing([p.tokens for p in pairs], config.batch_tokens, config.seed)

    def loss(model: Decoder, batch: PairBatch) -> tuple[Tensor, dict[str, float]]:
        policy_P2 = -per_document(nats(model, batch.batch), batch.batch).view(-1, 2)
        terms = Terms(policy_P2, batch.reference_P2, batch.counts_P2, batch.liked_P)
        return preference_loss(name, terms, config.price, config.gamma, config.sft)

    make = functools.partial(pair_batch, shared=shared)
    fitted = fit(
        decoder, loss, lambda i: make(referenced(packing(i))), optimiser, run,
        loop_config(config, packing.batches_in(config.epochs)), watch=watch(config, decoder, loss, before, make),
        stage="align", world=World(device=config.device),
    )  # fmt: skip
    check_finished(run, fitted, "align")
    outcome = page.after(decoder, destination(config.out).name) if page else None
    if single:
        measured.measure(decoder)
    scores, summary = compare(before, measured.pairs, config, single=single)
    scores |= outcome.scores() if outcome else {}
    path = save_tuned(config, files, decoder, describe_data(config.data, train), run.id, scores)
    title = f"Alignment of {files.name} by {name.upper()}"
    return conclude(run, title, summary, path, fitted, scores, panels(run), outcome)


def reference(
    decoder: Decoder, pairs: Sequence[Pair], config: AlignConfig, *, shared: bool
) -> Callable[[Sequence[int]], list[Pair]]:
    """Gives pairs by their numbers with what the model that is aligned thought of them, in the policy's precision."""
    known: dict[int, Pair] = {}
    if config.objective in REFERENCE_FREE:
        known = dict(enumerate(pairs))
    elif config.method in WEIGHTS:
        with products(precision(config), config.device):
            known = dict(enumerate(with_reference(decoder, pairs, config.batch_tokens, "reference", shared=shared)))

    def asked(numbers: Sequence[int]) -> list[Pair]:
        for number in numbers:
            if number not in known:  # each by itself: the same to the bit whenever it is asked for
                with without_adapter(decoder), products(precision(config), config.device):
                    (known[number],) = thought_of(decoder, [pairs[number]], shared=shared)
        return [known[number] for number in numbers]

    return asked


def compare(
    before: Sequence[Pair], after: Sequence[Pair], config: AlignConfig, *, single: bool = False
) -> tuple[dict[str, Any], str]:
    """Does the model find the chosen answer the likelier one, and has it moved the right way?"""
    counts_P2 = torch.tensor([p.answers for p in after])
    policy_P2, reference_P2 = (torch.tensor([p.reference for p in side]) for side in (after, before))
    terms = Terms(policy_P2, reference_P2, counts_P2, torch.tensor([p.liked for p in after]))
    loss, figures = preference_loss(config.objective, terms, config.price, config.gamma)
    if single:
        sign_P = torch.where(terms.liked_P, 1, -1)
        sides = [(sign_P * (both / counts_P2)[:, 0]).tolist() for both in (reference_P2, policy_P2)]
        helped = did_it_help("log-probability a token, of disliked answers negative", *sides, seed=config.seed)
        gained_P = sign_P * terms.ratio_P2[:, 0] > 0
    else:
        sides = [[float(p.reference[0] > p.reference[1]) for p in side] for side in (before, after)]
        helped = did_it_help("share of pairs whose chosen answer is the likelier", *sides, seed=config.seed)
        gained_P = _gap(terms.ratio_P2) > 0
    gained = bootstrap(gained_P.float().tolist(), seed=config.seed)
    scores: dict[str, Any] = {
        "chosen_likelier_before": helped.before.mean,
        "chosen_likelier": helped.after.mean,
        "held_out_loss": loss.item(),
        **{f"held_out_{name}": value for name, value in figures.items()},
        "gained": gained.to_dict(),
        "helped": helped.to_dict(),
    }
    what = "the liked ones gained or the disliked ones lost" if single else "the chosen answer gained on the rejected"
    summary = f"{helped} On held-out {'answers' if single else 'pairs'} {what} in {gained.percent()}."
    alike = [i for i, p in enumerate(after) if abs(p.answers[0] - p.answers[1]) <= ALIKE * max(p.answers)]
    if alike and not single:
        matched = bootstrap(gained_P[alike].float().tolist(), seed=config.seed)
        scores["length_matched"] = {"pairs": len(alike), **matched.to_dict()}
        summary += f" Where both are about as long ({len(alike)} pairs): {matched.percent()}."
    return scores, summary
