"""Every objective: what its batches hold, and that its folders do the same in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stories import SIZES, STORIES, write_jsonl

from ladderlm.models import open_model
from ladderlm.nn import load_model
from ladderlm.nn.search import generate
from ladderlm.train.causal import FillMiddle
from ladderlm.train.corpus import Tokens
from ladderlm.train.masked import Masked, MaskedPairs
from ladderlm.train.objective import Counts, proportion
from ladderlm.train.pretrain import PretrainConfig, run
from ladderlm.train.spans import Spans, parts

TEXT = Tokens(np.arange(20, 320) % 250 + 20, np.array([0]))


def made(kind: Any, **changes: Any) -> Any:
    config = PretrainConfig(**{**SIZES, "seq_len": 64, "batch_tokens": 256, **changes})  # type: ignore[arg-type]
    return kind(config, kind.make_tokenizer(STORIES, config))


def trained(objective: str, tmp_path: Path, steps: int = 30, **changes: Any) -> Path:
    rows = [{"text": " ".join(STORIES[i:] + STORIES[:i]), "source": f"s{i}"} for i in range(20)]
    data = write_jsonl(tmp_path / "stories.jsonl", rows)
    settings = {**SIZES, "data": str(data), "out": str(tmp_path / "model"), "objective": objective, **changes}
    run(PretrainConfig(steps=steps, sample_every=steps, **settings))  # type: ignore[arg-type]
    return tmp_path / "model"


def test_masks_fall_as_berts_do() -> None:
    masked = made(Masked)
    batch = masked.batches(TEXT)(3)
    assert torch.equal(batch.ids_T, masked.batches(TEXT)(3).ids_T)
    assert not torch.equal(batch.ids_T, masked.batches(TEXT)(4).ids_T)
    ids_BT = batch.ids_T.view(len(batch.lengths), 64)
    assert (ids_BT[:, 0] == masked.head).all()
    assert (ids_BT[:, -1] == masked.tail).all()
    many = [masked.batches(TEXT)(i) for i in range(60)]
    asked = torch.cat([b.ids_T[b.wanted_N] for b in many])
    targets = torch.cat([b.targets_N for b in many])
    assert len(asked) / sum(b.tokens for b in many) == pytest.approx(0.3, abs=0.01)
    assert (asked == masked.mask).float().mean() == pytest.approx(0.8, abs=0.03)
    assert (asked == targets).float().mean() == pytest.approx(0.1, abs=0.03)
    assert not set(targets.tolist()) & {masked.head, masked.tail, masked.mask}


def test_pairs_follow_or_do_not() -> None:
    pairs = made(MaskedPairs)
    seen = []
    for i in range(30):
        batch = pairs.batches(TEXT)(i)
        whole = batch.ids_T.clone()
        whole[batch.wanted_N] = batch.targets_N
        firsts: dict[int, list[list[int]]] = {0: [], 1: []}
        for ids, types, apart in zip(whole.view(-1, 64), batch.types_T.view(-1, 64), batch.apart_B, strict=True):
            first, second = ids[types == 0], ids[types == 1]
            assert first[0] == pairs.head
            assert first[-1] == second[-1] == pairs.tail
            follows = second[0] == (first[-2] - 20 + 1) % 250 + 20
            assert bool(apart) != bool(follows)
            firsts[int(apart)].append(first.tolist())
        assert sorted(firsts[0]) == sorted(firsts[1])  # no text tells by itself
        seen += [len(firsts[0]), len(firsts[1])]
    assert min(seen) == max(seen) > 0


def test_a_target_puts_back_what_the_source_lacks() -> None:
    spans = made(Spans)
    row = np.arange(150, 213)
    source, target = spans.corrupted(row, np.random.default_rng(1))
    assert source[-1] == target[-1] == spans.end
    found, pieces = [], np.split(target[:-1], np.flatnonzero(np.isin(target[:-1], spans.sentinels)))[1:]
    gone = {int(piece[0]): piece[1:].tolist() for piece in pieces}
    for id in source[:-1].tolist():
        found += gone.pop(id, [id]) if id in spans.sentinels else [id]
    assert found == row.tolist()
    assert len(target) - 1 - len(pieces) == round(0.15 * 63)
    sums = [parts(9, 3, np.random.default_rng(i)) for i in range(50)]
    assert all(p.sum() == 9 and p.min() >= 1 for p in sums)
    batch = spans.batches(TEXT)(0)
    assert batch.read_T[0] == spans.start
    assert torch.equal(batch.read_T[1 : batch.target_lengths[0]], batch.said_T[: batch.target_lengths[0] - 1])


def test_a_middle_comes_last_and_ends() -> None:
    middle = made(FillMiddle)
    before, after, between = middle.marks
    start = middle.start
    for first, wanted in (
        (False, [start, before, 1, 2, after, 5, between, 3, 4, start]),
        (True, [start, before, after, 5, between, 1, 2, 3, 4, start]),
    ):
        assert middle.reordered([1, 2], [3, 4], [5], suffix_first=first) == wanted
    batch = middle.batches(TEXT)(0)
    assert max(batch.lengths) <= 64
    lengths = [n for i in range(20) for n in middle.batches(TEXT)(i).lengths]
    assert lengths.count(64) / len(lengths) == pytest.approx(0.5, abs=0.2)


def test_simple_baselines() -> None:
    counts = Counts(np.array([1, 2, 1, 2, 1, 3, 1, 2]), 5)
    assert counts.commonest == 1
    assert counts.next_V[1] == 2
    assert counts.nats(np.array([1])) == pytest.approx(-np.log(5 / 13))
    found = proportion(60, 100)
    assert found["low"] == pytest.approx(0.502, abs=0.001)
    assert found["high"] == pytest.approx(0.691, abs=0.001)


@pytest.mark.parametrize("objective", ["mlm", "mlm+nsp"])
def test_transformers_fills_the_same_masks(objective: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = trained(objective, tmp_path)
    files = open_model(str(folder))
    assert files.arch.head == ("mlm" if objective == "mlm" else "pretraining")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = STORIES[3].replace("liked", tokenizer.mask_token)
    asked = tokenizer(text)["input_ids"]
    parts_ = [files.tokenizer.encode(p) for p in text.split(tokenizer.mask_token)]
    ours = [*files.tokenizer.around.head, *parts_[0], files.tokenizer.mask_id, *parts_[1], *files.tokenizer.around.tail]
    assert asked == ours
    filled = transformers.pipeline("fill-mask", model=str(folder), tokenizer=tokenizer, device="cpu")(text, top_k=5)
    encoder = load_model(files)
    place = asked.index(files.tokenizer.mask_id)
    with torch.no_grad():
        chances = encoder.logits(encoder(torch.tensor(asked), (len(asked),)))[place].softmax(-1).topk(5)
    assert [f["token"] for f in filled] == chances.indices.tolist()
    assert [f["score"] for f in filled] == pytest.approx(chances.values.tolist(), abs=1e-4)
    if objective == "mlm+nsp":
        theirs = transformers.MegatronBertForPreTraining.from_pretrained(folder).eval()
        pair = tokenizer(STORIES[0], STORIES[1], return_tensors="pt")
        ids, types = files.tokenizer.encode_pair(STORIES[0], STORIES[1])
        assert pair["input_ids"][0].tolist() == ids
        with torch.no_grad():
            hidden = encoder(torch.tensor(ids), (len(ids),), torch.tensor(types))
            told = theirs(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types])).seq_relationship_logits
            assert (encoder.text_logits(hidden, (len(ids),)) - told).abs().max() < 1e-4


def test_transformers_writes_the_same_spans(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = trained("spans", tmp_path, vocab_size=340)
    files = open_model(str(folder))
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = STORIES[2].replace("went to", "<extra_id_0>")
    ids = tokenizer(text)["input_ids"]
    assert ids[-1] == files.tokenizer.eos_id
    assert files.tokenizer.control["<extra_id_0>"] in ids
    model = load_model(files)
    for beams in (1, 3):
        wanted = theirs.generate(
            torch.tensor([ids]), max_new_tokens=12, do_sample=False, num_beams=beams, length_penalty=1.0
        )[0].tolist()
        ours = generate(model, ids, max_tokens=12, stop_ids=[files.tokenizer.eos_id], beams=beams)  # type: ignore[arg-type]
        assert [i for i in wanted[1:] if i not in (files.tokenizer.eos_id, 0)] == ours


def test_fill_in_the_middle_trains_and_opens(tmp_path: Path) -> None:
    folder = trained("fim", tmp_path, steps=20)
    files = open_model(str(folder))
    scores = files.lineage["scores"]
    assert scores["middle_nats"] > 0
    assert "<|fim_middle|>" in files.tokenizer.control


@pytest.mark.parametrize("objective", ["mlm+nsp", "spans"])
def test_going_on_with_such_a_model(objective: str, tmp_path: Path) -> None:
    vocab = {"vocab_size": 340} if objective == "spans" else {}
    folder = trained(objective, tmp_path, steps=6, **vocab)
    data = write_jsonl(tmp_path / "more.jsonl", [{"text": s * 3} for s in STORIES])
    result = run(PretrainConfig(data=str(data), model=str(folder), out="more", steps=3, batch_tokens=512))
    assert open_model("more").arch == open_model(str(folder)).arch
    assert result.steps == 3


def test_going_on_with_activations_made_again_gives_the_same_weights(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    folders = [
        trained("spans", tmp_path / name, steps=3, vocab_size=340, recompute=name == "b") for name in ("a", "b")
    ]  # fmt: skip
    one, other = (open_model(str(f)).weights for f in folders)
    assert all(np.allclose(one.float32(n), other.float32(n), atol=1e-6) for n in one.names())
