"""A model folder of int8 or int4 weights, rounded to nearest or calibrated, and what it weighs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ladderlm import events
from ladderlm.config import option
from ladderlm.convert.rounding import gptq, to_nearest
from ladderlm.data.collect import collect
from ladderlm.errors import MissingExtra, StorageError, UsageError
from ladderlm.models import ModelFiles, families, open_model, save_model
from ladderlm.models.packed_ints import BITS, BLOCK, OUTER, PackedMatrix, by_rows, pack
from ladderlm.types import Sampling, Value

if TYPE_CHECKING:
    from ladderlm.types import FloatArray

METHODS = ("gptq", "rtn")
EMBEDDINGS = ("int8", "float16")
GROUPS = (32, 64, 128)
WINDOW = 512  # most tokens of a calibration window
TOGETHER = 64  # windows written at a time


@dataclass(frozen=True, slots=True)
class QuantiseConfig(Value):
    """What to quantise, how finely, and on what text to calibrate."""

    model: str = option("", "the model to quantise", positional=True)
    out: str = option("", "the folder to write", short="-o")
    bits: int = option(4, "bits of a weight in the layers: 4 or 8")
    method: str = option("gptq", "calibrated (gptq), or rounded to nearest (rtn)", choices=METHODS)
    group: int = option(32, "weights that share a scale: 32, 64 or 128")
    embeddings: str = option("int8", "embedding and output head; float16 for servers that want them plain",
                             choices=EMBEDDINGS)  # fmt: skip
    calibrate: str = option("", "text to calibrate on; else the model writes some itself")
    tokens: int = option(32768, "calibration tokens")
    seed: int = option(0, "which parts of the text, or what the model writes")
    threads: int = option(0, "processor threads; 0: all")
    replace: bool = option(False, "replace the result if it exists")

    def __post_init__(self) -> None:
        for name, value, known in (
            ("bits", self.bits, BITS), ("method", self.method, METHODS), ("group", self.group, GROUPS),
            ("embeddings", self.embeddings, EMBEDDINGS),
        ):  # fmt: skip
            if value not in known:
                raise UsageError(f"{name} must be one of {', '.join(map(str, known))}", where=f"{name}={value}")
        if self.tokens < 1:
            raise UsageError("at least one token is needed to calibrate on", where=f"tokens={self.tokens}")


@dataclass(frozen=True, slots=True)
class Result(Value):
    """`model` is the folder written; `share` its weights' bytes over those of the same model in 16 bits."""

    model: str
    bytes: int
    share: float
    bits: int
    method: str
    group: int
    calibration_tokens: int


def run(config: QuantiseConfig) -> Result:
    """Quantises `config.model` into the folder `config.out`."""
    out = Path(config.out).expanduser()
    if not config.out:
        raise UsageError("the result needs a path", where="out")
    if out.exists() and not config.replace:
        raise StorageError("already exists", where=str(out), cure="choose another place, or --replace")
    files = open_model(config.model)
    packable(files, config.group)
    windows = calibration(files, config) if config.method == "gptq" else []
    tensors = quantise(files, config, windows)
    save_model(
        out, files.arch, tensors, files.tokenizer, files.template, generation=files.generation,
        lineage={**files.lineage, "quantised": _note(files, config, windows)}, dtype="float16",
        replace=config.replace,
    )  # fmt: skip
    size = sum(f.stat().st_size for f in out.glob("*.safetensors"))
    share = size / (2 * files.arch.parameters)
    events.emit("quantise", f"{size / 1e6:,.1f} MB, {100 * share:.1f} % of 16 bits: {out}")
    return Result(
        str(out), size, share, config.bits, config.method, config.group, sum(map(len, windows))
    )  # fmt: skip


