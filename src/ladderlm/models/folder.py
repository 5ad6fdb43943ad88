"""The model folder: read and written in the Hugging Face layout, plus `ladderlm.json` for lineage."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ladderlm import store
from ladderlm.errors import FormatError, NotFound, UsageError, nearest
from ladderlm.models import families, packed_ints
from ladderlm.models.arch import Architecture
from ladderlm.models.bounded import parse_json, read_json, shown
from ladderlm.models.card import render_card
from ladderlm.models.families import ggufs
from ladderlm.models.families.stored import Stored
from ladderlm.models.gguf import read_gguf
from ladderlm.models.safetensors import (
    DTYPES,
    SafetensorsWeights,
    read_safetensors,
    stored_bytes,
    stream_safetensors,
    write_safetensors,
)
from ladderlm.models.weights import GGUFWeights, Weights
from ladderlm.text.template import ChatTemplate
from ladderlm.text.tokenizer import SpecialTokens, Tokenizer

FORMAT = 1
SHARD_BYTES = 5 * 10**9
_HASHED = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "adapter_config.json",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "merges.txt", "vocab.txt",
    "added_tokens.json",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class ModelFiles:
    """A model at rest. `ref` is what was asked for, `path` its folder or file, `bytes` the size of its weights."""

    ref: str
    name: str
    path: Path
    arch: Architecture
    weights: Weights
    tokenizer: Tokenizer
    template: ChatTemplate | None
    generation: Mapping[str, Any]
    lineage: Mapping[str, Any]
    bytes: int
    parts: tuple[Path, ...] = field(default=())  # what the hash covers, when that is not `path` alone

    @functools.cached_property
    def hash(self) -> str:
        """sha256 over weights, config, tokenizer and template: the model's identity."""
        files = [f for part in self.parts or (self.path,) for f in _hashed_files(part)]
        lines = "".join(f"{file.name} {_file_hash(file)}\n" for file in files)
        return hashlib.sha256(lines.encode()).hexdigest()


def _hashed_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(p for p in path.iterdir() if p.name in _HASHED or p.suffix == ".safetensors")


def _file_hash(path: Path) -> str:
    """sha256 of a file, remembered by (path, size, time) since gigabytes take seconds."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:32]
    note = store.cache_dir() / "hashes" / key
    if stat.st_size < 2**20:
        return store.sha256_of(path)
    if note.exists() and len(known := note.read_text()) == 64:
        return known
    found = store.sha256_of(path)
    with store.atomic_file(note) as f:
        f.write(found)
    return found


# --- Reading ------------------------------------------------------------------------------------------------------


def load_gguf(path: Path, ref: str, name: str, lineage: Mapping[str, Any] | None = None) -> ModelFiles:
    """A GGUF file as a model."""
    file = read_gguf(path)
    meta = file.meta
    held = {tensor.name: tensor.shape for tensor in file.tensors.values()}
    arch = ggufs.from_gguf(meta, held, ggufs.factors(file))
    layout, shapes = ggufs.stored(arch), arch.tensor_shapes()
    ggufs.check_held(layout, held, shapes, str(path))
    tokenizer = Tokenizer.from_gguf(meta)
    _check_vocabulary(tokenizer, arch, path)
    source = meta.get("tokenizer.chat_template")
    template = _template(source, tokenizer) if isinstance(source, str) else None
    base = {"name": meta.get("general.name", name), "licence": meta.get("general.license", "unknown")}
    lineage = lineage or _written_lineage(meta) or {"base": base, "licence": base["licence"]}
    generation = {"eos_token_id": list(tokenizer.stop_ids)}
    return ModelFiles(
        ref, name, path, arch, GGUFWeights(file, layout, shapes), tokenizer, template, generation, lineage, file.bytes
    )


def _written_lineage(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The lineage in a file of our own."""
    text = meta.get("ladderlm.lineage")
    found = parse_json(text.encode(), "ladderlm.lineage") if isinstance(text, str) else {}
    return found if isinstance(found, dict) else {}


