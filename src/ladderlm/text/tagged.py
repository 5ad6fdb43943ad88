"""Calls between tags, as Qwen3-Coder writes them: values are bare text, and the tool's schema says what they mean.

<tool_call>
<function=NAME>
<parameter=KEY>
VALUE
</parameter>
</function>
</tool_call>
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

FUNCTION, FUNCTION_END = "<function=", "</function>"
VALUE_END = "\n</parameter>\n"
HEAD = re.compile(r"<function=([^>\n]+)>\n?")
KEY = re.compile(r"<parameter=([^\n]+?)>\n")  # as a grammar has it written
_FREE = re.compile(r"<parameter=([^>\n]+)>(.*?)(?=</parameter>|<parameter=|\Z)", re.DOTALL)  # as models write it
_DEEPEST = 8  # references that lead to references

Schema = Mapping[str, Any]
Kind = Literal["text", "integer", "number", "boolean", "json", "any"]


# --- Reading ------------------------------------------------------------------------------------------------------


def parse(text: str, schemas: Mapping[str, Schema]) -> tuple[str, str] | None:
    """Name and arguments (JSON) of what stands from <function= up to its end, if it is one of `schemas`' tools.

    A value ends where the next tag begins, for models forget to close them.
    """
    head = HEAD.match(text)
    if head is None or head[1].strip() not in schemas:
        return None
    name = head[1].strip()
    found = {
        key: converted(value.removeprefix("\n").removesuffix("\n"), key, schemas[name])
        for key, value in _FREE.findall(text, head.end())
    }
    return name, json.dumps(found, ensure_ascii=False)


def converted(text: str, key: str, parameters: Schema) -> Any:
    """The value that a parameter's text stands for, by its type in the tool's schema, as Qwen's own reader has it: null
    of any type is null, a boolean but "true" is false, what does not fit its type or has none stays text.

    But text that may be null is text, where Qwen's reader looks whether it reads as something else.
    """
    if text.lower() == "null":
        return None
    is_a = kind_of(key, parameters)
    try:
        if is_a == "integer":
            return int(text)
        if is_a == "number":
            number = float(text)
            return text if not math.isfinite(number) else int(number) if number.is_integer() else number
    except ValueError:
        return text
    if is_a == "boolean":
        return text.lower() == "true"
    return text if is_a == "text" else _literal(text)


def kind_of(key: str, parameters: Schema) -> Kind:
    """What a tool's argument is; one that its schema does not name is text."""
    return kind(properties(parameters).get(key), parameters)


def _literal(text: str) -> Any:
    """A value in JSON, else as Python writes it, else the text."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
            json.dumps(value, allow_nan=False).encode()
            return value
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def properties(parameters: Schema) -> Schema:
    found = parameters.get("properties")
    return found if isinstance(found, Mapping) else {}


def kind(schema: Any, root: Schema, depth: int = 0) -> Kind:
    """What values are. "json": lists and objects; "any": more than one of these. `root` holds what references name."""
    schema = resolved(schema, root)
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return "text"
    types = schema.get("type")
    if isinstance(types, list):
        return _one([kind({"type": t}, root) for t in types if t != "null"])
    if types is not None:
        return _named(str(types).strip().lower())
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            others = [s for s in schema[key] if not (isinstance(s, Mapping) and s.get("type") == "null")]
            return _one([kind(s, root, depth + 1) for s in others])
    choices = _choices(schema)
    return "any" if "allOf" in schema or not all(isinstance(c, str) for c in choices) else "text"


def _named(name: str) -> Kind:
    if name in ("string", "str", "text", "varchar", "char", "enum"):
        return "text"
    if name.startswith(("int", "uint", "long", "short", "unsigned")):
        return "integer"
    if name.startswith(("num", "float")):
        return "number"
    if name in ("boolean", "bool", "binary"):
        return "boolean"
    return "json"


def _one(kinds: list[Kind]) -> Kind:
    return kinds[0] if len(set(kinds)) == 1 else "any" if kinds else "text"


def _choices(schema: Schema) -> list[Any]:
    """The only values there are, if these are named."""
    found = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return found if isinstance(found, list) else []


def resolved(schema: Any, root: Schema) -> Any:
    """What a reference within `root` names; any other schema as it is."""
    for _ in range(_DEEPEST):
        if not isinstance(schema, Mapping) or not str(schema.get("$ref", "")).startswith("#/"):
            break
        found: Any = root
        for step in schema["$ref"][2:].split("/"):
            found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        schema = found
    return schema


# --- Grammar ------------------------------------------------------------------------------------------------------

OTHERS = [  # rules that all tools share
    f"value[lazy]: TEXT {json.dumps(VALUE_END)}",
    'other: "<parameter=" /[^>\\n]+/ ">\\n" value',
]


def rules(number: int, name: str, parameters: Schema, guidance: Schema) -> list[str]:
    """Lark's rules for a call of the tool `number`: its parameters in their order, those that are not required perhaps.
    Of text only an enum is forced; `guidance` is how JSON is to be written."""
    required = parameters.get("required")
    needed = required if isinstance(required, list) else []
    lines, parts = list[str](), list[str]()
    for at, (key, schema) in enumerate(properties(parameters).items()):
        rule = f"param_{number}_{at}"
        parts.append(rule if key in needed else f"{rule}?")
        lines.append(f"{rule}: {_quoted(f'<parameter={key}>', end=True)} {_value(schema, parameters, guidance)}")
    if parameters.get("additionalProperties", True) is not False:
        parts.append("other*")
    inner = " ".join(parts)
    return [f"call_{number}: {_quoted(f'{FUNCTION}{name}>', end=True)} {inner} {_quoted(FUNCTION_END)}", *lines]


def _value(schema: Any, root: Schema, guidance: Schema) -> str:
    """A value and its end."""
    is_a, found = kind(schema, root), resolved(schema, root)
    choices = _choices(found) if isinstance(found, Mapping) else []
    if is_a == "text" and choices and all(isinstance(c, str) for c in choices):
        return f"({' | '.join(map(_quoted, choices))}) {json.dumps(VALUE_END)}"
    if is_a in ("text", "any"):
        return "value"
    whole = dict(found) | {k: root[k] for k in ("$defs", "definitions") if k in root} | {"x-guidance": guidance}
    return f"%json {json.dumps(whole)} {json.dumps(VALUE_END)}"


def _quoted(text: str, *, end: bool = False) -> str:
    return json.dumps(text + "\n" * end, ensure_ascii=False)
