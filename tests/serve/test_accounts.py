"""Users and keys: who gets in, who does not, and whose objects are there for whom."""

from __future__ import annotations

import io
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from live import Scripted

from ladderlm import store
from ladderlm.errors import Conflict, NotFound, UsageError
from ladderlm.serve import accounts
from ladderlm.serve.accounts import Limits
from ladderlm.serve.models import Models

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from ladderlm.serve.app import build_app

CHAT = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(
        build_app(Models(("scripted",), opener=lambda ref: Scripted()), hosts=None), raise_server_exceptions=False
    ) as client:
        yield client


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


def anna(**settings: object) -> tuple[accounts.Key, str]:
    """A user's key."""
    accounts.create_user("anna", "user")
    return accounts.create_key("laptop", "anna", **settings)  # type: ignore[arg-type]


def test_without_any_key_everybody_is_the_local_admin(client: TestClient) -> None:
    me = client.get("/v1/me").json()
    assert (me["user"], me["role"], me["key"]) == ("user-local", "admin", "")
    assert client.get("/v1/me", headers=bearer("whatever clients send")).status_code == 200


def test_the_first_key_closes_the_door_at_once(client: TestClient) -> None:
    assert client.get("/v1/models").status_code == 200
    made = client.post("/v1/keys", json={"name": "mine"}).json()
    assert made["key"].startswith(made["prefix"] + "-")
    refused = client.get("/v1/models")
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert client.get("/v1/models", headers=bearer(made["key"])).status_code == 200
    assert client.get("/v1/models", headers={"x-api-key": made["key"]}).status_code == 200  # as Anthropic's client
    assert client.delete(f"/v1/keys/{made['id']}", headers=bearer(made["key"])).status_code == 200
    assert client.get("/v1/models", headers=bearer(made["key"])).status_code == 401
    assert client.get("/v1/models").status_code == 401, "a revoked key does not open the door for everybody"


def test_the_secret_is_kept_nowhere(client: TestClient, workspace: Path) -> None:
    text = client.post("/v1/keys", json={"name": "mine"}).json()["key"]
    assert client.post("/v1/chat/completions", json=CHAT, headers=bearer(text)).status_code == 200
    client.app.state.server.log.close()  # type: ignore[attr-defined]
    secret = text.rpartition("-")[2].encode()
    shown = client.get("/v1/keys", headers=bearer(text)).text
    assert secret.decode() not in shown
    for file in workspace.rglob("*"):
        assert not file.is_file() or secret not in file.read_bytes(), file


def test_a_key_of_the_environment_is_an_admin() -> None:
    app = build_app(Models(("scripted",), opener=lambda ref: Scripted()), hosts=None, key="from the environment")
    client = TestClient(app)
    me = client.get("/v1/me", headers=bearer("from the environment")).json()
    assert (me["user"], me["role"]) == ("user-local", "admin")
    assert client.get("/v1/me").status_code == 401
    _, text = anna()
    assert client.get("/v1/me", headers=bearer(text)).json()["name"] == "anna"


def test_a_guarded_server_answers_nobody_without_a_key() -> None:
    app = build_app(Models(("scripted",), opener=lambda ref: Scripted()), hosts=None, guarded=True)
    assert TestClient(app).get("/v1/models").status_code == 401
    assert TestClient(app).get("/health").status_code in (200, 503)
    assert TestClient(app).get("/").status_code != 401


BAD = {
    "nothing": {},
    "an empty key": {"authorization": "Bearer "},
    "another scheme": {"authorization": "Basic {key}"},
    "no scheme": {"authorization": "{key}"},
    "a wrong secret": {"authorization": "Bearer {prefix}-" + "A" * 43},
    "the id alone": {"authorization": "Bearer {prefix}"},
    "the id of the row": {"authorization": "Bearer {id}"},
    "cut short": {"authorization": "Bearer {cut}"},
    "one letter more": {"authorization": "Bearer {key}A"},
    "in capitals": {"authorization": "Bearer {upper}"},
    "quoted": {"authorization": 'Bearer "{key}"'},
    "a pattern": {"authorization": "Bearer %"},
    "a statement": {"authorization": "Bearer ' OR 1=1 --"},
    "in another header": {"api-key": "{key}", "x-forwarded-user": "admin", "x-user": "user-local"},
    "in a cookie": {"cookie": "key={key}; authorization=Bearer {key}"},
    "wrong as Anthropic has it": {"x-api-key": "{prefix}-" + "A" * 43},
    "bytes": {"authorization": "Bearer \xff\xfe"},
}


