"""The recipes that come with the project hold only settings that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from ladderlm import config
from ladderlm.train.settings import AlignConfig, FinetuneConfig, PretrainConfig

TINY = Path(__file__).resolve().parents[2] / "recipes" / "tiny.toml"


@pytest.mark.parametrize(
    ("section", "cls"),
    [("pretrain", PretrainConfig), ("sft", FinetuneConfig), ("align", AlignConfig), ("finetune", FinetuneConfig)],
)
def test_the_tiny_recipe_loads(section: str, cls: type) -> None:
    loaded = config.load(cls, section, recipe=TINY, environ={})
    assert loaded.minutes > 0
    if isinstance(loaded, PretrainConfig):
        assert loaded.architecture(loaded.vocab_size).parameters == 2_557_632
