"""Images fetched from strangers' addresses: what a server must not be made to reach, and how much of it."""

from __future__ import annotations

import contextlib
import http.server
import ipaddress
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pictures import GIF, data_url, png

from ladderlm.errors import UsageError
from ladderlm.serve import fetch
from ladderlm.serve.fetch import Address, Fetcher, is_public, resolve

httpx = pytest.importorskip("httpx")
PNG = png()
HERE = ipaddress.ip_address("127.0.0.2")  # what these tests take for the public internet


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "100.64.0.1", "100.100.100.200", "169.254.169.254", "169.254.0.1", "192.0.0.192", "192.0.2.1", "198.18.0.1",
        "198.51.100.1", "203.0.113.1", "192.88.99.1", "168.63.129.16", "224.0.0.1", "239.255.255.250", "240.0.0.1",
        "255.255.255.255", "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::8.8.8.8", "64:ff9b::a00:1",
        "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:a00:1::1", "2002:808:808::1",
        "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%lo", "fec0::1", "ff02::1", "ff0e::1",
    ],
)  # fmt: skip
def test_what_is_not_of_the_public_internet(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001:82a::200e"])
def test_what_is(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_this_machines_own_public_address(monkeypatch: pytest.MonkeyPatch) -> None:
    class Probe(socket.socket):
        def connect(self, address: Any) -> None: ...

        def getsockname(self) -> Any:
            return ("93.184.216.34", 0)

    monkeypatch.setattr(socket, "socket", Probe)
    assert not is_public(ipaddress.ip_address("93.184.216.34"))
    assert is_public(ipaddress.ip_address("93.184.216.35"))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "localhost", "::1", "0"]
)
def test_every_spelling_of_loopback_is_found_out(host: str) -> None:
    assert not any(map(is_public, resolve(host, 80)))
    name = f"[{host}]" if ":" in host else host
    with pytest.raises(UsageError, match=r"public internet only|not an http") as caught:
        Fetcher().image(f"http://{name}/x.png", "here", time.monotonic() + 5)
    assert caught.value.where == "here"


# --- A server that stands for the internet ------------------------------------------------------------------------

Step = Callable[[Any], None]


def told(status: int = 200, data: bytes = PNG, kind: str = "image/png", **headers: str) -> Step:
    def step(handler: Any) -> None:
        handler.send_response(status)
        own = {"content-type": kind, "content-length": str(len(data))}
        for name, value in (own | {name.replace("_", "-"): value for name, value in headers.items()}).items():
            handler.send_header(name, value)
        handler.end_headers()
        with contextlib.suppress(OSError):
            handler.wfile.write(data)

    return step


def leads(to: str, status: int = 302) -> Step:
    return told(status, b"", location=to)


def drips(seconds: float) -> Step:
    """A byte now and then, for ever."""

    def step(handler: Any) -> None:
        with contextlib.suppress(OSError):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n")
            while True:
                handler.wfile.write(b"x")
                time.sleep(seconds)

    return step


def drips_headers(handler: Any) -> None:
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while True:
            handler.wfile.write(b"x")
            time.sleep(0.05)


class Site:
    """Answers each path with a step; remembers who was asked for."""

    def __init__(self, paths: dict[str, Step], context: ssl.SSLContext | None = None) -> None:
        self.asked: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append((self.headers["host"], self.path))
                site.headers.append({k.lower(): v for k, v in self.headers.items()})
                paths[self.path](self)

            def log_message(self, *args: Any) -> None: ...

        self.http = http.server.ThreadingHTTPServer((str(HERE), 0), Handler)
        self.http.daemon_threads = True
        if context is not None:
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.port = self.http.server_port
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def fetcher(self, names: Callable[[str], list[str]], **more: Any) -> Fetcher:
        """One for which HERE is public, with a resolver of its own."""

        def look_up(host: str, port: int) -> list[Address]:
            return [ipaddress.ip_address(found) for found in names(host)]

        allowed = lambda address: address == HERE or is_public(address)  # noqa: E731
        return Fetcher(look_up, allowed, (self.port, 80), **more)


