"""How tokens are drawn, as the OpenAI API says it and as other servers extend it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from ladderlm.serve.wire.base import AsWhole, Id, Object, Ranked, Whole, Wire
from ladderlm.types import Sampling

DRAWING = ("temperature", "top_p", "top_k", "min_p")
MIROSTAT_TAU = 5.0  # where a client asks for mirostat and no surprise
MAX_STOPS = 16
MAX_BREAKERS = 64
_RENAMED = {"typical_p": "typical", "stop_token_ids": "stop_ids", "dry_sequence_breakers": "dry_breakers"}
_AS_IS = (
    "temperature", "top_p", "presence_penalty", "frequency_penalty", "n", "typical_p", "min_p", "top_k",
    "repetition_penalty", "min_tokens", "dry_multiplier", "dry_base", "dry_allowed_length", "mirostat_eta",
)  # fmt: skip

Text = Annotated[str, Field(min_length=1)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Mirostat = Annotated[int, Field(ge=0, le=2, multiple_of=2), AsWhole]  # off, or its second version
Share = Annotated[float, Field(gt=0, le=1)]


class _Format(Wire):
    model_config = ConfigDict(extra="allow")


class PlainText(_Format):
    type: Literal["text"]


class JsonObject(_Format):
    type: Literal["json_object"]


class Schema(_Format):
    schema_: Object = Field(alias="schema")


class JsonSchema(_Format):
    type: Literal["json_schema"]
    json_schema: Schema


class Regex(_Format):
    type: Literal["regex"]
    regex: str


class Grammar(_Format):
    """Lark's syntax, or llama.cpp's GBNF."""

    type: Literal["grammar"]
    grammar: str


ResponseFormat = Annotated[PlainText | JsonObject | JsonSchema | Regex | Grammar, Field(discriminator="type")]


class StreamOptions(Wire):
    include_usage: bool | None = None


class SamplingFields(Ranked):
    """What chat and raw completions share. From typical_p on: extensions that other servers know too."""

    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Share | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Whole | None = None
    n: Annotated[int, Field(ge=1, le=128), AsWhole] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=MAX_STOPS)] | None = None
    logit_bias: dict[Annotated[str, Field(pattern="^[0-9]+$")], Bias] | None = None
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    typical_p: Share | None = None
    min_p: Fraction | None = None
    top_k: Annotated[int, Field(ge=-1), AsWhole] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    min_tokens: Annotated[int, Field(ge=0), AsWhole] | None = None
    stop_token_ids: list[Id] | None = None
    dry_multiplier: Annotated[float, Field(ge=0, le=100)] | None = None
    dry_base: Annotated[float, Field(ge=1, le=100)] | None = None
    dry_allowed_length: Annotated[int, Field(ge=1), AsWhole] | None = None
    dry_sequence_breakers: Annotated[list[Text], Field(max_length=MAX_BREAKERS)] | None = None
    mirostat: Mirostat | None = None
    mirostat_mode: Mirostat | None = None
    mirostat_tau: Annotated[float, Field(ge=0, le=100)] | None = None
    mirostat_eta: Share | None = None
    grammar: str | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def drawn_by_model(self) -> bool:
        """Nothing is said about how to draw: the model's own settings hold."""
        return all(getattr(self, name) is None for name in DRAWING)

    def drawn(self, **settled: Any) -> Sampling:
        """The sampling asked for; `settled` fields are taken as they are."""
        values: dict[str, Any] = {
            _RENAMED.get(name, name): value for name in _AS_IS if (value := getattr(self, name)) is not None
        }
        if values.get("top_k") == -1:  # other servers' "no limit"
            values["top_k"] = 0
        if self.seed is not None:
            values["seed"] = self.seed % 2**63
        if self.mirostat_mode or (self.mirostat_mode is None and self.mirostat):
            values["mirostat_tau"] = MIROSTAT_TAU if self.mirostat_tau is None else self.mirostat_tau
        if self.dry_sequence_breakers is not None:
            values["dry_breakers"] = tuple(self.dry_sequence_breakers)
        values["stop"] = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        values["stop_ids"] = tuple(self.stop_token_ids or ())
        values["logit_bias"] = tuple((int(id), bias) for id, bias in (self.logit_bias or {}).items())
        return Sampling(**values, response_format=self.form, **settled)

    @property
    def form(self) -> Mapping[str, Any] | None:
        """The answer's form: of the OpenAI API, a regex, or a grammar, which may also stand by itself."""
        if self.response_format is None:
            return {"type": "grammar", "grammar": self.grammar} if self.grammar else None
        if isinstance(self.response_format, PlainText):
            return None
        return self.response_format.model_dump(by_alias=True, exclude_unset=True)
