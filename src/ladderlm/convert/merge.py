"""`models merge`: several checkpoints become one, tensor by tensor.

linear  the weighted mean (Wortsman et al. 2022, "model soups")
slerp   of two: along the arc between them, tensor by tensor (Shoemake 1985)
task    base + sum of weight * (model - base) (Ilharco et al. 2022, "task arithmetic")
ties    the same after each difference keeps only its largest entries and those of the agreed sign (Yadav et al. 2023)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ladderlm import events
from ladderlm.config import option
from ladderlm.convert.alike import must_fit
from ladderlm.errors import StorageError, UsageError
from ladderlm.models.card import data_of, joint_licence
from ladderlm.models.contents import native_dtype
from ladderlm.models.folder import LazyTensors, ModelFiles, save_model
from ladderlm.models.reference import open_model
from ladderlm.models.safetensors import DTYPES
from ladderlm.types import FloatArray, Value

METHODS = ("linear", "slerp", "task", "ties")


@dataclass(frozen=True, slots=True)
class MergeConfig(Value):
    models: tuple[str, ...] = option(help="the models; a single base+adapter is merged into one folder")
    out: str = option("", "the folder to write")
    method: str = option("linear", "how they become one", choices=METHODS)
    weights: str = option("", "one for each model, such as 0.5,0.5 (default: equal shares; task and ties: 1 each)")
    base: str = option("", "task, ties: the model that the others were tuned from")
    density: float = option(0.2, "ties: the share of each difference that is kept")
    dtype: str = option("", "float32, float16 or bfloat16 (default: that of the first model)", choices=(*DTYPES,))
    replace: bool = option(False, "replace --out if it exists")
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class Written(Value):
    """A model folder that was written."""

    model: str
    bytes: int
    parameters: int
    dtype: str
    licence: str
    licence_flags: tuple[str, ...] = ()


def run(config: MergeConfig) -> Written:
    """Merges and writes. At most one tensor of each model is in memory.

    Raises UsageError where the models do not fit together or the settings make no sense, StorageError where `out` is
    taken.
    """
    if not config.out:
        raise UsageError("the result needs a place", cure="--out DIR")
    path = Path(config.out).expanduser()
    if path.exists() and not config.replace:
        raise StorageError("already exists", where=str(path), cure="choose another --out, or --replace")
    files = [open_model(ref) for ref in config.models]
    base = open_model(config.base) if config.base else None
    _check(config, files, base)
    weights = parse_weights(config.weights, len(files), config.method)
    for other in [*files[1:], *([base] if base else [])]:
        must_fit(files[0], other)

    names = files[0].weights.names()
    progress = iter(events.track(names, "merge", unit="tensors"))

    def make(name: str) -> FloatArray:
        next(progress, None)
        origin = base.weights.float32(name) if base else None
        tensors = (f.weights.float32(name) for f in files)
        return combine(config.method, tensors, weights, origin, config.density)

    dtype = config.dtype or native_dtype(files[0])
    lineage = _lineage(config, files, weights, base)
    first = files[0]
    save_model(
        path, first.arch, LazyTensors(names, make), first.tokenizer, first.template, generation=first.generation,
        lineage=lineage, dtype=dtype, replace=config.replace,
    )  # fmt: skip
    return written(path, dtype)


def written(path: Path, dtype: str) -> Written:
    """What a folder that was just written is."""
    from ladderlm.models.card import licence_flags

    files = open_model(str(path))
    flags = tuple(licence_flags(files.lineage))
    return Written(str(path), files.bytes, files.arch.parameters, dtype, str(files.lineage.get("licence")), flags)


def _check(config: MergeConfig, files: Sequence[ModelFiles], base: ModelFiles | None) -> None:
    needs_base = config.method in ("task", "ties")
    if needs_base != (base is not None):
        what = "needs" if needs_base else "takes no"
        raise UsageError(f"{config.method} {what} base", cure="--base MODEL is for task and ties")
    if len(files) == 1 and not needs_base and "+" not in config.models[0] and "adapter" not in files[0].lineage:
        raise UsageError("there is one model only", where=config.models[0], cure="name two, or base+adapter")
    if config.method == "slerp" and len(files) != 2:
        raise UsageError("slerp is between two models", where=f"{len(files)} models", cure="use --method linear")
    if not 0 < config.density <= 1:
        raise UsageError("density must be above 0 and at most 1", where=f"density={config.density}")


def parse_weights(text: str, count: int, method: str) -> tuple[float, ...]:
    """One for each model; those of linear and slerp sum to 1. UsageError otherwise."""
    shares = method in ("linear", "slerp")
    if not text:
        return ((1 / count) if shares else 1.0,) * count
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError("weights are numbers with commas between", where=text, cure="such as 0.5,0.5") from None
    if len(weights) != count or not all(np.isfinite(weights)):
        raise UsageError(f"{len(weights)} weights for {count} models", where=text)
    if not shares:
        return weights
    if min(weights) < 0 or sum(weights) <= 0:
        raise UsageError("weights are shares: none below 0, not all 0", where=text)
    return tuple(w / sum(weights) for w in weights)


# --- One tensor ---------------------------------------------------------------------------------------------------


def combine(
    method: str, tensors: Any, weights: Sequence[float], base: FloatArray | None = None, density: float = 1.0
) -> FloatArray:
    """One tensor of the result, from those of the models (taken one after the other) and of the base."""
    if method == "slerp":
        a, b = tensors
        return slerp(a, b, weights[1])
    if method == "ties":
        assert base is not None
        return base + ties([t - base for t in tensors], weights, density)
    out = np.zeros_like(base) if base is not None else None
    for weight, tensor in zip(weights, tensors, strict=True):
        part = np.float32(weight) * (tensor if base is None else tensor - base)
        out = part if out is None else np.add(out, part, out=out)
    assert out is not None
    return out if base is None else base + out


def slerp(a: FloatArray, b: FloatArray, share: float) -> FloatArray:
    """From `a` (share 0) to `b` (share 1) along the arc that their directions span; straight where they are nearly
    parallel or one is zero."""
    long_a, long_b = (float(np.linalg.norm(x.astype(np.float64))) for x in (a, b))
    if long_a and long_b:
        cosine = float(np.vdot(a.astype(np.float64), b.astype(np.float64))) / (long_a * long_b)
        if abs(cosine) < 0.9995:
            angle = float(np.arccos(cosine))
            left, right = (float(np.sin(x * angle) / np.sin(angle)) for x in (1 - share, share))
            return np.float32(left) * a + np.float32(right) * b
    return np.float32(1 - share) * a + np.float32(share) * b


def ties(differences: Sequence[FloatArray], weights: Sequence[float], density: float) -> FloatArray:
    """Trim each difference to its `density` largest entries, elect a sign for each entry by the weighted sum, and
    take the weighted mean of the entries that have it."""
    trimmed = [np.float32(w) * _largest(d, density) for w, d in zip(weights, differences, strict=True)]
    sign = np.sign(sum(trimmed))
    total, counted = np.zeros_like(trimmed[0]), np.zeros_like(trimmed[0])
    for weight, part in zip(weights, trimmed, strict=True):
        agreeing = (np.sign(part) == sign) & (part != 0)
        total += np.where(agreeing, part, 0)
        counted += np.where(agreeing, np.float32(abs(weight)), 0)
    mean = np.divide(total, counted, out=np.zeros_like(total), where=counted != 0)
    return mean * np.float32(sum(abs(w) for w in weights) / len(weights))


def _largest(values: FloatArray, density: float) -> FloatArray:
    """`values` with all but their largest share set to zero."""
    keep = max(1, round(density * values.size))
    if keep >= values.size:
        return values
    size = np.abs(values).reshape(-1)
    least = np.partition(size, size.size - keep)[size.size - keep]
    return np.where(np.abs(values) >= least, values, np.float32(0))


# --- Where it comes from ------------------------------------------------------------------------------------------


def _lineage(
    config: MergeConfig, files: Sequence[ModelFiles], weights: Sequence[float], base: ModelFiles | None
) -> dict[str, Any]:
    parents = [{**parent(f), "weight": round(w, 6)} for f, w in zip(files, weights, strict=True)]
    recipe = {"method": config.method} | ({"density": config.density} if config.method == "ties" else {})
    lineage: dict[str, Any] = {"method": "merge", "parents": parents, "recipe": recipe}
    if base is not None:
        lineage["base"] = parent(base)
    data = [d for f in files for d in [*data_of(f.lineage), *data_of(f.lineage.get("adapter") or {})]]
    lineage["data"] = [d for i, d in enumerate(data) if d not in data[:i]]
    lineage["licence"] = joint_licence(lineage)
    return lineage


def parent(files: ModelFiles) -> dict[str, Any]:
    """What a lineage says of a model that another was made from."""
    own = {k: v for k, v in files.lineage.items() if k in ("licence", "base", "adapter")}
    return {"name": files.name, "hash": files.hash, "licence": joint_licence(own)}
