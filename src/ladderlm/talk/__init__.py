"""Chats: a local model, any OpenAI-compatible server, and an echo. `open_chat` is the door."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ladderlm.talk.echo import EchoChat
    from ladderlm.talk.local import LocalChat
    from ladderlm.talk.remote import RemoteChat

__all__ = ["open_chat"]


def open_chat(ref: str, *, key_env: str = "OPENAI_API_KEY") -> LocalChat | RemoteChat | EchoChat:
    """The Chat that `ref` names: "echo", "http(s)://host[:port][/v1]#model", or any local model reference.

    `key_env` names the environment variable with a remote's key. A remote needs the core dependencies alone.
    """
    if ref == "echo":
        from ladderlm.talk.echo import EchoChat

        return EchoChat()
    if ref.startswith(("http://", "https://")):
        from ladderlm.talk.remote import RemoteChat

        url, _, model = ref.partition("#")
        return RemoteChat(url, model, key_env=key_env)
    from ladderlm import engine
    from ladderlm.models import open_model
    from ladderlm.talk.local import LocalChat

    files = open_model(ref)
    return LocalChat(files, engine.load(files))
