"""Preference pairs from what one has: ratings, samples that a judge compares, a strong model against a weak one.

`make` writes preference records; every pair tells in its meta how it came to be. `check` tells what is wrong with pairs
that exist, how far raters agree, and whether length alone would choose as they do.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ladderlm import events, store
from ladderlm.apps.judge import Judge, alpha, kappa, read_principles
from ladderlm.config import option
from ladderlm.data.records import make_record, write_records
from ladderlm.data.shapes import conversation
from ladderlm.data.tables import read_table
from ladderlm.errors import FormatError, UsageError
from ladderlm.evals.ask import Asker, score
from ladderlm.evals.intervals import Interval, bootstrap
from ladderlm.evals.report import Report
from ladderlm.types import Conversation, Record, Value

Pair = tuple[str, str, str, dict[str, Any]]  # prompt, chosen, rejected, meta


@dataclass(frozen=True, slots=True)
class MakeConfig(Value):
    """Where pairs come from: ratings in the data, or answers that a model gives to its prompts."""

    data: str = option(help="rows with prompt, answer and rating; or records whose prompts a model answers")
    out: str = option("preferences.jsonl", "the file of preference records", short="-o")
    model: str = option("", "answers each prompt --n times; the best and the worst make a pair", short="-m")
    n: int = option(4, "answers to each prompt")
    judge: str = option("", "the model that compares answers; without it known answers are checked")
    principles: str = option("", "a file with one principle a line, by which the judge is asked in turn")
    strong: str = option("", "with --weak: this model's answers are chosen")
    weak: str = option("", "and this one's are rejected")
    gap: float = option(0.0, "ratings: the least difference that makes a pair; equal ratings never do")
    temperature: float = option(0.9, "how freely answers are drawn")
    max_tokens: int = option(128, "longest answer")
    max_cost: float | None = option(None, "the most that a hosted model may cost")
    limit: int = option(0, "use only the first N prompts (0: all)")
    licence: str = option("unknown", "licence of the pairs where the data does not say so itself")
    seed: int = option(0, "seed of the answers")
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class Made(Value):
    """`pairs` written, prompts that gave none by reason, the judge's consistency and lean to the first place."""

    path: str
    pairs: int
    prompts: int
    without: dict[str, int] = field(default_factory=dict)
    consistent: float | None = None
    lean: float | None = None
    cost: float = 0.0


def make(config: MakeConfig) -> Made:
    """Writes the pairs, all or none. UsageError where the source of pairs is not clear."""
    ways = [bool(config.model), bool(config.strong or config.weak)]
    if sum(ways) > 1 or bool(config.strong) != bool(config.weak):
        raise UsageError("one source of pairs at a time", cure="ratings alone, or --model, or --strong with --weak")
    if config.model and config.n < 2:
        raise UsageError("a pair needs two answers", where=f"n={config.n}")
    counted: dict[str, int] = defaultdict(int)
    with contextlib.ExitStack() as stack:
        judge = None
        if config.judge:
            rules = read_principles(config.principles) if config.principles else ()
            judge = _Watched(Judge(config.judge, rules, max_cost=config.max_cost))
            stack.callback(judge.judge.close)
        elif config.principles:
            raise UsageError("principles need somebody who judges by them", cure="--judge MODEL")
        if config.strong:
            models = [_open(config.strong, config, stack), _open(config.weak, config, stack)]
            asked, pairs = _strong_weak(config, models, counted, judge)
        elif config.model:
            models = [_open(config.model, config, stack)]
            asked, pairs = _samples(config, models[0], judge, counted)
        else:
            models = []
            asked, pairs = _ratings(config, counted)
        source = Path(config.data).name
        records = [
            make_record("preference", {"prompt": p, "chosen": c, "rejected": r}, source=source, licence=config.licence,
                        **meta)
            for p, c, r, meta in pairs
        ]  # fmt: skip
    if not records:
        reasons = ", ".join(f"{n} {why}" for why, n in counted.items())
        raise FormatError(f"no pair came of it: {reasons or 'no prompts'}", where=config.data)
    write_records(Path(config.out), records)
    cost = sum(m.cost for m in models) + (judge.judge.cost if judge else 0.0)
    told = (judge.consistent, judge.lean) if judge else (None, None)
    return Made(config.out, len(records), asked, dict(counted), *told, cost)


