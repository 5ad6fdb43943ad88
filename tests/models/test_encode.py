"""float32 into blocks: bit for bit as the gguf package where it can, close to the weights where it cannot."""

import numpy as np
import pytest

from ladderlm.errors import FormatError, UsageError
from ladderlm.models.encode import ENCODABLE, encode
from ladderlm.models.quants import dequantise


def weights(rows: int = 64, cols: int = 512, seed: int = 0) -> np.ndarray:
    """Like a network's: a scale for each row, some rows far from zero, a few large values."""
    random = np.random.default_rng(seed)
    values = random.normal(0, 1, (rows, cols)) * np.exp(random.normal(-3, 1, (rows, 1)))
    values[::7] += 0.2
    values[random.random((rows, cols)) < 0.001] *= 20
    return values.astype(np.float32)


@pytest.mark.parametrize("kind", [k for k in ENCODABLE if k != "Q4_K"])
def test_agrees_with_the_gguf_package_bit_for_bit(kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    values = weights()
    values[3] = 0
    values[4, :32] = -values[4, :32].max()
    theirs = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    ours = encode(kind, values)
    assert np.array_equal(ours, np.ascontiguousarray(theirs).view(np.uint8).reshape(ours.shape))


@pytest.mark.parametrize(
    ("kind", "bound"),
    [("F32", 0), ("F16", 3e-4), ("BF16", 2.5e-3), ("Q8_0", 0.008), ("Q5_0", 0.07), ("Q4_0", 0.14), ("Q4_K", 0.09)],
)
def test_comes_back_near_the_weights(kind: str, bound: float) -> None:
    values = weights(1000, 768)  # several chunks, the last one partial
    back = dequantise(kind, encode(kind, values), 768)
    assert np.linalg.norm(back - values) <= bound * np.linalg.norm(values)


def test_the_gguf_package_reads_q4_k_as_we_do() -> None:
    gguf = pytest.importorskip("gguf")
    data = encode("Q4_K", weights())
    theirs = gguf.quants.dequantize(data, gguf.GGMLQuantizationType.Q4_K)
    assert np.array_equal(dequantise("Q4_K", data, 512), theirs)


def test_q4_k_finds_better_steps_than_the_span() -> None:
    """The search must beat the plain choice, (max - min) / 15 with 16-bit scales, although its scales have 6 bits."""
    values = weights()
    parts = values.reshape(-1, 32)
    low, high = np.minimum(parts.min(1, keepdims=True), 0), parts.max(1, keepdims=True)
    step = (high - low) / 15
    plain = np.clip(np.rint((parts - low) / step), 0, 15) * step + low
    found = dequantise("Q4_K", encode("Q4_K", values), 512).reshape(parts.shape)
    assert np.square(found - parts).mean() < 0.95 * np.square(plain - parts).mean()


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_0", "Q4_0", "Q4_K"])
@pytest.mark.parametrize("value", [0.0, 0.5, -0.5, 1e-30, 6e4])
def test_constant_rows(kind: str, value: float) -> None:
    values = np.full((2, 256), value, np.float32)
    back = dequantise(kind, encode(kind, values), 256)
    assert np.allclose(back, values, rtol=0.01, atol=1e-6)


def test_what_does_not_fit_is_an_error() -> None:
    with pytest.raises(UsageError, match="did you mean"):
        encode("Q4_1", weights())
    with pytest.raises(FormatError, match="multiple of 256"):
        encode("Q4_K", np.zeros((1, 64), np.float32))
    with pytest.raises(FormatError, match="too large"):
        encode("F16", np.full((1, 4), 1e6, np.float32))
    for bad in (np.inf, np.nan):
        with pytest.raises(FormatError, match="infinite or undefined"):
            encode("Q8_0", np.full((1, 32), bad, np.float32))
    assert np.isnan(dequantise("BF16", encode("BF16", np.full((1, 4), np.nan, np.float32)), 4)).all()
