"""The chat in a real browser, from the first word to a history of ten thousand."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from ladderlm.serve import chats as history
from ladderlm.serve.accounts import LOCAL

pytestmark = pytest.mark.slow
pytest.importorskip("uvicorn")
playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect


def test_a_chat_from_first_word_to_reload(opened: Any) -> None:
    page = opened.page
    opened.ask("hello **there**")
    opened.done()
    expect(opened.answer.locator(".prose strong")).to_have_text("there")
    expect(opened.answer.locator(".stats")).to_contain_text("tokens/s")
    page.locator(".turn.user").last.hover()
    page.get_by_label("Edit", exact=True).click()
    page.fill(".edit", "second try")
    page.press(".edit", "Enter")
    opened.done()
    expect(opened.answer.locator(".prose")).to_have_text("second try")
    page.get_by_label("Regenerate").click()
    opened.done()
    expect(opened.answer.locator(".variants .muted")).to_have_text("2 / 2")
    page.get_by_label("Previous wording").click()
    expect(opened.answer.locator(".prose")).to_have_text("hello there")
    page.get_by_label("Next wording").click()
    expect(opened.answer.locator(".prose")).to_have_text("second try")
    expect(opened.answer.locator(".variants .muted")).to_have_text("2 / 2")
    page.click("#new-chat")
    opened.ask("another chat")
    opened.done()
    page.reload()
    expect(opened.answer.locator(".prose")).to_have_text("another chat")
    expect(page.locator(".chat-link")).to_have_text(["another chat", "hello **there**"])
    page.locator(".chat-link").last.click()
    expect(opened.answer.locator(".prose")).to_have_text("second try")
    page.go_back()
    expect(opened.answer.locator(".prose")).to_have_text("another chat")


def test_stop_by_button_and_by_escape(opened: Any) -> None:
    endless = opened.chats["endless"]
    opened.choose("endless")
    for stop in (lambda: opened.page.click("#send"), lambda: opened.page.keyboard.press("Escape")):
        endless.ended.clear()
        opened.ask("talk")
        expect(opened.answer).to_contain_text("more more")
        stop()
        opened.done()
        assert endless.ended.wait(3)
        expect(opened.answer).to_contain_text("stopped")


def test_an_answer_goes_on_while_another_chat_is_read(opened: Any) -> None:
    page, endless = opened.page, opened.chats["endless"]
    opened.ask("first")
    opened.done()
    page.click("#new-chat")
    opened.choose("endless")
    opened.ask("talk")
    expect(opened.answer).to_contain_text("more more")
    page.locator(".chat-link", has_text="first").click()
    expect(opened.answer.locator(".prose")).to_have_text("first")
    assert not endless.ended.is_set()
    page.locator(".chat-link", has_text="talk").click()
    expect(opened.answer).to_contain_text("more more")
    page.click("#send")
    opened.done()
    assert endless.ended.wait(3)


def test_continue_goes_on_with_the_same_answer(opened: Any) -> None:
    page, scripted = opened.page, opened.chats["scripted"]
    opened.choose("scripted")
    opened.ask("say it")
    opened.done()
    page.get_by_label("Continue").click()
    opened.done()
    assert scripted.asked[-1][0].messages[-1].text == "Héllo world"
    expect(opened.answer.locator(".prose")).to_have_text("Héllo worldHéllo world")
    expect(opened.answer.locator(".variants")).to_have_count(0)
    expect(opened.answer.locator(".stats")).to_contain_text("8 tokens")
    page.reload()
    expect(opened.answer.locator(".prose")).to_have_text("Héllo worldHéllo world")


def test_probabilities_and_a_fork(opened: Any) -> None:
    page, scripted = opened.page, opened.chats["scripted"]
    opened.choose("scripted")
    page.click("#toggle-probs")
    opened.ask("say it")
    opened.done()
    tokens = opened.answer.locator(".tokens .token")
    expect(tokens).to_have_text(["Hé", "llo", " wor", "ld"])
    tokens.nth(2).hover()
    expect(page.locator("#popover .popover-head")).to_contain_text("47.2 %")
    page.mouse.move(5, 5)
    expect(page.locator("#popover")).to_be_hidden()
    tokens.nth(0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#popover .popover-head")).to_contain_text("60.7 %")
    page.keyboard.press("Escape")
    expect(page.locator("#popover")).to_be_hidden()
    expect(tokens.nth(1)).to_be_focused()
    tokens.nth(1).click()
    opened.shot("probabilities")
    page.locator("#popover button.bar").click()
    opened.done()
    assert scripted.asked[-1][0].messages[-1].text == "Hé other"
    expect(opened.answer.locator(".tokens")).to_have_text("Hé otherHéllo world")
    expect(opened.answer.locator(".variants .muted")).to_have_text("2 / 2")
    page.get_by_label("Previous answer").click()
    expect(opened.answer.locator(".tokens")).to_have_text("Héllo world")
    page.reload()  # the probabilities are kept too
    expect(tokens).to_have_text(["Hé", "llo", " wor", "ld"])


def test_settings_travel_and_presets_are_kept(opened: Any) -> None:
    page, scripted = opened.page, opened.chats["scripted"]
    opened.choose("scripted")
    page.click("#toggle-settings")
    page.fill("#system", "be brief")
    page.fill("#s-temperature", "0.2")
    page.fill("#s-seed", "5")
    page.fill("#s-max_tokens", "2")
    page.get_by_text("More ways to draw").click()
    page.fill("#s-repetition_penalty", "1.3")
    page.fill("#s-stop", "END\\n")
    page.fill("#s-bias", "12 -5")
    page.fill("#preset-name", "brief")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#preset")).to_have_value("brief")
    opened.ask("go")
    opened.done()
    conversation, sampling = scripted.asked[-1]
    assert conversation.messages[0].text == "be brief"
    assert (sampling.temperature, sampling.seed, sampling.max_tokens) == (0.2, 5, 2)
    assert (sampling.repetition_penalty, sampling.stop, sampling.logit_bias) == (1.3, ("END\n",), ((12, -5.0),))
    page.click("#reset-sampling")
    page.fill("#system", "")
    page.select_option("#preset", "")
    page.select_option("#preset", "brief")
    expect(page.locator("#s-seed")).to_have_value("5")
    expect(page.locator("#system")).to_have_value("be brief")
    page.get_by_label("Delete preset brief").click()
    expect(page.locator("#preset option")).to_have_count(1)
    page.fill("#s-bias", "nonsense")
    opened.ask("again")
    expect(page.locator("#notice")).to_contain_text("Logit bias")


def test_markdown_code_and_maths(opened: Any) -> None:
    page = opened.page
    rich = "# Title\n- one\n- two\n\n```py\nx = 1  # one\n```\n1. a\n2. b\n\n|a|b|\n|-|-:|\n|1|2|\n\n"
    rich += "$$\\frac{1}{2}$$ and $x^2$ for $5 and $6."
    opened.ask(rich)
    opened.done()
    expect(opened.answer.locator("h2")).to_have_text("Title")
    expect(opened.answer.locator("pre code")).to_have_text("x = 1  # one")
    expect(opened.answer.locator(".hljs-comment")).to_have_text("# one")
    assert opened.answer.locator("ul li").count() == opened.answer.locator("ol li").count() == 2
    expect(opened.answer.locator("td.right")).to_have_text("2")
    expect(opened.answer.locator("math")).to_have_count(2)
    expect(opened.answer.locator("mfrac")).to_have_count(1)
    expect(opened.answer).to_contain_text("for $5 and $6.")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_label("Copy code").click()
    assert page.evaluate("navigator.clipboard.readText()") == "x = 1  # one"
    opened.answer.get_by_label("Copy", exact=True).click()
    assert page.evaluate("navigator.clipboard.readText()") == rich


def test_files_are_read_into_the_prompt(opened: Any) -> None:
    page, scripted = opened.page, opened.chats["scripted"]
    opened.choose("scripted")
    page.set_input_files("#attach", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"the secret is 42"})
    expect(page.locator(".files li")).to_contain_text("notes.txt")
    opened.ask("what is it?")
    opened.done()
    asked = scripted.asked[-1][0].messages[0].text
    assert "File notes.txt" in asked
    assert "the secret is 42" in asked
    assert asked.endswith("what is it?")
    expect(page.locator(".attached")).to_contain_text("notes.txt")
    page.set_input_files(
        "#attach", {"name": "x.bin", "mimeType": "application/octet-stream", "buffer": b"\xff\xfe\x00"}
    )
    expect(page.locator("#notice")).to_contain_text("neither text nor an image")


def test_a_key_is_asked_for(open_page: Any) -> None:
    opened = open_page(key="sesame")
    opened.allow("401")
    page = opened.page
    expect(page.locator("#key-dialog")).to_be_visible()
    page.fill("#key", "wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key-dialog")).to_contain_text("refused")
    page.fill("#key", "sesame")
    page.keyboard.press("Enter")
    expect(page.locator("#key-dialog")).to_be_hidden()
    opened.choose("echo")
    opened.ask("inside")
    opened.done()
    page.reload()  # the tab remembers
    expect(opened.answer.locator(".prose")).to_have_text("inside")


def test_history_is_searched_renamed_filed_and_deleted(opened: Any) -> None:
    page = opened.page
    for text in ("the quick brown fox", "a lazy dog sleeps"):
        opened.ask(text)
        opened.done()
        page.click("#new-chat")
    page.keyboard.press("Control+k")
    page.keyboard.type("brow")
    expect(page.locator("#found li")).to_have_count(1)
    expect(page.locator("#found mark").first).to_have_text("brown")
    opened.shot("search")
    page.keyboard.press("Enter")
    expect(opened.answer.locator(".prose")).to_have_text("the quick brown fox")
    page.locator("#chat-list li", has_text="lazy").hover()
    page.get_by_label("Options: a lazy dog sleeps").click()
    page.get_by_role("button", name="Rename").click()
    page.fill(".rename", "Dogs")
    page.keyboard.press("Enter")
    expect(page.locator(".chat-link", has_text="Dogs")).to_be_visible()
    page.get_by_label("Options: Dogs").click()
    page.fill(".menu input", "Animals")
    page.keyboard.press("Enter")
    expect(page.locator(".group").first).to_have_text("Animals")
    page.reload()
    expect(page.locator(".group").first).to_have_text("Animals")
    page.get_by_label("Options: Dogs").click()
    page.get_by_role("button", name="Delete").click()
    expect(page.locator(".chat-link", has_text="Dogs")).to_have_count(0)
    assert len(history.list_chats(LOCAL)) == 1


def test_export_and_import_keep_everything(opened: Any, tmp_path: Any) -> None:
    page = opened.page
    opened.choose("scripted")
    opened.ask("keep me")
    opened.done()
    page.get_by_label("Regenerate").click()
    opened.done()
    with page.expect_download() as saved:
        page.get_by_label("Export all chats").click()
    path = tmp_path / "chats.json"
    saved.value.save_as(path)
    exported = json.loads(path.read_text())
    messages = exported["chats"][0]["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant", "assistant"]
    assert messages[1]["timings"]["tokens_per_second"] > 0
    assert messages[1]["sampling"]["max_tokens"] == 1024
    assert messages[1]["tokens"][0][0] == "Hé"
    page.get_by_label("Options: keep me").click()
    page.get_by_role("button", name="Delete").click()
    expect(page.locator(".chat-link")).to_have_count(0)
    for other in (b"\x89PNG", b"[1]", b"null"):
        page.set_input_files("#import", {"name": "x.json", "mimeType": "application/json", "buffer": other})
        expect(page.get_by_text("This is not a file of exported chats.")).to_be_visible()
        page.get_by_label("Dismiss").click()
    page.set_input_files("#import", path)
    page.locator(".chat-link", has_text="keep me").click()
    expect(opened.answer.locator(".variants .muted")).to_have_text("2 / 2")
    (again,) = history.export(LOCAL)
    for new, old in zip(again["messages"], messages, strict=True):
        assert {k: v for k, v in new.items() if k not in ("id", "parent")} == {
            k: v for k, v in old.items() if k not in ("id", "parent")
        }


def test_ten_thousand_messages_scroll(opened: Any) -> None:
    page, parent = opened.page, None
    messages = []
    for n in range(10_000):
        role = "assistant" if n % 2 else "user"
        text = f"number {n} " + "and some more words to fill the line " * (n % 7)
        messages.append({"id": f"m{n}", "parent": parent, "role": role, "content": text})
        parent = f"m{n}"
    history.import_chats(LOCAL, [{"title": "long", "messages": messages}])
    page.reload()
    began = time.monotonic()
    page.locator(".chat-link", has_text="long").click()
    expect(page.locator("#messages")).to_contain_text("number 9999")
    assert time.monotonic() - began < 5
    for _ in range(1000):  # up to the very first, page by page
        page.locator("#messages").evaluate("node => { node.scrollTop = 0; }")
        page.wait_for_timeout(60)
        if page.locator("#messages", has_text="number 0 ").count():
            break
    expect(page.locator("#messages")).to_contain_text("number 0 ")
    assert page.locator(".turn").count() < 120
    frames = page.locator("#messages").evaluate(
        """async node => {
            let blank = 0;
            for (let i = 0; i < 40; i++) {
                node.scrollTop = (i * 997 * 131) % node.scrollHeight;
                await new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)));
                const box = node.getBoundingClientRect();
                const hit = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
                if (!hit?.closest(".slot")) blank++;
            }
            return blank;
        }"""
    )
    assert frames <= 2
    page.get_by_label("To the end").click()
    expect(page.locator(".turn").last).to_contain_text("number 9999")


def test_an_old_answer_can_be_shown_from_the_search(opened: Any) -> None:
    page = opened.page
    opened.ask("first wording here")
    opened.done()
    page.locator(".turn.user").last.hover()
    page.get_by_label("Edit", exact=True).click()
    page.fill(".edit", "other thoughts")
    page.press(".edit", "Enter")
    opened.done()
    page.click("#search")
    page.keyboard.type("wording")
    page.locator("#found li").click()
    expect(opened.answer.locator(".prose")).to_have_text("first wording here")


def test_a_server_that_goes_away_is_told(opened: Any) -> None:
    opened.allow("ERR_", "Failed to load")
    opened.page.context.set_offline(True)
    opened.ask("anybody?")
    expect(opened.page.locator("#notice")).to_contain_text("does not answer")
    opened.page.context.set_offline(False)


def test_many_tabs_write_at_once(opened: Any) -> None:
    """Of two writers neither loses a message."""
    made = history.create_chat(LOCAL, {"title": "both"})["id"]
    body = {"role": "user", "content": "x"}
    threads = [
        threading.Thread(target=lambda: [history.put_message(LOCAL, made, body) for _ in range(20)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (whole,) = history.export(LOCAL, [made])
    assert len(whole["messages"]) == 80
