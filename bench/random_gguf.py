"""Random Llama-style models as GGUF files, from 15 million weights to 7 billion: `python -m bench.random_gguf DIR ...`.

Speed does not depend on what weights say, so the blocks of Q8_0 and Q4_0 are drawn as they are stored: random codes
and scales that make weights of standard deviation 0.02. Every matrix is of the one kind, the embedding too.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ladderlm.models.arch import Architecture
from ladderlm.models.families import ggufs
from ladderlm.models.gguf_write import Entry, write_gguf
from ladderlm.models.quants import KINDS, Bytes

VOCAB = 32_000
# name -> dim, layers, heads, key heads, hidden; those of the public models of that size. The first two are tied.
SHAPES = {
    "15m": (288, 6, 6, 6, 768),
    "110m": (768, 12, 12, 12, 2048),
    "1.1b": (2048, 22, 32, 4, 5632),
    "7b": (4096, 32, 32, 32, 11008),
}
FILE_TYPES = {"Q8_0": 7, "Q4_0": 2}
_SPREAD = {"Q8_0": 256 / math.sqrt(12), "Q4_0": 16 / math.sqrt(12)}  # standard deviation of a random code
_PIECE = 2**18  # blocks drawn at a time


def architecture(name: str) -> Architecture:
    dim, layers, heads, kv_heads, hidden = SHAPES[name]
    return Architecture(
        vocab_size=VOCAB, dim=dim, layers=layers, heads=heads, kv_heads=kv_heads, head_dim=dim // heads, hidden=hidden,
        context_length=4096, tied=name in ("15m", "110m"),
    )  # fmt: skip


def write(name: str, kind: str, path: Path) -> Path:
    """The model `name` of SHAPES with matrices of `kind`; the same bytes every time."""
    arch = architecture(name)
    own, _ = ggufs.to_gguf(arch)
    meta = {
        "general.type": "model", "general.name": f"random {name} {kind}", "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": 2,
    }  # fmt: skip
    shapes, seeds = arch.tensor_shapes(), itertools.count()
    tensors = []
    for stored in ggufs.stored(arch):
        shape = stored.shape(shapes)
        draw = (
            functools.partial(_ones, shape) if len(shape) == 1 else functools.partial(_blocks, kind, shape, next(seeds))
        )
        tensors.append(Entry(stored.name, "F32" if len(shape) == 1 else kind, shape, draw))
    write_gguf(path, meta | own | vocabulary(), tensors)
    return path


def _ones(shape: tuple[int, ...]) -> Iterator[Bytes]:
    yield np.ones(shape, np.float32).view(np.uint8)


def _blocks(kind: str, shape: tuple[int, ...], seed: int) -> Iterator[Bytes]:
    """A scale as float16, then the codes: 32 bytes (Q8_0) or 16 (Q4_0) a block."""
    random = np.random.default_rng(seed)
    size, left = KINDS[kind], math.prod(shape) // KINDS[kind].weights
    while left:
        count = min(left, _PIECE)
        out = np.frombuffer(random.bytes(count * size.bytes), np.uint8).reshape(count, size.bytes).copy()
        scale = (random.uniform(0.8, 1.2, count) * 0.02 / _SPREAD[kind]).astype(np.float16)
        out[:, :2] = scale.view(np.uint8).reshape(-1, 2)
        yield out
        left -= count


def vocabulary() -> dict[str, Any]:
    """A SentencePiece vocabulary: three control tokens, the 256 bytes, then strings of letters by length."""
    letters = "\u2581" + string.ascii_lowercase
    strings = ("".join(s) for length in itertools.count(1) for s in itertools.product(letters, repeat=length))
    made = list(itertools.islice(strings, VOCAB - 259))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *made],
        "tokenizer.ggml.scores": np.array([0.0] * 259 + [-float(i) for i in range(len(made))], np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 3] + [6] * 256 + [1] * len(made), np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": False,
    }


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.random_gguf", description="Writes random models as GGUF files.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+", choices=SHAPES)
    parser.add_argument("--kind", action="append", choices=FILE_TYPES)
    args = parser.parse_args()
    for name, kind in itertools.product(args.names, args.kind or FILE_TYPES):
        print(write(name, kind, args.folder / f"{name}-{kind}.gguf"))


if __name__ == "__main__":
    main()
