"""What a tuning run learns from: rows read, split, made into examples; what was wrong with them; how long they are."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ladderlm import events, store
from ladderlm.data.records import plan_split
from ladderlm.data.tables import Bad, Row, first_of, parse_columns, read_table, repeated, settle
from ladderlm.errors import FormatError, LadderError, UsageError
from ladderlm.evals.report import Report
from ladderlm.models.folder import ModelFiles
from ladderlm.train.examples import Packing
from ladderlm.train.settings import FinetuneConfig
from ladderlm.train.tasks.choose import choose
from ladderlm.train.tasks.task import TuningTask
from ladderlm.types import Record, Run, Value

HELD_OUT_SHARE = 0.05
MOST_HELD_OUT = 100


@dataclass(frozen=True, slots=True)
class Lengths(Value):
    """Tokens of the examples. `fill` is how full the batches are, `cut` how many examples were shortened."""

    records: int
    tokens: int
    median: int
    p95: int
    longest: int
    batches: int
    fill: float
    cut: int = 0

    def __str__(self) -> str:
        cut = f", {self.cut:,} cut" if self.cut else ""
        return (
            f"{self.records:,} records, {self.tokens:,} tokens (median {self.median:,}, 95 % up to {self.p95:,}, "
            f"longest {self.longest:,}{cut}); {self.batches:,} batches an epoch, {self.fill:.0%} full"
        )


@dataclass(frozen=True)
class Material:
    """`records` and their `examples`, in one order; the same of what is held out; rows that are neither."""

    task: TuningTask
    records: Sequence[Record]
    examples: Sequence[Any]
    held: Sequence[Record]
    held_examples: Sequence[Any]
    bad: Sequence[Bad]
    packing: Packing
    lengths: Lengths
    notes: Sequence[str] = field(default_factory=tuple)

    def settle_bad(self, run: Run | None, skip_bad: bool) -> None:
        """Bad rows are an error that names them, or with `skip_bad` told, and written to the run. FormatError."""
        settle(self.bad, skip_bad)
        if run and self.bad:
            with store.atomic_file(run.path / "bad_rows.jsonl") as file:
                file.writelines(json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in self.bad)

    def report(self, report: Report) -> None:
        """The section of a report that tells of the data."""
        section = report.section("Data", " ".join([f"{self.lengths}.", *self.notes]))
        if self.bad:
            rows = [(f"{b.file}:{b.line}", b.reason) for b in self.bad[:50]]
            section.table(("row", "why it is left out"), rows, f"{len(self.bad)} rows are left out.")


def load_material(config: FinetuneConfig, files: ModelFiles) -> Material:
    """Reads, splits and renders. LadderError where nothing usable is left; bad rows are for the caller to settle."""
    columns = parse_columns(config.columns)
    table = read_table(config.data, columns, config.licence)
    bad = list(table.bad)
    if not table.rows:
        _nothing(config.data, bad)
    if config.held_out:
        other = read_table(config.held_out, columns, config.licence)
        train, held, bad = list(table.rows), list(other.rows), [*bad, *other.bad]
    else:
        train, held = _apart(table.rows, config)
    task = choose(config, files, [row.record for row in (*train, *held)])
    sides = [_examples(task, side, bad) for side in (train, held[:MOST_HELD_OUT])]
    for name, side in zip((config.data, config.held_out or "what is held out"), sides, strict=True):
        if not side[0]:
            _nothing(name, bad)
    (records, examples, cut), (held_records, held_examples, _) = sides
    bad.sort()
    packing = Packing([e.tokens for e in examples], config.batch_tokens, config.seed)
    lengths = _lengths(examples, packing, config.batch_tokens, cut)
    notes = _notes(records, held_records, max(0, len(held) - MOST_HELD_OUT))
    return Material(task, records, examples, held_records, held_examples, bad, packing, lengths, notes)


def _nothing(where: str, bad: Sequence[Bad]) -> None:
    raise FormatError("no usable record" + (f": {first_of(bad)}" if bad else ""), where=where)


def _apart(rows: Sequence[Row], config: FinetuneConfig) -> tuple[list[Row], list[Row]]:
    if len({row.record.id for row in rows}) < 2:
        raise UsageError("one record cannot be split", where=config.data, cure="give more, or --held-out FILE")
    plan = plan_split((row.record for row in rows), HELD_OUT_SHARE, config.seed)
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row in rows:
        sides[plan.held(row.record)].append(row)
    return sides


def _examples(task: TuningTask, rows: Sequence[Row], bad: list[Bad]) -> tuple[list[Record], list[Any], int]:
    """Records, what the task makes of them, and how many it cut; those it can make nothing of go to `bad`."""
    records, examples, cut = [], [], 0
    for row in events.track(rows, "render", unit="records"):
        try:
            task.limits.shortened = False
            examples.append(task.example(row.record))
            records.append(row.record)
            cut += task.limits.shortened
        except LadderError as error:
            reason = error.what + (f" ({error.where})" if error.where else "")
            bad.append(Bad(row.file, row.line, reason))
    return records, examples, cut


def _lengths(examples: Sequence[Any], packing: Packing, budget: int, cut: int) -> Lengths:
    sizes = sorted(e.tokens for e in examples)
    most = sizes[math.ceil(0.95 * len(sizes)) - 1]
    total, batches = sum(sizes), packing.batches_in(1)
    return Lengths(len(sizes), total, sizes[len(sizes) // 2], most, sizes[-1], batches, total / (batches * budget), cut)


def _notes(records: Sequence[Record], held: Sequence[Record], unmeasured: int) -> list[str]:
    """What is worth knowing of the records."""
    found = []
    if again := repeated(records):
        found.append(f"{again:,} records have an id that came before: they are learnt as often as they come.")
    learnt = {r.id for r in records}
    if both := sum(r.id in learnt for r in held):
        found.append(f"{both:,} of {len(held):,} held-out records are learnt from too: the measurement flatters.")
    if unmeasured:
        found.append(f"{unmeasured:,} more records are held out, and not measured.")
    kinds = Counter(r.kind for r in records)
    if len(kinds) > 1:
        found.append("Several kinds of record: " + ", ".join(f"{n:,} {kind}" for kind, n in kinds.most_common()) + ".")
    return found
