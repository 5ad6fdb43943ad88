"""T5 and its kin (Raffel et al. 2019): v1.0, and v1.1 with a gated feed-forward part (Flan-T5, mT5)."""

from __future__ import annotations

from typing import Any

from ladderlm.errors import FormatError
from ladderlm.models.arch import Architecture
from ladderlm.models.families.config import Config
from ladderlm.models.families.stored import Stored

CLASSES = {"t5": "T5ForConditionalGeneration", "mt5": "MT5ForConditionalGeneration"}
_FORMS = {("relu", False): "relu", ("gelu_tanh", True): "gated-gelu", ("silu", True): "gated-silu",
          ("gelu", False): "gelu"}  # fmt: skip


def read(c: Config) -> Architecture:
    """An Architecture from a config.json of one of these families."""
    heads, dim, layers = c.whole("num_heads", 8), c.whole("d_model", 512), c.whole("num_layers", 6)
    form = c.get("feed_forward_proj", "relu" if c.family == "t5" else "gated-gelu")
    known = {spelled: parts for parts, spelled in _FORMS.items()}
    if form not in known:
        raise FormatError(f"the feed-forward form {form!r} is not supported", where="config.json")
    # v1.0 scales what goes into the output matrix, which it shares with the embeddings; v1.1 neither shares nor scales.
    # Configs are not to be trusted in whether it is shared; whether the file holds such a matrix is certain.
    scaled = c.family == "t5" and bool(c.get("scale_decoder_outputs", c.get("tie_word_embeddings", True)))
    return Architecture(
        family=c.family, kind="encoder-decoder", vocab_size=c.whole("vocab_size"), dim=dim, layers=layers,
        decoder_layers=c.whole("num_decoder_layers", layers), heads=heads, kv_heads=heads, head_dim=c.whole("d_kv", 64),
        hidden=c.whole("d_ff", 2048), context_length=c.whole("n_positions", 512),
        norm_eps=c.number("layer_norm_epsilon", 1e-6),
        activation=known[form][0], gated=known[form][1], positions="relative", attention_scale=1.0,
        relative_buckets=c.whole("relative_attention_num_buckets", 32),
        relative_distance=c.whole("relative_attention_max_distance", 128),
        tied="lm_head.weight" not in c.names if c.names else scaled, logit_scale=dim**-0.5 if scaled else 1.0,
        start_id=c.whole("decoder_start_token_id", c.whole("pad_token_id", 0)), pad_id=c.whole("pad_token_id", 0),
    )  # fmt: skip


def write(arch: Architecture) -> dict[str, Any]:
    """The config.json of an Architecture of one of these families, but for its special tokens."""
    scaled = arch.logit_scale != 1.0
    return {
        "vocab_size": arch.vocab_size, "d_model": arch.dim, "num_layers": arch.layers,
        "num_decoder_layers": arch.decoder_layers, "num_heads": arch.heads, "d_kv": arch.head_dim, "d_ff": arch.hidden,
        "n_positions": arch.context_length, "layer_norm_epsilon": arch.norm_eps,
        "feed_forward_proj": _FORMS[arch.activation, arch.gated], "is_encoder_decoder": True,
        "relative_attention_num_buckets": arch.relative_buckets,
        "relative_attention_max_distance": arch.relative_distance, "decoder_start_token_id": arch.start_id,
        "tie_word_embeddings": scaled, "scale_decoder_outputs": scaled,
    }  # fmt: skip


_PLACES = {
    "input_layernorm": "0.layer_norm", "self_attn": "0.SelfAttention", "cross_attn_layernorm": "1.layer_norm",
    "cross_attn": "1.EncDecAttention", "post_attention_layernorm": "{last}.layer_norm",
    "mlp": "{last}.DenseReluDense",
}  # fmt: skip
_LINEARS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "gate_proj": "wi_0", "down_proj": "wo"}


def stored(arch: Architecture) -> list[Stored]:
    """The tensors of a file of one of these families."""
    found = []
    for name in arch.tensor_shapes():
        if name == "model.embed_tokens.weight":
            copies = "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"
            found.append(Stored("shared.weight", (name,), also=copies))
        else:
            found.append(Stored(_their_name(arch, name), (name,)))
    return found


def _their_name(arch: Architecture, name: str) -> str:
    _, stack, *rest = name.split(".")
    if rest == ["relative", "weight"]:
        return f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    if rest == ["norm", "weight"]:
        return f"{stack}.final_layer_norm.weight"
    if name.startswith("lm_head"):
        return name
    _, number, part, *linear = rest[:-1]
    place = _PLACES[part].format(last=1 if stack == "encoder" else 2)
    if linear:
        linears = _LINEARS | {"up_proj": "wi_1" if arch.gated else "wi"}
        place += "." + linears[linear[0]]
    return f"{stack}.block.{number}.layer.{place}.weight"
