"""The layouts datasets come in, recognised by their keys and turned into our kinds of record.

    {"instruction", "input", "output"}          Alpaca                     -> messages
    {"messages": [{"role", "content"}]}         OpenAI                     -> messages
    {"conversations": [{"from", "value"}]}      ShareGPT                   -> messages
    {"prompt", "completion"}                                               -> completion
    {"prompt", "chosen", "rejected"}            preference pairs           -> preference
    {"prompt", "completion", "label": bool}     KTO                        -> kto
    {"text", "label"}                           classification             -> class
    {"prompt" or "question", "answer"}          one right answer           -> answer
    {"prompt", "pattern" or "schema" or "tests"}    answers by a rule      -> checked
    {"text", "spans"}, {"tokens", "tags"}       marked spans, CoNLL        -> spans
    {"context", "question", "answers"}          SQuAD                      -> qa
    {"source", "target"}, {"translation": {..}} pairs of texts             -> translation
    {"article", "summary"}                                                 -> translation
    {"anchor", "positive", "negative"}          for embeddings             -> triple
    {"text"}                                                               -> text

Conversations may stand wherever a text is expected in a preference or KTO row; the last user turn becomes the prompt
and the turns so far are kept in the field `messages`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ladderlm.data import marked
from ladderlm.errors import FormatError
from ladderlm.types import Conversation, Message, Part, Reasoning, Record, Text, Tool, ToolCall, ToolResult

NAMES = ("text", "text+label", "messages", "conversations", "instruction+output", "prompt+completion",
         "prompt+chosen+rejected", "prompt+answer", "text+spans", "tokens+tags", "context+question+answers",
         "source+target", "article+summary", "anchor+positive", "kind+fields")  # fmt: skip

Row = Mapping[str, Any]
Found = tuple[str, dict[str, Any], dict[str, Any]]  # kind, fields, meta

_CHECKS = frozenset(("answer", "pattern", "schema", "tests"))  # what an answer can be checked by: train/checks.py
_SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
    "function_call": "call", "observation": "tool", "tool": "tool",
}  # fmt: skip


def recognise(row: Row) -> Found:
    """(kind, fields, meta) of a foreign row. Raises FormatError that lists the layouts that are known."""
    keys = set(row)
    if {"chosen", "rejected"} <= keys:
        return "preference", _preference(row), {}
    if "messages" in keys:
        return _conversation_row(_openai(row["messages"]), row)
    if "conversations" in keys:
        return _conversation_row(_sharegpt(row["conversations"], row.get("system")), row)
    if "instruction" in keys and ("output" in keys or "response" in keys):
        return "messages", {"messages": _alpaca(row)}, {}
    if {"prompt", "completion"} <= keys:
        prompt, completion = _text(row["prompt"], "prompt"), _text(row["completion"], "completion")
        if (liked := _truth(row.get("label"))) is not None:
            return "kto", {"prompt": prompt, "completion": completion, "label": liked}, {}
        return "completion", {"prompt": prompt, "completion": completion}, {}
    if ("prompt" in keys or "question" in keys) and keys & _CHECKS:
        return _checked(row)
    if found := marked.recognise(row):
        return found
    if {"text", "label"} <= keys:
        label = row["label"]
        if label is None or isinstance(label, (list, dict)):
            raise FormatError("label must be a word or a number")
        text, label = _text(row["text"], "text"), str(label).strip()
        if not (text.strip() and label):
            raise FormatError("the text is empty" if label else "the label is empty")
        return "class", {"text": text, "label": label}, {}
    if "text" in keys:
        return "text", {"text": _text(row["text"], "text")}, {k: row[k] for k in ("title", "url") if row.get(k)}
    shown = ", ".join(sorted(map(str, keys))[:8]) or "none"
    raise FormatError(f"unknown layout with the keys {shown}", cure="known layouts: " + ", ".join(NAMES))


def _truth(value: Any) -> bool | None:
    """True or false, which tables hold as words; else None."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def _text(value: Any, name: str) -> str:
    """The text of a string, of a list of text parts, or of a list that holds one message."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and isinstance(value.get("value", value.get("content")), str):
        return str(value.get("value", value.get("content")))
    if isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
        if all("role" in v for v in value):
            return _text(value[-1].get("content"), name)
        if all(v.get("type") == "text" for v in value):
            return "".join(_text(v.get("text"), name) for v in value)
    raise FormatError(f"{name} must be text, not {type(value).__name__}")


def _preference(row: Row) -> dict[str, Any]:
    chosen, rejected = _text(row["chosen"], "chosen"), _text(row["rejected"], "rejected")
    if "conversations" in row or isinstance(row.get("prompt"), list):
        turns = _openai(row["prompt"]) if "prompt" in row else _sharegpt(row["conversations"], row.get("system"))
        prompt = next((m["content"] for m in reversed(turns) if m["role"] == "user"), "")
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "messages": turns}
    if "prompt" in row:
        return {"prompt": _text(row["prompt"], "prompt"), "chosen": chosen, "rejected": rejected}
    if "instruction" in row:
        return {"prompt": _alpaca(row)[-2]["content"], "chosen": chosen, "rejected": rejected}
    if isinstance(row["chosen"], list) and len(row["chosen"]) > 1:
        turns = _openai(row["chosen"][:-1])
        return {"prompt": turns[-1]["content"], "chosen": chosen, "rejected": rejected, "messages": turns}
    raise FormatError("a preference pair needs the field 'prompt'")


def _checked(row: Row) -> Found:
    name = "prompt" if "prompt" in row else "question"
    fields = {key: row[key] for key in row.keys() & (_CHECKS - {"answer"}) if row[key] is not None}
    fields["prompt"] = _text(row[name], name)
    if isinstance(answer := row.get("answer"), (str, int, float)) and not isinstance(answer, bool):
        fields["answer"] = str(answer)
    elif "answer" in row and not fields.keys() & _CHECKS:
        raise FormatError("answer must be a text or a number")
    return ("answer" if fields.keys() == {"prompt", "answer"} else "checked"), fields, {}


def _alpaca(row: Row) -> list[dict[str, Any]]:
    user = _text(row["instruction"], "instruction")
    if row.get("input"):
        user += "\n\n" + _text(row["input"], "input")
    turns = [{"role": "system", "content": _text(row["system"], "system")}] if row.get("system") else []
    answer = _text(row.get("output", row.get("response", "")), "output")
    return [*turns, {"role": "user", "content": user}, {"role": "assistant", "content": answer}]


def _conversation_row(turns: list[dict[str, Any]], row: Row) -> Found:
    fields: dict[str, Any] = {"messages": turns}
    if row.get("tools"):
        fields["tools"] = _json(row["tools"], "tools")
    if (liked := _truth(row.get("label"))) is not None and turns[-1]["role"] == "assistant":
        prompt = next((m["content"] for m in reversed(turns) if m["role"] == "user"), "")
        kto = {"prompt": prompt, "completion": turns[-1]["content"], "label": liked}
        return "kto", {**kto, "messages": turns[:-1]}, {}
    return "messages", fields, {}


def _json(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (json.JSONDecodeError, RecursionError) as error:
        raise FormatError(f"{name} is not valid JSON: {error}") from None


def _openai(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages or not all(isinstance(m, Mapping) for m in messages):
        raise FormatError("messages must be a list of objects with role and content")
    turns = []
    for m in messages:
        if m.get("role") not in ("system", "developer", "user", "assistant", "tool"):
            raise FormatError(f"unknown role {m.get('role')!r}", cure="system, user, assistant or tool")
        role = "system" if m["role"] == "developer" else m["role"]
        content = "" if m.get("content") is None else _text(m["content"], "content")
        kept = {k: m[k] for k in ("tool_calls", "tool_call_id", "reasoning_content") if m.get(k)}
        turns.append({"role": role, "content": content, **kept})
    return turns


def _sharegpt(conversations: Any, system: Any) -> list[dict[str, Any]]:
    if not isinstance(conversations, list) or not conversations:
        raise FormatError("conversations must be a list of objects with from and value")
    turns: list[dict[str, Any]] = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    calls = 0
    for item in conversations:
        role = _SHAREGPT_ROLES.get(item.get("from", "")) if isinstance(item, Mapping) else None
        if role is None:
            raise FormatError("unknown speaker", where=repr(item)[:60], cure="human, gpt, system, function_call, ...")
        value = _text(item.get("value"), "value")
        if role == "call":
            calls += 1
            call = _json(value, "function_call")
            if not isinstance(call, Mapping) or "name" not in call:
                raise FormatError("a function_call needs a name", where=value[:60])
            function = {"name": call["name"], "arguments": json.dumps(call.get("arguments", {}))}
            turns.append({"role": "assistant", "content": "", "tool_calls": [
                {"id": f"call_{calls}", "type": "function", "function": function}]})  # fmt: skip
        elif role == "tool":
            turns.append({"role": "tool", "content": value, "tool_call_id": f"call_{calls}"})
        else:
            turns.append({"role": role, "content": value})
    return turns


# --- Records as conversations -------------------------------------------------------------------------------------


def conversation(record: Record, *, answer: bool = True) -> Conversation:
    """The conversation that a messages, completion, kto or preference record holds (with its chosen answer), or, with
    `answer=False` only, the question of an answer or checked record.

    `answer=False` ends it before the last assistant turn. Raises FormatError for other kinds.
    """
    if record.kind == "messages":
        turns = list(record["messages"])
        if not answer and turns and turns[-1].get("role") == "assistant":
            turns.pop()
    elif record.kind in ("completion", "kto", "preference"):
        turns = list(record.fields.get("messages") or [{"role": "user", "content": record["prompt"]}])
        if answer:
            name = "chosen" if record.kind == "preference" else "completion"
            turns.append({"role": "assistant", "content": record[name]})
    elif record.kind in ("answer", "checked") and not answer:
        turns = list(record.fields.get("messages") or [{"role": "user", "content": record["prompt"]}])
    else:
        raise FormatError(f"a {record.kind} record is not a conversation", where=f"record {record.id}")
    tools = tuple(_tool(t) for t in record.fields.get("tools", ()))
    return Conversation(tuple(_message(t) for t in turns), tools)


def _message(turn: Row) -> Message:
    role = turn.get("role")
    parts: list[Part] = []
    content = _text(turn.get("content") or "", "content")
    if turn.get("reasoning_content"):
        parts.append(Reasoning(turn["reasoning_content"]))
    if role == "tool":
        return Message("tool", (ToolResult(str(turn.get("tool_call_id", "")), content),))
    if content or not turn.get("tool_calls"):
        parts.append(Text(content))
    parts.extend(_calls(turn.get("tool_calls") or ()))
    return Message(role, tuple(parts))  # type: ignore[arg-type]


def _calls(calls: Sequence[Row]) -> list[Part]:
    out: list[Part] = []
    for call in calls:
        function = call.get("function", call)
        arguments = function.get("arguments", "{}")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        out.append(ToolCall(str(call.get("id", "")), str(function.get("name", "")), text))
    return out


def _tool(tool: Row) -> Tool:
    function = tool.get("function", tool)
    return Tool(str(function.get("name", "")), str(function.get("description", "")), function.get("parameters") or {})
