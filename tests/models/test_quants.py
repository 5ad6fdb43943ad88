import numpy as np
import pytest

from ladderlm.errors import FormatError
from ladderlm.models.quants import KINDS, dequantise, row_bytes


@pytest.mark.parametrize("kind", list(KINDS))
def test_agrees_with_the_gguf_package_bit_for_bit(kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    rows, cols = 64, 512
    random = np.random.default_rng(1)
    data = random.integers(0, 256, (rows, row_bytes(kind, cols)), dtype=np.uint8)
    with np.errstate(all="ignore"):  # random scales can be infinite
        ours = dequantise(kind, data, cols)
        theirs = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    assert ours.shape == (rows, cols)
    assert ours.dtype == np.float32
    finite = np.isfinite(theirs)
    assert finite.mean() > 0.5
    assert np.array_equal(ours[finite].view(np.uint32), theirs.astype(np.float32)[finite].view(np.uint32))
    assert np.array_equal(np.isfinite(ours), finite)


def test_wrong_sizes_are_format_errors() -> None:
    with pytest.raises(FormatError, match="multiple of 32"):
        row_bytes("Q4_0", 33)
    with pytest.raises(FormatError, match="18 bytes"):
        dequantise("Q4_0", np.zeros((1, 17), np.uint8), 32)
    with pytest.raises(FormatError, match="did you mean"):
        dequantise("Q4_9", np.zeros((1, 18), np.uint8), 32)
