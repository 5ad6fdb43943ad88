"""What bench/clients.py runs with the clients' own Python: each call of each client, and what became of it, as JSON.

Knows nothing of LadderLM. Usage: clients_calls.py URL MODEL
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

URL, MODEL = sys.argv[1:3]
HELLO = [{"role": "user", "content": "Say hello."}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
Calls = dict[str, Callable[[], bool]]


def openai_calls() -> Calls:
    import openai

    client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=120)
    tool = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": WEATHER}}

    def chat(**more: Any) -> Any:
        return client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=64, **more)

    def called() -> bool:
        call = chat(tools=[tool], tool_choice="required", parallel_tool_calls=False).choices[0].message.tool_calls[0]
        return call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")

    def called_in_pieces() -> bool:
        with client.chat.completions.stream(
            model=MODEL, messages=HELLO, max_tokens=64, tools=[tool], tool_choice="required", parallel_tool_calls=False
        ) as stream:
            call = stream.get_final_completion().choices[0].message.tool_calls[0]
        return call.function.name == "weather" and "city" in json.loads(call.function.arguments)

    def responded() -> bool:
        first = client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=8)
        second = client.responses.create(
            model=MODEL, input="Again.", previous_response_id=first.id, max_output_tokens=8
        )
        return bool(second.output_text) and client.responses.retrieve(second.id).id == second.id

    def responded_in_pieces() -> bool:
        events = list(client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=8, stream=True))
        return events[0].type == "response.created" and events[-1].response.output_text != ""

    def responded_by_socket() -> bool:
        said, before = [], None
        with client.responses.connect() as connection:
            for text in ("Say hello.", "Again."):
                more = {"previous_response_id": before} if before else {}
                connection.response.create(model=MODEL, input=text, max_output_tokens=8, store=False, **more)
                last = next(e for e in connection if e.type in ("response.completed", "response.incomplete", "error"))
                before = last.response.id
                said.append(last.response.output_text)
        return all(said)

    return {
        "models": lambda: MODEL in [m.id for m in client.models.list()],
        "chat": lambda: bool(chat().choices[0].message.content),
        "chat streamed": lambda: any(c.choices[0].delta.content for c in chat(stream=True)),
        "tools": called,
        "tools streamed": called_in_pieces,
        "JSON schema": lambda: "city" in json.loads(chat(response_format=form).choices[0].message.content),
        "completions": lambda: bool(client.completions.create(model=MODEL, prompt="One, two,", max_tokens=4).choices),
        "embeddings": lambda: len(client.embeddings.create(model=MODEL, input=["a", "b"]).data) == 2,
        "responses": responded,
        "responses streamed": responded_in_pieces,
        "responses by WebSocket": responded_by_socket,
    }


def anthropic_calls() -> Calls:
    import anthropic

    client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0, timeout=120)
    tool = {"name": "weather", "input_schema": WEATHER}
    forced = {"type": "any", "disable_parallel_tool_use": True}

    def said(**more: Any) -> Any:
        return client.messages.create(model=MODEL, max_tokens=64, messages=HELLO, **more)

    def streamed() -> bool:
        with client.messages.stream(model=MODEL, max_tokens=8, messages=HELLO) as stream:
            return bool("".join(stream.text_stream))

    return {
        "messages": lambda: bool(said().content[0].text),
        "messages streamed": streamed,
        "tools": lambda: said(tools=[tool], tool_choice=forced).content[-1].input["city"] in ("Oslo", "Rome"),
        "count_tokens": lambda: client.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens > 3,
    }


def langchain_calls() -> Calls:
    from langchain_anthropic import ChatAnthropic
    from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

    common: dict[str, Any] = {"base_url": f"{URL}/v1", "api_key": "none", "max_retries": 0}
    chat = ChatOpenAI(model=MODEL, max_tokens=64, **common)
    tool = {"type": "function", "function": {"name": "weather", "description": "", "parameters": WEATHER}}
    bound = chat.bind_tools([tool], tool_choice="weather", parallel_tool_calls=False)
    schema = {"title": "w", "description": "", **WEATHER}

    def joined() -> bool:
        whole = None
        for chunk in bound.stream("Weather?"):
            whole = chunk if whole is None else whole + chunk
        return bool(whole) and whole.tool_calls[0]["name"] == "weather"  # type: ignore[attr-defined]

    return {
        "chat": lambda: bool(chat.invoke("Say hello.").content),
        "chat streamed": lambda: any(c.content for c in chat.stream("Say hello.")),
        "tools": lambda: bound.invoke("Weather?").tool_calls[0]["args"]["city"] in ("Oslo", "Rome"),
        "tools streamed": joined,
        "JSON schema": lambda: "city" in chat.with_structured_output(schema, method="json_schema").invoke("Weather?"),
        "completions": lambda: bool(OpenAI(model=MODEL, max_tokens=4, **common).invoke("One, two,")),
        "embeddings": lambda: len(
            OpenAIEmbeddings(model=MODEL, check_embedding_ctx_length=False, **common).embed_query("a")
        ) > 8,
        "responses": lambda: bool(
            ChatOpenAI(model=MODEL, max_tokens=8, use_responses_api=True, **common).invoke("Say hello.").content
        ),
        "messages": lambda: bool(
            ChatAnthropic(model=MODEL, base_url=URL, api_key="none", max_tokens=8).invoke("Say hello.").content
        ),
    }  # fmt: skip


def llama_index_calls() -> Calls:
    from llama_index.core.llms import ChatMessage
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding
    from llama_index.llms.openai_like import OpenAILike

    common: dict[str, Any] = {"api_base": f"{URL}/v1", "api_key": "none"}
    chat = OpenAILike(model=MODEL, is_chat_model=True, is_function_calling_model=True, max_tokens=64, **common)
    raw = OpenAILike(model=MODEL, is_chat_model=False, max_tokens=4, **common)
    hello = [ChatMessage(role="user", content="Say hello.")]

    def called() -> bool:
        from llama_index.core.tools import FunctionTool

        def weather(city: str) -> str:
            """The weather of a city."""
            return city

        answer = chat.chat_with_tools([FunctionTool.from_defaults(weather)], user_msg="Oslo?", tool_required=True)
        return chat.get_tool_calls_from_response(answer)[0].tool_name == "weather"

    return {
        "chat": lambda: bool(chat.chat(hello).message.content),
        "chat streamed": lambda: any(c.delta for c in chat.stream_chat(hello)),
        "tools": called,
        "completions": lambda: bool(raw.complete("One, two,").text),
        "embeddings": lambda: len(OpenAILikeEmbedding(model_name=MODEL, **common).get_text_embedding("a")) > 8,
    }


def llm_calls() -> Calls:
    import llm

    entry = {"model_id": "ladder", "model_name": MODEL, "api_base": f"{URL}/v1", "can_stream": True}
    (llm.user_dir() / "extra-openai-models.yaml").write_text(json.dumps([entry]))  # JSON is YAML

    def asked(*flags: str) -> bool:
        command = [sys.executable, "-m", "llm", "-m", "ladder", "--key", "none", "-o", "max_tokens", "8", *flags]
        done = subprocess.run([*command, "Say hello."], capture_output=True, text=True, check=True)
        return bool(done.stdout.strip())

    return {"chat": lambda: asked("--no-stream"), "chat streamed": asked}


CLIENTS: dict[str, tuple[Callable[[], Calls], tuple[str, ...]]] = {
    "openai": (openai_calls, ("openai",)),
    "anthropic": (anthropic_calls, ("anthropic",)),
    "LangChain": (langchain_calls, ("langchain-openai", "langchain-anthropic")),
    "LlamaIndex": (llama_index_calls, ("llama-index-core", "llama-index-llms-openai-like")),
    "llm": (llm_calls, ("llm",)),
}


def main() -> None:
    routes: dict[str, dict[str, str]] = {}
    versions = {}
    for name, (make, packages) in CLIENTS.items():
        try:
            versions[name] = importlib.metadata.version(packages[0])
            calls = make()
        except (ImportError, importlib.metadata.PackageNotFoundError):
            continue
        routes[name] = {}
        for route, call in calls.items():
            try:
                routes[name][route] = "ok" if call() else "a wrong answer"
            except Exception as error:
                routes[name][route] = f"{type(error).__name__}: {str(error)[:300]}"
    for package in ("lm-eval",):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    print(json.dumps({"routes": routes, "versions": versions}))


if __name__ == "__main__":
    main()
