"""The settings of the training commands, apart from the code that needs torch: so that --help is quick."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from ladderlm.config import option
from ladderlm.errors import UsageError, nearest
from ladderlm.models.arch import Architecture
from ladderlm.models.fetch import DEFAULT_MODEL
from ladderlm.types import Value

METHODS = ("lora", "rslora", "dora", "qlora", "ia3", "prompt", "prefix", "head", "last", "full")
LORAS, SOFT = METHODS[:4], METHODS[5:7]
WEIGHTS = METHODS[7:]  # which train the model's own weights
# Usual learning rates: that of lora or full times this.
RATES = {"ia3": 10.0, "prompt": 20.0, "prefix": 30.0, "head": 10.0}
SCHEDULES = ("wsd", "cosine")
PRECISIONS = ("auto", "fp32", "bf16", "int8")
OBJECTIVES = ("causal", "fim", "mlm", "mlm+nsp", "spans")
DEVICES = ("cpu", "cuda")
PARALLEL = ("ddp", "fsdp")
PREFERENCES = ("dpo", "ipo", "kto", "orpo", "simpo")
ALIGNMENTS = (*PREFERENCES, "reward", "grpo", "ppo", "best-of-n", "distil")
# What weighs against moving away, where nothing is said: a loss's beta, or the price of the divergence in RL.
BETAS = {"simpo": 2.0, "grpo": 0.02, "ppo": 0.05}


@dataclass(frozen=True, slots=True)
class LoopConfig(Value):
    """`steps`, or `minutes`: then the steps are counted anew until the learning rate begins to fall.

    Schedule "wsd": the learning rate rises over `warmup` steps, holds, and falls to zero over the last `cooldown` share
    of all steps; "cosine" falls from the warmup on. `accumulate` batches make a step, fewer in the first `batch_ramp`
    steps. `clip`: the largest gradient norm (0: no clipping). `ema`: decay of a moving average of the weights, which is
    then what is measured and kept (0: none); with `best` the weights of the lowest held-out loss are kept instead of
    the last ones. `precision` is that of products, weights stay fp32; bf16 and int8 need hardware with them.

    A checkpoint is written every `checkpoint_minutes`, or `checkpoint_steps` if those are set; `keep` of them stay. A
    loss or gradient that is not finite, or with `spike` a loss that lies as many deviations above the last ones, goes
    back to the last checkpoint and past the batches that led there, at most `rollbacks` times.
    """

    steps: int = 0
    minutes: float = 0.0
    accumulate: int = 1
    clip: float = 1.0
    warmup: int = 10
    cooldown: float = 0.5
    schedule: str = "wsd"
    batch_ramp: int = 0
    ema: float = 0.0
    precision: str = "fp32"
    best: bool = False
    tensorboard: bool = False
    evaluate_every: int = 0
    sample_every: int = 0
    checkpoint_minutes: float = 5.0
    checkpoint_steps: int = 0
    keep: int = 2
    spike: float = 0.0
    rollbacks: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UsageError(f"unknown schedule {self.schedule!r}", cure=nearest(self.schedule, SCHEDULES))
        if self.keep < 1 or self.spike < 0 or self.rollbacks < 0 or not 0 <= self.ema < 1 or self.batch_ramp < 0:
            raise UsageError("keep >= 1, spike >= 0, rollbacks >= 0, 0 <= ema < 1, batch_ramp >= 0", where=str(self))
        if (self.steps > 0) == (self.minutes > 0):
            raise UsageError("give steps or minutes", where=f"steps={self.steps}, minutes={self.minutes}")
        if self.accumulate < 1 or not 0 <= self.cooldown <= 1 or self.warmup < 0 or self.clip < 0:
            raise UsageError("accumulate >= 1, 0 <= cooldown <= 1, warmup >= 0, clip >= 0", where=str(self))


@dataclass(frozen=True, slots=True)
class PretrainConfig(Value):
    """What to pretrain on what, and how. Sizes default to what a laptop trains in minutes."""

    data: str = option("", "text: .jsonl, .txt, a folder, python:docs, python:sources, or shards", positional=True)
    out: str = option("tiny", "name or path of the model folder", short="-o")
    model: str = option(
        "", "go on from this model, with its tokenizer and shape, not from random weights", short="--from"
    )
    held_out: str = option("", "text to measure on; else a twentieth of the data is kept apart")
    general: str = option("", "with --from: unseen text of other kinds, to tell what the model forgets")
    objective: str = option("", "what to learn; default: next tokens, or what --from's kind of model does",
                            choices=("", *OBJECTIVES))  # fmt: skip
    tokenizer: str = option("", "a tokenizer.json; else one is trained on the data")
    vocab_size: int = option(4096, "tokens of the tokenizer to train")
    depth: int = option(0, "derive sizes, batch, steps and rates from this many layers: width 64 a layer, "
                           "20 tokens a parameter")  # fmt: skip
    layers: int = option(4, "transformer layers")
    dim: int = option(192, "width of the residual stream")
    heads: int = option(3, "attention heads")
    kv_heads: int = option(0, "key/value heads; 0: as many as heads")
    hidden: int = option(0, "width of the feed-forward part; 0: 8/3 of dim")
    seq_len: int = option(256, "tokens in a window, and the model's context")
    batch_tokens: int = option(2048, "tokens in an optimiser step")
    micro_tokens: int = option(4096, "most tokens in one forward pass")
    batch_ramp: int = option(0, "steps over which the batch grows from one forward pass to batch_tokens")
    packing: str = option("windows", "windows cut anywhere, or best-fit rows of whole documents; causal only",
                          choices=("windows", "best-fit"))  # fmt: skip
    length_ramp: int = option(0, "steps over which windows grow, from an eighth of seq_len; next tokens only")
    minutes: float = option(0.0, "time budget, by which the number of steps is worked out")
    steps: int = option(0, "optimiser steps, instead of a time budget")
    lr: float = option(0.0, "learning rate of AdamW: embeddings and norms; 0: 0.01, for masked tokens 0.002, with "
                            "pairs 0.001, going on from a model 1e-4")  # fmt: skip
    muon_lr: float = option(-1.0, "learning rate of Muon: matrices in the layers; 0: AdamW for all; -1: 0.01, with "
                                  "pairs of masked texts 0.003, going on from a model 0")  # fmt: skip
    weight_decay: float = option(0.0, "decoupled weight decay of matrices")
    schedule: str = option("wsd", "warmup, hold and linear cooldown, or cosine", choices=SCHEDULES)
    warmup: int = option(20, "steps of rising learning rate")
    cooldown: float = option(0.6, "last share of the steps, over which the learning rate falls to zero")
    ema: float = option(0.0, "decay of a moving average of the weights, which is what is kept; 0: none")
    z_loss: float = option(0.0, "weight of the squared logarithm of the softmax's denominator")
    recompute: bool = option(False, "less memory, a third more time: activations are made again on the way back")
    precision: str = option("auto", "of products; weights stay in fp32; auto: bf16 where the hardware has it",
                            choices=PRECISIONS)  # fmt: skip
    device: str = option("cpu", "where to train", choices=DEVICES)
    parallel: str = option("ddp", "under torchrun: a whole model in each process, or shards", choices=PARALLEL)
    evaluate_every: int = option(0, "steps between measurements on held-out text; 0: at the end only")
    best: bool = option(False, "keep the weights of the best measurement, not the last")
    sample_every: int = option(0, "steps between samples, in the run's samples.jsonl; 0: none")
    checkpoint_minutes: float = option(5.0, "minutes between checkpoints")
    keep: int = option(2, "checkpoints kept")
    spike: float = option(8.0, "deviations above the last losses at which to roll back; 0: only when not finite")
    rollbacks: int = option(3, "most rollbacks before giving up")
    seed: int = option(0, "seed of weights and order")
    threads: int = option(0, "processor threads; 0: all")
    licence: str = option("unknown", "licence of the data where it does not say so itself")
    resume: str = option("", "go on with this run")
    replace: bool = option(False, "replace the model folder if it exists")
    json: bool = option(False, "print the result as JSON")

    def architecture(self, vocab_size: int) -> Architecture:
        if self.heads < 1 or self.dim % (2 * self.heads):
            raise UsageError("dim must be a multiple of twice the heads", where=f"dim={self.dim}, heads={self.heads}")
        hidden = self.hidden or 64 * math.ceil(8 * self.dim / 3 / 64)
        return Architecture(
            vocab_size=vocab_size, dim=self.dim, layers=self.layers, heads=self.heads,
            kv_heads=self.kv_heads or self.heads, head_dim=self.dim // self.heads, hidden=hidden,
            context_length=self.seq_len,
        )  # fmt: skip

    def loop(self) -> LoopConfig:
        same = (
            "steps", "minutes", "warmup", "cooldown", "schedule", "batch_ramp", "ema", "precision", "best",
            "evaluate_every", "sample_every", "checkpoint_minutes", "keep", "spike", "rollbacks", "seed",
        )  # fmt: skip
        return LoopConfig(accumulate=self.accumulate, tensorboard=True, **{name: getattr(self, name) for name in same})

    @property
    def accumulate(self) -> int:
        return max(1, math.ceil(self.batch_tokens / max(self.micro_tokens, self.seq_len)))

    @property
    def micro_batch(self) -> int:
        """Windows in a forward pass."""
        return max(1, round(self.batch_tokens / self.accumulate / self.seq_len))

    def shared(self, processes: int) -> PretrainConfig:
        """The same steps cut so that so many processes have equally many forward passes."""
        passes = math.ceil(self.accumulate / processes) * processes
        windows = max(passes, round(self.batch_tokens / self.seq_len))
        return dataclasses.replace(self, micro_tokens=self.seq_len * math.ceil(windows / passes))


@dataclass(frozen=True, slots=True)
class DomainConfig(Value):
    """One's own field: which texts, which model, and how much general text is read again beside them."""

    files: tuple[str, ...] = option(help="texts of the field: files, folders, addresses, as data collect takes them")
    general: tuple[str, ...] = option(("python:docs",), "general text: some is learnt again, some only measured")
    model: str = option(DEFAULT_MODEL, "the model to go on from", short="--from")
    out: str = option("domain", "name or path of the model folder; the steps' files lie in OUT.parts", short="-o")
    replay: float = option(0.25, "share of general text in what is learnt; 0: none, and more is forgotten")
    share: float = option(0.05, "share of each kind of text that is kept apart, to measure on")
    held_kb: int = option(64, "most kilobytes of it that are measured, of each kind")
    rules: str = option("gopher", "rules that clean, as data clean takes them; none")
    without: tuple[str, ...] = option((), "a family or rule to switch off; may be repeated")
    epochs: float = option(2.0, "times the texts are seen, unless minutes are given")
    minutes: float = option(0.0, "time budget of the training")
    lr: float = option(0.0, "learning rate; 0: 1e-4")
    seq_len: int = option(256, "tokens in a window")
    batch_tokens: int = option(2048, "tokens in an optimiser step")
    seed: int = option(0, "seed of what is held out, and of the order")
    threads: int = option(0, "processor threads; 0: all")
    licence: str = option("unknown", "licence of the texts where they do not say so themselves")
    replace: bool = option(False, "replace the model folder if it exists")
    json: bool = option(False, "print the result as JSON")


