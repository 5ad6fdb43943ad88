"""500 random JSON schemas, answered by the default model: complete, valid, and hardly slower for it.

The generator below is seeded; it draws what clients write: nested objects with and without optional and further
properties, arrays with bounds, enums and constants, numbers and strings with bounds, patterns and formats, unions, and
references to definitions, recursive ones too.

1. At least 95 % of the answers are complete within 512 tokens, and all of these are valid by jsonschema.
2. At most 5 % of the schemas are refused; each with its reason in the result.
3. Working out which tokens may follow takes less than a tenth of the time of decoding. A thread of its own does it
   while the network runs, so that even that is hidden; what is counted is all its time.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from typing import Any

from ladderlm.engine import grammar
from ladderlm.errors import LadderError
from ladderlm.models.catalogue import DEFAULT_MODEL
from ladderlm.talk import open_chat
from ladderlm.types import Completion, Conversation, Sampling

COUNT, LIMIT, DEEPEST = 500, 512, 3
WORDS = (
    "name",
    "city",
    "price",
    "tags",
    "owner",
    "status",
    "count",
    "date",
    "title",
    "notes",
    "items",
    "address",
    "id",
)
VALUES = ("red", "green", "blue", "small", "large", "open", "closed", "yes", "no", "high", "low")
PATTERNS = ("^[A-Z]{2}[0-9]{3}$", "^[a-z]{3,8}$", r"^\d{4}-\d{2}$", "^(mon|tue|wed)$", r"^#[0-9a-f]{6}$")
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email")
Schema = dict[str, Any]


class Schemas:
    """Draws schemas. What a draw refers to stands in `defs`."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.defs: Schema = {}

    def draw(self) -> Schema:
        self.defs = {}
        schema = self.object(0)
        if self.random.random() < 0.3:
            schema["title"] = "Answer"
        return {**schema, "$defs": self.defs} if self.defs else schema

    def any(self, depth: int) -> Schema:
        plain = [self.text, self.text, self.number, self.choice, self.flag]
        deep = [self.object, self.array, self.union, self.reference] if depth < DEEPEST else []
        return self.random.choice([*plain, *deep])(depth)

    def object(self, depth: int) -> Schema:
        names = self.random.sample(WORDS, self.random.randint(1, 5 if depth == 0 else 3))
        schema: Schema = {"type": "object", "properties": {name: self.any(depth + 1) for name in names}}
        if self.random.random() < 0.8:
            schema["required"] = [name for name in names if self.random.random() < 0.8]
        if self.random.random() < 0.7:
            schema["additionalProperties"] = False
        return schema

    def array(self, depth: int) -> Schema:
        low = self.random.randint(0, 2)
        return {
            "type": "array",
            "items": self.any(depth + 1),
            "minItems": low,
            "maxItems": low + self.random.randint(1, 3),
        }

    def union(self, depth: int) -> Schema:
        if self.random.random() < 0.5:
            return {"type": [self.random.choice(("string", "integer", "boolean")), "null"]}
        return {"anyOf": [self.any(depth + 1) for _ in range(2)]}

    def reference(self, depth: int) -> Schema:
        name = f"d{len(self.defs)}"
        self.defs[name] = {}  # its place, for what is drawn below
        if self.random.random() < 0.3:  # a list of itself, which may always end
            more = {"type": "array", "items": {"$ref": f"#/$defs/{name}"}, "maxItems": 1}
            properties = {"name": self.text(depth), "children": more}
            self.defs[name] = {"type": "object", "properties": properties, "required": ["name"],
                               "additionalProperties": False}  # fmt: skip
        else:
            self.defs[name] = self.object(depth + 1)
        return {"$ref": f"#/$defs/{name}"}

    def text(self, depth: int) -> Schema:
        kind = self.random.random()
        if kind < 0.15:
            return {"type": "string", "pattern": self.random.choice(PATTERNS)}
        if kind < 0.3:
            return {"type": "string", "format": self.random.choice(FORMATS)}
        if kind < 0.6:
            low = self.random.randint(0, 3)
            return {"type": "string", "minLength": low, "maxLength": low + self.random.randint(5, 30)}
        return {"type": "string", "maxLength": 60}

    def number(self, depth: int) -> Schema:
        schema: Schema = {"type": self.random.choice(("integer", "number"))}
        low = self.random.randint(-50, 50)
        if self.random.random() < 0.7:
            schema |= {"minimum": low, "maximum": low + self.random.randint(1, 1000)}
        elif self.random.random() < 0.5:
            schema["exclusiveMinimum"] = low
        return schema

    def choice(self, depth: int) -> Schema:
        if self.random.random() < 0.3:
            return {"const": self.random.choice((*VALUES, 7, True, None))}
        return {"enum": self.random.sample(VALUES, self.random.randint(1, 5))}

    def flag(self, depth: int) -> Schema:
        return {"type": self.random.choice(("boolean", "null"))}


