from __future__ import annotations

import contextlib
import errno
import sqlite3
import subprocess
import sys
import time

import pytest

from ladderlm import store
from ladderlm.errors import FormatError, NotFound, StorageError


def test_a_file_is_written_whole_or_not_at_all(tmp_path) -> None:
    path = tmp_path / "a.json"
    store.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), store.atomic_file(path) as f:
        f.write("half")
        raise RuntimeError
    assert store.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_appears_only_when_complete(tmp_path) -> None:
    target = tmp_path / "model"
    with pytest.raises(RuntimeError), store.atomic_dir(target) as folder:
        (folder / "config.json").write_text("{}")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    for body in ("1", "2"):
        with store.atomic_dir(target, replace=True) as folder:
            (folder / "config.json").write_text(body)
    assert (target / "config.json").read_text() == "2"
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(StorageError, match="already exists"), store.atomic_dir(target):
        pass


def test_a_full_disk_is_named(tmp_path) -> None:
    with pytest.raises(StorageError, match="disk is full"), store.atomic_file(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_a_file_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        store.make_dir(tmp_path / "file" / "below")


def test_the_lock_holds_against_another_process_and_dies_with_it(tmp_path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from ladderlm import store\n"
        f"with store.lock(Path({str(tmp_path / 'x')!r})): print('held', flush=True); time.sleep(60)"
    )  # fmt: skip
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(StorageError, match="holds the lock"), store.lock(tmp_path / "x", timeout=0.2):
            pass
    finally:
        other.kill()
        other.wait()
    start = time.monotonic()
    with store.lock(tmp_path / "x", timeout=5):
        assert time.monotonic() - start < 5


def test_a_torn_last_line_is_left_out_and_a_torn_middle_is_an_error(tmp_path) -> None:
    path = tmp_path / "m.jsonl"
    store.append_jsonl(path, {"a": 1})
    with path.open("a") as f:
        f.write('{"a": ')
    assert store.read_jsonl(path) == [{"a": 1}]
    path.write_text('{"a": \n{"a": 2}\n')
    with pytest.raises(FormatError, match=r"m\.jsonl:1"):
        store.read_jsonl(path)


def test_runs(workspace) -> None:
    run = store.new_run("demo", {"lr": 1})
    assert store.open_run(run.id) == run
    assert store.list_runs() == [run]
    assert store.read_json(run.config)["lr"] == 1
    with pytest.raises(NotFound, match="ladderlm runs"):
        store.open_run("nothing")


def test_the_database_migrates_and_refuses_a_newer_one(workspace) -> None:
    with store.database() as db:
        db.execute("INSERT INTO templates VALUES ('a', 'b', NULL, 0)")
    db.close()
    with store.database() as db:
        assert db.execute("SELECT body FROM templates").fetchall() == [("b",)]
        db.execute(f"PRAGMA user_version={store.SCHEMA_VERSION + 1}")
    db.close()
    with pytest.raises(FormatError, match="newer"):
        store.database()


def test_a_database_of_the_first_schema_keeps_what_it_holds(workspace) -> None:
    path = workspace / "ladderlm.sqlite"
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode=WAL")
    db.executescript(store._SCHEMA[0] + "PRAGMA user_version=1;")
    db.execute("INSERT INTO templates VALUES ('a', 'b', NULL, 0)")
    db.commit()  # and left open: the row is in the log beside the file
    with store.reading() as new:
        assert new.execute("SELECT body FROM templates").fetchone()["body"] == "b"
        assert new.execute("SELECT name, role FROM users").fetchall()[0]["role"] == "admin"
        assert new.execute("PRAGMA user_version").fetchone()[0] == store.SCHEMA_VERSION
        assert new.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    with contextlib.closing(sqlite3.connect(workspace / "ladderlm.v1.sqlite")) as kept:
        assert kept.execute("SELECT body FROM templates").fetchall() == [("b",)]
        assert kept.execute("PRAGMA user_version").fetchone()[0] == 1
    db.close()


def test_a_transaction_that_fails_leaves_nothing(workspace) -> None:
    with pytest.raises(ZeroDivisionError), store.transaction() as db:
        db.execute("INSERT INTO templates VALUES ('a', 'b', NULL, 0)")
        raise ZeroDivisionError
    with store.reading() as db:
        assert db.execute("SELECT * FROM templates").fetchall() == []


def test_a_file_that_is_no_database_is_named(workspace) -> None:
    (workspace / "ladderlm.sqlite").write_bytes(b"x" * 5000)
    with pytest.raises(FormatError, match="not a database"):
        store.database()


def test_a_place_that_cannot_be_made_is_named() -> None:
    with pytest.raises(StorageError, match="cannot write"), store.storage_errors(store.home()):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")
