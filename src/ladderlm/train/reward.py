"""Reward models: one number for an answer, such that preferred answers get more (Bradley & Terry 1952).

P(chosen beats rejected) = sigmoid(r(chosen) - r(rejected)), r a linear head on the hidden state of the last token.
Only differences are learnt so: a small term keeps the sums of pairs near zero (Eisenstein et al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ladderlm import events
from ladderlm.data.shapes import conversation
from ladderlm.errors import FormatError, NotFound
from ladderlm.evals.helped import did_it_help
from ladderlm.evals.report import Report
from ladderlm.models.folder import ModelFiles
from ladderlm.models.reference import open_model
from ladderlm.models.safetensors import read_safetensors, write_safetensors
from ladderlm.nn.decoder import Decoder, load_decoder
from ladderlm.nn.linear import Linear
from ladderlm.text.render import render
from ladderlm.train.aligning import loop_config, panels, two_sides
from ladderlm.train.distributed import World
from ladderlm.train.examples import Packing
from ladderlm.train.loop import fit
from ladderlm.train.optim import Optimiser
from ladderlm.train.pairs import Pair, load
from ladderlm.train.result import Result, check_finished, conclude, describe_data
from ladderlm.train.settings import AlignConfig
from ladderlm.train.tuning import prepare, room, save_tuned
from ladderlm.train.watching import watch
from ladderlm.types import Record, Run

HEAD = "reward_head.safetensors"  # beside the weights or the adapter
CENTRE = 0.01
BINS = 5


@dataclass(frozen=True, slots=True)
class Texts:
    """Whole documents end to end; of a batch of pairs, in the order chosen, rejected, chosen, ..."""

    ids_T: Tensor
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return len(self.ids_T)

    @property
    def weight(self) -> int:
        return len(self.lengths)


def texts(documents: Sequence[Sequence[int]]) -> Texts:
    return Texts(torch.tensor([i for d in documents for i in d]), tuple(len(d) for d in documents))


class RewardModel(nn.Module):
    """A decoder with a head that scores whole documents."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.score = Linear(decoder.arch.dim, 1)
        nn.init.zeros_(self.score.weight)

    def forward(self, batch: Texts) -> Tensor:
        """rewards_B, one for each document."""
        hidden_TD = self.decoder(batch.ids_T, batch.lengths)
        last_BD = hidden_TD[torch.tensor(batch.lengths, device=hidden_TD.device).cumsum(0) - 1]
        return self.score(last_BD).squeeze(1)

    @torch.no_grad()
    def rewards(self, documents: Sequence[Sequence[int]], budget: int) -> list[float]:
        """Of many documents, at most `budget` tokens at a time."""
        self.eval()
        out = [0.0] * len(documents)
        for group in _groups([len(d) for d in documents], budget):
            for i, value in zip(group, self(texts([documents[i] for i in group])).tolist(), strict=True):
                out[i] = value
        return out


