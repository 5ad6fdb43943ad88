"""The model card: README.md of a model folder, from its lineage and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ladderlm.models.arch import Architecture

_RESTRICTED = (("nc", "non-commercial use only"), ("noncommercial", "non-commercial use only"), ("sa", "share alike"),
               ("gemma", "use restricted by the Gemma terms"), ("llama", "use restricted by the Llama licence"),
               ("unknown", "unknown: ask before you share"))  # fmt: skip


def licence_flags(lineage: Mapping[str, Any]) -> list[str]:
    """Conditions that the licences of base, data and result carry along, one line each."""
    found: list[str] = []
    for what, licence in licences(lineage):
        words = set(licence.lower().replace("_", "-").replace(" ", "-").split("-"))
        found += [f"{what} ({licence}): {meaning}" for mark, meaning in _RESTRICTED if mark in words]
    return found


def licences(lineage: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, licence) of the result, its base and its data, as far as the lineage tells."""
    out: list[tuple[str, str]] = []
    if lineage.get("licence"):
        out.append(("this model", str(lineage["licence"])))
    for key in ("base", "parent"):
        entry = lineage.get(key)
        if isinstance(entry, Mapping) and entry.get("licence"):
            out.append((f"{key} {entry.get('name', '')}".strip(), str(entry["licence"])))
    data = lineage.get("data") or ()
    for entry in data if isinstance(data, Sequence) and not isinstance(data, str) else [data]:
        if isinstance(entry, Mapping) and entry.get("licence"):
            out.append((f"data {entry.get('name') or entry.get('source') or ''}".strip(), str(entry["licence"])))
    return out


def render_card(
    lineage: Mapping[str, Any], arch: Architecture, scores: Mapping[str, Any] | None = None, *, name: str = "A model"
) -> str:
    """The card's Markdown, its head in the Hugging Face form."""
    head = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [ladderlm]"]
    if licence := lineage.get("licence"):
        head.append(f"license: {str(licence).lower()}")
    head.append("---")
    size = f"{arch.parameters / 1e6:,.1f} M parameters"
    lines = [
        *head, "", f"# {name}", "",
        f"A {arch.family} decoder with {size}: {arch.layers} layers, width {arch.dim}, {arch.heads} heads "
        f"({arch.kv_heads} for keys), vocabulary {arch.vocab_size:,}, context {arch.context_length:,}.",
        "", "## Where it comes from", "",
    ]  # fmt: skip
    lines += [f"- {key}: {_plain(value)}" for key, value in lineage.items() if value not in (None, "", [], {})]
    lines += ["", "## Licences", ""]
    lines += [f"- {what}: {licence}" for what, licence in licences(lineage)] or ["- not stated"]
    lines += [f"- **{flag}**" for flag in licence_flags(lineage)]
    if scores:
        lines += ["", "## Scores", "", "| what | value |", "|---|---|"]
        lines += [f"| {key} | {_plain(value)} |" for key, value in scores.items()]
    lines += [
        "", "## Use", "", "```", f"ladderlm chat --model ./{name}", "```", "",
        f"The folder also loads in {_readers(lineage)}.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _readers(lineage: Mapping[str, Any]) -> str:
    """Who else reads the folder. Integers in embeddings are newer than in layers: few readers know them."""
    quantised = lineage.get("quantised")
    if not isinstance(quantised, Mapping):
        return "`transformers`, vLLM and llama.cpp's converter"
    if quantised.get("embeddings") == "int8":
        return "servers that know packed embeddings of compressed-tensors (else keep embeddings in float16)"
    return "`transformers` and vLLM, by compressed-tensors"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(_plain(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
