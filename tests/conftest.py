"""Every test gets a workspace of its own; the fetched default model is shared."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

USERS = os.environ.get("LADDERLM_HOME")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def fetched() -> Path:
    """A workspace that holds the default model: the user's own when there, else fetched once."""
    from ladderlm.errors import LadderError
    from ladderlm.models import catalogue

    with pytest.MonkeyPatch.context() as patch:
        if USERS is None:
            patch.delenv("LADDERLM_HOME", raising=False)
        else:
            patch.setenv("LADDERLM_HOME", USERS)
        try:
            return catalogue.pull(catalogue.DEFAULT_MODEL)
        except LadderError as error:
            pytest.skip(f"the default model cannot be fetched: {error}")


@pytest.fixture(scope="session", autouse=True)
def _apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the fixtures of modules do is not done in the user's own workspace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LADDERLM_HOME", str(tmp_path_factory.mktemp("session")))
        yield


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
