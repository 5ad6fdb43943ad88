"""Crawling a server of our own on this machine: manners, limits, redirects, sitemaps, lists, downloads, going on."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ladderlm.data import robots, web
from ladderlm.data.collect import gather, run_collect
from ladderlm.data.stages import Dropped
from ladderlm.data.web import Manners
from ladderlm.errors import FormatError, NetworkError

FAST = Manners(delay=0.0, timeout=5.0, retries=1)


class Site(ThreadingHTTPServer):
    """Pages by path: (status, headers, body). `seen` are the paths asked for, with their times."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.seen: list[tuple[str, float]] = []
        self.ranges: list[str] = []
        self.busy: dict[str, int] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"

    def text(self, path: str, text: str, kind: str = "text/plain", status: int = 200, **headers: str) -> None:
        self.pages[path] = (status, {"Content-Type": kind, **headers}, text.encode())

    def asked(self) -> list[str]:
        return [path for path, _ in self.seen]


class _Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.seen.append((self.path, time.monotonic()))
        status, headers, body = self.server.pages.get(self.path, (404, {}, b""))
        if self.server.busy.get(self.path, 0):
            self.server.busy[self.path] -= 1
            status, headers, body = 503, {"Retry-After": "0"}, b""
        if (span := self.headers.get("Range")) and "ETag" in headers and self.headers["If-Range"] == headers["ETag"]:
            self.server.ranges.append(span)
            status, body = 206, body[int(span[6:-1]) :]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def site():
    server = Site()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def run(tmp_path, *sources, manners=FAST):
    items = list(gather(*sources, state=tmp_path / "state", manners=manners))
    return ({i.source: i["text"] for i in items if not isinstance(i, Dropped)},
            {i.record.source: i.rule for i in items if isinstance(i, Dropped)})  # fmt: skip


def test_robots_rules():
    text = "User-agent: *\nDisallow: /\n\nUser-agent: other\nUser-agent: LadderLM # us\nCrawl-delay: 2.5\n"
    found = robots.parse(text + "Disallow: /private/*.html$\nDisallow: /a\nAllow: /a/b\nDisallow:\n", "ladderlm")
    assert found.delay == 2.5
    verdicts = {"/private/x/y.html": False, "/private/y.html?q": True, "/a": False, "/a/c": False, "/a/b/c": True,
                "/": True, "/%61": False}  # fmt: skip
    assert {path: found.allows("http://h" + path) for path in verdicts} == verdicts
    assert not robots.parse(text, "nobody").allows("http://h/x")
    assert robots.parse("Disallow: /\n", "ladderlm").allows("http://h/x")
    assert robots.parse("User-agent: *\nDisallow: " + "/*a" * 5000 + "b", "x").allows("http://h/" + "a" * 20000)


def test_a_list_of_pages(site, tmp_path):
    site.text("/robots.txt", "User-agent: *\nDisallow: /closed\n")
    site.text("/a.txt", "Page A.\n")
    site.text("/b", "Page B.\n")
    site.text("/moved", "", status=301, Location="/b")
    site.text("/to-closed", "", status=302, Location="/closed/x")
    site.text("/round", "", status=302, Location="/round")
    site.text("/picture", "x", "image/png")
    site.text("/busy", "At last.\n")
    site.busy["/busy"] = 1
    paths = ["/a.txt", "/moved", "/to-closed", "/closed/x", "/round", "/picture", "/busy", "/none"]
    listed = tmp_path / "urls.txt"
    listed.write_text("# pages\n" + "\n".join(site.url + p for p in paths) + "\nftp://x/y\n")
    texts, drops = run(tmp_path, f"urls:{listed}")
    assert texts == {site.url + "/a.txt": "Page A.\n", site.url + "/b": "Page B.\n", site.url + "/busy": "At last.\n"}
    assert drops == {site.url + "/to-closed": "robots", site.url + "/closed/x": "robots", "ftp://x/y": "no-address",
                     site.url + "/round": "http-status", site.url + "/picture": "unknown-type",
                     site.url + "/none": "http-status"}  # fmt: skip
    assert "/closed/x" not in site.asked()
    assert site.asked().count("/robots.txt") == 1


def test_a_site_whose_robots_file_is_broken_is_left_alone(site, tmp_path):
    site.text("/robots.txt", "", status=503)
    site.text("/a", "A.\n")
    assert run(tmp_path, site.url + "/a") == ({}, {site.url + "/a": "unreachable"})
    assert "/a" not in site.asked()


def test_requests_to_a_host_keep_their_distance(site, tmp_path):
    site.text("/robots.txt", "User-agent: *\nCrawl-delay: 0.3\n")
    site.text("/a", "A.\n")
    site.text("/b", "B.\n")
    (tmp_path / "urls.txt").write_text(f"{site.url}/a\n{site.url}/b\n")
    run(tmp_path, f"urls:{tmp_path / 'urls.txt'}", manners=Manners(0.1, 5.0, 0))
    times = [at for _, at in site.seen]
    assert times[1] - times[0] >= 0.1 * 0.9
    assert times[2] - times[1] >= 0.3 * 0.9


