"""Adapters against PEFT, and what is frozen stays frozen."""

from __future__ import annotations

import pytest
import torch
from test_decoder import random_decoder

from ladderlm.errors import UsageError
from ladderlm.models import families
from ladderlm.models.adapter import LoraConfig
from ladderlm.nn.lora import adapter_tensors, add_lora
from ladderlm.nn.loss import make_batch, mean_nats
from ladderlm.nn.tuned import without_adapter

CONFIG = LoraConfig(rank=4, alpha=8, targets=("q_proj", "v_proj", "down_proj"))


def test_forward_and_names_equal_those_of_peft() -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    decoder = random_decoder()
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**families.to_hf(decoder.arch)))
    base.load_state_dict({k: torch.from_numpy(v) for k, v in decoder.state().items()}, strict=False)
    base.tie_weights()
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=8, target_modules=list(CONFIG.targets))).eval()
    add_lora(decoder, CONFIG)
    for name, parameter in decoder.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    tensors = {k: torch.from_numpy(v) for k, v in adapter_tensors(decoder).items()}
    loaded = peft.set_peft_model_state_dict(theirs, tensors)
    assert not loaded.unexpected_keys
    assert tensors.keys() == peft.get_peft_model_state_dict(theirs).keys()
    ids_T = torch.randint(97, (23,))
    with torch.no_grad():
        ours_TV = decoder.logits(decoder(ids_T, (23,)))
        assert (ours_TV - theirs(input_ids=ids_T[None]).logits[0]).abs().max() < 1e-4


def test_only_adapters_of_the_last_layers_train() -> None:
    decoder = add_lora(random_decoder(), CONFIG, layers_trained=1)
    mean_nats(decoder, make_batch([(list(range(20)), [True] * 20)]))[0].backward()
    trained = {n for n, p in decoder.named_parameters() if p.grad is not None}
    assert trained == {n for n in dict(decoder.named_parameters()) if "layers.2" in n and "lora_" in n}
    assert len(trained) == 6


def test_a_fresh_adapter_changes_nothing_and_can_be_switched_off() -> None:
    decoder = random_decoder()
    ids_T = torch.arange(12)
    with torch.no_grad():
        before_TD = decoder(ids_T, (12,))
        add_lora(decoder, CONFIG)
        assert torch.equal(decoder(ids_T, (12,)), before_TD)
        torch.nn.init.normal_(decoder.model.layers[0].self_attn.q_proj.lora_B.weight)
        assert not torch.allclose(decoder(ids_T, (12,)), before_TD, atol=1e-3)
        with without_adapter(decoder):
            assert torch.equal(decoder(ids_T, (12,)), before_TD)


def test_an_unknown_target_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'q_proj'"):
        add_lora(random_decoder(), LoraConfig(rank=4, alpha=8, targets=("q_prj",)))
