"""GGUF: what its metadata say of a model, what it calls the tensors, and in what form it wants them.

The facts are llama.cpp's: the keys it reads, the tensors it asks for, and what its networks take for granted. What a
file cannot say is found by reading our own metadata back (`to_gguf`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ladderlm.errors import FormatError, nearest
from ladderlm.models.arch import Architecture, Shapes
from ladderlm.models.families.config import SERVED
from ladderlm.models.families.gguf_rope import FACTORS, rope_from_meta, rope_to_meta
from ladderlm.models.families.stored import Order, Stored
from ladderlm.models.gguf import GGUF
from ladderlm.models.quants import dequantise
from ladderlm.models.rope import frequencies
from ladderlm.types import FloatArray

_LAYER_NORM = {"norm": "layer", "norm_bias": True}
_GEMMA = {"norm_offset": True, "activation": "gelu_tanh"}


@dataclass(frozen=True, slots=True)
class _Form:
    """A GGUF architecture. `family` is the Hugging Face one it is read as; `fixed` what its network always is;
    `interleaved`: the rotary pairs of q and k lie side by side, not half a head apart; `fused`: q, k, v are one
    tensor; `windows`: it knows sliding windows; `square`: heads * head_dim must be dim; `head`: whether the file
    "may", "must" or must "never" hold an output matrix; `pattern`: every so many layers the last has no window."""

    family: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    interleaved: bool = False
    fused: bool = False
    windows: bool = False
    square: bool = False
    head: str = "may"
    pattern: int = 0


_FORMS: dict[str, _Form] = {
    "llama": _Form("llama", interleaved=True),
    "qwen2": _Form("qwen2", square=True),
    "qwen3": _Form("qwen3", {"qk_norm": "head"}),
    "qwen2moe": _Form("qwen2_moe", {"expert_weights_normed": False}, square=True, head="must"),
    "qwen3moe": _Form("qwen3_moe", {"qk_norm": "head"}),
    "gemma": _Form("gemma", _GEMMA, head="never"),
    "gemma2": _Form("gemma2", {**_GEMMA, "placement": "sandwich"}, windows=True, head="never", pattern=2),
    "gemma3": _Form("gemma3_text", {**_GEMMA, "placement": "sandwich", "qk_norm": "head"}, windows=True, pattern=6),
    "phi3": _Form("phi3", fused=True, square=True),
    "gpt2": _Form(
        "gpt2",
        {**_LAYER_NORM, "positions": "learned", "activation": "gelu_tanh", "gated": False,
         "qkv_bias": True, "out_bias": True, "mlp_bias": True},
        fused=True, square=True,
    ),
    "olmo2": _Form("olmo2", {"placement": "inner", "qk_norm": "all"}, square=True, head="must"),
    "stablelm": _Form("stablelm", _LAYER_NORM, square=True, head="must"),
    "falcon": _Form("falcon", {**_LAYER_NORM, "placement": "parallel", "activation": "gelu", "gated": False},
                    fused=True, square=True),
    "smollm3": _Form("smollm3", interleaved=True),
}  # fmt: skip
_NAMED = {form.family: name for name, form in _FORMS.items()} | {"mistral": "llama", "mixtral": "llama"}
_BIG_GEMMAS = {"gemma2": 46, "gemma3": 62}  # layers of the 27B models, which scale attention otherwise
_UNROTATED_STEP = 4  # SmolLM3: every fourth layer has no rotary positions


# --- Metadata to Architecture -------------------------------------------------------------------------------------


class _Meta:
    """The keys of one architecture; values of a wrong type are FormatErrors that name them."""

    def __init__(self, meta: Mapping[str, Any], name: str) -> None:
        self.meta, self.name = meta, name

    def get(self, key: str, otherwise: Any = None) -> Any:
        return self.meta.get(f"{self.name}.{key}", otherwise)

    def int(self, key: str, otherwise: int | None = None) -> int:
        value = self.get(key, otherwise)
        if not isinstance(value, int) or isinstance(value, bool):
            raise FormatError(f"the GGUF header lacks or spoils {self.name}.{key}", cure=SERVED)
        return value

    def float(self, key: str, otherwise: float | None = None) -> float:
        value = self.get(key, otherwise)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise FormatError(f"the GGUF header lacks or spoils {self.name}.{key}", cure=SERVED)
        return shortest(value)


def from_gguf(
    meta: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], factors: Mapping[str, FloatArray]
) -> Architecture:
    """From a file's metadata, the shapes of its tensors, and the values of those among them that FACTORS names.

    FormatError for an architecture or a variant of it that is not known here.
    """
    name = meta.get("general.architecture")
    if not isinstance(name, str) or name not in _FORMS:
        known = nearest(str(name), _FORMS)
        raise FormatError(f"the architecture {str(name)[:40]!r} is not supported: {known}", cure=SERVED)
    form, m = _FORMS[name], _Meta(meta, name)
    heads, dim = m.int("attention.head_count"), m.int("embedding_length")
    head_dim = m.int("attention.key_length", dim // max(heads, 1))
    if m.int("attention.value_length", head_dim) != head_dim:
        raise FormatError("values of another width than keys are not supported", cure=SERVED)
    layers, experts = m.int("block_count"), m.int("expert_count", 0)
    eps = "attention.layer_norm_epsilon" if form.fixed.get("norm") == "layer" else "attention.layer_norm_rms_epsilon"
    embedding = shapes.get("token_embd.weight", (0,))
    rotary = m.int("rope.dimension_count", head_dim)
    fields: dict[str, Any] = {
        "vocab_size": embedding[0] or m.int("vocab_size", 0) or len(meta.get("tokenizer.ggml.tokens", ())),
        "dim": dim,
        "layers": layers,
        "heads": heads,
        "kv_heads": m.int("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden": m.int("feed_forward_length", m.get("expert_feed_forward_length")),
        "context_length": m.int("context_length"),
        "norm_eps": m.float(eps, 1e-5),
        "rope_theta": m.float("rope.freq_base", 10000.0),
        "rotary_dim": 0 if rotary == head_dim or form.fixed.get("positions") == "learned" else rotary,
        "tied": "output.weight" not in shapes or form.head == "never",
        "family": "mixtral" if experts and name == "llama" else form.family,
        **{key: f"blk.0.{tensor}.bias" in shapes for key, tensor in _BIASES.items()},
        **form.fixed,
    }
    fields |= _experts(m, fields["hidden"], experts) if experts else {}
    fields |= _windows(m, form, layers) if form.windows else {}
    arch = Architecture(**fields | _variation(m, name, fields, shapes))
    return dataclasses.replace(arch, rope_scaling=rope_from_meta(m.get, arch, factors))


_BIASES = {"qkv_bias": "attn_q", "out_bias": "attn_output", "mlp_bias": "ffn_up"}


def _experts(m: _Meta, hidden: int, experts: int) -> dict[str, Any]:
    return {
        "experts": experts,
        "experts_used": m.int("expert_used_count"),
        "expert_hidden": m.int("expert_feed_forward_length", hidden),
        "shared_hidden": m.int("expert_shared_feed_forward_length", hidden) if m.name == "qwen2moe" else 0,
    }


def _windows(m: _Meta, form: _Form, layers: int) -> dict[str, Any]:
    size = m.int("attention.sliding_window", 4096 if m.name == "gemma2" else 0)
    pattern = m.get("attention.sliding_window_pattern", form.pattern)
    if not isinstance(pattern, (int, list, np.ndarray)):
        raise FormatError(f"the GGUF header spoils {m.name}.attention.sliding_window_pattern")
    if isinstance(pattern, int):
        local = [pattern > 0 and (i + 1) % pattern != 0 for i in range(min(layers, 4096))]
    else:
        local = [bool(v) for v in pattern]
    windows = tuple(size * v for v in local) if any(local) and size else ()
    return {"windows": windows} | (
        {"local_theta": m.float("rope.freq_base_swa", 10000.0)} if m.name == "gemma3" else {}
    )


def _variation(m: _Meta, name: str, fields: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, Any]:
    """What a family derives from its sizes or from the tensors it has."""
    dim, layers = fields["dim"], fields["layers"]
    if name == "smollm3":
        return {"unrotated": tuple(range(_UNROTATED_STEP - 1, min(layers, 4096), _UNROTATED_STEP))}
    if name == "stablelm":
        return {"placement": "pre" if "blk.0.ffn_norm.weight" in shapes else "parallel",
                "qk_norm": "heads" if "blk.0.attn_q_norm.weight" in shapes else ""}  # fmt: skip
    if name == "falcon":
        return {"two_norms": "blk.0.attn_norm_2.weight" in shapes}
    if not name.startswith("gemma"):
        return {}
    found: dict[str, Any] = {"embed_scale": float(dim**0.5) if dim > 0 else 1.0}
    if name in _BIG_GEMMAS:
        wide = dim // max(fields["heads"], 1) if layers == _BIG_GEMMAS[name] else fields["head_dim"]
        found["attention_scale"] = max(wide, 1) ** -0.5
        found["logit_cap"] = m.float("final_logit_softcapping", 30.0 if name == "gemma2" else 0.0)
        found["attention_cap"] = m.float("attn_logit_softcapping", 50.0) if name == "gemma2" else 0.0
    return found


def factors(file: GGUF) -> dict[str, FloatArray]:
    """The rotary factors of a file."""
    held = {name: file.tensors[name] for name in FACTORS if name in file.tensors}
    return {n: dequantise(t.kind, file.data(n), t.shape[-1]).reshape(t.shape) for n, t in held.items()}


def shortest(value: float) -> float:
    """The shortest decimal of a float32: 9.999999747378752e-06 was written as 1e-05."""
    return float(str(np.float32(value)))


# --- Architecture to metadata -------------------------------------------------------------------------------------


def to_gguf(arch: Architecture) -> tuple[dict[str, Any], dict[str, FloatArray]]:
    """A file's metadata for `arch`, and the tensors it wants beside the model's own (rotary factors).

    A family whose GGUF form knows no sliding windows is written with a context no longer than its smallest window,
    in which windows change nothing. FormatError where the file could not say what the model is.
    """
    name = _NAMED.get(arch.family)
    if name is None:
        raise FormatError(f"GGUF files of the family {arch.family!r} are not supported: {nearest(arch.family, _NAMED)}")
    form = _FORMS[name]
    narrow = min((w for w in arch.windows if w), default=0)
    if narrow and not form.windows:
        arch = dataclasses.replace(arch, windows=(), context_length=min(arch.context_length, narrow))
    if form.square and arch.heads * arch.head_dim != arch.dim:
        raise _unsaid(name, "head_dim", arch.head_dim)
    keys = {**_sizes(arch, form), **_own_keys(arch, name)}
    rope, factors = rope_to_meta(arch) if arch.positions == "rotary" else ({}, {})
    meta = {"general.architecture": name, **{f"{name}.{key}": value for key, value in (keys | rope).items()}}
    shapes = arch.tensor_shapes()
    held = {s.name: s.shape(shapes) for s in stored(arch)} | {n: v.shape for n, v in factors.items()}
    _check_said(arch, from_gguf(meta, held, factors), name)
    return meta, factors


def _sizes(arch: Architecture, form: _Form) -> dict[str, Any]:
    eps = "attention.layer_norm_epsilon" if arch.norm == "layer" else "attention.layer_norm_rms_epsilon"
    keys: dict[str, Any] = {
        "block_count": arch.layers,
        "context_length": arch.context_length,
        "embedding_length": arch.dim,
        "feed_forward_length": arch.expert_hidden if arch.family == "mixtral" else arch.hidden,
        "attention.head_count": arch.heads,
        "attention.head_count_kv": arch.kv_heads,
        "attention.key_length": arch.head_dim,
        "attention.value_length": arch.head_dim,
        eps: arch.norm_eps,
        "vocab_size": arch.vocab_size,
    }
    if arch.experts:
        keys |= {"expert_count": arch.experts, "expert_used_count": arch.experts_used,
                 "expert_feed_forward_length": arch.expert_hidden}  # fmt: skip
    if arch.shared_hidden:
        keys["expert_shared_feed_forward_length"] = arch.shared_hidden
    if arch.windows and form.windows:
        keys["attention.sliding_window"] = max(arch.windows)
        keys["attention.sliding_window_pattern"] = np.array([w > 0 for w in arch.windows])
    return keys


def _own_keys(arch: Architecture, name: str) -> dict[str, Any]:
    if name == "gemma2":
        return {"attn_logit_softcapping": arch.attention_cap,
                "final_logit_softcapping": arch.logit_cap}  # fmt: skip
    if name == "gemma3" and arch.logit_cap:
        return {"final_logit_softcapping": arch.logit_cap}
    if name == "stablelm":
        return {"use_parallel_residual": arch.placement == "parallel"}
    return {"tensor_data_layout": "jploski"} if name == "falcon" else {}


def _check_said(arch: Architecture, back: Architecture, name: str) -> None:
    """Raises FormatError for the first thing that a reader of the file would understand otherwise."""
    loose = {"family", "rope_scaling", "rope_theta", "attention_scale", "pad_id", "hidden"}
    if _FORMS[name].head == "must":
        loose.add("tied")
    for item in dataclasses.fields(arch):
        ours, read = getattr(arch, item.name), getattr(back, item.name)
        close = isinstance(ours, float) and np.isclose(ours, read, rtol=1e-6)
        if item.name not in loose and ours != read and not close:
            raise _unsaid(name, item.name, ours)
    if not np.isclose(arch.scale, back.scale, rtol=1e-6):
        raise _unsaid(name, "attention_scale", arch.scale)
    if arch.positions != "rotary":
        return
    for length in (1, arch.context_length):
        for layer in {0, arch.layers - 1}:
            (ours, scale), (read, found) = (frequencies(a, layer, length) for a in (arch, back))
            if not (np.allclose(ours, read, rtol=1e-4) and np.isclose(scale, found, rtol=1e-4)):
                raise _unsaid(name, "rope_scaling", dict(arch.rope_scaling))


def _unsaid(name: str, what: str, value: Any) -> FormatError:
    return FormatError(f"a GGUF file of the architecture {name} cannot say {what} = {value!r}", cure=SERVED)


# --- Tensors ------------------------------------------------------------------------------------------------------

_OUTER = {
    "model.embed_tokens": "token_embd", "model.embed_positions": "position_embd", "model.norm": "output_norm",
    "lm_head": "output",
}  # fmt: skip
_INNER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "attention_out_norm": "post_attention_norm",
    "post_attention_layernorm": "ffn_norm", "mlp_out_norm": "post_ffw_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp", "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp", "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.experts.0.gate_proj": "ffn_gate_exps", "mlp.experts.0.up_proj": "ffn_up_exps",
    "mlp.experts.0.down_proj": "ffn_down_exps", "self_attn.q_norm.norms.0": "attn_q_norm",
    "self_attn.k_norm.norms.0": "attn_k_norm",
}  # fmt: skip
_ONE_OF_MANY = re.compile(r"\b(experts|norms)\.(\d+)")  # what GGUF has in one tensor
_TWO_NORMS = {"input_layernorm": "attn_norm_2", "post_attention_layernorm": "attn_norm"}  # Falcon 40B


def stored(arch: Architecture) -> list[Stored]:
    """The tensors of a GGUF file of `arch`, in the order of the forward pass."""
    form = _FORMS[_NAMED[arch.family]]
    names = _INNER | (_TWO_NORMS if arch.family == "falcon" and arch.two_norms else {})
    wanted = [name for name in arch.tensor_shapes() if form.head != "never" or name != "lm_head.weight"]
    found = [made for name in wanted if (made := _stored(arch, form, names, name)) is not None]
    if arch.tied and form.head == "must":
        found.append(Stored("output.weight", ("model.embed_tokens.weight",)))
    return found


def _stored(arch: Architecture, form: _Form, names: Mapping[str, str], name: str) -> Stored | None:
    """The tensor that begins with the canonical `name`; None where that is a later part of one."""
    stem, _, kind = name.rpartition(".")
    if not name.startswith("model.layers."):
        return Stored(f"{_OUTER[stem]}.{kind}", (name,), plus=_plus(arch, name))
    _, _, layer, inner = stem.split(".", 3)
    if (one := _ONE_OF_MANY.search(inner)) is not None:
        if one[2] != "0":
            return None
        many = arch.experts if one[1] == "experts" else arch.heads if "q_norm" in inner else arch.kv_heads
        parts = tuple(name.replace(f"{one[1]}.0", f"{one[1]}.{i}") for i in range(many))
        return Stored(f"blk.{layer}.{names[inner]}.{kind}", parts, stacked=True)
    target = f"blk.{layer}.{names[inner]}.{kind}"
    if form.fused and inner in ("self_attn.k_proj", "self_attn.v_proj"):
        return None
    if form.fused and inner == "self_attn.q_proj":
        parts = tuple(name.replace("q_proj", f"{x}_proj") for x in "qkv")
        return Stored(target.replace("attn_q", "attn_qkv"), parts)
    if arch.family == "phi3" and inner == "mlp.gate_proj":
        return Stored(target.replace("ffn_gate", "ffn_up"), (name, name.replace("gate_proj", "up_proj")))
    if arch.family == "phi3" and inner == "mlp.up_proj":
        return None
    turned = form.interleaved and inner in ("self_attn.q_proj", "self_attn.k_proj")
    order = pairs_from_halves(arch, inner) if turned else None
    return Stored(target, (name,), order, plus=_plus(arch, name))


def _plus(arch: Architecture, name: str) -> float:
    """Gemma scales by 1 + weight, and files hold that."""
    return 1.0 if arch.norm_offset and name.endswith("norm.weight") else 0.0


def pairs_from_halves(arch: Architecture, inner: str) -> Order:
    """Row order that brings coordinates j and j + head_dim / 2, which turn together, side by side in each head."""
    heads = arch.heads if inner.endswith("q_proj") else arch.kv_heads
    return np.arange(heads * arch.head_dim).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def check_held(layout: Sequence[Stored], held: Mapping[str, tuple[int, ...]], shapes: Shapes, where: str) -> None:
    """Raises FormatError where a file lacks a tensor, has it in another shape, or has one that is not known.

    Extents of 1 do not count: (1, n) may be held as (n,).
    """
    for tensor in layout:
        if tensor.name not in held:
            raise FormatError(f"the tensor {tensor.name!r} is missing", where=where)
        wanted = tensor.shape(shapes)
        if [n for n in held[tensor.name] if n != 1] != [n for n in wanted if n != 1]:
            raise FormatError(f"{tensor.name} has shape {held[tensor.name]}, not {wanted}", where=where)
    known = {tensor.name for tensor in layout}.union(FACTORS, ["output.weight"])
    if other := next((name for name in held if name not in known), None):
        raise FormatError(f"the tensor {other[:60]!r} is not known in this architecture", where=where, cure=SERVED)
