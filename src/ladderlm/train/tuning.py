"""What fine-tuning and alignment share: the model made ready to train, and the result written with its lineage."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ladderlm.errors import UsageError
from ladderlm.models.adapter import TARGETS, LoraConfig, save_adapter
from ladderlm.models.card import joint_licence
from ladderlm.models.fetch import CATALOGUE
from ladderlm.models.folder import ModelFiles, save_model
from ladderlm.nn.decoder import Decoder, load_decoder
from ladderlm.nn.lora import add_lora, lora_tensors
from ladderlm.train.optim import Optimiser
from ladderlm.train.result import destination
from ladderlm.train.settings import METHODS


class Tuning(Protocol):
    """The settings that both commands have."""

    @property
    def model(self) -> str: ...
    @property
    def out(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def rank(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def layers_trained(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def replace(self) -> bool: ...


def prepare(config: Tuning, files: ModelFiles, *, lora_lr: float, full_lr: float) -> tuple[Decoder, Optimiser]:
    """The model to train and its optimiser. `lr` 0 means the usual rate of the method."""
    if config.method not in METHODS:
        raise UsageError(f"unknown method {config.method!r}", cure="known: " + ", ".join(METHODS))
    decoder = load_decoder(files)
    if config.method == "lora":
        add_lora(decoder, lora_config(config), seed=config.seed, layers_trained=config.layers_trained)
    elif config.layers_trained:
        decoder.requires_grad_(False)
        for layer in decoder.model.layers[-config.layers_trained :]:
            layer.requires_grad_(True)
    lr = config.lr or (lora_lr if config.method == "lora" else full_lr)
    return decoder, Optimiser(decoder.named_parameters(), lr)


def lora_config(config: Tuning) -> LoraConfig:
    return LoraConfig(config.rank, config.alpha, TARGETS)


def save_tuned(
    config: Tuning, files: ModelFiles, decoder: Decoder, data: list[dict[str, Any]], run: str, scores: Mapping[str, Any]
) -> Path:
    """Writes the adapter folder (lora) or the model folder (full); returns its place."""
    path = destination(config.out)
    parent = {"name": files.name, "hash": files.hash, "licence": files.lineage.get("licence", "unknown")}
    recipe = dataclasses.asdict(config)  # type: ignore[call-overload]
    lineage: dict[str, Any] = {"parent": parent, "data": data, "recipe": recipe, "run": run, "scores": dict(scores)}
    lineage["licence"] = joint_licence(lineage)
    if config.method == "lora":
        base = config.model if config.model in CATALOGUE or "+" in config.model else str(files.path.resolve())
        save_adapter(path, base, lora_config(config), lora_tensors(decoder), lineage=lineage, replace=config.replace)
    else:
        save_model(
            path, files.arch, decoder.state(), files.tokenizer, files.template, generation=files.generation,
            lineage=lineage, replace=config.replace,
        )  # fmt: skip
    return path
