"""`bench`: how fast a model runs here, against what the machine can do and against other programs.

Two doors are measured. The backend's: decode and prefill without sampling, what `llama-bench` measures too, and what
ratios to it are of. And the engine's, which a user stands at: time to the first token and answers, with the scheduler
and the sampler in between; what ratios to a server's URL are of.

All systems do one piece of work after another before the next piece (A B A B), `rounds` times after one that is not
counted; ratios are of each round, so that a disturbed one disturbs both. Medians, with the lowest and the highest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ladderlm import engine, events
from ladderlm.config import option
from ladderlm.engine import measure
from ladderlm.engine.engine import Engine
from ladderlm.errors import MissingExtra, UsageError
from ladderlm.evals import fresh
from ladderlm.evals.peers import PEERS, open_peer
from ladderlm.evals.work import Ids, System, Work, fresh_prompts, through_the_door, works
from ladderlm.models import ModelFiles, open_model
from ladderlm.models.catalogue import DEFAULT_MODEL
from ladderlm.talk.device import DEVICE, KV_CACHE_DTYPE, torch_name
from ladderlm.types import KVType, Sampling, Value

if TYPE_CHECKING:
    from ladderlm.engine.backend import Backend
    from ladderlm.engine.ceiling import Ceiling, Meter
    from ladderlm.nn.ceiling import Meter as TorchMeter


@dataclass(frozen=True, slots=True)
class BenchConfig:
    model: str = option(DEFAULT_MODEL, "a model: name, folder or file.gguf", positional=True)
    against: tuple[str, ...] = option(
        (), "another program on the same file: " + ", ".join(PEERS) + ", or a server's URL"
    )
    device: str = option("auto", DEVICE)
    kv_cache_dtype: KVType = option("auto", KV_CACHE_DTYPE)
    threads: int = option(0, "threads of every system (0: the cores, at most 8)")
    rounds: int = option(5, "how often everything is measured; one round more comes first and does not count")
    seconds: int = option(0, "begin no further round after so many seconds, if one counts (0: measure all rounds)")
    tokens: int = option(64, "tokens that each sequence writes")
    only: tuple[str, ...] = option((), "measure only work whose name begins so, such as decode or prefill_512")
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class Figure(Value):
    """The median of the rounds, in `unit`, and the lowest and the highest."""

    unit: str
    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class SystemResult(Value):
    """What one system did. `ratios`: how many times faster LadderLM was at the same work; its own are empty.

    `shares`: of the memory bandwidth (decode: the file's weights, and the keys and values, over the time) and of the
    arithmetic peak (prefill) measured in the same round. A share above 1 means that the weights stay in a cache, or
    that integers were faster than the peak's kind of number.
    """

    name: str
    about: Mapping[str, Any]
    figures: Mapping[str, Figure]
    ratios: Mapping[str, Figure] = dataclasses.field(default_factory=dict)
    shares: Mapping[str, Figure] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BenchResult(Value):
    """`instructions`: those of the kernels, or torch's device; `ceiling`: what the machine can do; `fresh`: LadderLM in
    a new process; `left_out`: work the model is too short for, and why."""

    model: str
    path: str
    parameters: int
    weight_bytes: int
    threads: int
    rounds: int
    instructions: str
    systems: tuple[SystemResult, ...]
    ceiling: Mapping[str, Any]
    fresh: fresh.Fresh
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)


class LadderLM:
    """Ours, on the CPU or (`device`) on one of torch's. The backend is measured while the engine that owns it has
    nothing to do. `instructions` says what it runs on, `meter` measures the ceilings of that."""

    name = "ladderlm"
    warms_up = False

    def __init__(self, files: ModelFiles, threads: int, device: str | None = None, kv_dtype: KVType = "auto") -> None:
        engine.check(files)
        self._arch = files.arch
        self.backend: Backend
        self.meter: Meter | TorchMeter
        if device is None:
            from ladderlm.engine import ceiling, simd  # numba, which `--help` must not wait for

            self.backend = engine.on_cpu(files.arch, files.weights, threads=threads, key=files.hash, kv_dtype=kv_dtype)
            self._engine = Engine(self.backend)
            self.meter, self.instructions = ceiling.Meter(threads), simd.ISA
        else:
            self.backend, self._engine, self.meter, self.instructions = _on_torch(files, threads, device)
        self._random = np.random.default_rng()
        self.about: dict[str, Any] = {"kv_bytes_per_position": measure.cache_bytes(self.backend)}

    def measure(self, work: Work) -> float | None:
        prompts = fresh_prompts(self._random, self._arch.vocab_size, work)
        if work.kind == "prefill":
            return measure.prefill(self.backend, prompts[0])
        if work.kind == "decode":
            answers = [measure.draw(self._random, self._arch, work.tokens) for _ in prompts]
            return measure.decode(self.backend, prompts, answers)
        return through_the_door(self._ask, prompts, work)

    def _ask(self, ids: Ids, tokens: int) -> Iterator[int]:
        sampling = Sampling(temperature=0, max_tokens=tokens, min_tokens=tokens)
        for delta in self._engine.generate(ids, sampling):
            yield len(delta.tokens)

    def close(self) -> None:
        self.meter.close()
        self._engine.close()


def _on_torch(files: ModelFiles, threads: int, device: str) -> tuple[Backend, Engine, TorchMeter, str]:
    """The parts of a LadderLM on a torch device, as `nn.load_engine` makes them."""
    try:
        import torch

        from ladderlm.nn.backend import TorchBackend
        from ladderlm.nn.ceiling import Meter
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "torch", "train") from None
    torch.set_num_threads(threads)
    backend = TorchBackend(files.arch, files.weights, device=device)
    name = torch.cuda.get_device_name(backend.device) if backend.device.type == "cuda" else device
    says = f"torch {torch.__version__} on {name}, {backend.dtype}".replace("torch.", "")
    made = Engine(backend, kv_bytes=backend.kv_bytes, speculate=False)
    return backend, made, Meter(backend.device, backend.dtype), says


class _Round(NamedTuple):
    ceiling: Ceiling
    figures: Mapping[tuple[str, str], float]  # (system, work)


def run(config: BenchConfig) -> BenchResult:
    """Measures `config.model`, and each of `config.against` on the same file."""
    if config.rounds < 1 or config.tokens < 1 or config.threads < 0:
        raise UsageError("rounds and tokens must be at least 1", where=f"{config.rounds}, {config.tokens}")
    device = torch_name(config.device)
    if device is not None and config.kv_cache_dtype != "auto":
        raise UsageError("torch keeps keys and values as it computes", where=config.kv_cache_dtype, cure="auto")
    files = open_model(config.model)
    threads = config.threads or min(os.cpu_count() or 1, 8)
    chosen, left_out = _chosen(config, files)
    with contextlib.ExitStack() as stack:
        mine = LadderLM(files, threads, device, config.kv_cache_dtype)
        stack.callback(mine.close)
        systems: list[System] = [mine]
        for name in config.against:
            systems.append(open_peer(name, files, threads))
            stack.callback(systems[-1].close)
        events.emit("bench", "a fresh process")
        alone = fresh.start(config.model, threads, device=config.device)
        rounds = list(_rounds(config, chosen, systems, mine.meter))[1:]
        results = [_result(system, rounds, chosen, files) for system in systems]
    best = {
        "read_bytes_per_second": statistics.median(r.ceiling.read_bytes for r in rounds),
        "operations_per_second": statistics.median(r.ceiling.operations for r in rounds),
        "integer_operations_per_second": statistics.median(r.ceiling.integer_operations for r in rounds),
    }
    return BenchResult(
        config.model, str(files.path), files.arch.parameters, measure.weight_bytes(files.arch, files.weights), threads,
        len(rounds), mine.instructions, tuple(results), best, alone, left_out,
    )  # fmt: skip


def _chosen(config: BenchConfig, files: ModelFiles) -> tuple[list[Work], dict[str, str]]:
    """What is measured of this model, and what is not."""
    named = [w for w in works(config.tokens) if not config.only or w.name.startswith(config.only)]
    if not named:
        known = ", ".join(w.name for w in works(config.tokens))
        raise UsageError("no such work", where=", ".join(config.only), cure=f"known: {known}")
    context = files.arch.context_length
    fits = [w for w in named if w.length <= context]
    return fits, {w.name: f"{w.length} positions; the context has {context}" for w in named if w.length > context}


def _rounds(
    config: BenchConfig, chosen: Sequence[Work], systems: Sequence[System], meter: Meter | TorchMeter
) -> Iterator[_Round]:
    """The round that does not count, without those that warm up every time by themselves, and those that do."""
    began = time.monotonic()
    for number in range(config.rounds + 1):
        if number > 1 and config.seconds and time.monotonic() - began > config.seconds:
            return
        taking_part = [s for s in systems if number or not s.warms_up]
        ceiling, figures = meter.measure(), dict[tuple[str, str], float]()
        steps = [(work, system) for work in chosen for system in taking_part]
        for work, system in events.track(steps, f"bench, round {number} of {config.rounds}", unit="measurements"):
            if (found := system.measure(work)) is not None:
                figures[system.name, work.name] = found
        yield _Round(ceiling, figures)


def _most(ceiling: Ceiling, work: Work, files: ModelFiles) -> float:
    """What bounds the work: reading for a single sequence, else the arithmetic of the model's weights."""
    if work.kind == "decode":
        return ceiling.read_bytes
    held = files.weights.blocks("model.layers.0.mlp.up_proj.weight")
    quantised = held is not None and held.kind not in ("F32", "F16", "BF16")
    return ceiling.integer_operations if quantised and ceiling.integer_operations else ceiling.operations


def _result(system: System, rounds: Sequence[_Round], chosen: Sequence[Work], files: ModelFiles) -> SystemResult:
    figures, ratios, shares = {}, {}, {}
    for work in chosen:
        mine = [r.figures.get((LadderLM.name, work.name), 0.0) for r in rounds]
        found = [r.figures[system.name, work.name] for r in rounds if (system.name, work.name) in r.figures]
        if len(found) < len(rounds):
            continue
        figures[work.name] = _figure(work.unit, found)
        if system.name != LadderLM.name:
            pairs = zip(mine, found, strict=True)
            ratios[work.name] = _figure("x", [b / a if work.unit == "s" else a / b for a, b in pairs])
        if needed := _needed(work, files, system.about):
            most = [_most(r.ceiling, work, files) for r in rounds]
            shares[work.name] = _figure("", [needed * a / b for a, b in zip(found, most, strict=True)])
    return SystemResult(system.name, system.about, figures, ratios, shares)


def _needed(work: Work, files: ModelFiles, about: Mapping[str, Any]) -> float:
    """What a token costs at least: bytes read (one sequence's decode) or operations (prefill); 0 where neither says
    much or the system does not tell."""
    if work.kind == "prefill":
        return measure.prefill_operations(files.arch, work.prompt) / work.prompt
    if work.kind == "decode" and work.sequences == 1 and "kv_bytes_per_position" in about:
        cached = about["kv_bytes_per_position"] * (work.prompt + work.tokens / 2)
        return float(measure.weight_bytes(files.arch, files.weights) + cached)
    return 0.0


def _figure(unit: str, values: Sequence[float]) -> Figure:
    return Figure(unit, statistics.median(values), min(values), max(values))


def rows(result: BenchResult) -> list[tuple[str, ...]]:
    """A table: a line for each piece of work; of each peer its figure and the ratio."""
    mine, *peers = result.systems
    says = {work.name: work.says for work in works(1)}
    lines = []
    for name, found in mine.figures.items():
        share = f"{100 * mine.shares[name].median:.0f} %" if name in mine.shares else ""
        line = [says[name], _shown(found), share]
        for peer in peers:
            there = name in peer.figures
            line += [_shown(peer.figures[name]) if there else "", f"{peer.ratios[name].median:.2f}" if there else ""]
        lines.append(tuple(line))
    return lines


def _shown(figure: Figure) -> str:
    return f"{figure.median:,.3f} {figure.unit}" if figure.unit == "s" else f"{figure.median:,.1f} {figure.unit}"
