"""Training on a GPU, without one: on a device that knows shapes alone, beside which no tensor of the processor may be.

What is multiplied there is a matter of torch; that everything lies where it should is ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from stories import STORIES, write_jsonl
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tuned_models import KINDS, encoder, encoder_decoder

from ladderlm.data.records import make_record, read_records
from ladderlm.errors import UsageError
from ladderlm.models import ModelFiles, open_model
from ladderlm.nn.backend import TorchBackend
from ladderlm.nn.decoder import load_decoder
from ladderlm.nn.loss import mean_nats, nats
from ladderlm.train import align, finetune, rollout
from ladderlm.train.device import on_processor
from ladderlm.train.distil import divergence
from ladderlm.train.dpo import Terms, preference_loss
from ladderlm.train.examples import make_example, per_document, sorted_batch
from ladderlm.train.grpo import group_batch, grpo_loss
from ladderlm.train.material import Material
from ladderlm.train.pairs import make_pair, pair_batch
from ladderlm.train.ppo import ActorCritic, ppo_batch, ppo_loss
from ladderlm.train.reward import RewardModel, reward_loss, texts
from ladderlm.train.rollout import Answer, Prompt, Roller, check, load_prompts
from ladderlm.train.rounds import Drawn
from ladderlm.train.settings import METHODS, SOFT, AlignConfig, FinetuneConfig
from ladderlm.train.tasks.choose import choose
from ladderlm.train.tuning import prepare

PREFERENCE = {"prompt": "Who went?", "chosen": "The cat.", "rejected": "The other one."}
AWAY = "meta"
BESIDE = ("copy_", "_to_copy", "index", "index_put_")  # they take what lies elsewhere: values, or places by number


class OneDevice(TorchDispatchMode):
    """Refuses every operation whose tensors lie on two devices, forward and back."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.ndim]
        if len({x.device.type for x in found}) > 1 and func.overloadpacket.__name__ not in BESIDE:
            raise AssertionError(f"{func}: " + ", ".join(f"{x.device} {tuple(x.shape)}" for x in found))
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is only logged is anything: there are no values. And torch knows no narrow products there."""
    monkeypatch.setattr(Tensor, "item", lambda self: 1.0)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


def config(tiny: Path, method: str) -> FinetuneConfig:
    return FinetuneConfig(data="x", model=str(tiny), method=method, virtual_tokens=4, lr=0.01, device=AWAY)


def learns(model: torch.nn.Module, loss: Tensor) -> None:
    """The gradients of all that trains are made, where it lies."""
    assert loss.device.type == AWAY
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None and p.grad.device.type == AWAY for p in trained)


def test_the_pretended_device_tells() -> None:
    with OneDevice(), torch.device(AWAY), pytest.raises(AssertionError, match="mm"):
        torch.ones(2, 2) @ torch.ones(2, 2, device="cpu")


@pytest.mark.parametrize("method", [m for m in METHODS if m != "head"])
def test_every_method_learns_from_texts_and_pairs(tiny: Path, method: str) -> None:
    files = open_model(str(tiny))
    records = [make_record("text", {"text": text}, source="x") for text in STORIES[:3]]
    pair = make_pair(make_record("preference", PREFERENCE, source="x"), files, 64)
    with OneDevice(), torch.device(AWAY):
        decoder, _ = prepare(config(tiny, method), files, lora_lr=1e-3, full_lr=1e-3)
        learns(decoder, mean_nats(decoder, sorted_batch([make_example(r, files, 64) for r in records]))[0])
        pairs = pair_batch([pair, pair], shared=method not in SOFT)
        policy_P2 = -per_document(nats(decoder, pairs.batch), pairs.batch).view(-1, 2)
        terms = Terms(policy_P2, pairs.reference_P2, pairs.counts_P2, pairs.liked_P)
        for name in ("dpo", "ipo", "kto", "orpo", "simpo"):
            assert preference_loss(name, terms, 0.1)[0].device.type == AWAY
        learns(decoder, preference_loss("dpo", terms, 0.1)[0])


def read(tiny: Path, device: str = AWAY) -> tuple[ModelFiles, Any]:
    files, settings = open_model(str(tiny)), dataclasses.replace(config(tiny, "lora"), device=device)
    return files, prepare(settings, files, lora_lr=1e-3, full_lr=1e-3)[0]


def test_rewards_and_reinforcement_are_learnt_there(tiny: Path) -> None:
    prompt = Prompt(make_record("answer", {"prompt": "Who went?", "answer": "a"}, source="x"), [1, 5, 6, 7])
    answers = [
        Answer(0, (3, 4 + i), (-1.0, -2.0), "", True, float(i), (-1.5, -2.5), (0.1, 0.2)) for i in range(2)
    ]  # fmt: skip
    drawn = Drawn([prompt], answers, 0.1, {})
    with OneDevice(), torch.device(AWAY):
        _, decoder = read(tiny)
        model = RewardModel(decoder).to(AWAY)
        learns(model, reward_loss(model(texts([[1, 2, 3], [4, 5]])).view(-1, 2))[0])
        actor = ActorCritic(decoder).to(AWAY)
        batch = ppo_batch(drawn, [0, 1])
        learns(actor, ppo_loss(*actor(batch.batch), batch, clip=0.2)[0])
        group = group_batch(drawn, [0, 1], 2, "token")
        learns(decoder, grpo_loss(-nats(decoder, group.batch), group, beta=0.1, clip=0.2, average="token")[0])


def test_a_teacher_is_learnt_from_there(tiny: Path) -> None:
    with OneDevice(), torch.device(AWAY):
        files, decoder = read(tiny)
        with on_processor():
            teacher = load_decoder(files).requires_grad_(False)
        example = make_example(make_record("text", {"text": STORIES[0]}, source="x"), files, 64)
        learns(decoder, divergence(decoder, teacher.to(AWAY), sorted_batch([example])).mean())


@pytest.mark.parametrize("kind", ["class", "spans", "qa", "triple", "translation"])
def test_every_task_of_encoders_is_learnt_there(tmp_path: Path, kind: str) -> None:
    made = (encoder_decoder if kind == "translation" else encoder)(tmp_path / "base")
    files, settings = open_model(str(made)), config(made, "full")
    records = read_records(write_jsonl(tmp_path / "d.jsonl", KINDS[kind]))
    task = choose(settings, files, records)
    examples = [task.example(r) for r in records[:4]]
    material = Material(task, records, examples, [], [], [], None, None)  # type: ignore[arg-type]
    with OneDevice(), torch.device(AWAY):
        model, _ = finetune.prepared(settings, files, material)
        loss, _ = task.loss(model, task.batch(examples))
        assert loss.device.type == AWAY
        loss.backward()


def test_rollouts_by_the_backend_of_gpus_are_the_models_own(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That backend on the processor, for want of a GPU."""
    monkeypatch.undo()

    def backend(decoder: Any, threads: int) -> TorchBackend:
        return TorchBackend(decoder.arch, rollout.PolicyWeights(decoder), device="cpu", dtype=torch.float32)

    monkeypatch.setattr(rollout, "_backend", backend)
    files, decoder = read(tiny, "cpu")
    records = [make_record("answer", {"prompt": f"Say {i}.", "answer": "a"}, source="t") for i in range(3)]
    prompts = load_prompts("t", records, files, 100, skip_bad=False)
    with Roller(decoder, files, 12, threads=1) as roller:
        assert check(decoder, prompts, roller.sample(prompts, 2, 0, 0), 500) < 1e-4
        with torch.no_grad():
            for name, parameter in decoder.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
        roller.update()
        assert check(decoder, prompts, roller.sample(prompts, 2, 0, 0), 500) < 1e-4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tiny: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "a", "completion": "b"}] * 4)
    pairs = write_jsonl(tmp_path / "p.jsonl", [PREFERENCE] * 4)
    with pytest.raises(UsageError, match="no GPU"):
        finetune.run(FinetuneConfig(data=str(data), model=str(tiny), device="cuda"))
    with pytest.raises(UsageError, match="no GPU"):
        align.run(AlignConfig(data=str(pairs), model=str(tiny), device="cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_a_gpu_learns(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    rows = [{"prompt": f"Who went to the {s.split()[5][:-1]}?", "completion": f"The {s.split()[1]}."} for s in STORIES]
    data = write_jsonl(tmp_path / "d.jsonl", rows)
    result = finetune.run(FinetuneConfig(
        data=str(data), held_out=str(data), model=str(tiny), steps=25, lr=0.01, batch_tokens=256, device="cuda",
        out=str(tmp_path / "tuned"),
    ))  # fmt: skip
    assert result.scores["held_out_loss"] < result.scores["held_out_loss_before"]
    asked = write_jsonl(tmp_path / "a.jsonl", [{"prompt": f"Say {i}.", "answer": "a"} for i in range(8)])
    align.run(AlignConfig(
        data=str(asked), held_out=str(asked), model=str(tiny), objective="grpo", steps=2, prompts=2, samples=2,
        max_tokens=8, device="cuda", out=str(tmp_path / "aligned"),
    ))  # fmt: skip
