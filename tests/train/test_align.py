"""DPO and its relatives: the losses against formulas and trl, gradients' directions, and a tiny model that learns."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from stories import STORIES, write_jsonl

from ladderlm.data.records import make_record
from ladderlm.errors import FormatError
from ladderlm.models import open_model
from ladderlm.nn.decoder import load_decoder
from ladderlm.store import open_run
from ladderlm.train.align import AlignConfig, run
from ladderlm.train.aligning import two_sides
from ladderlm.train.dpo import LOSSES, Terms, preference_loss, reference
from ladderlm.train.pairs import load, thought_of
from ladderlm.train.settings import PREFERENCES
from ladderlm.train.tuning import prepare

ROWS = [{"prompt": f"Tell of the {s.split()[1]}.", "chosen": s, "rejected": " ".join(s.split()[::-1])} for s in STORIES]


def terms(seed: int = 0, pairs: int = 6) -> Terms:
    rng = torch.Generator().manual_seed(seed)
    counts_P2 = torch.randint(3, 12, (pairs, 2), generator=rng)
    policy_P2 = -counts_P2 * (0.2 + 2 * torch.rand(pairs, 2, generator=rng))
    reference_P2 = policy_P2 + torch.randn(pairs, 2, generator=rng)
    return Terms(policy_P2, reference_P2, counts_P2, torch.arange(pairs) % 3 > 0)


def test_the_loss_equals_the_formula() -> None:
    policy_P2 = torch.tensor([[-10.0, -12.0], [-30.0, -20.0]], requires_grad=True)
    reference_P2 = torch.tensor([[-11.0, -11.5], [-29.0, -24.0]])
    given = Terms(policy_P2, reference_P2, torch.ones(2, 2), torch.ones(2, dtype=torch.bool))
    loss, figures = preference_loss("dpo", given, beta=0.5)
    margins = [0.5 * ((-10 + 11) - (-12 + 11.5)), 0.5 * ((-30 + 29) - (-20 + 24))]
    assert loss.item() == pytest.approx(sum(math.log(1 + math.exp(-m)) for m in margins) / 2)
    assert figures["reward_accuracy"] == 0.5
    assert figures["margin"] == pytest.approx(sum(margins) / 2)
    assert figures["chosen_logratio"] == pytest.approx(0.0)


@pytest.mark.parametrize("name", PREFERENCES)
def test_every_loss_wants_the_chosen_answer_likelier(name: str) -> None:
    given = terms()
    policy_P2 = given.policy_P2.clone().requires_grad_()
    loss, _ = preference_loss(name, given._replace(policy_P2=policy_P2), beta=0.1, gamma=0.5)
    loss.backward()
    assert policy_P2.grad is not None
    if name == "kto":
        assert torch.equal(policy_P2.grad[:, 0] < 0, given.liked_P)
    elif name != "ipo":  # which holds a margin, and goes back where it is exceeded
        assert (policy_P2.grad[:, 0] < 0).all()
        assert (policy_P2.grad[:, 1] > 0).all()


def test_ipo_holds_a_margin() -> None:
    given = Terms(torch.tensor([[2.0, -2.0]]), torch.zeros(1, 2), torch.tensor([[4, 4]]), torch.tensor([True]))
    assert LOSSES["ipo"](given, 0.5, 0.0).item() == pytest.approx(0.0)  # 1 = 1 / (2 * 0.5)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_simpo_and_orpo_equal_trl(method: str) -> None:
    cpo = pytest.importorskip("trl.experimental.cpo", reason="trl is not installed")
    orpo = pytest.importorskip("trl.experimental.orpo", reason="trl is not installed")
    given = terms()
    policy_P2 = given.mean_P2
    if method == "full":
        policy_P2 = policy_P2 * 0.1
        given = given._replace(policy_P2=policy_P2 * given.counts_P2)
    stub = SimpleNamespace(beta=2.0, simpo_gamma=0.7, alpha=0.0, loss_type="simpo", label_smoothing=0.0,
                           accelerator=SimpleNamespace(device="cpu"))  # fmt: skip
    theirs = cpo.CPOTrainer.cpo_loss(stub, policy_P2[:, 0], policy_P2[:, 1])[0]
    assert torch.allclose(LOSSES["simpo"](given, 2.0, 0.7), theirs, atol=1e-6)
    ratio = orpo.ORPOTrainer.odds_ratio_loss(stub, policy_P2[:, 0], policy_P2[:, 1])[0]
    assert torch.allclose(LOSSES["orpo"](given, 2.0, 0.0), -policy_P2[:, 0] - ratio, atol=1e-5)


def trainer_of_trl(
    terms: Terms, order: list[tuple[int, int]], **more: Any
) -> tuple[SimpleNamespace, Any, dict[str, Any]]:
    """What trl's trainers compute their loss from, for the answers in `order`: the trainer, the model, the batch."""
    rows = torch.tensor(order).T
    counts_B = terms.counts_P2[*rows]
    mask_BT = torch.arange(1, 13)[None] <= counts_B[:, None]
    log_probs = mask_BT * (terms.policy_P2[*rows] / counts_B)[:, None]
    zeros = torch.zeros_like(log_probs)
    outputs = SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

    def same(x: Any) -> Any:
        return x

    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False), beta=0.3, aux_loss_enabled=False, _total_train_tokens=0,
        precompute_ref_logps=True, _metrics=defaultdict(lambda: defaultdict(list)),
        accelerator=SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same), **more,
    )  # fmt: skip
    ids = torch.zeros(len(order), 13, dtype=torch.long)
    completions = torch.cat([torch.zeros(len(order), 1), mask_BT.float()], 1)
    return trainer, lambda **_: outputs, {"input_ids": ids, "completion_mask": completions}


