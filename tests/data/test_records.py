"""Records on disk: every layout that is recognised, broken files, splits."""

import contextlib
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ladderlm import events
from ladderlm.data.records import make_record, read_records, record_id, split, write_records
from ladderlm.data.shapes import conversation
from ladderlm.errors import FormatError, LadderError, NotFound, UsageError
from ladderlm.types import ToolCall, ToolResult

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "kind", "name", "value"),
    [
        ({"text": "hello"}, "text", "text", "hello"),
        ({"text": "good film", "label": "pos"}, "class", "label", "pos"),
        ({"text": "good film", "label": 1}, "class", "label", "1"),
        ({"prompt": "a", "completion": "b"}, "completion", "completion", "b"),
        ({"prompt": "a", "completion": "b", "label": False}, "kto", "label", False),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference", "rejected", "c"),
        ({"prompt": "a", "answer": 12}, "answer", "answer", "12"),
        ({"question": "a", "answer": "b"}, "answer", "prompt", "a"),
        ({"prompt": "a", "pattern": "b+"}, "checked", "pattern", "b+"),
        ({"prompt": "a", "schema": {"type": "object"}, "answer": "{}"}, "checked", "answer", "{}"),
        ({"kind": "text", "fields": {"text": "x"}}, "text", "text", "x"),
    ],
)
def test_layouts(tmp_path, row, kind, name, value):
    (record,) = read_records(write(tmp_path / "d.jsonl", row))
    assert record.kind == kind
    assert record[name] == value
    assert record.source == "d.jsonl"
    assert len(record.id) == 16


def test_layouts_of_conversations(tmp_path):
    alpaca = {"instruction": "Add.", "input": "1 2", "output": "3"}
    openai = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    sharegpt = {"system": "S", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}
    rows = read_records(write(tmp_path / "d.jsonl", alpaca, openai, sharegpt))
    assert [r.kind for r in rows] == ["messages"] * 3
    assert [m.text for m in conversation(rows[0]).messages] == ["Add.\n\n1 2", "3"]
    assert [m.role for m in conversation(rows[2]).messages] == ["system", "user", "assistant"]
    assert [m.text for m in conversation(rows[1], answer=False).messages] == ["Hi"]


def test_tool_calls_become_parts(tmp_path):
    call = {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'}
    row = {"conversations": [{"from": "human", "value": "1?"}, call, {"from": "observation", "value": "2"}]}
    turns = conversation(read_records(write(tmp_path / "d.jsonl", row))[0]).messages
    assert turns[1].parts == (ToolCall("call_1", "add", '{"a": 1}'),)
    assert turns[2].parts == (ToolResult("call_1", "2"),)


def test_preferences_over_conversations(tmp_path):
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}, {"from": "human", "value": "So?"}]
    row = {"conversations": turns, "chosen": {"from": "gpt", "value": "A"}, "rejected": {"from": "gpt", "value": "B"}}
    (record,) = read_records(write(tmp_path / "d.jsonl", row))
    assert (record["prompt"], record["chosen"], record["rejected"]) == ("So?", "A", "B")
    assert [m.text for m in conversation(record).messages] == ["Hi", "Ho", "So?", "A"]


def test_broken_lines_name_file_and_line(tmp_path):
    path = write(tmp_path / "d.jsonl", {"text": "a"}, "", '{"text": ', {"text": "b"})
    with pytest.raises(FormatError, match=r"broken JSON.*d\.jsonl:3\): .*skip"):
        read_records(path)
    seen = []
    with events.listening(seen.append):
        assert [r["text"] for r in read_records(path, skip_bad=True)] == ["a", "b"]
    assert seen[0].data == {"skipped": 1}
    assert "1 unreadable of 3" in seen[0].message


@pytest.mark.parametrize(
    "row", [{"a": 1}, [1], 3, {"text": 3}, {"messages": []}, {"messages": [{"role": "wizard"}]}, {"chosen": 1},
            {"kind": "text", "fields": 3}, {"kind": "nope", "fields": {}}, {"conversations": [{"from": "x"}]},
            {"kind": "text", "fields": {"text": "x"}, "extra": 1}, {"text": "x", "label": None}],
)  # fmt: skip
def test_wrong_rows_are_format_errors(tmp_path, row):
    with pytest.raises(FormatError, match=r"d\.jsonl:1"):
        read_records(write(tmp_path / "d.jsonl", row))