def load_folder(path: Path, ref: str, name: str) -> ModelFiles:
    """A folder in the Hugging Face layout as a model."""
    config, shards = _json_object(path / "config.json"), read_shards(path)
    arch = families.from_hf(config, shards.keys())
    tensors = packed_ints.gather(config, shards, str(path))
    weights = SafetensorsWeights(tensors, families.stored(arch), arch.tensor_shapes(), str(path))
    generation = _optional_json(path / "generation_config.json")
    notes = _optional_json(path / "ladderlm.json")
    version = notes.get("format", FORMAT)
    if not isinstance(version, int) or version > FORMAT:
        raise FormatError("written by a newer LadderLM", where=str(path / "ladderlm.json"), cure="upgrade")
    tokenizer, template = _read_tokenizer(path, generation, notes)
    _check_vocabulary(tokenizer, arch, path)
    lineage = notes.get("lineage") or {"base": {"name": name, "licence": "unknown"}, "licence": "unknown"}
    size = sum(f.stat().st_size for f in path.glob("*.safetensors"))
    return ModelFiles(ref, name, path, arch, weights, tokenizer, template, generation, lineage, size)


def read_shards(path: Path) -> dict[str, Any]:
    """All tensors of `model.safetensors` or of the shards its index names."""
    index = path / "model.safetensors.index.json"
    if not index.exists():
        if not (path / "model.safetensors").exists():
            raise NotFound("no model.safetensors", where=str(path), cure="LadderLM reads safetensors and GGUF only")
        return dict(read_safetensors(path / "model.safetensors"))
    weight_map = _json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise FormatError("the index has no sound weight_map", where=str(index))
    tensors: dict[str, Any] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or shard == ".." or "\\" in shard or not shard.isprintable():
            raise FormatError(f"the index names a file outside its folder: '{shown(shard)}'", where=str(index))
        held = read_safetensors(path / shard)
        tensors |= {name: tensor for name, tensor in held.items() if weight_map.get(name) == shard}
    return tensors


def _optional_json(path: Path) -> dict[str, Any]:
    return _json_object(path) if path.exists() else {}


def _json_object(path: Path) -> dict[str, Any]:
    data = read_json(path)
    if not isinstance(data, dict):
        raise FormatError("must hold a JSON object", where=str(path))
    return data


def _read_tokenizer(
    path: Path, generation: Mapping[str, Any], notes: Mapping[str, Any]
) -> tuple[Tokenizer, ChatTemplate | None]:
    config = _optional_json(path / "tokenizer_config.json")
    tokenizer = Tokenizer.from_folder(path)
    ends = generation.get("eos_token_id")
    ends = tuple(ends if isinstance(ends, list) else [ends] if isinstance(ends, int) else [])
    guessed = tokenizer.special
    bos, eos = (_token_id(tokenizer, config.get(key)) for key in ("bos_token", "eos_token"))
    eos = eos if eos is not None else ends[0] if ends else guessed.eos
    bos = bos if bos is not None else guessed.bos
    add_bos = bool(config.get("add_bos_token", guessed.add_bos)) and bos is not None
    start = notes.get("document_start_id") if isinstance(notes.get("document_start_id"), int) else None
    tokenizer = tokenizer.with_special(SpecialTokens(bos, eos, ends, add_bos, start))
    source = config.get("chat_template")
    if isinstance(source, list):  # several named ones
        named = {t.get("name"): t.get("template") for t in source if isinstance(t, dict)}
        source = named.get("default", next(iter(named.values()), None))
    if (file := path / "chat_template.jinja").exists():
        source = file.read_text(encoding="utf-8")
    return tokenizer, _template(source, tokenizer) if isinstance(source, str) else None


def _token_id(tokenizer: Tokenizer, entry: Any) -> int | None:
    text = entry.get("content") if isinstance(entry, dict) else entry
    return tokenizer.id_of(text) if isinstance(text, str) else None


def _template(source: str, tokenizer: Tokenizer) -> ChatTemplate:
    bos, eos = ("" if i is None else tokenizer.token_text(i) for i in (tokenizer.bos_id, tokenizer.eos_id))
    return ChatTemplate(source, bos, eos)


def _check_vocabulary(tokenizer: Tokenizer, arch: Architecture, path: Path) -> None:
    if tokenizer.vocab_size > arch.vocab_size:
        raise FormatError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model rows for {arch.vocab_size}", where=str(path)
        )


# --- Writing ------------------------------------------------------------------------------------------------------


