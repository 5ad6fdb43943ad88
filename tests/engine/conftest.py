"""One engine on a tiny random model, shared by a file's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from engine_models import KindWeights, byte_tokenizer, tiny

from ladderlm.engine import on_cpu
from ladderlm.engine.engine import Engine


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """An engine on a random model with 257 tokens and a context of 160; it has a tokenizer."""
    arch = tiny()
    with Engine(on_cpu(arch, KindWeights(arch), threads=2), byte_tokenizer()) as engine:
        yield engine
