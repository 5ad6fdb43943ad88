"""The text of a record changed in place by edits: roles, labels and names of tools stay, spans move along."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ladderlm.types import Record

_NOT_TEXT = frozenset(("role", "label", "kind", "type", "id", "name", "tool_call_id"))


class Edit(NamedTuple):
    """text[start:end] becomes `new`."""

    start: int
    end: int
    new: str


Edits = Callable[[str], Sequence[Edit]]  # a text -> its edits, in order, none overlapping another


def apply(text: str, edits: Sequence[Edit]) -> str:
    pieces, last = [], 0
    for start, end, new in edits:
        pieces += [text[last:start], new]
        last = end
    return "".join(pieces) + text[last:]


def texts(record: Record) -> Iterator[str]:
    """Each text of a record, without roles, labels and names."""
    yield from _strings(record.fields)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in _NOT_TEXT and key != "spans":
                yield from _strings(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _strings(inner)


def rewrite(record: Record, edits: Edits) -> Record:
    """The record with its texts edited; the same object when nothing changed. Id, source and licence stay."""
    if record.kind == "spans":
        found = edits(record["text"])
        moved = {"text": apply(record["text"], found), "spans": moved_spans(record["spans"], found)}
        return dataclasses.replace(record, fields={**record.fields, **moved}) if found else record
    changed = {key: value if key in _NOT_TEXT else _rewritten(value, edits) for key, value in record.fields.items()}
    return record if changed == record.fields else dataclasses.replace(record, fields=changed)


def _rewritten(value: Any, edits: Edits) -> Any:
    if isinstance(value, str):
        found = edits(value)
        return apply(value, found) if found else value
    if isinstance(value, Mapping):
        return {k: v if k in _NOT_TEXT else _rewritten(v, edits) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rewritten(v, edits) for v in value]
    return value


def moved_spans(spans: Sequence[Any], edits: Sequence[Edit]) -> list[Any]:
    """Spans ({"start", "end", ...} or [start, end, ...]) at their places in the edited text."""
    moved: list[Any] = []
    for span in spans:
        if isinstance(span, Mapping) and "start" in span and "end" in span:
            start, end = _place(span["start"], edits, False), _place(span["end"], edits, True)
            moved.append({**span, "start": start, "end": end})
        elif isinstance(span, (list, tuple)) and len(span) >= 2:
            moved.append([_place(span[0], edits, False), _place(span[1], edits, True), *span[2:]])
        else:
            moved.append(span)
    return moved


def _place(at: int, edits: Sequence[Edit], is_end: bool) -> int:
    """Where `at` is afterwards; within an edit it goes to that side of the new text that keeps it in the span."""
    shift = 0
    for start, end, new in edits:
        if at >= end and not (is_end and at == start == end):
            shift += len(new) - (end - start)
        elif at > start:
            return start + shift + (len(new) if is_end else 0)
    return at + shift
