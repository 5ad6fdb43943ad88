"""The page's other views in a real browser: next token, compare, runs, models, keys."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from test_page_access import check

from ladderlm import store
from ladderlm.data.records import read_records

pytestmark = pytest.mark.slow
pytest.importorskip("uvicorn")
playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

ROWS = "\n".join(
    json.dumps(
        {"messages": [{"role": "user", "content": f"Order {i}?"}, {"role": "assistant", "content": f"Sent {i}."}]}
    )
    for i in range(30)
)


def test_next_token_of_two_prompts(opened: Any) -> None:
    page = opened.page
    opened.choose("scripted")
    opened.go("next")
    first = page.locator("#next-panes .pane").first
    expect(first.locator(".bar")).to_have_count(10)
    first.locator(".bar").first.click()
    expect(first.locator("textarea")).to_have_value("Listen to your w0")
    page.click("#next-second")
    expect(page.locator("#next-panes .bar")).to_have_count(20)
    page.select_option("#next-k", "5")
    expect(page.locator("#next-panes .bar")).to_have_count(10)
    opened.allow("400")
    opened.choose("endless")
    expect(page.locator("#next-panes .hint").first).to_contain_text("only chats")


def test_compare_and_vote(opened: Any, tmp_path: Path) -> None:
    page = opened.page
    opened.go("compare")
    page.get_by_label("Model of column 2").select_option("scripted")
    page.fill("#compare-prompt", "to all")
    page.click("#compare-send")
    expect(page.locator("#compare-columns .prose")).to_have_text(["to all", "Héllo world"])
    expect(page.locator("#compare-columns .stats").last).to_contain_text("4 tokens")
    page.get_by_role("button", name="This one is best").last.click()
    opened.shot("compare")
    page.click("#vote")
    expect(page.get_by_text("1 vote kept")).to_be_visible()
    page.fill("#compare-prompt", "once more")
    page.click("#compare-send")
    page.click("#correct")
    page.fill("#correction", "better than both")
    page.click("#vote")
    expect(page.get_by_text("2 votes kept")).to_be_visible()
    found = {}
    for kind, name in (("preference", "Preference pairs"), ("sft", "Answers to imitate")):
        with page.expect_download() as saved:
            page.get_by_role("button", name=name).click()
        saved.value.save_as(tmp_path / f"{kind}.jsonl")
        found[kind] = read_records(tmp_path / f"{kind}.jsonl")
    pairs = [(r["prompt"], r["chosen"], r["rejected"]) for r in found["preference"]]
    assert pairs == [
        ("to all", "Héllo world", "to all"),
        ("once more", "better than both", "once more"),
        ("once more", "better than both", "Héllo world"),
    ]
    assert found["preference"][0].meta["models"] == ["scripted", "echo"]
    assert [r["messages"][-1]["content"] for r in found["sft"]] == ["Héllo world", "better than both"]


def test_a_blind_vote_shows_names_only_after(open_page: Any, tmp_path: Path) -> None:
    opened = open_page(390, 844)
    opened.allow("502")
    page = opened.page
    opened.go("compare")
    columns = page.locator("#compare-columns")

    def told() -> list[str]:
        html = page.locator(".page").inner_html()
        return [name for name in ("scripted", "echo", "endless", "tokens") if name in html]

    def ask(prompt: str, draw: float) -> None:
        page.evaluate(f"Math.random = () => {draw}")  # 0: the later column comes first
        page.fill("#compare-prompt", prompt)
        page.press("#compare-prompt", "Enter")

    page.get_by_label("Model of column 2").select_option("scripted")
    page.locator("#compare-blind").focus()
    page.keyboard.press("Space")
    expect(page.locator("#compare-blind")).to_have_attribute("aria-checked", "true")
    ask("first", 0)
    expect(columns.locator(".prose")).to_have_text(["Héllo world", "first"])
    expect(columns.locator("h2")).to_have_text(["Answer 1", "Answer 2"])
    expect(page.get_by_label("More models")).to_be_disabled()
    assert told() == []
    check(page)
    assert page.evaluate("document.querySelector('.page').scrollWidth") <= 390
    opened.shot("phone-compare-blind")
    page.get_by_role("button", name="This one is best").first.focus()
    page.keyboard.press("Enter")
    assert told() == []
    page.locator("#vote").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("1 vote kept")).to_be_visible()
    expect(columns.locator("select").first).to_have_value("scripted")
    expect(columns.locator(".stats").first).to_contain_text("4 tokens")
    expect(columns).to_be_focused()
    check(page)
    ask("second", 0.99)
    expect(columns.locator(".prose")).to_have_text(["Héllo world", "second"])
    ask("third", 0)  # shuffled for every prompt
    expect(columns.locator(".prose")).to_have_text(["third", "Héllo world"])
    page.get_by_role("button", name="A tie").click()
    page.click("#vote")
    expect(page.get_by_text("2 votes kept")).to_be_visible()

    def broken(route: Any) -> None:
        wrong = {"error": {"message": "scripted broke"}}
        route.fulfill(status=502, json=wrong) if '"scripted"' in route.request.post_data else route.continue_()

    page.route("**/v1/chat/completions", broken)
    ask("fourth", 0.99)
    expect(columns.locator(".wrong")).to_have_text("This model could not answer.")
    expect(columns.locator(".prose")).to_have_text("fourth")
    assert told() == []
    page.click("#compare-blind")  # who looks at the names does not vote blind
    expect(columns.locator(".wrong")).to_have_text("scripted broke")
    page.get_by_role("button", name="This one is best").click()
    page.click("#vote")
    expect(page.get_by_text("3 votes kept")).to_be_visible()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Preference pairs").click()
    saved.value.save_as(tmp_path / "pairs.jsonl")
    pairs = read_records(tmp_path / "pairs.jsonl")
    assert [(r["chosen"], r.meta["models"], r.meta["blind"]) for r in pairs] == [
        ("Héllo world", ["scripted", "echo"], True),
        ("fourth", ["echo", "scripted"], False),
    ]


def test_compare_with_four_models_stops(opened: Any) -> None:
    page = opened.page
    opened.go("compare")
    for _ in range(2):
        page.get_by_label("More models").click()
    expect(page.get_by_label("More models")).to_be_disabled()
    page.get_by_label("Model of column 4").select_option("endless")
    page.fill("#compare-prompt", "all four")
    page.click("#compare-send")
    expect(page.locator("#compare-columns .pane").last).to_contain_text("more more")
    page.keyboard.press("Escape")
    page.locator("#compare-send", has_text="Ask all").wait_for()


def test_a_run_is_watched_as_it_goes(opened: Any) -> None:
    page = opened.page
    opened.allow("404")  # the jobs' routes
    run = store.new_run("finetune", {"settings": {"model": "base", "out": "mine", "data": "rows.jsonl", "steps": 60}})
    for step in range(1, 51):
        store.append_jsonl(
            run.metrics, {"step": step, "tokens": 10 * step, "loss": 4 / step, "lr": 0.1, "seconds": step}
        )
    store.append_jsonl(run.samples, {"step": 10, "prompt": "Once", "answer": "early words"})
    store.append_jsonl(run.samples, {"step": 50, "prompt": "Once", "answer": "late words"})
    opened.go("runs")
    page.locator("td a", has_text="mine").click()
    expect(page.locator("#facts")).to_contain_text("50 / 60")
    expect(page.locator("#facts .tag")).to_have_text("running")
    expect(page.locator(".chart")).to_have_count(2)
    expect(page.locator("#samples")).to_contain_text("late words")
    page.fill("#sample-step", "0")
    expect(page.locator("#samples")).to_contain_text("early words")
    chart = page.locator(".chart svg").first
    before = chart.locator(".line").get_attribute("d")
    page.check("#log-scale")
    assert chart.locator(".line").get_attribute("d") != before
    chart.hover()
    expect(page.locator(".chart figcaption").first).to_contain_text("step")
    store.append_jsonl(run.metrics, {"step": 51, "tokens": 510, "loss": 0.05, "lr": 0.1, "seconds": 51})
    expect(page.locator("#facts")).to_contain_text("51 / 60")
    run.report.write_text("# It helped\n\n![loss](loss.svg)\n\n| what | value |\n|---|---|\n| loss | 0.05 |\n")
    expect(page.locator("#report .prose h2")).to_have_text("It helped")
    expect(page.locator("#report td").last).to_have_text("0.05")
    expect(page.locator("#facts .tag")).to_have_text("finished")
    opened.shot("run")


def test_models_and_a_new_one(opened: Any) -> None:
    page = opened.page
    made = store.make_dir(store.models_dir() / "just-tuned")
    (made / "config.json").write_text("{}")
    opened.go("models")
    expect(page.locator("td", has_text="just-tuned")).to_be_visible()
    page.get_by_label("Chat with scripted").click()
    expect(page.locator("#model")).to_have_value("scripted")
    page.locator("#model option", has_text="just-tuned").wait_for(state="attached")


def test_keys_and_usage(opened: Any) -> None:
    """Against what the accounts' routes answer; here they are played."""
    page = opened.page
    key = {
        "object": "key", "id": "key_1", "prefix": "sk-ladder-1", "name": "laptop", "user": "u", "scopes": ["chat"],
        "limits": {}, "created_at": 1, "expires_at": None, "revoked_at": None, "last_used_at": None, "key": None,
    }  # fmt: skip
    keys: list[dict[str, Any]] = [key]

    def answer(route: Any) -> None:
        if route.request.method == "POST":
            made = {**key, **json.loads(route.request.post_data), "id": "key_2"}
            keys.append(made)
            route.fulfill(json={**made, "key": "sk-ladder-2-secret"})
        elif route.request.method == "DELETE":
            keys[0]["revoked_at"] = 2
            route.fulfill(json=keys[0])
        else:
            route.fulfill(json={"object": "list", "data": keys})

    page.route("**/v1/keys**", answer)
    page.route("**/v1/me", lambda route: route.fulfill(json={"name": "ann", "role": "admin", "scopes": ["admin"]}))
    used = {"requests": 3, "prompt_tokens": 40, "completion_tokens": 20, "cached_tokens": 0, "cost": 0.5}
    page.route(
        "**/v1/usage**", lambda route: route.fulfill(json={"data": [{"day": "2026-11-01", "model": "m", **used}]})
    )
    opened.go("usage")
    expect(page.locator("td", has_text="laptop")).to_be_visible()
    expect(page.locator(".page")).to_contain_text("60 tokens · $0.50")
    page.fill("#key-name", "ci")
    page.get_by_role("button", name="New key").click()
    expect(page.locator("#made-key")).to_have_text("sk-ladder-2-secret")
    assert keys[1]["scopes"] == ["chat"]
    page.get_by_label("Revoke laptop").click()
    expect(page.locator("tr", has_text="laptop")).to_contain_text("revoked")
    opened.shot("usage")


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_a_fine_tune_is_seen_before_it_is_begun(open_page: Any, workspace: Path, default_model: str) -> None:
    """The preview is the server's; files and jobs are played."""
    linked = store.make_dir(store.models_dir()) / "tiny.gguf"
    linked.symlink_to(default_model)
    opened = open_page()
    page = opened.page
    sent: dict[str, Any] = {}

    def job(route: Any) -> None:
        if route.request.method == "POST":
            sent.update(json.loads(route.request.post_data))
        route.fulfill(json={"object": "list", "data": [], "id": "ftjob-1"})

    page.route("**/v1/files", lambda route: route.fulfill(json={"id": "file-1"}))
    page.route("**/v1/fine_tuning/jobs**", job)
    opened.go("runs")
    page.click("#new-run")
    page.set_input_files(
        "#tune-file", {"name": "orders.jsonl", "mimeType": "application/json", "buffer": ROWS.encode()}
    )
    page.select_option("#tune-model", "tiny")
    expect(page.locator("#mask .learnt").first).to_contain_text("Sent", timeout=90_000)
    expect(page.locator("#estimate")).to_contain_text("Memory, about")
    opened.shot("fine-tune")
    page.fill("#tune-epochs", "2")
    page.click("#tune-start")
    expect(page.locator("h1")).to_have_text("Runs")
    assert sent["model"] == "tiny"
    assert sent["training_file"] == "file-1"
    assert sent["method"]["supervised"]["hyperparameters"]["n_epochs"] == 2
    assert sent["suffix"] == "orders"
