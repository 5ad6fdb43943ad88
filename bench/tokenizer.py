"""Tokenizers: training and encoding byte-level BPE against the `tokenizers` library, and young ones where installed.

Text: shared/data/corpus when it lies beside the repository, and the Python standard library. All run in turns in one
process on one thread; figures are megabytes per second of processor time, the best of the rounds, and the ratios of
those. Our compiled loops are warmed by a small run first (their compilation is a cost per installation).
Exactness: each document's ids against those of the library on the same tokenizer.json.
"""

from __future__ import annotations

import gzip
import importlib
import json
import os
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import pre_tokenizers, trainers

from ladderlm import events
from ladderlm.text.bpe import SPECIAL, train_bpe
from ladderlm.text.patterns import PATTERNS, pre_tokenizer_spec
from ladderlm.text.tokenizer import Tokenizer

CORPUS = Path(__file__).resolve().parents[2] / "shared" / "data" / "corpus"
VOCABULARY = 4096


def documents(limit: int) -> list[str]:
    """Books, stories, PEPs, facts and Python sources in turns, in pieces of at most 5,000 characters."""
    kinds: list[list[str]] = []
    for path in sorted(CORPUS.glob("*")):
        packed = path.suffix == ".gz"
        text = (gzip.decompress(path.read_bytes()) if packed else path.read_bytes()).decode("utf-8", "replace")
        if path.name.removesuffix(".gz").endswith(".jsonl"):
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
            kinds.append([max((v for v in row.values() if isinstance(v, str)), key=len, default="") for row in rows])
        else:
            kinds.append([text])
    sources = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    kinds.append([f.read_text(encoding="utf-8", errors="replace") for f in sources if "site-packages" not in f.parts])
    pieces = [[t[i : i + 5_000] for t in kind for i in range(0, len(t), 5_000)] for kind in kinds]
    kept: list[str] = []
    size = turn = 0
    while size < limit and any(pieces):
        for kind in pieces:
            if turn < len(kind) and size < limit:
                kept.append(kind[turn])
                size += len(kind[turn].encode())
        turn += 1
        if all(turn >= len(kind) for kind in pieces):
            break
    return kept


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.process_time()
    found = work()
    return time.process_time() - begun, found


def library(texts: list[str], pattern: str) -> str:
    """tokenizer.json as the `tokenizers` library learns it."""
    blank = {"type": "BPE", "vocab": {}, "merges": []}
    spec = {"version": "1.0", "added_tokens": [], "pre_tokenizer": pre_tokenizer_spec(pattern), "model": blank}
    made = tokenizers.Tokenizer.from_str(json.dumps(spec))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return str(made.to_str())


def peer_trainers(texts: list[str], regex: str) -> dict[str, Callable[[], Any]]:
    """Other trainers, where installed; only their speed is taken."""
    found: dict[str, Callable[[], Any]] = {}
    try:
        rustbpe = importlib.import_module("rustbpe")
        found["rustbpe"] = lambda: rustbpe.Tokenizer().train_from_iterator(iter(texts), VOCABULARY, pattern=regex)
    except ImportError:
        pass
    return found


def training(texts: list[str], rounds: int) -> dict[str, Any]:
    size = sum(len(t.encode()) for t in texts) / 1e6
    train_bpe(["a warm up " * 150_000], 300, pattern="gpt-2")
    rivals: dict[str, Callable[[], Any]] = {
        "ours": lambda: train_bpe(texts, VOCABULARY, pattern="gpt-2"),
        "tokenizers": lambda: library(texts, "gpt-2"),
        **peer_trainers(texts, r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
    }
    best: dict[str, float] = {}
    last: dict[str, Any] = {}
    for _ in events.track(range(rounds), "training", unit="rounds"):
        for name, work in rivals.items():
            spent, last[name] = seconds(work)
            best[name] = min(best.get(name, spent), spent)
    ours, theirs = last["ours"], Tokenizer.from_json(last["tokenizers"])
    held = texts[:: max(1, len(texts) // 200)]
    tokens = [len(t.encode_arrays(held)[0]) for t in (ours, theirs)]
    singles = {ours.token_bytes(i) for i in range(ours.vocab_size)}
    same = [json.loads(text)["model"] for text in (ours.to_json(), theirs.to_json())]
    return {
        "megabytes": round(size, 2),
        "vocab_size": VOCABULARY,
        "megabytes_per_cpu_second": {name: round(size / spent, 2) for name, spent in best.items()},
        "ratio_to_tokenizers": {name: round(best["tokenizers"] / spent, 2) for name, spent in best.items()},
        "same_vocabulary_and_merges": all(same[0][key] == same[1][key] for key in ("vocab", "merges")),
        "bytes_per_token_ratio": round(tokens[1] / tokens[0], 5),
        "all_bytes": all(bytes([b]) in singles for b in range(256)),
    }


def encoding(texts: list[str], pattern: str, rounds: int) -> dict[str, Any]:
    size = sum(len(t.encode()) for t in texts) / 1e6
    ours = train_bpe(texts[::4], VOCABULARY, pattern=pattern)
    theirs = tokenizers.Tokenizer.from_str(ours.to_json())
    ours.encode_arrays(["a warm up " * 150_000])  # loads and checks our encoder
    best: dict[str, float] = {}
    found: dict[str, Any] = {}
    rivals: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours.encode_arrays(texts),
        "ours, lists": lambda: ours.encode_batch(texts),
        "tokenizers": lambda: theirs.encode_batch_fast(texts, add_special_tokens=False),
    }
    for _ in events.track(range(rounds), f"encoding, {pattern}", unit="rounds"):
        for name, work in rivals.items():
            spent, found[name] = seconds(work)
            best[name] = min(best.get(name, spent), spent)
    ids, ends = found["ours"]
    parts = np.split(ids, ends[:-1])
    other = sum(part.tolist() != e.ids for part, e in zip(parts, found["tokenizers"], strict=True))
    return {
        "megabytes_per_cpu_second": {name: round(size / spent, 2) for name, spent in best.items()},
        "ratio_to_tokenizers": round(best["tokenizers"] / best["ours"], 2),
        "ratio_with_lists": round(best["tokenizers"] / best["ours, lists"], 2),
        "documents": len(texts),
        "documents_that_differ": other,
        "bytes_per_token": round(size * 1e6 / len(ids), 3),
    }


def measure(minute: bool) -> dict[str, Any]:
    os.environ["RAYON_NUM_THREADS"] = "1"
    texts = documents(2_000_000 if minute else 24_600_000)
    rounds = 1 if minute else 3
    trained = training(texts, rounds)
    small = texts if minute else texts[::2]
    encoded = {pattern: encoding(small, pattern, rounds) for pattern in PATTERNS}
    least = min(found["ratio_to_tokenizers"] for found in encoded.values())
    bars = {
        "bytes per token within 0.5 %": abs(trained["bytes_per_token_ratio"] - 1) <= 0.005,
        "all 256 bytes present": trained["all_bytes"],
        "every document's ids equal": not any(found["documents_that_differ"] for found in encoded.values()),
    }
    if not minute:  # too short to be timed on a machine with other work
        bars |= {
            "training at least 8 times tokenizers": trained["ratio_to_tokenizers"]["ours"] >= 8,
            "encoding at least 10 times tokenizers": least >= 10,
        }
    return {"training": trained, "encoding": encoded, "bars": bars}
