"""One small model per language: a sentence is in the language whose model needs the fewest bits for it.

Each model reads 800 sentences of FLORES-200 in its language and nothing else; all share a tokenizer made of these. The
last 197 sentences, the same in every language and mostly of other articles, are held out. Told as well, without a bar:
short everyday sentences of another collection (Tatoeba).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ladderlm.errors import NotFound
from ladderlm.models import open_model
from ladderlm.nn.decoder import load_decoder
from ladderlm.text.bpe import train_bpe
from ladderlm.text.tokenizer import Tokenizer
from ladderlm.train import pretrain
from ladderlm.train.corpus import text_nats
from ladderlm.train.objective import proportion
from ladderlm.train.settings import PretrainConfig

DATA = Path(os.environ.get("LADDERLM_DATA", "../shared/data")) / "eval"
LANGUAGES = {"eng_Latn": "English", "deu_Latn": "German", "fra_Latn": "French", "spa_Latn": "Spanish",
             "zho_Hans": "Chinese"}  # fmt: skip
ELSEWHERE = {"eng_Latn": "tatoeba.deu-eng.eng", "deu_Latn": "tatoeba.deu-eng.deu", "fra_Latn": "tatoeba.fra-eng.fra",
             "spa_Latn": "tatoeba.spa-eng.spa"}  # fmt: skip
LEARNT = 800  # sentences of 997
SHAPE: dict[str, Any] = {
    "dim": 64, "heads": 2, "layers": 2, "seq_len": 128, "batch_tokens": 2048, "lr": 0.005, "warmup": 20,
}  # fmt: skip
VOCABULARY, STEPS = 512, 120


def sentences(path: Path) -> list[str]:
    if not path.exists():
        raise NotFound("no such text", where=str(path), cure="set LADDERLM_DATA to the folder that holds eval/")
    return path.read_text(encoding="utf-8").splitlines()


def learn(folder: Path, code: str, texts: Sequence[str], steps: int, threads: int) -> dict[str, Any]:
    """A model of these sentences alone, at FOLDER/CODE."""
    sides = []
    for side, rows in (("train", texts[:LEARNT]), ("held", texts[LEARNT:])):
        sides.append(folder / f"{code}.{side}.jsonl")
        sides[-1].write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    result = pretrain.run(
        PretrainConfig(
            data=str(sides[0]), held_out=str(sides[1]), tokenizer=str(folder / "tokenizer.json"), steps=steps,
            out=str(folder / code), threads=threads, **SHAPE,
        )
    )  # fmt: skip
    return {"steps": result.steps, "tokens": result.tokens, "seconds": round(result.seconds, 1),
            "bits_per_byte": round(result.scores["bits_per_byte"], 4)}  # fmt: skip


def bits(folder: Path, tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """nats_LN of each text under each language's model, in the order of LANGUAGES."""
    ids = tokenizer.encode_batch(list(texts))
    start = tokenizer.document_start_id or 0
    return np.array([text_nats(load_decoder(open_model(str(folder / code))), ids, start) for code in LANGUAGES])


def judged(folder: Path, tokenizer: Tokenizer, held: dict[str, list[str]]) -> dict[str, Any]:
    """How many sentences of each language were told right, and what the others were taken for."""
    codes, told = list(LANGUAGES), {}
    for code, texts in held.items():
        taken = Counter(codes[i] for i in bits(folder, tokenizer, texts).argmin(0))
        told[code] = {"sentences": len(texts), "right": taken.pop(code, 0), "taken_for": dict(taken)}
    right, count = (sum(t[key] for t in told.values()) for key in ("right", "sentences"))
    share = {key: round(value, 4) for key, value in proportion(right, count).items()}
    return {"right": {"of": count, "count": right, **share}, "languages": told}


def measure(minute: bool) -> dict[str, Any]:
    threads = int(os.environ.get("LADDERLM_BENCH_THREADS", "2"))
    texts = {code: sentences(DATA / "flores200" / "dev" / f"{code}.dev") for code in LANGUAGES}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tokenizer = train_bpe([t for rows in texts.values() for t in rows[:LEARNT]], VOCABULARY)
        (folder / "tokenizer.json").write_text(tokenizer.to_json())
        made = {code: learn(folder, code, rows, 30 if minute else STEPS, threads) for code, rows in texts.items()}
        found = judged(folder, tokenizer, {code: rows[LEARNT:] for code, rows in texts.items()})
        other = judged(
            folder, tokenizer, {code: sentences(DATA / "tatoeba" / name) for code, name in ELSEWHERE.items()}
        )
        size = open_model(str(folder / "eng_Latn")).arch.parameters
    table = {LANGUAGES[code]: {**made[code], **found["languages"][code]} for code in LANGUAGES}
    bars = {"at least 95 % of held-out sentences are told right": found["right"]["share"] >= 0.95}
    figures = {"threads": threads, "parameters_each": size, "right": found["right"], "languages": table,
               "short_sentences_elsewhere": other}  # fmt: skip
    return figures if minute else {**figures, "bars": bars}