def test_limits_of_an_answer(site, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "MAX_HTML", 1 << 20)
    bomb = gzip.compress(b"a" * (64 << 20))
    site.pages["/bomb"] = (200, {"Content-Type": "text/plain", "Content-Encoding": "gzip"}, bomb)
    site.pages["/brotli"] = (200, {"Content-Type": "text/plain", "Content-Encoding": "br"}, b"x")
    site.pages["/good"] = (200, {"Content-Type": "text/plain", "Content-Encoding": "gzip"}, gzip.compress(b"Good.\n"))
    crawler = web.Crawler(tmp_path, FAST)
    for path, rule in (("/bomb", "too-large"), ("/brotli", "unknown-type")):
        with pytest.raises(web.Refused) as caught:
            crawler.page(site.url + path, limit=1 << 20)
        assert caught.value.rule == rule
    assert crawler.page(site.url + "/good").data == b"Good.\n"
    crawler.close()


def test_sitemaps_stay_on_their_host(site, tmp_path):
    index = f"<sitemapindex><sitemap><loc>{site.url}/one.xml.gz</loc></sitemap></sitemapindex>"
    site.text("/sitemap.xml", index, "application/xml")
    one = f"<urlset><url><loc>\n{site.url}/a </loc></url><url><loc>http://elsewhere.invalid/x</loc></url></urlset>"
    site.pages["/one.xml.gz"] = (200, {"Content-Type": "application/gzip"}, gzip.compress(one.encode()))
    site.text("/a", "A.\n")
    texts, drops = run(tmp_path, site.url + "/sitemap.xml")
    assert (texts, drops) == ({site.url + "/a": "A.\n"}, {"http://elsewhere.invalid/x": "other-host"})
    site.text("/laughs.xml", '<!DOCTYPE x [<!ENTITY a "b">]><urlset>&a;</urlset>')
    with pytest.raises(FormatError, match="declares entities"):
        run(tmp_path, site.url + "/laughs.xml")


def test_a_download_goes_on(site, tmp_path):
    rows = b"".join(b'{"text": "Row %d."}\n' % i for i in range(1000))
    site.pages["/rows.jsonl"] = (200, {"Content-Type": "x/y", "ETag": '"v1"'}, rows)
    crawler = web.Crawler(tmp_path / "state", FAST)
    file = crawler.download(site.url + "/rows.jsonl")
    crawler.close()
    assert file.read_bytes() == rows
    part = file.with_name(file.name + ".part")
    part.write_bytes(rows[:1234])
    file.unlink()
    texts = list(gather(site.url + "/rows.jsonl", state=tmp_path / "state", manners=FAST))
    assert ([t["text"] for t in texts], site.ranges) == ([f"Row {i}." for i in range(1000)], ["bytes=1234-"])


def test_a_network_that_is_away(site, tmp_path):
    url = site.url
    site.shutdown()
    site.server_close()
    (tmp_path / "urls.txt").write_text("".join(f"{url}/{i}\n" for i in range(20)))
    with pytest.raises(NetworkError, match="10 pages in a row"):
        run(tmp_path, f"urls:{tmp_path / 'urls.txt'}", manners=Manners(0.0, 1.0, 0))


def test_a_killed_crawl_goes_on_where_it_was(site, tmp_path):
    for i in range(40):
        site.text(f"/{i}", f"Page {i}.\n")
    (tmp_path / "urls.txt").write_text("".join(f"{site.url}/{i}\n" for i in range(40)))
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "ladderlm.cli.main", "data", "collect", f"urls:{tmp_path / 'urls.txt'}"]
    code = "import sys; from ladderlm.cli.main import main; sys.exit(main(sys.argv[1:]))"
    child = subprocess.Popen([sys.executable, "-c", code, *command[3:], "-o", str(out), "--delay", "0.05"],
                             env=os.environ, stderr=subprocess.DEVNULL)  # fmt: skip
    until = time.monotonic() + 60
    while len(site.seen) < 15 and time.monotonic() < until:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    journal = next((tmp_path / "out.jsonl.crawl").glob("*.jsonl"))
    with journal.open("ab") as file:
        file.write(b'{"url": "cut sho')
    assert not out.exists()
    before = len(site.seen)
    report = run_collect([f"urls:{tmp_path / 'urls.txt'}"], out, manners=FAST)
    assert report.records_out == 40
    assert [json.loads(line)["fields"]["text"] for line in out.read_text().splitlines()] == [
        f"Page {i}.\n" for i in range(40)
    ]
    asked = [path for path in site.asked()[before:] if path != "/robots.txt"]
    assert len(asked) <= 40 - 12
    assert not (tmp_path / "out.jsonl.crawl").exists()


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    (tmp_path / "train.jsonl").write_text('{"text": "One."}\n')

    class Info:
        sha, card_data = "c" * 40, {"license": "cc0-1.0"}
        siblings = tuple(type("File", (), {"rfilename": n}) for n in ("README.md", "data/train.jsonl", "x.txt"))

    monkeypatch.setattr(hub.HfApi, "dataset_info", lambda *_, **__: Info)
    monkeypatch.setattr(hub, "hf_hub_download", lambda repo, file, **__: str(tmp_path / file.rpartition("/")[2]))
    items = list(gather("hub:datasets/org/name", state=tmp_path / "state"))
    assert [(i.source, i.licence, i["text"]) for i in items] == [("org/name/data/train.jsonl", "cc0-1.0", "One.")]

    def away(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(hub.HfApi, "dataset_info", away)
    with pytest.raises(NetworkError, match="cannot be reached"):
        list(gather("hub:datasets/org/name", state=tmp_path / "state"))
