"""What the recipes share: sources gathered, cleaned and without duplicates, each step a file with its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ladderlm.data.clean import clean
from ladderlm.data.clean_rules import DEFAULT, choose
from ladderlm.data.collect import run_collect
from ladderlm.data.dedup import dedup
from ladderlm.data.stages import run_stage

BOOKS = {"gopher-words-most": 5_000_000.0}  # a book has more words than a web page may


def refine(
    name: str,
    sources: Sequence[str],
    folder: Path,
    *,
    licence: str = "unknown",
    rules: Sequence[str] = DEFAULT,
    without: Sequence[str] = (),
    values: Mapping[str, float] | None = None,
) -> Path:
    """FOLDER/NAME.once.jsonl: what `data collect`, `data clean` and `data dedup` make of the sources, one by one.

    Steps whose inputs did not change are not done again. `rules`, `without` and `values` are those of
    clean_rules.choose.
    """
    raw, mended, once = (folder / f"{name}.{step}.jsonl" for step in ("collected", "clean", "once"))
    chosen, mends, cuts = choose(rules, without, values), Counter[str](), Counter[str]()
    run_collect(sources, raw, licence=licence)
    run_stage("clean", clean(chosen, changed=mends), (raw,), mended, {"rules": chosen}, changed=mends)
    run_stage("dedup", dedup(changed=cuts), (mended,), once, {"level": "document"}, changed=cuts)
    return once
