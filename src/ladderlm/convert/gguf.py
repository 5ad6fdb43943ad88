"""A model as one GGUF file, for llama.cpp and everything built on it."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ladderlm.errors import StorageError, UsageError, nearest
from ladderlm.models.arch import Architecture, Shapes
from ladderlm.models.encode import encode
from ladderlm.models.families import ggufs
from ladderlm.models.families.stored import Stored
from ladderlm.models.folder import ModelFiles
from ladderlm.models.gguf_write import Entry, write_gguf
from ladderlm.models.quants import KINDS, Bytes
from ladderlm.models.weights import Weights
from ladderlm.text.vocabulary_out import gguf_metadata
from ladderlm.types import FloatArray

# Kind -> general.file_type, llama.cpp's number of the mixture.
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2, "Q4_K": 14}
_QUANTISATION_VERSION = 2
# What a matrix becomes whose rows are no whole number of blocks: the next kind that loses no more.
_FALL_BACK = {"Q4_K": "Q5_0", "Q5_0": "F16", "Q4_0": "F16", "Q8_0": "F16"}
_OUTER = ("token_embd.weight", "output.weight")
_ALWAYS_F32 = ("position_embd.weight", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "norm.weight")


def write(files: ModelFiles, path: str | Path, kind: str = "Q8_0", *, replace: bool = False) -> Path:
    """Writes `files` as a GGUF file and returns its path.

    Norms, biases, routers and position tables stay F32; in a Q4 file the embeddings are Q8_0; a matrix whose rows a
    kind's blocks do not divide takes the next better one that fits (`kinds` says which). Blocks that already are of
    the wanted kind are copied. Errors: UsageError for an unknown kind, FormatError for what GGUF cannot say,
    StorageError when `path` exists and not `replace`.
    """
    path = Path(path)
    if kind not in FILE_TYPES:
        raise UsageError(f"unknown GGUF kind {kind!r}", cure=nearest(kind, FILE_TYPES))
    if path.exists() and not replace:
        raise StorageError("already exists", where=str(path), cure="choose another name or remove it")
    own, extra = ggufs.to_gguf(files.arch)
    tensors = [Entry(n, "F32", v.shape, functools.partial(_vector, v)) for n, v in extra.items()]
    write_gguf(path, _metadata(files, kind) | own, [*tensors, *entries(files.arch, files.weights, kind)])
    return path


def kinds(arch: Architecture, kind: str) -> dict[str, str]:
    """The kind of every tensor in a file of `kind`, by GGUF's names."""
    shapes = arch.tensor_shapes()
    return {stored.name: _kind(stored, shapes, kind) for stored in ggufs.stored(arch)}


def entries(arch: Architecture, weights: Weights, kind: str) -> list[Entry]:
    """The tensors of a file, read and encoded one by one when they are written."""
    shapes, chosen = arch.tensor_shapes(), kinds(arch, kind)

    def entry(stored: Stored) -> Entry:
        of = chosen[stored.name]
        return Entry(stored.name, of, stored.shape(shapes), lambda: _data(stored, weights, of))

    return [entry(stored) for stored in ggufs.stored(arch)]


def _kind(stored: Stored, shapes: Shapes, wanted: str) -> str:
    shape = stored.shape(shapes)
    if len(shape) == 1 or stored.name.endswith(_ALWAYS_F32):
        return "F32"
    if stored.name in _OUTER and wanted.startswith("Q"):
        wanted = "Q8_0"
    while shape[-1] % KINDS[wanted].weights:
        wanted = _FALL_BACK[wanted]
    return wanted


def _data(stored: Stored, weights: Weights, kind: str) -> Iterator[Bytes]:
    """The tensor's bytes; of stacked experts one after the other, so that one is in memory at a time."""
    pieces = [Stored(stored.name, (part,)) for part in stored.parts] if stored.stacked else [stored]
    for piece in pieces:
        held = [weights.blocks(part) for part in piece.parts]
        if not piece.plus and all(blocks is not None and blocks.kind == kind for blocks in held):
            by_name = {part: blocks.data for part, blocks in zip(piece.parts, held, strict=True) if blocks is not None}
            yield piece.join(by_name.__getitem__)
        else:
            values = piece.join(weights.float32)
            yield encode(kind, values.reshape(-1, values.shape[-1]))


def _vector(values: FloatArray) -> Iterator[Bytes]:
    yield encode("F32", values[None])


def _metadata(files: ModelFiles, kind: str) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "general.type": "model",
        "general.name": files.name,
        "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": _QUANTISATION_VERSION,
        "ladderlm.lineage": json.dumps(dict(files.lineage), ensure_ascii=False),
    }
    licence = files.lineage.get("licence")
    if isinstance(licence, str) and licence != "unknown":
        meta["general.license"] = licence
    if files.template is not None:
        meta["tokenizer.chat_template"] = files.template.source
    return meta | gguf_metadata(files.tokenizer, files.arch.vocab_size)
