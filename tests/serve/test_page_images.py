"""Images in the page: attached, pasted and dropped, made small, sent, kept, and refused where nobody would see them."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from live import Scripted
from pictures import png

from ladderlm.serve import chats as history
from ladderlm.serve.accounts import LOCAL
from ladderlm.talk.images import HELD, images_of, kind_of

pytestmark = pytest.mark.slow
pytest.importorskip("uvicorn")
playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

SEEING = "http://seeing.example#seeing"  # by its reference a remote, which may be shown images
NOTE = b"taken at 48.85 N 2.35 E"


def file(name: str, data: bytes, kind: str = "image/png") -> dict[str, Any]:
    return {"name": name, "mimeType": kind, "buffer": data}


def noted(data: bytes) -> bytes:
    """A PNG with a note in it, as cameras leave them."""
    import zlib

    body = b"Comment\0" + NOTE
    chunk = struct.pack(">I", len(body)) + b"tEXt" + body + struct.pack(">I", zlib.crc32(b"tEXt" + body))
    return data[:33] + chunk + data[33:]


def paste(page: Any, event: str, name: str, data: bytes) -> None:
    """Gives the composer an image by the clipboard or by dropping it."""
    page.evaluate(
        """([event, name, data]) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type: "image/png" }));
            const how = { bubbles: true, cancelable: true, clipboardData: transfer, dataTransfer: transfer };
            const made = event === "paste" ? new ClipboardEvent("paste", how) : new DragEvent("drop", how);
            document.querySelector("#prompt").dispatchEvent(made);
        }""",
        [event, name, base64.b64encode(data).decode()],
    )


def test_an_image_is_made_small_sent_kept_and_exported(open_page: Any) -> None:
    seeing = Scripted()
    opened = open_page(more={SEEING: seeing})
    page = opened.page
    opened.choose("seeing")
    page.set_input_files("#attach", [file("wall.png", noted(png(2048, 512))), file("small.png", png(3, 5))])
    paste(page, "paste", "pasted.png", png(7, 7))
    paste(page, "drop", "dropped.png", png(9, 9))
    thumbs = page.locator(".files .thumb")
    expect(thumbs).to_have_count(4)
    assert thumbs.evaluate_all("all => all.map(i => i.alt)") == ["wall.png", "small.png", "pasted.png", "dropped.png"]
    page.get_by_label("Remove dropped.png").click()
    expect(thumbs).to_have_count(3)
    opened.shot("image-attached")
    opened.ask("What is this?")
    opened.done()
    expect(page.locator(".files")).to_have_count(0)
    shown = page.locator(".turn.user .pictures img")
    sizes = "all => all.map(i => [i.alt, i.naturalWidth, i.naturalHeight])"
    kept = [["wall.png", 1024, 256], ["small.png", 3, 5], ["pasted.png", 7, 7]]
    assert shown.evaluate_all(sizes) == kept
    opened.shot("image-sent")

    talk = seeing.asked[-1][0]
    assert talk.messages[0].text == "What is this?"
    sent = [HELD.get(image.sha256).data for image in images_of(talk)]
    assert [kind_of(data) for data in sent] == ["image/png"] * 3
    assert struct.unpack(">II", sent[0][16:24]) == (1024, 256)
    assert NOTE not in sent[0]

    page.reload()
    expect(shown).to_have_count(3)
    assert shown.evaluate_all(sizes) == kept
    opened.choose("seeing")
    opened.ask("And now?")  # what was shown before is shown again
    opened.done()
    assert images_of(seeing.asked[-1][0]) == images_of(talk)
    with page.expect_download() as told:
        page.get_by_label("Export all chats").click()
    text = Path(told.value.path()).read_text()
    assert text.count("data:image/png;base64,") == 3
    page.set_input_files("#import", {"name": "chats.json", "mimeType": "application/json", "buffer": text.encode()})
    expect(page.locator(".chat-link")).to_have_count(2)
    first, second = (history.export(LOCAL, [chat["id"]]) for chat in history.list_chats(LOCAL))
    images = [
        [a["image"] for m in next(found)["messages"] for a in m.get("attachments", ())] for found in (first, second)
    ]
    assert images[0] == images[1]
    assert len(images[0]) == 3


def test_who_reads_text_only_is_named_before_anything_is_sent(open_page: Any) -> None:
    seeing = Scripted()
    opened = open_page(more={SEEING: seeing})
    page, scripted = opened.page, opened.chats["scripted"]
    opened.choose("scripted")
    page.set_input_files("#attach", file("x.png", png()))
    expect(page.locator("#blind")).to_contain_text("scripted reads text only: remove the image")
    page.fill("#prompt", "What is this?")
    expect(page.locator("#send")).to_be_disabled()
    page.press("#prompt", "Enter")
    page.get_by_label("Remove x.png").click()
    expect(page.locator("#blind")).to_have_count(0)
    expect(page.locator("#send")).to_be_enabled()
    page.set_input_files("#attach", file("x.png", png()))
    opened.choose("seeing")
    expect(page.locator("#blind")).to_have_count(0)
    page.press("#prompt", "Enter")
    opened.done()
    opened.choose("scripted")
    expect(page.locator("#blind")).to_contain_text("there are images above")
    assert scripted.asked == []
    assert len(seeing.asked) == 1


def test_what_is_no_image_and_what_was_slipped_into_a_file(open_page: Any) -> None:
    opened = open_page(more={SEEING: Scripted()})
    page = opened.page
    opened.choose("seeing")
    page.set_input_files("#attach", file("broken.png", b"\x89PNG\r\n\x1a\nnothing"))
    expect(page.locator("#notice")).to_contain_text("broken.png is not an image that this browser can open")
    page.set_input_files("#attach", [file(f"{n}.png", png(n, 1)) for n in range(1, 11)])
    expect(page.locator("#notice")).to_contain_text("At most 8 images")
    expect(page.locator(".files .thumb")).to_have_count(8)
    wrong = ["https://evil.example/pixel.png", "data:image/svg+xml;base64,PHN2Zy8+", "javascript:alert(1)"]
    message = {"id": "msg_1", "role": "user", "content": "look",
               "attachments": [{"name": "x", "bytes": 1, "text": "", "image": image} for image in wrong]}  # fmt: skip
    chats = {"object": "ladderlm.chats", "format": 1, "chats": [{"title": "slipped", "messages": [message]}]}
    page.set_input_files("#import", file("chats.json", json.dumps(chats).encode(), "application/json"))
    page.locator(".chat-link", has_text="slipped").click()
    expect(page.locator(".turn.user .said")).to_have_text("look")
    expect(page.locator("#messages img")).to_have_count(0)
