"""`ladderlm models list|pull|show|rm|recommend`; the verbs that make, compare and share models are in making.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ladderlm.cli import making, show
from ladderlm.cli.args import parse
from ladderlm.config import option
from ladderlm.errors import UsageError, nearest

USAGE = """usage: ladderlm models list | pull NAME | show REF | rm NAME | recommend TASK  [--json]
       ladderlm models diff A B | merge A B [C..] --out DIR | slice MODEL --layers 0-11 --out DIR
       ladderlm models pack MODEL --out FILE | unpack FILE --out DIR | push MODEL hub:org/name

  list       what is here and what can be fetched
  pull       fetch a model of the catalogue
  show       what a model holds and needs: parameters and precision by kind, memory by context, licences, lineage
  rm         delete a model of the workspace, or a fetched one
  recommend  models for a task: chat, classify, finetune, learn
  diff       in what two models, or two forms of one, differ; exit code 1 if they do
  merge      several models into one (linear, slerp, task, ties), or base+adapter into one folder
  slice      a model with some of its layers
  pack       a model as one file to share, with card and hashes; unpack is the way back
  push       upload a model to the Hugging Face hub"""


@dataclass(frozen=True, slots=True)
class ListConfig:
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class NamedConfig:
    name: str = option(help="the model: a name, folder, .gguf file or other reference")
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class RecommendConfig:
    task: str = option(help="what it is for: chat, classify, finetune, learn")
    json: bool = option(False, "print JSON")


def main(argv: list[str]) -> int:
    """Runs the verb that `argv` begins with; without one, list."""
    verbs: dict[str, Callable[[list[str]], int]] = {
        "list": list_, "pull": pull, "show": show_, "rm": remove, "recommend": recommend, "diff": making.diff,
        "merge": making.merge, "slice": making.slice_, "pack": making.pack, "unpack": making.unpack,
        "push": making.push,
    }  # fmt: skip
    if argv and argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    verb, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("list", argv)
    if verb not in verbs:
        raise UsageError(f"unknown: models {verb}", cure=nearest(verb, verbs))
    return verbs[verb](rest)


def list_(argv: list[str]) -> int:
    from ladderlm.models.catalogue import list_models

    config = parse("models list", ListConfig, argv, description="What is here and what can be fetched.")
    return _entries(list_models(), config.json)


def recommend(argv: list[str]) -> int:
    from ladderlm.models import catalogue

    config = parse("models recommend", RecommendConfig, argv, description="Models for a task.")
    return _entries(catalogue.recommend(config.task), config.json)


def _entries(entries: list[Any], json: bool) -> int:
    if json:
        show.emit_json([e.to_dict() for e in entries])
        return 0
    rows = [
        (e.name, e.origin, "yes" if e.here else "no", size(e.bytes), count(e.parameters), e.licence, e.about)
        for e in entries
    ]
    show.table(rows, ("name", "from", "here", "size", "parameters", "licence", "about"))
    return 0


def pull(argv: list[str]) -> int:
    from ladderlm.models.fetch import pull as fetch

    config = parse("models pull", NamedConfig, argv, description="Fetch a model of the catalogue.")
    with show.progress():
        if config.name.startswith("hub:"):
            from ladderlm.models.hub import download

            path = download(config.name.removeprefix("hub:"))
        else:
            path = fetch(config.name)
    show.emit_json({"name": config.name, "path": str(path)}) if config.json else print(path)
    return 0


def show_(argv: list[str]) -> int:
    from ladderlm.models.catalogue import describe

    config = parse("models show", NamedConfig, argv, description="What a model holds and needs.")
    with show.progress():
        found = describe(config.name)
    if config.json:
        show.emit_json(found)
        return 0
    show.table([(key.replace("_", " "), readable(key, value)) for key, value in found.items()], ("what", config.name))
    return 0


def remove(argv: list[str]) -> int:
    from ladderlm.models import catalogue

    config = parse("models rm", NamedConfig, argv, description="Delete a model.")
    path = catalogue.remove(config.name)
    show.emit_json({"removed": str(path)}) if config.json else print(f"removed {path}")
    return 0


def readable(key: str, value: Any) -> str:
    """A value of `describe` for people."""
    if key in ("precision", "parameters_by_kind"):
        return ", ".join(f"{kind} {count(n)}" for kind, n in value.items())
    if key == "precision_by_kind":
        return "; ".join(f"{kind}: {readable('precision', forms)}" for kind, forms in value.items())
    if key == "memory_bytes" and isinstance(value, dict):
        return ", ".join(f"{size(n)} at {context}" for context, n in value.items())
    if key == "made_from":
        return " <- ".join(value) or "nothing told"
    if key.endswith(("bytes", "bytes_per_token")):
        return size(value)
    if key == "expected_tokens_per_second":
        return f"about {value:.0f} (estimate)"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "; ".join(f"{k}: {readable(k, v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(readable("", v) for v in value) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def size(count: int) -> str:
    """Bytes as people say them: 98.4 MB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def count(number: int | None) -> str:
    """A number of parameters: 134.5 M."""
    if number is None:
        return ""
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M" if number >= 1e5 else str(number)
