"""BERT, Megatron-BERT, RoBERTa, DistilBERT and ModernBERT: encoders, with the head that a task needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ladderlm.errors import FormatError, UsageError, nearest
from ladderlm.models.arch import Architecture
from ladderlm.models.families.config import SERVED, Config, rotary_keys, spelled, window_keys
from ladderlm.models.families.stored import Stored

CLASSES = {
    "bert": "Bert", "megatron-bert": "MegatronBert", "roberta": "Roberta", "distilbert": "DistilBert",
    "modernbert": "ModernBert",
}  # fmt: skip
PAIRED = ("bert", "megatron-bert")  # families with a head for next sentences
_HEADS = {
    "none": "Model", "pretraining": "ForPreTraining", "mlm": "ForMaskedLM", "classify": "ForSequenceClassification",
    "tag": "ForTokenClassification", "qa": "ForQuestionAnswering",
}  # fmt: skip
_POST_NORM: dict[str, Any] = {
    "kind": "encoder", "norm": "layer", "norm_bias": True, "placement": "post", "positions": "learned", "gated": False,
    "qkv_bias": True, "out_bias": True, "mlp_bias": True, "embed_norm": True,
}  # fmt: skip


def read(c: Config) -> Architecture:
    """An Architecture from a config.json of one of these families."""
    c.refuse(is_decoder=True, add_cross_attention=True)
    head = _head(c)
    shape = {"distilbert": _distilbert, "modernbert": _modernbert}.get(c.family, _bert)(c)
    arch = Architecture(**shape | {"family": c.family, "tied": bool(c.get("tie_word_embeddings", True))})
    arch = with_head(arch, head, _labels(c) if head in ("classify", "tag") else ())
    if c.family == "modernbert":
        return _modern_head(c, arch)
    if head == "none" and c.names and not any(name.endswith("pooler.dense.weight") for name in c.names):
        return dataclasses.replace(arch, pooler="")  # models that only ever give the tokens' vectors
    return arch


def with_head(arch: Architecture, head: str, labels: Sequence[str] = ()) -> Architecture:
    """The same encoder with another head, as its family makes it. UsageError for a head that it has not."""
    known = [h for h in _HEADS if h != "pretraining" or arch.family in PAIRED]
    if arch.kind != "encoder" or head not in known:
        what = f"a {arch.family} with the head {head!r}"
        raise UsageError(f"there is no {what}", cure=nearest(head, known) if arch.kind == "encoder" else None)
    predicts = head in ("mlm", "pretraining")
    both = ("none", "classify", "pretraining")
    pooled = {"bert": both, "megatron-bert": both, "roberta": ("none", "classify"), "distilbert": ("classify",)}
    pooler = "" if head not in pooled.get(arch.family, ()) else "relu" if arch.family == "distilbert" else "tanh"
    gelu = "gelu" if arch.family in ("roberta", "modernbert") else arch.activation
    modern = arch.family == "modernbert"
    return dataclasses.replace(
        arch, head=head, labels=tuple(labels), pooler=pooler, head_bias=predicts, tied=arch.tied or not predicts,
        transform=gelu if predicts or (modern and head != "none") else "", transform_bias=not modern, pooling="first",
    )  # fmt: skip


def _head(c: Config) -> str:
    """The head by the name of the class that wrote the file; without one, none."""
    names = c.get("architectures", [])
    name = names[0] if isinstance(names, list) and names else CLASSES[c.family] + "Model"
    for head, end in _HEADS.items():
        if name == CLASSES[c.family] + end:
            return head
    raise FormatError(f"the class {name!r} is not supported", where="config.json", cure=SERVED)


def _modern_head(c: Config, arch: Architecture) -> Architecture:
    """ModernBERT's config has more to say of the head."""
    if arch.head == "none":
        return arch
    pooling = c.get("classifier_pooling", "cls")
    return dataclasses.replace(
        arch, transform=c.activation("classifier_activation", "gelu"), pooling="first" if pooling == "cls" else pooling,
        transform_bias=bool(c.get("classifier_bias", False)),
        head_bias=arch.head == "mlm" and bool(c.get("decoder_bias", True)),
    )  # fmt: skip


