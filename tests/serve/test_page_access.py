"""The page for everybody: axe finds nothing, the keyboard is enough, a phone is wide enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ladderlm import store

pytestmark = pytest.mark.slow
pytest.importorskip("uvicorn")
playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect
AXE = Path(__file__).resolve().parents[2] / "web" / "node_modules" / "axe-core" / "axe.min.js"
PAGES = ("", "compare", "next", "runs", "runs/new", "models", "usage")


def check(page: Any) -> None:
    """No violation of any of axe's rules, once nothing fades in or out any more."""
    if not AXE.exists():
        pytest.skip("axe-core is not installed: npm ci in web/")
    page.evaluate(f"() => {{ {AXE.read_text()} }}")
    page.evaluate(
        "Promise.allSettled(document.getAnimations()"
        ".filter(a => a.effect.getTiming().iterations < Infinity).map(a => a.finished))"
    )
    found = page.evaluate(
        "axe.run(document).then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.html.slice(0, 160))]))"
    )
    assert found == []


def filled(opened: Any) -> None:
    """A chat, a run, and what each view needs to show something."""
    run = store.new_run("finetune", {"settings": {"model": "base", "out": "mine", "steps": 3}})
    for step in (1, 2, 3):
        store.append_jsonl(run.metrics, {"step": step, "loss": 4 / step, "lr": 0.1})
    store.append_jsonl(run.samples, {"step": 2, "prompt": "Once", "answer": "upon"})
    run.report.write_text("# It helped\n\n| a | b |\n|---|---|\n| 1 | 2 |\n")
    opened.choose("scripted")
    opened.ask("# One\n\n```py\nx = 1\n```\n\n|a|\n|-|\n|1|\n\n$x$")
    opened.done()


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing(open_page: Any, dark: bool) -> None:
    opened = open_page(dark=dark)
    opened.allow("404", "400")  # no accounts' routes; echo only chats
    page, mode = opened.page, "dark" if dark else "light"
    filled(opened)
    opened.choose("echo")
    opened.ask("# One\n\n```py\nx = 1  # a\n```\n\n|a|\n|-|\n|1|\n\n- [x] $x$ and [link](http://a.example/)")
    opened.done()
    page.wait_for_timeout(500)
    check(page)
    opened.shot(f"chat-{mode}")
    page.click("#toggle-probs")
    page.click("#toggle-settings")
    page.get_by_text("More ways to draw").click()
    page.get_by_text("Form of the answer").click()
    page.locator(".token").nth(1).click()
    check(page)
    opened.shot(f"inside-{mode}")
    page.keyboard.press("Escape")
    page.keyboard.press("Control+k")
    page.keyboard.type("one")
    expect(page.locator("#found li")).to_have_count(1)
    check(page)
    page.keyboard.press("Escape")
    page.locator("#chat-list .icon").first.click()
    check(page)
    page.keyboard.press("Escape")
    for name in PAGES:
        opened.go(name)
        expect(page.locator("h1, .welcome, .turn").first).to_be_visible()
        page.wait_for_timeout(500)
        check(page)
        opened.shot(f"{name.replace('/', '-') or 'new'}-{mode}")
    opened.go("runs")
    page.locator("td a").first.click()
    expect(page.locator("#report")).to_be_visible()
    check(page)
    opened.shot(f"run-{mode}")
    page.goto(f"{opened.url}/widget.html")
    page.locator("#prompt").wait_for()
    check(page)


def test_on_a_phone(open_page: Any) -> None:
    opened = open_page(390, 844, dark=True, touch=True)
    opened.allow("404")
    page = opened.page
    filled(opened)
    check(page)
    opened.shot("phone-chat")
    page.tap("#toggle-probs")
    page.locator(".token").nth(1).tap()
    expect(page.locator("#popover")).to_be_in_viewport()
    page.locator(".turn.user").tap()
    page.tap("#open-side")
    expect(page.locator(".chat-link").first).to_be_in_viewport()
    check(page)
    opened.shot("phone-side")
    page.locator(".nav a", has_text="Runs").tap()
    expect(page.locator(".chat-link").first).not_to_be_in_viewport()
    for name in PAGES:
        opened.go(name)
        page.wait_for_timeout(300)
        wide = page.evaluate("[...document.querySelectorAll('.frame, main, .page, .talk')].map(e => e.scrollWidth)")
        assert max(wide) <= 390, name
        check(page)
        opened.shot(f"phone-{name.replace('/', '-') or 'new'}")


def test_with_the_keyboard_alone(opened: Any) -> None:
    page = opened.page
    focus = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent.trim()"
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("by keys")
    page.keyboard.press("Enter")
    opened.done()
    seen = []
    page.evaluate("document.activeElement.blur()")
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(focus))
    for name in ("Skip to content", "Compare", "Models", "Probabilities", "Settings", "Copy", "Regenerate", "Continue"):
        assert any(str(found).startswith(name) for found in seen), name
    page.keyboard.press("Control+b")
    expect(page.locator("#side")).to_be_hidden()
    page.keyboard.press("Control+b")
    expect(page.locator("#side")).to_be_visible()
    page.keyboard.press("Control+Shift+o")
    expect(page.locator("#prompt")).to_be_focused()
    expect(page.locator(".turn")).to_have_count(0)
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    expect(page.locator("dialog")).to_contain_text("Keyboard")
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    page.keyboard.press("Control+k")
    page.keyboard.type("keys")
    page.locator("#found li").first.wait_for()
    page.keyboard.press("Enter")
    expect(opened.answer.locator(".prose")).to_have_text("by keys")
    page.locator("#toggle-probs").focus()
    page.keyboard.press("Space")
    expect(page.locator("#toggle-probs")).to_have_attribute("aria-pressed", "true")
    page.locator("#theme").focus()
    page.keyboard.press("Enter")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
