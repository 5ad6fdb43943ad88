"""One verb out of LadderLM's folder into other forms, each verified against its source before it appears."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ladderlm import events, store
from ladderlm.config import option
from ladderlm.convert.compare.verdict import Verdict
from ladderlm.convert.cost import Cost, cost, load_texts
from ladderlm.convert.quantise import EMBEDDINGS, QuantiseConfig
from ladderlm.convert.quantise import run as quantise
from ladderlm.convert.verify import verify
from ladderlm.errors import FormatError, StorageError, UsageError, nearest
from ladderlm.models.folder import LazyTensors, ModelFiles, save_model
from ladderlm.models.reference import open_model
from ladderlm.types import FloatArray, Value

# The forms, with the precisions each is written in; the first is the default.
FORMS: dict[str, tuple[str, ...]] = {
    "folder": ("float16", "float32", "bfloat16"),
    "gguf": ("Q8_0", "F32", "F16", "BF16", "Q4_0", "Q4_K"),
    "bundle": ("float16", "float32", "int8"),
    "int8": ("rtn", "gptq"),
    "int4": ("gptq", "rtn"),
}


@dataclass(frozen=True, slots=True)
class ExportConfig(Value):
    """What to write as what, and where to."""

    model: str = option(help="a model: a name, folder, .gguf file, base+adapter (which is merged) or other reference")
    dest: str = option(help="the folder or .gguf file to write")
    to: str = option("folder", "the form of the result", choices=tuple(FORMS))
    precision: str = option("", "; ".join(f"{form}: {', '.join(known)}" for form, known in FORMS.items()))
    group: int = option(32, "int4, int8: weights that share a scale: 32, 64 or 128")
    embeddings: str = option("int8", "int4, int8: int8, or float16 so that transformers reads them", choices=EMBEDDINGS)
    calibrate: str = option("", "int4, int8 by gptq: text to calibrate on; else the model writes some itself")
    measure: str = option("", "int4, int8: text to measure perplexity on; else Python's documentation strings")
    force: bool = option(False, "replace what is at the destination")
    json: bool = option(False, "print the result as JSON")

    def __post_init__(self) -> None:
        if self.to not in FORMS:
            raise UsageError(f"unknown form {self.to!r}", where="to", cure=nearest(self.to, FORMS))
        if self.precision and self.precision not in FORMS[self.to]:
            cure = "one of " + ", ".join(FORMS[self.to])
            raise UsageError(f"{self.to} is not written as {self.precision!r}", where="precision", cure=cure)
        if self.to not in ("int4", "int8") and (
            self.calibrate or self.measure or self.group != 32 or self.embeddings != "int8"
        ):
            raise UsageError("group, embeddings, calibrate and measure are for int4 and int8", where=f"to={self.to}")


@dataclass(frozen=True, slots=True)
class Exported(Value):
    """What was written: `path`, its size in bytes, the verdict that it is the same model, what int4 or int8 cost."""

    path: str
    to: str
    precision: str
    bytes: int
    verdict: Verdict
    cost: Cost | None = None


def run(config: ExportConfig) -> Exported:
    """Writes and verifies `config.model`.

    FormatError when the result is not the same model: it is deleted then, and what was at the destination is kept.
    StorageError when something is there and not `force`.
    """
    dest = Path(config.dest).expanduser()
    precision = config.precision or FORMS[config.to][0]
    if config.to == "gguf" and dest.suffix != ".gguf":
        raise UsageError("a GGUF file ends in .gguf", where=str(dest), cure=f"write to {dest.name}.gguf")
    files = open_model(config.model)
    with _staged(dest, replace=config.force) as place:
        _write(files, config, precision, place)
        verdict = verify(config.model, str(place))
        if not verdict.same:
            why = verdict.words.removeprefix("NOT the same model ")
            raise FormatError(f"the result is not the same model {why}", where=str(dest), cure="it was deleted")
        found: Cost | None = None
        if config.to in ("int4", "int8"):
            found = cost(files, open_model(str(place)), load_texts(config.measure))
        size = sum(f.stat().st_size for f in place.rglob("*")) if place.is_dir() else place.stat().st_size
    events.emit("export", f"{size / 1e6:,.1f} MB, verified: {dest}")
    verdict = Verdict(verdict.a, str(dest), verdict.same, verdict.checks)
    return Exported(str(dest), config.to, precision, size, verdict, found)


def _write(files: ModelFiles, config: ExportConfig, precision: str, place: Path) -> None:
    match config.to:
        case "folder":
            _folder(files, place, precision)
        case "gguf":
            from ladderlm.convert import gguf

            gguf.write(files, place, precision)
        case "bundle":
            from ladderlm.convert import bundle

            bundle.write(files, place, precision)
        case _:
            bits = 8 if config.to == "int8" else 4
            quantise(QuantiseConfig(
                config.model, str(place), bits=bits, method=precision, group=config.group,
                embeddings=config.embeddings, calibrate=config.calibrate,
            ))  # fmt: skip


def _folder(files: ModelFiles, place: Path, precision: str) -> None:
    """A model folder: of a GGUF the weights as they are dequantised, of base+adapter the sum of both."""
    names = list(files.arch.tensor_shapes())
    progress = iter(events.track(names, "export", unit="tensors"))

    def make(name: str) -> FloatArray:
        next(progress, None)
        return files.weights.float32(name)

    lineage = {**files.lineage, "exported": {"from": files.name, "source": files.hash, "precision": precision}}
    save_model(
        place, files.arch, LazyTensors(names, make), files.tokenizer, files.template, generation=files.generation,
        lineage=lineage, dtype=precision,
    )  # fmt: skip
    for _ in progress:  # the end of the bar
        pass


@contextlib.contextmanager
def _staged(dest: Path, *, replace: bool) -> Iterator[Path]:
    """A path of the same name on the same disk, which becomes `dest` only when the block ends without an error."""
    if dest.exists() and not replace:
        raise StorageError("already exists", where=str(dest), cure="choose another place, or --force")
    store.make_dir(dest.parent)
    with store.storage_errors(dest):
        above = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", suffix=".part", dir=dest.parent))
        try:
            yield above / dest.name
            old = dest.with_name(f".{dest.name}.{secrets.token_hex(4)}.old")
            if dest.exists():
                os.rename(dest, old)
            os.rename(above / dest.name, dest)
            shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)
        finally:
            shutil.rmtree(above, ignore_errors=True)
