"""Adapters in PEFT's folder layout, and a base with a LoRA merged in.

lora    W + scale * B A (Hu et al. 2021), scale = alpha / rank or, rank-stabilised, alpha / sqrt(rank) (Kalajdzievski
        2023)
        or, of a DoRA (Liu et al. 2024), that with each row brought to a length of its own
ia3     keys, values and the inputs of down_proj, each number times a trained one (Liu et al. 2022)
prompt  embeddings that stand before every text (Lester et al. 2021)
prefix  keys and values that stand before every text, in each layer (Li and Liang 2021)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ladderlm import store
from ladderlm.errors import FormatError, NotFound, UsageError
from ladderlm.models import families
from ladderlm.models.adapter_config import TARGETS, AdapterConfig, Ia3Config, LoraConfig, SoftConfig
from ladderlm.models.arch import Architecture
from ladderlm.models.bounded import read_json
from ladderlm.models.safetensors import read_safetensors, write_safetensors
from ladderlm.models.weights import Blocks, Weights
from ladderlm.types import FloatArray

__all__ = [
    "TARGETS", "Adapter", "Ia3Config", "LoraConfig", "MergedWeights", "SoftConfig", "base_of", "fit", "load_adapter",
    "save_adapter",
]  # fmt: skip

Kind = Literal["lora", "ia3", "prompt", "prefix"]
_PREFIX = "base_model.model."
_NAME = re.compile(r"base_model\.model\.([\w.]+)\.(?:lora_([AB])\.weight|(lora_magnitude_vector)|(ia3_l))")
_TASKS = {"decoder": "CAUSAL_LM", "encoder": "FEATURE_EXTRACTION", "encoder-decoder": "SEQ_2_SEQ_LM"}  # PEFT's words
_KINDS: dict[str, Kind] = {"LORA": "lora", "IA3": "ia3", "PROMPT_TUNING": "prompt", "PREFIX_TUNING": "prefix"}
_VARIANTS = (
    "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias", "use_qalora", "layer_replication",
    "target_parameters", "trainable_token_indices", "alora_invocation_tokens", "use_bdlora", "arrow_config",
    "kasa_config", "velora_config", "monteclora_config",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter at rest.

    A lora has a `config`, `scale` and `pairs`: base tensor name -> (A (rank, in), B (out, rank)); W + scale * B A. With
    `lengths` (out,), of a DoRA, its rows then get those. An ia3 has `factors`: (out, 1) of rows or (1, in) of columns.
    Of the others `virtual` holds what stands before a text: embeddings (P, dim) of a prompt; of a prefix, keys (as
    they are after any rotation) and values, (P, layers * 2 * key heads * head dim) until `fit`, then (layers, 2, P,
    key heads, head dim).
    """

    path: Path
    base: str
    kind: Kind
    lineage: Mapping[str, Any]
    bytes: int
    config: LoraConfig | None = None
    scale: float = 1.0
    pairs: Mapping[str, tuple[FloatArray, FloatArray]] = field(default_factory=dict, repr=False)
    lengths: Mapping[str, FloatArray] = field(default_factory=dict, repr=False)
    factors: Mapping[str, FloatArray] = field(default_factory=dict, repr=False)
    virtual: FloatArray | None = field(default=None, repr=False)

    @property
    def apart(self) -> bool:
        """Whether it is applied beside the base's weights, not merged into them."""
        return self.kind != "ia3" and not self.lengths

    @property
    def tokens(self) -> int:
        """Virtual tokens: positions of the context that a fitted adapter takes."""
        return 0 if self.virtual is None else int(self.virtual.shape[2 if self.virtual.ndim == 5 else 0])

    def tensors(self) -> dict[str, FloatArray]:
        """Of a lora or ia3, by PEFT names, as `save_adapter` takes them."""
        out: dict[str, FloatArray] = {}
        for name, (a, b) in self.pairs.items():
            stem = _PREFIX + name.removesuffix(".weight")
            out |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
        for last, values in (("lora_magnitude_vector", self.lengths), ("ia3_l", self.factors)):
            out |= {f"{_PREFIX}{name.removesuffix('.weight')}.{last}": value for name, value in values.items()}
        return out


