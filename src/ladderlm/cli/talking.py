"""What chat, ask and next share: the flags that choose and sample a model, and how its words reach the terminal."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ladderlm.cli import show
from ladderlm.config import option
from ladderlm.errors import UsageError, nearest
from ladderlm.models.catalogue import DEFAULT_MODEL
from ladderlm.talk import Talker, open_chat
from ladderlm.talk.device import DEVICE, DRAFT, KV_CACHE_DTYPE, KV_CACHE_MB
from ladderlm.types import Delta, KVType, Sampling

# Everything below space but tab and newline, and the 8-bit controls: a model's text must not steer the terminal.
_CONTROLS = {c: None for c in (*range(32), *range(127, 160)) if c not in (9, 10)}


@dataclass(frozen=True)
class ModelFlags:
    """Which model, and what it may cost."""

    model: str = option(DEFAULT_MODEL, "name, folder, file.gguf, run:ID, base+adapter, URL#model, or echo", short="-m")
    key_env: str = option("OPENAI_API_KEY", "environment variable that holds a remote's key")
    max_cost: float | None = option(None, "stop before a remote costs more (prices: [prices] in config.toml)")
    device: str = option("auto", DEVICE)
    kv_cache_mb: int | None = option(None, KV_CACHE_MB)
    kv_cache_dtype: KVType = option("auto", KV_CACHE_DTYPE)
    draft: str | None = option(None, DRAFT)
    json: bool = option(False, "print JSON")

    def open(self) -> Talker:
        """The model, with progress shown while it is fetched, packed or compiled."""
        with show.progress():
            return open_chat(
                self.model, key_env=self.key_env, max_cost=self.max_cost, device=self.device,
                kv_bytes=None if self.kv_cache_mb is None else self.kv_cache_mb << 20,
                kv_dtype=self.kv_cache_dtype, draft=self.draft,
            )  # fmt: skip


@dataclass(frozen=True)
class SamplingFlags(ModelFlags):
    """How the answer is drawn. What is not given is left to the model's own defaults."""

    temperature: float | None = option(None, "0 always takes the likeliest token", short="-t")
    top_p: float | None = option(None, "keep the likeliest tokens that make up this probability")
    top_k: int | None = option(None, "keep the K likeliest tokens; 0 for all")
    min_p: float | None = option(None, "drop tokens below this share of the likeliest one's probability")
    typical: float | None = option(None, "locally typical sampling")
    repetition_penalty: float | None = option(None, "above 1 discourages tokens that were there before")
    presence_penalty: float | None = option(None, "-2 to 2, once for each token that was written")
    frequency_penalty: float | None = option(None, "-2 to 2, for each time a token was written")
    dry_multiplier: float | None = option(None, "above 0 discourages tokens that would go on repeating a passage (DRY)")
    dry_base: float | None = option(None, "how fast that grows with the passage's length")
    dry_allowed_length: int | None = option(None, "passages shorter than this may be repeated")
    mirostat_tau: float | None = option(
        None, "above 0 holds surprise at so many bits (mirostat 2), in place of filters"
    )
    mirostat_eta: float | None = option(None, "how fast mirostat adjusts")
    logit_bias: tuple[str, ...] = option((), "ID=BIAS added to a token's logit (may be repeated)")
    max_tokens: int | None = option(None, "end the answer after so many tokens", short="-n")
    min_tokens: int | None = option(None, "do not end the answer before")
    stop: tuple[str, ...] = option((), r"text that ends the answer; \n is a newline (may be repeated)")
    seed: int | None = option(None, "the same seed gives the same answer")

    def over(self, defaults: Sampling) -> Sampling:
        """The flags given, over `defaults`."""
        names = {f.name for f in dataclasses.fields(Sampling)}
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name in names}
        given = {name: value for name, value in given.items() if value not in (None, ())}
        if self.stop:
            given["stop"] = tuple(s.replace("\\n", "\n").replace("\\t", "\t") for s in self.stop)
        if self.logit_bias:
            given["logit_bias"] = tuple(map(_bias, self.logit_bias))
        return dataclasses.replace(defaults, **given)


def _bias(text: str) -> tuple[int, float]:
    id, _, bias = text.partition("=")
    try:
        return int(id), float(bias)
    except ValueError:
        raise UsageError("must be ID=BIAS", where=f"--logit-bias {text}") from None


_SETTABLE = ("temperature", "top_p", "top_k", "min_p", "typical", "repetition_penalty", "presence_penalty",
             "frequency_penalty", "dry_multiplier", "dry_base", "dry_allowed_length", "mirostat_tau", "mirostat_eta",
             "max_tokens", "min_tokens", "seed", "stop")  # fmt: skip


def changed(sampling: Sampling, assignment: str) -> Sampling:
    """`sampling` after "name=value"; "none" takes back max_tokens, seed and stop."""
    name, found, value = (part.strip() for part in assignment.partition("="))
    name = name.replace("-", "_")
    if not found or name not in _SETTABLE:
        raise UsageError(f"cannot set {name!r}", cure=nearest(name, _SETTABLE) if found else "such as temperature=0.5")
    parsed: Any
    if name == "stop":
        parsed = () if value.lower() == "none" else (value.replace("\\n", "\n"),)
    elif value.lower() == "none" and name in ("max_tokens", "seed"):
        parsed = None
    else:
        kind = int if name in ("top_k", "dry_allowed_length", "max_tokens", "min_tokens", "seed") else float
        try:
            parsed = kind(value)
        except ValueError:
            raise UsageError(f"{name} must be a number", where=value) from None
    return dataclasses.replace(sampling, **{name: parsed})


# --- Output -------------------------------------------------------------------------------------------------------


def started(stream: Iterator[Delta]) -> Iterator[Delta]:
    """The same stream; progress is shown until its first Delta (the first request may compile kernels)."""
    with show.progress():
        first = next(stream, None)
    if first is not None:
        yield first
        yield from stream


def say(text: str) -> None:
    """Writes a piece of a model's answer at once."""
    sys.stdout.write(text.translate(_CONTROLS) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def think(text: str) -> None:
    """Writes a piece of a model's reasoning, dimmed, where a person watches."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\x1b[2m{text.translate(_CONTROLS)}\x1b[0m")
        sys.stderr.flush()


def note(text: str) -> None:
    """A remark to the person at the terminal; nothing in a pipe."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\x1b[2m{text}\x1b[0m\n")


def visible(text: str) -> str:
    """A token as a table shows it: spaces as they are, but quoted, and controls escaped."""
    return repr(text)
