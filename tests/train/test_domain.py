"""The recipe `domain`, from files to a model, and what a model that goes on gains and forgets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stories import SIZES, STORIES, write_jsonl

from ladderlm.cli.main import main
from ladderlm.errors import StorageError, UsageError
from ladderlm.evals.helped import did_it_help
from ladderlm.models import open_model
from ladderlm.store import open_run
from ladderlm.train import domain
from ladderlm.train.domain import run
from ladderlm.train.pretrain import run as pretrain
from ladderlm.train.settings import DomainConfig, PretrainConfig


@pytest.fixture
def field(tmp_path: Path) -> tuple[Path, Path]:
    """(the field's texts, general text): the second is what `tiny` has learnt."""
    new, old = tmp_path / "field", tmp_path / "general"
    for folder, words in ((new, ("wug", "zorp", "blick")), (old, ())):
        folder.mkdir()
        for i in range(12):
            told = [f"The {w} {i + k} of the {words[(i + k) % 3]} is {k}." for k, w in enumerate(words * 12)]
            told = told or [f"{story} It was day {i * k}." for k, story in enumerate(STORIES)]
            (folder / f"{i}.txt").write_text("\n\n".join(told))
    return new, old


def settings(field: tuple[Path, Path], tiny: Path, out: Path, **changes) -> DomainConfig:
    plain = {"rules": "none", "epochs": 8.0, "lr": 3e-3, "seq_len": 64, "batch_tokens": 256, "threads": 1, "share": 0.5}
    return DomainConfig(
        files=(str(field[0]),), general=(str(field[1]),), model=str(tiny), out=str(out), **{**plain, **changes}
    )


def test_it_learns_the_field_and_tells_what_it_forgot(field, tiny: Path, tmp_path: Path) -> None:
    result = run(settings(field, tiny, tmp_path / "m", replay=0.3))
    change = result.scores["change"]
    assert change["held_out"]["verdict"] == "helped"
    assert change["held_out"]["difference"]["high"] < 0
    assert set(change) == {"held_out", "general"}
    page = (open_run(result.run).path / "report.md").read_text()
    assert "## Before and after" in page
    assert "## Data" in page
    assert all(f"| {stage} |" in page for stage in ("collect", "clean", "dedup", "hold out", "mix"))
    parts = tmp_path / "m.parts"
    names = {p.name for p in parts.iterdir()}
    assert {
        "domain.held.jsonl",
        "domain.train.jsonl",
        "general.held.jsonl",
        "mix.jsonl",
        "mix.jsonl.report.json",
    } <= names
    learnt, apart = ((parts / f"{name}.jsonl").read_text() for name in ("mix", "domain.held"))
    assert not {json.loads(line)["fields"]["text"] for line in apart.splitlines()} & {
        json.loads(line)["fields"]["text"] for line in learnt.splitlines()
    }
    made = open_model(str(tmp_path / "m"))
    assert made.lineage["parent"]["hash"] == open_model(str(tiny)).hash
    assert made.lineage["data"][0]["stages"][0]["stage"] == "mix"
    mixed = json.loads((parts / "mix.jsonl.report.json").read_text())["details"]["parts"]
    assert mixed[0]["epochs"] == 1
    assert 0.15 < mixed[1]["taken"] / (mixed[0]["taken"] + mixed[1]["taken"]) < 0.45


def test_a_second_run_makes_the_corpus_once(field, tiny: Path, tmp_path: Path, monkeypatch) -> None:
    seen: list[PretrainConfig] = []
    monkeypatch.setattr(domain.pretrain, "run", seen.append)
    first = settings(field, tiny, tmp_path / "m", replay=0.0)
    run(first)
    report = tmp_path / "m.parts" / "domain.once.jsonl.report.json"
    before = report.stat().st_mtime_ns
    run(first)
    assert report.stat().st_mtime_ns == before
    assert seen[0] == seen[1]
    texts = [json.loads(line)["source"] for line in (tmp_path / "m.parts" / "mix.jsonl").read_text().splitlines()]
    assert len(texts) == len(set(texts))


@pytest.mark.parametrize("change", [{"replay": 1.0}, {"epochs": 0.0}, {"files": ()}])
def test_wrong_settings(field, tiny: Path, tmp_path: Path, change) -> None:
    with pytest.raises(UsageError):
        run(settings(field, tiny, tmp_path / "m", **change) if "files" not in change else DomainConfig(files=()))


def test_a_result_that_is_there_stops_it_before_any_work(field, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(StorageError, match="already exists"):
        run(settings(field, tiny, tmp_path / "m"))
    assert not (tmp_path / "m.parts").exists()


def test_the_verb(field, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["data", "recipe", "domain", str(field[0]), "--general", str(field[1]), "--from", str(tiny)]
    argv += [
        "-o",
        str(tmp_path / "m"),
        "--rules",
        "none",
        "--minutes",
        "0.01",
        "--seq-len",
        "64",
        "--share",
        "0.2",
        "--json",
    ]
    assert main(argv) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["change"]["general"]["items"] > 0
    with pytest.raises(SystemExit):
        main(["data", "recipe", "domain", "--help"])
    assert "--replay" in capsys.readouterr().out


def test_what_is_forgotten_needs_a_model_that_knew(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"text": s * 3} for s in STORIES])
    with pytest.raises(UsageError, match="--from"):
        pretrain(PretrainConfig(data=str(data), general=str(data), out=str(tmp_path / "m"), steps=1, **SIZES))


def test_bits_are_paired_and_weighed_by_bytes() -> None:
    before, sizes = [800.0, 80.0, 240.0, 400.0] * 2, [100, 10, 30, 50] * 2
    found = did_it_help("bits per byte", before, [0.9 * b for b in before], higher_is_better=False, per=sizes)
    assert found.before.mean == pytest.approx(8)
    assert found.difference.mean == pytest.approx(-0.8)
    assert found.difference.low == pytest.approx(found.difference.high)  # every text changed alike
    assert found.verdict == "helped"
