"""Several models within a budget of memory."""

from __future__ import annotations

import httpx
import pytest
from live import Scripted, served

from ladderlm.errors import Overloaded, StorageError
from ladderlm.models import open_model
from ladderlm.serve.memory import needed, words
from ladderlm.serve.models import Models
from ladderlm.talk import open_chat

SIZES = {"small": 30, "medium": 50, "large": 90, "huge": 200}


class Shelf:
    def __init__(self) -> None:
        self.open: list[str] = []

    def __call__(self, ref: str) -> Scripted:
        self.open.append(ref)
        chat = Scripted()
        chat.close = lambda: self.open.remove(ref)  # type: ignore[method-assign]
        return chat


def models(shelf: Shelf, budget: int = 100) -> Models:
    return Models(tuple(SIZES), keep=100, memory=budget, opener=shelf, sizer=SIZES.__getitem__)


def test_the_longest_unused_makes_room() -> None:
    shelf = Shelf()
    shown = models(shelf)
    for name in ("small", "medium", "small", "large"):
        with shown.use(name):
            assert sum(SIZES[n] for n in shelf.open) <= 100
    assert shelf.open == ["large"]
    assert shown.memory() == {"large": 90}
    with shown.use("small"):
        assert shelf.open == ["small"]


def test_only_as_many_are_closed_as_must_be() -> None:
    shelf = Shelf()
    shown = models(shelf, 120)
    for name in ("small", "medium"):
        with shown.use(name):
            pass
    shown._slots["medium"].used += 1
    with shown.use("large"):
        assert shelf.open == ["large"]
    with shown.use("small"):
        assert shelf.open == ["large", "small"]


def test_one_in_use_is_never_closed() -> None:
    shelf = Shelf()
    shown = models(shelf)
    with shown.use("medium"), pytest.raises(Overloaded, match="are in use"), shown.use("large"):
        pass
    assert shelf.open == ["medium"]
    with shown.use("large"):  # later it can be
        assert shelf.open == ["large"]


def test_one_that_cannot_fit_is_refused_with_the_numbers_and_closes_nobody() -> None:
    shelf = Shelf()
    budget = 100 * 2**20
    shown = Models(("huge", "m"), memory=budget, opener=shelf, sizer=lambda ref: 2 * budget if ref == "huge" else 1)
    with shown.use("m"):
        pass
    with pytest.raises(StorageError, match=r"200 MB of 100 MB.*--memory"), shown.use("huge"):
        pass
    assert shelf.open == ["m"]
    assert shown.state("huge") == "failed"
    with served(shown) as url:
        answer = httpx.post(
            f"{url}/v1/chat/completions", json={"model": "huge", "messages": [{"role": "user", "content": "x"}]}
        )
        assert answer.status_code == 507
        assert "200 MB of 100 MB" in answer.json()["error"]["message"]


def test_at_the_start_only_what_fits_is_opened() -> None:
    shelf = Shelf()
    models(shelf).preload(list(SIZES)).join(5)
    assert shelf.open == ["small", "medium"]


def test_a_failed_opening_gives_its_memory_back() -> None:
    def broken(ref: str) -> Scripted:
        raise RuntimeError("no")

    shown = Models(("large",), memory=100, opener=broken, sizer=SIZES.__getitem__)
    for _ in range(3):
        with pytest.raises(RuntimeError), shown.use("large"):
            pass
    assert shown.memory() == {}


def test_the_prediction_is_what_is_packed(default_model: str) -> None:
    with_kv = needed(default_model, kv_bytes=2**20)
    chat = open_chat(default_model, kv_bytes=2**20)
    try:
        packed = chat.engine._backend._packed.buffer.nbytes  # type: ignore[attr-defined]
    finally:
        chat.close()
    assert with_kv == packed + 2**20
    assert packed < 1.5 * open_model(default_model).path.stat().st_size
    assert needed("echo", kv_bytes=5) == needed("http://127.0.0.1:1#m", kv_bytes=5) == 0
    assert (words(2**20), words(3 * 2**29)) == ("1 MB", "1.5 GB")


@pytest.mark.parametrize("memory", [None, 100])
def test_one_that_cannot_be_read_is_told_as_failed(memory: int | None) -> None:
    def refused(ref: str) -> Scripted:
        raise PermissionError(13, "Permission denied", ref)

    def sizer(ref: str) -> int:
        refused(ref)
        return 1

    shown = Models(("m",), memory=memory, opener=refused, sizer=sizer)
    shown.preload(["m"]).join(5)
    assert shown.state("m") == "failed"
    assert "Permission denied" in shown.error("m")
    with served(shown) as url:
        assert httpx.get(f"{url}/ready").status_code == 503
