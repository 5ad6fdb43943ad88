"""Adapters: PEFT reads ours and we read PEFT's, to the same weights."""

from pathlib import Path

import numpy as np
import pytest

from ladderlm.errors import FormatError, NotFound, UsageError
from ladderlm.models import open_model
from ladderlm.models.adapter import LoraConfig, load_adapter, save_adapter

NAME = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    from test_folder import save

    save(tmp_path / "base")
    return tmp_path / "base"


def pairs(rank: int = 4) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    out = {}
    for layer in range(2):
        out[NAME.format(layer, "A")] = random.normal(size=(rank, 32)).astype(np.float32)
        out[NAME.format(layer, "B")] = random.normal(size=(32, rank)).astype(np.float32)
    return out


def test_round_trip_and_merge(base: Path, tmp_path: Path) -> None:
    config = LoraConfig(4, 8.0, ("q_proj",))
    save_adapter(tmp_path / "a", str(base), config, pairs(), lineage={"licence": "mit"})
    adapter = load_adapter(tmp_path / "a")
    assert adapter.config == config
    assert adapter.base == str(base)
    assert all(np.array_equal(v, adapter.tensors()[n]) for n, v in pairs().items())
    merged, plain = open_model(f"{base}+{tmp_path / 'a'}"), open_model(str(base))
    name = "model.layers.1.self_attn.q_proj.weight"
    wanted = plain.weights.float32(name) + 2 * pairs()[NAME.format(1, "B")] @ pairs()[NAME.format(1, "A")]
    assert np.allclose(merged.weights.float32(name), wanted, atol=1e-6)
    assert merged.weights.blocks(name) is None
    assert merged.weights.blocks("model.layers.1.self_attn.k_proj.weight") is not None
    assert merged.hash != plain.hash
    assert merged.lineage["adapter"]["licence"] == "mit"
    assert open_model(str(tmp_path / "a")).hash == merged.hash  # the adapter names its base


def test_peft_reads_ours(base: Path, tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    save_adapter(tmp_path / "a", str(base), LoraConfig(4, 8.0, ("q_proj",)), pairs())
    model = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), tmp_path / "a")
    state = model.merge_and_unload().state_dict()
    ours = open_model(f"{base}+{tmp_path / 'a'}").weights
    for name in ours.names():
        assert np.allclose(state[name].numpy(), ours.float32(name), atol=1e-6), name


def test_we_read_pefts(base: Path, tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    targets = ["v_proj", "up_proj"]
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=targets, task_type="CAUSAL_LM", use_rslora=True)
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_()
    model.save_pretrained(tmp_path / "a")
    ours = open_model(f"{base}+{tmp_path / 'a'}").weights
    state = model.merge_and_unload().state_dict()
    for name in ours.names():
        assert np.allclose(state[name].numpy(), ours.float32(name), atol=1e-5), name


def test_what_does_not_fit_is_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="q_proj"):
        LoraConfig(4, 8.0, ("q_prj",))
    with pytest.raises(NotFound, match="adapter"):
        load_adapter(tmp_path)
    wide = {n: np.zeros((4, 48) if "_A" in n else (32, 4), np.float32) for n in pairs()}
    save_adapter(tmp_path / "wide", "x", LoraConfig(4, 8.0, ("q_proj",)), wide)
    with pytest.raises(FormatError, match="does not fit"):
        open_model(f"{base}+{tmp_path / 'wide'}")
    half = {n: v for n, v in pairs().items() if "_A" in n}
    save_adapter(tmp_path / "half", "x", LoraConfig(4, 8.0, ("q_proj",)), half)
    with pytest.raises(FormatError, match="half"):
        load_adapter(tmp_path / "half")
