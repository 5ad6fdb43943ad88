"""A sweep of small pretrainings: how the loss on a text falls with size and tokens, and what a larger run gives.

Every pair of a size and a number of tokens is a run of its own, since a learning rate that has not come down to zero
tells little. Runs that are finished are not run again, and one that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladderlm import events, store
from ladderlm.data.shards import is_shards
from ladderlm.errors import FormatError, NotFound, UsageError
from ladderlm.evals.report import Report
from ladderlm.models.reference import open_model
from ladderlm.train import pretrain
from ladderlm.train.causal import Causal
from ladderlm.train.checkpoint import discard_checkpoints
from ladderlm.train.corpus import Tokens, text_nats
from ladderlm.train.derive import LR, MUON_LR, RATED, WIDTH
from ladderlm.train.distributed import ALONE
from ladderlm.train.law import Law, Point, Prediction, fit_law, predict
from ladderlm.train.result import check_finished, destination, use_threads
from ladderlm.train.settings import PretrainConfig, ScalingConfig
from ladderlm.types import Record, Run, Value

FORMAT = 1
HEAD = 32  # width of a head of small models
UNITS = {"": 1, "k": 1_000, "M": 1_000_000, "G": 1_000_000_000, "B": 1_000_000_000}
LINES = 6  # of equal work in the drawing


@dataclass(frozen=True, slots=True)
class Scaling(Value):
    """What a sweep told. `folder` holds it; losses are bits per byte of unseen text."""

    folder: str
    points: tuple[Point, ...]
    law: Law
    predictions: tuple[Prediction, ...] = ()


@dataclass(frozen=True, slots=True)
class Setup:
    """What all runs of a sweep share."""

    config: PretrainConfig
    objective: Causal
    tokens: Tokens
    held: list[Record]
    folder: Path

    def settings(self, size: str, tokens: int) -> PretrainConfig:
        """One run's. The learning rates fall with the root of the width, as `--depth` has them."""
        layers, dim = shape(size)
        heads = next(h for h in range(max(1, dim // HEAD), 0, -1) if dim % (2 * h) == 0)
        rate = math.sqrt(RATED / dim)
        return dataclasses.replace(
            self.config, layers=layers, dim=dim, heads=heads, lr=LR * rate, muon_lr=MUON_LR * rate,
            steps=max(1, round(tokens / self.config.batch_tokens)),
        )  # fmt: skip

    def parameters(self, size: str) -> int:
        return self.objective.architecture(self.settings(size, 1), self.objective.tokenizer).parameters


def run(config: ScalingConfig) -> Scaling:
    """Runs what is missing of the sweep, fits the law, foretells, and writes the report into the folder.

    Raises UsageError where the runs do not tell the law apart, Cancelled when stopped: the same command goes on.
    """
    sizes, tokens = config.sizes.split(","), [number(t) for t in config.tokens.split(",")]
    for size in sizes:
        shape(size)
    targets = [target(text) for text in config.predict.split(",") if text]
    if not (config.data or config.points or config.runs):
        raise UsageError("no data to train on, and no runs to read", cure="name a file or folder, or --points FILE")
    folder = store.make_dir(destination(config.out))
    setup, points = None, []
    if config.data:
        use_threads(config.threads)
        setup = set_up(config, folder)
        points = sweep(setup, [(size, count) for size in sizes for count in tokens])
    points += [*(read_points(Path(config.points)) if config.points else []), *map(of_run, config.runs)]
    law = fit_law(points)
    asked = [(size if isinstance(size, int) else _needs(setup).parameters(size), count) for size, count in targets]
    predictions = predict(points, asked, config.seed) if asked else []
    found = Scaling(str(folder.resolve()), tuple(points), law, tuple(predictions))
    store.write_json(folder / "scaling.json", {"format": FORMAT, **found.to_dict()})
    report(found).write(folder)
    events.emit("scaling", f"{len(points)} runs; report: {folder / 'report.md'}")
    return found


def _needs(setup: Setup | None) -> Setup:
    if setup is None:
        raise UsageError("a shape says nothing without a vocabulary", where="predict", cure="give parameters: 50M:1G")
    return setup


# --- What is asked ------------------------------------------------------------------------------------------------


def number(text: str) -> int:
    """250k, 1.5M, 2G. UsageError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kMGB]?)", text.strip())
    count = round(float(found[1]) * UNITS[found[2]]) if found else 0
    if count < 1:
        raise UsageError("not a number of tokens or parameters", where=repr(text), cure="such as 250k, 1.5M, 2G")
    return count


def shape(size: str) -> tuple[int, int]:
    """(layers, width) of LAYERSxWIDTH or dN."""
    if found := re.fullmatch(r"d([1-9]\d{0,2})", size.strip()):
        return int(found[1]), WIDTH * int(found[1])
    found = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,5})", size.strip())
    if not found or int(found[2]) % 2:
        raise UsageError("not a size", where=repr(size), cure="LAYERSxWIDTH with an even width, or dN: 4x96, d4")
    return int(found[1]), int(found[2])


def target(text: str) -> tuple[str | int, int]:
    """(size or parameters, tokens) of SIZE:TOKENS."""
    size, colon, tokens = text.partition(":")
    if not colon:
        raise UsageError("not a run to foretell", where=repr(text), cure="SIZE:TOKENS, such as 4x192:8M or 50M:1G")
    if re.fullmatch(r"[\d.]+[kMGB]?", size.strip()):
        return number(size), number(tokens)
    shape(size)
    return size.strip(), number(tokens)


# --- The sweep ----------------------------------------------------------------------------------------------------


def set_up(config: ScalingConfig, folder: Path) -> Setup:
    """Data, tokenizer and settings of the sweep in `folder`; UsageError where it was begun with others."""
    names = ("data", "held_out", "vocab_size", "seq_len", "batch_tokens", "seed")
    shared = {name: getattr(config, name) for name in names}
    begun = {**shared, "tokenizer": config.tokenizer}
    path, kept = folder / "sweep.json", folder / "tokenizer.json"
    if path.exists() and (before := store.read_json(path).get("settings")) != begun:
        changed = ", ".join(name for name in begun if not before or before.get(name) != begun[name])
        raise UsageError(f"the sweep was begun with another {changed}", where=str(folder), cure="another --out")
    given = str(kept) if kept.exists() else config.tokenizer
    base = PretrainConfig(**shared, tokenizer=given, threads=config.threads, steps=1)
    tokens, tokenizer, held, _ = pretrain.load(base, Causal, None, ALONE)
    if not is_shards(config.data):
        with store.atomic_file(kept) as file:
            file.write(tokenizer.to_json())
    store.write_json(path, {"format": FORMAT, "settings": begun})
    return Setup(base, Causal(base, tokenizer), tokens, held, folder)


def sweep(setup: Setup, pairs: Sequence[tuple[str, int]]) -> list[Point]:
    """The runs of `pairs` (size, tokens), the small first; those that are in points.jsonl are taken from there."""
    done = {point.name: point for point in read_points(setup.folder / "points.jsonl")}
    named = {f"{size.strip()}-{tokens}": (size, tokens) for size, tokens in pairs}
    missing = [name for name in named if name not in done]
    missing.sort(key=lambda name: setup.parameters(named[name][0]) * named[name][1])
    for i, name in enumerate(missing, 1):
        events.emit("scaling", f"run {i} of {len(missing)}: {name}")
        done[name] = measured(setup, name, *named[name])
        store.append_jsonl(setup.folder / "points.jsonl", done[name].to_dict())
    return [done[name] for name in named]


def measured(setup: Setup, name: str, size: str, tokens: int) -> Point:
    """A run and its loss; the run lies in runs/NAME of the folder, and goes on if it was begun."""
    config = setup.settings(size, tokens)
    path = setup.folder / "runs" / name
    run_ = Run(path) if (path / "config.json").exists() else store.new_run(
        "scaling", {"settings": config.to_dict()}, path=path
    )  # fmt: skip
    objective = Causal(config, setup.objective.tokenizer)
    model = objective.build(objective.architecture(config, objective.tokenizer))
    fitted = pretrain.learn(model, objective, setup.tokens, setup.held, config, run_, ALONE)
    check_finished(run_, fitted, "scaling")
    ids = objective.tokenizer.encode_batch([r["text"] for r in setup.held])
    size_bytes = sum(len(r["text"].encode()) for r in setup.held)
    loss = sum(text_nats(model, ids, objective.start)) / size_bytes / math.log(2)
    store.write_json(run_.path / "result.json", {"format": FORMAT, "loss": loss, **fitted.to_dict()})
    discard_checkpoints(run_)
    return Point(model.arch.parameters, fitted.tokens, loss, name)


def read_points(path: Path) -> list[Point]:
    """The runs in a file of JSON lines; none if there is no file of that name in a sweep's folder."""
    if not path.exists():
        if path.name == "points.jsonl":
            return []
        raise NotFound("no such file", where=str(path))
    wanted = {f.name for f in dataclasses.fields(Point)}
    out = []
    for number_, row in enumerate(store.read_jsonl(path), 1):
        try:
            point = Point.from_dict({k: v for k, v in row.items() if k in wanted})
            if min(point.parameters, point.tokens, point.loss) > 0:
                out.append(point)
                continue
        except (FormatError, TypeError, AttributeError):
            pass
        raise FormatError("not a run", where=f"{path}:{number_}", cure="needs parameters, tokens and loss, above 0")
    return out


def of_run(name: str) -> Point:
    """A finished pretraining of the workspace. NotFound, UsageError where it told no bits per byte."""
    run_ = store.open_run(name)
    result: Mapping[str, Any] = store.read_json(run_.path / "result.json")
    loss = result.get("scores", {}).get("bits_per_byte")
    if not loss:
        raise UsageError("its result has no bits per byte", where=run_.id, cure="name a pretraining on next tokens")
    return Point(open_model(result["model"]).arch.parameters, result["tokens"], loss, run_.id)


# --- The report ---------------------------------------------------------------------------------------------------


def report(found: Scaling) -> Report:
    law = found.law
    page = Report(
        "Scaling", f"Bits per byte of unseen text = {law.e:.4g} + {law.a:.4g} / N^{law.alpha:.3f} + "
        f"{law.b:.4g} / D^{law.beta:.3f}, of N parameters and D tokens.",
    )  # fmt: skip
    rows = [
        (p.name, p.parameters, p.tokens, 6.0 * p.parameters * p.tokens, p.loss, law.loss(p.parameters, p.tokens),
         f"{law.loss(p.parameters, p.tokens) / p.loss - 1:+.2%}") for p in found.points
    ]  # fmt: skip
    columns = ("run", "parameters", "tokens", "operations (6 N D)", "loss", "of the law", "error")
    page.section("Runs").table(columns, [(*r[:3], f"{r[3]:.2e}", *(f"{v:.4f}" for v in r[4:6]), r[6]) for r in rows])
    if found.predictions:
        told = [(p.parameters, p.tokens, f"{p.loss:.4f}", f"{p.low:.4f} to {p.high:.4f}") for p in found.predictions]
        page.section("Foretold").table(("parameters", "tokens", "loss", "95 % interval"), told)
    lines, dots = equal_work(found)
    page.section("Equal work", "Each line is what the law says of models of different size that take the same number "
                 "of operations; dots are the runs that took about as many.")  # fmt: skip
    page.curve("loss at equal work", lines, "parameters", "bits per byte", dots, log=True)
    page.table(
        ("operations", "best parameters", "best tokens", "loss"),
        [(f"{c:.1e}", *(round(v) for v in law.best(c)), f"{law.loss(*law.best(c)):.4f}") for c in _works(found, 1000)],
    )
    return page


Drawn = dict[str, list[tuple[float, float]]]


def equal_work(found: Scaling) -> tuple[Drawn, Drawn]:
    """(the law's lines, the runs beside them), by the work that they take, to the nearest power of two."""
    groups = defaultdict(list)
    for p in found.points:
        groups[round(math.log2(6.0 * p.parameters * p.tokens))].append(p)
    chosen = sorted(sorted(groups, key=lambda g: -len(groups[g]))[:LINES])
    least, most = (f(p.parameters for p in found.points) for f in (min, max))
    sizes = [least / 2 * (4 * most / least) ** (i / 30) for i in range(31)]
    lines: Drawn = {f"{2.0**g:.1e}": [(n, found.law.loss(n, 2.0**g / 6 / n)) for n in sizes] for g in chosen}
    return lines, {f"{2.0**g:.1e}": [(p.parameters, p.loss) for p in groups[g]] for g in chosen}


def _works(found: Scaling, reach: float) -> list[float]:
    """Powers of ten from the largest run's work up to `reach` times that."""
    most = max(6.0 * p.parameters * p.tokens for p in found.points)
    first = math.ceil(math.log10(most))
    return [10.0**p for p in range(first, first + round(math.log10(reach)) + 1)]
