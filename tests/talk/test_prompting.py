"""Few-shot prompts, templates, choices."""

from __future__ import annotations

from pathlib import Path

import pytest

from ladderlm.errors import FormatError, NotFound, UsageError
from ladderlm.talk import prompting
from ladderlm.talk.prompting import Example, Template

EXAMPLES = (Example("cat", "chat"), Example("dog", "chien"))


def test_examples_are_read_in_both_forms(tmp_path: Path) -> None:
    file = tmp_path / "e.jsonl"
    file.write_text('{"input": "cat", "output": "chat"}\n{"prompt": "dog", "completion": "chien"}\n')
    assert prompting.read_examples(file) == EXAMPLES
    file.write_text('{"input": "cat"}\n')
    with pytest.raises(FormatError, match="row 1"):
        prompting.read_examples(file)
    file.write_text("")
    with pytest.raises(FormatError, match="no examples"):
        prompting.read_examples(file)
    with pytest.raises(NotFound):
        prompting.read_examples(tmp_path / "none.jsonl")


def test_few_shot_text_leaves_the_query_open() -> None:
    text = prompting.few_shot_text("Translate to French.", EXAMPLES, "bird ")
    assert text == (
        "Translate to French.\n\nInput: cat\nOutput: chat\n\nInput: dog\nOutput: chien\n\nInput: bird\nOutput:"
    )


def test_few_shot_chat_makes_turns() -> None:
    talk = prompting.few_shot_chat("Translate.", EXAMPLES, "bird", "Be brief.")
    assert [m.role for m in talk.messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert talk.messages[0].text == "Be brief.\n\nTranslate."
    assert talk.messages[-1].text == "bird"


def test_a_missing_variable_is_named() -> None:
    assert prompting.fill("Say {{word}} {{n + 1}} times", {"word": "x", "n": 1}) == "Say x 2 times"
    with pytest.raises(UsageError, match=r"needs name, word.*--var name="):
        prompting.fill("{{word}} {{name}}", {})
    with pytest.raises(UsageError, match="does not parse"):
        prompting.fill("{{word", {})
    assert prompting.variables_of("{{b}}{{a}}{% for i in c %}{{i}}{% endfor %}") == ["a", "b", "c"]


def test_templates_run_in_a_sandbox() -> None:
    for body in ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ x.append(1) }}", "{{ 1 // 0 }}"):
        with pytest.raises(UsageError):
            prompting.fill(body, {"x": []})


def test_templates_are_kept() -> None:
    prompting.save_template(Template("fr", "To French: {{text}}", "be kind"))
    prompting.save_template(Template("fr", "En français: {{text}}"))
    assert prompting.templates() == [Template("fr", "En français: {{text}}")]
    with pytest.raises(NotFound, match="did you mean 'fr'"):
        prompting.template("frr")
    with pytest.raises(UsageError):
        prompting.save_template(Template("bad", "{{"))
    prompting.remove_template("fr")
    with pytest.raises(NotFound):
        prompting.remove_template("fr")


def test_probabilities() -> None:
    shares = prompting.probabilities([-1000.0, -1000.0 - 1.0986122886681098])
    assert shares == pytest.approx([0.75, 0.25])