@dataclass(frozen=True, slots=True)
class PlanConfig(PretrainConfig):
    """The settings of a pretraining that is only to be foretold."""

    price: float = option(0.0, "what an hour of this machine costs, in any currency")
    calibrate: float = option(30.0, "most seconds for trying a few steps out; 0: arithmetic alone")


@dataclass(frozen=True, slots=True)
class ScalingConfig(Value):
    """A sweep of small pretrainings on one text, and what to foretell from it."""

    data: str = option("", "text, as pretrain takes it; without it --points are fitted", positional=True)
    out: str = option("scaling", "folder of the sweep: its runs, points.jsonl, report", short="-o")
    sizes: str = option("2x32,3x48,4x64,4x96", "models: LAYERSxWIDTH, or dN for a depth as in pretrain")
    tokens: str = option("250k,500k,1M,2M", "tokens that each of them reads, in runs of their own")
    predict: str = option("", "runs to foretell, SIZE:TOKENS, as 4x192:8M; by a number of parameters 50M:1G")
    points: str = option("", "more runs: JSON lines of parameters, tokens and loss (bits per byte)")
    runs: tuple[str, ...] = option((), "a pretraining of the workspace to take in; may be repeated")
    held_out: str = option("", "text to measure on; else a twentieth of the data is kept apart")
    tokenizer: str = option("", "a tokenizer.json; else one is trained on the data")
    vocab_size: int = option(1024, "tokens of the tokenizer to train")
    seq_len: int = option(256, "tokens in a window")
    batch_tokens: int = option(2048, "tokens in an optimiser step")
    seed: int = option(0, "seed of weights and order")
    threads: int = option(0, "processor threads; 0: all")
    json: bool = option(False, "print the result as JSON")