def save_adapter(
    path: str | Path,
    base_ref: str,
    config: AdapterConfig,
    tensors: Mapping[str, np.ndarray],
    *,
    arch: Architecture | None = None,
    lineage: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> None:
    """Writes an adapter folder that PEFT loads, whole or not at all.

    `tensors` by PEFT names over canonical ones; with the `arch` of the base, they become those of its family's files.
    Virtual tokens are "prompt_embeddings", of `config.shape`.
    """
    modules: dict[str, list[str]] = {}
    if isinstance(config, SoftConfig):
        named = dict(tensors)
        if {n: t.shape for n, t in named.items()} != {"prompt_embeddings": config.shape}:
            raise FormatError(f"virtual tokens are one tensor prompt_embeddings of shape {config.shape}")
    else:
        named = {n if n.startswith(_PREFIX) else _PREFIX + n: t for n, t in tensors.items()}
        for name in named:
            if not _NAME.fullmatch(name):
                raise FormatError(f"{name!r} is no adapter tensor name", cure=f"expected {_PREFIX}...lora_A.weight")
        modules = {target: [target] for target in config.targets}
        if arch is not None:
            named, modules = _in_files(arch, named, modules)
    with store.atomic_dir(Path(path), replace=replace) as folder:
        write_safetensors(folder / "adapter_model.safetensors", named)
        spec = {
            **config.to_peft(modules),
            "base_model_name_or_path": base_ref,
            "task_type": _TASKS[arch.kind if arch else "decoder"],
        }
        store.write_json(folder / "adapter_config.json", spec)
        notes = {"format": 1, "base": base_ref, "lineage": dict(lineage or {})}
        store.write_json(folder / "ladderlm.json", notes)


def _in_files(
    arch: Architecture, named: Mapping[str, np.ndarray], modules: dict[str, list[str]]
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Tensors and modules by the names that the family's files have, where a matrix is one of theirs.

    Matrices that the files join (q, k and v in one) keep our names: PEFT has no module for them, we have.
    """
    theirs = {
        s.parts[0]: s.name for s in families.stored(arch) if len(s.parts) == 1 and s.order is None and not s.stacked
    }
    out: dict[str, np.ndarray] = {}
    found: dict[str, set[str]] = {}
    for name, tensor in named.items():
        match = _NAME.fullmatch(name)
        assert match is not None
        stem = theirs.get(f"{match[1]}.weight", f"{match[1]}.weight").removesuffix(".weight")
        out[f"{_PREFIX}{stem}{name[len(_PREFIX) + len(match[1]) :]}"] = tensor
        found.setdefault(match[1].rpartition(".")[2], set()).add(stem)
    for target, stems in found.items():
        if any(stem.rpartition(".")[2] != target for stem in stems):
            modules[target] = sorted(stems)
    return out, modules


def load_adapter(path: str | Path) -> Adapter:
    """Reads a PEFT folder: LORA, IA3, PROMPT_TUNING or PREFIX_TUNING. FormatError for other kinds and unsound ones."""
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
    read: dict[str, Callable[..., Adapter]] = {"lora": _read_lora, "ia3": _read_ia3}
    return read.get(kind, _read_virtual)(
        adapter, spec, {name: tensor.array() for name, tensor in read_safetensors(file).items()}
    )


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
    pairs, lengths = _pairs(tensors, rank, where)
    if bool(spec.get("use_dora")) != bool(lengths) or (lengths and lengths.keys() != pairs.keys()):
        raise FormatError("some of the adapter's row lengths are missing, or are not announced", where=where)
    if not isinstance(targets, list) or not set(targets) <= set(TARGETS):  # a pattern, or a family's own names
        targets = sorted({name.split(".")[-2] for name in pairs} & set(TARGETS))
    targets = tuple(t for t in TARGETS if t in targets) or TARGETS
    config = LoraConfig(rank, float(alpha), targets, bool(spec.get("use_rslora")), bool(lengths))
    return replace(adapter, config=config, scale=config.scale, pairs=pairs, lengths=lengths)


def _pairs(
    tensors: Mapping[str, np.ndarray], rank: int, where: str
) -> tuple[dict[str, tuple[FloatArray, FloatArray]], dict[str, FloatArray]]:
    halves: dict[str, dict[str, FloatArray]] = {}
    lengths: dict[str, FloatArray] = {}
    for name, tensor in tensors.items():
        found = _NAME.fullmatch(name)
        if found and found[3] and tensor.ndim == 1:
            lengths[found[1] + ".weight"] = _finite(name, tensor, where)
            continue
        if not found or not found[2] or tensor.ndim != 2 or tensor.shape["AB".index(found[2])] != rank:
            raise FormatError(f"unexpected adapter tensor {name!r} of shape {tensor.shape}, rank {rank}", where=where)
        halves.setdefault(found[1] + ".weight", {})[found[2]] = _finite(name, tensor, where)
    if not halves or any(set(h) != {"A", "B"} for h in halves.values()):
        raise FormatError("the adapter lacks one half of a pair", where=where)
    return {name: (h["A"], h["B"]) for name, h in halves.items()}, lengths


def _read_ia3(adapter: Adapter, spec: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Adapter:
    factors: dict[str, FloatArray] = {}
    for name, tensor in tensors.items():
        found = _NAME.fullmatch(name)
        if not found or not found[4] or tensor.ndim != 2 or 1 not in tensor.shape:
            raise FormatError(f"unexpected adapter tensor {name!r} of shape {tensor.shape}", where=str(adapter.path))
        factors[found[1] + ".weight"] = _finite(name, tensor, str(adapter.path))
    if not factors or spec.get("modules_to_save"):
        raise FormatError("an (IA)3 adapter holds its factors and nothing else", where=str(adapter.path))
    return replace(adapter, factors=factors)


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
    if adapter.kind in ("lora", "ia3"):
        return _fit_matrices(adapter, arch)
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


def _fit_matrices(adapter: Adapter, arch: Architecture) -> Adapter:
    """What is made of several of our matrices in the family's files (q, k and v in one) has one A and several B."""
    shapes = arch.tensor_shapes()
    stored = {s.name: s for s in families.stored(arch) if not s.stacked}

    def parts(name: str, rows: int, cols: int) -> Iterator[tuple[str, Callable[[FloatArray], FloatArray]]]:
        """Our matrices in a file's one, each with what takes its own rows of values for all; 0 rows: any number."""
        source = stored.get(name)
        found = (name,) if name in shapes else source.parts if source else ()
        if not all(p.startswith("model.") and ".layers." in p for p in found):
            raise _misfit(adapter, f"no adaptable {name!r}")
        fits = bool(found) and (not cols or {shapes[p][1:] for p in found} == {(cols,)})
        if not fits or (rows and sum(shapes[p][0] for p in found) != rows):
            raise _misfit(adapter, f"no matrix {name!r} of shape {(rows, cols)}")
        for part in found:

            def own(values: FloatArray, part: str = part) -> FloatArray:
                taken = replace(source, turned=False).part(values, part, shapes) if source else values
                return np.ascontiguousarray(taken, np.float32)

            yield part, own if name not in shapes else _itself

    pairs: dict[str, tuple[FloatArray, FloatArray]] = {}
    lengths: dict[str, FloatArray] = {}
    factors: dict[str, FloatArray] = {}
    for name, (a, b) in adapter.pairs.items():
        for part, own in parts(name, len(b), a.shape[1]):
            pairs[part] = a, own(b)
            if name in adapter.lengths:
                if len(adapter.lengths[name]) != len(b):
                    raise _misfit(adapter, f"{len(b)} rows in {name!r}")
                lengths[part] = own(adapter.lengths[name])
    for name, factor in adapter.factors.items():
        rows, cols = (0, factor.shape[1]) if len(factor) == 1 else (len(factor), 0)
        for part, own in parts(name, rows, cols):
            factors[part] = factor if cols else own(factor)
    return replace(adapter, pairs=pairs, lengths=lengths, factors=factors)


def _itself(values: FloatArray) -> FloatArray:
    return np.ascontiguousarray(values, np.float32)


def _misfit(adapter: Adapter, what: str) -> FormatError:
    return FormatError(
        f"the adapter does not fit this base, which has {what}", where=str(adapter.path),
        cure=f"it was made for {adapter.base!r}",
    )  # fmt: skip


class MergedWeights:
    """A base with an adapter merged in, in float32, tensor by tensor as they are asked for."""

    def __init__(self, base: Weights, adapter: Adapter, arch: Architecture) -> None:
        if adapter.kind not in ("lora", "ia3"):
            raise UsageError(
                "virtual tokens cannot be merged into weights",
                where=str(adapter.path),
                cure=f"chat with base+{adapter.path.name}",
            )
        self._base, self._adapter = base, fit(adapter, arch)

    def names(self) -> list[str]:
        return self._base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(name)

    def float32(self, name: str) -> FloatArray:
        weight, adapter = self._base.float32(name), self._adapter
        if (pair := adapter.pairs.get(name)) is not None:
            weight = weight + np.float32(adapter.scale) * (pair[1] @ pair[0])
            if (length := adapter.lengths.get(name)) is not None:
                weight *= (length / np.maximum(np.linalg.norm(weight, axis=1), 1e-30))[:, None]
        factor = adapter.factors.get(name)
        if factor is not None:
            return weight * factor
        factor = adapter.factors.get(name.removesuffix(".bias") + ".weight") if name.endswith(".bias") else None
        return weight if factor is None or len(factor) == 1 else weight * factor[:, 0]

    def blocks(self, name: str) -> Blocks | None:
        """The base's own blocks; None for a merged tensor, which has no stored form."""
        merged = name in self._adapter.pairs or name in self._adapter.factors
        return None if merged else self._base.blocks(name)
