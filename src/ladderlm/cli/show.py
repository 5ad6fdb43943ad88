"""What the terminal shows: progress on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ladderlm import events

if TYPE_CHECKING:
    from ladderlm.data.stages import StageReport
    from ladderlm.train.tasks.task import Piece


@contextlib.contextmanager
def progress() -> Iterator[None]:
    """Shows events while the block runs: bars on a terminal, else a plain line per message and stage end."""
    listener = _Bars() if sys.stderr.isatty() else _Lines()
    with events.listening(listener):
        try:
            yield
        finally:
            listener.close()


class _Lines:
    """For logs and pipes: one line per message, and at most one per stage every 15 seconds."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def __call__(self, event: events.Event) -> None:
        now = time.monotonic()
        if event.message:
            sys.stderr.write(f"{event.stage}: {event.message}\n")
        elif event.total:
            first = self._last.setdefault(event.stage, now)
            if now - first > 15:
                self._last[event.stage] = now
                sys.stderr.write(f"{event.stage}: {describe(event)}\n")
        sys.stderr.flush()

    def close(self) -> None: ...


class _Bars:
    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn(),
            console=self._console, transient=True,
        )  # fmt: skip
        self._tasks: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._progress.start()

    def __call__(self, event: events.Event) -> None:
        with self._lock:
            if event.message:
                self._console.print(f"{event.stage}: {event.message}", markup=False, highlight=False)
            if not event.total:
                return
            if event.stage not in self._tasks:
                self._tasks[event.stage] = self._progress.add_task(event.stage, total=event.total, text="")
            task = self._tasks[event.stage]
            self._progress.update(task, completed=event.done, total=event.total, text=describe(event))
            if event.finished or event.done >= event.total:
                self._progress.remove_task(self._tasks.pop(event.stage))

    def close(self) -> None:
        self._progress.stop()


def describe(event: events.Event) -> str:
    """ "3/10 steps, loss 2.31, 1,204 tokens/s"."""
    parts = [f"{event.done:,.0f}/{event.total:,.0f} {event.unit}".rstrip()] if event.total else []
    for name, value in event.data.items():
        shown = (
            f"{value:,.4g}"
            if isinstance(value, float) and abs(value) < 1000
            else f"{value:,.0f}"
            if isinstance(value, (int, float))
            else value
        )
        parts.append(f"{name.replace('_', ' ')} {shown}")
    return ", ".join(parts)


def table(rows: Sequence[Sequence[Any]], columns: Sequence[str], title: str | None = None) -> None:
    """A table on stdout; plain tab-separated text when stdout is not a terminal."""
    if not sys.stdout.isatty():
        print("\t".join(columns))
        for row in rows:
            print("\t".join(str(c) for c in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = Table(*columns, title=title)
    for row in rows:
        out.add_row(*(Text(str(c)) for c in row))
    Console().print(out)


def pieces(records: Sequence[Sequence[Piece]], *, to_stdout: bool) -> None:
    """Records as a model reads them: what is learnt in green with what is wanted of it; without colours «so»."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout if to_stdout else sys.stderr, highlight=False, soft_wrap=True)
    for number, record in enumerate(records, 1):
        console.rule(f"record {number}") if console.is_terminal else console.print(f"--- record {number}")
        line = Text()
        for text, learnt, note in record:
            note = f"<{note}>" if note else ""
            if console.is_terminal:
                line.append(text, "green" if learnt else "dim").append(note, "bold yellow")
            else:
                line.append(f"«{text}»{note}" if learnt else text + note)
        console.print(line)


def emit_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def stage(report: StageReport, out: str, as_json: bool) -> None:
    """What a stage of data preparation did. With the records themselves on stdout it goes to stderr."""
    told = sys.stderr if out == "-" else sys.stdout
    if as_json:
        print(json.dumps(report.to_dict(), ensure_ascii=False, indent=2), file=told)
        return
    share = f" ({report.records_out / report.records_in:.1%})" if report.records_in else ""
    again = " (done before, nothing to do)" if report.skipped else ""
    print(f"{report.stage}: kept {report.records_out:,} of {report.records_in:,} records{share}{again}", file=told)
    for what, counts in (("dropped", report.dropped), ("changed", report.changed)):
        for rule, count in sorted(counts.items(), key=lambda item: -item[1]):
            print(f"  {what}\t{rule}\t{count:,}", file=told)
    if out != "-":
        print(f"  {out}, {out}.report.json", file=told)