def _open(ref: str, config: MakeConfig, stack: contextlib.ExitStack) -> Asker:
    return stack.enter_context(Asker(ref, max_cost=config.max_cost, tokens=config.max_tokens))


class _Watched:
    """A judge whose consistency is counted."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self._all, self._leans = judge, 0, list[float]()
        self._kept = 0

    def compare(self, prompt: str, one: str, two: str) -> int | None:
        found = self.judge.compare(prompt, one, two)
        self._all, self._kept = self._all + 1, self._kept + found.consistent
        self._leans.append(found.lean)
        return found.winner

    @property
    def consistent(self) -> float | None:
        return self._kept / self._all if self._all else None

    @property
    def lean(self) -> float | None:
        return math.fsum(self._leans) / len(self._leans) if self._leans else None


# --- Ratings ------------------------------------------------------------------------------------------------------


def _ratings(config: MakeConfig, counted: dict[str, int]) -> tuple[int, list[Pair]]:
    """The best and the worst answer to each prompt; an answer's ratings by several people are averaged."""
    groups: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number, row in enumerate(store.read_jsonl(Path(config.data)), 1):
        for prompt, answer, rating in _rated(row, f"{config.data}:{number}"):
            groups[prompt][answer].append(rating)
    if not groups:
        raise FormatError("no rated answers", where=config.data, cure="prompt, answer, rating; or name a --model")
    pairs = []
    for prompt, answers in list(groups.items())[: config.limit or None]:
        means = sorted((math.fsum(r) / len(r), answer) for answer, r in answers.items())
        if len(means) < 2:
            counted["with one answer"] += 1
            continue
        (low, worst), (high, best) = means[0], means[-1]
        if high <= low or high - low < config.gap:
            counted["without a gap between ratings"] += 1
            continue
        pairs.append((prompt, best, worst, {"from": "ratings", "ratings": [high, low]}))
    return len(groups), pairs


def _rated(row: dict[str, Any], where: str) -> Iterator[tuple[str, str, float]]:
    """(prompt, answer, rating) of {prompt, answer|completion|response, rating|score}, or of lists of them."""
    prompt = row.get("prompt", row.get("instruction"))
    answers = next((row[n] for n in ("answers", "responses", "answer", "completion", "response") if n in row), None)
    ratings = next((row[n] for n in ("ratings", "scores", "rating", "score") if n in row), None)
    several = isinstance(answers, list)
    if not isinstance(prompt, str) or several != isinstance(ratings, list):
        raise FormatError("a row needs prompt, answer and rating, or answers and ratings", where=where)
    said, told = (answers, ratings) if several else ([answers], [ratings])
    if len(said) != len(told):  # type: ignore[arg-type]
        raise FormatError("answers and ratings are not as many", where=where)
    for answer, rating in zip(said, told, strict=True):  # type: ignore[arg-type]
        if not isinstance(answer, str) or isinstance(rating, bool) or not isinstance(rating, int | float):
            raise FormatError("an answer must be text and a rating a number", where=where)
        yield prompt, answer, float(rating)


# --- Answers of models --------------------------------------------------------------------------------------------


def _prompts(config: MakeConfig) -> list[tuple[Conversation, str, str]]:
    """(what to ask, its text, the known answer or "")."""
    found = []
    for record in read_table(config.data).settled(skip_bad=False)[: config.limit or None]:
        if record.kind == "answer":
            found.append((Conversation.of(record["prompt"]), record["prompt"], str(record["answer"])))
        elif record.kind == "text":
            found.append((Conversation.of(record["text"]), record["text"], ""))
        else:
            turns, whole = conversation(record, answer=False), conversation(record)
            known = whole.messages[-1].text if whole.messages[-1].role == "assistant" else ""
            found.append((turns, turns.messages[-1].text, known))
    return found


