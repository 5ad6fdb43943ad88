"""Pretraining from a folder of shards: the same tokens, some kept apart, the lineage kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from ladderlm.data.packing import best_fit
from ladderlm.data.records import make_record
from ladderlm.data.shards import write_shards
from ladderlm.errors import UsageError
from ladderlm.models import open_model
from ladderlm.text.bpe import train_bpe
from ladderlm.train.corpus import Tokens, from_shards, packed, windows
from ladderlm.train.pretrain import run
from ladderlm.train.settings import PretrainConfig

TEXTS = [f"Story {i}: " + "the fox ran over the hill. " * (3 + i % 7) for i in range(120)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    records = [make_record("text", {"text": t}, source="s", licence="CC0-1.0") for t in TEXTS]
    write_shards(records, train_bpe(TEXTS, 300), tmp_path / "s", shard_bytes=4000, lineage=[{"stage": "clean"}])
    return tmp_path / "s"


def test_the_end_is_kept_apart_and_windows_read_across_shards(folder: Path) -> None:
    found = from_shards(folder, 300)
    assert [r["text"] for r in found.held] == TEXTS[-len(found.held) :]
    ids = np.concatenate([[0, *found.tokenizer.encode(t)] for t in TEXTS[: -len(found.held)]])
    assert len(found.tokens.ids_N) == len(ids)
    assert len(found.tokens.starts) + len(found.held) == len(TEXTS)
    ours = windows(found.tokens, 32, 4, 1, 0)
    plain = windows(Tokens(ids, found.tokens.starts), 32, 4, 1, 0)
    assert all((ours(i).targets_N == plain(i).targets_N).all() for i in range(9))
    with pytest.raises(UsageError, match="held-out"):
        _one(folder.parent)


def _one(parent: Path) -> None:
    write_shards([make_record("text", {"text": TEXTS[0]}, source="s")], train_bpe(TEXTS, 300), parent / "one")
    from_shards(parent / "one", 300)


def test_packed_rows_hold_every_target_once(folder: Path) -> None:
    tokens = from_shards(folder, 0).tokens
    whole = np.asarray(tokens.ids_N)
    get = packed(tokens, 40, 1, 3, 0)
    count = len(best_fit(tokens.starts, len(whole), 40))
    batches = [get(i) for i in range(count)]
    seen = np.sort(np.concatenate([b.targets_N.numpy() for b in batches]))
    assert (seen == np.sort(np.delete(whole, tokens.starts))).all()  # all but the start tokens
    assert max(b.tokens for b in batches) <= 40
    assert (packed(tokens, 40, 1, 3, 0)(count + 3).targets_N == get(count + 3).targets_N).all()
    assert any(get(i + count).targets_N.tolist() != batches[i].targets_N.tolist() for i in range(9))


def test_a_model_grows_from_shards(folder: Path, tmp_path: Path) -> None:
    run(
        PretrainConfig(
            data=str(folder),
            out=str(tmp_path / "m"),
            layers=1,
            dim=32,
            heads=1,
            seq_len=32,
            steps=3,
            packing="best-fit",
        )
    )
    files = open_model(str(tmp_path / "m"))
    entry = files.lineage["data"][0]
    assert (entry["licence"], entry["records"], entry["stages"]) == ("CC0-1.0", 120, [{"stage": "clean"}])
    assert files.tokenizer.encode(TEXTS[0]) == train_bpe(TEXTS, 300).encode(TEXTS[0])
    with pytest.raises(UsageError, match="have their tokenizer"):
        run(PretrainConfig(data=str(folder), tokenizer="x", out=str(tmp_path / "n"), steps=3))
