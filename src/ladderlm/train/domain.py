"""Continued pretraining on one's own field: from the files to a model, and what it gained and forgot.

Collected, cleaned and deduplicated texts; some of them kept apart; a share of general text among the rest, against
forgetting; shards; and pretraining that goes on from a model and measures both kinds of text before and after.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ladderlm import events
from ladderlm.data.mix import Part, byte_size, measure, mix_stage
from ladderlm.data.recipes import BOOKS, refine
from ladderlm.data.shards import Shards, write_shards
from ladderlm.data.split import LONG, hold_out
from ladderlm.data.stages import read_report, run_stage, stream
from ladderlm.errors import StorageError, UsageError
from ladderlm.models.reference import open_model
from ladderlm.train import pretrain
from ladderlm.train.result import Result, destination
from ladderlm.train.settings import DomainConfig, PretrainConfig


def run(config: DomainConfig) -> Result:
    """Makes the corpus (steps whose inputs did not change are not done again), trains, and compares.

    The corpus and every step's report lie in OUT.parts; the page is the run's report.
    """
    if not config.files:
        raise UsageError("no texts of the field", cure="name files or folders")
    if not 0 <= config.replay < 1 or config.epochs <= 0:
        raise UsageError("0 <= replay < 1, epochs > 0", where=f"replay={config.replay}, epochs={config.epochs}")
    if destination(config.out).exists() and not config.replace:
        cure = "choose another --out, or --replace"
        raise StorageError("already exists", where=str(destination(config.out)), cure=cure)
    files = open_model(config.model)
    if files.arch.kind != "decoder":
        raise UsageError(f"{files.name} {files.arch.purpose}", cure="go on from a model that says the next token")
    folder = Path(f"{config.out}.parts")
    mixed = _corpus(config, folder)
    report = read_report(mixed)
    shards = write_shards(stream(mixed), files.tokenizer, folder / f"shards-{files.hash[:12]}",
                          lineage=[report] if report else [])  # fmt: skip
    return pretrain.run(_settings(config, folder, shards))


def _corpus(config: DomainConfig, folder: Path) -> Path:
    """FOLDER/mix.jsonl; beside it domain.held.jsonl and general.held.jsonl."""
    rules = [name.strip() for name in config.rules.split(",") if name.strip()]
    values = BOOKS if "gopher" in rules else {}
    learnt = {}
    for name, sources, licence in (("domain", config.files, config.licence), ("general", config.general, "unknown")):
        once = refine(name, sources, folder, licence=licence, rules=rules, without=config.without, values=values)
        learnt[name] = folder / f"{name}.train.jsonl"
        hold_out(once, learnt[name], folder / f"{name}.held.jsonl", share=config.share, most=config.held_kb << 10,
                 seed=config.seed, longest=LONG if name == "general" else 0)  # fmt: skip
    sizes = {name: int(measure(0, path, byte_size).sum()) for name, path in learnt.items()}
    wanted = round(sizes["domain"] * config.replay / (1 - config.replay))
    again = min(wanted, sizes["general"])
    parts = [Part(str(learnt["domain"]), epochs=1.0)]
    if again:
        parts.append(Part(str(learnt["general"]), epochs=again / sizes["general"]))
    share = again / (again + sizes["domain"])
    message = f"{sizes['domain']:,} bytes of the field, {again:,} of general text ({share:.0%})"
    events.emit("domain", message + (": there is no more of it" if again < wanted else ""))
    details: dict[str, Any] = {"unit": "bytes"}
    stage = mix_stage(parts, seed=config.seed, details=details)
    settings = {"parts": [part.epochs for part in parts], "seed": config.seed}
    run_stage("mix", stage, [part.path for part in parts], folder / "mix.jsonl", settings, details=details)
    return folder / "mix.jsonl"


def _settings(config: DomainConfig, folder: Path, shards: Shards) -> PretrainConfig:
    steps = 0 if config.minutes else max(1, math.ceil(config.epochs * len(shards) / config.batch_tokens))
    return PretrainConfig(
        data=str(shards.path), model=config.model, out=config.out, held_out=str(folder / "domain.held.jsonl"),
        general=str(folder / "general.held.jsonl"), steps=steps, minutes=config.minutes, lr=config.lr,
        seq_len=config.seq_len, batch_tokens=config.batch_tokens, micro_tokens=min(config.batch_tokens, 4096),
        seed=config.seed, threads=config.threads, replace=config.replace,
    )  # fmt: skip
