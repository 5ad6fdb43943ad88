"""The tasks from docstrings: balanced, disjoint, the same on every machine with the same Python."""

from collections import Counter

import pytest

from ladderlm.data.docstrings import documented
from ladderlm.data.records import record_id
from ladderlm.data.shapes import conversation
from ladderlm.data.tasks import (
    BUILTIN,
    Answers,
    ClassTask,
    DocsMatch,
    docs_preferences,
    docs_questions,
    forgetting_probe,
    held_out_packages,
)  # fmt: skip
from ladderlm.errors import FormatError, UsageError
from ladderlm.types import Task


@pytest.fixture(scope="module")
def match():
    return DocsMatch()


def test_docs_match_is_balanced_and_disjoint(match):
    assert isinstance(match, Task)
    train, test = match.records("train"), match.records("test")
    assert len(train) >= 2000
    assert len(test) >= 400
    for rows in (train, test):
        counts = Counter(r["label"] for r in rows)
        assert counts["yes"] == counts["no"]
    parts = [tuple(r["text"].split("\n")) for r in (*train, *test)]
    assert all(len(p) == 2 for p in parts)
    assert len({signature for signature, _ in parts}) == len(parts)
    assert len({sentence for _, sentence in parts}) == len(parts)
    assert not {r.source.split(".")[0] for r in train} & {r.source.split(".")[0] for r in test}
    assert DocsMatch().records("test") == test
    with pytest.raises(UsageError, match="known: train, test"):
        match.records("dev")


def test_docs_match_labels_are_true(match):
    truth = {d.signature: d.sentence for d in documented()}
    for r in (*match.records("train"), *match.records("test")):
        signature, sentence = r["text"].split("\n")
        assert (truth[signature] == sentence) == (r["label"] == "yes")


def test_docs_match_prompts_and_scores(match):
    record = match.records("test")[0]
    prompt = match.prompt(record)
    assert [m.role for m in prompt.messages] == ["system", "user"]
    assert prompt.messages[1].text == record["text"]
    assert match.score(record, f" {record['label'].title()}.") == 1.0
    assert match.score(record, "perhaps") == 0.0


def test_class_task_of_records(match):
    task = ClassTask.of("t", {"test": match.records("test")[:10]})
    assert task.labels == ("no", "yes")
    assert task.prompt(match.records("test")[0]).messages[-1].text.endswith("Answer with one of: no, yes.")
    with pytest.raises(FormatError, match="class records"):
        ClassTask.of("t", {"test": forgetting_probe()})


def test_held_out_packages_are_the_same_for_every_task(match):
    held = held_out_packages(0.15)
    for splits in (match.splits, docs_questions(), docs_preferences()):
        assert {r.source.split("/")[1].split(".")[0] for r in splits["test"]} <= held
        assert not {r.source.split("/")[1].split(".")[0] for r in splits["train"]} & held


def test_docs_questions():
    splits = docs_questions(variants=2)
    assert len(splits["train"]) > 4000
    prompts = [r["messages"][0]["content"] for r in (*splits["train"], *splits["test"])]
    assert len(set(prompts)) == len(prompts)
    for r in splits["test"]:
        answer = r["messages"][1]["content"]
        assert answer.endswith(".")
        assert 5 <= len(answer.split()) <= 40
        assert answer.isascii()
    task = Answers("docs-questions", splits)
    assert isinstance(task, Task)
    record = splits["test"][0]
    assert task.score(record, conversation(record).messages[-1].text) == 1.0
    assert task.score(record, "zzz") == 0.0
    with pytest.raises(UsageError):
        docs_questions(variants=99)


def test_docs_preferences():
    splits = docs_preferences()
    assert len(splits["train"]) > 1500
    wrong = 0
    for r in (*splits["train"], *splits["test"]):
        name = r["prompt"].split("`")[1].split("(")[0]
        assert r["chosen"].startswith(f"`{name}` ")
        assert r["chosen"] != r["rejected"]
        wrong += r["rejected"].startswith("`")
    assert 0.15 < wrong / sum(map(len, splits.values())) < 0.35


def test_forgetting_probe():
    probe = forgetting_probe()
    assert 30 <= len(probe) <= 60
    assert len({r.id for r in probe}) == len(probe)
    assert all(len(set(r["choices"])) == len(r["choices"]) >= 2 and r["answer"] in r["choices"] for r in probe)


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_ids_follow_contents(name):
    for rows in BUILTIN[name]().values():
        assert all(r.id == record_id(r.kind, r.fields) for r in rows[:50])
        assert len({r.id for r in rows}) == len(rows)
