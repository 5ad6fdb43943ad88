"""The model card: README.md of a model folder, from its lineage and scores."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ladderlm.data.licences import terms
from ladderlm.models.arch import Architecture


def licence_flags(lineage: Mapping[str, Any]) -> list[str]:
    """Conditions that the licences of base, data and result carry along, one line each."""
    return [f"{what} ({licence}): {flag}" for what, licence in licences(lineage) for flag in terms(licence).flags]


def licences(lineage: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, licence) of the result, of what it was made from and of the data, as far as the lineage tells."""
    out: list[tuple[str, str]] = []
    if lineage.get("licence"):
        out.append(("this model", str(lineage["licence"])))
    for key in ("base", "parent", "adapter", "parents"):
        for entry in _listed(lineage.get(key)):
            if entry.get("licence"):
                out.append((f"{key.removesuffix('s')} {entry.get('name', '')}".strip(), str(entry["licence"])))
    for entry in [*_listed(lineage.get("data")), *(d for a in _listed(lineage.get("adapter")) for d in data_of(a))]:
        if entry.get("licence"):
            out.append((f"data {entry.get('name') or entry.get('source') or ''}".strip(), str(entry["licence"])))
    return out


def data_of(lineage: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries of the data that a model was made with."""
    return _listed(lineage.get("data"))


def joint_licence(lineage: Mapping[str, Any]) -> str:
    """The licences of base and data together; what all of them allow is allowed."""
    parts = (part for _, licence in licences(lineage) for part in licence.split(" and "))
    return " and ".join(sorted(set(parts))) or "unknown"


def _listed(value: Any) -> list[Mapping[str, Any]]:
    """The mappings among what may be one, a list of them, or nothing."""
    entries = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return [entry for entry in entries if isinstance(entry, Mapping)]


# --- The card -----------------------------------------------------------------------------------------------------


def render_card(
    lineage: Mapping[str, Any], arch: Architecture, scores: Mapping[str, Any] | None = None, *, name: str = "A model"
) -> str:
    """The card's Markdown, its head in the Hugging Face form. `scores` default to those of the lineage.

    The lineage may also say `language`, `about`, `intended_use` and `limits`.
    """
    scores = scores if scores is not None else lineage.get("scores")
    scores = scores if isinstance(scores, Mapping) else {}
    lines = [
        *_head(lineage, arch, scores, name), "", f"# {name}", "", str(lineage.get("about") or ""), "",
        f"{plain_words(arch)} {arch.parameters / 1e6:,.1f} M parameters.",
        "", "## Intended use and limits", "", *_limits(lineage, arch), "", "## How it was made", "",
    ]  # fmt: skip
    told = {k: v for k, v in lineage.items() if k not in _ELSEWHERE and v not in (None, "", [], {})}
    lines += [f"- {key.replace('_', ' ')}: {_plain(value)}" for key, value in told.items()] or ["- not told"]
    lines += ["", "## Licences", ""]
    lines += [f"- {what}: {licence}" for what, licence in licences(lineage)] or ["- not stated"]
    lines += [f"- **{flag}**" for flag in licence_flags(lineage)]
    if scores:
        lines += ["", "## Scores", "", "| what | value |", "|---|---|"]
        lines += [f"| {key.replace('_', ' ')} | {_plain(value)} |" for key, value in scores.items()]
    lines += ["", "## Use", "", *_use(lineage, arch, name), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


_ELSEWHERE = ("licence", "scores", "language", "about", "intended_use", "limits")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_PIPELINES = {"classify": "text-classification", "tag": "token-classification", "qa": "question-answering",
              "mlm": "fill-mask", "pretraining": "fill-mask", "none": "feature-extraction"}  # fmt: skip


def pipeline(arch: Architecture) -> str:
    """What the hub calls the model's task."""
    if arch.kind == "encoder":
        return _PIPELINES.get(arch.head, "feature-extraction")
    return "text-generation" if arch.kind == "decoder" else "text2text-generation"


def _head(lineage: Mapping[str, Any], arch: Architecture, scores: Mapping[str, Any], name: str) -> list[str]:
    """YAML between dashes. Each value is JSON, which YAML reads, so that nothing in it can break out."""
    quantised = bool(lineage.get("quantised"))
    tags = ["ladderlm", *(["compressed-tensors"] if quantised else []), *(["merge"] if lineage.get("parents") else [])]
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": pipeline(arch), "tags": tags}
    licence = str(lineage.get("licence") or "unknown").lower()
    if _LICENCE_ID.fullmatch(licence) and licence != "unknown":
        head["license"] = licence
    else:  # the hub knows single ids only
        head |= {"license": "other", "license_name": re.sub(r"[^a-z0-9.+-]+", "-", licence).strip("-") or "unknown"}
    if language := lineage.get("language"):
        head["language"] = language
    bases = [str(e.get("name", "")) for key in ("base", "parent", "parents") for e in _listed(lineage.get(key))]
    if known := [b for b in dict.fromkeys(bases) if _HUB_NAME.fullmatch(b) and b != name]:
        head["base_model"] = known
    sets = [str(e.get("name") or "") for e in data_of(lineage)]
    if known := [d for d in dict.fromkeys(sets) if _HUB_NAME.fullmatch(d)]:
        head["datasets"] = known
    numbers = {k: v for k, v in scores.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    if metrics := [{"type": k, "value": v} for k, v in numbers.items() if math.isfinite(v)]:
        result = {"task": {"type": pipeline(arch)}, "dataset": {"name": "held out", "type": "held-out"}}
        head["model-index"] = [{"name": name, "results": [{**result, "metrics": metrics}]}]
    return ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()), "---"]


