"""Rung three: corpus, tokenizer, pretraining, instruction tuning, DPO; and what each step changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ladderlm import engine, events, talk
from ladderlm.apps.quickstart import training
from ladderlm.data import collect, tasks
from ladderlm.data.records import read_records, write_records
from ladderlm.errors import UsageError
from ladderlm.evals import compress, perplexity
from ladderlm.evals.intervals import bootstrap
from ladderlm.evals.ngram import KneserNey
from ladderlm.models import open_model
from ladderlm.types import Completion, Conversation, Record, Sampling

ENDS = 100  # unseen prompts on which the tuned model should end its turn by itself
SHOWN = 10
HELD_BYTES = 200_000
HELD_OUT_SHARE = 0.15  # of the documentation, by package
CORPUS_BYTES = 5_000_000
NAMES = {"base": "quickstart-base", "tuned": "quickstart-tuned", "aligned": "quickstart-aligned"}
Models = Mapping[str, str]
ANSWER = Sampling(temperature=0.0, max_tokens=64)


def corpus(path: Path | None, out: Path, seed: int) -> dict[str, Any]:
    """Writes train.jsonl and held.jsonl of text records; the built-in corpus when `path` is None.

    The built-in one leaves out the packages whose documentation the unseen prompts are made of, and is cut to what
    the recipe's time reads about once.
    """
    records = collect.collect(path) if path else collect.python_corpus()
    if path is None:
        unseen = tasks.held_out_packages(HELD_OUT_SHARE, seed)
        records = [r for r in records if r.source.removeprefix("python/").split(".")[0] not in unseen]
    records = sorted(collect.dedup(records), key=lambda r: hashlib.sha256(f"{seed}:{r.id}".encode()).digest())
    held: list[Record] = []
    total = sum(len(r["text"].encode()) for r in records)
    limit = min(HELD_BYTES, total // 10)
    while records and sum(len(r["text"].encode()) for r in held) < limit:
        held.append(records.pop())
    if not records or not held:
        raise UsageError("the corpus holds fewer than two documents", where=str(path), cure="give more text")
    if path is None:
        records = list(_up_to(records, CORPUS_BYTES))
    write_records(out / "train.jsonl", records)
    write_records(out / "held.jsonl", held)
    licences = sorted({r.licence for r in records})
    return {
        "documents": len(records),
        "bytes": sum(len(r["text"].encode()) for r in records),
        "held_documents": len(held),
        "held_bytes": sum(len(r["text"].encode()) for r in held),
        "licences": licences,
        "source": str(path) if path else "the Python standard library on this machine",
    }


def _up_to(records: Sequence[Record], limit: int) -> Iterator[Record]:
    """The first records, until they hold `limit` bytes."""
    held = 0
    for record in records:
        if held >= limit:
            return
        held += len(record["text"].encode())
        yield record


def instructions(out: Path, seed: int) -> dict[str, Any]:
    """Writes the instruction and preference records made from docstrings; what is held out is kept by package."""
    questions, preferences = tasks.docs_questions(HELD_OUT_SHARE, seed), tasks.docs_preferences(HELD_OUT_SHARE, seed)
    for split in ("train", "test"):
        write_records(out / f"questions-{split}.jsonl", questions[split])
        write_records(out / f"preferences-{split}.jsonl", preferences[split])
    return {
        "questions": len(questions["train"]),
        "preferences": len(preferences["train"]),
        "licence": collect.PYTHON_LICENCE,
    }


def pretrain(recipe: Path, out: Path, models: Models, seed: int) -> dict[str, Any]:
    """The base model, from random weights."""
    from ladderlm.train import pretrain

    flags = {"data": str(out / "train.jsonl"), "held_out": str(out / "held.jsonl"), "out": NAMES["base"]}
    return training.run(pretrain, "pretrain", recipe, out, {**flags, "replace": True, "seed": seed})


def instruct(recipe: Path, out: Path, models: Models, seed: int) -> dict[str, Any]:
    """The tuned model: the base learns to answer and to end its turn."""
    from ladderlm.train import finetune

    flags = {
        "data": str(out / "questions-train.jsonl"),
        "model": models["base"],
        "out": NAMES["tuned"],
        "skip_bad": True,
    }
    return training.run(finetune, "sft", recipe, out, {**flags, "replace": True, "seed": seed})


def align(recipe: Path, out: Path, models: Models, seed: int) -> dict[str, Any]:
    """The aligned model: the tuned one learns which of two answers is preferred."""
    from ladderlm.train import align

    flags = {
        "data": str(out / "preferences-train.jsonl"),
        "model": models["tuned"],
        "out": NAMES["aligned"],
        "skip_bad": True,
    }
    return training.run(align, "align", recipe, out, {**flags, "replace": True, "seed": seed})


def bits(model: str, out: Path) -> dict[str, Any]:
    """Bits per byte of the held-out text: the model, a trigram on the same tokens, xz on the text alone."""
    files = open_model(model)
    held = [r["text"] for r in read_records(out / "held.jsonl")]
    with engine.load(files) as loaded:
        found = perplexity.evaluate(loaded, files.tokenizer, held)
    start = files.tokenizer.document_start_id
    head = [start] if start is not None else []
    train = [i for r in read_records(out / "train.jsonl") for i in (*head, *files.tokenizer.encode(r["text"]))]
    trigram = KneserNey(3).fit(train)
    tested = [i for text in held for i in (*head, *files.tokenizer.encode(text))]
    size = sum(len(t.encode()) for t in held)
    return {
        "model": found.bits_per_byte,
        "interval": found.interval.to_dict(),
        "trigram": trigram.bits(tested) / size,
        "xz": compress.xz_bits_per_byte("".join(held)),
        "perplexity": found.perplexity,
        "held_bytes": size,
        "train_tokens": len(train),
    }


def answers(model: str, prompts: Sequence[str]) -> list[Completion]:
    """One greedy answer per prompt."""
    chat = talk.open_chat(model)
    return [
        Completion.fold(chat.stream(Conversation.of(p), ANSWER))
        for p in events.track(prompts, "answering", unit="prompts")
    ]


def continued(model: str, prompts: Sequence[str]) -> list[str]:
    """What the base model makes of the same prompts: it has no turns, so it continues the text."""
    chat = talk.open_chat(model)
    return [Completion.fold(chat.complete(p, ANSWER)).text for p in prompts]


def compare(models: Models, out: Path, seed: int) -> dict[str, Any]:
    """Three columns on the first unseen prompts, unchosen; how often each tuned model ends its turn; preferences."""
    unseen = [r["messages"][0]["content"] for r in read_records(out / "questions-test.jsonl")]
    unseen = list(dict.fromkeys(unseen))[:ENDS]
    columns: dict[str, list[str]] = {"base": continued(models["base"], unseen[:SHOWN])}
    ended = {}
    for name in ("tuned", "aligned"):
        made = answers(models[name], unseen)
        columns[name] = [c.text for c in made[:SHOWN]]
        stops = [float(c.choices[0].finish_reason == "stop") for c in made]
        ended[name] = {"of": len(stops), "ended": int(sum(stops)), **bootstrap(stops, seed=seed).to_dict()}
    rows = [dict(zip(("prompt", *columns), row, strict=True)) for row in zip(unseen, *columns.values(), strict=False)]
    return {"rows": rows, "ended": ended}
