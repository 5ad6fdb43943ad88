"""Models by name: lazily, once, and whatever appears while serving."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from live import Scripted

from ladderlm import store
from ladderlm.errors import FormatError, NotFound
from ladderlm.serve.models import Models, short_name


class Shelf:
    """An opener that counts."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.opened: list[str] = []
        self.chats: list[Scripted] = []
        self.seconds = seconds

    def __call__(self, ref: str) -> Scripted:
        time.sleep(self.seconds)
        self.opened.append(ref)
        self.chats.append(Scripted())
        return self.chats[-1]


def folder(name: str) -> Path:
    path = store.make_dir(store.models_dir() / name)
    (path / "config.json").write_text("{}")
    return path


def test_opened_on_demand_and_once() -> None:
    shelf = Shelf(0.05)
    models = Models(("a", "b"), opener=shelf)
    assert (shelf.opened, models.state("a")) == ([], "idle")

    def use() -> None:
        with models.use("a"):
            pass

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    assert models.state("a") == "loading"
    for thread in threads:
        thread.join()
    assert (shelf.opened, models.state("a")) == (["a"], "ready")


def test_a_folder_that_appears_is_served() -> None:
    models = Models(("named",), opener=Shelf())
    assert models.names() == ["named"]
    folder("tuned")
    (store.models_dir() / "small.gguf").write_bytes(b"")
    (store.models_dir() / ".half").mkdir()
    assert models.names() == ["named", "small", "tuned"]
    with models.use("tuned"):
        pass
    with pytest.raises(NotFound, match="tuned"):
        models.resolve("tuend")


def test_a_replaced_folder_is_opened_anew_and_the_old_one_closed_when_free() -> None:
    shelf = Shelf()
    models = Models((), opener=shelf)
    path = folder("m")
    with models.use("m") as old:
        path.rename(path.with_name(".old"))
        folder("m")
        with models.use("m") as new:
            assert new is not old
        assert not shelf.chats[0].closed
    assert shelf.chats[0].closed
    assert not shelf.chats[1].closed


def test_the_longest_unused_is_closed() -> None:
    shelf = Shelf()
    models = Models(("a", "b", "c"), keep=2, opener=shelf)
    for name in ("a", "b", "a", "c"):
        with models.use(name):
            pass
    assert shelf.opened == ["a", "b", "c"]
    assert [chat.closed for chat in shelf.chats] == [False, True, False]


def test_the_default_and_short_names(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"")
    assert short_name(str(tmp_path / "x.gguf")) == "x"
    assert short_name(str(tmp_path)) == tmp_path.name
    assert short_name("http://127.0.0.1:1/v1#big") == "big"
    assert short_name("base+adapter") == "base+adapter"
    models = Models(("a", "b"), default="b", opener=Shelf())
    assert (models.resolve(None), models.names()) == ("b", ["b", "a"])
    with pytest.raises(NotFound, match="no model is served"):
        Models((), opener=Shelf()).resolve(None)


def test_a_failure_is_kept_and_tried_again() -> None:
    broken = True

    def opener(ref: str) -> Scripted:
        if broken:
            raise FormatError("not a model", where=ref)
        return Scripted()

    models = Models(("m",), opener=opener)
    models.preload(["m"]).join(5)
    assert models.state("m") == "failed"
    assert "not a model" in models.error("m")
    broken = False
    with models.use("m"):
        assert models.state("m") == "ready"
