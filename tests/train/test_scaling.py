"""The law is found again from points that follow it, and a sweep is run once."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stories import STORIES, write_jsonl

from ladderlm.cli.main import main
from ladderlm.errors import Cancelled, FormatError, UsageError
from ladderlm.evals.curve import Curve, log_ticks, to_svg
from ladderlm.train import causal, pretrain, scaling
from ladderlm.train.law import Law, Point, fit_law, predict
from ladderlm.train.settings import PretrainConfig, ScalingConfig

TRUE = Law(1.7, 400.0, 2000.0, 0.35, 0.45)  # near those of Hoffmann et al. 2022, in their nats
SIZES = [30_000 * 2**i for i in range(5)]
TOKENS = [250_000 * 2**i for i in range(5)]


def points(noise: float = 0.0, law: Law = TRUE) -> list[Point]:
    rng = np.random.default_rng(0)
    return [Point(n, d, law.loss(n, d) * float(np.exp(rng.normal(0, noise) if noise else 0))) for n in SIZES
            for d in TOKENS]  # fmt: skip


@pytest.mark.parametrize("law", [TRUE, Law(0.9, 60.0, 500.0, 0.25, 0.4), Law(0.5, 3.0, 9e4, 0.1, 0.9)])
def test_known_coefficients_are_found_again(law: Law) -> None:
    found = fit_law(points(law=law))
    assert (found.alpha, found.beta) == pytest.approx((law.alpha, law.beta), rel=0.01)
    assert found.e == pytest.approx(law.e, abs=0.03)
    assert found.loss(10**8, 10**9) == pytest.approx(law.loss(10**8, 10**9), rel=0.02)


def test_a_run_gone_wrong_pulls_little() -> None:
    good = points(0.003)
    bad = [*good[:7], Point(good[7].parameters, good[7].tokens, 2 * good[7].loss), *good[8:]]
    a, b = (fit_law(p).loss(2 * SIZES[-1], 2 * TOKENS[-1]) for p in (good, bad))
    assert a == pytest.approx(b, rel=0.01)


def test_a_larger_run_is_foretold_with_an_interval_that_holds_it() -> None:
    n, d = 2 * SIZES[-1], 2 * TOKENS[-1]
    (found,) = predict(points(0.005), [(n, d)])
    assert found.loss == pytest.approx(TRUE.loss(n, d), rel=0.01)
    assert found.low < TRUE.loss(n, d) < found.high
    assert 0.005 < found.high / found.low - 1 < 0.08
    assert predict(points(0.005), [(n, d)]) == [found]


def test_the_best_split_of_work_is_a_minimum() -> None:
    n, d = TRUE.best(1e15)
    assert 6 * n * d == pytest.approx(1e15)
    assert all(TRUE.loss(n, d) < TRUE.loss(n * f, d / f) for f in (0.8, 1.25))


def test_too_few_runs_tell_nothing() -> None:
    with pytest.raises(UsageError, match="do not tell the law"):
        fit_law([Point(10, 100 * i, 1.0) for i in range(1, 12)])
    with pytest.raises(UsageError, match="above 0"):
        fit_law([*points(), Point(10, 10, 0.0)])


@pytest.mark.parametrize(
    ("text", "found"), [("250k", 250_000), ("1.5M", 1_500_000), ("2G", 2 * 10**9), ("1B", 10**9), ("7", 7)]
)
def test_numbers(text: str, found: int) -> None:
    assert scaling.number(text) == found


def test_shapes_and_targets() -> None:
    assert scaling.shape("4x96") == (4, 96)
    assert scaling.shape("d3") == (3, 192)
    assert scaling.target("4x192:8M") == ("4x192", 8_000_000)
    assert scaling.target("50M:1G") == (50_000_000, 10**9)
    for wrong in ("4x95", "x", "d0", "4x96:", "4x96", "0", "1T:1M"):
        with pytest.raises(UsageError):
            scaling.target(wrong)


# --- A sweep ------------------------------------------------------------------------------------------------------


def config(tmp_path: Path, **changes: Any) -> ScalingConfig:
    data = tmp_path / "d.jsonl"
    if not data.exists():
        write_jsonl(data, [{"text": " ".join(STORIES[i:] + STORIES[:i])} for i in range(20)])
    settings: dict[str, Any] = {
        "data": str(data), "out": str(tmp_path / "sweep"), "sizes": "1x16,1x32,2x32", "tokens": "512,1k,2k",
        "vocab_size": 300, "seq_len": 64, "batch_tokens": 256, "threads": 1, **changes,
    }  # fmt: skip
    return ScalingConfig(**settings)


def test_a_sweep_is_run_once_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = config(tmp_path, predict="2x64:8k,1M:20M")
    real, calls = causal.mean_nats, iter(range(10_000))

    def interrupted(*args: object) -> object:
        if next(calls) == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(causal, "mean_nats", interrupted)
    with pytest.raises(Cancelled):
        scaling.run(asked)
    monkeypatch.setattr(causal, "mean_nats", real)
    before = (tmp_path / "sweep" / "points.jsonl").read_text()
    assert 0 < before.count("\n") < 9
    found = scaling.run(asked)
    assert (tmp_path / "sweep" / "points.jsonl").read_text().startswith(before)
    assert [p.name for p in found.points][:2] == ["1x16-512", "1x16-1000"]
    assert found.points[-1].tokens == 8 * 256
    assert found.points[-1].loss < found.points[0].loss
    assert found.predictions[1].parameters == 1_000_000
    assert found.predictions[0].low <= found.predictions[0].loss <= found.predictions[0].high
    page = (tmp_path / "sweep" / "report.md").read_text()
    assert "2x32-2000" in page
    assert "95 % interval" in page
    assert "circle" in (tmp_path / "sweep" / "loss-at-equal-work.svg").read_text()
    monkeypatch.setattr(pretrain, "learn", None)  # nothing is left to be run
    assert scaling.run(asked) == found
    with pytest.raises(UsageError, match="begun with another seq_len"):
        scaling.run(config(tmp_path, seq_len=32))


def test_runs_of_the_workspace_and_of_files_are_taken_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "known.jsonl"
    file.write_text("".join(json.dumps(p.to_dict()) + "\n" for p in points()))
    arguments = ["scaling", "--points", str(file), "--out", str(tmp_path / "s"), "--predict", "960k:8M"]
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["law"]["alpha"] == pytest.approx(TRUE.alpha, rel=0.02)
    assert told["predictions"][0]["loss"] == pytest.approx(TRUE.loss(960_000, 8_000_000), rel=0.01)
    assert main(arguments) == 0
    assert "bits per byte = 1.7" in capsys.readouterr().out
    data = write_jsonl(tmp_path / "d.jsonl", [{"text": s * 3} for s in STORIES])
    sizes = {"dim": 32, "heads": 2, "layers": 1, "vocab_size": 300, "seq_len": 64, "batch_tokens": 256, "threads": 1}
    made = pretrain.run(PretrainConfig(data=str(data), out="m", steps=2, **sizes))  # type: ignore[arg-type]
    point = scaling.of_run(made.run)
    assert (point.tokens, point.loss) == (made.tokens, made.scores["bits_per_byte"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "no data to train on"),
        (["x.txt"], "no such file"),
        (["x.txt", "--sizes", "4x95"], "not a size"),
        (["x.txt", "--tokens", "many"], "not a number"),
        (["x.txt", "--predict", "4x96"], "SIZE:TOKENS"),
        (["--points", "none.jsonl"], "no such file"),
        (["--runs", "nothing"], "no such run"),
    ],
)
def test_what_cannot_be_is_a_clear_error(
    flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scaling", *flags, "--out", str(tmp_path / "s")]) in (1, 2)
    assert said in capsys.readouterr().err


def test_a_broken_line_of_points_is_named(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    for row in ('{"parameters": 3}', '{"parameters": 3, "tokens": 4, "loss": -1}', "[1]"):
        file.write_text(row + "\n")
        with pytest.raises(FormatError, match=r"p\.jsonl:1"):
            scaling.read_points(file)


def test_a_shape_to_foretell_needs_a_vocabulary(tmp_path: Path) -> None:
    file = tmp_path / "known.jsonl"
    file.write_text("".join(json.dumps(p.to_dict()) + "\n" for p in points()))
    with pytest.raises(UsageError, match="without a vocabulary"):
        scaling.run(ScalingConfig(points=str(file), out=str(tmp_path / "s"), predict="4x96:8M"))


def test_a_drawing_with_a_logarithmic_axis_and_dots() -> None:
    assert log_ticks(1.9, 3.1) == [100.0, 200.0, 500.0, 1000.0]
    drawn = to_svg(Curve("c", {"a": [(10, 1), (1000, 2)]}, dots={"a": [(100, 1.5)]}, log=True))
    line = re.search(r'class="line s0" d="M([\d.]+) [\d.]+L([\d.]+) ', drawn)
    dot = re.search(r'class="dot s0" cx="([\d.]+)"', drawn)
    assert line is not None
    assert dot is not None
    assert float(dot[1]) == pytest.approx((float(line[1]) + float(line[2])) / 2, abs=0.2)
