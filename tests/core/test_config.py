from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from ladderlm.cli.args import parse
from ladderlm.config import load, option
from ladderlm.errors import FormatError, NotFound, UsageError


@dataclass(frozen=True)
class Settings:
    data: Path
    lr: float = option(1e-3, "learning rate")
    steps: int | None = option(None, "steps")
    names: tuple[str, ...] = option((), "names")
    fast: bool = option(False, "fast")


def test_layers_in_order(tmp_path, workspace, monkeypatch) -> None:
    (workspace / "config.toml").write_text("[demo]\nlr = 1\nsteps = 1\nnames = ['user']\n")
    recipe = tmp_path / "r.toml"
    recipe.write_text("[demo]\nlr = 2.0\nsteps = 2\n")
    monkeypatch.setenv("LADDERLM_DEMO_STEPS", "3")
    assert load(Settings, "demo", recipe=recipe, flags={"data": Path("x")}) == Settings(Path("x"), 2.0, 3, ("user",))
    assert load(Settings, "demo", recipe=recipe, flags={"data": Path("x"), "lr": 4.0}).lr == 4.0


@pytest.mark.parametrize(
    ("body", "error", "match"),
    [("[demo]\nlrr = 1", UsageError, "did you mean 'lr'"), ("[demo]\nlr = 'a'", UsageError, "must be float"),
     ("[demo", FormatError, "not valid TOML"), ("demo = 3", FormatError, "must be a table")],
)  # fmt: skip
def test_a_bad_recipe_is_a_clear_error(tmp_path, body, error, match) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(body)
    with pytest.raises(error, match=match):
        load(Settings, "demo", recipe=recipe, flags={"data": Path("x")})


def test_a_missing_recipe_is_named(tmp_path) -> None:
    with pytest.raises(NotFound, match=r"nothing\.toml"):
        load(Settings, "demo", recipe=tmp_path / "nothing.toml")


def test_the_command_line(capsys) -> None:
    got = parse("demo", Settings, ["file", "--lr", "2", "--names", "a", "--names", "b", "--fast"])
    assert got == Settings(Path("file"), 2.0, None, ("a", "b"), True)
    with pytest.raises(SystemExit) as stop:
        parse("demo", Settings, ["file", "--lrr", "2"])
    assert stop.value.code == 2
    assert "did you mean '--lr'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        parse("demo", Settings, ["file", "--lr", "x"])
    assert stop.value.code == 2
