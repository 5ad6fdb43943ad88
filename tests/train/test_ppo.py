"""PPO's parts against reference computations written out, and a tiny model that learns what is rewarded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stories import write_jsonl

from ladderlm.data.records import make_record
from ladderlm.nn.loss import Batch
from ladderlm.store import open_run, read_jsonl
from ladderlm.train.align import AlignConfig, run
from ladderlm.train.ppo import PPOBatch, adapted, generalised_advantages, ppo_batch, ppo_loss, token_rewards
from ladderlm.train.rollout import Answer, Prompt
from ladderlm.train.rounds import Drawn


def test_advantages_equal_the_sum_written_out() -> None:
    rewards, values, gamma, lam = [0.1, -0.2, 1.5], [0.3, 0.5, -0.1], 0.9, 0.8
    deltas = [rewards[t] + gamma * ([*values, 0.0][t + 1]) - values[t] for t in range(3)]
    expected = [sum((gamma * lam) ** k * deltas[t + k] for k in range(3 - t)) for t in range(3)]
    assert generalised_advantages(rewards, values, gamma, lam) == pytest.approx(expected, abs=1e-12)


def test_the_clipped_loss_equals_a_loop_over_tokens() -> None:
    rng = torch.Generator().manual_seed(3)
    drawn, policy, old, new, advantage, returns = (torch.randn(40, generator=rng) * 0.5 for _ in range(6))
    empty = Batch(torch.zeros(40), (40,), torch.arange(40), torch.zeros(40))
    loss, figures = ppo_loss(policy, new, PPOBatch(empty, drawn, old, advantage, returns), clip=0.2)
    policy_terms, value_terms, clipped = [], [], 0
    for t in range(40):
        ratio = float((policy[t] - drawn[t]).exp())
        bounded = min(max(ratio, 0.8), 1.2)
        policy_terms.append(-min(ratio * float(advantage[t]), bounded * float(advantage[t])))
        clipped += bounded * float(advantage[t]) < ratio * float(advantage[t])
        moved = float(old[t]) + min(max(float(new[t] - old[t]), -0.2), 0.2)
        value_terms.append(0.5 * max((float(new[t]) - float(returns[t])) ** 2, (moved - float(returns[t])) ** 2))
    assert loss.item() == pytest.approx(sum(policy_terms) / 40 + 0.1 * sum(value_terms) / 40, abs=1e-5)
    assert figures["clipped"] == pytest.approx(clipped / 40)


def test_a_rounds_batch_is_whitened_and_priced() -> None:
    prompts = [Prompt(make_record("text", {"text": "a"}, source="t"), [1, 2])]
    answers = [Answer(0, (3, 4), (-1.0, -2.0), "", True, reward, (-1.5, -2.5), (0.1, 0.2)) for reward in (1.0, 3.0)]
    drawn = Drawn(prompts, answers, 0.5, {})
    assert token_rewards(answers[0], 1.0, 0.5) == [-0.25, 0.75]
    whole = ppo_batch(drawn, [0, 1])
    assert whole.advantage_N.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert whole.advantage_N.std(correction=0).item() == pytest.approx(1.0, abs=1e-5)
    parts = [ppo_batch(drawn, [i]) for i in (0, 1)]
    assert torch.equal(torch.cat([p.advantage_N for p in parts]), whole.advantage_N)
    raw = generalised_advantages([-0.25, -0.25 + 1.0], [0.1, 0.2])  # deviation of the rewards: 1
    assert whole.returns_N[:2].tolist() == pytest.approx([raw[0] + 0.1, raw[1] + 0.2])


def test_the_price_follows_the_divergence() -> None:
    assert adapted(0.1, 12.0, 6.0) == pytest.approx(0.1 * 1.02)
    assert adapted(0.1, 6.3, 6.0) == pytest.approx(0.1 * 1.005)
    assert adapted(0.1, 0.0, 6.0) == pytest.approx(0.1 * 0.98)


def test_a_tiny_model_learns_what_a_reward_model_prefers_and_a_judge_tells(tiny: Path, tmp_path: Path) -> None:
    pairs = [{"prompt": f"Tell {i} of the cat.", "chosen": "The hen the hen.", "rejected": "zzz q"} for i in range(10)]
    data = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    given = {"data": str(data), "model": str(tiny), "held_out": str(data), "threads": 1, "batch_tokens": 600}
    reward = run(AlignConfig(**given, objective="reward", steps=12, lr=0.01, out=str(tmp_path / "rm")))  # type: ignore[arg-type]
    assert reward.scores["accuracy"] > 0.9
    rows = [{"prompt": p["prompt"], "pattern": "[^e]*"} for p in pairs]
    asked = write_jsonl(tmp_path / "prompts.jsonl", rows)
    result = run(AlignConfig(
        data=str(asked), model=str(tiny), held_out=str(asked), threads=1, batch_tokens=600, objective="ppo",
        reward=str(tmp_path / "rm"), judge="checks", prompts=4, samples=4, max_tokens=8, steps=16, method="full",
        lr=0.002, warmup=1, target_kl=4.0, out=str(tmp_path / "ppo"),
    ))  # fmt: skip
    shown = read_jsonl(open_run(result.run).metrics)
    assert shown[-1]["reward"] > shown[0]["reward"]
    assert {"kl", "answer_kl", "judged", "beta", "length"} <= shown[-1].keys()
    assert {"judged", "hacked", "reward", "engine_gap"} <= result.scores.keys()
    assert result.scores["engine_gap"] < 1e-4
