"""Which models there are: those that can be fetched by name, those in the workspace, and what each of them holds."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ladderlm import store
from ladderlm.errors import NotFound, UsageError, nearest
from ladderlm.models.fetch import CATALOGUE, DEFAULT_MODEL, fetched, place, pull
from ladderlm.types import Value

if TYPE_CHECKING:
    pass

__all__ = ["DEFAULT_MODEL", "Entry", "describe", "list_models", "pull", "recommend", "remove"]


@dataclass(frozen=True, slots=True)
class Entry(Value):
    """A model by name. `origin`: catalogue or workspace; `bytes` on disk once here; `path` None until fetched."""

    name: str
    origin: str
    kind: str
    here: bool
    bytes: int
    path: str | None = None
    parameters: int | None = None
    licence: str = "unknown"
    about: str = ""


def list_models() -> list[Entry]:
    """The catalogue, then the workspace. Opens no weights."""
    entries = [
        Entry(
            s.name, "catalogue", "gguf", fetched(s.name) is not None, s.bytes, _text(fetched(s.name)), s.parameters,
            s.licence, s.about,
        )
        for s in CATALOGUE.values()
    ]  # fmt: skip
    folder = store.models_dir()
    if folder.is_dir():
        entries += [e for p in sorted(folder.iterdir()) if not p.name.startswith(".") and (e := _entry(p))]
    return entries


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _entry(path: Path) -> Entry | None:
    if path.suffix == ".gguf" and path.is_file():
        return Entry(path.stem, "workspace", "gguf", True, path.stat().st_size, str(path))
    marks = {"folder": "config.json", "adapter": "adapter_config.json"}
    kind = next((k for k, file in marks.items() if (path / file).is_file()), None)
    if kind is None:
        return None
    size = sum(f.stat().st_size for f in path.glob("*.safetensors"))
    lineage: dict[str, Any] = {}
    parameters = None
    try:
        lineage = json.loads((path / "ladderlm.json").read_text(encoding="utf-8")).get("lineage") or {}
        if kind == "folder":
            from ladderlm.models import families

            parameters = families.from_hf(store.read_json(path / "config.json")).parameters
    except (OSError, ValueError, AttributeError):
        pass  # listed all the same: opening it will say what is wrong
    about = str(lineage.get("method") or lineage.get("about") or "")
    return Entry(
        path.name, "workspace", kind, True, size, str(path), parameters, str(lineage.get("licence", "unknown")), about
    )


def remove(name: str) -> Path:
    """Deletes a workspace model or a fetched catalogue model, and returns where it was. NotFound otherwise."""
    entry = next((e for e in list_models() if e.name == name and e.here and e.path), None)
    if entry is None or entry.path is None:
        known = [e.name for e in list_models() if e.here]
        raise NotFound(f"no model {name!r} here", cure=nearest(name, known) if known else "see: ladderlm models list")
    path = Path(entry.path)
    with store.storage_errors(path):
        if path.is_dir():
            gone = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")  # so that it goes at once or not at all
            os.rename(path, gone)
            shutil.rmtree(gone, ignore_errors=True)
        else:
            with store.lock(path):
                path.unlink()
    return path


def describe(ref: str) -> dict[str, Any]:
    """What a model holds and needs: plain data for people and programs.

    `expected_tokens_per_second` is an estimate: decoding reads every weight once a token, so it is this machine's
    memory bandwidth (measured here, in 0.2 s) over the bytes of the weights. A model that is not here is described
    from the catalogue, without being fetched.
    """
    if ref in CATALOGUE and fetched(ref) is None:
        s = CATALOGUE[ref]
        return {
            "name": s.name, "here": False, "about": s.about, "family": s.family, "parameters": s.parameters,
            "bytes": s.bytes, "download_bytes": s.wheel_bytes, "context_length": s.context_length,
            "licence": s.licence, "fetched_to": str(place(ref)),
        }  # fmt: skip
    from ladderlm.models import contents
    from ladderlm.models.card import licence_flags, plain_words
    from ladderlm.models.reference import open_model

    files = open_model(ref)
    arch = files.arch
    kinds, forms, weight_bytes = contents.tally(files)
    precision: Counter[str] = Counter()
    for some in forms.values():
        precision.update(some)
    bandwidth = memory_bandwidth()
    return {
        "name": files.name,
        "here": True,
        "path": str(files.path),
        "about": plain_words(arch),
        "family": arch.family,
        "parameters": arch.parameters,
        "parameters_by_kind": kinds,
        "bytes": files.bytes,
        "precision": dict(precision.most_common()),
        "precision_by_kind": forms,
        "layers": arch.layers,
        "dim": arch.dim,
        "vocab_size": arch.vocab_size,
        "context_length": arch.context_length,
        "tokenizer": contents.tokenizer_kind(files.tokenizer),
        "template": files.template is not None,
        "memory_bytes": contents.memory(arch, weight_bytes),
        "kv_cache_bytes_per_token": contents.cache_bytes(arch, 1) if arch.kind == "decoder" else 0,
        "expected_tokens_per_second": round(bandwidth / weight_bytes, 1),
        "estimate": f"at {bandwidth / 1e9:.1f} GB/s of memory bandwidth, measured just now; one request at a time",
        "licence": str(files.lineage.get("licence", "unknown")),
        "licence_flags": licence_flags(files.lineage),
        "made_from": contents.ancestors(files.lineage),
        "lineage": dict(files.lineage),
    }


def memory_bandwidth(seconds: float = 0.2) -> float:
    """Bytes a second that this machine reads from memory: the best of repeated passes over 128 MB."""
    import numpy as np

    values = np.ones(32 * 2**20, np.float32)  # well beyond any cache
    best, until = 0.0, time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        np.dot(values, values)
        end = time.perf_counter()
        best = max(best, values.nbytes / (end - start))
        if end > until:
            return best


def recommend(task: str) -> list[Entry]:
    """Catalogue models for a task that fit this machine's memory, smallest first. UsageError for an unknown task."""
    tasks = sorted({t for s in CATALOGUE.values() for t in s.tasks})
    if task not in tasks:
        raise UsageError(f"unknown task {task!r}", cure=nearest(task, tasks))
    memory = _memory()
    fitting = {s.name for s in CATALOGUE.values() if task in s.tasks and s.bytes * 1.5 < memory}
    return sorted((e for e in list_models() if e.origin == "catalogue" and e.name in fitting), key=lambda e: e.bytes)


def _memory() -> float:
    """Bytes of memory this machine has; infinite where it does not tell."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return float("inf")
