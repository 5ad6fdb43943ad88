"""What a model holds: parameters and precision by kind of tensor, memory by context, tokenizer, ancestors."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ladderlm.errors import LadderError
from ladderlm.models.arch import Architecture
from ladderlm.models.bounded import read_json
from ladderlm.models.folder import ModelFiles
from ladderlm.models.quants import row_bytes
from ladderlm.models.reference import locate
from ladderlm.text.tokenizer import Tokenizer

_KINDS = (  # the first that matches
    ("norms", re.compile(r"norm")),
    ("biases", re.compile(r"\.bias$")),
    ("embeddings", re.compile(r"embed_|embedding|relative")),
    ("router", re.compile(r"mlp\.gate\.weight$|shared_expert_gate")),
    ("experts", re.compile(r"\.experts\.|shared_expert\.")),
    ("attention", re.compile(r"attn\.|attention\.")),
    ("feed-forward", re.compile(r"\.mlp\.")),
)
_CONTEXTS = (1024, 4096)
_OLDEST = 32  # generations that a lineage is followed up


def kind_of(name: str) -> str:
    """What a canonical tensor is for; "head" for what comes after the last layer."""
    return next((kind for kind, pattern in _KINDS if pattern.search(name)), "head")


def tally(files: ModelFiles) -> tuple[dict[str, int], dict[str, dict[str, int]], int]:
    """(weights by kind of tensor, of each kind by how they are stored, bytes they take in memory as stored)."""
    counts: Counter[str] = Counter()
    stored: dict[str, Counter[str]] = defaultdict(Counter)
    total = 0
    for name in files.weights.names():
        shape, blocks = files.weights.shape(name), files.weights.blocks(name)
        size = 1
        for extent in shape:
            size *= extent
        kind, form = kind_of(name), "F32" if blocks is None else blocks.kind
        counts[kind] += size
        stored[kind][form] += size
        total += size // shape[-1] * row_bytes(form, shape[-1])
    return dict(counts.most_common()), {k: dict(c.most_common()) for k, c in stored.items()}, total


def cache_bytes(arch: Architecture, context: int) -> int:
    """What keys and values of a text of `context` tokens take in float32; layers with a window keep no more."""
    seen = (min(context, arch.window(i) or context) for i in range(arch.layers))
    return 2 * arch.kv_heads * arch.head_dim * 4 * sum(seen)


def memory(arch: Architecture, weight_bytes: int) -> dict[str, int]:
    """Bytes for weights and cache at some lengths of text, up to the model's own."""
    contexts = [*(c for c in _CONTEXTS if c < arch.context_length), arch.context_length]
    return {f"{c} tokens": weight_bytes + (cache_bytes(arch, c) if arch.kind == "decoder" else 0) for c in contexts}


def native_dtype(files: ModelFiles) -> str:
    """What a copy of the model is best written as: the type most of its matrices have, float16 for blocks."""
    forms: Counter[str] = Counter()
    for some in tally(files)[1].values():
        forms.update(some)
    names = {"F32": "float32", "BF16": "bfloat16"}
    return names.get(forms.most_common(1)[0][0], "float16")


def tokenizer_kind(tokenizer: Tokenizer) -> str:
    """Such as "BPE of bytes, 49,152 tokens"."""
    try:
        model = json.loads(tokenizer.to_json()).get("model") or {}
    except ValueError:
        model = {}
    name = str(model.get("type") or ("BPE" if "merges" in model else "?"))
    return f"{name}{' of bytes' if tokenizer.byte_level else ''}, {tokenizer.vocab_size:,} tokens"


def ancestors(lineage: Mapping[str, Any]) -> list[str]:
    """Where a model comes from, the nearest first: "name (licence)", followed up through models that are here."""
    found: list[str] = []
    seen: set[str] = set()
    waiting = _parents(lineage)
    while waiting and len(found) < _OLDEST:
        entry = waiting.pop(0)
        name = str(entry.get("name") or "")
        if not name or name in seen:
            continue
        seen.add(name)
        found.append(f"{name} ({entry.get('licence', 'unknown')})")
        waiting += _parents(_lineage_of(name))
    return found


def _parents(lineage: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    several = lineage.get("parents")
    entries = [lineage.get("parent"), lineage.get("base"), *(several if isinstance(several, (list, tuple)) else [])]
    return [entry for entry in entries if isinstance(entry, Mapping)]


def _lineage_of(name: str) -> Mapping[str, Any]:
    """That of a model here; {} where there is none of this name, or nothing to read."""
    try:
        path = locate(name)
        notes = read_json(path / "ladderlm.json") if path is not None and Path(path).is_dir() else {}
    except LadderError:
        return {}
    lineage = notes.get("lineage") if isinstance(notes, dict) else None
    return lineage if isinstance(lineage, Mapping) else {}
