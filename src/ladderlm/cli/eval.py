"""`ladderlm eval MODEL --data FILE`: what the data's kind allows to measure, with 95 % intervals."""

from __future__ import annotations

from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.evals.report import cell
from ladderlm.evals.run import EvalConfig, metric_rows, run


def main(argv: list[str]) -> int:
    config = parse("eval", EvalConfig, argv, description="Measure a model on a dataset; the records' kind decides how.")
    with show.progress():
        result = run(config)
    if config.json:
        data = {**result.to_dict(), "metrics": {k: v.to_dict() for k, v in result.metrics.items()}}
        data.pop("each", None)
        show.emit_json(data)
        return 0
    rows = [tuple(map(cell, row)) for row in metric_rows(result)]
    title = f"{result.model} on {result.data}: {result.items} {result.kind} records, 95 % intervals"
    show.table(rows, ("metric", "value", "low", "high"), title=title)
    if result.kind == "class":
        labels = [(s["label"], *map(cell, (s["precision"], s["recall"], s["f1"], s["support"]))) for s in
                  result.details["labels"]]  # fmt: skip
        show.table(labels, ("label", "precision", "recall", "F1", "records"))
    if result.helped:
        print(result.helped)
    return 0
