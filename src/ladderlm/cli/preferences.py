"""`ladderlm preferences make|check`: pairs for alignment, and what they are worth."""

from __future__ import annotations

import sys

from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.errors import nearest

USAGE = """usage: ladderlm preferences make|check FILE

  make   pairs from ratings, a judge, principles, best and worst of n, a strong against a weak model
  check  duplicates, contradictions, length, agreement of raters and of a judge

ladderlm preferences make --help tells its options."""


def main(argv: list[str]) -> int:
    verbs = {"make": make_, "check": check_}
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if argv[0] not in verbs:
        print(f"ladderlm preferences: unknown verb {argv[0]!r}: {nearest(argv[0], verbs)}", file=sys.stderr)
        return 2
    return verbs[argv[0]](argv[1:])


def make_(argv: list[str]) -> int:
    from ladderlm.apps.preferences import MakeConfig, make

    config = parse("preferences make", MakeConfig, argv, description="Make preference pairs.")
    with show.progress():
        found = make(config)
    if config.json:
        show.emit_json(found.to_dict())
        return 0
    print(f"{found.pairs:,} pairs from {found.prompts:,} prompts in {found.path}")
    for why, count in found.without.items():
        print(f"  {count:,} prompts {why}")
    if found.consistent is not None:
        print(
            f"  the judge said the same in both orders of {found.consistent:.0%}; lean to the first {found.lean:+.2f}"
        )
    return 0


def check_(argv: list[str]) -> int:
    from ladderlm.apps.preferences import CheckConfig, check, check_rows

    config = parse("preferences check", CheckConfig, argv, description="What preference pairs are worth.")
    with show.progress():
        found = check(config)
    if config.json:
        show.emit_json(found.to_dict())
        return 0
    show.table(check_rows(found), ("what", "value"), title=f"{found.pairs:,} pairs on {found.prompts:,} prompts")
    for text in found.warnings:
        print(f"- {text}")
    return 0
