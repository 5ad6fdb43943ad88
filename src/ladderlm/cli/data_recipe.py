"""`ladderlm data recipe NAME`: from the sources to a corpus, or to a model, in one go; each step's file is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.config import option
from ladderlm.data.mix import Part, byte_size, mix_stage
from ladderlm.data.recipes import BOOKS, refine
from ladderlm.data.stages import StageReport, run_stage
from ladderlm.errors import UsageError
from ladderlm.train.settings import DomainConfig

_DOMAIN = "The recipe domain has options of its own: ladderlm data recipe domain --help."


@dataclass(frozen=True, slots=True)
class RecipeConfig:
    name: str = option(help="book-wiki-python, or domain", choices=("book-wiki-python",))
    books: tuple[str, ...] = option((), "books: a folder, file or web address, as data collect takes it (repeatable)")
    wiki: tuple[str, ...] = option((), "an encyclopedia: the path or address of a Wikipedia dump (repeatable)")
    python: tuple[str, ...] = option(("python:sources",), "Python sources: a folder, or those of this machine")
    weights: str = option("", "shares of books, encyclopedia and Python, as 2,1,1 (default: all there is, once)")
    budget: float = option(0.0, "bytes of text in all; 0: as much as no part repeats")
    seed: int = option(0, "another seed, another order")
    out: str = option("corpus.jsonl", "where to write the records", short="-o")
    json: bool = option(False, "print JSON")


def run_recipe(config: RecipeConfig) -> StageReport:
    """Books, encyclopedia and Python: each collected, cleaned by rules that suit it, all deduplicated and mixed.

    The steps lie in OUT.parts; those whose inputs did not change are not done again. Raises UsageError without parts.
    """
    try:
        shares = [float(share) for share in (config.weights or "1,1,1").split(",")]
    except ValueError:
        shares = []
    if len(shares) != 3 or min(shares) < 0:
        raise UsageError("three weights are needed, none negative", where=config.weights, cure="--weights 2,1,1")
    if not (config.books or config.wiki):
        raise UsageError("no books and no encyclopedia", where=config.name, cure="--books FOLDER --wiki DUMP.xml.bz2")
    folder = Path(f"{config.out}.parts")
    steps: tuple[tuple[str, tuple[str, ...], float, dict[str, Any]], ...] = (
        ("books", config.books, shares[0], {"values": BOOKS}),
        ("wiki", config.wiki, shares[1], {}),
        ("python", config.python, shares[2], {"rules": ["none"]}),  # sources are mended only
    )
    parts = []
    for name, sources, share, rules in steps:
        if sources and share:
            once = refine(name, sources, folder, **rules)
            parts.append(Part.parse(f"{once}={share:g}" if config.weights else str(once)))
    details: dict[str, Any] = {"unit": "bytes"}
    size: Callable[..., int] = byte_size
    stage = mix_stage(parts, budget=int(config.budget), size=size, temperature=1.0, most_epochs=4.0, seed=config.seed,
                      details=details)  # fmt: skip
    settings = {"weights": shares, "budget": config.budget, "seed": config.seed}
    return run_stage("mix", stage, [p.path for p in parts], config.out, settings, details=details)


def recipe_(argv: list[str]) -> int:
    if argv[:1] == ["domain"]:
        return _domain(argv[1:])
    config = parse("data recipe", RecipeConfig, argv, description="Make a corpus by a recipe. " + _DOMAIN)
    with show.progress():
        report = run_recipe(config)
    show.stage(report, config.out, config.json)
    return 0


def _domain(argv: list[str]) -> int:
    from ladderlm.cli.train import train

    told = "Go on from a model with texts of one's own field; tells what it gained and forgot."
    config = parse("data recipe domain", DomainConfig, argv, section="domain", description=told)
    return train("domain", config)
