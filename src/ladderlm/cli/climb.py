"""`ladderlm climb FILE`: the lowest rung that suffices."""

from __future__ import annotations

from ladderlm import store
from ladderlm.apps.climb.run import COLUMNS, ClimbConfig, rows, run
from ladderlm.cli import show
from ladderlm.cli.args import parse


def main(argv: list[str]) -> int:
    config = parse("climb", ClimbConfig, argv, description="Try every rung on a labelled file; which one suffices?")
    with show.progress():
        climbed = run(config)
    if config.json:
        show.emit_json(climbed.to_dict())
        return 0
    show.table(rows(climbed), COLUMNS, title=f"{climbed.metric} on {climbed.items} records, 95 % intervals")
    print(climbed.sentence)
    print(f"page: {store.open_run(climbed.run).report}")
    return 0
