"""Training in fewer bits: values and gradients against those in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ladderlm.models.arch import Architecture
from ladderlm.nn import dense
from ladderlm.nn.decoder import Decoder
from ladderlm.nn.linear import Linear, integer_products
from ladderlm.nn.loss import make_batch, mean_nats

BF16 = 2.0**-8  # the rounding of one number


@pytest.mark.parametrize("length", [1, 7, 64])
def test_values_and_gradients_are_those_of_float32_but_for_rounding(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    inputs = [torch.randn(2, 3, length, 16, generator=generator) for _ in range(3)]
    upstream = torch.randn(2, 3, length, 16, generator=generator)
    exact = [x.clone().requires_grad_() for x in inputs]
    expected = F.scaled_dot_product_attention(*exact, is_causal=True)
    expected.backward(upstream)
    rounded = [x.clone().requires_grad_() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        assert dense.suits(rounded[0], length)
        found = dense.attend(*rounded, 16**-0.5)
    assert found.dtype == torch.bfloat16
    found.backward(upstream.bfloat16())
    assert (found.float() - expected).norm() < 3 * BF16 * expected.norm()
    for one, other in zip(rounded, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert (one.grad - other.grad).norm() <= 5 * BF16 * max(other.grad.norm(), 1.0)


def test_it_is_for_training_short_texts_in_16_bits() -> None:
    short, long = (torch.zeros(1, 1, n, 8, requires_grad=True) for n in (4, dense.LONGEST + 1))
    assert not dense.suits(short, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert dense.suits(short, 4)
        assert not dense.suits(long, dense.LONGEST + 1)
        assert not dense.suits(short.detach(), 4)
        assert dense.narrow(short).dtype == torch.bfloat16
    assert dense.narrow(short).dtype == torch.float32


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_a_step_in_16_bits_has_the_gradients_of_one_in_32(kv_heads: int) -> None:
    arch = Architecture(
        vocab_size=50, dim=32, layers=2, heads=4, kv_heads=kv_heads, head_dim=8, hidden=48, context_length=40
    )
    ids = torch.randint(0, 50, (41,), generator=torch.Generator().manual_seed(1)).tolist()
    batch = make_batch([(ids, [True] * 41), (ids[:20], [True] * 20)])
    grads, losses = [], []
    for narrow in (False, True):
        model = Decoder(arch).initialise(3)
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):  # zero at the start: nothing would flow behind
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(2))
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            loss, _ = mean_nats(model, batch)
        loss.backward()
        losses.append(loss.item())
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    for name, grad in grads[0].items():
        other = grads[1][name]
        assert grad is not None
        assert other is not None
        assert other.dtype == torch.float32
        assert (grad - other).norm() < 0.05 * grad.norm(), name


def test_products_of_integers_keep_values_gradients_and_the_exact_gradient_of_weights() -> None:
    generator = torch.Generator().manual_seed(5)
    layer = Linear(48, 80, bias=True)
    x = torch.randn(96, 48, generator=generator)
    upstream = torch.randn(96, 80, generator=generator)
    found = []
    for integers in (False, True):
        given = x.clone().requires_grad_()
        layer.zero_grad()
        if integers:
            with integer_products():
                out = layer(given)
        else:
            out = layer(given)
        out.backward(upstream)
        assert given.grad is not None
        assert layer.weight.grad is not None
        found.append((out.detach(), given.grad, layer.weight.grad.clone()))
    (exact, exact_grad, exact_weight), (out, grad, weight) = found
    assert 1e-4 < (out - exact).norm() / exact.norm() < 0.02  # rounded, and not by much
    assert 1e-4 < (grad - exact_grad).norm() / exact_grad.norm() < 0.02
    assert torch.allclose(weight, exact_weight, rtol=1e-4, atol=1e-4)
