"""`ladderlm prompt optimise FILE`: the prompt that a model answers best, found by its score."""

from __future__ import annotations

import sys

from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.errors import nearest

USAGE = (
    "usage: ladderlm prompt optimise FILE [-m MODEL] [-o NAME]\n\nladderlm prompt optimise --help tells its options."
)


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if argv[0] not in ("optimise", "optimize"):
        print(f"ladderlm prompt: unknown verb {argv[0]!r}: {nearest(argv[0], ['optimise'])}", file=sys.stderr)
        return 2
    from ladderlm.evals.optimise import OptimiseConfig, run

    config = parse("prompt optimise", OptimiseConfig, argv[1:], section="optimise", description="Search a prompt.")
    with show.progress():
        found = run(config)
    if config.json:
        show.emit_json(found.to_dict())
        return 0
    show.table([(p, f"{s:.3f}", str(n)) for p, s, n in found.tried[:10]], ("prompt", "score", "items"))
    print(found.helped)
    if found.prompt.system:
        print(f"\nSystem: {found.prompt.system}")
    print(f"\n{found.prompt.template}")
    for shot in found.prompt.shots:
        print(f"\n  {shot.text[:200]}\n  -> {shot.answer[:100]}")
    if found.saved:
        print(f"\nsaved as {found.saved}")
    return 0