def _labels(c: Config) -> tuple[str, ...]:
    """The classes in the order of their numbers; without names, Hugging Face's own."""
    named = c.mapping("id2label")
    if not named:
        return tuple(f"LABEL_{i}" for i in range(c.whole("num_labels", 2)))
    try:
        by_number = {int(key): value for key, value in named.items()}
        return tuple(str(by_number[i]) for i in range(len(by_number)))
    except (ValueError, KeyError):
        raise FormatError("id2label must name the classes 0, 1, 2...", where="config.json") from None


def _bert(c: Config) -> dict[str, Any]:
    """BERT (Devlin et al. 2018). Megatron-BERT has its norms before the branches (Shoeybi et al. 2019).

    RoBERTa's positions count from the pad token's number on (Liu et al. 2019).
    """
    c.refuse(position_embedding_type="relative_key")
    c.refuse(position_embedding_type="relative_key_query")
    heads, dim = c.whole("num_attention_heads"), c.whole("hidden_size")
    offset = c.whole("pad_token_id", 1) + 1 if c.family == "roberta" else 0
    pre_norm = {"placement": "pre", "embed_norm": False} if c.family == "megatron-bert" else {}
    return _POST_NORM | pre_norm | {
        "vocab_size": c.whole("vocab_size"), "dim": dim, "layers": c.whole("num_hidden_layers"), "heads": heads,
        "kv_heads": heads, "head_dim": dim // max(heads, 1), "hidden": c.whole("intermediate_size"),
        "context_length": c.whole("max_position_embeddings", 512) - offset, "position_offset": offset,
        "norm_eps": c.number("layer_norm_eps", 1e-12), "activation": c.activation("hidden_act", "gelu"),
        "token_types": c.whole("type_vocab_size", 2), "pad_id": c.whole("pad_token_id", offset - 1 if offset else 0),
    }  # fmt: skip


def _distilbert(c: Config) -> dict[str, Any]:
    """DistilBERT (Sanh et al. 2019): BERT without segments."""
    heads, dim = c.whole("n_heads", 12), c.whole("dim", 768)
    return _POST_NORM | {
        "vocab_size": c.whole("vocab_size"), "dim": dim, "layers": c.whole("n_layers", 6), "heads": heads,
        "kv_heads": heads, "head_dim": dim // max(heads, 1), "hidden": c.whole("hidden_dim", 4 * dim),
        "context_length": c.whole("max_position_embeddings", 512), "norm_eps": 1e-12,
        "activation": c.activation("activation", "gelu"), "pad_id": c.whole("pad_token_id", 0),
    }  # fmt: skip


