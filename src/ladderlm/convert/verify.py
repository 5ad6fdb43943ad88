"""Are two forms of a model (folder, base+adapter, GGUF, quantised, served) the same model?

A form that renders another template, ends elsewhere, or holds other weights than its format explains fails, with the
reason. What cannot be compared is said to be skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ladderlm.config import option
from ladderlm.convert.compare import facts, logits, text
from ladderlm.convert.compare.verdict import Check, Verdict, failed, passed, skipped
from ladderlm.convert.compare.weights import Source, weigh
from ladderlm.errors import FormatError, LadderError, NotFound, UsageError
from ladderlm.models.folder import ModelFiles
from ladderlm.models.gguf import read_gguf
from ladderlm.models.reference import locate, open_model
from ladderlm.models.safetensors import read_safetensors

PRECISIONS = ("same", "float16", "bfloat16", "8bit", "4bit")


@dataclass(frozen=True, slots=True)
class VerifyConfig:
    """Two forms of a model."""

    a: str = option(help="a model: a folder, .gguf file, base+adapter, or other reference")
    b: str = option(help="another form of it, or the URL of a server: http://host:port#model")
    precision: str = option("same", "what a server computes in, where not as A's file says", choices=PRECISIONS)
    key_env: str = option("OPENAI_API_KEY", "environment variable that holds a server's key")
    json: bool = option(False, "print the verdict as JSON")


def run(config: VerifyConfig) -> Verdict:
    """What `ladderlm verify` does."""
    return verify(config.a, config.b, precision=config.precision, key_env=config.key_env)


def verify(a: str, b: str, *, precision: str = "same", key_env: str = "OPENAI_API_KEY") -> Verdict:
    """Compares two forms of a model, named as everywhere; one of them may be a URL.

    `precision` is what a server computes in, `key_env` where its key is. Raises for a reference that names nothing;
    a file that is there and cannot be read is a verdict.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}", cure="one of " + ", ".join(PRECISIONS))
    if all(_remote(ref) or is_bundle(ref) for ref in (a, b)):
        raise UsageError("two servers or bundles cannot be compared", cure="give the model's files for one of them")
    if _remote(a) or is_bundle(a):
        a, b = b, a
    opened = []
    for letter, ref in (("A", a), ("B", b)):
        if _remote(ref) or (letter == "B" and is_bundle(ref)):
            continue
        found = _open(ref, letter)
        if isinstance(found, Check):
            return Verdict.of(a, b, [found])
        opened.append(found)
    if is_bundle(b):
        return Verdict.of(a, b, [_bundle(opened[0], Path(b).expanduser())])
    if _remote(b):
        from ladderlm.convert.compare.server import compare

        return Verdict.of(a, b, compare(opened[0], b, precision=precision, key_env=key_env))
    return Verdict.of(a, b, _compare(*opened))


def _remote(ref: str) -> bool:
    return ref.startswith(("http://", "https://"))


def _open(ref: str, letter: str) -> ModelFiles | Check:
    """The model, or the Check that says why it cannot be read."""
    try:
        return open_model(ref)
    except (FormatError, NotFound) as error:
        if isinstance(error, NotFound) and ("+" in ref or locate(ref) is None):
            raise
        where = f" ({error.where})" if error.where else ""
        cure = error.cure or "write or fetch it again"
        return failed("files", f"{letter} cannot be read: {error.what}{where}", cure)


def is_bundle(ref: str) -> bool:
    """Whether it names a folder with run.py and its parameters."""
    return not _remote(ref) and (Path(ref).expanduser() / "run.py").is_file()


def _bundle(a: ModelFiles, folder: Path) -> Check:
    """Runs the bundle: its ids, logits and greedy tokens against A's weights rounded to the bundle's precision."""
    from ladderlm.convert import bundle, runtime

    again = "write it again: ladderlm export MODEL --to bundle"
    if (folder / "run.py").read_bytes() != (Path(runtime.__path__[0]) / "run.py").read_bytes():
        return failed("bundle", "its run.py is not the program that this LadderLM writes, and is not run", again)
    try:
        held = {tensor.dtype for tensor in read_safetensors(folder / "model.safetensors").values()}
        precision = "int8" if "I8" in held else "float16" if "F16" in held else "float32"
        bundle.check(folder, a, precision)
    except FormatError as error:
        return failed("bundle", error.what, error.cure or again)
    words = f"reads texts and conversations as the same ids; logits and greedy tokens of A's weights in {precision}"
    return passed("bundle", words)


def _compare(a: ModelFiles, b: ModelFiles) -> list[Check]:
    checks = [
        facts.architectures(a.arch, b.arch),
        text.tokenizers(a.tokenizer, b.tokenizer),
        text.specials(a, b),
        text.templates(a, b),
    ]
    source: Source = "A"
    bound = 0.0

    def weights() -> Check:
        nonlocal source
        check, source = weigh(a, b, calibrated=calibrated(a) or calibrated(b))
        return check

    def forward() -> Check:
        nonlocal bound
        check, bound = logits.logits(a, b, source)
        return check

    steps: list[tuple[str, Callable[[], Check]]] = [
        ("weights", weights),
        ("logits", forward),
        ("greedy", lambda: logits.greedy(a, b, bound)),
    ]
    for name, step in steps:
        if name == "greedy" and any(check.status == "failed" for check in checks):
            checks.append(skipped(name, "what differs is told above"))
            break
        try:
            checks.append(step())
        except FormatError as error:  # found only when the data are read
            checks.append(failed(name, f"cannot be computed: {error}", error.cure or "write the file again"))
        except LadderError as error:
            checks.append(skipped(name, str(error)))
    return checks


def calibrated(files: ModelFiles) -> bool:
    """Whether its weights were rounded so that layers' outputs, not the weights themselves, change least."""
    note = files.lineage.get("quantised")
    if isinstance(note, dict) and note.get("method") == "gptq":
        return True
    return files.path.suffix == ".gguf" and any(k.startswith("quantize.imatrix") for k in read_gguf(files.path).meta)
