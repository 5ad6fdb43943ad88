"""The page in a real browser."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from live import Endless, Scripted, served

from ladderlm.serve.models import Models
from ladderlm.talk.echo import EchoChat
from ladderlm.types import Chat

ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "build" / "screenshots"  # kept, to be looked at
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
QUIET += ["--disable-sync", "--no-first-run"]


@pytest.fixture(scope="session")
def built_page() -> Path:
    """The page as its sources are now."""
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    if hook.stale(ROOT) and hook.node_on_path() is None:
        pytest.skip("the page is not built, and there is no Node.js to build it")
    hook.build(ROOT)
    return hook.page_of(ROOT)


@pytest.fixture(scope="module")  # no longer: while it is open this thread has a running event loop
def browser(built_page: Path) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


class Open:
    """A fresh browser profile on the page. `allow` tells of refusals that the test provokes."""

    def __init__(self, page: Any, url: str, chats: dict[str, Chat]) -> None:
        self.page, self.url, self.chats = page, url, chats
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.allowed: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        page.on("request", lambda request: self.requests.append(request.url))

    def allow(self, *parts: str) -> None:
        self.allowed += parts

    def wrongs(self) -> list[str]:
        return [e for e in self.errors if not any(part in e for part in self.allowed)]

    def go(self, where: str = "") -> None:
        self.page.goto(f"{self.url}/#/{where}")

    def choose(self, model: str) -> None:
        self.page.locator(f"#model option[value='{model}']").wait_for(state="attached")
        self.page.select_option("#model", model)

    def ask(self, text: str) -> None:
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")

    def done(self) -> None:
        self.page.locator("#send[aria-label=Send]").wait_for()
        self.page.locator(".turn.assistant").last.locator(".turn-tools").wait_for()

    @property
    def answer(self) -> Any:
        return self.page.locator(".turn.assistant").last

    def shot(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png")


Opener = Callable[..., Open]


@pytest.fixture
def open_page(browser: Any, workspace: Path) -> Iterator[Opener]:
    """Opens the page of a server with scripted chats: open_page(width=, height=, dark=, **server settings)."""
    ends: list[Callable[[], None]] = []
    opened: list[Open] = []

    def make(
        width: int = 1200,
        height: int = 800,
        *,
        dark: bool = False,
        touch: bool = False,
        worker: bool = False,
        more: Mapping[str, Chat] | None = None,
        **settings: Any,
    ) -> Open:
        chats: dict[str, Chat] = {"echo": EchoChat(), "scripted": Scripted(), "endless": Endless(), **(more or {})}
        server = served(Models(tuple(chats), opener=lambda ref: chats.get(ref) or EchoChat()), **settings)
        url = server.__enter__()
        ends.append(lambda: server.__exit__(None, None, None))
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", has_touch=touch,
            is_mobile=touch, accept_downloads=True,
            service_workers="allow" if worker else "block",  # what a worker lets pass cannot be played by a test
        )  # fmt: skip
        context.set_default_timeout(15_000)
        ends.append(context.close)
        found = Open(context.new_page(), url, chats)
        found.page.goto(url)
        opened.append(found)
        return found

    yield make
    try:
        for each in opened:
            assert each.wrongs() == []
            assert all(request.startswith((each.url, "blob:", "data:image/")) for request in each.requests)
    finally:
        for end in reversed(ends):
            end()


@pytest.fixture
def opened(open_page: Opener) -> Open:
    found = open_page()
    found.page.locator("#model option").first.wait_for(state="attached")
    return found
