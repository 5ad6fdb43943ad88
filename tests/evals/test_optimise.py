"""Prompts searched by their score; on a hosted model that answers well under one wording only, and on a local one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ladderlm.cli import optimise as verb
from ladderlm.errors import UsageError
from ladderlm.evals.ask import Item, Prompt, items_of, labels_of, score
from ladderlm.evals.optimise import OptimiseConfig, run, save
from ladderlm.talk import prompting

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apps"))
from hosted_api import HostedApi


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def say(model: str, messages: list[dict[str, str]]) -> str:
    text = messages[-1]["content"]
    if "Somebody was given one instruction" in text:
        return "Instruction: Tell whether the number is EVEN or odd."
    if "EVEN" not in text:
        return "even"
    number = next(int(word) for word in text.split() if word.isdigit())
    return "odd." if number % 2 else "Even, I believe."


def test_a_proposed_instruction_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"it is {i} now", "label": "odd" if i % 2 else "even"} for i in range(120)]
    data = write(tmp_path / "d.jsonl", rows)
    with HostedApi(say) as api:
        flags = ["-m", f"{api.url}#m", "--calls", "400", "--shots", "0", "--proposals", "2", "-o", "parity"]
        assert verb.main(["optimise", data, *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "EVEN" in found["prompt"]["template"]
    assert found["helped"]["verdict"] == "helped"
    assert found["helped"]["after"]["mean"] == 1.0
    assert found["calls"] <= 400 + 2 * 200 + 2
    body = prompting.template("parity").body
    assert prompting.fill(body, {"prompt": "it is 7 now"}).startswith("Tell whether the number is EVEN")
    assert "it is 7 now" in prompting.fill(body, {"prompt": "it is 7 now"})


def test_it_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}?", "completion": f"number {i}"} for i in range(60)]
    data = write(tmp_path / "d.jsonl", rows)
    with HostedApi(lambda model, messages: f"number {len(messages)}") as api:
        config = OptimiseConfig(data, f"{api.url}#m", calls=120, proposals=0, shots=2)
        one, two = run(config), run(config)
    assert (one.prompt, one.tried) == (two.prompt, two.tried)
    assert one.helped.metric == "F1 of words"


def test_a_prompt_with_examples_is_saved_as_it_is(tmp_path: Path) -> None:
    from dataclasses import replace

    from ladderlm.evals.helped import did_it_help
    from ladderlm.evals.optimise import Optimised

    prompt = Prompt("Say: {text}!", "Be brief.", (Item("1", "a {{ b }}", "c {% d"),))
    helped = did_it_help("x", [0.0] * 8, [1.0] * 8)
    found = Optimised(prompt, Prompt(), helped, (), 0, 0.0, 0.0)
    save(found, "shown")
    kept = prompting.template("shown")
    assert kept.system == "Be brief."
    assert prompting.fill(kept.body, {"prompt": "Q"}) == "Say: a {{ b }}!\nc {% d\n\nSay: Q!"
    path = tmp_path / "p.json"
    save(replace(found), str(path))
    assert json.loads(path.read_text())["shots"][0]["answer"] == "c {% d"


def test_scores() -> None:
    assert score(' "Positive".', "positive", ("negative", "positive")) == 1
    assert score("not sure", "no", ("no", "not sure")) == 0
    assert score("the cat sat", "a cat sat") == pytest.approx(2 / 3)
    assert score("", "") == 1
    assert score("", "x") == 0
    items = [Item(str(i), "q", "ab"[i % 2]) for i in range(20)]
    assert labels_of(items) == ("a", "b")
    assert labels_of(items[:1]) == ()


def test_too_few_records(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too few"):
        run(OptimiseConfig(write(tmp_path / "d.jsonl", [{"text": str(i), "label": "a"} for i in range(9)])))
    assert items_of([]) == []