def _limits(lineage: Mapping[str, Any], arch: Architecture) -> list[str]:
    use = lineage.get("intended_use") or "Study, experiments, and tasks whose results somebody checks."
    small = "A small model: it knows little and often invents. " if arch.parameters < 2e9 else ""
    limits = lineage.get("limits") or (
        f"{small}What it says can be wrong, and can repeat what is wrong or unkind in its data. It was not tested for "
        "decisions about people. It reads at most "
        f"{arch.context_length:,} tokens; languages and subjects beyond its data are beyond it."
    )
    return [f"{use}", "", str(limits)]


def plain_words(arch: Architecture) -> str:
    """The architecture in a few sentences."""
    kinds = {"decoder": "decoder", "encoder": "encoder", "encoder-decoder": "encoder-decoder"}
    shared = "each with its own keys" if arch.kv_heads == arch.heads else f"sharing {arch.kv_heads} for keys and values"
    places = {
        "pre": "before each part",
        "inner": "after each part",
        "sandwich": "before and after each part",
        "post": "after each sum",
        "parallel": "before attention and feed-forward part, which run side by side",
    }
    positions = {"rotary": f"rotary (base {arch.rope_theta:g})", "learned": "learned", "alibi": "a distance penalty "
                 "(ALiBi)", "relative": "relative", "sinusoidal": "sinusoidal"}[arch.positions]  # fmt: skip
    if scaling := arch.rope_scaling.get("rope_type"):
        positions += f", stretched ({scaling})"
    narrow = [w for w in arch.windows if w]
    sight = f"; {len(narrow)} of {arch.layers} layers see only the last {min(narrow):,}" if narrow else ""
    forward = f"{'gated ' if arch.gated else ''}{arch.activation}, {arch.hidden:,} wide"
    if arch.experts:
        forward = f"{arch.experts} experts of width {arch.expert_hidden:,}, {arch.experts_used} for each token"
    tied = "one matrix for input and output" if arch.tied else "input and output apart"
    return (
        f"A {arch.family} {kinds[arch.kind]}: {arch.layers} layers of width {arch.dim:,}, {arch.heads} heads of "
        f"{arch.head_dim} ({shared}); feed-forward part {forward}; {'RMS' if arch.norm == 'rms' else 'layer'} norm "
        f"{places[arch.placement]}; positions {positions}. Vocabulary {arch.vocab_size:,} ({tied}), context "
        f"{arch.context_length:,}{sight}."
    )


def _use(lineage: Mapping[str, Any], arch: Architecture, name: str) -> list[str]:
    if arch.kind != "decoder":
        code = ["from transformers import pipeline", f'print(pipeline("{pipeline(arch)}", "./{name}")("..."))']
        return ["```python", *code, "```"]
    lines = ["```", f"ladderlm chat --model ./{name}", "```", ""]
    quantised = lineage.get("quantised")
    if isinstance(quantised, Mapping) and quantised.get("embeddings") == "int8":
        return [*lines, "Its embeddings are packed integers, which few other readers know: `transformers` does not."]
    others = "`transformers`, by compressed-tensors" if quantised else "`transformers`, vLLM and llama.cpp's converter"
    return [
        *lines, f"The folder also loads in {others}.", "",
        "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
        f'tokenizer = AutoTokenizer.from_pretrained("./{name}")',
        f'model = AutoModelForCausalLM.from_pretrained("./{name}")',
        'ids = tokenizer("Once upon a time", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=40)[0]))", "```",
    ]  # fmt: skip


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(_plain(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