def _groups(sizes: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices from the shortest to the longest, cut where `budget` is full."""
    group: list[int] = []
    for i in sorted(range(len(sizes)), key=sizes.__getitem__):
        if group and sum(sizes[j] for j in group) + sizes[i] > budget:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def reward_loss(rewards_P2: Tensor, centre: float = CENTRE) -> tuple[Tensor, dict[str, float]]:
    """The mean loss of P pairs (chosen, rejected), and what to watch."""
    margin_P = rewards_P2[:, 0] - rewards_P2[:, 1]
    loss = -F.logsigmoid(margin_P).mean() + centre * rewards_P2.sum(1).square().mean()
    figures = {"reward_accuracy": (margin_P > 0).float().mean().item(), "margin": margin_P.mean().item()}
    return loss, figures


class Bin(NamedTuple):
    """Pairs of about one confidence: how sure the model is of its ranking, and how often that is right."""

    pairs: int
    confidence: float
    right: float


def calibration(margins: Sequence[float]) -> tuple[float, list[Bin]]:
    """The expected calibration error (Guo et al. 2017) over bins of equally many pairs, and these.

    `margins`: reward of the chosen answer less that of the rejected one, pair by pair.
    """
    x = np.asarray(sorted(margins, key=abs))
    bins = []
    for part in np.array_split(x, min(BINS, len(x))):
        confidence = 1 / (1 + np.exp(-np.abs(part)))
        bins.append(Bin(len(part), float(confidence.mean()), float((part > 0).mean())))
    return sum(b.pairs * abs(b.confidence - b.right) for b in bins) / len(x), bins


def learn(config: AlignConfig, run: Run, files: ModelFiles) -> Result:
    """Trains a reward model on preferences; an adapter or a model folder with a head comes out."""
    train, held_records = two_sides(config)
    longest = min(config.max_length, room(config, files))
    pairs = load(config.data, train, files, longest, skip_bad=config.skip_bad)
    held = load("held out", held_records, files, longest, skip_bad=config.skip_bad)
    decoder, tuned = prepare(config, files, lora_lr=1e-4, full_lr=1e-5)
    model = RewardModel(decoder).to(config.device)
    optimiser = Optimiser(model.named_parameters(), tuned.lr)
    events.emit("align", f"{len(pairs):,} pairs, {sum(p.tokens for p in pairs):,} tokens")
    packing = Packing([p.tokens for p in pairs], config.batch_tokens, config.seed)

    def loss(model: RewardModel, batch: Texts) -> tuple[Tensor, dict[str, float]]:
        return reward_loss(model(batch).view(-1, 2))

    def make(some: Sequence[Pair]) -> Texts:
        return texts(_documents(some))

    fitted = fit(
        model, loss, lambda i: make([pairs[k] for k in packing(i)]), optimiser, run,
        loop_config(config, packing.batches_in(config.epochs)), watch=watch(config, model, loss, held, make),
        stage="align", world=World(device=config.device),
    )  # fmt: skip
    check_finished(run, fitted, "align")
    rewards = np.array(model.rewards(_documents(held), config.batch_tokens)).reshape(-1, 2)
    scores, summary, bins = judge(rewards[:, 0] - rewards[:, 1], held, config.seed)
    path = save_tuned(config, files, decoder, describe_data(config.data, train), run.id, scores)
    write_safetensors(path / HEAD, {"score.weight": model.score.weight.detach().cpu().numpy()})

    def fill(report: Report) -> None:
        rows = [(b.pairs, b.confidence, b.right) for b in bins]
        report.section("Calibration").table(("held-out pairs", "how sure of the ranking", "how often right"), rows)
        panels(run)(report)

    return conclude(run, f"Reward model from {files.name}", summary, path, fitted, scores, fill)


def _documents(pairs: Sequence[Pair]) -> list[list[int]]:
    return [example.ids for pair in pairs for example in (pair.chosen, pair.rejected)]


def judge(margins: np.ndarray, held: Sequence[Pair], seed: int) -> tuple[dict[str, Any], str, list[Bin]]:
    """How well held-out pairs are ranked, beside the rule that always prefers the longer answer."""
    right = [float(m > 0) for m in margins]
    lengths = [p.answers for p in held]
    longer = [0.5 if a == b else float(a > b) for a, b in lengths]
    metric = "share of pairs ranked right, at first by length alone"
    helped = did_it_help(metric, longer, right, seed=seed)
    error, bins = calibration(margins.tolist())
    scores = {
        "accuracy": helped.after.mean,
        "accuracy_of_the_longer": helped.before.mean,
        "held_out_loss": float(np.logaddexp(0, -margins).mean()),
        "calibration_error": error,
        "interval": helped.after.to_dict(),
        "helped": helped.to_dict(),
    }
    summary = f"It ranks {helped.after.percent()} of {len(right)} held-out pairs right"
    return scores, f"{summary}, calibration error {error:.3f}. {helped}", bins


# --- Use ----------------------------------------------------------------------------------------------------------


def load_reward(ref: str) -> tuple[RewardModel, ModelFiles]:
    """The reward model that `learn` wrote, frozen, and its files. Raises NotFound where there is no head."""
    files = open_model(ref)
    folder = next((p for p in (files.path, *files.parts) if (p / HEAD).is_file()), None)
    if folder is None:
        raise NotFound("not a reward model", where=ref, cure="train one: ladderlm align PAIRS --objective reward")
    model = RewardModel(load_decoder(files)).requires_grad_(False).to(torch.get_default_device())
    weight = read_safetensors(folder / HEAD)["score.weight"].array()
    if weight.shape != (1, files.arch.dim):
        raise FormatError(f"a head of shape {weight.shape}", where=str(folder / HEAD))
    with torch.no_grad():
        model.score.weight.copy_(torch.from_numpy(weight.copy()))
    return model.eval(), files


class ScoredBy:
    """A reward model as what rewards answers."""

    name = "reward"

    def __init__(self, ref: str, budget: int) -> None:
        self._model, self._files = load_reward(ref)
        self._budget = budget

    def __call__(self, records: Sequence[Record], answers: Sequence[str]) -> list[float]:
        """The reward of each answer to each record's prompt, of the turns so far as many as its context takes."""
        documents = [self._ids(record, answer) for record, answer in zip(records, answers, strict=True)]
        return self._model.rewards(documents, self._budget)

    def _ids(self, record: Record, answer: str) -> list[int]:
        said = conversation(record, answer=False).add("assistant", answer)
        found = render(said, self._files.tokenizer, self._files.template,
                       add_generation_prompt=False)  # fmt: skip
        last = max((i for i, said in enumerate(found.mask) if said), default=len(found.ids) - 1)
        return found.ids[: last + 1][-self._files.arch.context_length :]
