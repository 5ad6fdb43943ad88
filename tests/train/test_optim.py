"""Muon's orthogonalisation and the optimiser's state."""

from __future__ import annotations

import pytest
import torch

from ladderlm.train.optim import QUINTICS, Optimiser, orthogonalise


def test_the_quintics_bring_every_singular_value_near_one() -> None:
    x = torch.logspace(-3, 0, 5000, dtype=torch.float64)
    for a, b, c in QUINTICS:
        x = a * x + b * x**3 + c * x**5
    assert 0.87 < x.min() < x.max() < 1.13


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 12, 40), (2, 40, 12)])
def test_orthogonalise_is_near_the_polar_factor(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    g_BMN = torch.randn(shape)
    u, _, vt = torch.linalg.svd(g_BMN, full_matrices=False)
    polar_BMN, got_BMN = u @ vt, orthogonalise(g_BMN)
    cosine = (polar_BMN * got_BMN).sum((1, 2)) / (polar_BMN.norm(dim=(1, 2)) * got_BMN.norm(dim=(1, 2)))
    assert cosine.min() > 0.99


def test_muon_solves_a_least_squares_problem_and_leaves_vectors_to_adamw() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(8, 6))
    bias = torch.nn.Parameter(torch.zeros(8))
    x, target = torch.randn(256, 6), torch.randn(8, 6)
    y = x @ target.T + 1.0
    optimiser = Optimiser([("model.layers.0.w", weight), ("model.layers.0.b", bias)], 0.05, muon_lr=0.2)
    assert set(optimiser.state()) == {"muon.model.layers.0.w"}
    for step in range(300):
        (x @ weight.T + bias - y).square().mean().backward()
        optimiser.step(1 - step / 300)
    assert (weight - target).abs().max() < 0.05
    assert (bias - 1).abs().max() < 0.05
    assert "adamw.model.layers.0.b.exp_avg" in optimiser.state()


def test_products_in_16_bits_turn_as_those_in_32() -> None:
    g_BMN = torch.randn(2, 24, 40, generator=torch.Generator().manual_seed(3))
    exact, narrow = orthogonalise(g_BMN), orthogonalise(g_BMN, torch.bfloat16)
    assert narrow.dtype == torch.float32
    assert 0 < (narrow - exact).norm() < 0.2 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_direction_is_ever_stretched(dtype: torch.dtype) -> None:
    """A singular value that rounding leads out of the quintics' range grows from there on: in a run, to thousands."""
    generator = torch.Generator().manual_seed(7)
    size = 128
    spectra = {"falling": torch.linspace(1, 1e-3, size), "even": torch.ones(size)}
    spectra |= {f"rank {k}": torch.cat([torch.ones(k), torch.zeros(size - k)]) for k in (1, 3, 16)}
    for name, values in spectra.items():
        u, v = (torch.linalg.qr(torch.randn(6, size, size, generator=generator))[0] for _ in range(2))
        g_BMN = u @ values.diag() @ v + 1e-3 * torch.randn(6, size, size, generator=generator) / size**0.5
        assert torch.linalg.matrix_norm(orthogonalise(g_BMN, dtype), 2).max() < 1.2, name
