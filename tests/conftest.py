"""Every test gets a workspace of its own; the fetched default model is shared."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ladderlm import store

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace that holds the default model: the user's own when there, else fetched once."""
    from ladderlm.errors import LadderError
    from ladderlm.models import catalogue

    try:
        return catalogue.pull(catalogue.DEFAULT_MODEL)
    except LadderError as error:
        pytest.skip(f"the default model cannot be fetched: {error}")


@pytest.fixture(scope="session")
def _user_home() -> Path:
    return store.home()


@pytest.fixture(autouse=True)
def workspace(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace for this test."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("LADDERLM_HOME", str(home))
    return home


@pytest.fixture
def default_model(fetched: Path) -> str:
    """A reference to the default model's file that works in any workspace."""
    return str(fetched)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.exists():
        pytest.skip("../shared/data is not there")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> Iterator[None]:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    yield
