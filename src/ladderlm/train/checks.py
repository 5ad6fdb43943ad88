"""Verifiable rewards: what a record asks of an answer, checked by rules, and reward models behind the same door.

A record may hold several of these fields; its reward is the share of them that the answer meets.
  answer    what should come out: the last number where it is one, else the text, its case and punctuation apart
  pattern   a regular expression that the whole answer must match
  schema    a JSON schema that the answer must meet (and `answer`, where it is JSON too, must then be equal to it)
  tests     Python code, run after the answer's code in a sandbox: it must not raise
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from ladderlm.errors import FormatError
from ladderlm.sandbox.python import run_python
from ladderlm.types import Record

FIELDS = ("answer", "pattern", "schema", "tests")
AT_ONCE = 4  # sandboxes
_NUMBER = re.compile(r"(?<![\d.])-?\d[\d,]*(?:\.\d+)?")
_CODE = re.compile(r"```(?:python|py)?\s*\n(.*?)(?:```|\Z)", re.DOTALL)
_JSON = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)


class Reward(Protocol):
    """How good answers are. `name` is what the page calls it."""

    name: str

    def __call__(self, records: Sequence[Record], answers: Sequence[str]) -> list[float]:
        """One number for each answer to the prompt of each record."""


class Checks:
    """The records' own checks."""

    name = "share of checks passed"

    def __call__(self, records: Sequence[Record], answers: Sequence[str]) -> list[float]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(check, records, answers))


def checkable(record: Record) -> None:
    """Raises FormatError where a record has no check, or a broken one."""
    found = [name for name in FIELDS if name in record.fields]
    if not found:
        raise FormatError("nothing that an answer can be checked by", cure="give it " + ", ".join(FIELDS))
    if "pattern" in found:
        try:
            re.compile(record["pattern"])
        except (re.error, TypeError) as error:
            raise FormatError(f"not a regular expression: {error}") from None
    if "schema" in found and not isinstance(record["schema"], Mapping):
        raise FormatError("schema must be an object")


def check(record: Record, answer: str) -> float:
    """The share of the record's checks that `answer` meets."""
    met = [_CHECKS[name](record, answer) for name in FIELDS if name in record.fields]
    return sum(met) / len(met) if met else 0.0


def _answer(record: Record, text: str) -> bool:
    wanted = str(record["answer"])
    if "schema" in record.fields:
        try:
            return bool(parsed(text) == json.loads(wanted))
        except ValueError:
            return False
    return same(wanted, text)


def same(wanted: str, text: str) -> bool:
    """Whether `text` says `wanted`: its last number, or all of it."""
    wanted = wanted.rpartition("####")[2].strip()  # as GSM8K marks its results
    if _NUMBER.fullmatch(wanted):
        numbers = _NUMBER.findall(text)
        return bool(numbers) and float(numbers[-1].replace(",", "")) == float(wanted.replace(",", ""))
    return _plain(wanted) == _plain(text)


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())


def parsed(text: str) -> Any:
    """The JSON value that an answer is, perhaps in a fence. ValueError."""
    fenced = _JSON.search(text)
    try:
        return json.loads(fenced[1] if fenced else text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _schema(record: Record, text: str) -> bool:
    try:
        return meets(parsed(text), record["schema"])
    except ValueError:
        return False


def _tests(record: Record, text: str) -> bool:
    fenced = _CODE.findall(text)
    code = "\n".join(fenced) if fenced else text
    return run_python(f"{code}\n\n{record['tests']}\n").ok


def _pattern(record: Record, text: str) -> bool:
    return re.fullmatch(record["pattern"], text.strip(), re.DOTALL) is not None


_CHECKS: dict[str, Callable[[Record, str], bool]] = {
    "answer": _answer, "pattern": _pattern, "schema": _schema, "tests": _tests,
}  # fmt: skip


# --- JSON schema ------------------------------------------------------------------------------------------------------

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,), "null": (type(None),),
    "number": (int, float), "integer": (int,),
}  # fmt: skip


def meets(value: Any, schema: Any) -> bool:
    """Whether `value` meets a JSON schema: types, properties, items, enum, const, bounds, lengths, patterns, and
    anyOf, allOf, oneOf, not. Other keywords say nothing here."""
    if isinstance(schema, bool):
        return schema
    kinds = schema.get("type", ())
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        return False
    if "const" in schema and not _equal(value, schema["const"]):
        return False
    if "enum" in schema and not any(_equal(value, one) for one in schema["enum"]):
        return False
    if isinstance(value, dict) and not _meets_object(value, schema):
        return False
    if isinstance(value, list) and not _meets_array(value, schema):
        return False
    if isinstance(value, str) and not _meets_string(value, schema):
        return False
    if isinstance(value, (int, float)) and not _meets_number(value, schema):
        return False
    return (
        all(meets(value, s) for s in schema.get("allOf", ()))
        and ("anyOf" not in schema or any(meets(value, s) for s in schema["anyOf"]))
        and ("oneOf" not in schema or sum(meets(value, s) for s in schema["oneOf"]) == 1)
        and ("not" not in schema or not meets(value, schema["not"]))
    )


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES.get(kind, ()))


def _equal(a: Any, b: Any) -> bool:
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def _meets_object(value: dict[str, Any], schema: Mapping[str, Any]) -> bool:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    if not all(name in value for name in schema.get("required", ())):
        return False
    return all(meets(item, known.get(name, others)) for name, item in value.items())


def _meets_array(value: list[Any], schema: Mapping[str, Any]) -> bool:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return False
    if schema.get("uniqueItems") and any(_equal(a, b) for i, a in enumerate(value) for b in value[:i]):
        return False
    return all(meets(item, schema.get("items", True)) for item in value)


def _meets_string(value: str, schema: Mapping[str, Any]) -> bool:
    fits = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
    return fits and ("pattern" not in schema or re.search(schema["pattern"], value) is not None)


def _meets_number(value: float, schema: Mapping[str, Any]) -> bool:
    if isinstance(value, bool):
        return True
    low, high = schema.get("minimum", value), schema.get("maximum", value)
    above, below = schema.get("exclusiveMinimum", value - 1), schema.get("exclusiveMaximum", value + 1)
    step = schema.get("multipleOf")
    return bool(low <= value <= high and above < value < below and (not step or value % step == 0))
