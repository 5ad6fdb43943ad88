"""A hosted model tuned through its API: what is sent, what comes back, and that nothing is lost on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hosted_api import HostedApi

from ladderlm import store
from ladderlm.apps import hosted
from ladderlm.cli import train
from ladderlm.errors import FormatError, NetworkError, UsageError
from ladderlm.evals import outcome
from ladderlm.train.settings import FinetuneConfig

ROWS = [{"text": f"number {i}", "label": "even" if i % 2 == 0 else "odd"} for i in range(80)]


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def say(model: str, messages: list[dict[str, str]]) -> str:
    """The model as it comes always says odd; tuned, it is right."""
    if model != "small:tuned":
        return "odd"
    words = messages[-1]["content"].split()
    return ("even" if int(words[1]) % 2 == 0 else "odd") if words[0] == "number" else "I forgot."


def config(tmp_path: Path, api: HostedApi, **more: object) -> FinetuneConfig:
    data = write(tmp_path / "d.jsonl", ROWS)
    return FinetuneConfig(**({"data": data, "at": api.url, "model": "small", "out": "mine"} | more))  # type: ignore[arg-type]


def test_it_is_tuned_and_measured(tmp_path: Path) -> None:
    with HostedApi(say) as api:
        result = hosted.run(config(tmp_path, api, epochs=3.0), pause=0.01)
    assert result.model == f"{api.url}#small:tuned"
    assert result.tokens == 321
    assert api.jobs[0]["model"] == "small"
    assert api.jobs[0]["method"]["supervised"]["hyperparameters"] == {"n_epochs": 3}
    train_rows = api.files[api.jobs[0]["training_file"]]
    held_rows = api.files[api.jobs[0]["validation_file"]]
    assert len(train_rows) + len(held_rows) <= 80
    assert train_rows[0]["messages"][0]["content"].endswith("Answer with one of: even, odd.")
    assert train_rows[0]["messages"][-1]["role"] == "assistant"
    assert not {json.dumps(r) for r in train_rows} & {json.dumps(r) for r in held_rows}
    found = outcome.load(store.open_run(result.run))
    assert found.verdict == "helped"
    assert found.task[0].before.mean == pytest.approx(0.5)
    assert found.task[0].after.mean == pytest.approx(1.0)
    page = store.open_run(result.run).report.read_text()
    assert "## Did it help?" in page
    assert "loss" in page


def test_a_broken_wait_goes_on(tmp_path: Path) -> None:
    with HostedApi(say, fails="no credit") as api:
        with pytest.raises(NetworkError, match="no credit"):
            hosted.run(config(tmp_path, api), pause=0.01)
        api.fails, run = "", store.list_runs()[0]
        result = hosted.run(FinetuneConfig(at=api.url, resume=run.id), pause=0.01)
        assert result.run == run.id
        assert len(api.jobs) == 1


def test_bad_rows_are_told_before_anything_is_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": str(i), "completion": "x" if i else " "} for i in range(40)]
    with HostedApi(say) as api:
        with pytest.raises(FormatError, match="the assistant says nothing"):
            hosted.run(config(tmp_path, api, data=write(tmp_path / "b.jsonl", rows), held_out=""))
        with pytest.raises(UsageError, match="only 3 examples"):
            held = write(tmp_path / "h.jsonl", ROWS)
            hosted.run(config(tmp_path, api, data=write(tmp_path / "c.jsonl", ROWS[:3]), held_out=held))
        with pytest.raises(UsageError, match="what shall be tuned"):
            train.finetune([write(tmp_path / "d.jsonl", ROWS), "--at", api.url])
        assert not api.files