@pytest.mark.parametrize("how", BAD)
def test_wrong_keys_open_nothing(client: TestClient, how: str) -> None:
    key, text = accounts.create_key("k")
    parts = {"key": text, "prefix": key.prefix, "id": key.id, "cut": text[:-1], "upper": text.upper()}
    headers = {n: v.format(**parts).encode("latin-1") for n, v in BAD[how].items()}
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/v1/keys"),
                         ("GET", "/openapi.json"), ("GET", "/v1/files"), ("POST", "/v1/keys")):  # fmt: skip
        answer = client.request(method, path, headers=headers, json=CHAT if method == "POST" else None)
        assert answer.status_code == 401, f"{how}: {method} {path} gave {answer.status_code}"


def test_expired_revoked_and_disabled_keys_open_nothing(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    key, text = anna(expires=time.time() + 1000)
    assert client.get("/v1/models", headers=bearer(text)).status_code == 200
    accounts.change_user("anna", disabled=True)
    assert client.get("/v1/models", headers=bearer(text)).status_code == 401
    accounts.change_user("anna", disabled=False)
    assert client.get("/v1/models", headers=bearer(text)).status_code == 200
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 1001)
    refused = client.get("/v1/models", headers=bearer(text))
    assert (refused.status_code, "expired" in refused.json()["error"]["message"]) == (401, True)
    monkeypatch.setattr(time, "time", real)
    accounts.revoke_key(key.prefix)
    assert client.get("/v1/models", headers=bearer(text)).status_code == 401


TRICKS = (
    "//v1/models", "/V1/models", "/v1//models", "/%76%31/models", "/v1/%6dodels", "/./v1/models", "/x/../v1/models",
    "/v1/models/", "/v1/models/?x", "/v1;/models", "/v1%2fmodels", "/%2e/v1/models", "/%2e%2e/v1/models",
    "/v1/../v1/models", "/index.html/../v1/models", "/health/../v1/models", "/health%2f..%2fv1/models",
    "/v1/models%00", "/v1\\models", "/health;/v1/models", "/ready/../../v1/models", "/ v1/models", "/v1/models#/health",
    "/openapi.json", "/docs", "/redoc", "/v1", "/tokenize",
)  # fmt: skip


@pytest.mark.parametrize("path", TRICKS)
def test_no_path_goes_around_the_door(client: TestClient, path: str) -> None:
    """Raw, as no client would send it: 401, or nothing there; never an answer."""
    accounts.create_key("k")
    for method in ("GET", "POST", "HEAD"):
        answer = raw(client, method, path)
        assert answer in (401, 404, 405), f"{method} {path}: {answer}"


def raw(client: TestClient, method: str, path: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> int:
    """The status of a request whose path nobody has tidied."""
    import asyncio
    from urllib.parse import unquote

    found: list[int] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.start":
            found.append(message["status"])  # type: ignore[arg-type]

    target = path.partition("?")[0].partition("#")[0]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": unquote(target), "raw_path": target.encode(), "query_string": b"", "root_path": "", "client": None,
        "server": None, "headers": [(b"host", b"localhost"), *headers],
    }  # fmt: skip
    asyncio.run(client.app(scope, receive, send))  # type: ignore[arg-type]
    return found[0]


def test_overriding_the_method_changes_nothing(client: TestClient) -> None:
    _, text = anna()
    key, _ = accounts.create_key("other")
    for name in ("x-http-method-override", "x-method-override", "x-http-method"):
        client.get(f"/v1/keys/{key.id}", headers={**bearer(text), name: "DELETE"})
        client.post(f"/v1/keys/{key.id}?_method=DELETE", headers={**bearer(text), name: "DELETE"})
    assert next(k for k in accounts.list_keys() if k.id == key.id).revoked is None


SCOPED = {
    "chat": ("POST", "/v1/chat/completions"), "embed": ("POST", "/v1/embeddings"), "files": ("GET", "/v1/files"),
    "train": ("GET", "/v1/fine_tuning/jobs"), "admin": ("GET", "/v1/users"),
}  # fmt: skip


@pytest.mark.parametrize("scope", SCOPED)
def test_a_key_does_what_its_scopes_say(client: TestClient, scope: str) -> None:
    _, text = accounts.create_key("narrow", scopes=[scope])
    for other, (method, path) in SCOPED.items():
        answer = client.request(method, path, headers=bearer(text), json=CHAT if method == "POST" else None)
        assert (answer.status_code == 403) == (other != scope), f"{scope} key at {path}: {answer.text}"
    for path in ("/v1/audit", "/v1/users/user-local", "/v1/users/user-local/export"):
        assert (client.get(path, headers=bearer(text)).status_code == 403) == (scope != "admin")
    if scope != "admin":
        assert client.post("/v1/keys", json={"name": "more"}, headers=bearer(text)).status_code == 404