@pytest.mark.parametrize("sft", [0.0, 0.7])
@pytest.mark.parametrize(("ours", "theirs"), [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_dpo_and_ipo_equal_trl(ours: str, theirs: str, sft: float) -> None:
    trl = pytest.importorskip("trl.trainer.dpo_trainer", reason="trl is not installed")
    given = terms()
    trainer, model, batch = trainer_of_trl(
        given, [(p, side) for side in (0, 1) for p in range(6)], ld_alpha=None, f_divergence_type="reverse_kl",
        loss_types=[theirs, "sft"], loss_weights=[1.0, sft], use_weighting=False,
    )  # fmt: skip
    batch |= {"ref_chosen_logps": given.reference_P2[:, 0], "ref_rejected_logps": given.reference_P2[:, 1]}
    expected = trl.DPOTrainer._compute_loss(trainer, model, batch, False)
    assert preference_loss(ours, given, beta=0.3, sft=sft)[0].item() == pytest.approx(expected.item(), abs=1e-5)


def test_kto_equals_trl() -> None:
    trl = pytest.importorskip("trl.trainer.kto_trainer", reason="trl is not installed")
    given = terms()
    trainer, model, batch = trainer_of_trl(
        given, [(p, 0) for p in range(6)], calculate_KL=True, loss_type="kto", desirable_weight=1.0,
        undesirable_weight=1.0, _compute_kl_logps=lambda *_: given.policy_P2[:, 1],
    )  # fmt: skip
    batch |= {"ref_logps": given.reference_P2[:, 0], "ref_KL_logps": given.reference_P2[:, 1], "label": given.liked_P}
    expected = trl.KTOTrainer._compute_loss(trainer, model, batch, False)
    assert preference_loss("kto", given, beta=0.3)[0].item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_chosen_answers_become_likelier(tiny: Path, tmp_path: Path, method: str) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", ROWS)
    result = run(
        AlignConfig(
            data=str(data), model=str(tiny), held_out=str(data), method=method, lr=0.003, steps=15, batch_tokens=512
        )
    )
    assert result.scores["held_out_reward_accuracy"] > 0.9
    assert result.scores["held_out_loss"] < math.log(2)
    assert result.scores["chosen_likelier"] >= result.scores["chosen_likelier_before"]
    assert open_model("aligned").arch.dim == 32


def test_other_records_are_refused(tiny: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": str(i), "completion": "b"} for i in range(30)])
    with pytest.raises(FormatError, match=r"a completion record.*preferences need"):
        run(AlignConfig(data=str(data), model=str(tiny)))


def test_tables_with_columns_of_any_name(tiny: Path, tmp_path: Path) -> None:
    """A semicolon in an answer, and words for what is liked."""
    rows = [(r["prompt"], r["chosen"] + "; yes", r["rejected"]) for r in ROWS]
    path = tmp_path / "d.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("asked", "best", "worst"), *rows])
    columns = ("prompt=asked,chosen=best,rejected=worst",)
    result = run(AlignConfig(data=str(path), held_out=str(path), columns=columns, model=str(tiny), steps=1, threads=1))
    assert sum(entry["records"] for entry in open_model(result.model).lineage["adapter"]["data"]) == len(rows)
    with pytest.raises(FormatError, match="bad rows"):
        two_sides(AlignConfig(data=str(path), held_out=str(path)))
    liked = tmp_path / "k.csv"
    liked.write_text("prompt,completion,label\nhi,hello,True\nbye,get lost,false\n")
    assert [r["label"] for r in two_sides(AlignConfig(data=str(liked), held_out=str(liked)))[0]] == [True, False]


@pytest.mark.parametrize("objective", ["ipo", "kto", "orpo", "simpo"])
def test_the_relatives_teach_a_tiny_model(tiny: Path, tmp_path: Path, objective: str) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", ROWS)
    result = run(
        AlignConfig(
            data=str(data), model=str(tiny), held_out=str(data), lr=0.003, steps=15, batch_tokens=512, threads=1,
            objective=objective, beta=0.1 if objective != "simpo" else 2.0,
        )
    )  # fmt: skip
    assert result.scores["gained"]["mean"] > 0.9
    assert "share of pairs that are ranked right" in open_run(result.run).report.read_text()


def test_liked_and_disliked_answers_need_no_pairs(tiny: Path, tmp_path: Path) -> None:
    rows = [{"prompt": r["prompt"], "completion": r[k], "label": k == "chosen"} for r in ROWS for k in
            ("chosen", "rejected")]  # fmt: skip
    data = write_jsonl(tmp_path / "d.jsonl", rows)
    config = AlignConfig(data=str(data), model=str(tiny), held_out=str(data), lr=0.003, steps=15, objective="kto")
    result = run(config)
    assert result.scores["gained"]["mean"] > 0.9
    assert result.scores["helped"]["verdict"] == "helped"


@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_the_reference_is_the_model_as_it_came_whenever_it_is_asked(tiny: Path, method: str) -> None:
    config = AlignConfig(model=str(tiny), method=method, virtual_tokens=3, precision="fp32")
    files = open_model(str(tiny))
    pairs = load("d", [make_record("preference", row, source="d") for row in ROWS], files, 64, skip_bad=False)
    wanted = thought_of(load_decoder(files), pairs, shared=False)
    decoder, optimiser = prepare(config, files, lora_lr=0.1, full_lr=0.1)
    asked = reference(decoder, pairs, config, shared=method == "lora")
    early = asked([2, 0])
    for parameter in optimiser.parameters:
        torch.nn.init.normal_(parameter)
    late = asked(range(len(pairs)))
    assert [late[2], late[0]] == early
    for found, expected in zip(late, wanted, strict=True):
        assert found.reference == pytest.approx(expected.reference, abs=1e-4)
    assert thought_of(decoder, pairs[:1], shared=False)[0].reference != pytest.approx(late[0].reference, abs=0.01)
