"""The climb on a hosted model that needs to be asked rightly, and what the table makes of scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hosted_api import HostedApi

from ladderlm import store
from ladderlm.apps.climb.run import USUAL, ClimbConfig, judge, run
from ladderlm.apps.climb.rungs import RUNGS, Tried, Work, apart
from ladderlm.cli import climb as verb
from ladderlm.errors import UsageError

WORDS = {"good": ("fine", "lovely", "great"), "bad": ("awful", "dull", "poor")}


def rows(count: int) -> list[dict]:
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        label = ("good", "bad", "bad")[int(rng.integers(3))]
        made.append({"text": f"{i} was {WORDS[label][int(rng.integers(3))]}", "label": label})
    return made


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def say(model: str, messages: list[dict[str, str]]) -> str:
    """Knows what it is asked only when it has seen examples or when a text is quoted; else it says good."""
    text = messages[-1]["content"]
    if len(messages) < 3 and '"' not in text:
        return "good"
    return "good" if any(word in text for word in WORDS["good"]) else "bad"


def test_rungs_of_a_hosted_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "d.jsonl", rows(200))
    with HostedApi(say) as api:
        assert verb.main([data, "-m", f"{api.url}#m", "--no-apart", "--minutes", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    by_name = {r["tried"]["rung"]: r for r in found["rungs"]}
    assert list(by_name) == list(RUNGS)
    assert found["recommended"] == "few-shot"
    assert by_name["few-shot"]["score"]["mean"] == 1.0
    assert by_name["optimised prompt"]["score"]["mean"] == 1.0
    assert 0.2 < by_name["zero-shot"]["score"]["mean"] < 0.5
    assert "hosted model" in by_name["LoRA"]["tried"]["skipped"]
    page = store.open_run(found["run"]).report.read_text()
    assert "few-shot is the lowest rung that suffices" in page
    # The sides are apart.
    folder = store.open_run(found["run"]).path
    sides = [
        {json.loads(line)["fields"]["text"] for line in (folder / f"{n}.jsonl").open()}
        for n in ("train", "dev", "test")
    ]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 200


def test_a_rung_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", rows(30))
    with HostedApi(say) as api:
        work = Work(path, path, path, f"{api.url}#m", "x", labels=("bad", "good"))
        found = apart("zero-shot", work)
        assert len(found.scores) == 30
        assert found.memory_mb > 10
    assert "cannot reach" in apart("zero-shot", work).skipped


def tried(name: str, right: int, of: int = 100) -> Tried:
    return Tried(name, tuple([1.0] * right + [0.0] * (of - right)), ship_bytes=1000)


def test_the_lowest_rung_that_suffices() -> None:
    found = judge([tried(USUAL, 50), tried("zero-shot", 70), tried("few-shot", 72), tried("LoRA", 90)], "r", "accuracy")
    assert found.recommended == "LoRA"
    assert [r.suffices for r in found.rungs] == [False, False, False, True]
    found = judge([tried(USUAL, 50), tried("zero-shot", 70), tried("LoRA", 73)], "r", "accuracy")
    assert found.recommended == "zero-shot"
    assert "no rung above it is better beyond chance" in found.sentence
    found = judge([tried(USUAL, 50), tried("zero-shot", 52), tried("LoRA", 53)], "r", "accuracy")
    assert found.recommended == ""
    assert "most frequent label" in found.sentence
    found = judge([tried(USUAL, 50), tried("zero-shot", 70), tried("LoRA", 90)], "r", "accuracy", target=0.6)
    assert found.recommended == "zero-shot"
    assert judge([Tried("LoRA", skipped="no torch"), tried("zero-shot", 70)], "r", "x").rungs[0].score is None
    with pytest.raises(UsageError, match="no torch"):
        judge([Tried("LoRA", skipped="no torch")], "r", "x")


def test_too_little_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="records"):
        run(ClimbConfig(write(tmp_path / "d.jsonl", rows(20))))
    with pytest.raises(UsageError, match="no rung 'few'"):
        run(ClimbConfig(write(tmp_path / "d.jsonl", rows(80)), only=("few",)))
