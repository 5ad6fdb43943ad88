"""Encoder-decoders against transformers, both ways: scores, decoding with a cache, greedy and beam search; learning."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import foreign  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from ladderlm import engine  # noqa: E402
from ladderlm.errors import ContextOverflow, FormatError, UsageError  # noqa: E402
from ladderlm.models import families, open_model, save_model  # noqa: E402
from ladderlm.nn import EncoderDecoder, load_decoder, load_encoder, load_model  # noqa: E402
from ladderlm.nn.search import generate  # noqa: E402

CLOSE = 1e-4
PAIRS = (((13, 5, 9), (4, 11, 1)), ((30, 30), (30, 2)), ((1, 24, 2), (7, 7, 7)))  # lengths of sources, of targets
_STACKS: dict[str, Any] = {
    "vocab_size": foreign.V, "d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40,
    "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0, "forced_eos_token_id": None,
}  # fmt: skip
_T5: dict[str, Any] = {"vocab_size": foreign.V, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 3,
                       "num_decoder_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8,
                       "relative_attention_max_distance": 20, "decoder_start_token_id": 0}  # fmt: skip


def _make(kind: str, cls: str, **config: Any) -> Callable[[], Any]:
    def make() -> Any:
        made = getattr(transformers, kind + "Config")(**config)
        return getattr(transformers, kind + cls)._from_config(made, attn_implementation="eager")

    return make


MODELS = {
    "marian": _make("Marian", "MTModel", **_STACKS, activation_function="relu", scale_embedding=True),
    "marian swish": _make("Marian", "MTModel", **_STACKS, activation_function="swish"),
    "bart": _make("Bart", "ForConditionalGeneration", **_STACKS, bos_token_id=1),
    "t5": _make("T5", "ForConditionalGeneration", **_T5),
    "t5 1.1": _make("T5", "ForConditionalGeneration", **_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5": _make("MT5", "ForConditionalGeneration", **_T5),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Matrices this small are slower on several, and very slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def theirs(name: str) -> Any:
    torch.manual_seed(13)
    model = MODELS[name]()
    if name == "t5 1.1":  # their class ties the two when it is made, and keeps them apart when it reads them so
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.all_tied_weights_keys.pop("lm_head.weight", None)
    foreign.randomised(model)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "relative" in key:
                parameter.copy_(torch.randn_like(parameter))
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.copy_(torch.randn_like(model.final_logits_bias))
    return model


def batches() -> list[tuple[list[Any], list[Any]]]:
    generator = torch.Generator().manual_seed(3)

    def documents(lengths: tuple[int, ...]) -> list[Any]:
        return [torch.randint(3, foreign.V, (n,), generator=generator) for n in lengths]

    return [(documents(sources), documents(targets)) for sources, targets in PAIRS]


def gap(model: Any, ours: EncoderDecoder) -> float:
    """The largest difference over the batches, and in a decode with keys and values kept."""
    pad, worst = torch.nn.utils.rnn.pad_sequence, 0.0
    with torch.no_grad():
        for sources, targets in batches():
            source_mask, target_mask = (
                pad([torch.ones_like(d) for d in ds], batch_first=True) for ds in (sources, targets)
            )
            there = model(
                input_ids=pad(sources, batch_first=True), attention_mask=source_mask,
                decoder_input_ids=pad(targets, batch_first=True), decoder_attention_mask=target_mask,
            ).logits[target_mask.bool()]  # fmt: skip
            lengths = [[len(d) for d in ds] for ds in (sources, targets)]
            here = ours.logits(ours(torch.cat(sources), lengths[0], torch.cat(targets), lengths[1]))
            worst = max(worst, float((here - there).abs().max()))
        (sources, targets), past, there, here = batches()[1], None, [], []
        memory = ours.begin(sources[0])
        for piece in targets[0].split([7, 9, *[1] * 14]):
            step = model(
                input_ids=sources[0][None], decoder_input_ids=piece[None], past_key_values=past, use_cache=True
            )
            past = step.past_key_values
            there.append(step.logits[0])
            here.append(ours.logits(ours.extend(piece[None], memory)[0]))
        return max(worst, float((torch.cat(here) - torch.cat(there)).abs().max()))


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_transformers_both_ways(name: str, tmp_path: Path) -> None:
    model = theirs(name)
    files = open_model(str(foreign.save(model, tmp_path / "theirs")))
    ours = load_model(files)
    assert isinstance(ours, EncoderDecoder)
    assert files.arch.tied is (name != "t5 1.1")
    assert gap(model, ours) < CLOSE
    save_model(tmp_path / "ours", files.arch, ours.state(), files.tokenizer, None, generation={}, lineage={})
    assert open_model(str(tmp_path / "ours")).arch == files.arch
    back, info = type(model).from_pretrained(
        tmp_path / "ours", attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert gap(back.eval(), ours) < CLOSE
    there, here = model.state_dict(), back.state_dict()
    assert all(torch.equal(here[key], value) for key, value in there.items())
    assert back.generation_config.decoder_start_token_id == 0


@pytest.mark.parametrize("name", ["marian", "t5 1.1"])
def test_search_writes_what_transformers_does(name: str, tmp_path: Path) -> None:
    model = theirs(name)
    ours = load_model(open_model(str(foreign.save(model, tmp_path))))
    assert isinstance(ours, EncoderDecoder)
    written = set()
    for sources, _ in batches():
        for source in sources:
            for beams, penalty, stops in (
                (1, 1.0, (2,)),
                (1, 1.0, tuple(range(40))),
                (3, 1.0, tuple(range(60, 80))),
                (4, 0.0, (2, 5)),
                (4, 2.5, (2, 7, 8)),
            ):
                there = model.generate(
                    input_ids=source[None], max_new_tokens=14, num_beams=beams, length_penalty=penalty, do_sample=False,
                    eos_token_id=list(stops), pad_token_id=0, suppress_tokens=[40],
                )[0, 1:].tolist()  # fmt: skip
                here = generate(
                    ours,
                    source.tolist(),
                    max_tokens=14,
                    stop_ids=stops,
                    beams=beams,
                    length_penalty=penalty,
                    banned=[40],
                )
                ended = there[-1] in stops
                assert here == (there[:-1] if ended else there), (beams, penalty, stops)
                written.add((beams, ended))
    assert len(written) > 4  # some end by themselves, some at the limit


def test_a_batch_of_targets_of_one_source_goes_on_as_each_alone() -> None:
    ours = tiny(3)
    source, rows = torch.tensor([5, 6, 7]), torch.tensor([[1, 4], [1, 9], [1, 5]])
    with torch.no_grad():
        memory = ours.begin(source)
        ours.extend(rows, memory)
        memory.choose(torch.tensor([2, 2, 0]))
        got = ours.extend(torch.tensor([[3], [8], [3]]), memory)
        for i, ids in enumerate(([1, 5, 3], [1, 5, 8], [1, 4, 3])):
            alone = ours(source, [3], torch.tensor(ids), [3])[-1]
            assert float((got[i, 0] - alone).abs().max()) < 1e-5


# --- Learning and limits ------------------------------------------------------------------------------------------


def tiny(seed: int, **change: Any) -> EncoderDecoder:
    config = {"model_type": "marian", "vocab_size": 14, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
              "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
              "max_position_embeddings": 16, "activation_function": "relu", "scale_embedding": True,
              "pad_token_id": 0, "decoder_start_token_id": 1}  # fmt: skip
    return EncoderDecoder(families.from_hf({**config, **change})).initialise(seed)


def test_the_transformer_of_2017_learns_to_reverse() -> None:
    model, generator, steps = tiny(1), torch.Generator().manual_seed(2), 350
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)

    def some(count: int) -> list[Any]:
        lengths = torch.randint(2, 7, (count,), generator=generator).sort().values.tolist()
        return [torch.randint(4, 14, (n,), generator=generator) for n in lengths]

    start, end = torch.tensor([1]), torch.tensor([2])
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 4e-3 * min(1, (step + 1) / 30, (steps - step) / 60)
        sources = some(32)
        given = torch.cat([torch.cat([start, s.flip(0)]) for s in sources])
        wanted = torch.cat([torch.cat([s.flip(0), end]) for s in sources])
        lengths = [len(s) for s in sources]
        hidden = model(torch.cat(sources), lengths, given, [n + 1 for n in lengths])
        loss = F.cross_entropy(model.logits(hidden), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    sources = [s.tolist() for s in some(40)]
    for beams in (1, 3):
        right = [generate(model, s, max_tokens=10, stop_ids=[2], beams=beams) == s[::-1] for s in sources]
        assert sum(right) >= 36


def test_a_fresh_t5_is_about_as_wise_as_chance() -> None:
    arch = families.from_hf({"model_type": "t5", **_T5})
    model = EncoderDecoder(arch).initialise(0)
    with torch.no_grad():
        scores = model.logits(model(torch.arange(3, 20), [17], torch.arange(3, 23), [20]))
        loss = F.cross_entropy(scores, torch.arange(4, 24))
    assert 4.2 < float(loss) < 5.2  # log 96 is 4.56


def test_limits_are_told(tmp_path: Path) -> None:
    model = tiny(0)
    with pytest.raises(ContextOverflow, match="17 tokens"):
        generate(model, [5] * 17, max_tokens=3, stop_ids=[2])
    assert len(generate(model, [5, 6], max_tokens=99, stop_ids=[])) == 16
    for wrong in ({"source": []}, {"max_tokens": 0}, {"beams": 0}, {"beams": 14}):
        with pytest.raises(UsageError, match="cannot write"):
            generate(model, **{"source": [5], "max_tokens": 3, "stop_ids": [2], **wrong})
    with pytest.raises(FormatError, match="decoder_ffn_dim"):
        tiny(0, decoder_ffn_dim=32)
    arch = model.arch
    with pytest.raises(FormatError, match="buckets"):
        dataclasses.replace(arch, positions="relative")


def test_what_cannot_continue_text_says_what_it_does_instead(tmp_path: Path) -> None:
    files = open_model(str(foreign.save(theirs("t5"), tmp_path / "t5")))
    with pytest.raises(UsageError, match="turns one text into another"):
        load_decoder(files)
    with pytest.raises(UsageError, match="turns one text into another"):
        load_encoder(files)
    with pytest.raises(UsageError, match=r"turns one text into another.*load_model"):
        engine.load(files)