def _samples(
    config: MakeConfig, model: Asker, judge: _Watched | None, counted: dict[str, int]
) -> tuple[int, list[Pair]]:  # fmt: skip
    """Of n answers the best and the worst: as a judge compares them, or by the answer that is known."""
    asked, pairs = _prompts(config), list[Pair]()
    for number, (turns, prompt, known) in enumerate(events.track(asked, "answers", unit="prompts")):
        seeds = range(config.seed + number * config.n, config.seed + (number + 1) * config.n)
        said = list(dict.fromkeys(model.write(turns, config.temperature, config.max_tokens, seed) for seed in seeds))
        said = [answer for answer in said if answer]
        if len(said) < 2:
            counted["answered in one way"] += 1
        elif judge is not None:
            ranked = _ranked(said, lambda a, b, p=prompt: judge.compare(p, a, b))  # type: ignore[misc]
            if ranked is None:
                counted["whose answers the judge holds equal"] += 1
            else:
                pairs.append((prompt, *ranked, {"from": "judge", "judge": config.judge}))
        elif not known:
            raise UsageError("nothing tells which answer is better", where=config.data, cure="--judge MODEL")
        else:
            scores = sorted((score(answer, known), answer) for answer in said)
            if scores[0][0] == scores[-1][0]:
                counted["whose answers are equally right"] += 1
            else:
                pairs.append((prompt, scores[-1][1], scores[0][1], {"from": "known answer"}))
    return len(asked), pairs


def _ranked(answers: Sequence[str], compare: Callable[[str, str], int | None]) -> tuple[str, str] | None:
    """(best, worst): who wins the most comparisons, each with each; None where all win as often."""
    won = dict.fromkeys(answers, 0)
    for i, one in enumerate(answers):
        for two in answers[i + 1 :]:
            winner = compare(one, two)
            if winner is not None:
                won[(one, two)[winner]] += 1
                won[(one, two)[1 - winner]] -= 1
    ordered = sorted(answers, key=lambda a: won[a])
    return None if won[ordered[0]] == won[ordered[-1]] else (ordered[-1], ordered[0])


def _strong_weak(
    config: MakeConfig, models: Sequence[Asker], counted: dict[str, int], judge: _Watched | None
) -> tuple[int, list[Pair]]:  # fmt: skip
    """The strong model's answers against the weak one's; with a judge, only where it agrees."""
    asked, pairs = _prompts(config), list[Pair]()
    for number, (turns, prompt, _) in enumerate(events.track(asked, "answers", unit="prompts")):
        chosen, rejected = (m.write(turns, config.temperature, config.max_tokens, config.seed + number) for m in models)
        if not chosen or not rejected or chosen == rejected:
            counted["answered alike, or not at all"] += 1
        elif judge is not None and judge.compare(prompt, chosen, rejected) != 0:
            counted["where the judge does not prefer the strong model"] += 1
        else:
            meta = {"from": "strong against weak", "strong": config.strong, "weak": config.weak}
            pairs.append((prompt, chosen, rejected, meta))
    return len(asked), pairs


# --- Check --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CheckConfig(Value):
    """A file of preference records, and who else shall judge them."""

    data: str = option(help="preference records")
    judge: str = option("", "a model that judges a part of the pairs too: how far does it agree?")
    principles: str = option("", "a file with one principle a line, for the judge")
    sample: int = option(50, "most pairs that the judge sees")
    max_cost: float | None = option(None, "the most that a hosted judge may cost")
    skip_bad: bool = option(False, "leave out lines that cannot be read, and say how many")
    report: str = option("", "a folder to write report.md and report.html to")
    seed: int = option(0, "seed of what the judge sees")
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class Checked(Value):
    """What a file of pairs is worth. `longer`: share of pairs whose chosen answer is the longer one. `agreement` and
    `alpha` are over pairs that were judged more than once. The judge's figures are None without one."""

    pairs: int
    prompts: int
    same: int
    repeated: int
    contradicting: int
    empty: int
    longer: Interval
    chosen_words: float
    rejected_words: float
    judged_again: int = 0
    agreement: float | None = None
    alpha: float | None = None
    judge_agrees: Interval | None = None
    judge_kappa: float | None = None
    judge_consistent: float | None = None
    warnings: tuple[str, ...] = ()


