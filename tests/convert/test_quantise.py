"""Rounding, calibration, and the int folder from a model to the engine."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ladderlm import engine
from ladderlm.convert.calibrate import round_layers
from ladderlm.convert.quantise import QuantiseConfig, calibration, run
from ladderlm.convert.rounding import best_scales, gptq, to_nearest
from ladderlm.errors import MissingExtra, StorageError, UsageError
from ladderlm.models import open_model, save_model
from ladderlm.models.arch import Architecture
from ladderlm.models.packed_ints import PackedMatrix, pack
from ladderlm.nn.decoder import Decoder, load_decoder
from ladderlm.text.bpe import train_bpe

ARCH = Architecture(
    vocab_size=320, dim=64, layers=2, heads=4, kv_heads=2, head_dim=16, hidden=128, context_length=64, tied=True
)
TEXT = " ".join(
    f"The {a} hen saw {n} foxes by the {p}." for a in ("red", "old") for n in "234" for p in ("barn", "yard")
)


def random_decoder(arch: Architecture = ARCH) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(arch)
    for name, parameter in decoder.named_parameters():
        scale = 0.5 if "embed" in name else parameter.shape[-1] ** -0.5
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2 if parameter.ndim == 1 else scale)
    return decoder


def save(path: Path, arch: Architecture = ARCH) -> str:
    tokenizer = train_bpe([TEXT], 300)
    save_model(path, arch, random_decoder(arch).state(), tokenizer, None, generation={}, lineage={"licence": "mit"})
    return str(path)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder of random weights."""
    return save(tmp_path / "model")


@pytest.fixture
def text(tmp_path: Path) -> str:
    """Calibration text."""
    (tmp_path / "text.txt").write_text(TEXT * 8)
    return str(tmp_path / "text.txt")


# --- Rounding -----------------------------------------------------------------------------------------------------