def test_a_user_is_no_admin_whatever_the_key(client: TestClient) -> None:
    with pytest.raises(Conflict, match="no scope 'admin'"):
        anna(scopes=["admin"])
    _, text = accounts.create_key("laptop", "anna")
    with store.transaction() as db:  # even if the scope came in somehow
        db.execute("""UPDATE keys SET scopes = '["admin", "chat"]'""")
    for method, path in (("GET", "/v1/users"), ("POST", "/v1/keys"), ("GET", "/v1/audit"), ("POST", "/v1/users"),
                         ("DELETE", "/v1/users/user-local")):  # fmt: skip
        answer = client.request(method, path, headers=bearer(text), json={"name": "x"} if method == "POST" else None)
        assert answer.status_code in (403, 404), path


def test_others_objects_are_not_there(client: TestClient) -> None:
    _, annas = anna()
    accounts.create_user("bert", "user")
    key, berts = accounts.create_key("k", "bert")
    upload = {"file": ("a.jsonl", io.BytesIO(b'{"custom_id": "1"}\n'))}
    file = client.post("/v1/files", files=upload, data={"purpose": "batch"}, headers=bearer(berts)).json()["id"]
    body = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}
    batch = client.post("/v1/batches", json=body, headers=bearer(berts)).json()["id"]
    with store.transaction() as db:
        db.execute("INSERT INTO jobs VALUES ('ftjob-1', ?, ?, 0, 'queued', '{}')", (key.user, key.id))
    theirs = [
        ("GET", f"/v1/files/{file}"), ("GET", f"/v1/files/{file}/content"), ("DELETE", f"/v1/files/{file}"),
        ("GET", f"/v1/batches/{batch}"), ("POST", f"/v1/batches/{batch}/cancel"), ("DELETE", f"/v1/keys/{key.id}"),
        ("GET", f"/v1/files?after={file}"), ("GET", f"/v1/batches?after={batch}"),
        ("GET", "/v1/fine_tuning/jobs/ftjob-1"), ("POST", "/v1/fine_tuning/jobs/ftjob-1/cancel"),
        ("POST", "/v1/fine_tuning/jobs/ftjob-1/pause"), ("POST", "/v1/fine_tuning/jobs/ftjob-1/resume"),
        ("GET", "/v1/fine_tuning/jobs/ftjob-1/events"), ("GET", "/v1/fine_tuning/jobs/ftjob-1/checkpoints"),
        ("GET", "/v1/fine_tuning/jobs?after=ftjob-1"), ("GET", f"/v1/requests?user={key.user}"),
        ("GET", f"/v1/usage?user={key.user}"),
    ]  # fmt: skip
    for method, path in theirs:
        answer = client.request(method, path, headers=bearer(annas))
        assert answer.status_code == 404, f"{method} {path}: {answer.text}"
        missing = client.request(method, path.replace(file, "no").replace(batch, "no"), headers=bearer(annas))
        assert answer.json()["error"]["type"] == missing.json()["error"]["type"]
    for make in (
        {"path": "/v1/batches", "json": body},
        {"path": "/v1/fine_tuning/jobs", "json": {"model": "scripted", "training_file": file}},
    ):
        assert client.post(make["path"], json=make["json"], headers=bearer(annas)).status_code == 404
    for path in ("/v1/files", "/v1/batches", "/v1/fine_tuning/jobs"):
        assert client.get(path, headers=bearer(annas)).json()["data"] == [], path
    assert [k["user"] for k in client.get("/v1/keys", headers=bearer(annas)).json()["data"]] == [
        accounts.find_user("anna").id
    ]
    assert client.get(f"/v1/files/{file}", headers=bearer(berts)).status_code == 200


def test_requests_a_minute(client: TestClient) -> None:
    _, text = anna(limits=Limits(requests_per_minute=2))
    first, second, third = (client.post("/v1/chat/completions", json=CHAT, headers=bearer(text)) for _ in range(3))
    assert (first.status_code, second.status_code, third.status_code) == (200, 200, 429)
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert [a.headers["x-ratelimit-remaining-requests"] for a in (first, second)] == ["1", "0"]
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")
    assert 1 <= int(third.headers["retry-after"]) <= 30
    assert third.json()["error"]["code"] == "rate_limit_exceeded"
    assert client.get("/v1/models", headers=bearer(text)).status_code == 200  # looking is free


