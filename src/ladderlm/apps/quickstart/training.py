"""One training command as a stage: settings from the recipe, and an interrupted run resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ladderlm import config as settings
from ladderlm import store

CONFIGS = {"pretrain": "PretrainConfig", "finetune": "FinetuneConfig", "align": "AlignConfig"}


def run(command: ModuleType, table: str, recipe: Path, work: Path, flags: Mapping[str, Any]) -> dict[str, Any]:
    """`command.run` with the recipe's `table` and `flags` over it. Returns its result as JSON data."""
    cls = getattr(command, CONFIGS[command.__name__.rpartition(".")[2]])
    config = settings.load(cls, table, recipe=recipe, flags=flags, environ={})
    result = command.run(dataclasses.replace(config, resume=_unfinished(config)))
    return {"model": result.model, "run": str(store.runs_dir() / result.run), **_plain(result)}


def _unfinished(config: Any) -> str:
    """The id of the latest interrupted run with these very settings, to go on with; "" when there is none."""
    found = []
    for run in store.list_runs():
        stored = store.read_json(run.config)
        same = stored.get("settings") == config.to_dict()
        if same and not (run.path / "result.json").exists() and any(run.checkpoints.iterdir()):
            found.append((stored["created"], run.id))
    return max(found)[1] if found else ""


def _plain(result: Any) -> dict[str, Any]:
    return {k: v for k, v in result.to_dict().items() if k not in ("model", "run")}
