"""`ladderlm models diff|merge|slice|pack|unpack|push`: models made from models, compared and shared."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.config import option
from ladderlm.errors import UsageError


@dataclass(frozen=True, slots=True)
class PushConfig:
    model: str = option(help="the model: a folder, a .gguf file, an adapter folder, or a name")
    repo: str = option(help="where to: hub:org/name")
    private: bool = option(False, "make the repository private if it is not there yet")
    message: str = option("Upload with LadderLM", "what the commit says")
    yes: bool = option(False, "do not ask")
    json: bool = option(False, "print JSON")


def diff(argv: list[str]) -> int:
    """0 where both are one model, 1 where they differ."""
    from ladderlm.convert.diff import DiffConfig, run

    config = parse("models diff", DiffConfig, argv, description="In what two models differ; exit code 1 if they do.")
    with show.progress():
        found = run(config)
    if config.json:
        show.emit_json(found.to_dict())
        return 0 if found.same else 1
    for name, one, two in found.config:
        print(f"config {name}: {one!r} -> {two!r}")
    for what, names in (("missing", found.missing), ("extra", found.extra)):
        for name in names:
            print(f"{what} tensor {name}")
    for name, before, after in found.shapes:
        print(f"shape of {name}: {before} -> {after}")
    if found.tensors:
        rows = [(t.name, f"{t.rms:.2e}", f"{t.max:.2e}") for t in found.tensors[:20]]
        title = f"{len(found.tensors)} of {found.compared} tensors differ; relative to the first model"
        show.table(rows, ("tensor", "rms", "max"), title)
        if len(found.tensors) > len(rows):
            print(f"and {len(found.tensors) - len(rows)} more that differ less; --json has all")
    for said in found.tokenizer:
        print(f"tokenizer: {said}")
    if found.template:
        print(found.template)
    for what, entries in (("generation", found.generation), ("lineage", found.lineage)):
        for name, one, two in entries:
            print(f"{what} {name}: {_short(one)} -> {_short(two)}")
    print("the same model" if found.same else "they differ")
    return 0 if found.same else 1


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def merge(argv: list[str]) -> int:
    from ladderlm.convert.merge import MergeConfig, run

    return _made("merge", MergeConfig, run, argv, "Several models into one; or base+adapter into one folder.")


def slice_(argv: list[str]) -> int:
    from ladderlm.convert.slice import SliceConfig, run

    return _made("slice", SliceConfig, run, argv, "A model with some of its layers.")


def pack(argv: list[str]) -> int:
    from ladderlm.convert.pack import PackConfig, pack

    return _made("pack", PackConfig, pack, argv, "A model as one file, with its card and the hash of every file.")


def unpack(argv: list[str]) -> int:
    from ladderlm.convert.pack import UnpackConfig, unpack

    return _made("unpack", UnpackConfig, unpack, argv, "A packed model as a folder again, every hash checked.")


def _made(verb: str, cls: type[Any], run: Callable[[Any], Any], argv: list[str], description: str) -> int:
    config = parse(f"models {verb}", cls, argv, description=description)
    with show.progress():
        result = run(config)
    if config.json:
        show.emit_json(result.to_dict())
        return 0
    for flag in getattr(result, "licence_flags", ()):
        print(f"licence: {flag}", file=sys.stderr)
    print(getattr(result, "model", None) or result.path)
    return 0


def push(argv: list[str]) -> int:
    """Shows the card and what the licences ask, asks, and uploads."""
    from ladderlm.convert.pack import card_of, shared_files
    from ladderlm.models import hub, open_model
    from ladderlm.models.card import licence_flags

    config = parse("models push", PushConfig, argv, description="Upload a model to the Hugging Face hub (extra: hub).")
    if not config.repo.startswith("hub:"):
        raise UsageError("where to?", where=config.repo, cure="hub:org/name")
    with show.progress():
        files = open_model(config.model)
        shared = shared_files(files)
    flags = licence_flags(files.lineage)
    for line in (card_of(shared), *(f"licence: {flag}" for flag in flags), "", "files: " + ", ".join(sorted(shared))):
        print(line, file=sys.stderr)
    where = f"{config.repo} ({'private' if config.private else 'public'})"
    if not config.yes:
        if not sys.stdin.isatty():
            raise UsageError("nobody is there to confirm", where=where, cure="--yes")
        print(f"Upload to {where}? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("nothing was uploaded", file=sys.stderr)
            return 1
    with show.progress():
        address = hub.push(config.repo.removeprefix("hub:"), shared, private=config.private, message=config.message)
    found = {"repo": config.repo, "commit": address, "files": sorted(shared), "licence_flags": flags}
    show.emit_json(found) if config.json else print(address)
    return 0