def correlated(inputs: int = 128, outputs: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (tokens, inputs) of which a few directions dominate, and weights (outputs, inputs)."""
    random = np.random.default_rng(0)
    mixing = random.normal(size=(inputs, inputs)) * np.exp(-np.arange(inputs) / 16)[:, None]
    x = random.normal(size=(1024, inputs)) @ mixing + 0.3 * random.normal(size=(1024, inputs))
    return x.astype(np.float32), random.normal(0, 0.05, (outputs, inputs)).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
def test_to_nearest_is_half_a_step_away_at_most(bits: int) -> None:
    _, weight = correlated()
    codes, scales = to_nearest(weight, bits, 32)
    step = np.repeat(scales.astype(np.float32), 32, axis=1)
    half = 0.5 + 2 ** (bits - 1) * 2**-11  # the extreme weight misses by the scale's own rounding too
    assert np.all(np.abs(codes * step - weight) <= step * half * 1.001)
    assert codes.min() < -(2 ** (bits - 1)) * 0.9


def test_zeros_and_giants_round_to_finite_numbers() -> None:
    weight = np.zeros((2, 64), np.float32)
    weight[1, 0] = 1e9
    for codes, scales in (to_nearest(weight, 4, 32), gptq(weight, np.zeros((64, 64)), 4, 32)):
        assert np.isfinite(scales.astype(np.float32)).all()
        assert not codes[0].any()


def test_best_scales_are_no_worse_than_the_largest_weights() -> None:
    _, weight = correlated()
    groups = weight.reshape(-1, 32)
    codes, scales = to_nearest(groups, 4, 32)
    plain = np.square(codes * scales.astype(np.float32) - groups).sum(1)
    best = best_scales(groups, np.ones(32, np.float32), 4).astype(np.float32)[:, None]
    chosen = np.square(np.clip(np.rint(groups / best), -8, 7) * best - groups).sum(1)
    assert chosen.mean() < 0.9 * plain.mean()


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_keeps_outputs_where_rounding_does_not(bits: int, group: int) -> None:
    x, weight = correlated()

    def error(codes: np.ndarray, scales: np.ndarray) -> float:
        change = pack(codes, scales, bits).array() - weight
        return float(np.square(x @ change.T).sum())

    moments = (x.T @ x).astype(np.float64)
    assert error(*gptq(weight, moments, bits, group)) < 0.35 * error(*to_nearest(weight, bits, group))


# --- Calibration --------------------------------------------------------------------------------------------------


def test_each_linear_is_calibrated_on_what_the_rounded_model_gives() -> None:
    """Rounding the first layer's values to zero leaves its output projection without any input."""
    decoder = random_decoder()
    moments: list[np.ndarray] = []

    def spy(weight: np.ndarray, moments_II: np.ndarray) -> PackedMatrix:
        moments.append(moments_II)
        codes, scales = to_nearest(weight, 4, 32)
        return pack(codes * 0 if len(moments) == 1 else codes, scales, 4)

    windows = [[1, 2, 3, 4], [5, 6, 7, 8, 9]]
    embedded = decoder.model.embed_tokens(torch.tensor([i for w in windows for i in w]))
    first = decoder.model.layers[0].input_layernorm(embedded).detach().numpy()
    packed = round_layers(decoder, windows, spy)
    assert len(moments) == 4 * ARCH.layers  # q, k and v; o; gate and up; down
    assert np.allclose(moments[0], first.T @ first, rtol=1e-4, atol=1e-4)
    assert not moments[1].any()
    assert moments[2].any()
    assert set(packed) == {n for n in ARCH.tensor_shapes() if n.endswith("_proj.weight")}
    for name, value in decoder.state().items():
        assert name not in packed or np.array_equal(packed[name].array(), value)


def test_experts_without_calibration_tokens_are_left_to_rounding() -> None:
    arch = dataclasses.replace(ARCH, family="mixtral", experts=4, experts_used=1, expert_hidden=64, norm_eps=1e-5)
    packed = round_layers(random_decoder(arch), [[1, 2, 3]], lambda w, m: pack(*to_nearest(w, 4, 32), 4))
    wanted = {n for n in arch.tensor_shapes() if n.endswith("_proj.weight")}
    assert 0 < len(packed) < len(wanted)
    assert not any(".gate." in name for name in packed)


def test_calibration_text_is_cut_into_windows(model: str, text: str) -> None:
    files = open_model(model)
    config = QuantiseConfig(model, calibrate=text, tokens=256)
    windows = calibration(files, config)
    assert [len(w) for w in windows] == [64] * 4
    assert all(w[0] == files.tokenizer.document_start_id for w in windows)
    assert windows == calibration(files, config)
    assert windows != calibration(files, dataclasses.replace(config, seed=1))


def test_a_model_without_text_writes_some(model: str) -> None:
    files = open_model(model)
    config = QuantiseConfig(model, tokens=256)
    windows = calibration(files, config)
    assert len(windows) == 4
    assert all(len(w) <= 64 for w in windows)
    assert sum(map(len, windows)) > 16
    assert windows == calibration(files, config)


# --- The folder ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
def test_the_engine_runs_what_torch_dequantises(model: str, tmp_path: Path, bits: int) -> None:
    out = str(tmp_path / "int")
    result = run(QuantiseConfig(model, out, bits=bits, method="rtn"))
    files = open_model(out)
    blocks = files.weights.blocks("model.layers.1.mlp.down_proj.weight")
    assert blocks is not None
    assert blocks.kind == ("Q4_0" if bits == 4 else "Q8_0")
    ids = files.tokenizer.encode(TEXT)[:40]
    decoder = load_decoder(files)
    with torch.no_grad():
        wanted = decoder.logits(decoder(torch.tensor(ids), [len(ids)])).numpy()
    with engine.load(files, threads=2, exact=True) as running:
        assert np.abs(running.logits(ids) - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert result.bytes == files.bytes
    note = files.lineage["quantised"]
    assert (note["bits"], note["method"], note["source"]) == (bits, "rtn", open_model(model).hash)
    assert files.lineage["licence"] == "mit"


def test_calibrated_logits_are_nearer_than_rounded_ones(model: str, tmp_path: Path, text: str) -> None:
    errors = {}
    ids = open_model(model).tokenizer.encode(TEXT)[20:60]
    with engine.load(open_model(model), threads=2) as running:
        wanted = running.logits(ids)
    for method in ("rtn", "gptq"):
        run(QuantiseConfig(model, str(tmp_path / method), method=method, calibrate=text, tokens=2048))
        with engine.load(open_model(str(tmp_path / method)), threads=2) as running:
            errors[method] = float(np.square(running.logits(ids) - wanted).mean())
    assert errors["gptq"] < 0.7 * errors["rtn"]
    note = open_model(str(tmp_path / "gptq")).lineage["quantised"]
    assert len(note["calibration_sha256"]) == 64
    assert note["calibration_tokens"] > 1000


def test_embeddings_may_stay_in_16_bits(model: str, tmp_path: Path) -> None:
    out = tmp_path / "int"
    run(QuantiseConfig(model, str(out), method="rtn", embeddings="float16"))
    files = open_model(str(out))
    blocks = files.weights.blocks("model.embed_tokens.weight")
    assert blocks is not None
    assert blocks.kind == "F16"
    settings = json.loads((out / "config.json").read_text())["quantization_config"]
    assert list(settings["config_groups"]) == ["group_0"]


def test_transformers_computes_the_same(model: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    out = str(tmp_path / "int")
    run(QuantiseConfig(model, out, method="rtn", embeddings="float16"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    decoder = load_decoder(open_model(out))
    ids = torch.arange(1, 30)
    with torch.no_grad():
        difference = theirs(ids[None]).logits[0] - decoder.logits(decoder(ids, [len(ids)]))
    assert difference.abs().max() < 1e-4


def test_what_cannot_be_is_said(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = str(tmp_path / "int")
    with pytest.raises(UsageError, match="group must be one of"):
        QuantiseConfig(model, out, group=48)
    with pytest.raises(UsageError, match="choose --group 32"):
        run(QuantiseConfig(model, out, group=128, method="rtn"))
    with pytest.raises(StorageError, match="already exists"):
        run(QuantiseConfig(model, model))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match="train"):
        run(QuantiseConfig(model, out, tokens=64))
