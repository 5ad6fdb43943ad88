"""From text to a model folder that the rest of the house, and transformers, can read."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from stories import SIZES, STORIES, write_jsonl

from ladderlm import store
from ladderlm.data.records import make_record
from ladderlm.errors import Cancelled, StorageError, UsageError
from ladderlm.evals import perplexity
from ladderlm.models import open_model
from ladderlm.nn.decoder import load_decoder
from ladderlm.text.bpe import train_bpe
from ladderlm.train import causal
from ladderlm.train.causal import length_at, shorten
from ladderlm.train.corpus import Tokens, text_nats, tokenise, windows
from ladderlm.train.derive import derived
from ladderlm.train.pretrain import PretrainConfig, run


def test_the_folder_opens_and_tells_its_lineage(tiny: Path) -> None:
    files = open_model(str(tiny))
    assert files.arch.dim == 32
    assert files.template is not None
    assert files.tokenizer.document_start_id == 0
    lineage = files.lineage
    assert lineage["parent"] is None
    assert lineage["data"][0]["licence"] == "unknown"
    assert len(lineage["data"][0]["sha256"]) == 64
    assert lineage["recipe"]["steps"] == 40
    assert lineage["scores"]["bits_per_byte"] < 4
    home = tiny.parent / "home" / "runs" / lineage["run"]
    assert json.loads((home / "result.json").read_text())["model"] == str(tiny)
    assert "trigram" in (home / "report.md").read_text()
    assert not list((home / "checkpoints").iterdir())


def test_transformers_reads_the_folder_and_agrees(tiny: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tiny).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    files = open_model(str(tiny))
    ids = files.tokenizer.encode(STORIES[0])
    assert ids == tokenizer(STORIES[0], add_special_tokens=False)["input_ids"]
    decoder = load_decoder(files)
    with torch.no_grad():
        ours_TV = decoder.logits(decoder(torch.tensor(ids), (len(ids),)))
        assert (ours_TV - theirs(input_ids=torch.tensor([ids])).logits[0]).abs().max() < 1e-4


def test_held_out_figures_equal_those_of_evals(tiny: Path) -> None:
    files = open_model(str(tiny))
    decoder = load_decoder(files)

    class AsModel:
        vocab_size, context_length = files.arch.vocab_size, files.arch.context_length

        def logits(self, ids: list[int]) -> np.ndarray:
            with torch.no_grad():
                return decoder.logits(decoder(torch.tensor(ids), (len(ids),))).numpy()

    texts = [" ".join(STORIES), STORIES[3]]
    theirs = perplexity.evaluate(AsModel(), files.tokenizer, texts)  # type: ignore[arg-type]
    ours = text_nats(decoder, files.tokenizer.encode_batch(texts), 0)
    assert ours == pytest.approx(theirs.nats_each, rel=1e-5)


def test_a_stopped_pretraining_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"text": s * 3} for s in STORIES])
    settings = {**SIZES, "data": str(data), "steps": 12, "muon_lr": 0.01}
    run(PretrainConfig(out="whole", **settings))  # type: ignore[arg-type]
    real, calls = causal.mean_nats, iter(range(100))

    def interrupted(*args: object) -> object:
        if next(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(causal, "mean_nats", interrupted)
    with pytest.raises(Cancelled, match=r"step 5 of 12.*--resume pretrain-") as caught:
        run(PretrainConfig(out="halves", **settings))  # type: ignore[arg-type]
    result = run(PretrainConfig(resume=str(caught.value).split("--resume ")[1]))
    assert result.steps == 12
    whole, halves = (open_model(n).weights for n in ("whole", "halves"))
    assert all((whole.float32(n) == halves.float32(n)).all() for n in whole.names())
    with pytest.raises(StorageError, match="already exists"):
        run(PretrainConfig(out="whole", **settings))  # type: ignore[arg-type]


def test_windows_cover_an_epoch_once_and_are_repeatable() -> None:
    tokens = Tokens(np.arange(1, 1001, dtype=np.uint16), np.array([0]))
    get = windows(tokens, 10, 9, seed=3, start_id=0)
    seen = np.concatenate([get(i).targets_N.numpy() for i in range(11)])
    assert len(set(seen.tolist())) == len(seen) == 990
    first = get(0).ids_T.view(9, 10)
    assert (first[:, 0] == 0).all()
    assert torch.equal(get(0).targets_N.view(9, 10)[:, :-1], first[:, 1:])
    assert torch.equal(windows(tokens, 10, 9, 3, 0)(7).ids_T, get(7).ids_T)
    with pytest.raises(UsageError, match="only 15 tokens"):
        windows(Tokens(np.arange(15), np.array([0])), 10, 1, 0, 0)


def test_tokens_are_cached_by_content(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_bpe(STORIES, 300)
    records = [make_record("text", {"text": s}, source="x") for s in STORIES]
    first = tokenise(records, tokenizer)
    assert first.ids_N.dtype == np.uint16
    assert [first.ids_N[s] for s in first.starts] == [0] * len(records)
    assert tokenizer.decode(first.ids_N.tolist()[: first.starts[1]]) == STORIES[0]
    monkeypatch.setattr(type(tokenizer), "encode_batch", None)
    assert (tokenise(records, tokenizer).ids_N == first.ids_N).all()


def test_settings_that_make_no_sense_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="steps or minutes"):
        run(PretrainConfig(data="nowhere"))
    with pytest.raises(UsageError, match="no data"):
        run(PretrainConfig())
    with pytest.raises(UsageError, match="multiple of twice the heads"):
        PretrainConfig(dim=100, heads=3).architecture(300)
    assert not store.list_runs()


def test_going_on_from_a_model_keeps_its_tokenizer_and_tells_its_parent(tiny: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"text": s * 3} for s in STORIES])
    before, size = open_model(str(tiny)), (tiny / "model.safetensors").stat().st_size
    result = run(
        PretrainConfig(
            data=str(data), model=str(tiny), out="more", steps=6, seq_len=4096, batch_tokens=512, sample_every=3
        )
    )
    files = open_model("more")
    assert files.arch == before.arch
    assert files.tokenizer.to_json() == before.tokenizer.to_json()
    assert files.lineage["parent"]["hash"] == before.hash
    assert files.lineage["recipe"]["lr"] == 1e-4
    assert files.lineage["recipe"]["seq_len"] == before.arch.context_length
    assert (tiny / "model.safetensors").stat().st_size == size
    samples = store.read_jsonl(store.open_run(result.run).samples)
    assert {r["step"] for r in samples} == {3, 6}
    assert samples[0]["prompt"]
    with pytest.raises(UsageError, match=r"cannot learn 'mlm'.*--objective causal"):
        run(PretrainConfig(data=str(data), model=str(tiny), out="x", steps=1, objective="mlm"))


def test_one_dial_sets_the_rest() -> None:
    found = derived(PretrainConfig(data="x", depth=4))
    assert (found.layers, found.dim, found.heads) == (4, 256, 4)
    tokens = found.steps * found.batch_tokens
    assert tokens == pytest.approx(20 * found.architecture(found.vocab_size).parameters, rel=0.01)
    assert found.lr == pytest.approx(0.01 * (192 / 256) ** 0.5)
    assert derived(PretrainConfig(data="x", depth=8)).batch_tokens > found.batch_tokens
    assert derived(PretrainConfig(data="x", depth=4, minutes=2.0)).steps == 0
    plain = derived(PretrainConfig(steps=1))
    assert (plain.lr, plain.muon_lr) == (0.01, 0.01)
    masked, pairs = (derived(PretrainConfig(steps=1, objective=name)) for name in ("mlm", "mlm+nsp"))
    assert (masked.lr, masked.muon_lr) == (0.002, 0.01)
    assert (pairs.lr, pairs.muon_lr) == (0.001, 0.003)


def test_windows_grow_over_the_same_tokens() -> None:
    tokens = Tokens(np.arange(1, 1001, dtype=np.uint16), np.array([0]))
    batch = windows(tokens, 40, 3, seed=3, start_id=0)(0)
    short = shorten(batch, 10)
    assert short.lengths == (10,) * 12
    assert short.ids_T is batch.ids_T
    assert [length_at(s, 6, 40) for s in range(8)] == [5, 5, 10, 10, 20, 20, 40, 40]
