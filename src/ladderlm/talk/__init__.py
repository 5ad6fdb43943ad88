"""Chats: a local model, any OpenAI-compatible server, and an echo. `open_chat` is the door."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ladderlm.types import Cancel, Candidate, Conversation, Delta, KVType, Sampling

if TYPE_CHECKING:
    from ladderlm.engine.engine import Engine
    from ladderlm.models.folder import ModelFiles

__all__ = ["Talker", "open_chat", "sees"]
_REMOTE = ("http://", "https://")


@runtime_checkable
class Talker(Protocol):
    """A Chat that also reads raw text and tells probabilities."""

    @property
    def name(self) -> str: ...

    @property
    def defaults(self) -> Sampling:
        """How its makers mean it to be sampled."""
        ...

    def stream(
        self,
        conversation: Conversation,
        sampling: Sampling,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
        priority: int = 0,
    ) -> Iterator[Delta]: ...

    def complete(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
        priority: int = 0,
    ) -> Iterator[Delta]:
        """Goes on with raw text (or ids), no template around it."""
        ...

    def next(self, prompt: str | Conversation, k: int = 10) -> list[Candidate]:
        """The k likeliest next tokens, likeliest first."""
        ...

    def word_sums(self, prompt: str, words: Sequence[str]) -> dict[str, float]:
        """The probability that the text goes on with each word, however many tokens it has."""
        ...

    def rank(self, prompt: str | Conversation, choices: Sequence[str]) -> list[float]:
        """The log-likelihood of each choice as the continuation, in the order given."""
        ...

    def close(self) -> None: ...


def sees(ref: str) -> bool:
    """Whether the model that `ref` names may be shown images: a remote's may, what runs here reads text only."""
    return ref.startswith(_REMOTE)


def check(ref: str) -> None:
    """Raises what `open_chat` would for a local model that is not there; nothing is read, fetched or called."""
    from ladderlm.models import reference

    if ref != "echo" and not ref.startswith(_REMOTE):
        reference.check(ref)


def open_chat(
    ref: str,
    *,
    key_env: str = "OPENAI_API_KEY",
    max_cost: float | None = None,
    device: str = "auto",
    kv_bytes: int | None = None,
    kv_dtype: KVType = "auto",
    draft: str | None = None,
) -> Talker:
    """The Chat that `ref` names: "echo", "http(s)://host[:port][/v1]#model", or any local model reference.

    Of base+adapter the adapter is applied as the base runs: the base's weights stay as small as they are;
    one that changes whole matrices (DoRA, (IA)3) is merged into them.
    `key_env` names the environment variable with a remote's key, `max_cost` is the most a remote may cost in all,
    `device` where a local model runs (see talk.device), `kv_bytes` its memory for keys and values, `kv_dtype` how they
    are kept, and `draft` a smaller local model with the same tokenizer that guesses what it writes.
    A remote needs the core dependencies alone.
    """
    if ref == "echo":
        from ladderlm.talk.echo import EchoChat

        return EchoChat()
    if ref.startswith(_REMOTE):
        from ladderlm.talk.remote import RemoteChat

        url, _, model = ref.partition("#")
        return RemoteChat(url, model, key_env=key_env, max_cost=max_cost)
    from ladderlm.models import open_model
    from ladderlm.models.reference import split_apart
    from ladderlm.talk.device import load
    from ladderlm.talk.local import LocalChat

    def run(files: ModelFiles) -> Engine:
        return load(files, device, kv_bytes=kv_bytes, kv_dtype=kv_dtype, draft=open_model(draft) if draft else None)

    split = split_apart(ref)
    files = open_model(split[0] if split else ref)
    alone = LocalChat(files, run(files))
    if split is None:
        return alone
    try:
        return alone.adapted(ref, split[1], alone.close)
    except BaseException:
        alone.close()
        raise