def timed() -> list[float]:
    """Has every mask that is worked out from now on note its seconds in the list."""
    seconds: list[float] = []
    fill = grammar.Matcher._fill

    def noted(self: grammar.Matcher) -> str:
        began = time.perf_counter()
        try:
            return fill(self)
        finally:
            seconds.append(time.perf_counter() - began)

    grammar.Matcher._fill = noted  # type: ignore[method-assign]
    return seconds


def answer(chat: Any, schema: Schema, seed: int) -> tuple[Completion, float]:
    """The model's example of a schema, and the seconds from its first token to its last."""
    prompt = f"Give one example, as JSON, of this schema:\n{json.dumps(schema)}"
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    sampling = Sampling(temperature=0.7, top_p=0.95, max_tokens=LIMIT, seed=seed, response_format=form)
    deltas, times = [], []
    for delta in chat.stream(Conversation.of(prompt), sampling):
        deltas.append(delta)
        times += [time.perf_counter()] * bool(delta.tokens)
    return Completion.fold(deltas), times[-1] - times[0] if times else 0.0


def measure(minute: bool) -> dict[str, Any]:
    import jsonschema

    count = 12 if minute else COUNT
    masks, drawn = timed(), Schemas(20261122)
    outcomes: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    wrong: list[Any] = []
    tokens, decoding = 0, 0.0
    chat = open_chat(DEFAULT_MODEL)
    for number in range(count):
        schema = drawn.draw()
        try:
            found, seconds = answer(chat, schema, number)
        except LadderError as error:
            outcomes["refused"] += 1
            reasons[str(error)[:200]] += 1
            continue
        tokens, decoding = tokens + found.usage.completion_tokens, decoding + seconds
        if found.choices[0].finish_reason != "stop":
            outcomes["not complete"] += 1
            continue
        try:
            checked = jsonschema.Draft202012Validator
            checked(schema, format_checker=checked.FORMAT_CHECKER).validate(json.loads(found.text))
            outcomes["valid"] += 1
        except (ValueError, jsonschema.ValidationError) as error:
            outcomes["invalid"] += 1
            wrong.append({"schema": schema, "answer": found.text, "error": str(error)[:300]})
    chat.close()
    share = sum(masks) / decoding
    bars = {
        "at least 95 % complete within 512 tokens": (outcomes["valid"] + outcomes["invalid"]) / count >= 0.95,
        "all that are complete are valid": not outcomes["invalid"],
        "at most 5 % refused": outcomes["refused"] / count <= 0.05,
        "masks take less than a tenth of decoding": share < 0.1,
    }
    if minute:
        bars = {"all that are complete are valid": not outcomes["invalid"]}
    return {
        "model": DEFAULT_MODEL, "schemas": count, "outcomes": dict(outcomes), "tokens": tokens,
        "refused_because": dict(reasons), "invalid": wrong, "seconds_decoding": round(decoding, 2),
        "seconds_masking": round(sum(masks), 3), "masks": len(masks), "mask_share": round(share, 4), "bars": bars,
    }  # fmt: skip
