"""Every decoder family against transformers, both ways: a random model of theirs here, ours written back there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import foreign  # noqa: E402

from ladderlm import engine  # noqa: E402
from ladderlm.engine.network import Piece  # noqa: E402
from ladderlm.engine.plain import PlainNetwork  # noqa: E402
from ladderlm.engine.reference import ReferenceDecoder  # noqa: E402
from ladderlm.errors import FormatError  # noqa: E402
from ladderlm.models import families, open_model, save_model  # noqa: E402
from ladderlm.models.folder import eager  # noqa: E402
from ladderlm.nn.decoder import KeyValues, load_decoder  # noqa: E402

CLOSE = 1e-4
LENGTHS = ((13, 5, 9), (30, 30), (1, 24, 2, 7))  # documents of a batch, padded for the other side


def batches() -> list[list[Any]]:
    generator = torch.Generator().manual_seed(3)
    return [[torch.randint(3, foreign.V, (n,), generator=generator) for n in lengths] for lengths in LENGTHS]


def theirs(model: Any, documents: list[Any]) -> list[Any]:
    """logits_TV of each document, from one padded batch."""
    longest = max(map(len, documents))
    ids = torch.zeros(len(documents), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, document in enumerate(documents):
        ids[row, : len(document)] = document
        mask[row, : len(document)] = 1
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
    return [logits[row, : len(document)] for row, document in enumerate(documents)]


def gap(model: Any, decoder: Any) -> float:
    """The largest difference over the batches, and in a decode with keys and values kept."""
    worst = 0.0
    with torch.no_grad():
        for documents in batches():
            hidden = decoder(torch.cat(documents), [len(d) for d in documents])
            ours = decoder.logits(hidden).split([len(d) for d in documents])
            worst = max(
                worst, *(float((a - b).abs().max()) for a, b in zip(theirs(model, documents), ours, strict=True))
            )
        document, cache = batches()[1][0], KeyValues()
        ours = [decoder.logits(decoder.extend(piece, cache)) for piece in document.split([7, 9, *[1] * 14])]
        past, pieces = None, []
        for piece in document.split([7, 9, *[1] * 14]):
            step = model(input_ids=piece[None], past_key_values=past, use_cache=True)
            past = step.past_key_values
            pieces.append(step.logits[0])
        return max(worst, float((torch.cat(ours) - torch.cat(pieces)).abs().max()))


@pytest.mark.parametrize("name", foreign.MODELS)
def test_logits_are_those_of_transformers_both_ways(name: str, tmp_path: Path) -> None:
    model = foreign.make(name)
    files = open_model(str(foreign.save(model, tmp_path / "theirs")))
    decoder = load_decoder(files)
    assert gap(model, decoder) < CLOSE
    document = batches()[1][0]
    with torch.no_grad():
        expected = decoder.logits(decoder(document, [30]))
        crossing = torch.cat(
            [decoder.logits(decoder.extend(p, past)) for past in [KeyValues()] for p in document.split(10)]
        )
    ids = document.tolist()
    assert np.abs(ReferenceDecoder(files.arch, files.weights).logits(ids) - expected.numpy()).max() < CLOSE
    with engine.load(files, threads=2) as running:
        assert np.abs(running.logits(ids) - expected.numpy()).max() < CLOSE
    network, cache = PlainNetwork(files.arch, files.weights), PlainNetwork(files.arch, files.weights).cache()
    pieces = [network.run([Piece(cache, ids[i : i + 10], 0)]) for i in (0, 10, 20)]
    assert np.abs(np.concatenate(pieces) - crossing.numpy()).max() < CLOSE
    save_model(tmp_path / "ours", files.arch, eager(files.weights), files.tokenizer, None, generation={}, lineage={})
    again = open_model(str(tmp_path / "ours"))
    assert again.arch == files.arch
    attention = model.config._attn_implementation
    back = type(model).from_pretrained(tmp_path / "ours", attn_implementation=attention, dtype=torch.float32).eval()
    assert gap(back, decoder) < CLOSE
    theirs_there, ours_there = model.state_dict(), back.state_dict()
    assert all(torch.equal(ours_there[key], value) for key, value in theirs_there.items())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_half_precision_and_the_bare_body_are_read(name: str, tmp_path: Path) -> None:
    model = foreign.make(name)
    body = model.transformer if name == "gpt2" else model.model
    if name == "gpt2":
        body.half().save_pretrained(tmp_path)
        foreign.write_tokenizer(tmp_path)
    else:
        foreign.save(model.bfloat16(), tmp_path)
    rounded = type(model)(model.config).eval()
    rounded.load_state_dict({key: value.float() for key, value in model.state_dict().items()})
    assert gap(rounded, load_decoder(open_model(str(tmp_path)))) < CLOSE


def test_shards_are_read_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = foreign.make("phi3")
    model.save_pretrained(tmp_path / "a", max_shard_size="60KB")
    foreign.write_tokenizer(tmp_path / "a")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 2
    files = open_model(str(tmp_path / "a"))
    monkeypatch.setattr("ladderlm.models.folder.SHARD_BYTES", 50_000)
    save_model(tmp_path / "b", files.arch, eager(files.weights), files.tokenizer, None, generation={}, lineage={})
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 2
    back = transformers.Phi3ForCausalLM.from_pretrained(tmp_path / "b", attn_implementation="eager").eval()
    assert gap(back, load_decoder(files)) < CLOSE


@pytest.mark.parametrize(("family", "nearest"), [("llama4", "llama"), ("qwen3_next", "qwen3"), ("zzz", "known")])
def test_an_unknown_family_names_the_nearest_and_the_way_out(family: str, nearest: str) -> None:
    with pytest.raises(FormatError, match=nearest) as caught:
        families.from_hf({"model_type": family})
    assert "url#model" in str(caught.value)
