"""Adapters in PEFT's folder layout, and a base with a LoRA merged in.

lora    W + scale * B A (Hu et al. 2021), scale = alpha / rank or, rank-stabilised, alpha / sqrt(rank) (Kalajdzievski
        2023)
prompt  embeddings that stand before every text (Lester et al. 2021)
prefix  keys and values that stand before every text, in each layer (Li and Liang 2021)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ladderlm import store
from ladderlm.errors import FormatError, NotFound, UsageError, nearest
from ladderlm.models import families
from ladderlm.models.arch import Architecture
from ladderlm.models.bounded import read_json
from ladderlm.models.safetensors import read_safetensors, write_safetensors
from ladderlm.models.weights import Blocks, Weights
from ladderlm.types import FloatArray, Value

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_PREFIX = "base_model.model."
_NAME = re.compile(r"base_model\.model\.([\w.]+)\.lora_([AB])\.weight")
_KINDS: dict[str, Literal["lora", "prompt", "prefix"]] = {
    "LORA": "lora", "PROMPT_TUNING": "prompt", "PREFIX_TUNING": "prefix",
}  # fmt: skip
_VARIANTS = (
    "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias", "use_qalora", "layer_replication",
    "target_parameters", "trainable_token_indices", "alora_invocation_tokens", "use_bdlora", "arrow_config",
    "kasa_config", "velora_config", "monteclora_config",
)  # fmt: skip


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
    """An adapter at rest.

    A lora has a `config`, `scale` and `pairs`: base tensor name -> (A (rank, in), B (out, rank)); W + scale * B A.
    Of the others `virtual` holds what stands before a text: embeddings (P, dim) of a prompt; of a prefix, keys (as
    they are after any rotation) and values, (P, layers * 2 * key heads * head dim) until `fit`, then (layers, 2, P,
    key heads, head dim).
    """

    path: Path
    base: str
    kind: Literal["lora", "prompt", "prefix"]
    lineage: Mapping[str, Any]
    bytes: int
    config: LoraConfig | None = None
    scale: float = 1.0
    pairs: Mapping[str, tuple[FloatArray, FloatArray]] = field(default_factory=dict, repr=False)
    virtual: FloatArray | None = field(default=None, repr=False)

    @property
    def tokens(self) -> int:
        """Virtual tokens: positions of the context that a fitted adapter takes."""
        return 0 if self.virtual is None else int(self.virtual.shape[2 if self.virtual.ndim == 5 else 0])

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
            raise FormatError(f"{name!r} is no LoRA tensor name", cure=f"expected {_PREFIX}...lora_A.weight")
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
    """Reads a PEFT folder: LORA, PROMPT_TUNING or PREFIX_TUNING. FormatError for other kinds and unsound ones."""
    path = Path(path)
    if not (path / "adapter_config.json").is_file():
        raise NotFound("no adapter here", where=str(path), cure="an adapter is a folder with adapter_config.json")
    spec = read_json(path / "adapter_config.json")
    kind = _KINDS.get(str(spec.get("peft_type"))) if isinstance(spec, dict) else None
    if kind is None:
        raise FormatError(
            "not a kind of adapter that is supported", where=str(path), cure="known: " + ", ".join(_KINDS)
        )
    notes = read_json(path / "ladderlm.json") if (path / "ladderlm.json").exists() else {}
    file = path / "adapter_model.safetensors"
    adapter = Adapter(path, base_of(path), kind, notes.get("lineage") or {}, file.stat().st_size)
    read = _read_lora if kind == "lora" else _read_virtual
    return read(adapter, spec, {name: tensor.array() for name, tensor in read_safetensors(file).items()})


def base_of(path: Path) -> str:
    """The base that an adapter's folder names; empty where it names none."""
    spec = read_json(path / "adapter_config.json")
    return str(spec.get("base_model_name_or_path") or "") if isinstance(spec, dict) else ""


def _read_lora(adapter: Adapter, spec: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Adapter:
    where = str(adapter.path)
    for variant in _VARIANTS:
        if spec.get(variant):
            raise FormatError(f"LoRA with {variant} is not supported", where=where, cure="merge it with PEFT first")
    if spec.get("bias", "none") != "none":
        raise FormatError("LoRA with trained biases is not supported", where=where, cure="merge it with PEFT first")
    rank, alpha, targets = spec.get("r"), spec.get("lora_alpha"), spec.get("target_modules")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)):
        raise FormatError("r or lora_alpha is missing", where=str(adapter.path / "adapter_config.json"))
    pairs = _pairs(tensors, rank, where)
    if not isinstance(targets, list) or not set(targets) <= set(TARGETS):  # a pattern, or a family's own names
        targets = sorted({name.split(".")[-2] for name in pairs} & set(TARGETS))
    config = LoraConfig(rank, float(alpha), tuple(targets) or TARGETS)
    scale = alpha / math.sqrt(rank) if spec.get("use_rslora") else alpha / rank
    return replace(adapter, config=config, scale=scale, pairs=pairs)


