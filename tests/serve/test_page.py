"""The page in a real browser: chat, stop, edit, forks, the other views, and nothing a model writes becomes markup."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from live import Endless, Scripted, served

from ladderlm import store
from ladderlm.serve.models import Models
from ladderlm.talk.echo import EchoChat
from ladderlm.types import Chat

pytestmark = pytest.mark.slow
pytest.importorskip("uvicorn")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
QUIET += ["--disable-sync", "--no-first-run"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


class Open:
    """A fresh browser profile on the page."""

    def __init__(self, page: Any, chats: dict[str, Chat]) -> None:
        self.page, self.chats = page, chats
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        page.on("request", lambda request: self.requests.append(request.url))

    def ask(self, text: str) -> None:
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")

    def done(self) -> None:
        self.page.locator("#send", has_text="Send").wait_for()

    @property
    def answer(self) -> Any:
        return self.page.locator(".turn.assistant").last

    def expect(self, locator: Any, text: str) -> None:
        playwright.expect(locator).to_have_text(text)


@pytest.fixture
def opened(browser: Any, workspace: object) -> Iterator[Open]:
    chats: dict[str, Chat] = {"echo": EchoChat(), "scripted": Scripted(), "endless": Endless()}
    with served(Models(tuple(chats), opener=lambda ref: chats.get(ref) or EchoChat())) as url:
        context = browser.new_context(viewport={"width": 1200, "height": 800})
        context.set_default_timeout(10_000)
        found = Open(context.new_page(), chats)
        found.page.goto(url)
        found.page.locator("#model option").first.wait_for(state="attached")
        yield found
        assert found.errors == []
        assert all(request.startswith(url) for request in found.requests)
        context.close()


def test_a_chat_from_first_word_to_reload(opened: Open) -> None:
    page = opened.page
    opened.ask("hello **there**")
    opened.done()
    opened.expect(opened.answer.locator(".prose strong"), "there")
    playwright.expect(opened.answer.locator(".stats")).to_contain_text("tokens/s")
    page.locator(".turn.user").last.hover()
    page.get_by_label("Edit", exact=True).click()
    page.fill(".edit", "second try")
    page.press(".edit", "Enter")
    opened.done()
    opened.expect(opened.answer.locator(".prose"), "second try")
    page.get_by_label("Regenerate").click()
    opened.done()
    opened.expect(opened.answer.locator(".variants .muted"), "2 / 2")
    page.click("#new-chat")
    opened.ask("another chat")
    opened.done()
    page.reload()
    opened.expect(opened.answer.locator(".prose"), "another chat")
    opened.expect(page.locator(".chat-link"), ["another chat", "second try"])  # type: ignore[arg-type]
    page.locator(".chat-link").last.click()
    opened.expect(opened.answer.locator(".prose"), "second try")


def test_stop_by_button_and_by_escape(opened: Open) -> None:
    endless = opened.chats["endless"]
    opened.page.select_option("#model", "endless")
    for stop in (lambda: opened.page.click("#send"), lambda: opened.page.keyboard.press("Escape")):
        endless.ended.clear()  # type: ignore[attr-defined]
        opened.ask("talk")
        playwright.expect(opened.answer).to_contain_text("more more")
        stop()
        opened.done()
        assert endless.ended.wait(3)  # type: ignore[attr-defined]
        playwright.expect(opened.answer).to_contain_text("stopped")


def test_probabilities_and_a_fork(opened: Open) -> None:
    page, scripted = opened.page, opened.chats["scripted"]
    page.select_option("#model", "scripted")
    page.click("#toggle-probs")
    opened.ask("say it")
    opened.done()
    tokens = opened.answer.locator(".tokens .token")
    opened.expect(tokens, ["Hé", "llo", " wor", "ld"])  # type: ignore[arg-type]
    tokens.nth(0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#popover .popover-head")).to_contain_text("60.7 %")
    page.keyboard.press("Escape")
    playwright.expect(page.locator("#popover")).to_be_hidden()
    tokens.nth(1).click()
    page.locator("#popover button.bar").click()
    opened.done()
    assert scripted.asked[-1][0].messages[-1].text == "Hé other"  # type: ignore[attr-defined]
    opened.expect(opened.answer.locator(".tokens"), "Hé otherHéllo world")
    opened.expect(opened.answer.locator(".variants .muted"), "2 / 2")
    page.get_by_label("Previous answer").click()
    opened.expect(opened.answer.locator(".tokens"), "Héllo world")


def test_settings_travel(opened: Open) -> None:
    page, scripted = opened.page, opened.chats["scripted"]
    page.select_option("#model", "scripted")
    page.click("#toggle-settings")
    page.fill("#system", "be brief")
    page.fill("#s-temperature", "0.2")
    page.fill("#s-seed", "5")
    page.fill("#s-max_tokens", "2")
    opened.ask("go")
    opened.done()
    conversation, sampling = scripted.asked[-1]  # type: ignore[attr-defined]
    assert conversation.messages[0].text == "be brief"
    assert (sampling.temperature, sampling.seed, sampling.max_tokens) == (0.2, 5, 2)


def test_what_a_model_writes_stays_text(opened: Open) -> None:
    hostile = (
        "<img src=x onerror=alert(1)> <script>alert(2)</script> ![pic](https://far.example/p.png) "
        "[bad](javascript:alert(3)) [nice](https://far.example/a) `<b>`"
    )
    opened.ask(hostile)
    opened.done()
    assert opened.answer.locator("img, script, iframe, b").count() == 0
    links = opened.answer.locator("a")
    assert links.count() == 1
    opened.expect(links, "https://far.example/a")
    assert "noopener" in links.get_attribute("rel")
    playwright.expect(opened.answer).to_contain_text("javascript:alert(3)")
    opened.ask("# Title\n- one\n- two\n\n```py\nx < 1\n```\n1. a\n2. b")
    opened.done()
    opened.expect(opened.answer.locator("h3"), "Title")
    opened.expect(opened.answer.locator("pre code"), "x < 1")
    assert opened.answer.locator("ul li").count() == opened.answer.locator("ol li").count() == 2


def test_next_token_and_compare(opened: Open) -> None:
    page = opened.page
    page.select_option("#model", "scripted")
    page.click("#tab-next")
    first = page.locator("#next-panes .pane").first
    playwright.expect(first.locator(".bar")).to_have_count(10)
    first.locator(".bar").first.click()
    playwright.expect(first.locator("textarea")).to_have_value("Listen to your w0")
    page.click("#next-second")
    playwright.expect(page.locator("#next-panes .bar")).to_have_count(20)
    page.press("#tab-next", "ArrowRight")
    page.fill("#compare-prompt", "to all")
    page.click("#compare-send")
    opened.expect(page.locator("#compare-columns .prose"), ["to all", "Héllo world"])  # type: ignore[arg-type]


def test_a_new_model_appears_and_an_error_is_told(opened: Open) -> None:
    page = opened.page
    made = store.make_dir(store.models_dir() / "just-tuned")
    (made / "config.json").write_text("{}")
    page.focus("#model")
    page.locator("#model option", has_text="just-tuned").wait_for(state="attached")
    page.click("#toggle-settings")
    page.fill("#s-seed", "5")
    page.select_option("#model", "endless")
    page.click("#tab-next")
    playwright.expect(page.locator("#next-panes .hint").first).to_contain_text("only chats")
    opened.errors.clear()  # the browser logs the refusal itself


def test_phone_and_dark(browser: Any, workspace: object) -> None:
    with served(Models(("echo",), opener=lambda ref: EchoChat())) as url:
        page = browser.new_page(viewport={"width": 380, "height": 740}, color_scheme="dark")
        page.goto(url)
        page.fill("#prompt", "hello phone")
        page.click("#send")
        playwright.expect(page.locator(".turn.assistant .prose")).to_have_text("hello phone")
        page.click("#open-side")
        playwright.expect(page.locator(".chat-link")).to_be_in_viewport()
        page.keyboard.press("Escape")
        width = page.locator("body").bounding_box()["width"]
        assert width <= 380
        playwright.expect(page.locator("#theme")).to_have_attribute("aria-pressed", "true")
        page.close()
