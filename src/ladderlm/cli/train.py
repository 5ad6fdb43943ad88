"""`ladderlm pretrain`, `finetune` and `align`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.errors import MissingExtra

T = TypeVar("T")


def pretrain(argv: list[str]) -> int:
    _need_torch()
    from ladderlm.train.pretrain import PretrainConfig, run

    return _train(run, parse("pretrain", PretrainConfig, argv, description="Trains a model from random weights."))


def finetune(argv: list[str]) -> int:
    _need_torch()
    from ladderlm.train.finetune import FinetuneConfig, run

    return _train(run, parse("finetune", FinetuneConfig, argv, description="Tunes a model on records."))


def align(argv: list[str]) -> int:
    _need_torch()
    from ladderlm.train.align import AlignConfig, run

    return _train(run, parse("align", AlignConfig, argv, description="Aligns a model with preferences, by DPO."))


def _need_torch() -> None:
    # Waiting threads sleep: spinning ones starve whatever else runs on the machine, and themselves. Read at import.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import torch  # noqa: F401
    except ImportError:
        raise MissingExtra("torch", "train") from None


def _train(run: Callable[[T], Any], config: T) -> int:
    with show.progress():
        result = run(config)
    if getattr(config, "json", False):
        show.emit_json(result.to_dict())
    else:
        print(result.model)
    return 0
