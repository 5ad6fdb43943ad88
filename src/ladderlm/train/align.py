"""Alignment: a model learns what is preferred, from pairs, rewards, its own best answers or a teacher."""

from __future__ import annotations

from collections.abc import Callable

from ladderlm.errors import UsageError, nearest
from ladderlm.models.folder import ModelFiles
from ladderlm.models.reference import open_model
from ladderlm.train import best, distil, dpo, grpo, ppo, reward
from ladderlm.train.device import on, present
from ladderlm.train.result import Result, begin, use_threads
from ladderlm.train.settings import ALIGNMENTS, PREFERENCES, AlignConfig
from ladderlm.train.watching import check_best
from ladderlm.types import Run

_LEARN: dict[str, Callable[[AlignConfig, Run, ModelFiles], Result]] = {
    **dict.fromkeys(PREFERENCES, dpo.learn),
    "reward": reward.learn,
    "grpo": grpo.learn,
    "ppo": ppo.learn,
    "best-of-n": best.learn,
    "distil": distil.learn,
}


def run(config: AlignConfig) -> Result:
    """Aligns, measures on held-out records before and after, and writes an adapter or a model folder."""
    if not (config.data or config.resume):
        raise UsageError("no data to align on", cure="name a file of records")
    check(config)
    run_, config = begin("align", config, config.resume)
    use_threads(config.threads)
    with on(config.device):
        return _LEARN[config.objective](config, run_, open_model(config.model))


def check(config: AlignConfig) -> None:
    """Complains of settings that cannot be, before a run is begun for them."""
    if config.objective not in _LEARN:
        raise UsageError(f"unknown objective {config.objective!r}", cure=nearest(config.objective, ALIGNMENTS))
    if config.beta != -1 and (config.beta < 0 or (config.beta == 0 and config.objective not in ("grpo", "ppo"))):
        raise UsageError("beta must be positive", where=f"beta={config.beta}")
    if config.evaluate_every and config.objective in ("grpo", "ppo", "best-of-n"):
        raise UsageError("they draw what they learn from", where="evaluate_every", cure="see reward in metrics.jsonl")
    if config.sft < 0 or (config.sft and config.objective not in dpo.COMPARING):
        raise UsageError("the chosen answers' own loss is for " + ", ".join(dpo.COMPARING), where=f"sft={config.sft}")
    check_best(config)
    present(config.device)
