"""Layouts of texts with something marked in them or beside them: entities, answers, translations, look-alikes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ladderlm.errors import FormatError

Row = Mapping[str, Any]
Found = tuple[str, dict[str, Any], dict[str, Any]]  # kind, fields, meta
Span = dict[str, Any]  # {"start", "end", "label"}: characters

_TAGS = ("tags", "ner_tags", "labels")
_LONG, _SHORT = ("article", "document", "dialogue"), ("summary", "highlights")
_ANCHORS, _POSITIVES, _NEGATIVES = ("anchor", "query"), ("positive", "pos"), ("negative", "neg")


def recognise(row: Row) -> Found | None:
    """(kind, fields, meta) of a row in one of these layouts, None for others. FormatError for an unsound one."""
    keys = set(row)
    if {"text", "spans"} <= keys:
        return "spans", {"text": _text(row, "text"), "spans": spans(row["spans"], row["text"])}, {}
    if "tokens" in keys and (tags := _first(row, _TAGS)):
        return "spans", tagged(row["tokens"], row[tags]), {}
    if {"context", "question"} <= keys and keys & {"answers", "answer"}:
        answers = found_answers(row.get("answers", row.get("answer")), _text(row, "context"))
        return "qa", {"context": row["context"], "question": _text(row, "question"), "answers": answers}, {}
    if isinstance(row.get("translation"), Mapping) and len(row["translation"]) == 2:
        (source, a), (target, b) = row["translation"].items()
        pair = {"source": _joined(a, source), "target": _joined(b, target)}
        return "translation", pair, {"languages": [str(source), str(target)]}
    if {"source", "target"} <= keys:
        return "translation", {name: _joined(row[name], name) for name in ("source", "target")}, {}
    if (long := _first(row, _LONG)) and (short := _first(row, _SHORT)):
        return "translation", {"source": _text(row, long), "target": _text(row, short)}, {"task": "summary"}
    if (anchor := _first(row, _ANCHORS)) and (positive := _first(row, _POSITIVES)):
        negative = _first(row, _NEGATIVES)
        texts = {"anchor": _text(row, anchor), "positive": _joined(row[positive], positive)}
        return "triple", {**texts, "negative": _joined(row[negative], negative) if negative else ""}, {}
    return None


def _first(row: Row, names: Sequence[str]) -> str:
    return next((name for name in names if row.get(name) is not None), "")


def _text(row: Row, name: str) -> str:
    if not isinstance(row[name], str):
        raise FormatError(f"{name} must be text, not {type(row[name]).__name__}")
    return str(row[name])


def _joined(value: Any, name: str) -> str:
    """A text, or the sentences that one comes in."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return " ".join(value)
    raise FormatError(f"{name} must be text, not {type(value).__name__}")


def spans(found: Any, text: str) -> list[Span]:
    """Checked spans in the order of the text. FormatError for one outside it, without label, or over another."""
    if not isinstance(found, list) or not all(isinstance(s, Mapping) for s in found):
        raise FormatError("spans must be a list of objects with start, end and label")
    out: list[Span] = []
    for span in sorted(found, key=lambda s: (str(type(s.get("start"))), s.get("start"))):
        start, end, label = (span.get(name) for name in ("start", "end", "label"))
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (start, end))
        if not whole or not 0 <= start < end <= len(text):
            raise FormatError(f"a span from {start!r} to {end!r} in a text of {len(text)} characters")
        if not isinstance(label, str) or not label:
            raise FormatError(f"the span from {start} to {end} has no label")
        if out and start < out[-1]["end"]:
            raise FormatError(f"the span from {start} to {end} lies over another", cure="spans must not overlap")
        out.append({"start": start, "end": end, "label": label})
    return out


def tagged(tokens: Any, tags: Any) -> dict[str, Any]:
    """Text and spans of tokens with tags O, B-x, I-x (Ramshaw and Marcus 1995); the tokens are joined by spaces."""
    if not (isinstance(tokens, list) and isinstance(tags, list) and len(tokens) == len(tags)):
        raise FormatError("tokens and tags must be lists of one length")
    if not all(isinstance(t, str) for t in tokens):
        raise FormatError("tokens must be texts")
    if not all(isinstance(t, str) for t in tags):
        raise FormatError("tags must be names, not numbers", cure='names such as "B-person"')
    out: list[Span] = []
    at, last = 0, "O"
    for token, tag in zip(tokens, tags, strict=True):
        begins, _, label = tag.partition("-")
        if tag != "O" and (begins not in ("B", "I") or not label):
            raise FormatError(f"unknown tag {tag!r}", cure="O, B-label and I-label")
        if tag != "O":
            if begins == "I" and last != "O" and out[-1]["label"] == label:
                out[-1]["end"] = at + len(token)
            elif token:
                out.append({"start": at, "end": at + len(token), "label": label})
        at, last = at + len(token) + 1, tag
    return {"text": " ".join(tokens), "spans": out}


def found_answers(answers: Any, context: str) -> list[dict[str, Any]]:
    """[{"text", "start"}] of SQuAD's answers, in either of its layouts, or of plain texts, taken where they come first.

    None at all is a question that the context does not answer. FormatError for an answer that is not in the context.
    """
    if isinstance(answers, Mapping):
        texts, starts = answers.get("text"), answers.get("answer_start")
        if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)):
            raise FormatError("answers must hold as many of text as of answer_start")
        answers = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
    out = []
    for answer in [answers] if isinstance(answers, str) else answers if isinstance(answers, list) else [None]:
        told = {"text": answer} if isinstance(answer, str) else answer
        if not isinstance(told, Mapping) or not isinstance(told.get("text"), str) or not told["text"]:
            raise FormatError("an answer must be a text, or an object with text and answer_start")
        start = told.get("start", told.get("answer_start", context.find(told["text"])))
        if not isinstance(start, int) or start < 0 or context[start : start + len(told["text"])] != told["text"]:
            raise FormatError(f"the context does not say {told['text'][:40]!r} at character {start}")
        out.append({"text": told["text"], "start": start})
    return out
