"""LoRA against trl + peft: real tokens a second and peak memory; and QLoRA's peak memory against LoRA's.

All train the same random Llama-style model on the same texts of varied length (mean 182 tokens, the loss on what comes
after a prompt) with a LoRA of rank 8 on all seven matrices, in fp32, about 16 texts a step: ours without padding; trl
with packing, whose rows hold as many tokens a step; trl as it comes, one padded row for each text. Each runs in a
process of its own, in turns; the first step is not timed. Memory is the process's high-water mark, libraries
included. Texts are whole in ours and in trl's padded rows: their first losses must be the same.

QLoRA and LoRA train a model of the shape of TinyLlama (1.1 B), whose weights are drawn at random one by one, on rows
of 256 tokens, 4 at a time, both with --recompute: what layers keep for the way back is alike in both, and without it
more than QLoRA's weights.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RANK, ALPHA, TEXTS, ROW = 8, 16.0, 16, 512
CONTENDERS = ("ours", "trl packed", "trl padded")
SIZES = {
    "25 M": {"vocab_size": 8192, "dim": 384, "layers": 12, "heads": 6, "kv_heads": 6, "head_dim": 64, "hidden": 1024},
    "2 M": {"vocab_size": 2048, "dim": 128, "layers": 6, "heads": 4, "kv_heads": 4, "head_dim": 32, "hidden": 384},
    "1.1 B": {"vocab_size": 32000, "dim": 2048, "layers": 22, "heads": 32, "kv_heads": 4, "head_dim": 64,
              "hidden": 5632},
    "60 M": {"vocab_size": 8192, "dim": 768, "layers": 6, "heads": 12, "kv_heads": 4, "head_dim": 64, "hidden": 2304},
}  # fmt: skip


def architecture(size: str) -> Any:
    from ladderlm.models.arch import Architecture

    return Architecture(family="llama", context_length=1024, norm_eps=1e-5, rope_theta=1e4, **SIZES[size])


def texts(vocabulary: int, count: int) -> list[tuple[list[int], list[bool]]]:
    """Ids, and whether they are to be learnt; from 30 to 512 tokens each."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(5.0, 0.65, count), 30, ROW).astype(int)
    ids = [random.integers(3, vocabulary, n).tolist() for n in lengths]
    return [(row, [i >= len(row) // 3 for i in range(len(row))]) for row in ids]


def high_water() -> int:
    """The most memory that this process has held, in bytes."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def ours(size: str, steps: int, folder: Path) -> dict[str, Any]:
    from ladderlm import store
    from ladderlm.models.adapter import LoraConfig
    from ladderlm.nn.decoder import Decoder
    from ladderlm.nn.lora import add_lora
    from ladderlm.nn.loss import mean_nats
    from ladderlm.train.examples import Example, sorted_batch
    from ladderlm.train.loop import fit
    from ladderlm.train.optim import Optimiser
    from ladderlm.train.settings import LoopConfig

    arch = architecture(size)
    decoder = Decoder(arch)
    decoder.load_state_dict(random_state(arch))
    add_lora(decoder, LoraConfig(RANK, ALPHA))
    examples = [Example(*row) for row in texts(arch.vocab_size, TEXTS * steps)]
    run = store.new_run("finetune", {}, path=folder / f"run-{time.time_ns()}")
    fit(
        decoder, mean_nats, lambda i: sorted_batch(examples[TEXTS * i : TEXTS * (i + 1)]),
        Optimiser(decoder.named_parameters(), 5e-4), run, LoopConfig(steps=steps),
    )  # fmt: skip
    rows = list(store.read_jsonl(run.metrics))
    tokens, seconds = (rows[-1][name] - rows[0][name] for name in ("tokens", "seconds"))  # both are so far
    return {"tokens": tokens, "tokens_per_second": tokens / seconds, "first_loss": rows[0]["loss"]}


def trl(size: str, steps: int, folder: Path, packed: bool) -> dict[str, Any]:
    import datasets
    import peft
    import tokenizers
    import torch
    import transformers
    import trl as library

    from ladderlm.models import families

    arch = architecture(size)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**families.to_hf(arch)))
    model.load_state_dict(random_state(arch), strict=False)
    model.tie_weights()
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, "<unk>"))
    speaker = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    rows = texts(arch.vocab_size, TEXTS * steps)
    data = datasets.Dataset.from_list([{"input_ids": i, "completion_mask": [int(m) for m in k]} for i, k in rows])
    mean = sum(len(ids) for ids, _ in rows) / len(rows)
    settings = library.SFTConfig(
        output_dir=str(folder / "trl"), max_steps=steps, max_length=ROW, packing=packed, learning_rate=5e-4,
        per_device_train_batch_size=max(1, round(TEXTS * mean / ROW)) if packed else TEXTS, completion_only_loss=True,
        use_cpu=True, bf16=False, gradient_checkpointing=False, save_strategy="no", report_to=[], logging_steps=1,
        disable_tqdm=True, dataloader_num_workers=0, shuffle_dataset=False, warmup_steps=10,
    )  # fmt: skip
    seen: list[tuple[float, int]] = []

    class Watched(library.SFTTrainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            mask = inputs.get("attention_mask")
            tokens = int(mask.sum()) if mask is not None and not packed else inputs["input_ids"].numel()
            loss = super().training_step(model, inputs, *rest, **more)
            seen.append((time.perf_counter(), tokens))
            return loss

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    adapter = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = Watched(model=model, args=settings, train_dataset=data, processing_class=speaker, peft_config=adapter)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    tokens, seconds = sum(n for _, n in seen[1:]), seen[-1][0] - seen[0][0]
    return {"tokens_per_second": tokens / seconds, "first_loss": losses[0]}


class RandomWeights:
    """A model's tensors, each drawn when it is asked for."""

    def __init__(self, arch: Any) -> None:
        self.shapes = arch.tensor_shapes()

    def names(self) -> list[str]:
        return list(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.shapes[name])

    def float32(self, name: str) -> Any:
        random = np.random.default_rng(list(name.encode()))
        shape = self.shapes[name]
        return random.standard_normal(shape, np.float32) * np.float32(0.04) if len(shape) == 2 else np.ones(shape, "f4")

    def blocks(self, name: str) -> None:
        return None


def random_state(arch: Any) -> dict[str, Any]:
    import torch

    weights = RandomWeights(arch)
    return {name: torch.from_numpy(weights.float32(name)) for name in weights.names()}


def memory(size: str, steps: int, method: str) -> dict[str, Any]:
    """A few steps of LoRA or QLoRA."""
    import torch

    from ladderlm.models.adapter import LoraConfig
    from ladderlm.nn.decoder import load_decoder
    from ladderlm.nn.four_bits import load_decoder4
    from ladderlm.nn.lora import add_lora
    from ladderlm.nn.loss import make_batch, mean_nats
    from ladderlm.nn.stack import recompute
    from ladderlm.train.optim import Optimiser

    class Files:
        arch = architecture(size)
        weights = RandomWeights(arch)
        path = Path("random")

    files: Any = Files()
    libraries = high_water()
    decoder = load_decoder4(files) if method == "qlora" else load_decoder(files)
    add_lora(decoder, LoraConfig(RANK, ALPHA))
    recompute(decoder)
    optimiser = Optimiser(decoder.named_parameters(), 5e-4)
    loaded, began, losses = high_water(), time.perf_counter(), []
    for step in range(steps):
        torch.manual_seed(step)
        rows = [(torch.randint(files.arch.vocab_size, (257,)).tolist(), [True] * 257) for _ in range(4)]
        loss, _ = mean_nats(decoder, make_batch(rows))
        loss.backward()
        optimiser.step(1.0)
        losses.append(float(loss.detach()))
    seconds = time.perf_counter() - began
    return {
        "libraries": libraries, "loaded": loaded, "tokens_per_second": 1024 * steps / seconds, "first_loss": losses[0],
    }  # fmt: skip


def alone(what: str, size: str, steps: int, folder: Path) -> dict[str, Any]:
    """One contender in a process of its own."""
    code = (
        "import sys; from bench.finetune import child; child(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])"
    )
    env = dict(os.environ, OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    done = subprocess.run(
        [sys.executable, "-c", code, what, size, str(steps), str(folder)], env=env, capture_output=True, text=True,
        cwd=Path(__file__).resolve().parents[1], check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{what} failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(what: str, size: str, steps: str, folder: str) -> None:
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    if what in ("lora", "qlora"):
        found = memory(size, int(steps), what)
    elif what == "ours":
        found = ours(size, int(steps), Path(folder))
    else:
        found = trl(size, int(steps), Path(folder), what == "trl packed")
    print(json.dumps({**found, "peak_bytes": high_water()}))


def measure(minute: bool) -> dict[str, Any]:
    size, large, rounds, steps = ("2 M", "60 M", 1, 4) if minute else ("25 M", "1.1 B", 3, 12)
    peers = all(importlib.util.find_spec(name) for name in ("trl", "peft", "datasets"))
    contenders = CONTENDERS if peers else CONTENDERS[:1]
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as place:
        for _ in range(rounds):
            for name in contenders:
                rows[name].append(alone(name, size, steps, Path(place)))
        held = {name: alone(name, large, 2, Path(place)) for name in ("lora", "qlora")}

    share = round(held["qlora"]["peak_bytes"] / held["lora"]["peak_bytes"], 3)
    bars = {} if minute else {"QLoRA of 1.1 B takes at most half of LoRA's memory": share <= 0.5}
    found = {
        "threads": os.cpu_count(), "model": size, "steps": steps, "rows": rows, "large_model": large,
        "qlora_memory_over_lora": share, "lora": held["lora"], "qlora": held["qlora"],
    }  # fmt: skip
    if not peers:
        return {**found, "left_out": "trl, peft or datasets is not installed", "bars": bars}
    against, more = _beside_trl(rows, minute)
    return {**found, **against, "bars": bars | more}


def _beside_trl(rows: dict[str, list[dict[str, Any]]], minute: bool) -> tuple[dict[str, Any], dict[str, bool]]:
    """Medians over rounds of ours over theirs, and the bars."""

    def ratio(to: str, what: str) -> float:
        pairs = zip(rows["ours"], rows[to], strict=True)
        return round(statistics.median(a[what] / b[what] for a, b in pairs), 3)

    losses = {name: runs[0]["first_loss"] for name, runs in rows.items()}
    found = {
        f"{name}_over_{to.replace(' ', '_')}": ratio(to, what)
        for name, what in (("speed", "tokens_per_second"), ("memory", "peak_bytes"))
        for to in CONTENDERS[1:]
    }
    bars = {"the first loss is that of trl on the same texts": abs(losses["ours"] - losses["trl padded"]) < 1e-3}
    if not minute:
        bars |= {
            "at least 2.2 times the tokens a second of trl with packing": found["speed_over_trl_packed"] >= 2.2,
            "at most 0.9 of the memory of trl with packing": found["memory_over_trl_packed"] <= 0.9,
            "at most 0.45 of the memory of trl as it comes": found["memory_over_trl_padded"] <= 0.45,
        }
    return {**found, "first_losses": losses}, bars