def _pairs(tensors: Mapping[str, np.ndarray], rank: int, where: str) -> dict[str, tuple[FloatArray, FloatArray]]:
    halves: dict[str, dict[str, FloatArray]] = {}
    for name, tensor in tensors.items():
        found = _NAME.fullmatch(name)
        if not found or len(tensor.shape) != 2 or tensor.shape["AB".index(found[2])] != rank:
            raise FormatError(f"unexpected adapter tensor {name!r} of shape {tensor.shape}, rank {rank}", where=where)
        halves.setdefault(found[1] + ".weight", {})[found[2]] = _finite(name, tensor, where)
    if not halves or any(set(h) != {"A", "B"} for h in halves.values()):
        raise FormatError("the adapter lacks one half of a pair", where=where)
    return {name: (h["A"], h["B"]) for name, h in halves.items()}


def _read_virtual(adapter: Adapter, spec: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Adapter:
    """The virtual tokens of a prompt or a prefix. PEFT writes a prefix's projection carried out."""
    where, found, count = str(adapter.path), tensors.get("prompt_embeddings"), spec.get("num_virtual_tokens")
    if found is None or found.ndim != 2 or not found.size or found.shape[0] != count:
        shape = None if found is None else found.shape
        raise FormatError(f"prompt_embeddings of shape {shape} for {count} virtual tokens", where=where)
    if spec.get("num_transformer_submodules") not in (None, 1):
        raise FormatError("only adapters of decoders are supported", where=where)
    return replace(adapter, virtual=_finite("prompt_embeddings", found, where))


def _finite(name: str, tensor: np.ndarray, where: str) -> FloatArray:
    values = np.ascontiguousarray(tensor, np.float32)
    if not np.isfinite(values).all():
        raise FormatError(f"the adapter tensor {name!r} holds numbers that are not finite", where=where)
    return values


def fit(adapter: Adapter, arch: Architecture) -> Adapter:
    """`adapter` in the terms of `arch`: pairs by canonical names, a prefix layer by layer. A fitted one fits again.

    Raises FormatError where it was made for another model.
    """
    if adapter.kind == "lora":
        return replace(adapter, pairs=_fit_pairs(adapter, arch))
    assert adapter.virtual is not None
    virtual = adapter.virtual
    if adapter.kind == "prefix" and virtual.ndim == 2:
        if virtual.shape[1] != arch.layers * 2 * arch.kv_heads * arch.head_dim:
            raise _misfit(adapter, f"{arch.layers} layers of {arch.kv_heads} key heads of {arch.head_dim}")
        shape = (len(virtual), arch.layers, 2, arch.kv_heads, arch.head_dim)
        virtual = np.ascontiguousarray(virtual.reshape(shape).transpose(1, 2, 0, 3, 4))
    if adapter.kind == "prompt" and virtual.shape[1] != arch.dim:
        raise _misfit(adapter, f"embeddings of {arch.dim}, not {virtual.shape[1]}")
    fitted = replace(adapter, virtual=virtual)
    if fitted.tokens >= arch.context_length:
        raise _misfit(adapter, f"a context of {arch.context_length}, not of more than its virtual tokens")
    return fitted


def _fit_pairs(adapter: Adapter, arch: Architecture) -> dict[str, tuple[FloatArray, FloatArray]]:
    """What is made of several of our matrices in the family's files (q, k and v in one) has one A and several B."""
    shapes = arch.tensor_shapes()
    stored = {s.name: s for s in families.stored(arch) if not s.stacked}
    out: dict[str, tuple[FloatArray, FloatArray]] = {}
    for name, (a, b) in adapter.pairs.items():
        source = stored.get(name)
        parts = (name,) if name in shapes else source.parts if source else ()
        if not all(p.startswith("model.layers.") for p in parts):
            raise _misfit(adapter, f"no adaptable {name!r}")
        if not parts or {shapes[p][1:] for p in parts} != {(a.shape[1],)} or sum(shapes[p][0] for p in parts) != len(b):
            raise _misfit(adapter, f"no matrix {name!r} of shape {(len(b), a.shape[1])}")
        for part in parts:
            rows = replace(source, turned=False).part(b, part, shapes) if source else b
            out[part] = (a, np.ascontiguousarray(rows, np.float32))
    return out


def _misfit(adapter: Adapter, what: str) -> FormatError:
    return FormatError(
        f"the adapter does not fit this base, which has {what}", where=str(adapter.path),
        cure=f"it was made for {adapter.base!r}",
    )  # fmt: skip


class MergedWeights:
    """A base with an adapter merged in, in float32, tensor by tensor as they are asked for."""

    def __init__(self, base: Weights, adapter: Adapter, arch: Architecture) -> None:
        if adapter.kind != "lora":
            raise UsageError(
                "only a LoRA can be merged into weights",
                where=str(adapter.path),
                cure=f"chat with base+{adapter.path.name}",
            )
        self._base, self._adapter = base, fit(adapter, arch)

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
