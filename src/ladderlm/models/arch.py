"""The shape of a model: what config.json and a GGUF header say, in one value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ladderlm.errors import FormatError
from ladderlm.types import Value

_SERVED = "only the llama family runs here: serve it elsewhere and use its URL (url#model)"


@dataclass(frozen=True, slots=True)
class Architecture(Value):
    """A decoder of the Llama family: RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases.

    `hidden` is the width of the feed-forward layer; `tied` says that input and output embeddings are one matrix.
    """

    vocab_size: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    context_length: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tied: bool = True
    family: str = "llama"

    def __post_init__(self) -> None:
        if self.family != "llama":
            raise FormatError(f"the family {self.family!r} is not supported", cure=_SERVED)
        for name in ("vocab_size", "dim", "layers", "heads", "kv_heads", "head_dim", "hidden", "context_length"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
                raise FormatError(f"{name} must be a positive whole number, not {value!r}", where="architecture")
        if self.layers > 4096:  # a hostile header must not make us list a billion tensors
            raise FormatError(f"{self.layers} layers are absurd", where="architecture")
        if self.heads % self.kv_heads:
            raise FormatError(f"{self.heads} heads do not share {self.kv_heads} key heads", where="architecture")
        if self.head_dim % 2:
            raise FormatError(f"head_dim must be even for rotary positions, not {self.head_dim}", where="architecture")
        for name in ("norm_eps", "rope_theta"):
            if not isinstance(getattr(self, name), (int, float)) or not 0 < getattr(self, name) < 1e12:
                raise FormatError(f"{name} must be a positive number", where="architecture")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Architecture:
        """From a config.json of model_type llama (or mistral without a sliding window, which is the same net)."""
        kind = config.get("model_type")
        if kind not in ("llama", "mistral"):
            raise FormatError(f"the model type {kind!r} is not supported, the nearest family is llama", cure=_SERVED)
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        for name, value in (
            ("sliding_window", config.get("sliding_window")),
            ("attention_bias", config.get("attention_bias")),
            ("mlp_bias", config.get("mlp_bias")),
            ("rope scaling", rope.get("rope_type", rope.get("type", "default")) not in ("default", None)),
            ("hidden_act", config.get("hidden_act", "silu") != "silu"),
        ):
            if value:
                raise FormatError(f"this llama variant ({name}) is not supported", cure=_SERVED)
        try:
            heads, dim = config["num_attention_heads"], config["hidden_size"]
            return cls(
                vocab_size=config["vocab_size"],
                dim=dim,
                layers=config["num_hidden_layers"],
                heads=heads,
                kv_heads=config.get("num_key_value_heads") or heads,
                head_dim=config.get("head_dim") or dim // heads,
                hidden=config["intermediate_size"],
                context_length=config.get("max_position_embeddings", 2048),
                norm_eps=config.get("rms_norm_eps", 1e-6),
                rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
                tied=bool(config.get("tie_word_embeddings", False)),
            )
        except (KeyError, TypeError, ZeroDivisionError) as error:
            raise FormatError(f"config.json lacks or spoils {error}", cure="is this a Llama config?") from None

    def to_hf(
        self, *, bos_id: int | None = None, eos_ids: Sequence[int] = (), dtype: str = "float32"
    ) -> dict[str, Any]:
        """A config.json that transformers loads as LlamaForCausalLM."""
        eos = list(eos_ids)
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.dim,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.hidden,
            "max_position_embeddings": self.context_length,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "tie_word_embeddings": self.tied,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "dtype": dtype,
            "torch_dtype": dtype,
            "bos_token_id": bos_id,
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        }

    @classmethod
    def from_gguf(cls, meta: Mapping[str, Any], *, tied: bool = True) -> Architecture:
        """From the metadata of a GGUF file with general.architecture = llama; `tied`: it has no output.weight."""
        kind = meta.get("general.architecture")
        if kind != "llama":
            raise FormatError(f"the architecture {kind!r} is not supported, the nearest family is llama", cure=_SERVED)
        if meta.get("llama.rope.scaling.type", "none") != "none" or meta.get("llama.expert_count", 0):
            raise FormatError("this llama variant (rope scaling or experts) is not supported", cure=_SERVED)
        try:
            heads, dim = meta["llama.attention.head_count"], meta["llama.embedding_length"]
            return cls(
                vocab_size=meta.get("llama.vocab_size") or len(meta["tokenizer.ggml.tokens"]),
                dim=dim,
                layers=meta["llama.block_count"],
                heads=heads,
                kv_heads=meta.get("llama.attention.head_count_kv", heads),
                head_dim=meta.get("llama.attention.key_length") or dim // heads,
                hidden=meta["llama.feed_forward_length"],
                context_length=meta["llama.context_length"],
                norm_eps=_shortest(meta.get("llama.attention.layer_norm_rms_epsilon", 1e-5)),
                rope_theta=_shortest(meta.get("llama.rope.freq_base", 10000.0)),
                tied=tied,
            )
        except (KeyError, TypeError, ZeroDivisionError) as error:
            raise FormatError(f"the GGUF header lacks or spoils {error}") from None

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor, in the order of the forward pass."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, self.dim)}
        for i in range(self.layers):
            p = f"model.layers.{i}."
            shapes |= {
                p + "input_layernorm.weight": (self.dim,),
                p + "self_attn.q_proj.weight": (q, self.dim),
                p + "self_attn.k_proj.weight": (kv, self.dim),
                p + "self_attn.v_proj.weight": (kv, self.dim),
                p + "self_attn.o_proj.weight": (self.dim, q),
                p + "post_attention_layernorm.weight": (self.dim,),
                p + "mlp.gate_proj.weight": (self.hidden, self.dim),
                p + "mlp.up_proj.weight": (self.hidden, self.dim),
                p + "mlp.down_proj.weight": (self.dim, self.hidden),
            }
        shapes["model.norm.weight"] = (self.dim,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab_size, self.dim)
        return shapes

    @property
    def parameters(self) -> int:
        """Number of weights, a tied embedding counted once."""
        embeddings = self.vocab_size * self.dim * (1 if self.tied else 2)
        attention = 2 * self.dim * self.head_dim * (self.heads + self.kv_heads)
        return embeddings + self.layers * (attention + 3 * self.dim * self.hidden + 2 * self.dim) + self.dim


def _shortest(value: float) -> float:
    """The shortest decimal of a float32: 9.999999747378752e-06 was written as 1e-05."""
    import numpy as np

    return float(str(np.float32(value)))
