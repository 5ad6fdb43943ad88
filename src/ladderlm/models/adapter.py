"""LoRA adapters (Hu et al., 2021) in PEFT's folder layout, and a base with one merged in."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ladderlm import store
from ladderlm.errors import FormatError, NotFound, UsageError, nearest
from ladderlm.models.bounded import read_json
from ladderlm.models.safetensors import read_safetensors, write_safetensors
from ladderlm.models.weights import Blocks, Weights
from ladderlm.types import FloatArray, Value

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_PREFIX = "base_model.model."
_NAME = re.compile(r"base_model\.model\.(model\.layers\.\d+\.\w+\.\w+)\.lora_([AB])\.weight")


@dataclass(frozen=True, slots=True)
class LoraConfig(Value):
    """Rank, scale (alpha / rank multiplies B A) and the linear layers that get an adapter."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError("the LoRA rank must be at least 1", where=f"rank={self.rank}")
        if not self.targets:
            raise UsageError("a LoRA adapter needs at least one target", cure="known: " + ", ".join(TARGETS))
        for target in self.targets:
            if target not in TARGETS:
                raise UsageError(f"unknown LoRA target {target!r}", cure=nearest(target, TARGETS))


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter at rest. `pairs`: base tensor name -> (A (rank, in), B (out, rank)); W + scale * B A."""

    path: Path
    base: str
    config: LoraConfig
    scale: float
    pairs: Mapping[str, tuple[FloatArray, FloatArray]] = field(repr=False)
    lineage: Mapping[str, Any]
    bytes: int

    def tensors(self) -> dict[str, FloatArray]:
        """By PEFT names, as `save_adapter` takes them."""
        out: dict[str, FloatArray] = {}
        for name, (a, b) in self.pairs.items():
            stem = _PREFIX + name.removesuffix(".weight")
            out |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
        return out


def save_adapter(
    path: str | Path,
    base_ref: str,
    config: LoraConfig,
    tensors: Mapping[str, np.ndarray],
    *,
    lineage: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> None:
    """Writes an adapter folder that PEFT loads, whole or not at all. `tensors` by PEFT names."""
    named = {n if n.startswith(_PREFIX) else _PREFIX + n: t for n, t in tensors.items()}
    for name in named:
        if not _NAME.fullmatch(name):
            raise FormatError(f"{name!r} is no LoRA tensor name", cure=f"expected {_PREFIX}model.layers...")
    with store.atomic_dir(Path(path), replace=replace) as folder:
        write_safetensors(folder / "adapter_model.safetensors", named)
        store.write_json(
            folder / "adapter_config.json",
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": base_ref,
                "r": config.rank,
                "lora_alpha": config.alpha,
                "lora_dropout": 0.0,
                "target_modules": list(config.targets),
                "bias": "none",
                "fan_in_fan_out": False,
                "inference_mode": True,
            },
        )
        notes = {"format": 1, "base": base_ref, "lineage": dict(lineage or {})}
        store.write_json(folder / "ladderlm.json", notes)


def load_adapter(path: str | Path) -> Adapter:
    """Reads a PEFT LoRA folder. FormatError for other kinds of adapter."""
    path = Path(path)
    if not (path / "adapter_config.json").is_file():
        raise NotFound("no adapter here", where=str(path), cure="an adapter is a folder with adapter_config.json")
    spec = read_json(path / "adapter_config.json")
    if not isinstance(spec, dict) or spec.get("peft_type") != "LORA":
        raise FormatError("only LoRA adapters are supported", where=str(path))
    if spec.get("use_dora") or spec.get("rank_pattern") or spec.get("alpha_pattern") or spec.get("fan_in_fan_out"):
        raise FormatError("this variant of LoRA is not supported", where=str(path), cure="merge it with PEFT first")
    rank, alpha, targets = spec.get("r"), spec.get("lora_alpha"), spec.get("target_modules")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)):
        raise FormatError("r or lora_alpha is missing", where=str(path / "adapter_config.json"))
    pairs = _pairs(path / "adapter_model.safetensors", rank)
    if not isinstance(targets, list):  # PEFT allows a pattern: what it matched is in the names
        targets = sorted({name.split(".")[-2] for name in pairs})
    scale = alpha / math.sqrt(rank) if spec.get("use_rslora") else alpha / rank
    notes = read_json(path / "ladderlm.json") if (path / "ladderlm.json").exists() else {}
    return Adapter(
        path, str(spec.get("base_model_name_or_path") or ""), LoraConfig(rank, float(alpha), tuple(targets)), scale,
        pairs, notes.get("lineage") or {}, (path / "adapter_model.safetensors").stat().st_size,
    )  # fmt: skip


def _pairs(file: Path, rank: int) -> dict[str, tuple[FloatArray, FloatArray]]:
    halves: dict[str, dict[str, FloatArray]] = {}
    for name, tensor in read_safetensors(file).items():
        found = _NAME.fullmatch(name)
        if not found or len(tensor.shape) != 2 or tensor.shape["AB".index(found[2])] != rank:
            raise FormatError(f"unexpected adapter tensor {name!r} of shape {tensor.shape}", where=str(file))
        halves.setdefault(found[1] + ".weight", {})[found[2]] = tensor.array().astype(np.float32, copy=False)
    if not halves or any(set(h) != {"A", "B"} for h in halves.values()):
        raise FormatError("the adapter lacks one half of a pair", where=str(file))
    return {name: (h["A"], h["B"]) for name, h in halves.items()}


class MergedWeights:
    """A base with an adapter merged in, in float32, tensor by tensor as they are asked for."""

    def __init__(self, base: Weights, adapter: Adapter) -> None:
        self._base, self._adapter = base, adapter
        known = set(base.names())
        for name, (a, b) in adapter.pairs.items():
            if name not in known or base.shape(name) != (b.shape[0], a.shape[1]):
                raise FormatError(
                    f"the adapter does not fit this base at {name!r}", where=str(adapter.path),
                    cure=f"it was made for {adapter.base!r}",
                )  # fmt: skip

    def names(self) -> list[str]:
        return self._base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(name)

    def float32(self, name: str) -> FloatArray:
        weight = self._base.float32(name)
        if (pair := self._adapter.pairs.get(name)) is None:
            return weight
        a, b = pair
        return weight + np.float32(self._adapter.scale) * (b @ a)

    def blocks(self, name: str) -> Blocks | None:
        """The base's own blocks; None for a merged tensor, which has no stored form."""
        return None if name in self._adapter.pairs else self._base.blocks(name)
