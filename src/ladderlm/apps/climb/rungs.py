"""The rungs, one function each: what was answered to the test items, and what it takes to ship that.

Each can run in a process of its own (`python -m ladderlm.apps.climb.rungs`, the work as JSON on stdin, the result as
JSON on the last line of stdout), so that its memory is its own.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladderlm import events
from ladderlm.data.records import read_records
from ladderlm.errors import ContextOverflow, LadderError, MissingExtra, UsageError
from ladderlm.evals.ask import Asker, Prompt, first_prompt, items_of, pick
from ladderlm.evals.cost import peak_memory_mb
from ladderlm.store import folder_bytes
from ladderlm.types import Record, Value


@dataclass(frozen=True, slots=True)
class Work(Value):
    """What a rung is given: files of records, the model, the labels ("" of free answers), its time and money."""

    train: str
    dev: str
    test: str
    model: str
    out: str
    labels: tuple[str, ...] = ()
    shots: int = 8
    minutes: float = 3.0
    calls: int = 800
    max_tokens: int = 64
    max_cost: float | None = None
    seed: int = 0
    threads: int = 0


@dataclass(frozen=True, slots=True)
class Tried(Value):
    """What came of a rung: a score for each test item, and its cost. `skipped` says why it was not tried."""

    rung: str
    scores: tuple[float, ...] = ()
    minutes: float = 0.0
    memory_mb: float = 0.0
    money: float = 0.0
    ship_bytes: int = 0
    made: str = ""
    skipped: str = ""


Result = tuple[list[float], float, int, str]  # scores, money, bytes to ship, what was made


def frequent(work: Work) -> Result:
    """No model at all: the label that is the most frequent."""
    train, _, test = _read(work)
    if not work.labels:
        raise UsageError("answers are free, none is the usual one")
    usual = Counter(item.answer for item in items_of(train)).most_common(1)[0][0]
    return [float(item.answer == usual) for item in items_of(test)], 0.0, len(usual.encode()), usual


def zero_shot(work: Work) -> Result:
    return _asked(work, work.model, shots=0)


def few_shot(work: Work) -> Result:
    """With as many examples as asked for, or half of them where they do not fit the context, and so on."""
    shots = work.shots
    while True:
        try:
            return _asked(work, work.model, shots=shots)
        except ContextOverflow:
            if shots < 2:
                raise
            shots //= 2


def optimised_prompt(work: Work) -> Result:
    """The prompt that scores best on the dev records."""
    from ladderlm.evals.optimise import OptimiseConfig, optimise

    train, dev, test = _read(work)
    plain = first_prompt(train, work.labels)
    config = OptimiseConfig(
        work.dev, work.model, calls=work.calls, minutes=work.minutes, shots=work.shots, seed=work.seed
    )
    with Asker(work.model, work.labels, max_cost=work.max_cost, tokens=work.max_tokens) as asker:
        found = optimise(asker, plain, items_of([*train[:200], *dev]), items_of(dev)[:8], config)
        scores = [said.score for said in asker.ask(found.prompt, items_of(test), "test")]
        return scores, asker.cost, _shipped(work.model, found.prompt), str(found.prompt)


def lora(work: Work) -> Result:
    return _tuned(work, "lora")


def full(work: Work) -> Result:
    return _tuned(work, "full")


def supervised(work: Work) -> Result:
    """Words counted and weighed: a linear model that has never read anything else."""
    from ladderlm.evals.linear import tfidf_predictions

    if not work.labels:
        raise UsageError("answers are free: there is no label to learn")
    train, dev, test = (_classes(side) for side in _read(work))
    said = tfidf_predictions([*train, *dev], test)
    words = {word for record in (*train, *dev) for word in record["text"].lower().split()}
    size = sum(len(word.encode()) + 4 * len(work.labels) for word in words)
    return [float(p == r["label"]) for p, r in zip(said, test, strict=True)], 0.0, size, "tf-idf, logistic regression"


RUNGS: dict[str, Callable[[Work], Result]] = {
    "most frequent label": frequent,
    "zero-shot": zero_shot,
    "few-shot": few_shot,
    "optimised prompt": optimised_prompt,
    "LoRA": lora,
    "full fine-tuning": full,
    "from scratch": supervised,
}


def _read(work: Work) -> tuple[list[Record], list[Record], list[Record]]:
    train, dev, test = (read_records(path) for path in (work.train, work.dev, work.test))
    return train, dev, test


def _classes(records: list[Record]) -> list[Record]:
    """Items as class records, for what knows labels only."""
    return [
        Record(item.id, record.source, record.licence, "class", {"text": item.text, "label": item.answer})
        for item, record in zip(items_of(records), records, strict=True)
    ]


def _asked(work: Work, model: str, shots: int) -> Result:
    train, _, test = _read(work)
    plain = first_prompt(train, work.labels)
    shown = pick(items_of(train), shots, random.Random(work.seed), work.labels) if shots else ()
    prompt = Prompt(plain.template, plain.system, shown)
    with Asker(model, work.labels, max_cost=work.max_cost, tokens=work.max_tokens) as asker:
        scores = [said.score for said in asker.ask(prompt, items_of(test), "test")]
        return scores, asker.cost, _shipped(model, prompt), str(prompt)


def _shipped(model: str, prompt: Prompt) -> int:
    """Bytes of what has to be there to answer: of a hosted model the prompt alone."""
    words = len(prompt.template.encode()) + len(prompt.system.encode())
    words += sum(len(shot.text.encode()) + len(shot.answer.encode()) for shot in prompt.shots)
    return words if "://" in model else words + model_bytes(model)


def model_bytes(model: str) -> int:
    from ladderlm.models import open_model

    path = Path(open_model(model).path)
    return folder_bytes(path) if path.is_dir() else path.stat().st_size


def _tuned(work: Work, method: str) -> Result:
    if "://" in work.model:
        raise UsageError("a hosted model", cure="ladderlm finetune FILE --at URL tunes it where it is")
    try:
        from ladderlm.train import finetune
    except ImportError:
        raise MissingExtra("torch", "train") from None
    from ladderlm.train.settings import FinetuneConfig

    out = f"{work.out}-{method}"
    config = FinetuneConfig(
        data=work.train, model=work.model, out=out, held_out=work.dev, method=method, minutes=work.minutes,
        seed=work.seed, threads=work.threads, replace=True, skip_bad=True,
    )  # fmt: skip
    result = finetune.run(config)
    train, _, test = _read(work)
    prompt = first_prompt(train, work.labels)
    with Asker(result.model if method == "full" else f"{work.model}+{result.model}", work.labels) as asker:
        scores = [said.score for said in asker.ask(prompt, items_of(test), "test")]
    base = 0 if method == "full" else model_bytes(work.model)
    return scores, 0.0, base + folder_bytes(Path(result.model)), result.model


def climb_one(rung: str, work: Work) -> Tried:
    """Runs a rung here. What it cannot do is told, not raised."""
    started = time.monotonic()
    try:
        scores, money, size, made = RUNGS[rung](work)
    except LadderError as error:
        return Tried(rung, skipped=str(error))
    minutes = (time.monotonic() - started) / 60
    return Tried(rung, tuple(scores), minutes, peak_memory_mb(), money, size, made)


def apart(rung: str, work: Work) -> Tried:
    """Runs a rung in a process of its own; what it says goes to our events."""
    command = [sys.executable, "-m", "ladderlm.apps.climb.rungs"]
    told = json.dumps({"rung": rung, "work": work.to_dict()})
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment
    ) as child:
        assert child.stdin
        assert child.stdout
        try:
            child.stdin.write(told)
            child.stdin.close()
            last = ""
            for line in child.stdout:
                last = line
                row = json.loads(line)
                if "event" in row:
                    events.emit(f"{rung}: {row['event']['stage']}", row["event"]["message"])
        except BaseException:
            child.terminate()
            raise
    if child.returncode or "tried" not in (row := json.loads(last or "{}")):
        return Tried(rung, skipped=f"its process ended with status {child.returncode}")
    return Tried.from_dict(row["tried"])


def main() -> None:
    def say(row: Mapping[str, Any]) -> None:
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()

    def heard(event: events.Event) -> None:
        if event.message:
            say({"event": {"stage": event.stage, "message": event.message}})

    given = json.load(sys.stdin)
    with events.listening(heard):
        tried = climb_one(given["rung"], Work.from_dict(given["work"]))
    say({"tried": tried.to_dict()})


if __name__ == "__main__":
    main()
