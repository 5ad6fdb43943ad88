"""The order of things: which stage runs when, from what, and under which name its result is kept."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladderlm import config as settings
from ladderlm import events, store
from ladderlm.apps.quickstart import install
from ladderlm.apps.quickstart.ledger import Ledger
from ladderlm.apps.quickstart.server import serving
from ladderlm.config import option
from ladderlm.errors import NotFound
from ladderlm.models.catalogue import DEFAULT_MODEL
from ladderlm.types import Run, Value

TUNED = "quickstart-lora"
RUNGS = ("prompt", "finetune", "build")
Found = dict[str, dict[str, Any]]
Show = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class QuickstartConfig(Value):
    """What to climb, on what."""

    only: str = option("", "climb one rung", choices=RUNGS)
    serve: bool = option(True, "serve the chat page meanwhile; --no-serve runs the rungs and ends")
    port: int = option(8080, "where the page is served; another port is taken if it is in use")
    data: Path | None = option(None, "class records to fine-tune on, instead of the built-in task")
    corpus: Path | None = option(None, "a file or folder to build from, instead of Python's standard library")
    recipe: Path | None = option(None, "a TOML file like recipes/tiny.toml, with a table for each step")
    out: Path | None = option(None, "the run folder (default: runs/quickstart in the workspace)")
    fresh: bool = option(False, "start over instead of continuing an earlier quickstart")
    seed: int = option(0, "the seed of everything drawn")


@dataclass(frozen=True, slots=True)
class Climbed:
    """What came of it: the run folder, its page, and each stage's results."""

    run: Run
    report: Path
    found: Found


def tiny_recipe() -> Path:
    """recipes/tiny.toml: beside the package when installed, at the root of a clone."""
    here = Path(__file__).resolve()
    for root in (here.parents[2], here.parents[4]):
        if (path := root / "recipes" / "tiny.toml").exists():
            return path
    raise NotFound("recipes/tiny.toml is not there", cure="reinstall ladderlm, or give --recipe FILE")


def run(config: QuickstartConfig, show: Show = lambda stage, results: None) -> Climbed:
    """Climbs; `show(stage, results)` is told each finding as it comes. An interrupted climb continues."""
    folder = config.out or store.runs_dir() / "quickstart"
    if config.fresh and (folder / "ledger.json").exists():
        folder.rename(folder.with_name(f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}"))
    work = folder if (folder / "config.json").exists() else store.new_run("quickstart", {}, path=folder).path
    store.write_json(
        work / "config.json", {"format": 1, "kind": "quickstart", "created": time.time(), **config.to_dict()}
    )
    with store.lock(work / "ledger.json", timeout=1):
        climb = Climb(config, work, show)
        wanted = (config.only,) if config.only else RUNGS
        with contextlib.ExitStack() as stack:
            climb.pull()
            if config.serve:
                install.ensure("serve")
                url = stack.enter_context(serving(DEFAULT_MODEL, config.port, work / "server.log"))
                events.emit("quickstart", f"chat at {url} (next-token tables and comparisons are there too)")
            for rung in wanted:
                getattr(climb, rung)()
            page = climb.report()
            show("report", {"page": str(page)})
            if config.serve:
                events.emit("quickstart", f"still serving at {url}; Ctrl-C ends")
                _until_interrupted()
    return Climbed(Run(work), page, climb.found)


def _until_interrupted() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)


class Climb:
    """One climb: the stages of each rung, every one of them done at most once per run folder and settings."""

    def __init__(self, config: QuickstartConfig, work: Path, show: Show) -> None:
        self.config, self.work, self.show = config, work, show
        self.recipe = config.recipe or tiny_recipe()
        self.ledger = Ledger(work / "ledger.json")
        self.found: Found = {}
        self.table = settings.read_toml(self.recipe)

    def stage(self, name: str, work: Callable[[], dict[str, Any]], **depends: Any) -> dict[str, Any]:
        """Runs a stage once for what it `depends` on (plus the seed)."""
        marks = {k: str(v) if isinstance(v, Path) else v for k, v in depends.items()} | {"seed": self.config.seed}
        self.found[name] = self.ledger.run(name, marks, work)
        self.show(name, self.found[name])
        return self.found[name]

    def pull(self) -> None:
        from ladderlm.models import catalogue

        catalogue.pull(DEFAULT_MODEL)

    def prompt(self) -> None:
        from ladderlm.apps.quickstart import prompt

        self.stage("prompt", lambda: prompt.run(DEFAULT_MODEL))

    def finetune(self) -> None:
        install.ensure("eval", "train")
        from ladderlm.apps.quickstart import finetune

        seed, table = self.config.seed, self.table["finetune"]
        task = finetune.make_task(self.config.data, seed)
        before = self.stage("before", lambda: finetune.before(DEFAULT_MODEL, task, seed), data=self.config.data)

        tune = functools.partial(finetune.tune, task, self.recipe, self.work, TUNED, seed)
        tuned = self.stage("tuned", tune, data=self.config.data, table=table)
        after = functools.partial(finetune.after, tuned["model"], task, before, seed)
        self.stage("after", after, data=self.config.data, table=table, model=tuned["run"])

    def build(self) -> None:
        install.ensure("eval", "train")
        from ladderlm.apps.quickstart import build

        seed, corpus = self.config.seed, self.config.corpus
        out = store.make_dir(self.work / "data")
        self.stage("corpus", lambda: build.corpus(corpus, out, seed), corpus=corpus)
        self.stage("instructions", lambda: build.instructions(out, seed))
        models: dict[str, str] = {}
        steps = {"pretrained": build.pretrain, "instructed": build.instruct, "aligned": build.align}
        for name, step in steps.items():
            made = self.stage(
                name,
                functools.partial(step, self.recipe, out, dict(models), seed),
                corpus=corpus, table={k: self.table[k] for k in ("pretrain", "sft", "align")},
            )  # fmt: skip
            models[{"pretrained": "base", "instructed": "tuned"}.get(name, name)] = made["model"]
        self.stage("bits", lambda: build.bits(models["base"], out), model=models["base"], corpus=corpus)
        self.stage("compared", lambda: build.compare(models, out, seed), corpus=corpus, table=self.table)

    def report(self) -> Path:
        from ladderlm.apps.quickstart import report

        known = {name: found for name in self.ledger.seconds() if (found := self.ledger.results(name)) is not None}
        return report.write(Run(self.work), known, self.ledger.seconds())
