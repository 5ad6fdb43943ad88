"""chat, ask, next and prompts as they are called, without a terminal."""

from __future__ import annotations

import io
import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from ladderlm.cli import prompt, prompts
from ladderlm.cli.main import main
from ladderlm.cli.talking import changed
from ladderlm.errors import NotFound, UsageError
from ladderlm.talk import echo
from ladderlm.types import Candidate, Conversation, Sampling


@pytest.fixture(autouse=True)
def _no_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, "")


def pipe(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def run(capsys: pytest.CaptureFixture[str], function: Any, *argv: str) -> str:
    assert function(list(argv)) == 0
    return capsys.readouterr().out


def test_ask_answers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(capsys, prompt.ask, "-m", "echo", "hello", "world") == "hello world\n"
    assert run(capsys, prompt.ask, "hello there you", "-m", "echo", "--stop", " you", "-n", "5") == "hello there\n"
    pipe(monkeypatch, "the text\n")
    assert run(capsys, prompt.ask, "-m", "echo", "Sum up:") == "Sum up:\n\nthe text\n"
    pipe(monkeypatch, "only this\n")
    assert run(capsys, prompt.ask, "-m", "echo") == "only this\n"
    assert run(capsys, prompt.ask, "-m", "echo", "--raw", "as it is") == "as it is\n"
    assert run(capsys, prompt.ask, "-m", "echo", "--n", "2", "hi") == "[1] hi\n[2] hi\n"


def test_ask_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = json.loads(run(capsys, prompt.ask, "-m", "echo", "--json", "--logprobs", "0", "a b"))
    assert (found["model"], found["text"], found["finish_reason"]) == ("echo", "a b", "stop")
    assert found["usage"] == {"prompt_tokens": 2, "completion_tokens": 2}
    assert [t["text"] for t in found["tokens"]] == ["a", " b"]
    (tmp_path / "s.json").write_text('{"type": "object"}')
    found = json.loads(
        run(capsys, prompt.ask, "-m", "echo", "--json", "--schema", str(tmp_path / "s.json"), '{"x": 1}')
    )
    assert found["data"] == {"x": 1}


def test_ask_with_template_and_examples(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(capsys, prompts.main, "save", "fr", "To {{language}}: {{prompt}}")
    template = ["-m", "echo", "--template", "fr", "bird"]
    assert run(capsys, prompt.ask, *template, "--var", "language=French") == "To French: bird\n"
    with pytest.raises(UsageError, match="needs language"):
        prompt.ask(template)
    run(capsys, prompts.main, "save", "plain", "Be brief.")
    assert run(capsys, prompt.ask, "-m", "echo", "--template", "plain", "bird") == "Be brief.\n\nbird\n"
    (tmp_path / "e.jsonl").write_text('{"input": "cat", "output": "chat"}\n')
    examples = str(tmp_path / "e.jsonl")
    shown = run(capsys, prompt.ask, "-m", "echo", "--raw", "--task", "Translate.", "--examples", examples,
                "bird", "--stop", "Output:")  # fmt: skip
    assert shown.strip() == "Translate.\n\nInput: cat"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["hi", "--batch", "x"],
        ["hi", "--choices", "one"],
        ["hi", "--logprobs", "2"],
        ["hi", "--var", "a=b"],
        ["hi", "--temperature", "-1"],
        ["hi", "--logit-bias", "x"],
        ["hi", "--choices", "a,b"],
    ],
)
def test_wrong_use_is_told(argv: list[str]) -> None:
    with pytest.raises(UsageError):
        prompt.ask(["-m", "echo", *argv])


def test_unknown_flags_and_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "-m", "no-such-model", "x"]) == 1
    assert "no such model" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["ask", "--temprature", "1", "x"])
    assert caught.value.code == 2


