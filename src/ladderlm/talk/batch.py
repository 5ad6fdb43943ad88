"""Many questions from a JSONL file, answers into another: concurrent, resumable, within a budget."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladderlm import events, store
from ladderlm.errors import (
    AuthError,
    Cancelled,
    DeadlineExceeded,
    FormatError,
    LadderError,
    NetworkError,
    NotFound,
    Overloaded,
    UsageError,
)
from ladderlm.talk.prices import OverBudget
from ladderlm.types import Cancel, Completion, Conversation, Delta, Message, Value

Row = Mapping[str, Any]
Ask = Callable[[Row, Cancel], Iterator[Delta]]

TRIES = 3
FIRST_PAUSE = 1.0  # seconds before the second try, doubled before the third; half of it is chance


@dataclass(frozen=True, slots=True)
class BatchResult(Value):
    """`answered` now, `skipped` because an earlier run had, `failed` (asked again by the next run), and the `cost`.

    `stopped` says why the batch ended early, if it did.
    """

    answered: int = 0
    skipped: int = 0
    failed: int = 0
    left: int = 0
    cost: float | None = None
    stopped: str = ""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The questions, each with an id: its own, else its line number. FormatError for two of the same id."""
    if not path.is_file():
        raise NotFound("no such file", where=str(path))
    rows, seen = [], set()
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise FormatError("not valid JSON", where=f"{path}:{number}") from None
        if not isinstance(row, dict):
            raise FormatError("a row must be an object", where=f"{path}:{number}")
        row = {"id": str(number)} | row
        if str(row["id"]) in seen:
            raise FormatError(f"the id {row['id']!r} is there twice", where=f"{path}:{number}")
        seen.add(str(row["id"]))
        rows.append(row)
    return rows


def conversation_of(row: Row, system: str = "") -> Conversation:
    """What a row asks: its `messages` ({role, content}), or its `prompt` (or `input`) after the system message."""
    messages = row.get("messages")
    if isinstance(messages, list) and messages:
        try:
            turns = [Message.of(m["role"], m["content"]) for m in messages]
        except (TypeError, KeyError):
            raise FormatError("a message needs role and content", where=f"row {row['id']}") from None
        if system and turns[0].role != "system":
            turns.insert(0, Message.of("system", system))
        return Conversation(tuple(turns))
    return Conversation.of(prompt_of(row), str(row.get("system") or system) or None)


def prompt_of(row: Row) -> str:
    prompt = row.get("prompt", row.get("input"))
    if not isinstance(prompt, str):
        raise FormatError("a row needs a prompt (or messages)", where=f"row {row.get('id')}")
    return prompt


def run(rows: Sequence[Row], out: Path, ask: Ask, *, concurrency: int = 4) -> BatchResult:
    """Answers the rows that `out` does not hold yet; each answer is appended as soon as it is there.

    A line of `out` is {"id", "text", "finish_reason", "usage"}, or {"id", "error"}, which the next run asks again.
    What may pass (a broken connection, a full queue) is tried three times. A refused key ends the batch; an exhausted
    budget ends it in order. Interrupted, it loses only the answers that were being written.
    """
    if concurrency < 1:
        raise UsageError("must be at least 1", where=f"concurrency={concurrency}")
    name = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
    with store.lock(store.cache_dir() / "batch" / name, timeout=1):
        answered = _resume(out)
        waiting = [row for row in rows if str(row["id"]) not in answered]
        return _Batch(out, ask, len(rows) - len(waiting)).run(waiting, concurrency)


def _resume(out: Path) -> set[str]:
    """The ids that are answered in `out`; a torn last line is cut off, so that the next line starts afresh."""
    if not out.exists():
        store.make_dir(out.parent)
        return set()
    with store.storage_errors(out), out.open("r+b") as f:
        data = f.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            try:
                json.loads(data[whole:])
                f.write(b"\n")  # the line is whole, its end alone is missing
            except ValueError:
                f.truncate(whole)
    return {str(row.get("id")) for row in store.read_jsonl(out) if "error" not in row}


class _Batch:
    def __init__(self, out: Path, ask: Ask, skipped: int) -> None:
        self._out, self._ask, self._skipped = out, ask, skipped
        self._cancel = Cancel()
        self._answered = self._failed = 0
        self._cost: float | None = None
        self._stopped = ""

    def run(self, waiting: Sequence[Row], concurrency: int) -> BatchResult:
        queue, running = iter(waiting), set[Future[dict[str, Any] | None]]()
        self._tell(len(waiting))
        with ThreadPoolExecutor(concurrency, thread_name_prefix="batch") as pool:
            try:
                while True:
                    while not self._stopped and len(running) < concurrency and (row := next(queue, None)) is not None:
                        running.add(pool.submit(self._answer, row))
                    if not running:
                        break
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        self._keep(future)
                    self._tell(len(waiting))
            except BaseException:
                self._cancel.set()
                raise
        done_rows = self._answered + self._failed
        self._tell(len(waiting), finished=True)
        return BatchResult(
            self._answered, self._skipped, self._failed, len(waiting) - done_rows, self._cost, self._stopped
        )

    def _keep(self, future: Future[dict[str, Any] | None]) -> None:
        try:
            line = future.result()
        except OverBudget as error:
            self._stopped = self._stopped or str(error)
            return
        if line is None:
            return
        store.append_jsonl(self._out, line)
        if "error" in line:
            self._failed += 1
            return
        self._answered += 1
        if (cost := line["usage"].get("cost")) is not None:
            self._cost = (self._cost or 0.0) + cost

    def _answer(self, row: Row) -> dict[str, Any] | None:
        """The line for `row`. Raises what must end the batch."""
        for attempt in range(TRIES):
            try:
                completion = Completion.fold(self._ask(row, self._cancel))
                break
            except (AuthError, OverBudget):
                raise
            except (NetworkError, Overloaded, DeadlineExceeded) as error:
                pause = FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1)
                if attempt == TRIES - 1:
                    return {"id": row["id"], "error": str(error)}
                if self._cancel.wait(pause):
                    return None
            except Cancelled:
                return None
            except LadderError as error:
                return {"id": row["id"], "error": str(error)}
        if self._cancel.is_set():
            return None
        first = completion.choices[0] if completion.choices else None
        line = {"id": row["id"], "text": completion.text, "finish_reason": first.finish_reason if first else None}
        if len(completion.choices) > 1:
            line["texts"] = [c.text for c in completion.choices]
        return line | {"usage": completion.usage.to_dict()}

    def _tell(self, total: int, finished: bool = False) -> None:
        data: dict[str, Any] = {"failed": self._failed} if self._failed else {}
        if self._cost is not None:
            data["cost"] = self._cost
        events.emit("batch", done=self._answered + self._failed, total=total, unit="rows", data=data, finished=finished)