def test_tokens_a_minute_and_a_day(client: TestClient) -> None:
    _, text = anna(limits=Limits(tokens_per_minute=10, tokens_per_day=20))
    first = client.post("/v1/chat/completions", json=CHAT, headers=bearer(text))  # takes 7
    second = client.post("/v1/chat/completions", json={**CHAT, "stream": True}, headers=bearer(text))
    third = client.post("/v1/chat/completions", json=CHAT, headers=bearer(text))
    assert (first.status_code, second.status_code, third.status_code) == (200, 200, 429)
    assert second.headers["x-ratelimit-remaining-tokens"] == "3"
    assert third.headers["x-ratelimit-remaining-tokens"] == "0"


def test_a_quota_of_the_day_outlives_the_server(client: TestClient) -> None:
    _, text = anna(limits=Limits(tokens_per_day=7))
    assert client.post("/v1/chat/completions", json=CHAT, headers=bearer(text)).status_code == 200
    client.app.state.server.log.close()  # type: ignore[attr-defined]
    with TestClient(build_app(Models(("scripted",), opener=lambda ref: Scripted()), hosts=None)) as again:
        refused = again.post("/v1/chat/completions", json=CHAT, headers=bearer(text))
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")
    assert int(refused.headers["retry-after"]) <= 86400


def test_admins_acts_are_audited(client: TestClient) -> None:
    user = client.post("/v1/users", json={"name": "anna"}).json()
    key = client.post("/v1/keys", json={"name": "laptop", "user": "anna", "scopes": ["chat"]}).json()
    _, mine = accounts.create_key("admin's")
    client.delete(f"/v1/keys/{key['id']}", headers=bearer(mine))
    rows = client.get("/v1/audit", headers=bearer(mine)).json()["data"]
    assert [(r["act"], r["object"]) for r in reversed(rows)][:2] == [
        ("create user", user["id"]), ("create key", key["id"])
    ]  # fmt: skip
    assert (rows[0]["act"], rows[0]["object"]) == ("revoke key", key["id"])
    assert key["key"] not in str(rows)


def test_a_users_data_is_given_out_and_erased(client: TestClient, workspace: Path) -> None:
    _, text = anna()
    _, mine = accounts.create_key("admin's")
    upload = {"file": ("a.txt", io.BytesIO(b"what anna wrote"))}
    file = client.post("/v1/files", files=upload, data={"purpose": "user_data"}, headers=bearer(text)).json()["id"]
    client.post("/v1/chat/completions", json=CHAT, headers=bearer(text))
    client.app.state.server.log.close()  # type: ignore[attr-defined]
    given = client.get("/v1/users/anna/export", headers=bearer(mine)).text
    assert all(word in given for word in ('"table": "requests"', '"table": "keys"', file, "laptop"))
    assert '"hash"' not in given
    gone = client.delete("/v1/users/anna", headers=bearer(mine)).json()["rows"]
    assert (gone["requests"], gone["files"], gone["users"]) == (3 - 1, 1, 1)
    assert client.get("/v1/me", headers=bearer(text)).status_code == 401
    with pytest.raises(NotFound):
        accounts.find_user("anna")
    for path in workspace.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"what anna wrote" not in data, path
            assert b"laptop" not in data, path
    with closing(sqlite3.connect(workspace / "ladderlm.sqlite")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_an_unknown_user_or_scope_is_named() -> None:
    with pytest.raises(NotFound, match="no user 'nobody'"):
        accounts.create_key("k", "nobody")
    with pytest.raises(UsageError, match="did you mean 'chat'"):
        accounts.create_key("k", scopes=["chta"])
    with pytest.raises(UsageError, match="expired already"):
        accounts.create_key("k", expires=time.time() - 1)
    with pytest.raises(UsageError, match="control characters"):
        accounts.create_user("a\nb", "user")
    accounts.create_user("a", "user")
    with pytest.raises(Conflict, match="of that name"):
        accounts.create_user("a", "admin")


def test_the_clients_see_what_they_expect_of_a_refusal(client: TestClient) -> None:
    accounts.create_key("k")
    for path, kind in (("/v1/chat/completions", None), ("/v1/messages", "error")):
        body = client.post(path, json=CHAT).json()
        assert body.get("type") == kind
        assert body["error"]["type"] == "authentication_error"