def test_batch(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "a"}\n{"prompt": "b", "language": "x"}\n')
    argv = ("-m", "echo", "--batch", str(source), "--out", str(out), "--concurrency", "2")
    assert run(capsys, prompt.ask, *argv).startswith("2 answered, 0 were there, 0 failed")
    assert sorted(json.loads(line)["text"] for line in out.read_text().splitlines()) == ["a", "b"]
    assert json.loads(run(capsys, prompt.ask, *argv, "--json")) == {"skipped": 2}
    source.write_text('{"nothing": 1}\n')
    assert prompt.ask(["-m", "echo", "--batch", str(source), "--out", str(tmp_path / "o2.jsonl")]) == 1


# --- Probabilities ------------------------------------------------------------------------------------------------


class Certain(echo.EchoChat):
    """Knows the probabilities that the tests look at."""

    def next(self, prompt: str | Conversation, k: int = 10) -> list[Candidate]:
        return [Candidate(1, -0.5, " heart"), Candidate(2, -1.5, "\n")][:k]

    def word_sums(self, prompt: str, words: Any) -> dict[str, float]:
        return {word: 1 / (1 + i) for i, word in enumerate(words)}

    def rank(self, prompt: str | Conversation, choices: Any) -> list[float]:
        return [-float(len(c)) for c in choices]


@pytest.fixture
def certain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(echo, "EchoChat", Certain)


@pytest.mark.usefixtures("certain")
def test_next(capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, prompt.next_, "-m", "echo", "Listen to your", "--words", "gut,heart")
    assert "1\t' heart'\t60.65%" in shown
    assert "2\t'\\n'\t22.31%" in shown
    assert "gut\t100.000%\nheart\t50.000%" in shown
    both = run(capsys, prompt.next_, "-m", "echo", "A", "--compare", "B", "-k", "1")
    assert "1\t' heart'\t60.65%\t' heart'\t60.65%" in both
    found = json.loads(run(capsys, prompt.next_, "-m", "echo", "A", "--words", "x", "--json"))
    assert found["prompts"][0]["tokens"][0]["text"] == " heart"
    assert found["prompts"][0]["words"] == {"x": 1.0}
    with pytest.raises(UsageError):
        prompt.next_(["-m", "echo"])


@pytest.mark.usefixtures("certain")
def test_choices(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(capsys, prompt.ask, "-m", "echo", "--choices", "longer, a", "--json", "x"))
    assert found["choice"] == "a"
    assert sum(c["probability"] for c in found["choices"]) == pytest.approx(1)
    assert run(capsys, prompt.ask, "-m", "echo", "--choices", "longer,a", "x").splitlines()[1].startswith("a\t")


# --- chat ---------------------------------------------------------------------------------------------------------


def test_chat_reads_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workspace: Path
) -> None:
    file = tmp_path / "talk.json"
    pipe(
        monkeypatch, f"hello\n\n/set temperature=0.5\n/set\nagain\n/undo\n/retry\n/save {file}\n/model\n/exit\nunseen\n"
    )
    shown = run(capsys, prompt.chat, "-m", "echo", "-s", "be kind")
    assert shown == "hello\ntemperature=0.5\nagain\nhello\necho (echo)\n"
    kept = json.loads(file.read_text())
    assert [m["role"] for m in kept["messages"]] == ["system", "user", "assistant"]
    with sqlite3.connect(workspace / "ladderlm.sqlite") as db:
        assert db.execute("SELECT count(*), max(model) FROM conversations").fetchone() == (1, "echo")
    pipe(monkeypatch, f"/load {file}\n/system\n/save {file}\n/clear\n/model echo\n")
    run(capsys, prompt.chat, "-m", "echo")
    assert [m["role"] for m in json.loads(file.read_text())["messages"]] == ["user", "assistant"]
    pipe(monkeypatch, f"/save {file}\n")
    run(capsys, prompt.chat, "-m", "echo", "--resume", "last")
    assert len(json.loads(file.read_text())["messages"]) == 3
    with pytest.raises(NotFound):
        prompt.chat(["-m", "echo", "--resume", "99"])


