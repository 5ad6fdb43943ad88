"""The torch decoder against transformers, and document by document against itself."""

from __future__ import annotations

import pytest
import torch

from ladderlm.errors import ContextOverflow
from ladderlm.models import families
from ladderlm.models.arch import Architecture
from ladderlm.nn.decoder import Decoder
from ladderlm.nn.loss import make_batch, mean_nats, nats


def arch(**changes: object) -> Architecture:
    fields = {
        "family": "llama", "vocab_size": 97, "dim": 32, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 8,
        "hidden": 48, "context_length": 64, "norm_eps": 1e-5, "rope_theta": 10000.0, "tied": True,
    }  # fmt: skip
    return Architecture(**(fields | changes))  # type: ignore[arg-type]


def random_decoder(**changes: object) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(arch(**changes))
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return decoder


@pytest.mark.parametrize(
    "changes", [{}, {"tied": False}, {"kv_heads": 4}, {"kv_heads": 1, "head_dim": 16}, {"rope_theta": 500.0}]
)
def test_logits_and_loss_equal_those_of_transformers(changes: dict[str, object]) -> None:
    transformers = pytest.importorskip("transformers")
    decoder = random_decoder(**changes)
    config = transformers.LlamaConfig(**families.to_hf(decoder.arch))
    theirs = transformers.LlamaForCausalLM(config).eval()
    state = {k: torch.from_numpy(v) for k, v in decoder.state().items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(n == "lm_head.weight" for n in missing)
    theirs.tie_weights()
    documents = [torch.randint(97, (n,)) for n in (40, 17, 17, 2)]
    batch = make_batch([(d.tolist(), [True] * len(d)) for d in documents])
    with torch.no_grad():
        logits_TV = decoder.logits(decoder(batch.ids_T, batch.lengths))
        expected_TV = torch.cat([theirs(input_ids=d[None, :-1]).logits[0] for d in documents])
        losses = [theirs(input_ids=d[None], labels=d[None]).loss * (len(d) - 1) for d in documents]
        assert (logits_TV - expected_TV).abs().max() < 1e-4
        assert mean_nats(decoder, batch)[0].item() == pytest.approx(float(sum(losses)) / batch.weight, abs=1e-5)


def test_a_document_does_not_see_its_neighbours() -> None:
    decoder = random_decoder()
    first, second = torch.randint(97, (9,)), torch.randint(97, (5,))
    with torch.no_grad():
        together_TD = decoder(torch.cat([first, second]), (9, 5))
        assert torch.allclose(together_TD[9:], decoder(second, (5,)), atol=1e-6)
        twice_TD = decoder(torch.cat([second, second]), (5, 5))
        assert torch.allclose(twice_TD[:5], twice_TD[5:], atol=1e-6)


def test_the_loss_is_over_wanted_positions_only() -> None:
    batch = make_batch([([1, 2, 3, 4], [False, False, True, True]), ([5, 6], [True, False]), ([7, 8], [False, True])])
    assert batch.ids_T.tolist() == [1, 2, 3, 5, 7]
    assert batch.lengths == (3, 1, 1)
    assert batch.wanted_N.tolist() == [1, 2, 4]
    assert batch.targets_N.tolist() == [3, 4, 8]


def test_a_frozen_head_gives_the_same_loss_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ladderlm.nn.loss.ROWS", 7)
    decoder = random_decoder(tied=False)
    batch = make_batch([(torch.randint(97, (30,)).tolist(), [True] * 30)])
    weight_N = torch.rand(29)

    def gradients() -> tuple[torch.Tensor, torch.Tensor]:
        nats_N = nats(decoder, batch)
        parameter = decoder.model.layers[0].mlp.up_proj.weight
        return nats_N.detach(), torch.autograd.grad((nats_N * weight_N).sum(), parameter)[0]

    loss, grad = gradients()
    decoder.lm_head.requires_grad_(False)
    frozen_loss, frozen_grad = gradients()
    assert torch.allclose(loss, frozen_loss, atol=1e-5)
    assert torch.allclose(grad, frozen_grad, atol=1e-5)


def test_a_document_longer_than_the_context_is_refused() -> None:
    with pytest.raises(ContextOverflow, match="65 tokens"):
        random_decoder()(torch.zeros(65, dtype=torch.long), (65,))


def test_the_fresh_network_is_nearly_uniform_and_seeded() -> None:
    a, b = (Decoder(arch()).initialise(3).state() for _ in range(2))
    assert all((a[name] == b[name]).all() for name in a)
    decoder = Decoder(arch()).initialise(3)
    loss = mean_nats(decoder, make_batch([(list(range(50)), [True] * 50)]))[0]
    assert abs(loss.item() - torch.tensor(97.0).log().item()) < 0.3


@pytest.mark.parametrize(("cap", "z_loss"), [(0.0, 0.0), (5.0, 0.0), (0.0, 0.01), (5.0, 0.01)])
def test_the_loss_in_blocks_equals_the_loss_at_once(cap: float, z_loss: float) -> None:
    arch = Architecture(vocab_size=90, dim=32, layers=1, heads=2, kv_heads=2, head_dim=16, hidden=48,
                        context_length=400, logit_cap=cap)  # fmt: skip
    decoder = Decoder(arch).initialise(0)
    ids = torch.randint(0, 90, (301,), generator=torch.Generator().manual_seed(1)).tolist()
    batch = make_batch([(ids, [True] * 301)])
    mean_nats(decoder, batch, z_loss)[0].backward()
    ours = {n: p.grad for n, p in decoder.named_parameters()}
    decoder.zero_grad()
    logits_NV = decoder.logits(decoder(batch.ids_T, batch.lengths))
    penalty = z_loss * logits_NV.logsumexp(-1).square().mean()
    (torch.nn.functional.cross_entropy(logits_NV, batch.targets_N) + penalty).backward()
    for name, parameter in decoder.named_parameters():
        assert torch.allclose(ours[name], parameter.grad, atol=1e-6), name
