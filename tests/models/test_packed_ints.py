"""Packed integers: exact through the file, through blocks, and as compressed-tensors reads and writes them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from ladderlm.errors import FormatError
from ladderlm.models import open_model, packed_ints, save_model
from ladderlm.models.arch import Architecture
from ladderlm.models.packed_ints import PackedMatrix, pack
from ladderlm.models.safetensors import read_safetensors, write_safetensors
from ladderlm.text.tokenizer import Tokenizer


def random_codes(rows: int, cols: int, bits: int, group: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    codes = random.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, cols)).astype(np.int8)
    return codes, random.normal(0, 0.02, (rows, cols // group)).astype(np.float16)


def packed_model(path: Path, arch: Architecture = tiny.ARCH, bits: int = 4) -> dict[str, Any]:
    """A folder whose projections are packed and whose embedding and head are of 8 bits; the tensors put in."""
    tensors: dict[str, Any] = {}
    for name, value in tiny.tensors(arch).items():
        if value.ndim == 2:
            wide = bits if name.endswith("_proj.weight") else 8
            tensors[name] = pack(*random_codes(*value.shape, wide, 32, len(name)), wide)
        else:
            tensors[name] = value
    tokenizer = Tokenizer.from_gguf(tiny.vocabulary())
    save_model(path, arch, tensors, tokenizer, None, generation={}, lineage={}, dtype="float16")
    return tensors


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_codes_and_blocks_are_the_same_weights(bits: int, group: int) -> None:
    codes, scales = random_codes(7, 256, bits, group)
    packed = pack(codes, scales, bits)
    wanted = (codes.reshape(7, -1, group) * scales.astype(np.float32)[:, :, None]).reshape(7, 256)
    assert np.array_equal(packed.codes(), codes)
    assert np.array_equal(packed.array(), wanted)
    blocks = packed.blocks()
    assert blocks is not None
    assert blocks.kind == {4: "Q4_0", 8: "Q8_0"}[bits]
    assert np.array_equal(blocks.float32(), wanted)


def test_a_scale_beyond_float16_has_no_blocks() -> None:
    codes, scales = random_codes(4, 64, 4, 32)
    packed = dataclasses.replace(pack(codes, scales, 4), scales=scales.astype(np.float32) * np.float32(1.0001))
    assert packed.blocks() is None
    assert np.abs(packed.array()).max() > 0


@pytest.mark.parametrize("bits", [4, 8])
def test_folder_round_trip(tmp_path: Path, bits: int) -> None:
    tensors = packed_model(tmp_path / "m", bits=bits)
    files = open_model(str(tmp_path / "m"))
    for name, value in tensors.items():
        assert files.weights.shape(name) == value.shape
        blocks = files.weights.blocks(name)
        if isinstance(value, PackedMatrix):
            assert np.array_equal(files.weights.float32(name), value.array())
            assert blocks is not None
            assert blocks.kind == ("Q4_0" if value.bits == 4 else "Q8_0")
            assert np.array_equal(blocks.float32(), value.array())
    settings = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    assert settings["quant_method"] == "compressed-tensors"
    assert settings["config_groups"]["group_0"]["weights"]["num_bits"] == bits
    assert settings["config_groups"]["group_1"]["targets"] == ["Embedding", "lm_head"]
    assert settings["ignore"] == []
    size = sum(value.bytes for value in tensors.values() if isinstance(value, PackedMatrix))
    held = read_safetensors(tmp_path / "m" / "model.safetensors")
    assert sum(t.data.size for name, t in held.items() if name.endswith(("_packed", "_scale"))) == size


def test_a_tied_head_is_left_alone(tmp_path: Path) -> None:
    packed_model(tmp_path / "m", dataclasses.replace(tiny.ARCH, tied=True))
    settings = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    assert settings["config_groups"]["group_1"]["targets"] == ["Embedding"]
    assert settings["ignore"] == ["lm_head"]


def test_matrices_that_a_family_joins_stay_packed(tmp_path: Path) -> None:
    arch = dataclasses.replace(tiny.ARCH, family="phi3")
    tensors = packed_model(tmp_path / "m", arch)
    held = read_safetensors(tmp_path / "m" / "model.safetensors")
    assert held["model.layers.0.self_attn.qkv_proj.weight_packed"].shape == (32 + 16 + 16, 4)
    weights = open_model(str(tmp_path / "m")).weights
    for name in ("self_attn.k_proj", "mlp.up_proj"):
        name = f"model.layers.1.{name}.weight"
        blocks = weights.blocks(name)
        assert blocks is not None
        assert blocks.kind == "Q4_0"
        assert np.array_equal(blocks.float32(), tensors[name].array())
        assert np.array_equal(weights.float32(name), tensors[name].array())


Q = "model.layers.0.self_attn.q_proj.weight"
SPOILED: dict[str, Callable[[dict[str, np.ndarray]], Any]] = {
    "no scale": lambda t: t.pop(Q + "_scale"),
    "no shape": lambda t: t.pop(Q + "_shape"),
    "words": lambda t: t.update({Q + "_packed": t[Q + "_packed"][:, :-1].copy()}),
    "rows": lambda t: t.update({Q + "_packed": t[Q + "_packed"][:-1].copy()}),
    "packed type": lambda t: t.update({Q + "_packed": t[Q + "_packed"].astype(np.int64)}),
    "scales": lambda t: t.update({Q + "_scale": np.zeros((32, 3), np.float16)}),
    "no groups": lambda t: t.update({Q + "_scale": np.zeros((32, 0), np.float16)}),
    "scale type": lambda t: t.update({Q + "_scale": np.zeros((32, 1), np.int16)}),
    "negative shape": lambda t: t.update({Q + "_shape": np.array([32, -32])}),
    "absurd shape": lambda t: t.update({Q + "_shape": np.array([2**40, 2**40])}),
    "three extents": lambda t: t.update({Q + "_shape": np.array([32, 32, 1])}),
    "zero points": lambda t: t.update({Q + "_zero_point": np.zeros((3, 1), np.int32)}),
    "order": lambda t: t.update({Q.removesuffix("weight") + "weight_g_idx": np.zeros(32, np.int32)}),
}


@pytest.mark.parametrize("how", SPOILED)
def test_what_does_not_fit_is_named(tmp_path: Path, how: str) -> None:
    packed_model(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    tensors = {name: np.array(tensor.array()) for name, tensor in read_safetensors(file).items()}
    SPOILED[how](tensors)
    file.unlink()
    write_safetensors(file, tensors, "float16")
    with pytest.raises(FormatError, match=r"q_proj\.weight"):
        open_model(str(tmp_path / "m"))


GROUP = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int"}}


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "fp8", "config_groups": {"g": GROUP}},
        {"config_groups": {"g": GROUP}, "format": "nvfp4-pack-quantized"},
        {"config_groups": {"g": {**GROUP, "format": ["x"]}}, "format": "pack-quantized"},
        {"config_groups": {"g": {**GROUP, "input_activations": {"num_bits": 8}}}, "format": "pack-quantized"},
        {"config_groups": {"g": {**GROUP, "weights": {"num_bits": 3}}}, "format": "pack-quantized"},
        {"config_groups": {"g": {**GROUP, "weights": None}}, "format": "pack-quantized"},
        {"config_groups": {"g": GROUP}, "format": "pack-quantized", "kv_cache_scheme": {"num_bits": 8}},
        "int4",
        ["x"],
    ],
)
def test_other_quantisations_are_refused(tmp_path: Path, settings: Any) -> None:
    packed_model(tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    config = json.loads(file.read_text()) | {"quantization_config": settings}
    file.write_text(json.dumps(config))
    with pytest.raises(FormatError, match="supported"):
        open_model(str(tmp_path / "m"))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("group", "symmetric"), [(32, True), (64, False), (128, False)])
def test_as_compressed_tensors_packs_and_unpacks(bits: int, group: int, symmetric: bool) -> None:
    """What its compressor writes we read, zero points and whole rows included; what we write it reads."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    strategy: dict[str, Any] = {"strategy": "group", "group_size": group} if group < 128 else {"strategy": "channel"}
    args = QuantizationArgs(num_bits=bits, symmetric=symmetric, **strategy)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    codes, scales = random_codes(12, 128, bits, group)
    zeros = np.zeros_like(codes[:, : 128 // group])
    if not symmetric:
        zeros = np.random.default_rng(1).integers(-4, 4, zeros.shape).astype(np.int8)
    spread = [np.repeat(x, group, axis=1) for x in (zeros, scales.astype(np.float32))]
    weight = (codes.astype(np.float32) - spread[0]) * spread[1]
    state = {"weight": torch.from_numpy(weight), "weight_scale": torch.from_numpy(scales.astype(np.float32))}
    theirs = compressor.compress(state | {"weight_zero_point": torch.from_numpy(zeros)}, scheme)
    names = {"int32": "I32", "int64": "I64", "float32": "F32"}

    class Stored:
        def __init__(self, value: Any) -> None:
            self._array = value.numpy()
            self.dtype, self.shape = names[str(self._array.dtype)], self._array.shape
            self.data = np.ascontiguousarray(self._array).view(np.uint8).reshape(-1)

        def array(self) -> np.ndarray:
            return np.asarray(self._array)

    config = {"quantization_config": {"format": "pack-quantized", "config_groups": {"g": GROUP}}}
    tensors = {f"x.{name}": Stored(value) for name, value in theirs.items()}
    assert ("x.weight_zero_point" in tensors) is not symmetric
    read = packed_ints.gather(config, tensors, "here")["x.weight"]
    assert np.array_equal(read.codes(), codes)
    assert np.allclose(read.array(), weight, rtol=1e-6, atol=0)
    assert (read.blocks() is not None) is symmetric
    if symmetric:
        ours = pack(codes, scales, bits).tensors("weight")
        back = compressor.decompress({name: torch.from_numpy(value.copy()) for name, value in ours.items()}, scheme)
        assert np.array_equal(back["weight"].float().numpy(), weight.astype(np.float16).astype(np.float32))