def _note(files: ModelFiles, config: QuantiseConfig, windows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What a lineage says: enough to do it again and compare."""
    note: dict[str, Any] = {
        "scheme": f"int{config.bits}", "bits": config.bits, "group": config.group, "method": config.method,
        "embeddings": config.embeddings, "source": files.hash,
    }  # fmt: skip
    if windows:
        text = json.dumps([list(w) for w in windows]).encode()
        note |= {
            "calibration": config.calibrate or "written by the model", "calibration_tokens": sum(map(len, windows)),
            "calibration_sha256": hashlib.sha256(text).hexdigest(), "seed": config.seed,
        }  # fmt: skip
    return note


def packable(files: ModelFiles, group: int) -> set[str]:
    """The matrices of the layers, which are packed. UsageError where there are none, or groups do not divide a row."""
    shapes = files.arch.tensor_shapes()
    layers = {
        name
        for stored in families.stored(files.arch)
        if by_rows(stored) and all(part.endswith("_proj.weight") for part in stored.parts)
        for name in stored.parts
    }
    if not layers:
        raise UsageError(f"the family {files.arch.family} has no matrices that servers read packed",
                         cure="quantise it to GGUF")  # fmt: skip
    for name in sorted(layers):
        if shapes[name][1] % group:
            cure = next((f"choose --group {g}" for g in GROUPS if not shapes[name][1] % g), "keep it in 16 bits")
            raise UsageError(f"{name} has rows of {shapes[name][1]}, no multiple of {group}", cure=cure)
    return layers


def quantise(
    files: ModelFiles, config: QuantiseConfig, windows: Sequence[Sequence[int]]
) -> dict[str, np.ndarray | PackedMatrix]:
    """The tensors of the quantised model: the projections of the layers packed, vectors and the like as they are.

    `windows` are needed by gptq only. Raises UsageError where a row does not divide into groups.
    """
    shapes, layers = files.arch.tensor_shapes(), packable(files, config.group)
    packed = _calibrated(files, config, windows) if config.method == "gptq" else {}
    out: dict[str, np.ndarray | PackedMatrix] = {}
    for name, shape in events.track(shapes.items(), "quantise", unit="tensors"):
        weight = files.weights.float32(name)
        if name in layers:
            out[name] = packed.get(name) or pack(*to_nearest(weight, config.bits, config.group), config.bits)
        elif name in OUTER and config.embeddings == "int8" and shape[1] % BLOCK == 0:
            out[name] = pack(*to_nearest(weight, 8, BLOCK), 8)
        else:
            out[name] = weight
    return out


def _calibrated(
    files: ModelFiles, config: QuantiseConfig, windows: Sequence[Sequence[int]]
) -> Mapping[str, PackedMatrix]:
    try:
        import torch

        from ladderlm.convert.calibrate import round_layers
        from ladderlm.nn.decoder import load_decoder
    except ImportError:
        raise MissingExtra("torch", "train") from None
    if config.threads:
        torch.set_num_threads(config.threads)

    def rounder(weight_OI: FloatArray, moments_II: np.ndarray) -> PackedMatrix:
        return pack(*gptq(weight_OI, moments_II, config.bits, config.group), config.bits)

    return round_layers(load_decoder(files), windows, rounder)


# --- Text to calibrate on -----------------------------------------------------------------------------------------


def calibration(files: ModelFiles, config: QuantiseConfig) -> list[list[int]]:
    """Windows of ids, `config.tokens` in all or as many as there are: cut from the text, or written by the model."""
    start = files.tokenizer.document_start_id
    head = [] if start is None else [start]
    length = min(WINDOW, files.arch.context_length) - len(head)
    count = max(1, round(config.tokens / (length + len(head))))
    if not config.calibrate:
        return _written(files, head, length, count, config)
    ids = [i for r in collect(config.calibrate) for i in (*head, *files.tokenizer.encode(r["text"]))]
    places = np.arange(0, len(ids), length)
    if len(places) > count:
        places = np.sort(np.random.default_rng(config.seed).choice(places, count, replace=False))
    return [[*head, *ids[at : at + length]] for at in places]


def _written(files: ModelFiles, head: list[int], length: int, count: int, config: QuantiseConfig) -> list[list[int]]:
    """Text drawn from the model's own distribution: calibration without data, in whatever languages it speaks."""
    from ladderlm import engine

    head = head or files.tokenizer.encode("\n")[:1] or [0]
    windows = [list(head) for _ in range(count)]
    with engine.load(files, threads=config.threads or None) as model:
        for first in range(0, count, TOGETHER):
            some = windows[first : first + TOGETHER]
            sampling = Sampling(max_tokens=length, n=len(some), seed=config.seed + first)
            for delta in events.track(model.generate(head, sampling), "write", length * len(some), "tokens"):
                some[delta.index].extend(delta.ids)
    return windows
