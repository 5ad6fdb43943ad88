"""The hub's client: whatever it raises when the network is away becomes one line."""

from __future__ import annotations

import pytest

from ladderlm.errors import NetworkError, UsageError
from ladderlm.models.hub import download


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    class SomeClientsOwnError(Exception): ...

    def away(*_: object, **__: object) -> None:
        raise SomeClientsOwnError("Name or service not known")

    monkeypatch.setattr(hub.HfApi, "model_info", away)
    with pytest.raises(NetworkError, match="cannot be reached: Name or service") as caught:
        download("org/name@main")
    assert "\n" not in str(caught.value)


def test_a_wrong_hub_name_is_refused() -> None:
    pytest.importorskip("huggingface_hub")
    with pytest.raises(UsageError, match="no hub name"):
        download("just-a-name")