class LazyTensors(Mapping[str, np.ndarray]):
    """The tensors `names`, each made by `make` when it is asked for, and not kept."""

    def __init__(self, names: Iterable[str], make: Callable[[str], np.ndarray]) -> None:
        self._names, self._make = dict.fromkeys(names), make

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def save_model(
    path: str | Path,
    arch: Architecture,
    tensors: packed_ints.Tensors,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    *,
    generation: Mapping[str, Any],
    lineage: Mapping[str, Any],
    dtype: str = "float32",
    replace: bool = False,
) -> None:
    """Writes a whole model folder or nothing. `tensors` by canonical names, shapes as `arch.tensor_shapes()`; of
    LazyTensors each is made once, when it is written, so that only one is in memory.

    Raises FormatError for a missing or misshapen tensor, StorageError when `path` exists and not `replace`.
    """
    path = Path(path)
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}", cure=nearest(dtype, DTYPES))
    if missing := [name for name in arch.tensor_shapes() if name not in tensors]:
        raise FormatError(f"the tensor {missing[0]!r} is missing", where=str(path))
    with store.atomic_dir(path, replace=replace) as folder:
        _write_weights(folder, arch, tensors, dtype)
        ends = list(tokenizer.stop_ids)
        config = families.to_hf(arch, bos_id=tokenizer.bos_id, eos_ids=ends, dtype=dtype)
        if _packed(tensors):
            config |= packed_ints.settings(families.stored(arch), tensors)
        store.write_json(folder / "config.json", config)
        (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
        store.write_json(folder / "tokenizer_config.json", _tokenizer_config(tokenizer, template, arch))
        if arch.kind != "encoder":
            defaults = {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends or None}
            if arch.kind == "encoder-decoder":
                defaults |= {"decoder_start_token_id": arch.start_id, "pad_token_id": config["pad_token_id"]}
            store.write_json(folder / "generation_config.json", {**defaults, **generation})
        notes = {"format": FORMAT, "document_start_id": tokenizer.document_start_id, "lineage": dict(lineage)}
        store.write_json(folder / "ladderlm.json", notes)
        (folder / "README.md").write_text(render_card(lineage, arch, name=path.name), encoding="utf-8")


def _packed(tensors: packed_ints.Tensors) -> bool:
    """Whether some matrices are of packed integers."""
    lazy = isinstance(tensors, LazyTensors)
    return not lazy and any(isinstance(t, packed_ints.PackedMatrix) for t in tensors.values())


def _write_weights(folder: Path, arch: Architecture, tensors: packed_ints.Tensors, dtype: str) -> None:
    shards: list[list[Stored]] = [[]]
    size = total = 0
    shapes, packed = arch.tensor_shapes(), _packed(tensors)
    for stored in families.stored(arch):
        grown = packed_ints.packed_bytes(stored, tensors) if packed else 0
        grown = grown or stored_bytes(stored.shape(shapes), dtype)
        if shards[-1] and size + grown > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(stored)
        size, total = size + grown, total + grown
    where: dict[str, str] = {}

    def get(name: str) -> np.ndarray:
        value = tensors[name]
        if tuple(value.shape) != shapes[name]:
            raise FormatError(f"the tensor {name!r} is of shape {tuple(value.shape)}, not {shapes[name]}")
        return np.asarray(value)

    by_name = {s.name: s for shard in shards for s in shard}
    for i, shard in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        if packed:
            held = {name: value for s in shard for name, value in packed_ints.join(s, tensors).items()}
            write_safetensors(folder / file, held, dtype)
            where |= dict.fromkeys(held, file)
        else:
            wanted = {s.name: s.shape(shapes) for s in shard}
            stream_safetensors(folder / file, wanted, lambda name: by_name[name].join(get), dtype)
            where |= dict.fromkeys(wanted, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        store.write_json(folder / "model.safetensors.index.json", index)


def _tokenizer_config(tokenizer: Tokenizer, template: ChatTemplate | None, arch: Architecture) -> dict[str, Any]:
    def text(id: int | None) -> str | None:
        return None if id is None else tokenizer.token_text(id)

    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": arch.context_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": tokenizer.add_bos,
        "bos_token": text(tokenizer.bos_id),
        "eos_token": text(tokenizer.eos_id),
        "pad_token": text(tokenizer.eos_id),
    }
    if arch.kind != "decoder":
        pad = arch.pad_id if arch.pad_id >= 0 else tokenizer.pad_id
        config |= {"pad_token": text(pad), "mask_token": text(tokenizer.mask_id)}
    if arch.kind == "encoder":
        ends = {"cls_token": tokenizer.around.head[:1], "sep_token": tokenizer.around.tail[-1:]}
        config |= {name: text(*ids) for name, ids in ends.items() if ids}
    config = {key: value for key, value in config.items() if value is not None}
    if template is not None:
        config["chat_template"] = template.source
    return config


def eager(weights: Weights) -> dict[str, np.ndarray]:
    """All weights as float32 arrays, for writing a dequantised copy."""
    return {name: weights.float32(name) for name in weights.names()}


def is_model_folder(path: Path) -> bool:
    return (path / "config.json").is_file() and os.access(path, os.R_OK) and not (path / "metrics.jsonl").exists()