@contextlib.contextmanager
def site(context: ssl.SSLContext | None = None, **paths: Step) -> Iterator[Site]:
    found = Site({f"/{name}": step for name, step in paths.items()}, context)
    try:
        yield found
    finally:
        found.http.shutdown()
        found.http.server_close()


def get(
    where: Site, path: str, *, seconds: float = 10.0, names: Any = None, scheme: str = "http", **more: Any
) -> bytes:
    fetcher = where.fetcher(names or (lambda host: [str(HERE)]), **more)
    return fetcher.image(f"{scheme}://pictures.example:{where.port}/{path}", "here", time.monotonic() + seconds)


def refused(why: str, where: Site, path: str, **more: Any) -> str:
    with pytest.raises(UsageError, match=why) as caught:
        get(where, path, **more)
    assert caught.value.where == "here"
    assert "127.0.0" not in str(caught.value)
    return str(caught.value)


def test_an_image_is_fetched_by_its_name_from_the_address_that_was_checked() -> None:
    with site(a=told(), b=leads("/c", 301), c=leads("a"), d=told(data=GIF, kind="Image/GIF; q=1")) as found:
        assert get(found, "a") == PNG
        assert get(found, "b") == PNG
        assert get(found, "d") == GIF
        assert found.asked[0] == (f"pictures.example:{found.port}", "/a")
        sent = found.headers[0]
        assert (sent["accept-encoding"], sent["connection"]) == ("identity", "close")
        assert not {"cookie", "authorization", "referer"} & set(sent)


def test_a_name_is_resolved_once() -> None:
    """What it stands for afterwards (DNS rebinding) does not matter."""
    answers = [[str(HERE)], ["127.0.0.1"], ["127.0.0.1"]]
    with site(a=told()) as found:
        assert get(found, "a", names=lambda host: answers.pop(0)) == PNG
        assert len(answers) == 2
        refused("public internet only", found, "a", names=lambda host: answers.pop(0))
        assert len(found.asked) == 1


def test_all_addresses_of_a_name_must_be_public() -> None:
    with site(a=told()) as found:
        for bad in ("127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.2"):
            refused("public internet only", found, "a", names=lambda host, bad=bad: [str(HERE), bad])
        refused("public internet only", found, "a", names=lambda host: [])
        assert found.asked == []

    def unknown(host: str) -> list[str]:
        raise socket.gaierror("no such name")

    with site() as found:
        refused("host is not known", found, "a", names=unknown)


def test_redirects_are_checked_again_and_few() -> None:
    inner = {"inner.example": ["127.0.0.1"], "meta.example": ["169.254.169.254"]}
    with site(
        a=leads("http://inner.example/x"), b=leads("http://127.0.0.1/x"), c=leads("//meta.example/x"), d=leads("d"),
        e=leads("file:///etc/passwd"), f=leads("http://user:pass@pictures.example/x"), g=leads("http://[::1"),
        h=leads("http://pictures.example:22/x"), i=leads("http://" + "a" * 3000 + "/"), j=leads("gopher://x/"),
    ) as found:  # fmt: skip

        def names(host: str) -> list[str]:
            return inner.get(host) or ([host] if host[0].isdigit() else [str(HERE)])

        for path in "abc":
            refused("public internet only", found, path, names=names)
        refused("leads on more than 3 times", found, "d", names=names)
        assert [path for _, path in found.asked].count("/d") == 4
        for path in "efj":
            refused(r"not an http\(s\) address", found, path, names=names)
        refused("cannot be fetched", found, "g", names=names)
        refused("port 22", found, "h", names=names)
        refused("more than 2048 characters", found, "i", names=names)


@pytest.mark.parametrize(
    "url",
    ["http://", "http:///x", "http://user@8.8.8.8/", "http://user:pass@8.8.8.8/", "https://\x00/",
     "javascript:alert(1)", "http://[::1", "http://exa\nmple.org/"],
)  # fmt: skip
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match=r"not an http\(s\) address"):
        Fetcher(lambda host, port: pytest.fail("was resolved")).image(url, "here", time.monotonic() + 5)


def test_other_ports_are_left_alone() -> None:
    for port in (0, 22, 25, 6379, 8080, 65536):
        with pytest.raises(UsageError, match=f"port {port}"):
            Fetcher(lambda host, port: pytest.fail("was resolved")).image(f"http://8.8.8.8:{port}/", "", 1e12)


