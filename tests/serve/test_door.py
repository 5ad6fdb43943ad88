"""Who may call: names, origins, keys; and the headers that every answer carries."""

from __future__ import annotations

from pathlib import Path

import pytest

from ladderlm.serve.door import is_loopback
from ladderlm.serve.models import Models
from ladderlm.talk.echo import EchoChat

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from ladderlm.serve.app import build_app


def client(host: str = "127.0.0.1:8080", **settings: object) -> TestClient:
    app = build_app(Models(("echo",), opener=lambda ref: EchoChat()), **settings)  # type: ignore[arg-type]
    return TestClient(app, base_url=f"http://{host}")


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "[::1]:9", "LOCALHOST:1"])
def test_its_own_names_are_answered(host: str) -> None:
    assert client().get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8080", "", "[", "localhost.evil"]
)
def test_a_rebound_name_is_refused(host: str) -> None:
    answer = client().get("/", headers={"host": host})
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "permission_error")


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999"])
def test_other_sites_are_refused(origin: str) -> None:
    body = {"messages": [{"role": "user", "content": "x"}]}
    assert client().post("/v1/chat/completions", json=body, headers={"origin": origin}).status_code == 403
    answer = client().post("/v1/chat/completions", json=body, headers={"origin": "http://127.0.0.1:8080"})
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


def test_a_key_guards_the_api_and_not_the_page() -> None:
    keyed = client("my.host", hosts=None, key="sécret")
    for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic sécret".encode()}):
        answer = keyed.get("/v1/models", headers=header)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert keyed.get("/v1/models", headers={"authorization": "Bearer sécret".encode()}).status_code == 200
    assert (
        keyed.get("/").status_code == keyed.get("/health").status_code == 200 or keyed.get("/health").status_code == 503
    )


@pytest.mark.parametrize("path", ["/", "/app.js", "/v1/models", "/nothing", "/health"])
def test_every_answer_carries_the_headers(path: str) -> None:
    headers = client().get(path).headers
    policy = headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_nothing_outside_the_page_is_given_away() -> None:
    for path in ("/../app.py", "/%2e%2e/app.py", "/..%2fapp.py"):
        assert client().get(path).status_code == 404


def test_the_page_keeps_its_own_policy() -> None:
    """No inline script or style, no other site, and no markup made from text."""
    web = Path(__file__).resolve().parents[2] / "web"
    for name in ("index.html", "widget.html"):
        html = (web / name).read_text()
        assert " style=" not in html
        assert "<style" not in html
        assert "<script>" not in html
        assert "http" not in html
    for file in (web / "src").rglob("*.*"):
        text = file.read_text()
        for forbidden in ("{@html", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", ' style="'):
            assert forbidden not in text, file
        assert "http://" not in text, file
        assert "https://" not in text, file


def test_loopback_addresses() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.1.2", "::", "example.org")))
