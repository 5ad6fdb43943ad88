"""Masked tokens with next sentences, and span corruption: what a model of 3 M parameters learns in 15 minutes.

1. Masked tokens and pairs, on books: the first guess is right at least twice as often as the commonest token, and more
   often than the left neighbour's usual follower; at least 60 % of pairs are told right, with the interval above 50 %.
2. Span corruption: a token that was cut out costs fewer nats than by its frequency.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from ladderlm.errors import NotFound
from ladderlm.models import open_model
from ladderlm.train import pretrain
from ladderlm.train.settings import PretrainConfig

CORPUS = Path(os.environ.get("LADDERLM_DATA", "../shared/data")) / "corpus" / "books-children.jsonl.gz"
MOST = 3_000_000  # parameters
SHAPE: dict[str, Any] = {
    "dim": 192, "heads": 3, "layers": 4, "vocab_size": 3000, "seq_len": 128, "batch_tokens": 4096, "lr": 0.002,
    "muon_lr": 0.01, "warmup": 50, "replace": True,
}  # fmt: skip
SHORT: dict[str, Any] = {"dim": 96, "heads": 2, "layers": 2, "vocab_size": 1000, "batch_tokens": 2048}


def learn(objective: str, minutes: float, changes: dict[str, Any]) -> dict[str, Any]:
    """The scores of one pretraining."""
    if not CORPUS.exists():
        raise NotFound("no such corpus", where=str(CORPUS), cure="set LADDERLM_DATA to the folder that holds corpus/")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "model"
        settings = {**SHAPE, "hidden": 0, **changes}
        result = pretrain.run(
            PretrainConfig(data=str(CORPUS), out=str(out), objective=objective, minutes=minutes, **settings)
        )
        size = open_model(str(out)).arch.parameters
    return {"parameters": size, "steps": result.steps, "tokens": result.tokens, "seconds": round(result.seconds, 1),
            **{k: round(v, 4) if isinstance(v, float) else v for k, v in result.scores.items()}}  # fmt: skip


def measure(minute: bool) -> dict[str, Any]:
    minutes, changes = (0.3, SHORT) if minute else (14.0, {})
    masked = learn("mlm+nsp", minutes, changes)
    spans = learn("spans", minutes, changes)
    bars = {
        "masked tokens: right at least twice as often as the commonest":
            masked["masked_accuracy"] >= 2 * masked["unigram_accuracy"],
        "masked tokens: right more often than the left neighbour's follower":
            masked["masked_accuracy"] > masked["bigram_accuracy"],
        "pairs: at least 60 % right, the interval above 50 %":
            masked["next_accuracy"] >= 0.6 and masked["next_accuracy_low"] > 0.5,
        "spans: fewer nats than by frequency": spans["span_loss"] < spans["unigram_loss"],
        "at most 3 M parameters": max(masked["parameters"], spans["parameters"]) <= MOST,
    }  # fmt: skip
    found = {"minutes_each": minutes, "masked_and_pairs": masked, "spans": spans}
    return found if minute else {**found, "bars": bars}
