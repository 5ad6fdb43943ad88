"""What an adapter is, in its own words and in PEFT's `adapter_config.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ladderlm.errors import UsageError, nearest
from ladderlm.types import Value

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SCALED = ("k_proj", "v_proj", "down_proj")  # what (IA)3 scales; of the last, what goes in
_COMMON = {"inference_mode": True}


@dataclass(frozen=True, slots=True)
class LoraConfig(Value):
    """Rank, alpha, and the linear layers that get an adapter: W + scale * B A.

    `rslora`: the scale is alpha / sqrt(rank), not alpha / rank (Kalajdzievski 2023). `dora`: the length of each row of
    the sum is trained too, apart from its direction (Liu et al. 2024).
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS
    rslora: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError("the LoRA rank must be at least 1", where=f"rank={self.rank}")
        if not self.targets:
            raise UsageError("a LoRA adapter needs at least one target", cure="known: " + ", ".join(TARGETS))
        for target in self.targets:
            if target not in TARGETS:
                raise UsageError(f"unknown LoRA target {target!r}", cure=nearest(target, TARGETS))

    @property
    def scale(self) -> float:
        """What multiplies B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def to_peft(self, modules: Mapping[str, list[str]]) -> dict[str, Any]:
        """`modules`: what the family's files call the matrices of each target."""
        return {
            "peft_type": "LORA", **_COMMON, "r": self.rank, "lora_alpha": self.alpha, "lora_dropout": 0.0,
            "target_modules": _all(modules), "bias": "none", "fan_in_fan_out": False, "use_rslora": self.rslora,
            "use_dora": self.dora,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ia3Config(Value):
    """(IA)3: keys, values and what goes into the last feed-forward matrix, each number times a trained one."""

    targets: tuple[str, ...] = SCALED

    def to_peft(self, modules: Mapping[str, list[str]]) -> dict[str, Any]:
        return {
            "peft_type": "IA3", **_COMMON, "target_modules": _all(modules),
            "feedforward_modules": modules.get("down_proj", []), "fan_in_fan_out": False,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class SoftConfig(Value):
    """Virtual tokens before every text: embeddings of `width` (prompt), or keys and values of `heads` heads with
    `width` numbers in all, in each of so many layers (prefix)."""

    kind: Literal["prompt", "prefix"]
    tokens: int
    width: int
    layers: int
    heads: int

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise UsageError("at least one virtual token", where=f"virtual_tokens={self.tokens}")

    @property
    def shape(self) -> tuple[int, int]:
        """Of `prompt_embeddings`, as PEFT lays them out: by token; of a prefix then layer, key or value, head."""
        return self.tokens, self.width * (2 * self.layers if self.kind == "prefix" else 1)

    def to_peft(self, modules: Mapping[str, list[str]]) -> dict[str, Any]:
        shared = {
            **_COMMON, "num_virtual_tokens": self.tokens, "token_dim": self.width, "num_layers": self.layers,
            "num_attention_heads": self.heads, "num_transformer_submodules": 1,
        }  # fmt: skip
        if self.kind == "prompt":
            return {"peft_type": "PROMPT_TUNING", **shared, "prompt_tuning_init": "RANDOM"}
        return {"peft_type": "PREFIX_TUNING", **shared, "prefix_projection": False, "encoder_hidden_size": self.width}


AdapterConfig = LoraConfig | Ia3Config | SoftConfig


def _all(modules: Mapping[str, list[str]]) -> list[str]:
    return sorted({name for names in modules.values() for name in names})


def applied_apart(spec: Any) -> bool:
    """Whether an adapter with this adapter_config.json is applied beside the base's weights, request by request.

    What changes whole matrices (DoRA, (IA)3) is merged into a copy of them instead.
    """
    return not isinstance(spec, dict) or (spec.get("peft_type") != "IA3" and not spec.get("use_dora"))
