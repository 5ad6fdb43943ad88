"""What the normalizer, pre-tokenizer and decoder of a tokenizer.json say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ladderlm.text.specs import SPACE


def steps_of(part: Any) -> list[Mapping[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, one after another."""
    if not isinstance(part, Mapping):
        return []
    for inner in ("normalizers", "pretokenizers", "decoders"):
        if isinstance(part.get(inner), list):
            return [step for child in part[inner] for step in steps_of(child)]
    return [part]


def types(part: Any) -> set[str]:
    return {str(step.get("type")) for step in steps_of(part)}


def kind_of(parts: Mapping[str, Any], model_type: str) -> str:
    if "ByteLevel" in types(parts["decoder"]) | types(parts["pre_tokenizer"]):
        return "byte-level"
    if model_type in ("WordPiece", "WordLevel"):
        return "wordpiece"
    spaced = any(SPACE in json.dumps(parts[k], ensure_ascii=False) for k in ("normalizer", "pre_tokenizer", "decoder"))
    return "sentencepiece" if spaced else "plain"


def prefix_of(parts: Mapping[str, Any]) -> str:
    """The space that is put in front: "" none, "always" of every run of text, "missing", "first" (see specs.Spaces)."""
    if "Prepend" in types(parts["normalizer"]):
        return "always"
    for step in steps_of(parts["pre_tokenizer"]):
        if step.get("type") == "Metaspace":
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            return {"always": "missing", "first": "first"}.get(str(scheme), "")
    return ""


def strips(decoder: Any) -> bool:
    for step in steps_of(decoder):
        if step.get("type") == "Strip":
            return bool(step.get("start"))
        if step.get("type") == "Metaspace":
            return bool(step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True))
    return False


def without_prefix(part: Any) -> Any:
    if not isinstance(part, Mapping):
        return part
    for inner in ("normalizers", "pretokenizers"):
        if isinstance(part.get(inner), list):
            return {**part, inner: [without_prefix(p) for p in part[inner] if p.get("type") != "Prepend"]}
    if part.get("type") == "Prepend":
        return None
    if part.get("type") == "Metaspace":
        return {**part, "prepend_scheme": "never", "add_prefix_space": False}
    return part
