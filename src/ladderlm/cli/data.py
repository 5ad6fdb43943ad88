"""`ladderlm data VERB ...`: one table of verbs; a verb's code is imported only when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

from ladderlm.errors import nearest

# In the order of work: verb -> (module:function, what it does).
VERBS: dict[str, tuple[str, str]] = {
    "collect": ("ladderlm.cli.data_collect:collect_", "texts from files, folders, or the Python library"),
    "clean": ("ladderlm.cli.data_prep:clean_", "texts mended; what breaks a rule left out"),
    "dedup": ("ladderlm.cli.data_prep:dedup_", "exact and near duplicates left out"),
    "pii": ("ladderlm.cli.data_look:pii_", "personal data and secrets: find, mask or drop"),
    "licences": ("ladderlm.cli.data_mix:licences_", "what the licences of records allow, and keep by it"),
    "decontaminate": ("ladderlm.cli.data_mix:decontaminate_", "keep benchmarks out of training text"),
    "balance": ("ladderlm.cli.data_mix:balance_", "make a measured skew between groups smaller"),
    "augment": ("ladderlm.cli.data_mix:augment_", "variants: typos, keyboard slips, case, blanks, paraphrases"),
    "mix": ("ladderlm.cli.data_mix:mix_", "several datasets into one: weights, epochs, budgets, shuffled"),
    "shard": ("ladderlm.cli.data_shard:shard_", "tokenised, memory-mapped, ready for pretraining"),
    "recipe": (
        "ladderlm.cli.data_recipe:recipe_",
        "from sources to a corpus in one go, or to a model of one's own field",
    ),
    "split": ("ladderlm.cli.data_mix:split_", "hold a part out"),
    "bias": ("ladderlm.cli.data_look:bias_", "how often groups of people are spoken of, and as what"),
    "stats": ("ladderlm.cli.data_look:stats_", "what is in a dataset"),
}


def usage() -> str:
    verbs = "\n".join(f"  {name:<13} {text}" for name, (_, text) in VERBS.items())
    return f"usage: ladderlm data VERB ...\n\n{verbs}\n\nladderlm data VERB --help tells a verb's options."


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] not in VERBS:
        print(f"ladderlm data: unknown verb {argv[0]!r}: {nearest(argv[0], VERBS)}", file=sys.stderr)
        return 2
    module, function = VERBS[argv[0]][0].split(":")
    verb: Callable[[list[str]], int] = getattr(importlib.import_module(module), function)
    return verb(argv[1:])