def test_size_type_and_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "LARGEST", 1000)
    monkeypatch.setattr("ladderlm.talk.images.LARGEST", 1000)
    with site(
        large=told(data=PNG + b"x" * 100_000_0), liar=told(data=PNG + b"x" * 5000, content_length="50000"),
        html=told(data=b"<html>", kind="text/html"), wrong=told(data=GIF), none=told(404), error=told(500),
        svg=told(data=b"<svg/>", kind="image/svg+xml"), zipped=told(content_encoding="gzip"), empty=told(data=b""),
        untyped=told(kind=""), partial=told(206), broken=told(content_length="500"),
    ) as found:  # fmt: skip
        refused("an image of more than", found, "large")
        refused("an image of more than", found, "liar")
        for path in ("html", "svg", "zipped", "untyped"):
            refused("no image at that address", found, path)
        refused("said to be image/png, it is image/gif", found, "wrong")
        refused("not PNG", found, "empty")
        refused("answers 404", found, "none")
        refused("answers 500", found, "error")
        refused("answers 206", found, "partial")
        refused("cannot be fetched", found, "broken")


@pytest.mark.parametrize("step", [drips(0.05), drips_headers, lambda handler: time.sleep(5)])
def test_slow_ones_end_with_the_time(step: Step) -> None:
    with site(a=step) as found:
        began = time.monotonic()
        assert "takes too long" in refused("takes too long", found, "a", seconds=0.6)
        assert time.monotonic() - began < 4


def test_one_that_takes_no_connections() -> None:
    with site() as found:
        pass
    refused("cannot be fetched", found, "a")


def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with site(a=told()) as found:
        assert get(found, "a") == PNG


def test_tls_is_of_the_name_not_of_the_address(tmp_path: Path) -> None:
    pair = [tmp_path / "key.pem", tmp_path / "cert.pem"]
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=pictures.example", "-addext", "subjectAltName=DNS:pictures.example",
         "-keyout", str(pair[0]), "-out", str(pair[1])],
        capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("no openssl to make a certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair[1], pair[0])
    seen: list[str] = []
    context.sni_callback = lambda connection, name, _: seen.append(name)
    trusting = ssl.create_default_context(cafile=str(pair[1]))
    with site(context, a=told(), b=leads("http://pictures.example/a")) as found:
        assert get(found, "a", scheme="https", verify=trusting) == PNG
        assert seen == ["pictures.example"]
        refused("from https to another scheme", found, "b", scheme="https", verify=trusting)
        refused("cannot be fetched", found, "a", scheme="https")  # nobody vouches for it
        fetcher = found.fetcher(lambda host: [str(HERE)], verify=trusting)
        with pytest.raises(UsageError, match="cannot be fetched"):  # another name than the certificate's
            fetcher.image(f"https://other.example:{found.port}/a", "here", time.monotonic() + 5)


# --- Through the server -------------------------------------------------------------------------------------------


def test_a_server_that_fetches_sends_the_bytes_on() -> None:
    from test_image_input import TEXT, fronted, part

    from ladderlm.serve.images import Images

    with site(a=told(), b=leads("http://127.0.0.1/x")) as found:
        names = lambda host: [host] if host[0].isdigit() else [str(HERE)]  # noqa: E731
        with fronted(images=Images(True, found.fetcher(names))) as front:
            at = f"http://pictures.example:{found.port}"
            assert front.chat(TEXT, part(f"{at}/a"), part(f"{at}/a", detail="low")).status_code == 200
            shown = front.back.bodies[0]["messages"][0]["content"]
            assert shown == [TEXT, part(data_url(PNG)), part(data_url(PNG), detail="low")]
            assert len(found.asked) == 1
            answer = front.chat(TEXT, part(f"{at}/b"))
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == "messages[0].content[1].image_url.url"
            message = {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": f"{at}/a"}}]}
            body = {"model": "lab/first", "max_tokens": 3, "messages": [message]}
            assert httpx.post(f"{front.url}/v1/messages", json=body).status_code == 200
            assert front.back.bodies[1]["messages"][0]["content"] == [part(data_url(PNG))]
