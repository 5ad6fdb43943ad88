"""The page's history over HTTP: trees, pages, search, whose it is, and what votes become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from ladderlm import store
from ladderlm.serve import accounts, chats, personal
from ladderlm.serve.app import build_app, origins
from ladderlm.serve.models import Models
from ladderlm.talk.echo import EchoChat


@pytest.fixture
def client(workspace: Path) -> TestClient:
    return TestClient(build_app(Models(("echo",), opener=lambda ref: EchoChat())), base_url="http://localhost")


def say(client: TestClient, chat: str, text: str, parent: str | None, role: str = "user", **more: Any) -> str:
    body = {"role": role, "content": text, "parent": parent, **more}
    answer = client.post(f"/v1/chats/{chat}/messages", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def shown(client: TestClient, chat: str, **query: Any) -> list[str]:
    return [m["content"] for m in client.get(f"/v1/chats/{chat}/messages", params=query).json()["data"]]


def test_a_chat_is_a_tree_with_one_branch_shown(client: TestClient) -> None:
    chat = client.post("/v1/chats", json={"title": "one", "system": "be brief"}).json()["id"]
    question = say(client, chat, "question", None)
    first = say(client, chat, "answer", question, "assistant", model="m", timings={"tokens": 3}, tokens=[["a", -1, []]])
    second = say(client, chat, "other answer", question, "assistant")
    say(client, chat, "and then", second)
    assert shown(client, chat) == ["question", "other answer", "and then"]
    client.patch(f"/v1/chats/{chat}", json={"leaf": first})
    (_, answer) = client.get(f"/v1/chats/{chat}/messages").json()["data"]
    assert answer["siblings"] == [first, second]
    assert answer["has_tokens"]
    assert answer["timings"] == {"tokens": 3}
    assert client.get(f"/v1/chats/{chat}/messages/{first}/tokens").json()["tokens"] == [["a", -1, []]]
    client.patch(f"/v1/chats/{chat}", json={"leaf": second})
    assert shown(client, chat) == ["question", "other answer", "and then"]
    say(client, chat, "answer, longer", question, "assistant", id=first)  # an answer in progress is replaced
    assert client.get("/v1/chats/search", params={"q": "longer"}).json()["data"][0]["message"] == first
    assert client.get("/v1/chats/search", params={"q": "nowhere"}).json()["data"] == []


def test_long_chats_and_lists_come_page_by_page(client: TestClient) -> None:
    chat, parent = client.post("/v1/chats", json={}).json()["id"], None
    for n in range(25):
        parent = say(client, chat, str(n), parent)
    seen: list[str] = []
    before: str | None = None
    while True:
        query = {"limit": 10, **({"before": before} if before else {})}
        page = client.get(f"/v1/chats/{chat}/messages", params=query).json()
        seen = [m["content"] for m in page["data"]] + seen
        before = page["data"][0]["id"]
        if not page["has_more"]:
            break
    assert seen == [str(n) for n in range(25)]
    for n in range(5):
        client.post("/v1/chats", json={"title": f"t{n}"})
    first = client.get("/v1/chats", params={"limit": 3}).json()
    rest = client.get("/v1/chats", params={"before": first["data"][-1]["updated"]}).json()
    assert first["has_more"]
    assert not rest["has_more"]
    assert [c["title"] for c in first["data"] + rest["data"]] == ["t4", "t3", "t2", "t1", "t0", ""]


def test_nobody_reaches_anothers_chats(workspace: Path) -> None:
    app = build_app(Models(("echo",), opener=lambda ref: EchoChat()))

    def of(user: str) -> TestClient:
        accounts.create_user(user, "user")
        _, secret = accounts.create_key("page", user)
        return TestClient(app, base_url="http://localhost", headers={"authorization": f"Bearer {secret}"})

    ann, bob = of("ann"), of("bob")
    chat = ann.post("/v1/chats", json={"title": "secret"}).json()["id"]
    message = say(ann, chat, "my secret", None, tokens=[["a", -1, []]])
    ann.post("/v1/presets", json={"name": "mine"})
    ann.post(
        "/v1/votes", json={"messages": [{"role": "user", "content": "q"}], "answers": [{"model": "m", "content": "a"}]}
    )
    for method, path, body in (
        ("GET", f"/v1/chats/{chat}", None),
        ("PATCH", f"/v1/chats/{chat}", {"title": "taken"}),
        ("DELETE", f"/v1/chats/{chat}", None),
        ("GET", f"/v1/chats/{chat}/messages", None),
        ("POST", f"/v1/chats/{chat}/messages", {"role": "user", "content": "x"}),
        ("GET", f"/v1/chats/{chat}/messages/{message}/tokens", None),
        ("GET", f"/v1/chats/export?chat={chat}", None),
        ("DELETE", "/v1/presets/mine", None),
    ):
        assert bob.request(method, path, json=body).status_code == 404, path
    mine = bob.post("/v1/chats", json={}).json()["id"]
    stolen = bob.post(f"/v1/chats/{mine}/messages", json={"id": message, "role": "user", "content": "x"})
    assert stolen.status_code == 400
    assert (
        bob.post(f"/v1/chats/{mine}/messages", json={"parent": message, "role": "user", "content": "x"}).status_code
        == 404
    )
    assert bob.patch(f"/v1/chats/{mine}", json={"leaf": message}).status_code == 404
    for path in ("/v1/chats/search?q=secret", "/v1/presets", "/v1/votes"):
        assert bob.get(path).json()["data"] == []
    assert bob.get("/v1/votes/records").text == ""
    assert "secret" not in bob.get("/v1/chats/export").text
    id = accounts.find_user("ann").id
    assert personal.erase("bob")["chats"] == 1
    assert shown(ann, chat) == ["my secret"]
    assert chats.search(id, "secret") != []
    assert personal.erase("ann")["messages"] == 1
    assert chats.search(id, "secret") == []


def test_export_goes_in_again_as_it_was(client: TestClient) -> None:
    chat = client.post("/v1/chats", json={"title": "kept", "folder": "f", "system": "s"}).json()["id"]
    question = say(client, chat, "q", None, attachments=[{"name": "a.txt", "text": "x"}])
    say(client, chat, "one", question, "assistant", sampling={"seed": 1}, tokens=[["one", -0.5, []]])
    say(client, chat, "two", question, "assistant")
    exported = client.get("/v1/chats/export").json()
    client.delete(f"/v1/chats/{chat}")
    assert client.post("/v1/chats/import", json=exported).json()["chats"] == 1
    again = client.get("/v1/chats/export").json()

    def bare(file: Any) -> Any:
        kept = ("role", "content", "sampling", "tokens", "attachments", "created")
        messages = [{k: m.get(k) for k in kept} for m in file["chats"][0]["messages"]]
        return {k: file["chats"][0][k] for k in ("title", "folder", "system", "created", "updated")}, messages

    assert bare(again) == bare(exported)
    orphan = {"format": 1, "chats": [{"messages": [{"id": "a", "parent": "b", "role": "user", "content": "x"}]}]}
    assert client.post("/v1/chats/import", json=orphan).status_code == 400
    assert len(client.get("/v1/chats").json()["data"]) == 1


def test_words_of_the_search_are_only_words(client: TestClient) -> None:
    chat = client.post("/v1/chats", json={"title": "100 % sure"}).json()["id"]
    say(client, chat, 'she said "hello" AND left OR stayed', None)
    for query in ('"', "AND", "hello OR", "he*", "(", "NEAR(a b)", "content:x", "%", "a" * 400):
        assert client.get("/v1/chats/search", params={"q": query}).status_code == 200
    assert len(client.get("/v1/chats/search", params={"q": "HELLO lef"}).json()["data"]) == 1
    assert len(client.get("/v1/chats/search", params={"q": "sure"}).json()["data"]) == 1


def test_votes_become_records(client: TestClient) -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    answers = [{"model": "a", "content": "x"}, {"model": "b", "content": "y"}, {"model": "c", "content": "x"}]
    for extra in ({"choice": 0, "blind": True}, {"correction": "z"}, {"tie": True, "blind": True}, {}):
        assert client.post("/v1/votes", json={"messages": turns, "answers": answers, **extra}).status_code == 200
    assert client.post("/v1/votes", json={"messages": turns, "answers": answers, "choice": 3}).status_code == 400
    both = {"messages": turns, "answers": answers, "choice": 0, "tie": True}
    assert client.post("/v1/votes", json=both).status_code == 400
    kept = client.get("/v1/votes").json()["data"]
    assert [(v.get("tie"), v.get("blind")) for v in kept] == [(None, True), (None, None), (True, True), (None, None)]
    pairs = [json.loads(line) for line in client.get("/v1/votes/records").text.splitlines()]
    assert [(p["fields"]["chosen"], p["fields"]["rejected"]) for p in pairs] == [
        ("x", "y"),
        ("z", "x"),
        ("z", "y"),
        ("z", "x"),
    ]
    assert pairs[0]["kind"] == "preference"
    assert [p["meta"]["blind"] for p in pairs] == [True, False, False, False]
    assert pairs[0]["fields"]["messages"] == turns
    sft = client.get("/v1/votes/records", params={"kind": "sft"}).text.splitlines()
    assert [json.loads(line)["fields"]["messages"][-1]["content"] for line in sft] == ["x", "z"]


def test_runs_are_read_and_nothing_else(client: TestClient, workspace: Path) -> None:
    run = store.new_run("pretrain", {"settings": {"out": "/far/away/mine", "steps": 9}})
    for step in range(5000):
        store.append_jsonl(run.metrics, {"step": step, "loss": 1.0})
    (listed,) = client.get("/v1/runs").json()["data"]
    assert (listed["id"], listed["out"], listed["state"], listed["last"]["step"]) == (run.id, "mine", "running", 4999)
    curve = client.get(f"/v1/runs/{run.id}/metrics").json()
    assert len(curve["data"]) <= 2001
    assert curve["next"] == 5000
    assert client.get(f"/v1/runs/{run.id}/metrics", params={"after": 5000}).json()["data"] == []
    secret = store.make_dir(workspace / "secret")
    (secret / "config.json").write_text("{}")
    for name in ("..", "../secret", "%2e%2e%2fsecret", str(secret), "nothing"):
        assert client.get(f"/v1/runs/{name}").status_code == 404
    names = {entry["name"]: entry for entry in client.get("/v1/catalogue").json()["data"]}
    assert names["echo"]["state"] == "idle"
    assert all(entry.get("path") is None for entry in names.values())


def test_only_origins_may_embed() -> None:
    assert origins(["https://a.example", "http://b.example:8080"]) == ("https://a.example", "http://b.example:8080")
    for wrong in ("*", "https://a.example/x", "a.example", "https://a.example; script-src *", "https://a.example\n"):
        with pytest.raises(ValueError, match="not an origin"):
            origins([wrong])


def test_a_fine_tuning_is_looked_at_before_it_is_begun(default_model: str) -> None:
    pytest.importorskip("torch")
    app = build_app(Models((default_model,), opener=lambda ref: EchoChat()))
    client, name = TestClient(app, base_url="http://localhost"), Path(default_model).stem
    rows = [
        {"messages": [{"role": "user", "content": f"Q {i}"}, {"role": "assistant", "content": f"A {i}"}]}
        for i in range(9)
    ]
    text = "\n".join([*map(json.dumps, rows), "{broken"])
    body = {"model": name, "name": "rows.jsonl", "text": text, "bytes": 2 * len(text), "records": 2}
    found = client.post("/v1/runs/preview", json=body).json()
    assert len(found["records"]) == 2
    learnt = "".join(piece["text"] for piece in found["records"][0] if piece["learnt"])
    given = "".join(piece["text"] for piece in found["records"][0] if not piece["learnt"])
    assert learnt.startswith("A ")
    assert "Q " in given
    assert [row["line"] for row in found["bad"]] == [10]
    assert found["share"] == 0.5
    estimate = found["estimate"]
    assert estimate["tokens"] == pytest.approx(2 * found["lengths"]["tokens"])
    assert 5e8 < estimate["memory_bytes"] < 4e9
    for wrong in (
        {"name": "rows.exe"},
        {"method": "magic"},
        {"text": ""},
        {"model": "nowhere"},
        {"model": default_model},
    ):
        assert client.post("/v1/runs/preview", json={**body, **wrong}).status_code in (400, 404)
