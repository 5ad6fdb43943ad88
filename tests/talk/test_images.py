"""Images: what is taken for one, where its bytes are, and how a remote gets them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from openai_server import Server, answer
from pictures import GIF, JPEG, WEBP, data_url, png

import ladderlm
from ladderlm.errors import FormatError, NotFound, Overloaded, UsageError
from ladderlm.talk import images, open_chat, sees
from ladderlm.talk.echo import EchoChat
from ladderlm.talk.images import Blobs, decoded, kind_of, read_image
from ladderlm.types import Completion, Conversation, Image, Message, Sampling, Text

PNG = png()


@pytest.mark.parametrize(
    ("data", "kind"),
    [(PNG, "image/png"), (JPEG, "image/jpeg"), (GIF, "image/gif"), (b"GIF87a", "image/gif"), (WEBP, "image/webp")],
)
def test_data_urls_are_decoded(data: bytes, kind: str) -> None:
    assert decoded(data_url(data, kind), "here") == data
    assert kind_of(data) == kind


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "not an image as a data: URL"),
        ("data:", "not an image as a data: URL"),
        (data_url(PNG).replace("data:", "DATA:"), "not an image as a data: URL"),
        (" " + data_url(PNG), "not an image as a data: URL"),
        (data_url(PNG, "image/png;charset=x"), "not an image as a data: URL"),
        (data_url(PNG).replace(";base64", ""), "not an image as a data: URL"),
        (data_url(b"<svg onload='x()'/>", "image/svg"), "not a type of image"),
        (data_url(b"<svg onload='x()'/>", "image/svg+xml"), "not an image as a data: URL"),
        (data_url(b"hello", "text/plain"), "not an image as a data: URL"),
        (data_url(PNG, "image/jpeg"), "said to be image/jpeg, it is image/png"),
        (data_url(b"BM plainly a bitmap"), "not PNG, JPEG, WebP or GIF"),
        (data_url(b""), "not PNG, JPEG, WebP or GIF"),
        (data_url(b"RIFF....WAVE", "image/webp"), "not PNG, JPEG, WebP or GIF"),
        (data_url(PNG) + "\n", "not valid base64"),
        (data_url(PNG)[:-1], "not valid base64"),
        (data_url(PNG) + "AAAA=", "not valid base64"),
        ("data:image/png;base64,iVBO Rw0K", "not valid base64"),
        ("data:image/png;base64,iVBO_w0-", "not valid base64"),
        ("data:image/png;base64,é", "not valid base64"),
        ("file:///etc/passwd", "not an image as a data: URL"),
        ("sha256:" + "0" * 64, "not an image as a data: URL"),
    ],
)
def test_what_is_no_image_is_refused_and_not_repeated(url: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        decoded(url, "messages[0]")
    assert caught.value.where == "messages[0]"
    assert url[22:] not in str(caught.value) or len(url) <= 22


def test_images_have_a_size_they_may_not_exceed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LARGEST", len(PNG))
    assert decoded(data_url(PNG), "") == PNG
    for larger in (PNG + b"x", PNG + b"x" * 1000):
        with pytest.raises(UsageError, match="an image of more than"):
            decoded(data_url(larger), "")


def test_the_memory_of_images_is_bounded() -> None:
    blobs = Blobs(100)
    first = blobs.put(b"a" * 40)
    second = blobs.put(b"b" * 40).sha256
    assert blobs.put(b"a" * 40) is first  # by content, and so not twice
    third = blobs.put(b"c" * 40)  # the second goes: nobody holds it
    with pytest.raises(NotFound, match="no longer in memory"):
        blobs.get(second)
    assert blobs.get(first.sha256) is first
    with pytest.raises(Overloaded):
        blobs.put(b"d" * 40)  # both are in use
    name = third.sha256
    del third
    assert blobs.get(name).data == b"c" * 40  # kept while there is room
    assert blobs.put(b"d" * 40).data == b"d" * 40
    assert blobs.bytes <= 100
    with pytest.raises(Overloaded):
        blobs.put(b"e" * 101)


def test_many_small_ones_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST", 3)
    blobs = Blobs(1000)
    names = [blobs.put(bytes([n])).sha256 for n in range(5)]
    assert blobs.bytes == 3
    with pytest.raises(NotFound):
        blobs.get(names[1])


def test_a_remote_gets_text_and_images_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "b").write_bytes(GIF)
    first, second = ladderlm.read_image(tmp_path / "a.png"), read_image(str(tmp_path / "b"))
    second = Image(second.sha256, second.media_type, "low")
    assert (first.media_type, second.media_type) == ("image/png", "image/gif")
    with Server(answer("a ", "cat")) as server:
        chat = open_chat(f"{server.url}#m", max_cost=None)
        talk = Conversation.of("What is this?", "Be brief.", [first])
        assert Completion.fold(chat.stream(talk, Sampling())).text == "a cat"
        mixed = Conversation((Message("user", (second, Text("or"), first, Text(""))),))
        list(chat.stream(mixed, Sampling()))
        plain = Conversation.of("hello")
        list(chat.stream(plain, Sampling()))
    one = {"type": "image_url", "image_url": {"url": data_url(PNG)}}
    low = {"type": "image_url", "image_url": {"url": data_url(GIF, "image/gif"), "detail": "low"}}
    assert server.bodies[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is this?"}, one]},
    ]
    assert server.bodies[1]["messages"][0]["content"] == [low, {"type": "text", "text": "or"}, one]
    assert server.bodies[2]["messages"] == [{"role": "user", "content": "hello"}]
    told = json.dumps(talk.to_dict())
    assert base64.b64encode(PNG).decode()[:20] not in told
    assert Conversation.from_dict(json.loads(told)) == talk


def test_bytes_that_are_gone_and_places_where_no_image_can_be(tmp_path: Path) -> None:
    gone = Conversation.of("?", images=[Image("0" * 64, "image/png")])
    (tmp_path / "a.png").write_bytes(PNG)
    shown = read_image(tmp_path / "a.png")
    with Server(answer("x")) as server:
        chat = open_chat(f"{server.url}#m")
        with pytest.raises(NotFound, match="no longer in memory"):
            list(chat.stream(gone, Sampling()))
        with pytest.raises(UsageError, match="only users and tools"):
            list(chat.stream(Conversation((Message("system", (shown,)),)), Sampling()))
        assert server.bodies == []
    with pytest.raises(UsageError, match="reads text only"):
        list(EchoChat().stream(Conversation.of("?", images=[shown]), Sampling()))
    assert [sees(ref) for ref in ("http://127.0.0.1:1#m", "echo", "name", "base+adapter")] == [
        True,
        False,
        False,
        False,
    ]


def test_a_file_that_cannot_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match="no such image"):
        read_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(FormatError, match="not an image that is known"):
        read_image(tmp_path / "text.png")
    with pytest.raises(OSError, match="cannot be read"):
        read_image(tmp_path)
    (tmp_path / "big.png").write_bytes(PNG)
    monkeypatch.setattr(images, "LARGEST", 20)
    with pytest.raises(UsageError, match="an image of more than"):
        read_image(tmp_path / "big.png")


def test_a_budget_counts_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    claimed: list[Any] = []

    class Spy:
        def claim(self, size: int, most: int | None, count: int) -> tuple[float, int | None]:
            claimed.append(size)
            return 0.0, most

        def settle(self, claimed: float, cost: float) -> None: ...

    with Server(answer("x")) as server:
        chat: Any = open_chat(f"{server.url}#m")
        chat._budget = Spy()
        list(chat.stream(Conversation.of("?"), Sampling()))
        list(chat.stream(Conversation.of("?", images=[read_image(tmp_path / "a.png")]), Sampling()))
    assert claimed[1] - claimed[0] == 50_000
