"""Tools and the choice among them, as the OpenAI API says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from ladderlm.errors import UsageError
from ladderlm.serve.wire.base import Object, Wire
from ladderlm.types import Tool

MAX_TOOLS = 128
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Function(Wire):
    name: Name
    description: str | None = None
    parameters: Object | None = None
    strict: bool | None = None

    @property
    def tool(self) -> Tool:
        return Tool(self.name, self.description or "", self.parameters or {}, bool(self.strict))


class FunctionTool(Wire):
    type: Literal["function"]
    function: Function


class Named(Wire):
    name: Name


class NamedFunction(Wire):
    type: Literal["function"]
    function: Named


class AllowedTools(Wire):
    mode: Literal["auto", "required"]
    tools: list[NamedFunction]


class Allowed(Wire):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Literal["none", "auto", "required"] | Annotated[NamedFunction | Allowed, Field(discriminator="type")]
Offer = tuple[tuple[Tool, ...], Literal["auto", "required"]]


class CalledFunction(Wire):
    name: str
    arguments: str


class Call(Wire):
    """A tool call, in a message and in an answer."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


def offer(tools: Sequence[FunctionTool] | None, choice: Any) -> Offer:
    """The tools on offer, and whether one must be called."""
    every = tuple(tool.function.tool for tool in tools or ())
    if isinstance(choice, NamedFunction):
        return narrowed(every, [choice.function.name], required=True)
    if isinstance(choice, Allowed):
        names = [tool.function.name for tool in choice.allowed_tools.tools]
        return narrowed(every, names, required=choice.allowed_tools.mode == "required")
    return chosen(every, choice or "auto")


def chosen(tools: tuple[Tool, ...], choice: str) -> Offer:
    """What is on offer under "none", "auto" or "required"."""
    names = [tool.name for tool in tools]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"two tools are named {twice!r}", where="tools")
    if choice == "required" and not tools:
        raise UsageError("no tools are offered", where="tool_choice", cure="name some in tools")
    return (() if choice == "none" else tools), "required" if choice == "required" else "auto"


def narrowed(tools: tuple[Tool, ...], names: Sequence[str], *, required: bool) -> Offer:
    """Only the tools of these names."""
    known = [tool.name for tool in tools]
    for name in names:
        if name not in known:
            raise UsageError(f"no tool is named {name!r}", where="tool_choice", cure="name it in tools")
    return chosen(tuple(tool for tool in tools if tool.name in names), "required" if required else "auto")
