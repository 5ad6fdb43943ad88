"""`models slice`: a model with some of its layers (depth pruning; Gromov et al. 2024), to be tuned afterwards."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ladderlm import events
from ladderlm.config import option
from ladderlm.convert.merge import Written, parent, written
from ladderlm.errors import FormatError, StorageError, UsageError
from ladderlm.models import families
from ladderlm.models.arch import Architecture
from ladderlm.models.card import data_of
from ladderlm.models.contents import native_dtype
from ladderlm.models.folder import LazyTensors, save_model
from ladderlm.models.reference import open_model
from ladderlm.models.safetensors import DTYPES
from ladderlm.types import Value

_LAYER = re.compile(r"^model\.layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class SliceConfig(Value):
    model: str = option(help="the model")
    layers: str = option("", "the layers to keep, counted from 0, such as 0-11,20-23")
    out: str = option("", "the folder to write")
    dtype: str = option("", "float32, float16 or bfloat16 (default: that of the model)", choices=(*DTYPES,))
    replace: bool = option(False, "replace --out if it exists")
    json: bool = option(False, "print JSON")


def run(config: SliceConfig) -> Written:
    """Writes the model with the layers kept. UsageError for layers it lacks or a config that cannot say the result."""
    if not config.out or not config.layers:
        raise UsageError("what to keep, and where to write it?", cure="--layers 0-11,20-23 --out DIR")
    path = Path(config.out).expanduser()
    if path.exists() and not config.replace:
        raise StorageError("already exists", where=str(path), cure="choose another --out, or --replace")
    files = open_model(config.model)
    if files.arch.kind == "encoder-decoder":
        raise UsageError("only models of one stack of layers can be sliced", where=files.name)
    kept = parse_layers(config.layers, files.arch.layers)
    arch = with_layers(files.arch, kept)
    names = list(arch.tensor_shapes())
    progress = iter(events.track(names, "slice", unit="tensors"))

    def make(name: str) -> np.ndarray:
        next(progress, None)
        return files.weights.float32(_LAYER.sub(lambda m: f"model.layers.{kept[int(m[1])]}.", name))

    dtype = config.dtype or native_dtype(files)
    lineage = {
        "method": "slice", "parent": parent(files), "recipe": {"layers": config.layers, "of": files.arch.layers},
        "data": data_of(files.lineage), "licence": parent(files)["licence"],
    }  # fmt: skip
    save_model(
        path, arch, LazyTensors(names, make), files.tokenizer, files.template, generation=files.generation,
        lineage=lineage, dtype=dtype, replace=config.replace,
    )  # fmt: skip
    return written(path, dtype)


def parse_layers(text: str, count: int) -> tuple[int, ...]:
    """The layers that "0-11,20-23" names, in rising order. UsageError for what is unsound or beyond `count`."""
    kept: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part)
        if not found:
            raise UsageError(f"no layers: {part!r}", cure="such as 0-11,20-23")
        first, last = int(found[1]), int(found[2] or found[1])
        if last >= count or first > last:
            raise UsageError(f"no layers {part.strip()}", where=f"the model has 0-{count - 1}")
        kept += range(first, last + 1)
    if any(a >= b for a, b in itertools.pairwise(kept)):
        raise UsageError("layers are kept in their order, each once", where=text)
    return tuple(kept)


def with_layers(arch: Architecture, kept: Sequence[int]) -> Architecture:
    """The architecture with these layers of it, its lists of layers numbered anew."""
    again = {old: new for new, old in enumerate(kept)}

    def renumbered(layers: Sequence[int]) -> tuple[int, ...]:
        return tuple(again[i] for i in layers if i in again)

    out = dataclasses.replace(
        arch, layers=len(kept), windows=tuple(arch.windows[i] for i in kept) if arch.windows else (),
        unrotated=renumbered(arch.unrotated), dense_layers=renumbered(arch.dense_layers),
    )  # fmt: skip
    try:
        said = families.from_hf(families.to_hf(out))
    except FormatError as error:
        raise UsageError(f"the {arch.family} config cannot say this: {error.what}") from None
    if (said.windows, said.unrotated, said.dense_layers) != (out.windows, out.unrotated, out.dense_layers):
        raise UsageError(
            f"a {arch.family} config cannot say which of these layers are of which kind",
            cure="keep whole periods of layers from the beginning on",
        )
    return out
