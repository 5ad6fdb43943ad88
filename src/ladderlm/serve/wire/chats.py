"""/v1/chats, /v1/presets and /v1/votes: what the page keeps."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ladderlm.serve.wire.base import Object, Whole, Wire

Name = Annotated[str, Field(max_length=200)]
Id = Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]
Long = Annotated[str, Field(max_length=2_000_000)]


class ChatFields(Wire):
    title: Name | None = None
    folder: Name | None = None
    system: Long | None = None
    settings: Object | None = None


class ChatPatch(ChatFields):
    leaf: Id | None = None


class MessageBody(Wire):
    """One turn. `tokens`: [text, logprob, [[text, logprob], ...], bytes when they are part of a character]."""

    id: Id | None = None
    parent: Id | None = None
    role: Literal["user", "assistant"]
    content: Long
    reasoning: Long | None = None
    model: Name | None = None
    sampling: Object | None = None
    timings: Object | None = None
    attachments: list[Object] | None = None
    finish: Name | None = None
    created: float | None = None
    tokens: list[list[Any]] | None = None


class ImportedMessage(MessageBody):
    id: Id


class ImportedChat(ChatFields):
    leaf: Id | None = None
    created: float | None = None
    updated: float | None = None
    messages: list[ImportedMessage] = Field(default_factory=list)


class ImportBody(Wire):
    format: Literal[1]
    chats: list[ImportedChat]


class PresetBody(Wire):
    name: Annotated[str, Field(min_length=1, max_length=200)]
    system: Long | None = None
    model: Name | None = None
    sampling: Object | None = None


class Turn(Wire):
    role: Literal["system", "user", "assistant"]
    content: Long


class Answer(Wire):
    model: Name
    content: Long


class VoteBody(Wire):
    """Which of the answers is best (None: none is, or with `tie` all are as good), and how it should have been.

    `blind`: who voted did not know which model said what.
    """

    messages: Annotated[list[Turn], Field(min_length=1, max_length=10_000)]
    answers: Annotated[list[Answer], Field(min_length=1, max_length=16)]
    choice: Annotated[Whole, Field(ge=0)] | None = None
    tie: bool | None = None
    blind: bool | None = None
    correction: Long | None = None
    sampling: Object | None = None

    @model_validator(mode="after")
    def _names_an_answer(self) -> VoteBody:
        if self.choice is not None and self.choice >= len(self.answers):
            raise ValueError(f"choice must be less than {len(self.answers)}")
        if self.tie and self.choice is not None:
            raise ValueError("a tie has no choice")
        return self


def plain(body: Wire) -> Object:
    """The fields that were given; null means absent."""
    return body.model_dump(exclude_none=True)
