"""`ladderlm pretrain`, `finetune` and `align`."""

from __future__ import annotations

import contextlib
import importlib
import os
from typing import Any

from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.errors import MissingExtra
from ladderlm.train.settings import AlignConfig, FinetuneConfig, PretrainConfig


def pretrain(argv: list[str]) -> int:
    return train("pretrain", parse("pretrain", PretrainConfig, argv, description="Pretrains a model."))


def finetune(argv: list[str]) -> int:
    config = parse("finetune", FinetuneConfig, argv, description="Tunes a model on records.")
    return hosted(config) if config.at else train("finetune", config)


def hosted(config: FinetuneConfig) -> int:
    """Tunes a model where it is; torch is not needed."""
    from ladderlm.apps.hosted import run

    with show.progress():
        result = run(config)
    show.emit_json(result.to_dict()) if config.json else print(result.model)
    return 0


def align(argv: list[str]) -> int:
    return train("align", parse("align", AlignConfig, argv, description="Aligns a model with what is preferred."))


def train(verb: str, config: Any) -> int:
    """Runs ladderlm.train.VERB and prints its result; of the processes that torchrun started, one speaks."""
    # Waiting threads sleep: spinning ones starve whatever else runs on the machine, and themselves. Read at import.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import torch  # noqa: F401
    except ImportError:
        raise MissingExtra("torch", "train") from None
    run = importlib.import_module(f"ladderlm.train.{verb}").run
    first = os.environ.get("RANK", "0") == "0"
    with show.progress() if first else contextlib.nullcontext():
        result = run(config)
    if not first:
        return 0
    if config.json:
        show.emit_json(result.to_dict())
    else:
        print(result.model)
    return 0
