"""`prompt optimise`: instructions and examples searched by their score, no weights touched; hosted models too.

Instructions come from a small stock and, where asked for, from a model that is shown solved examples (Zhou et al. 2022,
arXiv:2211.01910); examples are drawn at random, several times (what they are matters as much as the words: Zhao et al.
2021). Successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943) spends the questions on the better half. The
winner meets the plain prompt on items that the search has not seen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ladderlm import events, store
from ladderlm.config import option
from ladderlm.data.records import split
from ladderlm.data.tables import parse_columns, read_table
from ladderlm.errors import ContextOverflow, UsageError
from ladderlm.evals.ask import Asker, Item, Prompt, first_prompt, items_of, labels_of, pick
from ladderlm.evals.helped import Helped, did_it_help
from ladderlm.evals.report import Report
from ladderlm.models.catalogue import DEFAULT_MODEL
from ladderlm.talk import prompting
from ladderlm.types import Conversation, Value

FIRST = 8  # items that every candidate is tried on


@dataclass(frozen=True, slots=True)
class OptimiseConfig(Value):
    """What to search a prompt for, with which model, and how long."""

    data: str = option(help="records: text+label, prompt+completion, messages or answers")
    model: str = option(
        DEFAULT_MODEL, "the model that is asked: a name, folder, base+adapter, or URL#model", short="-m"
    )
    out: str = option(
        "", "save the best prompt: a template's name (see: ladderlm prompts), or a .json file", short="-o"
    )
    held_out: str = option("", "records to judge the winner on; else a third of the data is kept apart")
    columns: tuple[str, ...] = option((), "field=column of a table, such as text=review,label=stars")
    skip_bad: bool = option(False, "leave out rows that cannot be used, instead of stopping")
    calls: int = option(1200, "most questions asked while searching")
    test: int = option(200, "most records that the winner is judged on")
    shots: int = option(8, "most solved examples in a prompt; 0: none")
    proposals: int = option(4, "instructions that a model proposes")
    proposer: str = option("", "the model that proposes them; default: the model itself")
    minutes: float = option(0.0, "time for the search; 0: as long as its calls last")
    max_tokens: int = option(64, "longest answer where answers are written")
    max_cost: float | None = option(None, "the most a hosted model may cost")
    report: str = option("", "a folder to write report.md and report.html to")
    seed: int = option(0, "seed of examples and order")
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class Optimised(Value):
    """The best prompt, whether it helped over the plain one on unseen items, and (prompt, score, items) tried."""

    prompt: Prompt
    plain: Prompt
    helped: Helped
    tried: tuple[tuple[str, float, int], ...]
    calls: int
    seconds: float
    cost: float
    saved: str = ""


def run(config: OptimiseConfig) -> Optimised:
    """Searches, judges, saves and reports."""
    columns = parse_columns(config.columns)
    records = read_table(config.data, columns).settled(config.skip_bad)
    if config.held_out:
        development, test = records, read_table(config.held_out, columns).settled(config.skip_bad)
    else:
        development, test = split(records, 1 / 3, config.seed)
    dev, held = items_of(development), items_of(test)[: config.test]
    if len(dev) < FIRST or len(held) < FIRST:
        raise UsageError(f"too few records: {len(dev)} to search on, {len(held)} to judge on", where=config.data,
                         cure=f"give at least {4 * FIRST}")  # fmt: skip
    labels = labels_of([*dev, *held])
    plain = first_prompt(records, labels)
    with Asker(config.model, labels, max_cost=config.max_cost, tokens=config.max_tokens) as asker:
        found = optimise(asker, plain, dev, held, config)
    if config.out:
        found = dataclasses.replace(found, saved=save(found, config.out))
    if config.report:
        page(found, config).write(config.report)
    return found


def optimise(
    asker: Asker, plain: Prompt, dev: Sequence[Item], held: Sequence[Item], config: OptimiseConfig
) -> Optimised:
    """The search on `dev`, then the winner against `plain` on `held`."""
    started, rng = time.monotonic(), random.Random(config.seed)
    shots, questions = _parted(dev, rng)
    search = _Search(asker, questions, config, started)
    stock = [plain, *_stock(plain, asker.labels)]
    stock += _proposed(asker, plain, shots, config, rng) if config.proposals else []
    best = search.halve(list(dict.fromkeys(stock)), keep=3)
    with_examples = [
        Prompt(p.template, p.system, pick(shots, count, rng, asker.labels))
        for p in best
        for count in sorted({2, config.shots // 2, config.shots})
        if 0 < count <= config.shots
        for _ in range(2)
    ]
    best = search.halve(list(dict.fromkeys([*best, *with_examples])), keep=3)
    before = asker.ask(plain, held, "judge")
    winner, after = plain, before
    for prompt in best:
        with contextlib.suppress(ContextOverflow):  # with the longest of these items
            winner, after = prompt, before if prompt == plain else asker.ask(prompt, held, "judge")
            break
    metric = "accuracy" if asker.labels else "F1 of words"
    helped = did_it_help(metric, [s.score for s in before], [s.score for s in after], seed=config.seed)
    seconds = time.monotonic() - started
    return Optimised(winner, plain, helped, search.told(), asker.calls, seconds, asker.cost)


class _Search:
    """Candidates' scores on the same items in the same order; the budget in calls, or time."""

    def __init__(self, asker: Asker, items: Sequence[Item], config: OptimiseConfig, started: float) -> None:
        self._asker, self._items = asker, items
        self._left = config.calls
        self._until = started + 60 * config.minutes if config.minutes else float("inf")
        self._scores: dict[Prompt, list[float]] = {}

    def halve(self, prompts: list[Prompt], keep: int) -> list[Prompt]:
        """The best `keep` by successive halving; each round asks twice as many items. Half the calls that are left."""
        count, budget = FIRST, self._left // 2
        while True:
            for prompt in prompts:
                known = self._scores.setdefault(prompt, [])
                new = self._items[len(known) : count]
                if len(new) > budget or time.monotonic() > self._until:
                    break
                try:
                    known += [said.score for said in self._asker.ask(prompt, new, "search")]
                except ContextOverflow:  # too long for this model: out of the search
                    known.clear()
                budget, self._left = budget - len(new), self._left - len(new)
            prompts = sorted((p for p in prompts if self._scores.get(p)), key=self._rank)
            spent = budget < len(prompts) or time.monotonic() > self._until or count >= len(self._items)
            if len(prompts) <= keep or spent:
                break
            prompts, count = prompts[: max(keep, len(prompts) // 2)], 2 * count
        if not prompts:
            raise UsageError("no call was left for a single prompt", where="calls", cure="raise --calls or --minutes")
        events.emit("search", f"best so far {self._mean(prompts[0]):.3f}: {prompts[0]}")
        return prompts[:keep]

    def _rank(self, prompt: Prompt) -> tuple[float, int]:
        """The best first; those that were tried on more items before those that left early; then the shorter one."""
        known = self._scores[prompt]
        return (-self._mean(prompt) * len(known) / (len(known) + 1), len(prompt.shots))

    def _mean(self, prompt: Prompt) -> float:
        known = self._scores[prompt]
        return sum(known) / len(known)

    def told(self) -> tuple[tuple[str, float, int], ...]:
        ordered = sorted((p for p in self._scores if self._scores[p]), key=self._rank)
        return tuple((str(p), self._mean(p), len(self._scores[p])) for p in ordered)


def _parted(dev: Sequence[Item], rng: random.Random) -> tuple[list[Item], list[Item]]:
    """(items to show, items to ask): a third and the rest."""
    drawn = rng.sample(list(dev), len(dev))
    return drawn[: len(drawn) // 3], drawn[len(drawn) // 3 :]


def _stock(plain: Prompt, labels: Sequence[str]) -> list[Prompt]:
    """Ways to ask that work for some model or other."""
    asks: tuple[str, ...]
    if not labels:
        asks = ("{text}\nAnswer briefly.", "{text}\nGive only the answer.", "Question: {text}\nAnswer:",
                "Answer as exactly as you can.\n\n{text}")  # fmt: skip
        systems = ("", "You answer precisely and say nothing else.")
    else:
        named, either = ", ".join(labels), " or ".join(labels)
        asks = (
            plain.template,
            'Text: "{text}"\n' + f"Is this {either}? Answer with one word.",
            "{text}\n\n" + f"Which fits best: {named}?",
            f"Classify the text as {either}.\n\n" + "{text}",
            "Input: {text}\n" + f"Label ({named}):",
        )
        systems = ("", f"You label texts. The labels are {named}. Answer with the label alone.")
    return [Prompt(ask, system) for ask in asks for system in systems]


def _proposed(
    asker: Asker, plain: Prompt, shots: Sequence[Item], config: OptimiseConfig, rng: random.Random
) -> list[Prompt]:
    """Instructions that a model guesses from solved examples."""
    found = []
    proposer = Asker(config.proposer, max_cost=config.max_cost) if config.proposer else asker
    try:
        for number in range(config.proposals):
            shown = pick(shots, 6, rng, asker.labels)
            pairs = "\n\n".join(f"Input: {item.text[:300]}\nOutput: {item.answer[:200]}" for item in shown)
            ask = (
                "Somebody was given one instruction and with it turned these inputs into these outputs:\n\n"
                f"{pairs}\n\nWrite the instruction, in one or two sentences, and nothing else."
            )
            said = proposer.write(Conversation.of(ask), 0.9 if number else 0.0, 80, config.seed + number)
            said = " ".join(said.split()).removeprefix("Instruction:").strip()
            if 8 <= len(said) <= 400 and "{text}" not in said:
                found.append(Prompt(f"{said}\n\n" + plain.template))
    finally:
        if proposer is not asker:
            asker.cost += proposer.cost
            proposer.close()
    return found


def save(found: Optimised, out: str) -> str:
    """Keeps a prompt as a template of the workspace, its examples written out, or as a .json file."""
    if out.endswith(".json"):
        store.write_json(Path(out), {"format": 1, **found.prompt.to_dict(), "score": found.helped.after.to_dict()})
        return out
    parts = [f"{found.prompt.ask(shot.text)}\n{shot.answer}" for shot in found.prompt.shots]
    before, _, after = found.prompt.template.partition("{text}")
    body = "".join(_literal(f"{part}\n\n") for part in parts) + _literal(before) + "{{ prompt }}" + _literal(after)
    prompting.save_template(prompting.Template(out, body, found.prompt.system))
    return out


def _literal(text: str) -> str:
    """Text that a template repeats as it is."""
    return text if not any(mark in text for mark in ("{{", "{%", "{#")) else "{{ " + repr(text) + " }}"


def page(found: Optimised, config: OptimiseConfig) -> Report:
    report = Report(f"A prompt for {Path(config.data).name} and {config.model}", str(found.helped))
    report.section("The prompt", f"`{found.prompt.template}`")
    if found.prompt.system:
        report.text(f"System: `{found.prompt.system}`")
    if found.prompt.shots:
        report.samples(("shown", "answer"), [(shot.text, shot.answer) for shot in found.prompt.shots])
    report.section("What was tried").table(("prompt", "score", "items"), found.tried)
    rows = [("calls", found.calls), ("seconds", found.seconds), ("money", found.cost)]
    report.section("Cost").table(("what", "how much"), rows)
    return report
