"""The six values and the three protocols everything is made of.

Values are frozen and equal by content; identity and storage live elsewhere (store.py). Attachments are
content-addressed: a part holds the sha256 of its bytes, never the bytes or a path.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import types as _types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from ladderlm.errors import FormatError, UsageError, nearest

FloatArray = npt.NDArray[np.float32]
KVType = Literal["auto", "float32", "float16", "int8"]  # of keys and values in the engine
Cancel = threading.Event
Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]
AGE = 10.0  # seconds of waiting that weigh as much as a step of priority


def _plain(value: Any) -> Any:
    if isinstance(value, Value):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value


def _revive(hint: Any, value: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if value is None:
        return None
    if origin in (typing.Union, _types.UnionType):
        classes = [a for a in args if isinstance(a, type) and issubclass(a, Value)]
        if isinstance(value, Mapping) and classes:
            if len(classes) == 1:
                return classes[0].from_dict(value)
            for cls in classes:
                if getattr(cls, "kind", None) == value.get("kind"):
                    return cls.from_dict(value)
            kinds = [str(getattr(c, "kind", "?")) for c in classes]
            raise FormatError(f"unknown kind {value.get('kind')!r}", cure=nearest(str(value.get("kind")), kinds))
        return next((_revive(a, value) for a in args if a is not type(None) and typing.get_origin(a) is tuple), value)
    if isinstance(hint, type) and issubclass(hint, Value):
        return hint.from_dict(value)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_revive(args[0], v) for v in value)
        return tuple(_revive(a, v) for a, v in zip(args, value, strict=True))
    if hint is Path:
        return Path(value)
    return value


class Value:
    """A frozen dataclass that turns into plain JSON data and back."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data; fields at their default, or that do not count in comparisons, are left out, `kind` is kept."""
        out: dict[str, Any] = {}
        if hasattr(self, "kind"):
            out["kind"] = self.kind
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if not f.compare or (f.default is not dataclasses.MISSING and value == f.default):
                continue
            if f.default_factory is not dataclasses.MISSING and value == f.default_factory():
                continue
            out[f.name] = _plain(value)
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The value that `data` describes. An unknown or missing key is a FormatError that names it."""
        if not isinstance(data, Mapping):
            raise FormatError(f"{cls.__name__} must be an object, not {type(data).__name__}")
        hints = typing.get_type_hints(cls)
        fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        kwargs: dict[str, Any] = {}
        for key, value in data.items():
            if key == "kind" and "kind" not in fields:
                continue
            if key not in fields:
                raise FormatError(f"{cls.__name__} has no field {key!r}", cure=nearest(key, fields))
            kwargs[key] = _revive(hints[key], value)
        try:
            return cls(**kwargs)
        except TypeError as error:
            raise FormatError(f"incomplete {cls.__name__}", where=str(error)) from None


@dataclass(frozen=True, slots=True)
class Text(Value):
    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, slots=True)
class Reasoning(Value):
    kind: ClassVar[str] = "reasoning"
    text: str


@dataclass(frozen=True, slots=True)
class Image(Value):
    kind: ClassVar[str] = "image"
    sha256: str
    media_type: str
    detail: Literal["auto", "low", "high"] = "auto"  # how closely it is to be looked at


@dataclass(frozen=True, slots=True)
class Audio(Value):
    kind: ClassVar[str] = "audio"
    sha256: str
    media_type: str


@dataclass(frozen=True, slots=True)
class ToolCall(Value):
    """A call the model asks for; `arguments` is the JSON text it wrote."""

    kind: ClassVar[str] = "tool_call"
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolResult(Value):
    kind: ClassVar[str] = "tool_result"
    id: str
    text: str


Part = Text | Reasoning | Image | Audio | ToolCall | ToolResult


@dataclass(frozen=True, slots=True)
class Message(Value):
    """One turn: who speaks, and the parts said."""

    role: Role
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if self.role not in typing.get_args(Role):
            raise FormatError(f"unknown role {self.role!r}", cure=nearest(str(self.role), typing.get_args(Role)))

    @classmethod
    def of(cls, role: Role, text: str) -> Message:
        return cls(role, (Text(text),))

    @property
    def text(self) -> str:
        """The text parts joined."""
        return "".join(p.text for p in self.parts if isinstance(p, Text))


@dataclass(frozen=True, slots=True)
class Tool(Value):
    """A function the model may call; `parameters` is a JSON schema."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False  # calls must fit the schema, or the request is refused


