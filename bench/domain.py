"""The recipe `domain`: a small base model of our own, made at home in medicine, and what it forgets on the way.

1. A base model is pretrained on classic prose, a factbook and encyclopedic text.
2. It goes on with open-access medical articles, twice: with a share of general text in the mixture, and without. Both
   see the medical text equally often. Bits per byte of unseen pieces of both kinds before and after, paired intervals.

Bars: unseen medical text costs significantly fewer bits per byte (the whole interval of the change below zero), and the
change on general text is stated with its interval.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from ladderlm.errors import NotFound
from ladderlm.models import open_model
from ladderlm.train import domain, pretrain
from ladderlm.train.settings import DomainConfig, PretrainConfig

DATA = Path(os.environ.get("LADDERLM_DATA", "../shared/data"))
GENERAL = ("corpus/books-classic-02.jsonl.gz", "corpus/world-factbook.jsonl.gz", "corpus/wikitext-2.valid.txt")
MEDICAL = ("rag/chunking-eval/pubmed.md",)
BASE: dict[str, Any] = {"vocab_size": 4096, "dim": 192, "heads": 3, "layers": 4, "seq_len": 256, "batch_tokens": 4096}
REPLAY, SHARE, STEPS = 0.3, 0.1, 300


def sources(names: tuple[str, ...]) -> tuple[str, ...]:
    paths = tuple(str(DATA / name) for name in names)
    for path in paths:
        if not Path(path).exists():
            raise NotFound(
                "no such text", where=path, cure="set LADDERLM_DATA to the folder that holds corpus/ and rag/"
            )
    return paths


def base(folder: Path, length: dict[str, Any], threads: int, size: dict[str, Any]) -> dict[str, Any]:
    """A model that has read general text, none of what is held out of it."""
    from ladderlm.data.recipes import BOOKS, refine
    from ladderlm.data.split import hold_out

    once = refine("general", sources(GENERAL), folder, values=BOOKS)
    train = folder / "general.train.jsonl"
    hold_out(once, train, folder / "general.held.jsonl", share=SHARE, most=64 << 10)
    result = pretrain.run(
        PretrainConfig(
            data=str(train), out=str(folder / "base"), held_out=str(folder / "general.held.jsonl"), threads=threads,
            **{**BASE, **length, **size},
        )
    )  # fmt: skip
    return {
        "parameters": open_model(str(folder / "base")).arch.parameters, "tokens": result.tokens,
        "seconds": round(result.seconds, 1), "bits_per_byte": round(result.scores["bits_per_byte"], 4),
    }  # fmt: skip


def go_on(folder: Path, replay: float, threads: int, **changes: Any) -> dict[str, Any]:
    """What the recipe says of one run; the general text is held out just as it was for the base."""
    result = domain.run(
        DomainConfig(
            files=sources(MEDICAL), general=sources(GENERAL), model=str(folder / "base"), replay=replay,
            out=str(folder / f"replay-{replay:g}"), lr=1e-3, share=SHARE, threads=threads, **{"epochs": 3.0, **changes},
        )
    )  # fmt: skip
    found: dict[str, Any] = {"tokens": result.tokens, "seconds": round(result.seconds, 1)}
    for name, change in result.scores["change"].items():
        sides = {key: {k: round(v, 4) for k, v in change[key].items()} for key in ("before", "after", "difference")}
        found[name] = {**sides, "pieces": change["items"], "verdict": change["verdict"]}
    return found


def measure(minute: bool) -> dict[str, Any]:
    threads = int(os.environ.get("LADDERLM_BENCH_THREADS", "2"))
    small = {"dim": 64, "heads": 2, "layers": 2, "vocab_size": 1024}
    length: dict[str, Any] = {"minutes": 0.25} if minute else {"steps": STEPS}
    size, changes = (small, {"minutes": 0.1}) if minute else ({}, {})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        found: dict[str, Any] = {"base": base(folder, length, threads, size)}
        for name, replay in (("with_replay", REPLAY), ("without_replay", 0.0)):
            found[name] = {"replay": replay, **go_on(folder, replay, threads, **changes)}
    bars = {
        "unseen medical text: the interval of the change lies below zero":
            found["with_replay"]["held_out"]["difference"]["high"] < 0,
        "general text: the change is stated with its interval": "difference" in found["with_replay"]["general"],
        "with general text in the mixture less of it is forgotten than without":
            found["with_replay"]["general"]["difference"]["mean"]
            < found["without_replay"]["general"]["difference"]["mean"],
    }  # fmt: skip
    return {"threads": threads, **found} if minute else {"threads": threads, **found, "bars": bars}
