"""One grammar for models: name | path | file.gguf | hub:org/name@rev | run:ID | base+adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ladderlm import store
from ladderlm.errors import FormatError, NotFound, UsageError, nearest
from ladderlm.models.adapter import Adapter, MergedWeights, base_of, load_adapter
from ladderlm.models.adapter_config import applied_apart
from ladderlm.models.bounded import read_json
from ladderlm.models.fetch import CATALOGUE, fetched, name_of, pull
from ladderlm.models.folder import ModelFiles, is_model_folder, load_folder, load_gguf


def open_model(ref: str) -> ModelFiles:
    """The model that `ref` names, memory-mapped; a catalogue model is fetched first when it is missing.

    Raises NotFound (with the nearest name), FormatError, NetworkError, MissingExtra (hub: without huggingface-hub).
    """
    if not ref:
        raise UsageError("no model named", cure="see: ladderlm models list")
    if "#" in ref or ref.startswith(("http://", "https://")):
        raise UsageError("a served model has no files", where=ref, cure="give a folder, a .gguf file or a name")
    if (split := split_adapter(ref)) is not None:
        adapted = open_adapter(ref, open_model(split[0]), split[1])
        weights = MergedWeights(adapted.files.weights, adapted.adapter, adapted.files.arch)
        return replace(adapted.files, weights=weights)
    return _open_path(locate(ref) or _fetch(ref), ref)


def check(ref: str) -> None:
    """Raises what `open_model` would, as far as that is seen without reading or fetching: NotFound, FormatError."""
    if "hub:" in ref:
        return
    split = split_adapter(ref)
    base = ref if split is None else split[0]
    if locate(base) is None and base not in CATALOGUE:
        raise _missing(base)


@dataclass(frozen=True, eq=False)
class Adapted:
    """A base with an adapter that is not merged: `files` is named and hashed as both, its weights are the base's."""

    base: ModelFiles
    files: ModelFiles
    adapter: Adapter


def open_adapter(ref: str, base: ModelFiles, path: Path) -> Adapted:
    """The adapter in the folder `path` on an opened base; together they are `ref`."""
    adapter = load_adapter(path)
    files = replace(
        base, ref=ref, name=f"{base.name}+{path.name}", path=path, bytes=base.bytes + adapter.bytes,
        lineage={**base.lineage, "adapter": {"path": str(path), **adapter.lineage}},
        parts=(*(base.parts or (base.path,)), path),
    )  # fmt: skip
    return Adapted(base, files, adapter)


def split_adapter(ref: str) -> tuple[str, Path] | None:
    """The base and the adapter's folder that `ref` names; None where it names a model by itself.

    Raises NotFound for base+adapter without such an adapter, FormatError for an adapter that does not name its base.
    """
    if "#" in ref or ref.startswith(("http://", "https://")):
        return None
    path = locate(ref)
    if path is None and "+" in ref:
        base, _, adapter = ref.rpartition("+")
        path = locate(adapter) or (_fetch(adapter) if adapter.startswith("hub:") else None)
        if path is None:
            raise NotFound(f"no such adapter {adapter!r}", cure="give the folder that holds adapter_config.json")
        return base, path
    if path is None or not (path / "adapter_config.json").is_file() or (path / "config.json").is_file():
        return None
    if not (base := base_of(path)):
        raise FormatError("the adapter does not name its base", where=str(path), cure="use base+adapter")
    return base, path


def split_apart(ref: str) -> tuple[str, Path] | None:
    """As `split_adapter`; None also for an adapter that is only ever merged into a copy of its base."""
    split = split_adapter(ref)
    return None if split is None or not applied_apart(read_json(split[1] / "adapter_config.json")) else split


def locate(ref: str) -> Path | None:
    """The folder or file on this machine that `ref` names, None if there is none. Nothing is fetched."""
    if ref.startswith("run:"):
        return _run_model(ref[4:])
    if ref.startswith("hub:"):
        return None
    path = Path(ref).expanduser()
    if path.exists() and (path.is_file() or is_model_folder(path) or (path / "adapter_config.json").exists()):
        return path
    if "/" not in ref and "\\" not in ref:
        named = store.models_dir() / ref
        for candidate in (named, named.with_name(ref + ".gguf")):
            if candidate.is_file() or is_model_folder(candidate) or (candidate / "adapter_config.json").is_file():
                return candidate
        return fetched(ref)
    return None


def _run_model(id: str) -> Path:
    run = store.open_run(id.partition("@")[0])
    for name in ("model", "adapter"):
        if (run.path / name).is_dir():
            return run.path / name
    note = run.path / "result.json"
    if note.exists():
        data = json.loads(note.read_text(encoding="utf-8"))
        if isinstance(data, Mapping) and isinstance(data.get("model"), str) and Path(data["model"]).exists():
            return Path(data["model"])
    raise NotFound(f"the run {id!r} holds no model", where=str(run.path), cure="did it finish? see: ladderlm runs")


def _fetch(ref: str) -> Path:
    if ref.startswith("hub:"):
        from ladderlm.models.hub import download

        return download(ref[4:])
    if ref in CATALOGUE:
        return pull(ref)
    raise _missing(ref)


def _missing(ref: str) -> NotFound | FormatError:
    """Why nothing is found under `ref`."""
    if Path(ref).expanduser().exists():
        return FormatError("no model here", where=ref, cure="a model is a folder with config.json, or a .gguf file")
    looks_like_path = "/" in ref or "\\" in ref or ref.endswith(".gguf")
    known = [*CATALOGUE, *(p.name for p in store.models_dir().glob("*"))]
    return NotFound(f"no such model {ref!r}", cure="check the path" if looks_like_path else nearest(ref, known))


def _open_path(path: Path, ref: str) -> ModelFiles:
    name = name_of(path) or path.name.removesuffix(".gguf")
    if path.is_dir():
        return load_folder(path, ref, name)
    with path.open("rb") as f:
        magic = f.read(4)
    if magic != b"GGUF":
        raise FormatError("not a GGUF file", where=str(path), cure="give a model folder or a .gguf file")
    return load_gguf(path, ref, name)
