"""Seeing inside: what is shown is what the model computes."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ladderlm.errors import UsageError
from ladderlm.evals import perplexity
from ladderlm.evals.heads import describe
from ladderlm.evals.inspect import InspectConfig, make_report, prompt_ids, run
from ladderlm.evals.pictures import attention_map, attention_overview, position_plot, visible
from ladderlm.evals.position import loss_by_position
from ladderlm.models import open_model, save_model
from ladderlm.models.arch import Architecture
from ladderlm.text.template import ChatTemplate
from ladderlm.text.tokenizer import Tokenizer

torch = pytest.importorskip("torch")
from ladderlm.evals import inside  # noqa: E402
from ladderlm.nn import load_decoder  # noqa: E402
from ladderlm.text.specs import byte_alphabet  # noqa: E402

ARCH = Architecture(
    vocab_size=260, dim=32, layers=3, heads=4, kv_heads=2, head_dim=8, hidden=48, context_length=64, tied=True
)
IDS = [10, 20, 30, 10, 20, 5, 7]


def folder(path: Path, **changes: Any) -> Path:
    arch = dataclasses.replace(ARCH, **changes)
    random = np.random.default_rng(3)
    weights = {n: random.normal(0, 0.25, s).astype(np.float32) for n, s in arch.tensor_shapes().items()}
    tokens = [*byte_alphabet(), "he", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    meta = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 257 + [3] * 3, "tokenizer.ggml.merges": ["h e"],
        "tokenizer.ggml.eos_token_id": 259, "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip
    template = ChatTemplate("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")
    save_model(path, arch, weights, Tokenizer.from_gguf(meta), template, generation={}, lineage={"licence": "mit"})
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("inspect") / "m")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"family": "mistral", "windows": (3, 3, 3), "head_dim": 8},
        {"family": "gemma2", "norm_offset": True, "placement": "sandwich", "activation": "gelu_tanh",
         "attention_cap": 5.0, "logit_cap": 3.0, "windows": (3, 0, 3), "embed_scale": 32**0.5},
        {"family": "gpt2", "norm": "layer", "norm_bias": True, "positions": "learned", "kv_heads": 4,
         "qkv_bias": True, "out_bias": True, "mlp_bias": True, "activation": "gelu_tanh", "gated": False},
    ],
    ids=["llama", "mistral", "gemma2", "gpt2"],
)  # fmt: skip
def test_attention_is_that_of_transformers_and_its_rows_sum_to_one(tmp_path: Path, changes: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    path = folder(tmp_path / "m", **changes)
    decoder = load_decoder(open_model(str(path)))
    seen = inside.trace(decoder, IDS)
    assert seen.shares_LHTT.shape == (3, 4, len(IDS), len(IDS))
    np.testing.assert_allclose(seen.shares_LHTT.sum(-1), 1, atol=1e-5)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path, attn_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        out = theirs(torch.tensor([IDS]), output_attentions=True, output_hidden_states=True)
    for ours, other in zip(seen.shares_LHTT, out.attentions, strict=True):
        np.testing.assert_allclose(ours, other[0].numpy(), atol=2e-5)
    for ours, other in zip(seen.stream[:-1], out.hidden_states[:-1], strict=True):
        np.testing.assert_allclose(ours.numpy(), other[0].numpy(), atol=2e-4)


def test_the_lens_of_the_last_layer_is_the_model(model: Path) -> None:
    decoder = load_decoder(open_model(str(model)))
    seen = inside.trace(decoder, IDS)
    with torch.no_grad():
        logits = decoder.logits(decoder(torch.tensor(IDS), [len(IDS)]))
        first = decoder.logits(decoder.model.norm(decoder.model.embed_tokens(torch.tensor(IDS)))).softmax(-1)
    assert torch.equal(seen.logits_TV, logits)
    found = inside.lens(decoder, seen)
    assert found.top.shape == (4, len(IDS))
    assert (found.top[-1] == logits.argmax(-1).numpy()).all()
    assert (found.final_rank[-1] == 1).all()
    np.testing.assert_allclose(found.probability[-1], logits.softmax(-1).max(-1).values.numpy(), rtol=1e-5)
    np.testing.assert_allclose(found.probability[0], first.max(-1).values.numpy(), rtol=1e-5)
    wanted = 1 + (first > first[torch.arange(len(IDS)), torch.tensor(found.final_T)][:, None]).sum(-1)
    assert (found.final_rank[0] == wanted.numpy()).all()


def test_a_head_taken_away_is_its_columns_zeroed(model: Path) -> None:
    decoder, other = (load_decoder(open_model(str(model))) for _ in range(2))
    with torch.no_grad():
        other.model.layers[1].self_attn.o_proj.weight[:, 2 * 8 : 3 * 8] = 0
        wanted = other.logits(other(torch.tensor(IDS), [len(IDS)]))
    part = inside.Part.parse("head:1.2")
    found = inside.ablated(decoder, IDS, [[part], [], [inside.Part(0)]])
    torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=1e-4)
    plain = inside.trace(decoder, IDS).logits_TV
    torch.testing.assert_close(found[1], plain, atol=1e-5, rtol=1e-4)  # the copies do not touch one another
    assert not torch.allclose(found[2], plain, atol=1e-2)


def test_all_layers_taken_away_leave_the_embedding(model: Path) -> None:
    decoder = load_decoder(open_model(str(model)))
    everything = [inside.Part(i) for i in range(3)]
    with torch.no_grad():
        wanted = decoder.logits(decoder.model.norm(decoder.model.embed_tokens(torch.tensor(IDS))))
    torch.testing.assert_close(inside.ablated(decoder, IDS, [everything])[0], wanted)


def test_a_mean_keeps_what_does_not_depend_on_the_position(model: Path) -> None:
    """By hand for the last layer: its addition becomes the mean of its additions."""
    decoder = load_decoder(open_model(str(model)))
    seen = inside.trace(decoder, IDS)
    before, after = seen.stream[-2], seen.stream[-1]
    with torch.no_grad():
        wanted = decoder.logits(decoder.finish(before + (after - before).mean(0)))
    found = inside.ablated(decoder, IDS, [[inside.Part(2)]], mean=True)[0]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    same = [10] * 6  # for a text of one token over and over, a head of layer 0 adds its mean anyway
    plain = inside.trace(decoder, same).logits_TV
    found = inside.ablated(decoder, same, [[inside.Part(0, 1)]], mean=True)[0]
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=1e-4)


def test_the_sweep_agrees_with_single_ablations(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = load_decoder(open_model(str(model)))
    plain = inside.trace(decoder, IDS).logits_TV
    monkeypatch.setattr(inside, "_BATCH_TOKENS", 30)  # several batches
    effects = inside.sweep(decoder, IDS, plain)
    assert [e.part for e in effects[:6]] == ["head:0.0", "head:0.1", "head:0.2", "head:0.3", "layer:0", "head:1.0"]
    assert len(effects) == 3 * 5
    for effect in (effects[2], effects[4], effects[-1]):
        alone = inside.ablated(decoder, IDS, [[inside.Part.parse(effect.part)]])[0]
        p, q = plain.softmax(-1), alone.softmax(-1)
        kl = (p * (p / q).log()).sum(-1)
        assert effect.last == pytest.approx(float(kl[-1]), rel=1e-3)
        assert effect.mean == pytest.approx(float(kl.mean()), rel=1e-3)


@pytest.mark.parametrize("text", ["head:1", "layer:1.2", "layer:-1", "neuron:3", "layer:", "head:1.2.3"])
def test_wrong_parts_are_named(text: str) -> None:
    with pytest.raises(UsageError, match="no part of a model"):
        inside.Part.parse(text)


def test_parts_beyond_the_model_are_refused(model: Path) -> None:
    for text in ("layer:3", "head:0.4"):
        with pytest.raises(UsageError, match="3 layers of 4 heads"):
            run(InspectConfig(str(model), "hello", ablate=(text,)))
    with pytest.raises(UsageError, match="no prompt"):
        run(InspectConfig(str(model)))
    with pytest.raises(UsageError, match="empty"):
        run(InspectConfig(str(model), ""))
    with pytest.raises(UsageError, match="at most 64"):
        run(InspectConfig(str(model), "x" * 70))


def test_a_chat_prompt_goes_through_the_template(model: Path) -> None:
    files = open_model(str(model))
    assert prompt_ids(files, "hi", chat=True) == [258, *files.tokenizer.encode("hi"), 259]


class Uniform:
    """Every token equally likely."""

    context_length = 16

    def logits(self, ids: list[int]) -> np.ndarray:
        return np.zeros((len(ids), 8), np.float32)


class Letters:
    document_start_id: int | None = 7

    def encode(self, text: str) -> list[int]:
        return [ord(c) % 7 for c in text]


def test_loss_by_position_of_a_known_model() -> None:
    found = loss_by_position(Uniform(), Letters(), ["abcdefghij", "abc"])  # type: ignore[arg-type]
    assert [(b.first, b.last, b.tokens) for b in found.buckets] == [
        (0, 0, 2),
        (1, 1, 2),
        (2, 3, 3),
        (4, 7, 4),
        (8, 15, 2),
    ]
    assert all(b.loss.mean == pytest.approx(math.log(8)) for b in found.buckets)
    assert found.gain is None
    long = loss_by_position(Uniform(), Letters(), ["a" * 16])  # type: ignore[arg-type]
    assert (long.windows, long.tokens) == (2, 16)  # 15 and 1: a window begins with the start token
    without = Letters()
    without.document_start_id = None
    found = loss_by_position(Uniform(), without, ["abcdef"])  # type: ignore[arg-type]
    assert found.buckets[0].first == 1  # the first token has nothing to be predicted from


def test_loss_by_position_adds_up_to_the_perplexitys_nats(model: Path) -> None:
    from ladderlm import engine as engines

    files = open_model(str(model))
    texts = ["the quick brown fox jumps over the lazy dog and runs away from here, far away over the hills", "hello"]
    with engines.load(files) as engine:
        found = loss_by_position(engine, files.tokenizer, texts)
        wanted = perplexity.evaluate(engine, files.tokenizer, texts)
    assert found.nats == pytest.approx(wanted.nats, rel=1e-6)
    assert found.tokens == wanted.tokens
    assert sum(b.loss.mean * b.tokens for b in found.buckets) == pytest.approx(wanted.nats, rel=1e-6)
    assert found.gain is not None
    assert position_plot(found).count("<circle") == len(found.buckets)


def test_heads_are_described_by_what_they_look_at() -> None:
    ids = [1, 2, 3, 1, 2]
    previous = np.eye(5, k=-1, dtype=np.float32)
    previous[0, 0] = 1
    figure = describe(previous, ids, 0, 0)
    assert (figure.previous, figure.first, figure.itself) == (0.75, 0.25, 0)
    assert figure.entropy == pytest.approx(0, abs=1e-6)
    induction = np.zeros((5, 5), np.float32)
    induction[[0, 1, 2, 3, 4], [0, 0, 0, 1, 2]] = 1  # 1 looks at what followed 1, 2 at what followed 2
    assert describe(induction, ids, 0, 0).induction == 1
    assert describe(previous, [1, 2, 3, 4, 5], 0, 0).induction is None


def test_pictures_hold_the_cells_and_escape_the_tokens() -> None:
    shares = np.array([[1, 0], [0.25, 0.75]], np.float32)
    svg = attention_map(shares, ["<a>", " b\n"], "one & two")
    assert svg.count('class="cell"') == 3
    assert "&lt;a&gt;" in svg
    assert "<a>" not in svg
    assert "·b⏎ takes 25% from" in svg
    overview = attention_overview(np.stack([[shares, shares]]), [["x", "y"]], [4], [0, 3])
    assert "layer 4, head 3: y" in overview
    assert re.findall(r'd="([^"]+)"', overview)[:1]
    assert visible("") == "∅"
    coarse = attention_overview(np.tril(np.ones((1, 1, 200, 200), np.float32)), [["x"]], [0], [0])
    assert max(int(n) for n in re.findall(r"M\d+ (\d+)\.5h", coarse)) < 64


def test_the_page_and_the_values(model: Path, tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("some words to read, one after another, until there are enough of them\n\nand a second text\n")
    config = InspectConfig(
        str(model), "the <b> cat", attention=True, lens=True, ablate=("layer:1", "head:0.2"), sweep=True,
        neighbours=True, loss=str(text), out=str(tmp_path / "out"), k=4,
    )  # fmt: skip
    found = run(config)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page
    assert "<b>" not in page
    for heading in ("The logit lens", "Attention", "Without layer:1, head:0.2", "Which parts matter", "Loss by pos"):
        assert heading in page
    assert (tmp_path / "out" / "logit-lens.svg").exists()
    plain = json.loads(json.dumps(found.to_dict()))
    assert len(plain["attention"]["shares"]) == 3
    assert len(plain["next"]) == 4
    assert plain["ablation"]["parts"] == ["layer:1", "head:0.2"]
    assert found.ablation is not None
    assert found.ablation.kl_last > 0
    assert found.neighbours[0].similar[0][1] >= found.neighbours[0].similar[1][1]
    assert all(t != n.token for n in found.neighbours for t, _ in n.similar[:1])


def test_one_head_is_drawn_large(model: Path) -> None:
    found = run(InspectConfig(str(model), "abc", layer=1, head=3))
    assert found.lens is None
    assert found.attention is not None
    assert (found.attention.layers, found.attention.heads) == ((1,), (3,))
    page = make_report(found).to_html()
    assert "layer 1, head 3" in page
    assert "every head" not in page


def test_an_encoder_shows_its_attention_both_ways(tmp_path: Path) -> None:
    path = folder(
        tmp_path / "bert", family="bert", kind="encoder", head="none", norm="layer", norm_bias=True, placement="post",
        positions="learned", kv_heads=4, qkv_bias=True, out_bias=True, mlp_bias=True, gated=False, activation="gelu",
        token_types=2, embed_norm=True, first_norm=True,
    )  # fmt: skip
    found = run(InspectConfig(str(path), "abc abc", layer=1))
    assert found.attention is not None
    shares = np.array(found.attention.shares)
    assert shares.shape == (1, 4, len(found.tokens), len(found.tokens))
    assert np.allclose(shares.sum(-1), 1, atol=1e-3)
    assert shares[0, 0, 0, 1:].min() > 0, "the first token sees the later ones"
    with pytest.raises(UsageError, match="attention only"):
        run(InspectConfig(str(path), "abc", lens=True))
    with pytest.raises(UsageError, match="no head:9"):
        run(InspectConfig(str(path), "abc", layer=9))
