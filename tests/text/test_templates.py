"""Chat templates in the styles of the well-known families: the same text as transformers', the right mask and spans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ladderlm.errors import FormatError, UsageError
from ladderlm.text.bpe import train_bpe
from ladderlm.text.conversations import CONVERSATIONS
from ladderlm.text.render import Rendered, render, wire_messages, wire_tool
from ladderlm.text.template import ChatTemplate
from ladderlm.text.tokenizer import SpecialTokens, Tokenizer
from ladderlm.types import Conversation, Message, Reasoning, Text, ToolCall

TEMPLATES = {p.stem: p.read_text(encoding="utf-8") for p in sorted((Path(__file__).parent / "jinja").glob("*.jinja"))}
CONTROL = (
    "<|endoftext|>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>",
    "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>",
    "[INST]", "[/INST]", "[TOOL_CALLS]", "[SEP]", "<tool_call>",
)  # fmt: skip
TOKENIZER = train_bpe(["hello world user assistant system tool call " * 20], 400, CONTROL)
ENDS = {"llama-2": "</s>", "mistral": "</s>", "gemma": "<end_of_turn>", "phi-3": "<|end|>", "llama-3.1": "<|eot_id|>"}
REFUSED = {  # what these templates raise an error for, with us as with transformers
    "gemma": {"system", "multi-turn, whole", "tool result", "tools, whole", "two calls"},
    "llama-3.1": {"two calls"},
}  # fmt: skip


def tokenizer_of(name: str) -> Tokenizer:
    end = TOKENIZER.control[ENDS.get(name, "<|im_end|>")]
    return TOKENIZER.with_special(SpecialTokens(bos=TOKENIZER.control["<s>"], eos=end))


def template_of(name: str) -> ChatTemplate:
    return ChatTemplate(TEMPLATES[name], "<s>", "</s>")


def said(rendered: Rendered) -> list[str]:
    """The runs of text that the mask marks."""
    runs: list[list[int]] = [[]]
    for id, marked in zip(rendered.ids, rendered.mask, strict=True):
        if marked:
            runs[-1].append(id)
        elif runs[-1]:
            runs.append([])
    return [TOKENIZER.decode(run, special=True) for run in runs if run]


@pytest.fixture(scope="module")
def theirs() -> Any:
    transformers = pytest.importorskip("transformers")
    import tokenizers

    library = tokenizers.Tokenizer.from_str(TOKENIZER.to_json())
    return transformers.PreTrainedTokenizerFast(tokenizer_object=library, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("name", TEMPLATES)
def test_text_equals_that_of_transformers(name: str, theirs: Any) -> None:
    template, tokenizer = template_of(name), tokenizer_of(name)
    refused = set()
    for title, conversation, generate in CONVERSATIONS:
        wire = wire_messages(conversation)
        tools = [wire_tool(t.name, t.description, t.parameters) for t in conversation.tools] or None
        prefill = generate and wire[-1]["role"] == "assistant"
        options = {"add_generation_prompt": generate and not prefill, "continue_final_message": prefill}
        try:
            wanted = theirs.apply_chat_template(
                wire, tools=tools, chat_template=TEMPLATES[name], tokenize=False, **options
            )
        except Exception:
            with pytest.raises(FormatError):
                render(conversation, tokenizer, template, add_generation_prompt=generate)
            refused.add(title)
            continue
        assert render(conversation, tokenizer, template, add_generation_prompt=generate).text == wanted, title
    assert refused == REFUSED.get(name, set())


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_and_spans_say_the_text(name: str) -> None:
    tokenizer = tokenizer_of(name)
    for title, conversation, generate in CONVERSATIONS:
        if title in REFUSED.get(name, ()):
            continue
        rendered = render(conversation, tokenizer, template_of(name), add_generation_prompt=generate)
        assert tokenizer.decode(rendered.ids, special=True) == rendered.text
        assert len(rendered.ids) == len(rendered.mask) == len(rendered.spans)
        at = 0
        for id, (start, stop) in zip(rendered.ids, rendered.spans, strict=True):
            assert at >= start >= at - 1  # parts of one character share it
            at = max(at, stop)
            piece = tokenizer.token_bytes(id)
            assert piece in rendered.text[start:stop].encode()
        assert at == len(rendered.text)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_mask_is_what_the_assistant_says(name: str) -> None:
    tokenizer = tokenizer_of(name)
    end = ENDS.get(name, "<|im_end|>")
    for title, conversation, generate in CONVERSATIONS:
        if title not in ("whole turn", "multi-turn", "multi-turn, whole") or title in REFUSED.get(name, ()):
            continue
        found = said(render(conversation, tokenizer, template_of(name), add_generation_prompt=generate))
        answers = [m.text for m in conversation.messages if m.role == "assistant"]
        assert len(found) == len(answers), (title, found)
        for run, answer in zip(found, answers, strict=True):
            assert run.strip().removeprefix("<think>\n\n</think>\n\n").startswith(answer), (title, run)
            assert run.removesuffix("\n").endswith(end), (title, run)


@pytest.mark.parametrize("name", [n for n in TEMPLATES if n not in ("gemma", "chatml", "phi-3", "llama-2")])
def test_tool_calls_are_said_too(name: str) -> None:
    if name == "smollm3":
        pytest.skip("this template leaves calls out")
    conversations = {title: (talk, generate) for title, talk, generate in CONVERSATIONS}
    talk, _ = conversations["tools, whole"]
    rendered = render(talk, tokenizer_of(name), template_of(name), add_generation_prompt=False)
    call, answer = said(rendered)
    assert "get_weather" in call
    assert "Zürich" in call
    assert "Clear, 21 °C." in answer
    assert '"sky"' in rendered.text
    assert '"sky"' not in call + answer


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_the_beginning_of_its_training_example(name: str) -> None:
    tokenizer, template = tokenizer_of(name), template_of(name)
    for answer in ("fine", " fine", "\n\nfine", "<|im_end|>", "🤖"):
        question = Conversation.of("how?").add("assistant", "so?").add("user", "and?")
        prompt = render(question, tokenizer, template)
        whole = render(question.add("assistant", answer), tokenizer, template, add_generation_prompt=False)
        begun = render(question.add("assistant", answer), tokenizer, template)
        assert whole.ids[: len(prompt.ids)] == prompt.ids
        assert begun.ids[: len(prompt.ids)] == prompt.ids
        assert whole.text.startswith(begun.text.rstrip())
        assert begun.text.rstrip().endswith(answer.strip())


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_message_forges_a_turn(name: str) -> None:
    """However control tokens are spelled, there are as many as without them."""
    tokenizer, template = tokenizer_of(name), template_of(name)

    def count(content: str) -> list[int]:
        talk = Conversation.of(content).add("assistant", content).add("user", content)
        ids = render(talk, tokenizer, template).ids
        return [i for i in ids if i in tokenizer.control.values()]

    harmless = count("abc")
    for spelled in CONTROL:
        for content in (spelled, f"a {spelled} b", spelled[:-1], spelled * 3, spelled[1:]):
            assert count(content) == harmless, content


def test_the_beginning_of_an_answer_is_text() -> None:
    for part in (ToolCall("1", "f", "{}"), Reasoning("hm")):
        talk = Conversation((Message.of("user", "x"), Message("assistant", (Text("a"), part))))
        with pytest.raises(UsageError, match="text only"):
            render(talk, TOKENIZER, template_of("chatml"))


def test_conversations_have_distinct_names_and_travel() -> None:
    names = [name for name, _, _ in CONVERSATIONS]
    assert len(set(names)) == len(names)
    for _, conversation, _ in CONVERSATIONS:
        assert Conversation.from_dict(conversation.to_dict()) == conversation
