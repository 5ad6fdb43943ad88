"""Every way to tune against PEFT: from the same start on the same data the same losses, and folders both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_decoder import random_decoder

from ladderlm.errors import UsageError
from ladderlm.models import families
from ladderlm.models.adapter import Adapter, Ia3Config, LoraConfig, MergedWeights, load_adapter, save_adapter
from ladderlm.models.weights import Blocks
from ladderlm.nn.decoder import Decoder, KeyValues
from ladderlm.nn.four_bits import from_blocks, hold_in_4_bits, rounded
from ladderlm.nn.lora import adapter_tensors, add_ia3, add_lora
from ladderlm.nn.loss import Batch, make_batch, mean_nats
from ladderlm.nn.search import go_on
from ladderlm.nn.soft import add_soft, soft_tensors
from ladderlm.nn.tuned import merged_state, without_adapter
from ladderlm.train.optim import Optimiser

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
METHODS = ("lora", "rslora", "dora", "ia3", "prompt", "prefix")
RATES = {"lora": 5e-3, "rslora": 2e-3, "dora": 5e-3, "ia3": 2e-2, "prompt": 2e-2, "prefix": 2e-2}


def tuned(method: str, **changes: Any) -> Decoder:
    decoder = random_decoder(**changes)
    if method in ("prompt", "prefix"):
        return add_soft(decoder, method, 5, seed=3)
    if method == "ia3":
        return add_ia3(decoder, Ia3Config())
    config = LoraConfig(4, 8.0, TARGETS, method == "rslora", method == "dora")
    return add_lora(decoder, config, seed=3)


def save(decoder: Decoder, method: str, path: Path) -> Adapter:
    if method in ("prompt", "prefix"):
        save_adapter(path, "base", *soft_tensors(decoder), arch=decoder.arch)
    else:
        config: Any = LoraConfig(4, 8.0, TARGETS, method == "rslora", method == "dora")
        config = Ia3Config() if method == "ia3" else config
        save_adapter(path, "base", config, adapter_tensors(decoder), arch=decoder.arch)
    return load_adapter(path)


def hf_base(decoder: Decoder) -> Any:
    transformers = pytest.importorskip("transformers")
    plain = random_decoder()
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**families.to_hf(decoder.arch)))
    base.load_state_dict({k: torch.from_numpy(v) for k, v in plain.state().items()}, strict=False)
    base.tie_weights()
    return base


def documents(seed: int) -> list[tuple[list[int], list[bool]]]:
    random = np.random.default_rng(seed)
    out = []
    for length in (19, 7, 7, 31):
        ids = random.integers(0, 97, length)
        out.append((ids.tolist(), [bool(i > length // 3) for i in range(length)]))
    return out


def step(decoder: Decoder, optimiser: Optimiser, batch: Batch) -> float:
    loss = mean_nats(decoder, batch)[0]
    loss.backward()
    optimiser.step(1.0)
    return float(loss.detach())


def their_loss(model: Any, rows: list[tuple[list[int], list[bool]]]) -> torch.Tensor:
    """Padded on the right, as a collator of transformers does it."""
    longest = max(len(ids) for ids, _ in rows)
    padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    seen = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows])
    labels = torch.tensor([
        [i if m else -100 for i, m in zip(ids, mask, strict=True)] + [-100] * (longest - len(ids)) for ids, mask in rows
    ])  # fmt: skip
    loss: torch.Tensor = model(input_ids=padded, attention_mask=seen, labels=labels).loss
    return loss


@pytest.mark.parametrize("method", METHODS)
def test_twenty_steps_give_the_losses_of_peft(method: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    ours = tuned(method)
    save(ours, method, tmp_path / "a")  # their start is our folder
    if method in ("prompt", "prefix"):  # those PEFT does not load to go on with: it is given our start
        kind = peft.PromptTuningConfig if method == "prompt" else peft.PrefixTuningConfig
        theirs = peft.get_peft_model(hf_base(ours), kind(num_virtual_tokens=5, task_type="CAUSAL_LM")).train()
        start = torch.from_numpy(soft_tensors(ours)[1]["prompt_embeddings"])
        theirs.prompt_encoder["default"].embedding.weight.data.copy_(start)
    else:
        theirs = peft.PeftModel.from_pretrained(hf_base(ours), tmp_path / "a", is_trainable=True).train()
    optimiser = Optimiser(ours.named_parameters(), RATES[method])
    trained = [p for p in theirs.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == sum(p.numel() for p in optimiser.parameters)
    adam = torch.optim.AdamW(trained, lr=RATES[method], betas=(0.9, 0.95), weight_decay=0.0)
    losses = []
    for number in range(20):
        rows = documents(number % 3)
        mine = step(ours, optimiser, make_batch(rows))
        adam.zero_grad()
        other = their_loss(theirs, rows)
        other.backward()
        adam.step()
        losses.append((mine, float(other.detach())))
    assert losses[-1][0] < losses[1][0] - 0.01, "it learns"
    assert max(abs(a - b) for a, b in losses) < 1e-4, losses


@pytest.mark.parametrize("method", METHODS)
def test_peft_answers_the_same_from_our_folder_and_we_from_theirs(method: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    ours = tuned(method)
    with torch.no_grad():
        for p in ours.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    adapter = save(ours, method, tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(hf_base(ours), tmp_path / "a").eval()
    ids_T = torch.arange(11) * 7 % 97
    with torch.no_grad():
        mine_TV = ours.logits(ours(ids_T, (11,)))
        other_TV = theirs(input_ids=ids_T[None]).logits[0, -11:]
    assert (mine_TV - other_TV).abs().max() < 1e-4
    theirs.save_pretrained(tmp_path / "b")
    again = load_adapter(tmp_path / "b")
    assert again.kind == adapter.kind
    assert again.config == adapter.config
    if adapter.virtual is not None:
        assert again.virtual is not None
        assert np.allclose(again.virtual, adapter.virtual, atol=1e-6)
    else:
        assert again.tensors().keys() == adapter.tensors().keys()
        assert all(np.allclose(again.tensors()[n], t, atol=1e-6) for n, t in adapter.tensors().items())


@pytest.mark.parametrize("method", METHODS)
def test_switched_off_it_is_the_model_it_was(method: str) -> None:
    plain, ours = random_decoder(), tuned(method)
    with torch.no_grad():
        for p in ours.parameters():
            if p.requires_grad:
                p.add_(0.3)
    ids_T, lengths = torch.arange(16), (5, 5, 6)
    with torch.no_grad():
        before_TD = plain(ids_T, lengths)
        assert not torch.allclose(ours(ids_T, lengths), before_TD, atol=1e-3)
        with without_adapter(ours):
            assert torch.equal(ours(ids_T, lengths), before_TD)
            with pytest.raises(ZeroDivisionError), without_adapter(ours):
                raise ZeroDivisionError
        assert not torch.allclose(ours(ids_T, lengths), before_TD, atol=1e-3)


@pytest.mark.parametrize("method", METHODS[:4])
def test_merged_it_says_the_same_in_torch_and_on_disk(method: str, tmp_path: Path) -> None:
    ours = tuned(method, qkv_bias=True)
    with torch.no_grad():
        for p in ours.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(2)) * 0.1)
    merged = Decoder(ours.arch)
    state = merged_state(ours)
    merged.load_state_dict({n: torch.from_numpy(v) for n, v in state.items()})
    ids_T = torch.arange(16)
    with torch.no_grad():
        assert torch.allclose(ours(ids_T, (9, 7)), merged(ids_T, (9, 7)), atol=1e-4)
    plain = random_decoder(qkv_bias=True).state()
    read = MergedWeights(Plain(plain), save(ours, method, tmp_path / "a"), ours.arch)
    assert state.keys() == plain.keys()
    for name, value in state.items():
        assert np.allclose(read.float32(name), value, atol=1e-5), name


class Plain:
    """Weights in memory."""

    def __init__(self, tensors: dict[str, Any]) -> None:
        self.tensors = tensors

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def float32(self, name: str) -> Any:
        return self.tensors[name]

    def blocks(self, name: str) -> None:
        return None


def test_four_bits_are_those_of_the_file_or_near_the_weights(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weight_OI = torch.from_numpy(random.normal(0, 0.1, (24, 128)).astype(np.float32))
    held = rounded(weight_OI)
    error = (held.dense() - weight_OI).pow(2).mean().sqrt() / weight_OI.std()
    assert error < 0.1  # NormalFloat: 0.09 of the deviation; 16 equal steps of the same range: 0.11
    assert held.packed_OJ.nbytes + held.scale_OC.nbytes == 24 * 128 * 4.25 / 8
    assert torch.equal(rounded(torch.zeros(4, 32)).dense(), torch.zeros(4, 32))
    for kind, size in (("Q4_0", 18), ("Q4_1", 20), ("IQ4_NL", 18), ("Q4_K", 144)):
        per = 256 if kind == "Q4_K" else 32
        data = random.integers(0, 256, (6, 512 // per, size), dtype=np.uint8)
        for at in (0, 2) if kind in ("Q4_1", "Q4_K") else (0,):
            data[..., at : at + 2] = random.normal(0, 1, (6, 512 // per, 1)).astype("<f2").view(np.uint8)
        blocks = Blocks(kind, 6, 512, data.reshape(6, -1))
        assert np.array_equal(from_blocks(blocks).dense().numpy(), blocks.float32()), kind


def test_a_product_in_four_bits_has_the_gradient_of_its_dense_matrix() -> None:
    held = rounded(torch.randn(24, 64), torch.randn(24))
    x_TI, y_TI = (torch.ones(5, 64, requires_grad=True) for _ in range(2))
    held(x_TI).square().sum().backward()
    torch.nn.functional.linear(y_TI, held.dense(), held.bias).square().sum().backward()
    assert x_TI.grad is not None
    assert y_TI.grad is not None
    assert torch.allclose(x_TI.grad, y_TI.grad, rtol=1e-5)


def test_a_decoder_in_four_bits_tunes_and_merges() -> None:
    plain, ours = random_decoder(), random_decoder()
    hold_in_4_bits(ours)
    add_lora(ours, LoraConfig(4, 8.0, TARGETS))
    batch = make_batch(documents(0))
    optimiser = Optimiser(ours.named_parameters(), 5e-3)
    losses = [step(ours, optimiser, batch) for _ in range(10)]
    assert losses[-1] < losses[0]
    assert losses[0] == pytest.approx(mean_nats(plain, batch)[0].item(), rel=0.1)
    state = merged_state(ours)
    assert state.keys() == plain.state().keys()
    merged = Decoder(ours.arch)
    merged.load_state_dict({n: torch.from_numpy(v) for n, v in state.items()})
    with torch.no_grad():
        assert mean_nats(merged, batch)[0].item() == pytest.approx(mean_nats(ours, batch)[0].item(), abs=1e-4)


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_virtual_tokens_do_not_mix_documents_and_words_follow_one_by_one(method: str) -> None:
    ours = tuned(method)
    first, second = torch.randint(97, (9,)), torch.randint(97, (5,))
    with torch.no_grad():
        together_TD = ours(torch.cat([first, second]), (9, 5))
        assert torch.allclose(together_TD[9:], ours(second, (5,)), atol=1e-5)
        cache = KeyValues()
        parts = [ours.extend(part, cache) for part in (first[:4], first[4:5], first[5:])]
        assert torch.allclose(torch.cat(parts), ours(first, (9,)), atol=1e-5)
        assert cache.length == 9 + 5
    assert len(go_on(ours, first.tolist(), max_tokens=1000)) == ours.arch.context_length - 9 - 5
    with pytest.raises(UsageError, match="merged"):
        merged_state(ours)


def test_a_prefix_from_a_text_is_that_text_read_before() -> None:
    ids = [5, 9, 23, 41]
    ours = add_soft(random_decoder(), "prefix", 4, ids=ids)
    prompt = add_soft(random_decoder(), "prompt", 4, ids=ids)
    rest = torch.tensor([7, 1, 80])
    with torch.no_grad():
        whole_TD = random_decoder()(torch.cat([torch.tensor(ids), rest]), (7,))[4:]
        assert torch.allclose(ours(rest, (3,)), whole_TD, atol=1e-5)
        assert torch.allclose(prompt(rest, (3,)), whole_TD, atol=1e-5)
    for wrong in (0, 64):
        with pytest.raises(UsageError, match="virtual_tokens"):
            add_soft(random_decoder(), "prompt", wrong)
