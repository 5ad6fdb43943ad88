"""Responses: items to conversations, Deltas to items and events, and what is kept of them."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ladderlm import store
from ladderlm.errors import LadderError, NotFound, UsageError, outcome
from ladderlm.serve.answers import chat_logprobs
from ladderlm.serve.wire.base import Object
from ladderlm.serve.wire.responses import JsonSchemaFormat, ResponseBody
from ladderlm.types import (
    Completion,
    Conversation,
    Delta,
    Image,
    Message,
    Part,
    Reasoning,
    Text,
    Token,
    Tool,
    ToolCall,
    ToolResult,
    Usage,
)

RESTARTED = "the server ended before the answer was complete"
MAX_CHAIN = 1000  # responses before one
REFERRED = 1000  # latest responses in which an item is looked for
_PREFIXES = {
    "message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs", "compaction": "cmp",
}  # fmt: skip


def fresh(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(24)}"


# --- Items to a conversation --------------------------------------------------------------------------------------


def named(items: Sequence[Object]) -> list[Object]:
    """The items with an id each, and what they say in parts."""
    out = []
    for item in items:
        full = {"id": fresh(_PREFIXES[item["type"]]), "status": "completed", **item}
        if full["type"] == "message" and isinstance(full["content"], str):
            kind = "output_text" if full["role"] == "assistant" else "input_text"
            full["content"] = [{"type": kind, "text": full["content"]}]
        out.append(full)
    return out


def conversation(
    items: Sequence[Object], instructions: str | None, tools: tuple[Tool, ...], *, answered: bool = True
) -> Conversation:
    """What the model reads. What anybody but the user says in a row is one turn, thoughts and calls included.

    Raises UsageError where it is to be answered and there is nothing to answer.
    """
    turns: list[tuple[str, list[Part]]] = [("system", [Text(instructions)])] if instructions else []
    for item in items:
        role, parts = _parts(item)
        if turns and turns[-1][0] == role != "user":
            said = turns[-1][1]
            if isinstance(parts[0], Text) and any(isinstance(p, Text) for p in said):
                parts = [Text("\n\n" + parts[0].text)]
            said += parts
        else:
            turns.append((role, parts))
    messages = tuple(Message(role, tuple(parts)) for role, parts in turns)  # type: ignore[arg-type]
    if not answered:
        return Conversation(messages, tools)
    if not any(m.role != "system" for m in messages):
        raise UsageError("there is nothing to answer", where="input")
    if messages[-1].role == "assistant" and any(not isinstance(p, Text) for p in messages[-1].parts):
        raise UsageError("the last item calls a tool or thinks", where="input", cure="add the call's output")
    return Conversation(messages, tools)


def _parts(item: Object) -> tuple[str, list[Part]]:
    """Who speaks, and what; one part, but where images are shown."""
    kind = item["type"]
    if kind == "function_call":
        return "assistant", [ToolCall(item["call_id"], item["name"], item["arguments"])]
    if kind == "function_call_output":
        output = item["output"]
        return "tool", [ToolResult(item["call_id"], _text(output)), *_images(() if isinstance(output, str) else output)]
    if kind == "reasoning":
        return "assistant", [Reasoning(_text(item.get("content") or item["summary"]))]
    if kind == "compaction":
        return "system", [Text("What was said before, in short: " + opened(item["encrypted_content"]))]
    role, content = "system" if item["role"] == "developer" else item["role"], item["content"]
    if isinstance(content, str) or not any(part["type"] == "input_image" for part in content):
        return role, [Text(_text(content))]
    return role, [image for p in content for image in (_images([p]) or [Text(_text([p]))])]


def _images(parts: Sequence[Object]) -> list[Part]:
    return [Image(p["sha256"], p["media_type"], p["detail"]) for p in parts if p["type"] == "input_image"]


def _text(content: str | list[Object]) -> str:
    return content if isinstance(content, str) else "".join(p.get("text") or p.get("refusal") or "" for p in content)


# --- What stands for a whole conversation --------------------------------------------------------------------------


def sealed(summary: str) -> Object:
    """A compaction item. What it holds is no secret: encoded, so that it goes back as it came."""
    content = base64.urlsafe_b64encode(json.dumps({"summary": summary}).encode()).decode()
    return {"type": "compaction", "id": fresh("cmp"), "encrypted_content": content}


def opened(content: str) -> str:
    """The summary in a compaction item. Raises UsageError for another server's."""
    try:
        summary = json.loads(base64.urlsafe_b64decode(content.encode()))["summary"]
    except (ValueError, TypeError, KeyError):
        summary = None
    if not isinstance(summary, str):
        raise UsageError("not a compaction of this server", where="encrypted_content", cure="send the items themselves")
    return summary


