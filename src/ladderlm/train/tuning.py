"""What fine-tuning and alignment share: the model made ready to train, and the result written with its lineage.

A method says what trains: adapters beside frozen weights (lora, rslora, dora, qlora, ia3), virtual tokens before every
text (prompt, prefix), the head, the last layers, or all weights. It knows nothing of what is learnt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from ladderlm.errors import UsageError
from ladderlm.models.adapter import TARGETS, Ia3Config, LoraConfig, save_adapter
from ladderlm.models.adapter_config import AdapterConfig
from ladderlm.models.card import joint_licence
from ladderlm.models.fetch import CATALOGUE
from ladderlm.models.folder import ModelFiles, save_model
from ladderlm.nn.decoder import Decoder, load_decoder
from ladderlm.nn.encoder import Encoder
from ladderlm.nn.four_bits import hold_in_4_bits, load_decoder4
from ladderlm.nn.lora import adapter_tensors, add_ia3, add_lora
from ladderlm.nn.soft import add_soft, soft_tensors
from ladderlm.nn.stack import recompute
from ladderlm.nn.tuned import Model, layers_of, merged_state
from ladderlm.train.device import on_processor
from ladderlm.train.optim import Optimiser
from ladderlm.train.result import destination
from ladderlm.train.settings import LORAS, METHODS, RATES, SOFT, WEIGHTS

LAST_LAYERS = 2  # of method last, where no number is given


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
    def virtual_tokens(self) -> int: ...
    @property
    def init_text(self) -> str: ...
    @property
    def lr(self) -> float: ...
    @property
    def recompute(self) -> bool: ...
    @property
    def device(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def replace(self) -> bool: ...


def prepare(config: Tuning, files: ModelFiles, *, lora_lr: float, full_lr: float) -> tuple[Decoder, Optimiser]:
    """A decoder to train and its optimiser. `lr` 0 means the usual rate of the method."""
    known(config.method)
    with on_processor():
        decoder = load_decoder4(files) if config.method == "qlora" else load_decoder(files)
        adapt(decoder, config, files)
    decoder.to(config.device)
    return decoder, optimiser(decoder, config, lora_lr=lora_lr, full_lr=full_lr)


def known(method: str) -> None:
    """Raises UsageError for a method that there is not."""
    if method not in METHODS:
        raise UsageError(f"unknown method {method!r}", cure="known: " + ", ".join(METHODS))


def adapt(model: Model, config: Tuning, files: ModelFiles) -> None:
    """Freezes what `config.method` does not train, and adds what it does; in place. For any kind of model.

    With `config.recompute` its layers keep less for the way back.

    Raises UsageError for a method that this model cannot be tuned by.
    """
    known(config.method)
    if config.method in LORAS:
        if config.method == "qlora":
            hold_in_4_bits(model)
        add_lora(model, lora_config(config), seed=config.seed, layers_trained=config.layers_trained)
        _thaw_head(model)
    elif config.method == "ia3":
        add_ia3(model, ia3_config(model), layers_trained=config.layers_trained)
        _thaw_head(model)
    elif config.method in SOFT:
        if not isinstance(model, Decoder):
            raise UsageError(f"{config.method} tuning is for decoders", where=files.name, cure="use --method lora")
        if config.layers_trained:
            raise UsageError("virtual tokens are before all layers", where="layers_trained", cure="leave it out")
        ids = files.tokenizer.encode(config.init_text) if config.init_text else ()
        add_soft(model, config.method, config.virtual_tokens, ids=ids, seed=config.seed)
    elif config.method in ("head", "last") or config.layers_trained:
        _thaw(model, config)
    if config.recompute:
        recompute(model)


def _thaw_head(model: Model) -> None:
    """An encoder's head is often new: it trains beside any adapter."""
    if isinstance(model, Encoder):
        for parameter in _above(model):
            parameter.requires_grad_(True)


def _above(model: Model) -> list[nn.Parameter]:
    """What stands on the network: heads that are not its embedding."""
    return [p for n, p in model.named_parameters() if not n.startswith("model.")]


def _thaw(model: Model, config: Tuning) -> None:
    """Trains the last layers and, but for method full, all that stands on them."""
    layers, count = layers_of(model), config.layers_trained
    if config.method == "head" and count:
        raise UsageError("the head is above all layers", where=f"layers_trained={count}", cure="use --method last")
    count = count or (LAST_LAYERS if config.method == "last" else 0)
    if not 0 <= count <= len(layers):
        raise UsageError(f"layers_trained must be 0 to {len(layers)}", where=str(count))
    model.requires_grad_(False)
    for layer in layers[len(layers) - count :]:
        layer.requires_grad_(True)
    if config.method == "full":
        return
    above = _above(model)
    if config.method == "head" and not above:
        raise UsageError(
            "this model's head is its embedding, which is not trained alone", where=config.model,
            cure="use --method last",
        )  # fmt: skip
    norms = [p for n, p in model.named_parameters() if n.startswith(("model.norm.", "model.decoder.norm."))]
    for parameter in (*above, *norms):
        parameter.requires_grad_(True)


def optimiser(model: Model, config: Tuning, *, lora_lr: float, full_lr: float) -> Optimiser:
    """For all that trains."""
    usual = (full_lr if config.method in WEIGHTS else lora_lr) * RATES.get(config.method, 1.0)
    return Optimiser(model.named_parameters(), config.lr or usual)


def room(config: Tuning, files: ModelFiles) -> int:
    """The longest text that fits the model's context, beside virtual tokens."""
    return files.arch.context_length - (config.virtual_tokens if config.method in SOFT else 0)


def lora_config(config: Tuning) -> LoraConfig:
    return LoraConfig(config.rank, config.alpha, TARGETS, config.method == "rslora", config.method == "dora")


def ia3_config(model: Model) -> Ia3Config:
    """Models with experts have no single last matrix: then keys and values alone."""
    dense = any(hasattr(layer.mlp, "down_proj") for layer in layers_of(model))
    return Ia3Config() if dense else Ia3Config(("k_proj", "v_proj"))


def save_tuned(
    config: Tuning, files: ModelFiles, model: Model, data: list[dict[str, Any]], run: str, scores: Mapping[str, Any]
) -> Path:
    """Writes the adapter folder, or the model folder where the model's own weights were trained; returns its place.

    An encoder always becomes a model folder, with what was trained merged: its head is a part of the result.
    """
    path = destination(config.out)
    parent = {"name": files.name, "hash": files.hash, "licence": files.lineage.get("licence", "unknown")}
    recipe = dataclasses.asdict(config)  # type: ignore[call-overload]
    lineage: dict[str, Any] = {"parent": parent, "data": data, "recipe": recipe, "run": run, "scores": dict(scores)}
    lineage["licence"] = joint_licence(lineage)
    if config.method in WEIGHTS or isinstance(model, Encoder):
        save_model(
            path, model.arch, merged_state(model), files.tokenizer, files.template, generation=files.generation,
            lineage=lineage, replace=config.replace,
        )  # fmt: skip
        return path
    base = config.model if config.model in CATALOGUE or "+" in config.model else str(files.path.resolve())
    keep: dict[str, Any] = {"arch": files.arch, "lineage": lineage, "replace": config.replace}
    if config.method in SOFT:
        assert isinstance(model, Decoder)
        save_adapter(path, base, *soft_tensors(model), **keep)
    else:
        what: AdapterConfig = ia3_config(model) if config.method == "ia3" else lora_config(config)
        save_adapter(path, base, what, adapter_tensors(model), **keep)
    return path