@dataclass(frozen=True, slots=True)
class Conversation(Value):
    """The turns so far and the tools on offer."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()

    @classmethod
    def of(cls, user: str, system: str | None = None, images: Iterable[Image] = ()) -> Conversation:
        turns = [Message.of("system", system)] if system else []
        return cls((*turns, Message("user", (Text(user), *images))))

    def add(self, role: Role, text: str) -> Conversation:
        return dataclasses.replace(self, messages=(*self.messages, Message.of(role, text)))


_RANGES = {
    "temperature": (0, 100), "top_p": (0, 1), "min_p": (0, 1), "typical": (0, 1), "top_k": (0, math.inf),
    "repetition_penalty": (0, 10), "presence_penalty": (-2, 2), "frequency_penalty": (-2, 2),
    "dry_multiplier": (0, 100), "dry_base": (1, 100), "dry_allowed_length": (1, math.inf), "mirostat_tau": (0, 100),
    "mirostat_eta": (0, 1), "min_tokens": (0, math.inf), "n": (1, 128),
    "max_tokens": (0, math.inf), "logprobs": (0, math.inf), "prompt_logprobs": (0, math.inf),
}  # fmt: skip
_OPTIONAL = ("max_tokens", "logprobs", "prompt_logprobs")
_POSITIVE = ("top_p", "typical", "repetition_penalty", "mirostat_eta")  # the lower bound itself is none of them


@dataclass(frozen=True, slots=True)
class Sampling(Value):
    """How the next token is drawn. The defaults sample from the model's own distribution.

    `logprobs`: None for none, 0 for the chosen token, k for the k likeliest too; always those of the model's own
    distribution, before temperature and filters (as the OpenAI API and vLLM report them).
    `top_k` 0, `top_p` 1, `min_p` 0, `typical` 1 and penalties 0 (`repetition_penalty` 1) are off.
    DRY takes multiplier * base ** (n - allowed_length) from what would lengthen a repeat of n tokens; tokens that
    hold one of `dry_breakers` end it. Mirostat 2 (off at tau 0) takes the place of the four filters.
    `max_tokens` None: until the model stops or its context is full. `seed` None: fresh randomness.
    `tool_choice` "required": the answer is at least one call of a tool that the conversation offers.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    dry_breaker_ids: tuple[int, ...] = ()
    mirostat_tau: float = 0.0
    mirostat_eta: float = 0.1
    logit_bias: tuple[tuple[int, float], ...] = ()
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    seed: int | None = None
    n: int = 1
    best_of: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    response_format: Mapping[str, Any] | None = None
    tool_choice: Literal["auto", "required"] = "auto"
    parallel_tool_calls: bool = True

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            if (value := getattr(self, name)) is not None or name not in _OPTIONAL:
                _within(name, value, low, high, open_low=name in _POSITIVE)
        if self.best_of is not None and self.best_of < self.n:
            raise UsageError("best_of must be at least n", where=f"best_of={self.best_of}, n={self.n}")
        if not (all(self.stop) and all(self.dry_breakers)):
            raise UsageError("a stop string must not be empty", where="stop")


def _within(name: str, value: float, low: float, high: float, open_low: bool = False) -> None:
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    if not ok or not (low < value if open_low else low <= value) or value > high:
        raise UsageError(f"{name} must lie in {'(' if open_low else '['}{low}, {high}]", where=f"{name}={value!r}")


@dataclass(frozen=True, slots=True)
class Candidate(Value):
    """One entry of a next-token table. `id` is None where a remote does not tell."""

    id: int | None
    logprob: float
    text: str = ""