def test_chat_goes_on_after_an_error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, "/retri\n/undo\n/next\n/load nowhere.json\n/model nope\n/set top_k=x\n/help\nstill here\n")
    assert prompt.chat(["-m", "echo"]) == 1
    found = capsys.readouterr()
    assert "did you mean 'retry'" in found.err
    assert "/system [TEXT]" in found.out
    assert found.out.endswith("still here\n")


def test_ctrl_c_stops_the_answer_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(echo.EchoChat):
        def stream(self, *args: Any, **options: Any) -> Any:
            for number, delta in enumerate(super().stream(*args, **options)):
                if number == 2 and delta.text == " three":
                    raise KeyboardInterrupt
                yield delta

    monkeypatch.setattr(echo, "EchoChat", Interrupted)
    pipe(monkeypatch, "one two three four\nnext\n")
    assert run(capsys, prompt.chat, "-m", "echo") == "one two\nnext\n"


def test_settings_are_checked() -> None:
    assert changed(Sampling(max_tokens=3, stop=("x",)), "max_tokens=none").max_tokens is None
    assert changed(Sampling(), "stop=\\n").stop == ("\n",)
    assert changed(Sampling(), "top-k = 4").top_k == 4
    for wrong in ("temperature", "temprature=1", "top_k=0.5", "temperature=-1"):
        with pytest.raises(UsageError):
            changed(Sampling(), wrong)


def test_prompts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, "From a pipe: {{x}}\n")
    run(capsys, prompts.main, "save", "p", "-s", "kind")
    assert run(capsys, prompts.main, "show", "p") == "[system] kind\n\nFrom a pipe: {{x}}\n"
    assert json.loads(run(capsys, prompts.main, "list", "--json"))[0]["variables"] == ["x"]
    assert "p\tx\t" in run(capsys, prompts.main, "list")
    run(capsys, prompts.main, "rm", "p")
    with pytest.raises(NotFound):
        prompts.main(["show", "p"])
    assert prompts.main([]) == 2
    with pytest.raises(UsageError):
        prompts.main(["lst"])


def test_ask_shows_images_to_a_remote(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from openai_server import Server, answer
    from pictures import JPEG, data_url, png

    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.jpg").write_bytes(JPEG)
    files = ("--image", str(tmp_path / "a.png"), "--image", str(tmp_path / "b.jpg"))
    with Server(answer("a ", "ladder")) as server:
        remote = ("-m", f"{server.url}#m")
        assert run(capsys, prompt.ask, *remote, "What?", *files, "-s", "Be brief.") == "a ladder\n"
        assert json.loads(run(capsys, prompt.ask, *remote, "What?", *files, "--json"))["text"] == "a ladder"
        (tmp_path / "x.jsonl").write_text('{"input": "one", "output": "1"}\n')
        run(capsys, prompt.ask, *remote, "What?", *files, "--examples", str(tmp_path / "x.jsonl"))
        for wrong, why in (((*files, "--raw"), "does not go with --raw"), (("--image", "none.png"), "no such image")):
            with pytest.raises((UsageError, NotFound), match=why):
                prompt.ask([*remote, "What?", *wrong])
    urls = [data_url(png()), data_url(JPEG, "image/jpeg")]
    shown = [{"type": "text", "text": "What?"}, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]
    assert server.bodies[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": shown},
    ]
    assert [m["content"] for m in server.bodies[2]["messages"]] == [
        "one",
        "1",
        shown,
    ]  # in the question, not the example
    assert len(server.bodies) == 3


@pytest.mark.parametrize("model", ["echo", "no-such-model", "base+adapter"])
def test_ask_says_at_once_that_a_local_model_reads_text_only(model: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this model reads text only"):
        prompt.ask(["-m", model, "What?", "--image", str(tmp_path / "unread.png")])
