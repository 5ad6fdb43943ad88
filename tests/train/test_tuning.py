"""Every method from records to an answer: it learns, goes on to the same bits, and is served as it was trained."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
from pathlib import Path

import pytest
import torch
from stories import STORIES, write_jsonl

from ladderlm import store
from ladderlm.data.records import make_record
from ladderlm.errors import UsageError
from ladderlm.models import open_model
from ladderlm.models.adapter import load_adapter
from ladderlm.nn.loss import Batch, mean_nats
from ladderlm.serve.models import Models
from ladderlm.talk import open_chat
from ladderlm.talk.local import LocalChat
from ladderlm.train.examples import make_example, sorted_batch
from ladderlm.train.finetune import run
from ladderlm.train.loop import fit
from ladderlm.train.settings import METHODS, SOFT, FinetuneConfig, LoopConfig
from ladderlm.train.tuning import prepare

ROWS = [{"prompt": f"Who went to the {s.split()[5][:-1]}?", "completion": f"The {s.split()[1]}."} for s in STORIES]
RATES = {"ia3": 0.1, "prompt": 0.1, "prefix": 0.1, "head": 0.02, "last": 0.01, "full": 0.01}
MODEL_FOLDERS = ("head", "last", "full")


def tune(tiny: Path, tmp_path: Path, method: str) -> FinetuneConfig:
    data = write_jsonl(tmp_path / "d.jsonl", ROWS)
    return FinetuneConfig(
        data=str(data), model=str(tiny), out=f"by-{method}", held_out=str(data), method=method, steps=25,
        lr=RATES.get(method, 0.01), batch_tokens=256, virtual_tokens=4, init_text="Who went there?", threads=1,
    )  # fmt: skip


def served_loss(chat: LocalChat) -> float:
    """Mean negative log-likelihood of the completions, by the engine."""
    found: list[float] = []
    for row in ROWS:
        example = make_example(make_record("completion", row, source="x"), chat.files, 128)
        start = example.mask.index(True)
        found += chat.engine.score(example.ids[:start], [example.ids[start:]], adapter=chat.adapter)[0]
    return -sum(found) / len(found)


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_and_is_served_as_it_was_trained(tiny: Path, tmp_path: Path, method: str) -> None:
    config = tune(tiny, tmp_path, method)
    if method == "head" and open_model(str(tiny)).arch.tied:
        with pytest.raises(UsageError, match="embedding"):
            run(config)
        return
    result = run(config)
    loss = result.scores["held_out_loss"]
    assert loss < result.scores["held_out_loss_before"] - 0.2
    with contextlib.closing(open_chat(config.out)) as chat:
        assert isinstance(chat, LocalChat)
        assert (chat.adapter is None) == (method in (*MODEL_FOLDERS, "dora", "ia3"))
        tolerance = 0.2 if method == "qlora" else 0.03  # trained on 4 bits, served on what the folder holds
        assert served_loss(chat) == pytest.approx(loss, rel=tolerance, abs=0.02)
    if method not in MODEL_FOLDERS:
        adapter = load_adapter(store.models_dir() / config.out)
        assert adapter.lineage["parent"]["name"] == "tiny"
        assert adapter.tokens == (4 if method in SOFT else 0)


def test_tuned_models_are_served_together_by_name(tiny: Path, tmp_path: Path) -> None:
    methods = ("lora", "prompt", "prefix", "ia3")
    losses = {m: run(tune(tiny, tmp_path, m)).scores["held_out_loss"] for m in methods}
    models = Models([str(tiny), *(f"by-{m}" for m in methods)], keep=2)
    engines = set()
    for method in methods:
        with models.use(f"by-{method}") as chat:
            assert isinstance(chat, LocalChat)
            assert served_loss(chat) == pytest.approx(losses[method], rel=0.03, abs=0.02)
            engines.add(id(chat.engine) if method != "ia3" else 0)
    assert len(engines) == 2, "all but the merged one share an engine"


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_goes_on_to_the_same_bits(tiny: Path, tmp_path: Path, method: str) -> None:
    files, config = open_model(str(tiny)), tune(tiny, tmp_path, method)
    examples = [make_example(make_record("completion", r, source="x"), files, 128) for r in ROWS]
    loop = LoopConfig(steps=8, warmup=2)

    def train(name: str, stop_at: int = -1) -> dict[str, torch.Tensor] | None:
        path = tmp_path / name
        run_ = store.open_run(str(path)) if path.exists() else store.new_run("finetune", {}, path=path)
        decoder, optimiser = prepare(config, files, lora_lr=5e-4, full_lr=5e-5)
        stop = threading.Event()

        def batches(i: int) -> Batch:
            if i == stop_at:
                stop.set()
            return sorted_batch([examples[(5 * i + k) % len(examples)] for k in range(5)])

        fit(decoder, mean_nats, batches, optimiser, run_, loop, cancel=stop)
        return {n: p.detach().clone() for n, p in optimiser.named.items()}

    if method == "head" and files.arch.tied:
        return
    whole, _ = train("whole"), train("cut", stop_at=3)
    resumed = train("cut")
    assert whole is not None
    assert resumed is not None
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)


def test_what_a_method_cannot_do_is_said(tiny: Path) -> None:
    files = open_model(str(tiny))
    config = FinetuneConfig(model=str(tiny))
    for changes, words in (
        ({"method": "lore"}, "unknown method"),
        ({"method": "prompt", "layers_trained": 1}, "before all layers"),
        ({"method": "prefix", "virtual_tokens": 128}, "virtual_tokens"),
        ({"method": "last", "layers_trained": 9}, "layers_trained"),
        ({"method": "head", "layers_trained": 1}, "above all layers"),
    ):
        with pytest.raises(UsageError, match=words):
            prepare(dataclasses.replace(config, **changes), files, lora_lr=1.0, full_lr=1.0)  # type: ignore[arg-type]


def test_only_what_a_method_names_trains(tiny: Path) -> None:
    files = open_model(str(tiny))
    counts = {}
    for method in METHODS:
        if method == "head" and files.arch.tied:
            continue
        config = FinetuneConfig(model=str(tiny), method=method, layers_trained=int(method == "last"), rank=2)
        _, optimiser = prepare(config, files, lora_lr=5e-4, full_lr=5e-5)
        counts[method] = sum(p.numel() for p in optimiser.parameters)
        assert math.isfinite(optimiser.lr)
    assert counts["lora"] == counts["rslora"] == counts["qlora"] < counts["dora"]
    assert counts["ia3"] < counts["lora"] < counts["last"] < counts["full"]
    assert counts["prompt"] == 20 * files.arch.dim
    assert counts["prefix"] == 20 * files.arch.layers * 2 * files.arch.kv_heads * files.arch.head_dim


@pytest.mark.parametrize("method", METHODS)
def test_recomputed_activations_take_less_memory_and_give_the_same_gradients(tiny: Path, method: str) -> None:
    files = open_model(str(tiny))
    if method == "head" and files.arch.tied:
        return
    batch = sorted_batch([make_example(make_record("completion", r, source="x"), files, 128) for r in ROWS])
    kept, found = [0, 0], []
    for again in (False, True):
        config = FinetuneConfig(model=str(tiny), method=method, recompute=again)
        model, optimiser = prepare(config, files, lora_lr=5e-4, full_lr=5e-5)

        def count(tensor: torch.Tensor, again: bool = again) -> torch.Tensor:
            kept[again] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss, _ = mean_nats(model, batch)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in optimiser.parameters)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True) if a is not None and b is not None)
    assert all((a is None) == (b is None) for a, b in zip(*found, strict=True))
    assert kept[True] < 0.8 * kept[False]
