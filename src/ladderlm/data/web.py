"""Pages of the web, fetched politely: robots.txt, a pause between requests to a host, limits of time and size, resume.

What was fetched is written down as it comes, in a folder beside the output: a crawl that was killed goes on after the
last page, a download after the last byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import time
import urllib.parse
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from ladderlm import __version__, events
from ladderlm.data import archives, robots, xml
from ladderlm.data.archives import Blob, Refused
from ladderlm.data.collect_formats import How, Item, refused, web_page
from ladderlm.data.extract import MAX_HTML
from ladderlm.data.stages import Dropped
from ladderlm.errors import FormatError, NetworkError, NotFound
from ladderlm.store import make_dir, storage_errors
from ladderlm.types import Record

if TYPE_CHECKING:
    import httpx

AGENT = "ladderlm"
_HOPS = 5
_LEVELS = 3  # of sitemaps that list sitemaps
_GIVE_UP = 10  # pages in a row that cannot be reached: the network is away
_AGAIN = (429, 500, 502, 503, 504)
_LONGEST_PAUSE = 60.0


@dataclass(frozen=True, slots=True)
class Manners:
    """Seconds between requests to one host (its own Crawl-delay when longer), seconds to wait for an answer."""

    delay: float = 1.0
    timeout: float = 30.0
    retries: int = 2


DEFAULT = Manners()


class Answer(NamedTuple):
    url: str
    kind: str  # media type
    data: bytes


class Unreachable(Refused):
    """No answer now; it may come another time."""

    def __init__(self, why: str) -> None:
        super().__init__("unreachable", why)


class Crawler:
    """Fetches addresses one after the other; `folder` keeps what was fetched until the whole work is done."""

    def __init__(self, folder: Path, manners: Manners = DEFAULT) -> None:
        import httpx

        self.folder, self.manners = folder, manners
        headers = {"User-Agent": f"{AGENT}/{__version__}", "Accept-Encoding": "gzip"}
        limit = httpx.Timeout(manners.timeout)
        self._client = httpx.Client(headers=headers, timeout=limit, follow_redirects=False)
        self._robots: dict[str, robots.Robots] = {}
        self._last: dict[str, float] = {}

    def close(self) -> None:
        self._client.close()

    # --- Pages ----------------------------------------------------------------------------------------------------

    def page(self, url: str, *, host: str = "", limit: int = MAX_HTML, obey: bool = True) -> Answer:
        """What `url` answers, redirects followed (within `host` if given). Raises Refused, Unreachable."""
        for _ in range(_HOPS):
            parts = urllib.parse.urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise Refused("no-address", url[:200])
            if host and parts.hostname != host:
                raise Refused("other-host", f"{parts.hostname} is not {host}")
            rules = self._rules(url) if obey else robots.ALL
            if not rules.allows(url):
                raise Refused("robots", "robots.txt keeps crawlers from this page")
            status, headers, data = self._get(url, limit, rules.delay)
            if status in (301, 302, 303, 307, 308) and "location" in headers:
                url = urllib.parse.urljoin(url, headers["location"])
                continue
            if status != 200:
                raise Refused("http-status", str(status))
            return Answer(url, headers.get("content-type", "").partition(";")[0].strip().lower(), data)
        raise Refused("http-status", "too many redirects")

    def _rules(self, url: str) -> robots.Robots:
        parts = urllib.parse.urlsplit(url)
        root = f"{parts.scheme}://{parts.netloc}"
        if root not in self._robots:
            try:
                text = self.page(f"{root}/robots.txt", limit=robots.MAX_BYTES, obey=False).data.decode(
                    "utf-8", "replace"
                )
                self._robots[root] = robots.parse(text, AGENT)
            except Unreachable:  # RFC 9309, 2.3.1.4: nothing may be fetched then
                raise
            except Refused as error:
                gone = error.rule == "http-status" and not str(error).startswith("5")
                self._robots[root] = robots.ALL if gone or error.rule == "too-large" else robots.NOTHING
        return self._robots[root]

    def _get(self, url: str, limit: int, delay: float) -> tuple[int, Any, bytes]:
        """(status, headers, body); asked again after a pause when the server is busy or away."""
        import httpx

        for attempt in range(self.manners.retries + 1):
            self._pause(url, delay)
            wait = min(2.0**attempt * max(self.manners.delay, 0.1), _LONGEST_PAUSE)
            try:
                with self._client.stream("GET", url) as response:
                    status, headers = response.status_code, response.headers
                    data = self._body(response, limit)
                if status not in _AGAIN:
                    return status, headers, data
                said = headers.get("retry-after", "")
                wait, why = min(float(said), _LONGEST_PAUSE) if said.isdigit() else wait, f"status {status}"
            except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
                if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
                    raise Refused("no-address", str(error)[:200]) from None
                why = str(error)[:200] or type(error).__name__
            if attempt < self.manners.retries:
                time.sleep(wait)
        raise Unreachable(why)

    def _body(self, response: httpx.Response, limit: int) -> bytes:
        """The answer's bytes, at most `limit`, within a deadline, unpacked without a bomb's chance."""
        coding = response.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("identity", "gzip", ""):
            raise Refused("unknown-type", f"the content encoding {coding[:40]!r} was not asked for")
        inflate = zlib.decompressobj(31) if coding == "gzip" else None
        deadline, parts, length = time.monotonic() + 4 * self.manners.timeout, list[bytes](), 0
        for raw in response.iter_raw():
            try:
                part = inflate.decompress(raw, limit + 1 - length) if inflate else raw
            except zlib.error as error:
                raise Refused("broken-archive", str(error)) from None
            parts.append(part)
            if (length := length + len(part)) > limit:
                raise Refused("too-large", f"more than {limit >> 10:,} KB")
            if time.monotonic() > deadline:
                raise Unreachable(f"no whole answer in {4 * self.manners.timeout:g} s")
        return b"".join(parts)

    def _pause(self, url: str, delay: float) -> None:
        host = urllib.parse.urlsplit(url).netloc
        due = self._last.get(host, -_LONGEST_PAUSE) + min(max(self.manners.delay, delay), _LONGEST_PAUSE)
        if (wait := due - time.monotonic()) > 0:
            time.sleep(wait)
        self._last[host] = time.monotonic()

    # --- Sitemaps -------------------------------------------------------------------------------------------------

    def sitemap(self, url: str, level: int = 0) -> Iterator[str]:
        """The addresses that a sitemap lists, those of the sitemaps it lists too (https://www.sitemaps.org)."""
        answer = self.page(url, limit=50 << 20, obey=False)
        blob = Blob(urllib.parse.urlsplit(url).path, io.BytesIO(answer.data))
        if answer.data[:2] == b"\x1f\x8b":
            blob = archives.unpack(Blob("sitemap.xml.gz", io.BytesIO(answer.data)))
        inside, index, address = False, False, ""
        for number, (kind, name, _) in enumerate(xml.events(blob.file)):
            if number == 0 and name not in ("urlset", "sitemapindex"):
                raise Refused("unknown-type", f"not a sitemap but {name[:40]!r}")
            if kind == "start":
                index = index or name == "sitemapindex"
                inside, address = name == "loc", ""
            elif kind == "text" and inside:
                address = (address + name)[:5000]
            elif kind == "end" and inside:
                inside = False
                if not index:
                    yield address.strip()
                elif level < _LEVELS:
                    yield from self.sitemap(address.strip(), level + 1)

    # --- Files ----------------------------------------------------------------------------------------------------

    def download(self, url: str) -> Path:
        """The file at `url` in the folder; what was there of it already is not fetched again."""
        import httpx

        make_dir(self.folder)
        file = self.folder / (_digest(url) + "-" + PurePosixPath(urllib.parse.urlsplit(url).path).name[-80:])
        part, tag = file.with_name(file.name + ".part"), file.with_name(file.name + ".tag")
        if file.exists():
            return file
        for attempt in range(self.manners.retries + 1):
            try:
                self._download(url, part, tag)
                part.replace(file)
                return file
            except httpx.HTTPError as error:
                why = str(error)[:200] or type(error).__name__
                if attempt < self.manners.retries:
                    time.sleep(min(2.0**attempt, _LONGEST_PAUSE))
        raise NetworkError(f"cannot be fetched: {why}", where=url, cure="run the same command again: it goes on")

    def _download(self, url: str, part: Path, tag: Path) -> None:
        have = part.stat().st_size if part.exists() and tag.exists() else 0
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": tag.read_text("utf-8")}
        with self._client.stream("GET", url, headers=headers, follow_redirects=True) as response:
            if response.status_code in (404, 410):
                raise NotFound("no such file on the server", where=url)
            if response.status_code not in (200, 206):
                raise NetworkError(f"the server answers {response.status_code}", where=url)
            again = response.status_code == 206
            etag = response.headers.get("etag", "")
            if not again:
                tag.unlink(missing_ok=True)
                if etag and not etag.startswith("W/"):
                    tag.write_text(etag, "utf-8")
            length = int(response.headers.get("content-length", 0) or 0)
            done = have if again else 0
            name, total = PurePosixPath(url).name, (done + length) / 1e6
            with storage_errors(part), part.open("ab" if again else "wb") as file:
                for data in response.iter_raw(1 << 18):
                    file.write(data)
                    done += len(data)
                    events.emit(f"fetch {name}", done=done / 1e6, total=total or None, unit="MB")
            events.emit(f"fetch {name}", done=done / 1e6, total=done / 1e6, unit="MB", finished=True)


# --- Crawls -------------------------------------------------------------------------------------------------------


def crawl(name: str, addresses: Iterable[str], crawler: Crawler, how: How, *, host: str = "") -> Iterator[Item]:
    """The texts of the pages, in order. Pages that the journal of an earlier, broken run holds are not fetched again.

    Raises NetworkError after ten pages in a row that cannot be reached; the journal stays.
    """
    journal = Journal(crawler.folder / f"{_digest(name, how.licence)}.jsonl")
    yield from journal.replay()
    if journal.done:
        events.emit("crawl", f"goes on after {len(journal.done):,} pages")
    away = count = 0
    with contextlib.closing(journal):
        for url in addresses:
            if url in journal:
                continue
            items: list[Item] = []
            try:
                answer = crawler.page(url, host=host)
                items = list(web_page(answer.url, answer.kind, answer.data, how))
                away = 0
            except Unreachable as error:
                if (away := away + 1) >= _GIVE_UP:
                    cure = "run the same command again: it goes on where it was"
                    raise NetworkError(
                        f"{away} pages in a row cannot be reached: {error}", where=url, cure=cure
                    ) from None
                yield refused(url, error)
                continue
            except Refused as error:
                items = [refused(url, error)]
            journal.add(url, items)
            yield from items
            count += 1
            events.emit("crawl", done=count, unit="pages")


class Journal:
    """The pages already fetched, one JSON line each; a line that a kill cut short does not count."""

    def __init__(self, path: Path) -> None:
        self._path, self.done = path, set[bytes]()
        self._file: IO[bytes] | None = None

    def __contains__(self, url: str) -> bool:
        return _key(url) in self.done

    def replay(self) -> Iterator[Item]:
        """What the earlier run found, in its order; afterwards the journal is open for more."""
        make_dir(self._path.parent)
        whole = 0
        if self._path.exists():
            with self._path.open("rb") as file:
                for line in file:
                    try:
                        row = json.loads(line) if line.endswith(b"\n") else None
                    except ValueError:
                        row = None
                    if row is None:
                        break
                    whole += len(line)
                    self.done.add(_key(row["url"]))
                    for plain, rule in row["items"]:
                        record = Record.from_dict(plain)
                        yield Dropped(record, rule) if rule else record
        with storage_errors(self._path):
            journal = self._path.open("ab")
            journal.truncate(whole)
            self._file = journal

    def add(self, url: str, items: list[Item]) -> None:
        plain = [[i.record.to_dict(), i.rule] if isinstance(i, Dropped) else [_row(i), ""] for i in items]
        line = json.dumps({"url": url, "items": plain}, ensure_ascii=False).encode("utf-8", "surrogatepass")
        self.done.add(_key(url))
        if self._file is not None:
            with storage_errors(self._path):
                self._file.write(line + b"\n")
                self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _row(record: Record) -> dict[str, Any]:
    return {"id": record.id, "source": record.source, "licence": record.licence, "kind": record.kind,
            "fields": dict(record.fields), "meta": dict(record.meta)}  # fmt: skip


def _key(url: str) -> bytes:
    return hashlib.blake2b(url.encode("utf-8", "replace"), digest_size=12).digest()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:16]


def url_list(path: Path) -> Iterator[str]:
    """The addresses in a file, one a line; empty lines and those that begin with # are not taken."""
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if (address := line.strip()) and not address.startswith("#"):
                    yield address
    except FileNotFoundError:
        raise NotFound("no such file of addresses", where=str(path)) from None
    except UnicodeDecodeError:
        raise FormatError("not UTF-8 text", where=str(path)) from None
