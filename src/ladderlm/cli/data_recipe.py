"""`ladderlm data recipe NAME`: collect, clean, dedup and mix in one go, each step's file and report kept beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.cli.data_prep import CleanConfig, DedupConfig, run_clean, run_dedup
from ladderlm.config import option
from ladderlm.data.collect import run_collect
from ladderlm.data.mix import Part, byte_size, mix_stage
from ladderlm.data.stages import StageReport, run_stage
from ladderlm.errors import UsageError


@dataclass(frozen=True, slots=True)
class RecipeConfig:
    name: str = option(help="book-wiki-python", choices=("book-wiki-python",))
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
    # a book has more words than a web page may; sources are mended only
    steps: tuple[tuple[str, tuple[str, ...], float, dict[str, Any]], ...] = (
        ("books", config.books, shares[0], {"set": ("gopher-words-most=5000000",)}),
        ("wiki", config.wiki, shares[1], {}),
        ("python", config.python, shares[2], {"rules": "none"}),
    )
    parts = []
    for name, sources, share, rules in steps:
        if not sources or not share:
            continue
        raw, clean, once = (str(folder / f"{name}.{step}.jsonl") for step in ("collected", "clean", "once"))
        run_collect(sources, raw)
        run_clean(CleanConfig(inputs=(raw,), out=clean, **rules))
        run_dedup(DedupConfig(inputs=(clean,), out=once))
        parts.append(Part.parse(f"{once}={share:g}" if config.weights else once))
    details: dict[str, Any] = {"unit": "bytes"}
    size: Callable[..., int] = byte_size
    stage = mix_stage(parts, budget=int(config.budget), size=size, temperature=1.0, most_epochs=4.0, seed=config.seed,
                      details=details)  # fmt: skip
    settings = {"weights": shares, "budget": config.budget, "seed": config.seed}
    return run_stage("mix", stage, [p.path for p in parts], config.out, settings, details=details)


def recipe_(argv: list[str]) -> int:
    config = parse("data recipe", RecipeConfig, argv, description="Make a corpus by a recipe.")
    with show.progress():
        report = run_recipe(config)
    show.stage(report, config.out, config.json)
    return 0
