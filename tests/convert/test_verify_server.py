"""A model's files against a server that runs them, or something else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import forms
import live
import openai_server
import pytest
import test_verify as spoil

from ladderlm.convert.compare.verdict import Check, Verdict
from ladderlm.convert.verify import verify
from ladderlm.errors import NetworkError
from ladderlm.serve.models import Models

pytest.importorskip("uvicorn")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return forms.write(tmp_path / "source")


def against(source: Path, served: Path | str, *, precision: str = "same") -> Verdict:
    with live.served(Models([str(served)])) as url:
        return verify(str(source), f"{url}#{Path(served).name}", precision=precision)


def by_name(verdict: Verdict) -> dict[str, Check]:
    return {check.name: check for check in verdict.checks}


def test_our_own_server(source: Path) -> None:
    verdict = against(source, source)
    assert verdict.same, verdict.words
    assert [c.status for c in verdict.checks] == ["passed"] * 4
    assert "noise of 0.01 % on one layer would have shown" in by_name(verdict)["logits"].words


@pytest.mark.parametrize(
    ("what", "check", "words"),
    [
        ("changed template", "template", "single turn"),
        ("no template", "template", "refuses all"),
        ("wrong tokenizer", "tokenizer", "The quick brown fox"),
        ("rope convention", "logits", "% on one layer"),
        ("transposed", "logits", "% on one layer"),
        ("noise of 1 %", "logits", "% on one layer"),
        ("rope base", "logits", "% on one layer"),
    ],
)
def test_a_server_of_something_else(source: Path, what: str, check: str, words: str) -> None:
    other = Path(shutil.copytree(source, source.with_name("other")))
    spoil.SPOILED[what][0](other)
    verdict = against(source, other)
    assert not verdict.same
    found = by_name(verdict)[check]
    assert found.status == "failed"
    assert words in found.words
    assert found.cure


def test_a_server_that_does_not_know_the_end_runs_on(source: Path) -> None:
    """One of the tokens that A says is made an end of A's alone."""
    with live.served(Models([str(source)])) as url:
        assert verify(str(source), f"{url}#source").same
    other = Path(shutil.copytree(source, source.with_name("other")))
    ends = json.loads((source / "generation_config.json").read_text())["eos_token_id"]
    forms.edit_json(source / "generation_config.json", eos_token_id=[*ends, *range(128)])
    verdict = against(source, other)
    assert [c.name for c in verdict.checks if c.status == "failed"] == ["greedy"]
    assert "only A ends" in by_name(verdict)["greedy"].words


def test_rounded_weights_pass_only_when_the_precision_is_told(source: Path) -> None:
    other = forms.write(source.with_name("other"), dtype="bfloat16")
    found = by_name(against(source, other))["logits"]
    assert found.status == "failed"
    assert "--precision" in found.cure
    verdict = against(source, other, precision="bfloat16")
    assert verdict.same, verdict.words


def test_a_server_without_echo_is_compared_by_its_chats(source: Path) -> None:
    with openai_server.Server(openai_server.answer("Hello", " there")) as server:
        verdict = verify(str(source), f"{server.url}#any")
    found = by_name(verdict)
    assert found["logits"].status == found["tokenizer"].status == "skipped"
    assert "echo" in found["logits"].words
    assert found["template"].status == "failed"
    assert "tokens in A's template, 3 on the server" in found["template"].words


def test_nobody_there(source: Path) -> None:
    with pytest.raises(NetworkError):
        verify(str(source), "http://127.0.0.1:9#any")
