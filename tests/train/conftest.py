"""A tiny pretrained model, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from stories import SIZES, STORIES, write_jsonl

from ladderlm.train.pretrain import PretrainConfig, run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    folder = tmp_path_factory.mktemp("tiny")
    rows = [{"text": " ".join(STORIES[i:] + STORIES[:i]), "source": f"s{i}"} for i in range(20)]
    data = write_jsonl(folder / "stories.jsonl", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LADDERLM_HOME", str(folder / "home"))
        run(PretrainConfig(data=str(data), out=str(folder / "tiny"), steps=40, seed=1, **SIZES))  # type: ignore[arg-type]
    return folder / "tiny"