def check(config: CheckConfig) -> Checked:
    """Counts, agreement and, with a judge, a second opinion. FormatError for other records."""
    records = read_table(config.data).settled(config.skip_bad)
    for record in records:
        if record.kind != "preference":
            raise FormatError(f"a {record.kind} record", where=f"record {record.id}", cure="prompt, chosen, rejected")
    votes: dict[tuple[str, frozenset[str]], list[str]] = defaultdict(list)
    for r in records:
        votes[r["prompt"], frozenset((r["chosen"], r["rejected"]))].append(r["chosen"])
    again = [chosen for chosen in votes.values() if len(chosen) > 1]
    lengths = [(len(r["chosen"].split()), len(r["rejected"].split())) for r in records]
    unequal = [float(c > w) for c, w in lengths if c != w]
    pairs_agree = [
        a == b for chosen in again for i, a in enumerate(chosen) for b in chosen[i + 1 :]
    ]  # fmt: skip
    found: dict[str, Any] = {
        "pairs": len(records), "prompts": len({r["prompt"] for r in records}),
        "same": sum(r["chosen"].strip() == r["rejected"].strip() for r in records),
        "repeated": sum(len(c) - len(set(c)) for c in again),
        "contradicting": sum(len(set(c)) > 1 for c in again),
        "empty": sum(not (r["prompt"].strip() and r["chosen"].strip() and r["rejected"].strip()) for r in records),
        "longer": bootstrap(unequal, seed=config.seed) if unequal else Interval(0.5, 0.5, 0.5),
        "chosen_words": sum(c for c, _ in lengths) / len(lengths),
        "rejected_words": sum(w for _, w in lengths) / len(lengths),
        "judged_again": len(again),
        "agreement": sum(pairs_agree) / len(pairs_agree) if pairs_agree else None,
        "alpha": alpha([[int(c == sorted(set(key[1]))[0]) for c in v] for key, v in votes.items()]) if again else None,
    }  # fmt: skip
    if config.judge:
        found |= _second_opinion(config, records)
    made = Checked(**found, warnings=_warnings(found))
    if config.report:
        check_page(made, config).write(config.report)
    return made


def _second_opinion(config: CheckConfig, records: Sequence[Record]) -> dict[str, Any]:
    rules = read_principles(config.principles) if config.principles else ()
    judge = _Watched(Judge(config.judge, rules, max_cost=config.max_cost))
    rng = random.Random(config.seed)
    shown = rng.sample(list(records), min(config.sample, len(records)))
    said: list[tuple[int, int]] = []  # (the judge's, the file's) winner, on sides that are drawn
    try:
        for record in events.track(shown, "judge", unit="pairs"):
            sides = ("chosen", "rejected") if rng.random() < 0.5 else ("rejected", "chosen")
            winner = judge.compare(record["prompt"], record[sides[0]], record[sides[1]])
            if winner is not None:
                said.append((winner, sides.index("chosen")))
    finally:
        judge.judge.close()
    return {
        "judge_agrees": bootstrap([float(a == b) for a, b in said], seed=config.seed) if said else None,
        "judge_kappa": kappa(said) if said else None,
        "judge_consistent": judge.consistent,
    }


def _warnings(found: dict[str, Any]) -> tuple[str, ...]:
    said = []
    counts = {
        "same": "pairs whose answers are the same", "empty": "pairs with an empty part",
        "contradicting": "pairs that are chosen both ways", "repeated": "repeated pairs",
    }  # fmt: skip
    for name, text in counts.items():
        if found[name]:
            said.append(f"{found[name]} {text}")
    longer: Interval = found["longer"]
    if longer.low > 0.6 or longer.high < 0.4:
        word = "longer" if longer.mean > 0.5 else "shorter"
        said.append(f"the chosen answer is the {word} one in {max(longer.mean, 1 - longer.mean):.0%} of the pairs: "
                    "a model may learn length alone")  # fmt: skip
    if found["alpha"] is not None and found["alpha"] < 0.4:
        said.append(f"raters agree little more than by chance (alpha {found['alpha']:.2f})")
    return tuple(said)


def check_page(found: Checked, config: CheckConfig) -> Report:
    report = Report(f"Preferences in {Path(config.data).name}", f"{found.pairs:,} pairs on {found.prompts:,} prompts.")
    if found.warnings:
        report.section("Look at this", "\n".join(f"- {text}" for text in found.warnings))
    report.section("Figures").table(("what", "value"), check_rows(found))
    return report


def check_rows(found: Checked) -> list[tuple[str, str]]:
    names = {
        "same": "answers the same", "repeated": "repeated", "contradicting": "chosen both ways", "empty": "empty parts",
        "longer": "chosen is longer", "chosen_words": "words chosen", "rejected_words": "words rejected",
        "judged_again": "judged more than once", "agreement": "raters agree", "alpha": "Krippendorff's alpha",
        "judge_agrees": "judge agrees", "judge_kappa": "Cohen's kappa with the judge",
        "judge_consistent": "judge says the same in both orders",
    }  # fmt: skip
    values = ((text, getattr(found, name)) for name, text in names.items())
    return [(t, f"{v:.3g}" if isinstance(v, float) else str(v)) for t, v in values if v is not None]