def compacted(found: Completion) -> Object:
    return {
        "id": fresh("resp"), "object": "response.compaction", "created_at": int(time.time()),
        "output": [sealed(found.text)], "usage": _usage(found.usage, 0),
    }  # fmt: skip


# --- Deltas to a response -----------------------------------------------------------------------------------------


class Answering:
    """One response as it is made. Each method gives the events that tell what it changed."""

    def __init__(self, body: ResponseBody, model: str) -> None:
        self.whole = _blank(body, model)
        self._logprobs = body.logprobs
        self._silent = body.generate is False  # nothing was to be said
        self._number = 0
        self._thought = 0  # tokens
        self._open: Object | None = None  # the item that is being said
        self._reason = "stop"

    def begin(self) -> list[Object]:
        self.whole["status"] = "in_progress"
        return [self._event("response.created", response=self._copy()),
                self._event("response.in_progress", response=self._copy())]  # fmt: skip

    def add(self, delta: Delta) -> list[Object]:
        events: list[Object] = []
        self._thought += len(delta.tokens) if delta.part == "reasoning" else 0
        if delta.usage is not None:
            self.whole["usage"] = _usage(delta.usage, self._thought)
        if delta.call is not None:
            events = self._call(delta.call)
        elif delta.text and delta.part == "reasoning":
            events = self._say("reasoning", delta.text, ())
        elif delta.text or (delta.tokens and self._logprobs and self._is_open("message")):
            events = self._say("message", delta.text, delta.tokens)
        self._reason = delta.finish_reason or self._reason
        return events

    def end(self) -> list[Object]:
        """The answer is complete, or cut off."""
        cut = self._reason == "cancelled" or (self._reason == "length" and not self._silent)
        if not self.whole["output"] and not self._silent:
            events = self._start({"type": "message", "role": "assistant", "content": []}, "msg")
            events += self._first_part({"type": "output_text", "text": "", "annotations": [], "logprobs": []})
        else:
            events = []
        events += self._close("incomplete" if cut else "completed")
        self.whole["status"] = "incomplete" if cut else "completed"
        self.whole["incomplete_details"] = {"reason": "max_output_tokens"} if cut else None
        self.whole["completed_at"] = None if cut else int(time.time())
        return [*events, self._event(f"response.{self.whole['status']}", response=self._copy())]

    def fail(self, error: BaseException) -> list[Object]:
        message = str(error) if isinstance(error, LadderError) else "internal error"
        self._close("incomplete")
        self.whole["status"] = "failed"
        self.whole["error"] = {"code": outcome(error).wire_type, "message": message}
        return [self._event("response.failed", response=self._copy())]

    # --- The items ------------------------------------------------------------------------------------------------

    def _say(self, kind: str, text: str, tokens: Sequence[Token]) -> list[Object]:
        """A piece of a message or of reasoning."""
        events: list[Object] = []
        if not self._is_open(kind):
            if kind == "message":
                events = self._start({"type": "message", "role": "assistant", "content": []}, "msg")
                events += self._first_part({"type": "output_text", "text": "", "annotations": [], "logprobs": []})
            else:
                events = self._start({"type": "reasoning", "summary": [], "content": []}, "rs")
                events += self._first_part({"type": "reasoning_text", "text": ""})
        assert self._open is not None
        part = self._open["content"][0]
        part["text"] += text
        if kind == "reasoning":
            return [*events, self._at("response.reasoning_text.delta", delta=text, content_index=0)]
        told = _logprobs(tokens) if self._logprobs else []
        part["logprobs"] += told
        return [*events, self._at("response.output_text.delta", delta=text, content_index=0, logprobs=told)]

    def _call(self, call: ToolCall) -> list[Object]:
        events: list[Object] = []
        if not self._is_open("function_call") or (self._open or {}).get("call_id") != call.id:
            item = {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": ""}
            events = self._start(item, "fc")
        assert self._open is not None
        self._open["arguments"] += call.arguments
        if call.arguments:
            events.append(self._at("response.function_call_arguments.delta", delta=call.arguments))
        return events

    def _is_open(self, kind: str) -> bool:
        return self._open is not None and self._open["type"] == kind

    def _start(self, item: Object, prefix: str) -> list[Object]:
        events = self._close("completed")
        self._open = {"id": fresh(prefix), "status": "in_progress", **item}
        self.whole["output"].append(self._open)
        return [*events, self._item("response.output_item.added")]

    def _first_part(self, part: Object) -> list[Object]:
        assert self._open is not None
        self._open["content"].append(part)
        return [self._at("response.content_part.added", content_index=0, part=dict(part))]

    def _close(self, status: str) -> list[Object]:
        item = self._open
        if item is None:
            return []
        item["status"] = status
        if item["type"] == "function_call":
            done = [self._at("response.function_call_arguments.done", name=item["name"], arguments=item["arguments"])]
        else:
            part = item["content"][0]
            name = "output_text" if item["type"] == "message" else "reasoning_text"
            more = {"logprobs": part["logprobs"]} if item["type"] == "message" else {}
            done = [self._at(f"response.{name}.done", content_index=0, text=part["text"], **more),
                    self._at("response.content_part.done", content_index=0, part=part)]  # fmt: skip
        done.append(self._item("response.output_item.done"))
        self._open = None
        return done

    # --- The events -----------------------------------------------------------------------------------------------

    def _event(self, type: str, **fields: Any) -> Object:
        event = {"type": type, "sequence_number": self._number, **fields}
        self._number += 1
        return event

    def _at(self, type: str, **fields: Any) -> Object:
        assert self._open is not None
        index = len(self.whole["output"]) - 1
        return self._event(type, item_id=self._open["id"], output_index=index, **fields)

    def _item(self, type: str) -> Object:
        item = json.loads(json.dumps(self._open))
        return self._event(type, output_index=len(self.whole["output"]) - 1, item=item)

    def _copy(self) -> Object:
        copy: Object = json.loads(json.dumps(self.whole))
        return copy


def _blank(body: ResponseBody, model: str) -> Object:
    """A response before anything is said: what was asked, told back with its defaults."""
    form = body.text.format if body.text else None
    told = {"type": "text"} if form is None else form.model_dump(by_alias=True)
    if isinstance(form, JsonSchemaFormat):
        told |= {"strict": bool(form.strict)}
    tools = [
        {"type": "function", "name": t.name, "description": t.description, "parameters": t.parameters,
         "strict": bool(t.strict)}
        for t in body.tools or ()
    ]  # fmt: skip
    choice = body.tool_choice
    thinking = body.reasoning.model_dump() if body.reasoning else {"effort": None, "summary": None}
    return {
        "id": fresh("resp"), "object": "response", "created_at": int(time.time()), "completed_at": None,
        "status": "queued", "error": None, "incomplete_details": None, "model": model, "output": [],
        "previous_response_id": body.previous_response_id,
        "conversation": None if (belongs := body.conversation_id) is None else {"id": belongs},
        "instructions": body.instructions, "metadata": body.metadata or {}, "usage": None, "tools": tools,
        "tool_choice": "auto" if choice is None else choice if isinstance(choice, str) else choice.model_dump(),
        "parallel_tool_calls": body.parallel_tool_calls is not False, "truncation": body.truncation or "disabled",
        "text": {"format": told} | ({"verbosity": body.text.verbosity} if body.text and body.text.verbosity else {}),
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "presence_penalty": body.presence_penalty or 0.0, "frequency_penalty": body.frequency_penalty or 0.0,
        "top_logprobs": body.top_logprobs or 0, "reasoning": thinking, "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls, "store": body.kept, "background": bool(body.background),
        "service_tier": "default", "safety_identifier": body.safety_identifier,
        "prompt_cache_key": body.prompt_cache_key, "user": body.user,
    }  # fmt: skip


def _usage(usage: Usage, thought: int) -> Object:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _logprobs(tokens: Sequence[Token]) -> list[Object]:
    content: list[Object] = chat_logprobs(tokens)["content"]
    for token in content:
        for told in (token, *token["top_logprobs"]):
            told["bytes"] = told["bytes"] or []
    return content


# --- What is kept -------------------------------------------------------------------------------------------------


@dataclass
class Latest:
    """What was said up to the latest response of a lane; `known` has that of all lanes of a connection, by id."""

    known: dict[str, list[Object]]
    _id: str = ""

    def remember(self, id: str, said: list[Object]) -> None:
        self.known.pop(self._id, None)
        self.known[id], self._id = said, id


def keep(user: str, response: Object, items: Sequence[Object]) -> None:
    """Writes a response, or how it has come on."""
    row = (response["id"], user, response["created_at"], response["previous_response_id"], json.dumps(items),
           json.dumps(response))  # fmt: skip
    with store.transaction() as db:
        db.execute("INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?, ?, ?)", row)


def find(user: str, id: str) -> tuple[Object, list[Object]]:
    """A response and its input. NotFound where there is none of this owner's."""
    with store.reading() as db:
        row = db.execute("SELECT body, input FROM responses WHERE id = ? AND user = ?", (id, user)).fetchone()
    if row is None:
        raise NotFound(f"no response {id!r}", where="response")
    return json.loads(row[0]), json.loads(row[1])


def last_row() -> int:
    """The row that was written last: whatever an earlier server left undone is not after it."""
    with store.reading() as db:
        row = db.execute("SELECT max(rowid) FROM responses").fetchone()
    return row[0] or 0


def fail_orphans(last: int) -> int:
    """Responses in the background up to row `last` that a killed server did not end have failed. How many."""
    query = """SELECT rowid FROM responses WHERE rowid <= ?
        AND (body LIKE '%"status": "queued"%' OR body LIKE '%"status": "in_progress"%')"""
    with store.reading() as db:
        rows = [row[0] for row in db.execute(query, (last,))]
    count = 0
    for row in rows:
        with store.transaction() as db:
            found = db.execute("SELECT body FROM responses WHERE rowid = ?", (row,)).fetchone()
            body = json.loads(found[0]) if found else {"status": "gone"}
            if unfinished(body):
                db.execute("UPDATE responses SET body = ? WHERE rowid = ?", (json.dumps(orphaned(body)), row))
                count += 1
    return count


def unfinished(body: Object) -> bool:
    return body["status"] in ("queued", "in_progress")


def orphaned(body: Object) -> Object:
    """A response that nobody works on any more."""
    return {**body, "status": "failed", "error": {"code": "server_error", "message": RESTARTED}}


def forget(user: str, id: str) -> None:
    """Deletes a response. NotFound where there is none of this owner's."""
    with store.transaction() as db:
        found = db.execute("DELETE FROM responses WHERE id = ? AND user = ?", (id, user)).rowcount
    if not found:
        raise NotFound(f"no response {id!r}", where="response")


def before(user: str, id: str | None) -> list[Object]:
    """The items that led to `id` and that it says, from the first response of its chain on."""
    chain: list[list[Object]] = []
    while id is not None:
        try:
            body, items = find(user, id)
        except NotFound:
            what = "the response before was deleted" if chain else "no such response"
            raise NotFound(what, where="previous_response_id", cure="send the whole input") from None
        if unfinished(body):
            raise UsageError("the response before is not complete", where="previous_response_id", cure="wait for it")
        if (belongs := body.get("conversation")) is not None:
            cure = f"give conversation: {belongs['id']}"
            raise UsageError("the response before is of a conversation", where="previous_response_id", cure=cure)
        chain.append([*items, *body["output"]])
        id = body["previous_response_id"]
        if len(chain) > MAX_CHAIN:
            raise UsageError(f"more than {MAX_CHAIN} responses before this one", where="previous_response_id")
    return [item for items in reversed(chain) for item in items]


def referred(user: str, items: Sequence[Object]) -> list[Object]:
    """The items, those that are named by their ids as they stand in the owner's stored responses.

    Raises NotFound for one that the latest of these do not hold.
    """
    wanted = {item["id"] for item in items if item["type"] == "item_reference"}
    found: dict[str, Object] = {}
    query = "SELECT input, body FROM responses WHERE user = ? ORDER BY created DESC, rowid DESC LIMIT ?"
    with store.reading() as db:
        for asked, body in db.execute(query, (user, REFERRED)):
            if wanted <= found.keys():
                break
            for item in (*json.loads(asked), *json.loads(body)["output"]):
                if item["id"] in wanted:
                    found.setdefault(item["id"], item)
    for number, item in enumerate(items):
        if item["type"] == "item_reference" and item["id"] not in found:
            raise NotFound(f"no item {item['id']!r}", where=f"input[{number}]", cure="send the item itself")
    return [found[item["id"]] if item["type"] == "item_reference" else item for item in items]


def shortened(talk: Conversation) -> Iterator[Conversation]:
    """The conversation with more and more of its oldest turns left out; system turns and the last one stay."""
    messages = list(talk.messages)
    while (oldest := next((i for i, m in enumerate(messages[:-1]) if m.role != "system"), None)) is not None:
        del messages[oldest]
        while oldest < len(messages) - 1 and messages[oldest].role in ("assistant", "tool"):
            del messages[oldest]
        yield Conversation(tuple(messages), talk.tools)
