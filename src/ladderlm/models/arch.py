"""The shape of a model: one vocabulary for every family, whatever config.json or a GGUF header call it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ladderlm.errors import FormatError
from ladderlm.types import Value

_COUNTS = ("vocab_size", "dim", "layers", "heads", "kv_heads", "head_dim", "hidden", "context_length")
_CHOICES = {
    "kind": ("decoder", "encoder", "encoder-decoder"),
    "norm": ("rms", "layer"),
    "placement": ("pre", "inner", "sandwich", "post", "parallel"),
    "positions": ("rotary", "learned", "alibi", "relative", "sinusoidal"),
    "qk_norm": ("", "head", "heads", "all"),
    "activation": ("silu", "gelu", "gelu_tanh", "relu"),
    "pooling": ("first", "mean"),
    "pooler": ("", "tanh", "relu"),
    "transform": ("", "silu", "gelu", "gelu_tanh", "relu"),
    "head": ("lm", "mlm", "pretraining", "classify", "tag", "qa", "none"),
}
_ABSURD = 2**31

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Architecture(Value):
    """A Transformer as a composition of few parts. The defaults are Llama's.

    Sizes: `dim` is the width of the residual stream, `hidden` that of the feed-forward layer; `tied`: input and
    output embeddings are one matrix.

    `placement` of the norms around a branch f of the residual stream: "pre" x + f(norm x); "inner" x + norm(f x)
    (OLMo 2); "sandwich" x + norm(f(norm x)) (Gemma 2); "post" norm(x + f x) (Vaswani et al. 2017); "parallel"
    x + attention(norm x) + mlp(norm x), with one norm for both or, if `two_norms`, one each.
    `norm_offset`: the scale is 1 + weight (Gemma). Without `first_norm` the first layer takes its input as it is.
    `qk_norm` of queries and keys: over each head with one weight for all ("head"), with a weight for each ("heads"), or
    over all heads together ("all").

    Rotary positions (Su et al. 2021) turn the first `rotary_dim` of a head's `head_dim` coordinates (0: all of them);
    `rope_scaling` is Hugging Face's mapping with its "rope_type"; layers with a window use `local_theta` unscaled if
    it is set. `windows` has for every layer how many positions back it sees (0: all); () means all see all.
    `unrotated` lists layers without rotary positions (SmolLM3). Learned positions start at row `position_offset`.

    `attention_cap` and `logit_cap` bound values by cap * tanh(value / cap) (Gemma 2); 0 is none. `attention_scale` 0
    stands for head_dim ** -0.5; `embed_scale` multiplies embeddings, `logit_scale` logits; with
    `head_bias` these have a bias.

    Mixture of experts: `experts` of width `expert_hidden`, of which a token uses `experts_used`, their weights
    `expert_weights_normed` to sum 1; `shared_hidden` is the width of one that all tokens use; layers in
    `dense_layers` have the plain feed-forward layer instead.

    Encoders: `token_types` (segments), `embed_norm` (a norm right after the embeddings), and a `head`: "mlm" gives
    tokens for masked ones, "pretraining" that and whether the second text follows the first, "classify" a class of the
    text, "tag" one of every token, "qa" scores for the start and the end of an answer, "none" hidden states. `labels`
    names the classes. A text is its `pooling`: its "first" token or the "mean" of all. A head is made of a `pooler`
    (linear, then the activation named) and a `transform` (linear, activation, norm), either of them "" for none, before
    its last linear.

    Encoder-decoders: `layers` are the encoder's, `decoder_layers` the decoder's; relative positions (T5) fall into
    `relative_buckets` up to `relative_distance`; `start_id` begins what the decoder writes. `pad_id` is -1 for none.
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
    kind: Literal["decoder", "encoder", "encoder-decoder"] = "decoder"
    norm: str = "rms"
    norm_offset: bool = False
    norm_bias: bool = False
    first_norm: bool = True
    placement: str = "pre"
    two_norms: bool = False
    positions: str = "rotary"
    position_offset: int = 0
    rotary_dim: int = 0
    rope_scaling: Mapping[str, Any] = field(default_factory=dict)
    local_theta: float = 0.0
    windows: tuple[int, ...] = ()
    unrotated: tuple[int, ...] = ()
    qk_norm: str = ""
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    activation: str = "silu"
    gated: bool = True
    experts: int = 0
    experts_used: int = 0
    expert_hidden: int = 0
    expert_weights_normed: bool = True
    shared_hidden: int = 0
    dense_layers: tuple[int, ...] = ()
    attention_cap: float = 0.0
    logit_cap: float = 0.0
    attention_scale: float = 0.0
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    head_bias: bool = False
    token_types: int = 0
    embed_norm: bool = False
    head: str = "lm"
    labels: tuple[str, ...] = ()
    pooling: str = "first"
    pooler: str = ""
    transform: str = ""
    transform_bias: bool = True
    decoder_layers: int = 0
    relative_buckets: int = 0
    relative_distance: int = 0
    start_id: int = 0
    pad_id: int = -1

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _ABSURD:
                raise _bad(f"{name} must be a positive whole number, not {value!r}")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise _bad(f"{name} must be one of {', '.join(map(repr, known))}, not {getattr(self, name)!r}")
        # A hostile header must not make us list a billion tensors.
        if max(self.layers, self.decoder_layers) > 4096 or self.layers * max(self.experts, 1) > 2**17:
            raise _bad(f"{self.layers} layers of {self.experts} experts are absurd")
        if self.heads % self.kv_heads:
            raise _bad(f"{self.heads} heads do not share {self.kv_heads} key heads")
        if self.rotary_dim > self.head_dim or (self.positions == "rotary" and (self.rotary_dim or self.head_dim) % 2):
            raise _bad(f"{self.rotary_dim or self.head_dim} of {self.head_dim} coordinates cannot be rotated")
        for name in ("norm_eps", "rope_theta", "embed_scale", "logit_scale"):
            if not isinstance(getattr(self, name), (int, float)) or not 0 < getattr(self, name) < 1e12:
                raise _bad(f"{name} must be a positive number")
        if self.kind == "encoder-decoder" and self.decoder_layers < 1:
            raise _bad(f"a decoder of {self.decoder_layers} layers")
        if self.positions == "relative" and not (3 < self.relative_buckets < self.relative_distance < _ABSURD):
            raise _bad(f"{self.relative_buckets} buckets for distances up to {self.relative_distance}")
        if self.head in ("classify", "tag") and not self.labels:
            raise _bad(f"a head that can {self.head}, and no labels")
        if self.windows and len(self.windows) != self.layers:
            raise _bad(f"{len(self.windows)} windows for {self.layers} layers")
        if self.experts and not (0 < self.experts_used <= self.experts and 0 < self.expert_hidden < _ABSURD):
            raise _bad(f"{self.experts_used} of {self.experts} experts of width {self.expert_hidden}")

    def window(self, layer: int) -> int:
        """How many positions a layer sees, itself included; 0 for all."""
        return self.windows[layer] if self.windows else 0

    @property
    def scale(self) -> float:
        """What queries are multiplied by."""
        return self.attention_scale or self.head_dim**-0.5

    @property
    def compiled(self) -> bool:
        """Whether the engine's compiled kernels run it: decoders but for mixtures of experts and LongRoPE.

        The angles of the latter depend on the length of the text, so what was kept of its beginning would not fit.
        """
        plain_head = self.logit_scale == 1.0 and not self.head_bias
        longrope = self.rope_scaling.get("rope_type") == "longrope"
        return self.kind == "decoder" and plain_head and not self.experts and not longrope

    def tensor_shapes(self) -> Shapes:
        """Canonical name and shape of every tensor, in the order of the forward pass.

        The names are those of Hugging Face's Llama; what Llama lacks is named here in the same manner. A family's
        own names are in `models/families`. An encoder-decoder has two stacks, under `model.encoder.` and
        `model.decoder.`, that share the embeddings of tokens.
        """
        shapes: Shapes = {"model.embed_tokens.weight": (self.vocab_size, self.dim)}
        if self.kind == "encoder-decoder":
            shapes |= self._stack_shapes("model.encoder.", self.layers)
            shapes |= self._stack_shapes("model.decoder.", self.decoder_layers, cross=True)
        else:
            shapes |= self._stack_shapes("model.", self.layers)
        return shapes | self._head_shapes()

    def _stack_shapes(self, prefix: str, layers: int, *, cross: bool = False) -> Shapes:
        shapes: Shapes = {}
        if self.positions == "learned":
            shapes[prefix + "embed_positions.weight"] = (self.context_length + self.position_offset, self.dim)
        if self.token_types:
            shapes[prefix + "embed_types.weight"] = (self.token_types, self.dim)
        if self.embed_norm:
            shapes |= self.norm_shapes(prefix + "embed_norm")
        if self.positions == "relative":
            shapes[prefix + "relative.weight"] = (self.relative_buckets, self.heads)
        for layer in range(layers):
            shapes |= self.layer_shapes(layer, f"{prefix}layers.{layer}.", cross=cross)
        return shapes if self.placement == "post" else shapes | self.norm_shapes(prefix + "norm")

    def _head_shapes(self) -> Shapes:
        shapes: Shapes = {}
        if self.pooler:
            shapes |= _linear("pooler.dense", self.dim, self.dim, True)
        if self.transform:
            shapes |= _linear("transform.dense", self.dim, self.dim, self.transform_bias)
            shapes |= self.norm_shapes("transform.norm")
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab_size, self.dim)
        if self.head_bias:
            shapes["lm_head.bias"] = (self.vocab_size,)
        return shapes | (_linear("classifier", self.classes, self.dim, True) if self.classes else {})

    @property
    def classes(self) -> int:
        """How many scores a token or text gets from a head other than a vocabulary's; 0 where there is no such."""
        return {"pretraining": 2, "qa": 2, "classify": len(self.labels), "tag": len(self.labels)}.get(self.head, 0)

    def layer_shapes(self, layer: int, prefix: str, *, cross: bool = False) -> Shapes:
        """The tensors of one layer; with `cross`, it also attends to another text."""
        before, after, extra = self.norms
        shapes: Shapes = {}
        shapes |= self.norm_shapes(prefix + "input_layernorm") if before and (layer or self.first_norm) else {}
        shapes |= self.attention_shapes(prefix + "self_attn.")
        shapes |= self.norm_shapes(prefix + "attention_out_norm") if after else {}
        if cross:
            shapes |= self.norm_shapes(prefix + "cross_attn_layernorm") if before else {}
            shapes |= self.attention_shapes(prefix + "cross_attn.")
            shapes |= self.norm_shapes(prefix + "cross_attn_out_norm") if after else {}
        shapes |= self.norm_shapes(prefix + "post_attention_layernorm") if extra else {}
        shapes |= self._mlp_shapes(layer, prefix + "mlp.")
        shapes |= self.norm_shapes(prefix + "mlp_out_norm") if after else {}
        return shapes

    @property
    def norms(self) -> tuple[bool, bool, bool]:
        """Which norms a layer has: before attention, after each branch, before the feed-forward part."""
        before = self.placement in ("pre", "sandwich", "parallel")
        after = self.placement in ("inner", "sandwich", "post")
        return before, after, before and (self.placement != "parallel" or self.two_norms)

    def norm_shapes(self, name: str, width: int = 0) -> Shapes:
        shapes: Shapes = {name + ".weight": (width or self.dim,)}
        return shapes | {name + ".bias": (width or self.dim,)} if self.norm_bias else shapes

    def attention_shapes(self, prefix: str) -> Shapes:
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: Shapes = {}
        for name, rows in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            shapes |= _linear(prefix + name, rows, self.dim, self.qkv_bias)
        for name, heads in (("q_norm", self.heads), ("k_norm", self.kv_heads)):
            if self.qk_norm == "heads":
                shapes |= {f"{prefix}{name}.norms.{h}.weight": (self.head_dim,) for h in range(heads)}
            elif self.qk_norm:
                shapes[f"{prefix}{name}.weight"] = (heads * self.head_dim if self.qk_norm == "all" else self.head_dim,)
        return shapes | _linear(prefix + "o_proj", self.dim, q, self.out_bias)

    def _mlp_shapes(self, layer: int, prefix: str) -> Shapes:
        if not self.experts or layer in self.dense_layers:
            return self._feed_forward(prefix, self.hidden)
        shapes: Shapes = {prefix + "gate.weight": (self.experts, self.dim)}
        for expert in range(self.experts):
            shapes |= self._feed_forward(f"{prefix}experts.{expert}.", self.expert_hidden)
        if self.shared_hidden:
            shapes |= self._feed_forward(prefix + "shared_expert.", self.shared_hidden)
            shapes[prefix + "shared_expert_gate.weight"] = (1, self.dim)
        return shapes

    def _feed_forward(self, prefix: str, hidden: int) -> Shapes:
        shapes = _linear(prefix + "gate_proj", hidden, self.dim, self.mlp_bias) if self.gated else {}
        shapes |= _linear(prefix + "up_proj", hidden, self.dim, self.mlp_bias)
        return shapes | _linear(prefix + "down_proj", self.dim, hidden, self.mlp_bias)

    @property
    def purpose(self) -> str:
        """What a model of this kind and head is for, as it reads after "it": for people and error messages."""
        if self.kind == "encoder-decoder":
            return "turns one text into another"
        return {
            "lm": "continues text",
            "mlm": "fills in masked tokens",
            "pretraining": "fills in masked tokens",
            "classify": "puts a text into one of its classes",
            "tag": "labels every token of a text",
            "qa": "finds the answer to a question in a text",
            "none": "turns text into vectors",
        }[self.head]

    @property
    def parameters(self) -> int:
        """Number of weights, a tied embedding counted once."""
        total = 0
        for shape in self.tensor_shapes().values():
            size = 1
            for extent in shape:
                size *= extent
            total += size
        return total


def _linear(name: str, rows: int, columns: int, bias: bool) -> Shapes:
    shapes: Shapes = {name + ".weight": (rows, columns)}
    return shapes | {name + ".bias": (rows,)} if bias else shapes


def _bad(what: str) -> FormatError:
    return FormatError(what, where="architecture")
