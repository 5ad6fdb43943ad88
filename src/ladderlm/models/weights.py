"""Weights by their Hugging Face names, whatever file they live in: as float32, or as the blocks of the file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ladderlm.errors import FormatError, NotFound
from ladderlm.models.arch import Architecture
from ladderlm.models.gguf import GGUF
from ladderlm.models.quants import Bytes, dequantise
from ladderlm.types import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """A matrix as its file holds it: `data` is (rows, bytes per row) in GGUF's block layout of `kind`."""

    kind: str
    rows: int
    cols: int
    data: Bytes

    def float32(self) -> FloatArray:
        """The weights, (rows, cols)."""
        return dequantise(self.kind, self.data, self.cols)


class Weights(Protocol):
    """Read access to a model's tensors. Rotary q/k rows are in the Hugging Face order (halves)."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def float32(self, name: str) -> FloatArray: ...

    def blocks(self, name: str) -> Blocks | None:
        """The matrix in its file's own format; None where there is no such form (a merged adapter)."""


def matrix_blocks(kind: str, values: np.ndarray) -> Blocks | None:
    """An unquantised matrix (its items 2 or 4 bytes wide) as Blocks; None for a vector."""
    if values.ndim != 2:
        return None
    values = np.ascontiguousarray(values)
    return Blocks(kind, values.shape[0], values.shape[1], values.view(np.uint8).reshape(values.shape[0], -1))


_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INNER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_BLOCK = re.compile(r"blk\.(\d{1,4})\.(\w+)\.weight")


class GGUFWeights:
    """The tensors of a Llama GGUF, mapped, under their Hugging Face names.

    GGUF interleaves the rotary pairs of q and k (row 2j and 2j+1 of a head turn together) where Hugging Face keeps
    them half a head apart (j and j + head_dim/2); the rows are put back in the latter order on reading.
    """

    def __init__(self, file: GGUF, arch: Architecture) -> None:
        self._file, self._arch = file, arch
        self._source = {self._name(n): n for n in file.tensors}
        if missing := sorted(set(arch.tensor_shapes()) - set(self._source)):
            raise FormatError(f"the tensor {missing[0]!r} is missing", where=str(file.path))
        for name, shape in arch.tensor_shapes().items():
            if self.shape(name) != shape:
                raise FormatError(f"{name} has shape {self.shape(name)}, not {shape}", where=str(file.path))

    def _name(self, name: str) -> str:
        if name in _OUTER:
            return _OUTER[name]
        found = _BLOCK.fullmatch(name)
        if found and found[2] in _INNER:
            return f"model.layers.{found[1]}.{_INNER[found[2]]}.weight"
        raise FormatError(
            f"the tensor {name!r} is not one of the llama family", where=str(self._file.path),
            cure="serve it with llama-server and use its URL: url#model",
        )  # fmt: skip

    def names(self) -> list[str]:
        return list(self._arch.tensor_shapes())

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file.tensors[self._lookup(name)].shape

    def float32(self, name: str) -> FloatArray:
        tensor = self._file.tensors[self._lookup(name)]
        return dequantise(tensor.kind, self._rows(name), tensor.shape[-1]).reshape(tensor.shape)

    def blocks(self, name: str) -> Blocks | None:
        tensor = self._file.tensors[self._lookup(name)]
        if len(tensor.shape) != 2:
            return None
        return Blocks(tensor.kind, tensor.shape[0], tensor.shape[1], self._rows(name))

    def _lookup(self, name: str) -> str:
        try:
            return self._source[name]
        except KeyError:
            raise NotFound(f"the model has no tensor {name!r}", where=str(self._file.path)) from None

    def _rows(self, name: str) -> Bytes:
        data = self._file.data(self._lookup(name))
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            data = data[halves_from_pairs(data.shape[0], self._arch.head_dim)]
        return data


def halves_from_pairs(rows: int, head_dim: int) -> np.ndarray:
    """Row order that turns interleaved rotary pairs into halves: new row i is old row `result[i]`."""
    return np.arange(rows).reshape(-1, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