def test_wrong_files(tmp_path):
    with pytest.raises(NotFound):
        read_records(tmp_path / "none.jsonl")
    with pytest.raises(FormatError, match="empty"):
        read_records(write(tmp_path / "e.jsonl"))
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="UTF-8"):
        read_records(tmp_path / "b.txt")
    (tmp_path / "g.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}')[:-4])
    with pytest.raises(FormatError, match="gzip"):
        read_records(tmp_path / "g.jsonl.gz")
    with pytest.raises(UsageError, match="folder"):
        read_records(tmp_path)


def test_plain_text_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("One.\n\nTwo.\n")
    assert [r["text"] for r in read_records(tmp_path / "a.txt")] == ["One.\n\nTwo.\n"]


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz"])
def test_written_records_come_back(tmp_path, name):
    records = [make_record("text", {"text": f"t{i} é\u2028"}, source="s", licence="MIT", page=i) for i in range(3)]
    assert write_records(tmp_path / name, records) == 3
    assert read_records(tmp_path / name) == records
    first = (tmp_path / name).read_bytes()
    write_records(tmp_path / name, records)
    assert (tmp_path / name).read_bytes() == first


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "d.jsonl"
    write_records(path, [make_record("text", {"text": "old"}, source="s")])

    def broken():
        yield make_record("text", {"text": "new"}, source="s")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_records(path, broken())
    assert read_records(path)[0]["text"] == "old"


def test_ids_follow_the_content():
    assert record_id("text", {"text": "a"}) == record_id("text", {"text": "a"})
    assert record_id("class", {"text": "a", "label": "b"}) == record_id("class", {"label": "b", "text": "a"})
    assert record_id("text", {"text": "a"}) != record_id("text", {"text": "b"})


def test_split_keeps_sources_together_and_records_in_place():
    records = [make_record("text", {"text": str(i)}, source=f"s{i % 20}") for i in range(200)]
    train, test = split(records, 0.3)
    assert len(train) + len(test) == 200
    assert not {r.source for r in train} & {r.source for r in test}
    again, _ = split(records[::-1], 0.3)
    assert {r.id for r in again} == {r.id for r in train}
    more = [*records, make_record("text", {"text": "new"}, source="new")]
    assert {r.id for r in split(more, 0.3)[0]} >= {r.id for r in train}
    assert split(records, 0.3, seed=1)[1] != test


@given(st.integers(2, 30), st.floats(0.01, 0.99), st.integers(0, 5))
def test_neither_side_is_ever_empty(count, fraction, seed):
    records = [make_record("text", {"text": str(i)}, source="s") for i in range(count)]
    train, test = split(records, fraction, seed)
    assert train
    assert test


def test_split_refuses_what_it_cannot_do():
    one = [make_record("text", {"text": "a"}, source="s")]
    with pytest.raises(UsageError):
        split(one, 0.5)
    with pytest.raises(UsageError, match="by id"):
        split([*one, make_record("text", {"text": "b"}, source="s")], 0.5, by="source")
    with pytest.raises(UsageError):
        split(one, 1.5)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(
    st.sampled_from(["text", "label", "messages", "role", "content", "prompt", "chosen", "rejected", "conversations",
                     "from", "value", "kind", "fields", "instruction", "output"]), x)))  # fmt: skip
def test_any_json_is_read_or_refused(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("any") / "d.jsonl"
    path.write_text(json.dumps([value]) + "\n")
    with contextlib.suppress(LadderError):
        assert len(read_records(path)) == 1


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("alpaca-en-demo.json.gz", "messages", 999),
        ("dpo-en-demo.json.gz", "preference", 300),
        ("glaive-toolcall-demo.json.gz", "messages", 300),
        ("kto-en-demo.json.gz", "kto", 300),
        ("llms-from-scratch-preference.json", "preference", 1100),
    ],
)
def test_real_datasets(name, kind, count):
    path = SHARED / "instruct" / name
    if not path.exists():
        pytest.skip("the shared test data is not on this machine")
    records = read_records(path)
    assert {r.kind for r in records} == {kind}
    assert len(records) == count
    assert all(conversation(r).messages for r in records)