@dataclass(frozen=True, slots=True)
class FinetuneConfig(Value):
    """What to tune on what, and how."""

    data: str = option("", "records: JSON lines, JSON, CSV, TSV, Parquet, CoNLL or text", positional=True)
    model: str = option(DEFAULT_MODEL, "the model to tune", short="-m")
    out: str = option("tuned", "name or path of the result", short="-o")
    held_out: str = option("", "records to measure on; else a twentieth of the data is kept apart")
    at: str = option("", "tune a hosted model instead: the URL of an API with fine_tuning/jobs; -m is its name there")
    columns: tuple[str, ...] = option(
        (), "field=column, such as text=review,label=stars; numbers where columns have no names"
    )
    template: str = option("", "how records are put to a model that writes, with {text}, {question} or {source} in it")
    show: int = option(0, "print the first N records as the model reads them, what is learnt marked, before training")
    check: bool = option(False, "look at the data and train nothing: lengths, bad rows, and what --show asks for")
    method: str = option("lora", "what trains: see docs/finetune.md", choices=METHODS)
    rank: int = option(8, "rank of the adapter")
    alpha: float = option(16.0, "scale of the adapter, over its rank or, of rslora, over the root of it")
    layers_trained: int = option(0, "train this many last layers only, which is faster; 0: all, of method last 2")
    virtual_tokens: int = option(20, "tokens of a tuned prompt or prefix")
    init_text: str = option("", "text whose tokens a tuned prompt or prefix starts from; else drawn at random")
    lr: float = option(0.0, "learning rate; 0: the method's usual one, for lora 5e-4, for full 5e-5")
    epochs: float = option(1.0, "times the data is seen, unless minutes or steps are given")
    minutes: float = option(0.0, "time budget, by which the number of steps is worked out")
    steps: int = option(0, "optimiser steps")
    batch_tokens: int = option(1024, "tokens in an optimiser step")
    max_length: int = option(1024, "most tokens of a record")
    cut: bool = option(False, "cut records that are too long, and count them, instead of refusing them")
    temperature: float = option(0.05, "triples: how sharply vectors are told apart")
    warmup: int = option(5, "steps of rising learning rate")
    cooldown: float = option(0.8, "last share of the steps, over which the learning rate falls to zero")
    precision: str = option("auto", "of products; weights stay in fp32; auto: bf16 where the hardware has it",
                            choices=("auto", "fp32", "bf16"))  # fmt: skip
    recompute: bool = option(False, "less memory, a third more time: activations are made again on the way back")
    evaluate_every: int = option(0, "steps between measurements of the held-out loss; 0: before and after only")
    best: bool = option(False, "keep the weights of the lowest of them, not the last")
    device: str = option("cpu", "where to train", choices=DEVICES)
    skip_bad: bool = option(False, "leave out records that cannot be used, instead of stopping")
    seed: int = option(0, "seed of adapter and order")
    threads: int = option(0, "processor threads; 0: all")
    licence: str = option("unknown", "licence of the data where it does not say so itself")
    resume: str = option("", "go on with this run")
    replace: bool = option(False, "replace the result if it exists")
    json: bool = option(False, "print the result as JSON")