def _modernbert(c: Config) -> dict[str, Any]:
    """ModernBERT (Warner et al. 2024): rotary positions, local layers, gated feed-forward parts, no biases."""
    heads, dim, layers = c.whole("num_attention_heads"), c.whole("hidden_size"), c.whole("num_hidden_layers")
    head_dim, every = dim // max(heads, 1), c.whole("global_attn_every_n_layers", 3)
    local = tuple(i % max(every, 1) != 0 for i in range(layers))
    windows = Config({**c.raw, "sliding_window": c.whole("local_attention", 128) // 2 * 2}).windows(layers, local)
    rotary = c.rotary(head_dim, c.number("global_rope_theta", 160000.0))
    both = bool(c.get("attention_bias", False))
    return {
        "kind": "encoder", "vocab_size": c.whole("vocab_size"), "dim": dim, "layers": layers, "heads": heads,
        "kv_heads": heads, "head_dim": head_dim, "hidden": c.whole("intermediate_size"),
        "context_length": c.whole("max_position_embeddings", 8192), "norm": "layer",
        "norm_bias": bool(c.get("norm_bias", False)), "norm_eps": c.number("norm_eps", 1e-5), "first_norm": False,
        "embed_norm": True, "activation": c.activation("hidden_activation", "gelu"), "qkv_bias": both, "out_bias": both,
        "mlp_bias": bool(c.get("mlp_bias", False)), "windows": windows, **rotary,
        "local_theta": rotary["local_theta"] or c.number("local_rope_theta", 10000.0),
    }  # fmt: skip


def write(arch: Architecture) -> dict[str, Any]:
    """The config.json of an Architecture of one of these families, but for its special tokens."""
    config: dict[str, Any] = {
        "architectures": [CLASSES[arch.family] + _HEADS[arch.head]], "vocab_size": arch.vocab_size,
        "max_position_embeddings": arch.context_length + arch.position_offset, "tie_word_embeddings": arch.tied,
    }  # fmt: skip
    if arch.labels:
        config["id2label"] = {str(i): label for i, label in enumerate(arch.labels)}
        config["label2id"] = {label: i for i, label in enumerate(arch.labels)}
    if arch.family == "distilbert":
        return config | {"dim": arch.dim, "n_layers": arch.layers, "n_heads": arch.heads, "hidden_dim": arch.hidden,
                         "activation": spelled(arch.activation)}  # fmt: skip
    config |= {"hidden_size": arch.dim, "num_hidden_layers": arch.layers, "num_attention_heads": arch.heads,
               "intermediate_size": arch.hidden}  # fmt: skip
    if arch.family != "modernbert":
        return config | {"hidden_act": spelled(arch.activation), "layer_norm_eps": arch.norm_eps,
                         "type_vocab_size": arch.token_types}  # fmt: skip
    return config | {
        "hidden_activation": spelled(arch.activation), "norm_eps": arch.norm_eps, "norm_bias": arch.norm_bias,
        "attention_bias": arch.qkv_bias, "mlp_bias": arch.mlp_bias, "local_attention": max(arch.windows, default=128),
        "layer_types": window_keys(arch)["layer_types"], **rotary_keys(arch), "global_rope_theta": arch.rope_theta,
        "local_rope_theta": arch.local_theta, "classifier_pooling": "cls" if arch.pooling == "first" else "mean",
        "classifier_bias": arch.transform_bias, "decoder_bias": arch.head_bias,
        "classifier_activation": spelled(arch.transform or "gelu"),
    }  # fmt: skip


_BERT = {
    "model.embed_tokens": "embeddings.word_embeddings", "model.embed_positions": "embeddings.position_embeddings",
    "model.embed_types": "embeddings.token_type_embeddings", "model.embed_norm": "embeddings.LayerNorm",
    "self_attn.q_proj": "attention.self.query", "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value", "self_attn.o_proj": "attention.output.dense",
    "attention_out_norm": "attention.output.LayerNorm", "mlp.up_proj": "intermediate.dense",
    "mlp.down_proj": "output.dense", "mlp_out_norm": "output.LayerNorm", "pooler.dense": "pooler.dense",
    "transform.dense": "predictions.transform.dense", "transform.norm": "predictions.transform.LayerNorm",
}  # fmt: skip
_MEGATRON = _BERT | {
    "input_layernorm": "attention.ln", "post_attention_layernorm": "ln", "model.norm": "encoder.ln",
}  # fmt: skip
_ROBERTA = _BERT | {"transform.dense": "dense", "transform.norm": "layer_norm"}
_DISTIL = _BERT | {
    "self_attn.q_proj": "attention.q_lin", "self_attn.k_proj": "attention.k_lin",
    "self_attn.v_proj": "attention.v_lin", "self_attn.o_proj": "attention.out_lin",
    "attention_out_norm": "sa_layer_norm", "mlp.up_proj": "ffn.lin1", "mlp.down_proj": "ffn.lin2",
    "mlp_out_norm": "output_layer_norm", "pooler.dense": "pre_classifier", "transform.dense": "vocab_transform",
    "transform.norm": "vocab_layer_norm",
}  # fmt: skip
_MODERN = {
    "model.embed_tokens": "embeddings.tok_embeddings", "model.embed_norm": "embeddings.norm",
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn.Wqkv", "self_attn.o_proj": "attn.Wo",
    "post_attention_layernorm": "mlp_norm", "mlp.gate_proj": "mlp.Wi", "mlp.down_proj": "mlp.Wo",
    "model.norm": "final_norm", "transform.dense": "head.dense", "transform.norm": "head.norm",
}  # fmt: skip
_BODY = {
    "bert": ("bert", "encoder.layer"), "megatron-bert": ("bert", "encoder.layer"),
    "roberta": ("roberta", "encoder.layer"), "distilbert": ("distilbert", "transformer.layer"),
    "modernbert": ("model", "layers"),
}  # fmt: skip
_NAMES = {"bert": _BERT, "megatron-bert": _MEGATRON, "roberta": _ROBERTA, "distilbert": _DISTIL, "modernbert": _MODERN}


def stored(arch: Architecture) -> list[Stored]:
    """The tensors of a file of one of these families."""
    found = []
    for name in arch.tensor_shapes():
        parts: tuple[str, ...] = (name,)
        if arch.family == "modernbert":  # queries, keys and values are one matrix, and so are gate and up
            if any(part in name for part in ("k_proj", "v_proj", "up_proj")):
                continue
            if "q_proj" in name:
                parts = tuple(name.replace("q_proj", f"{x}_proj") for x in "qkv")
            elif "gate_proj" in name:
                parts = (name, name.replace("gate_proj", "up_proj"))
        theirs, *also = _their_names(arch, *name.rsplit(".", 1))
        found.append(Stored(theirs, parts, also=tuple(also)))
    return found


def _their_names(arch: Architecture, stem: str, end: str) -> list[str]:
    """What files call a tensor of ours, `stem`.`end`: first as it is written, then other names that occur."""
    names, (body, layers) = _NAMES[arch.family], _BODY[arch.family]
    inner = names.get(stem, stem)
    if stem.startswith("model.layers."):
        _, _, number, rest = stem.split(".", 3)
        inner = f"{layers}.{number}.{names[rest]}"
    elif not stem.startswith("model.") and (stem != "pooler.dense" or arch.family == "distilbert"):
        return [f"{name}.{end}" for name in _head_names(arch, stem, end)]
    elif f"{arch.family} {stem} {arch.head}" == "roberta pooler.dense classify":
        return [f"classifier.dense.{end}"]
    if arch.head == "none":  # the bare body has no outer name
        return [f"{inner}.{end}", f"{body}.{inner}.{end}"]
    name = f"{body}.{inner}"
    return (
        [f"{name}.{end}", f"{name}.{'gamma' if end == 'weight' else 'beta'}"]
        if "LayerNorm" in name
        else [f"{name}.{end}"]
    )


def _head_names(arch: Architecture, stem: str, end: str) -> list[str]:
    if stem == "lm_head":
        if arch.family in ("distilbert", "modernbert"):
            return ["vocab_projector" if arch.family == "distilbert" else "decoder"]
        outer = "cls.predictions" if arch.family in PAIRED else "lm_head"
        return [outer, outer + ".decoder"] if end == "bias" and arch.tied else [outer + ".decoder", outer]
    if stem == "classifier":
        if arch.head == "qa" and arch.family != "modernbert":
            return ["qa_outputs"]
        if arch.head == "pretraining":
            return ["cls.seq_relationship"]
        return ["classifier.out_proj" if f"{arch.family} {arch.head}" == "roberta classify" else "classifier"]
    outer = "cls." if arch.family in PAIRED else "lm_head." if arch.family == "roberta" else ""
    return [outer + _NAMES[arch.family][stem]]
