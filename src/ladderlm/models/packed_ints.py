"""Matrices of 4- or 8-bit integers in a model folder, in the layout of compressed-tensors ("pack-quantized").

transformers reads it through that library where embeddings are left in float16. A matrix `X.weight` of (rows, cols) is
three tensors:
`X.weight_packed` int32 (rows, cols * bits / 32), the codes plus 2^(bits-1), lowest bits first;
`X.weight_scale` float (rows, groups), one scale for cols / groups neighbouring weights of a row;
`X.weight_shape` int64 (2), rows and cols. Asymmetric ones have `X.weight_zero_point` int32 (rows * bits / 32, groups),
packed down the rows. weight = (code - zero) * scale, codes from -2^(bits-1).

Symmetric ones with float16 scales are Q4_0 and Q8_0 blocks in another order, so the engine runs them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ladderlm.errors import FormatError
from ladderlm.models.arch import Shapes
from ladderlm.models.families.stored import Stored
from ladderlm.models.quants import Bytes
from ladderlm.models.weights import Blocks
from ladderlm.types import FloatArray

BITS = (4, 8)
BLOCK = 32  # weights that share a scale in Q4_0 and Q8_0
METHOD, FORMAT = "compressed-tensors", "pack-quantized"
OUTER = ("model.embed_tokens.weight", "lm_head.weight")  # not in layers; canonical names
_PARTS = ("_packed", "_scale", "_shape", "_zero_point")
_CURE = "only weight-only int4 and int8 in the pack-quantized format are read; dequantise it with its own tools first"


@dataclass(frozen=True, slots=True, eq=False)
class PackedMatrix:
    """`data` holds the bytes of a row's codes, (rows, cols * bits / 8); `scales` and `zeros` are (rows, groups)."""

    bits: int
    shape: tuple[int, int]
    data: Bytes
    scales: npt.NDArray[np.floating[Any]]
    zeros: npt.NDArray[np.int8] | None = None

    @property
    def dtype(self) -> str:
        """That of `raw`: to who reads tensors, this is a float32 one that `blocks` has a shorter form of."""
        return "F32"

    def raw(self) -> FloatArray:
        return self.array()

    @property
    def bytes(self) -> int:
        """What codes and scales take in a file."""
        return self.data.size + self.scales.nbytes

    def take(self, rows: slice | npt.NDArray[np.int64]) -> PackedMatrix:
        """Some of the rows, in the order given."""
        data = self.data[rows]
        zeros = None if self.zeros is None else self.zeros[rows]
        return PackedMatrix(self.bits, (len(data), self.shape[1]), data, self.scales[rows], zeros)

    def codes(self) -> npt.NDArray[np.int8]:
        """(rows, cols), from -2^(bits-1)."""
        if self.bits == 8:
            return (self.data ^ np.uint8(128)).view(np.int8)
        pairs = np.stack([self.data & 15, self.data >> 4], axis=-1).reshape(self.shape)
        return pairs.view(np.int8) - np.int8(8)

    def array(self) -> FloatArray:
        """The weights, (rows, cols) in float32."""
        rows, cols = self.shape
        codes = self.codes().reshape(rows, self.scales.shape[1], -1).astype(np.float32)
        if self.zeros is not None:
            codes -= self.zeros[:, :, None]
        codes *= self.scales.astype(np.float32)[:, :, None]
        return codes.reshape(rows, cols)

    def blocks(self) -> Blocks | None:
        """As Q4_0 or Q8_0, exactly; None where a zero point, a group or a scale does not fit those."""
        rows, cols = self.shape
        groups = self.scales.shape[1]
        halves = self.scales.astype("<f2")
        if self.zeros is not None or cols // groups % BLOCK or not np.array_equal(halves, self.scales):
            return None
        count = cols // BLOCK
        scale = np.repeat(halves, count // groups, axis=1).reshape(rows, count, 1).view(np.uint8)
        if self.bits == 8:
            codes = (self.data ^ np.uint8(128)).reshape(rows, count, BLOCK)
        else:  # from neighbours sharing a byte to weights half a block apart
            pairs = self.data.reshape(rows, count, BLOCK // 2)
            nibbles = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(rows, count, BLOCK)
            codes = nibbles[..., : BLOCK // 2] | nibbles[..., BLOCK // 2 :] << 4
        out = np.concatenate([scale, codes], axis=2).reshape(rows, -1)
        return Blocks("Q8_0" if self.bits == 8 else "Q4_0", rows, cols, out)

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        """The three tensors that hold this matrix, `name` being that of the whole ("....weight")."""
        assert self.zeros is None, "written matrices are symmetric"
        return {
            name + "_packed": np.ascontiguousarray(self.data).view("<i4"),
            name + "_scale": self.scales,
            name + "_shape": np.array(self.shape, np.int64),
        }


def pack(codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float16], bits: int) -> PackedMatrix:
    """`codes` (rows, cols) from -2^(bits-1), cols a multiple of 32; `scales` (rows, groups)."""
    assert bits in BITS
    assert codes.shape[1] % BLOCK == 0 == codes.shape[1] % scales.shape[1]
    raised = (codes + np.int8(8)).view(np.uint8) if bits == 4 else codes.view(np.uint8) ^ np.uint8(128)
    data = raised[:, 0::2] | raised[:, 1::2] << 4 if bits == 4 else raised
    return PackedMatrix(bits, (codes.shape[0], codes.shape[1]), np.ascontiguousarray(data), scales)


# --- Reading ------------------------------------------------------------------------------------------------------


def gather(config: Mapping[str, Any], tensors: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`tensors` of a folder with the parts of each packed matrix put together under the matrix's name.

    `config` is the folder's config.json. A folder that is not quantised comes back as it is. Raises FormatError for
    a method or shapes that are not those described above.
    """
    settings = config.get("quantization_config", config.get("compression_config"))
    if not settings:
        return dict(tensors)
    _check_settings(settings, where)
    out = {name: value for name, value in tensors.items() if not name.endswith(_PARTS)}
    for name in tensors:
        if name.endswith("_g_idx"):
            raise FormatError(f"{name}: columns in another order are not supported", where=where, cure=_CURE)
        if name.endswith("_packed"):
            whole = name.removesuffix("_packed")
            out[whole] = _matrix(whole, tensors, where)
    return out


def _check_settings(settings: Any, where: str) -> None:
    """The tensors' own shapes say bits and groups; the settings must not say that more was done."""
    groups = settings.get("config_groups") if isinstance(settings, dict) else None
    if not isinstance(groups, dict) or not all(isinstance(g, dict) for g in groups.values()):
        method = settings.get("quant_method") if isinstance(settings, dict) else settings
        raise FormatError(f"the quantisation {method!r} is not supported", where=where, cure=_CURE)
    whole = settings.get("format")
    formats = {str(whole), *(str(g.get("format") or whole) for g in groups.values())}
    if settings.get("quant_method", METHOD) != METHOD or not formats <= {FORMAT, "mixed-precision"}:
        raise FormatError(f"the quantisation format {whole!r} is not supported", where=where, cure=_CURE)
    if settings.get("kv_cache_scheme") or settings.get("transform_config"):
        raise FormatError("quantised caches and rotations are not supported", where=where, cure=_CURE)
    for group in groups.values():
        weights = group.get("weights")
        if not isinstance(weights, dict) or group.get("input_activations") or group.get("output_activations"):
            raise FormatError("quantised activations are not supported", where=where, cure=_CURE)
        if weights.get("type", "int") != "int" or weights.get("num_bits") not in BITS:
            raise FormatError(f"weights of {weights.get('num_bits')!r} bits are not supported", where=where, cure=_CURE)


def _matrix(name: str, tensors: Mapping[str, Any], where: str) -> PackedMatrix:
    if f"{name}_scale" not in tensors or f"{name}_shape" not in tensors:
        raise FormatError(f"{name} lacks its scale or shape", where=where)
    packed, scale, shape = (tensors[name + part] for part in _PARTS[:3])
    zeros = tensors.get(f"{name}_zero_point")
    if packed.dtype != "I32" or shape.dtype != "I64" or scale.dtype not in ("F16", "BF16", "F32"):
        raise FormatError(f"{name} is packed in a type that is not int32 with float scales", where=where)
    if shape.shape != (2,) or len(packed.shape) != 2 or len(scale.shape) != 2:
        raise FormatError(f"{name} is not packed as a matrix", where=where)
    rows, cols = (int(n) for n in shape.array())
    bits = packed.shape[1] * 32 // cols if 0 < cols < 2**31 else 0
    groups = scale.shape[1]
    if bits not in BITS or packed.shape != (rows, cols * bits // 32) or cols * bits % 32:
        raise FormatError(f"{name} of shape ({rows}, {cols}) does not fit {packed.shape} packed words", where=where)
    if scale.shape[0] != rows or not groups or cols % groups:
        raise FormatError(f"{name} of shape ({rows}, {cols}) does not fit {scale.shape} scales", where=where)
    data = packed.data.reshape(rows, cols * bits // 8)
    points = None if zeros is None else _zero_points(name, zeros, rows, groups, bits, where)
    return PackedMatrix(bits, (rows, cols), data, scale.array(), points)


def _zero_points(name: str, zeros: Any, rows: int, groups: int, bits: int, where: str) -> npt.NDArray[np.int8]:
    """(rows, groups), unpacked: eight rows (four at 8 bits) of a group share a word."""
    words = -(-rows * bits // 32)
    if zeros.dtype != "I32" or zeros.shape != (words, groups):
        raise FormatError(f"{name} does not fit its {zeros.shape} zero points", where=where)
    down = np.ascontiguousarray(zeros.array().T).view(np.uint8)  # (groups, bytes)
    flat = np.stack([down & 15, down >> 4], axis=-1).reshape(groups, -1) if bits == 4 else down
    return (flat[:, :rows].T.astype(np.int16) - (1 << bits - 1)).astype(np.int8)


def part_blocks(matrix: PackedMatrix, stored: Stored, wanted: str, shapes: Shapes) -> Blocks | None:
    """The canonical matrix `wanted` of a packed one that holds it, as blocks; None where it has no such form."""
    if not by_rows(stored):
        return None
    rows = stored.part(np.arange(matrix.shape[0])[:, None], wanted, shapes)[:, 0]
    return (matrix if len(rows) == matrix.shape[0] and stored.order is None else matrix.take(rows)).blocks()


def by_rows(stored: Stored) -> bool:
    """Whether the file's tensor is rows of ours: what can be packed, since a scale belongs to a row."""
    return not (stored.turned or stored.stacked or stored.plus)


# --- Writing ------------------------------------------------------------------------------------------------------

Tensors = Mapping[str, "np.ndarray | PackedMatrix"]


def join(stored: Stored, tensors: Tensors) -> dict[str, np.ndarray]:
    """What a file holds for `stored`: one tensor as Stored.join makes it, or three where its parts are packed."""
    parts = [tensors[name] for name in stored.parts]
    packed = [part for part in parts if isinstance(part, PackedMatrix)]
    if not packed:
        plain = {name: np.asarray(part) for name, part in zip(stored.parts, parts, strict=True)}
        return {stored.name: stored.join(plain.__getitem__)}
    assert len(packed) == len(parts), f"{stored.name} is packed in part"
    assert by_rows(stored), f"{stored.name} cannot be packed"
    whole = packed[0]
    if len(packed) > 1:
        data, scales = np.concatenate([p.data for p in packed]), np.concatenate([p.scales for p in packed])
        whole = PackedMatrix(whole.bits, (len(data), whole.shape[1]), data, scales)
    return (whole if stored.order is None else whole.take(stored.order)).tensors(stored.name)


def packed_bytes(stored: Stored, tensors: Tensors) -> int:
    """What `join` makes takes in a file, if it is packed; else 0."""
    return sum(part.bytes for part in (tensors[name] for name in stored.parts) if isinstance(part, PackedMatrix))


def settings(layout: Sequence[Stored], tensors: Tensors) -> dict[str, Any]:
    """What config.json says of a folder with these tensors: {} or {"quantization_config": ...}.

    One scheme for the matrices in the layers, one for embedding and head.
    """
    schemes: dict[bool, dict[str, Any]] = {}
    plain, heads = [], ["lm_head"]
    for stored in layout:
        value, outer = tensors[stored.parts[0]], stored.parts[0] in OUTER
        module = stored.name.removesuffix(".weight")
        if isinstance(value, PackedMatrix):
            scheme = {"num_bits": value.bits, "group_size": value.shape[1] // value.scales.shape[1]}
            assert schemes.setdefault(outer, scheme) == scheme, "one scheme for all layers, one for the outer two"
            heads = [module] if stored.parts[0] == OUTER[1] else heads
        elif len(value.shape) == 2 and stored.parts[0] != OUTER[0]:
            plain.append(module)
    if not schemes:
        return {}
    packed_head = isinstance(tensors.get(OUTER[1]), PackedMatrix)
    groups = {"group_0": _group(["Linear"], schemes[False])} if False in schemes else {}
    if True in schemes:  # by class: servers look the embedding up without its name
        groups["group_1"] = _group(["Embedding", *(heads if packed_head else [])], schemes[True])
    return {
        "quantization_config": {
            "quant_method": METHOD,
            "format": FORMAT,
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": plain if packed_head else sorted({*plain, *heads}),  # a tied head is a linear too
            "kv_cache_scheme": None,
        }
    }


def _group(targets: list[str], scheme: Mapping[str, Any]) -> dict[str, Any]:
    weights = {**scheme, "type": "int", "symmetric": True, "strategy": "group", "dynamic": False}
    return {
        "targets": targets, "weights": weights, "input_activations": None, "output_activations": None,
        "format": FORMAT,
    }  # fmt: skip