@dataclass(frozen=True, slots=True)
class Token(Value):
    """One token that was read or written: its natural-log probability and the likeliest alternatives.

    A `Model` fills `id`, `logprob` and `top`; a `Chat` adds the text and the bytes (a token may be part of a
    character, so its text alone can be a replacement mark).
    """

    id: int | None
    logprob: float | None = None
    top: tuple[Candidate, ...] = ()
    text: str = ""
    data: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage(Value):
    """What a request took. `queued`: seconds that it waited before the engine began to read it."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cost: float | None = None
    queued: float = dataclasses.field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Delta(Value):
    """A stream's next piece of choice `index`. `prompt`: its tokens, once, first, where `prompt_logprobs` asks.

    `stop`: the token that ended the choice, which is not among its tokens, where a `Model` is asked for `logprobs`.
    `call`: a piece of a tool call, with the id and name of the whole. `stopped_by`: the stop string that ended it.
    """

    index: int = 0
    part: Literal["text", "reasoning", "tool_call"] = "text"
    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    prompt: tuple[Token, ...] = ()
    stop: Token | None = None
    call: ToolCall | None = None
    stopped_by: str = ""

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(t.id for t in self.tokens if t.id is not None)


@dataclass(frozen=True, slots=True)
class Choice(Value):
    index: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tokens: tuple[Token, ...] = ()
    finish_reason: FinishReason | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(t.id for t in self.tokens if t.id is not None)


@dataclass(frozen=True, slots=True)
class Completion(Value):
    """A whole answer: exactly the fold of its Deltas."""

    choices: tuple[Choice, ...] = ()
    usage: Usage = Usage()
    prompt: tuple[Token, ...] = ()

    @property
    def text(self) -> str:
        return self.choices[0].text if self.choices else ""

    @classmethod
    def fold(cls, deltas: Iterable[Delta]) -> Completion:
        """Joins a stream. Deltas of several choices may interleave."""
        parts: dict[int, dict[str, Any]] = {}
        usage = Usage()
        prompt: tuple[Token, ...] = ()
        for d in deltas:
            usage, prompt = d.usage or usage, d.prompt or prompt
            if not (d.text or d.tokens or d.finish_reason or d.call):
                continue
            p = parts.setdefault(d.index, {"text": [], "reasoning": [], "calls": {}, "tokens": [], "finish": None})
            if d.call is not None:
                begun = p["calls"].get(d.call.id, ToolCall("", "", "")).arguments
                p["calls"][d.call.id] = dataclasses.replace(d.call, arguments=begun + d.call.arguments)
            elif d.part != "tool_call":
                p[d.part].append(d.text)
            p["tokens"].extend(d.tokens)
            p["finish"] = d.finish_reason or p["finish"]
        choices = tuple(
            Choice(i, "".join(p["text"]), "".join(p["reasoning"]), tuple(p["calls"].values()), tuple(p["tokens"]),
                   p["finish"])
            for i, p in sorted(parts.items())
        )  # fmt: skip
        return cls(choices, usage, prompt)


RECORD_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "text": {"text": str},
    "messages": {"messages": list},
    "completion": {"prompt": str, "completion": str},
    "preference": {"prompt": str, "chosen": str, "rejected": str},
    "kto": {"prompt": str, "completion": str, "label": bool},
    "class": {"text": str, "label": str},
    "spans": {"text": str, "spans": list},
    "qa": {"context": str, "question": str, "answers": list},
    "translation": {"source": str, "target": str},
    "triple": {"anchor": str, "positive": str, "negative": str},
    "answer": {"prompt": str, "answer": str},
    "checked": {"prompt": str},
}


@dataclass(frozen=True, slots=True)
class Record(Value):
    """One item of a dataset. `fields` depends on `kind`: RECORD_FIELDS is the closed list."""

    id: str
    source: str
    licence: str
    kind: str
    fields: Mapping[str, Any]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = RECORD_FIELDS.get(self.kind)
        if wanted is None:
            raise FormatError(f"unknown record kind {self.kind!r}", cure=nearest(str(self.kind), RECORD_FIELDS))
        for name, kind in wanted.items():
            if name not in self.fields:
                raise FormatError(f"a {self.kind!r} record needs the field {name!r}", where=f"record {self.id}")
            if not isinstance(self.fields[name], kind):
                got = type(self.fields[name]).__name__
                raise FormatError(f"field {name!r} has the wrong type {got}", where=f"record {self.id}")

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]


@dataclass(frozen=True, slots=True)
class Run(Value):
    """A folder that holds one piece of work: its settings, curves, samples, checkpoints and report."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def report(self) -> Path:
        return self.path / "report.md"


@runtime_checkable
class Model(Protocol):
    """Token ids in, logits or token ids out. It knows nothing of text."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def context_length(self) -> int: ...

    def logits(self, ids: Sequence[int]) -> FloatArray:
        """logits_TV: row t scores the token after ids[t]."""
        ...

    def generate(
        self, ids: Sequence[int], sampling: Sampling, *, cancel: Cancel | None = None, deadline: float | None = None
    ) -> Iterator[Delta]:
        """Deltas without text. `deadline` is in `time.monotonic` seconds. Closing the iterator cancels."""
        ...


@runtime_checkable
class Chat(Protocol):
    """Anything that answers a conversation. Most Chats wrap a Chat."""

    def stream(
        self, conversation: Conversation, sampling: Sampling, *, cancel: Cancel | None = None,
        deadline: float | None = None, priority: int = 0,
    ) -> Iterator[Delta]:  # fmt: skip
        """The answer as it is made. Closing the iterator cancels everything it wraps.

        Of requests that wait, a higher `priority` goes first, but before none that came AGE seconds a step earlier.
        """
        ...


@runtime_checkable
class Task(Protocol):
    """Records, a prompt for each, and a score: the same object feeds training, reward and evaluation."""

    name: str

    def records(self, split: str) -> Sequence[Record]: ...

    def prompt(self, record: Record) -> Conversation: ...

    def score(self, record: Record, completion: str) -> float: ...