@dataclass(frozen=True, slots=True)
class AlignConfig(Value):
    """What to align, on what, and how strongly."""

    data: str = option("", "preferences (prompt, chosen, rejected), or prompts with what checks an answer",
                       positional=True)  # fmt: skip
    model: str = option(DEFAULT_MODEL, "the model to align, and the reference", short="-m")
    out: str = option("aligned", "name or path of the result", short="-o")
    objective: str = option("dpo", "learn from pairs (the first five, reward), from what the model itself writes "
                                   "(grpo, ppo, best-of-n), or from a teacher", choices=ALIGNMENTS)  # fmt: skip
    held_out: str = option("", "records to measure on; else a tenth of the data is kept apart")
    columns: tuple[str, ...] = option(
        (), "field=column of a table, such as chosen=best,rejected=worst; numbers where columns have no names"
    )
    beta: float = option(-1.0, "how dear it is to move away from the reference; -1: 0.1, simpo 2, grpo 0.02, ppo 0.05")
    gamma: float = option(1.0, "simpo: by how much the chosen answer should be the likelier, after beta")
    sft: float = option(0.0, "dpo, ipo, simpo: weight of the chosen answers' own loss a token, which keeps them likely")
    reward: str = option("", "grpo, ppo, best-of-n: a reward model; default: each record's own check (answer, pattern, "
                             "schema or tests)")  # fmt: skip
    judge: str = option("", "a second reward model, or check, that is not learnt from: tells a hacked reward")
    prompts: int = option(8, "grpo, ppo: prompts in a step")
    samples: int = option(8, "answers that are drawn for a prompt")
    max_tokens: int = option(128, "most tokens of an answer that is drawn")
    updates: int = option(0, "steps that learn from the same answers; 0: grpo 1, ppo 4")
    clip: float = option(0.2, "grpo, ppo: how far a token's probability may move in them")
    average: str = option("token", "grpo: the loss is a mean over all tokens, or over answers",
                          choices=("token", "answer"))  # fmt: skip
    target_kl: float = option(0.0, "ppo: nats of an answer to hold the divergence at, by adapting beta; 0: beta is "
                                   "fixed")  # fmt: skip
    teacher: str = option("", "distil: the model to learn from")
    learn: str = option("logits", "distil: the teacher's probabilities on the records, or what it writes to their "
                                  "prompts", choices=("logits", "text"))  # fmt: skip
    method: str = option("lora", "what trains: see docs/finetune.md", choices=METHODS)
    rank: int = option(8, "rank of the adapter")
    alpha: float = option(16.0, "scale of the adapter, over its rank or, of rslora, over the root of it")
    layers_trained: int = option(0, "train this many last layers only, which is faster; 0: all, of method last 2")
    virtual_tokens: int = option(20, "tokens of a tuned prompt or prefix")
    init_text: str = option("", "text whose tokens a tuned prompt or prefix starts from; else drawn at random")
    lr: float = option(0.0, "learning rate; 0: 1e-4 for lora, 1e-5 for full")
    epochs: float = option(1.0, "times the data is seen, unless minutes or steps are given")
    minutes: float = option(0.0, "time budget of the training itself")
    steps: int = option(0, "optimiser steps")
    batch_tokens: int = option(2048, "tokens in an optimiser step")
    max_length: int = option(1024, "most tokens of a prompt with an answer")
    warmup: int = option(10, "steps of rising learning rate")
    cooldown: float = option(0.8, "last share of the steps, over which the learning rate falls to zero")
    precision: str = option(
        "auto",
        "of products; weights stay in fp32; auto: bf16 where the hardware has it, but for "
        "grpo and ppo fp32, as the engine draws",
        choices=("auto", "fp32", "bf16"),
    )
    recompute: bool = option(False, "less memory, a third more time: activations are made again on the way back")
    evaluate_every: int = option(0, "steps between measurements of the held-out loss; 0: before and after only")
    best: bool = option(False, "keep the weights of the lowest of them, not the last")
    device: str = option("cpu", "where to train", choices=DEVICES)
    skip_bad: bool = option(False, "leave out records that cannot be used, instead of stopping")
    seed: int = option(0, "seed of adapter and order")
    threads: int = option(0, "processor threads; 0: all")
    licence: str = option("unknown", "licence of the data where it does not say so itself")
    resume: str = option("", "go on with this run")
    replace: bool = option(False, "replace the result if it exists")
    json: bool = option(False, "print the result as JSON")

    @property
    def price(self) -> float:
        """`beta`, or what is usual for the objective."""
        return BETAS.get(self.objective, 0.1) if self.beta == -1 else self.beta
