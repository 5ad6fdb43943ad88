"""Masked tokens with next sentences, and span corruption: what a model of 3 M parameters learns in 15 minutes.

1. Masked tokens and pairs, on books: the first guess is right at least twice as often as the commonest token, and more
   often than the left neighbour's usual follower; at least 60 % of pairs are told right, with the interval above 50 %.
2. Span corruption: a token that was cut out costs fewer nats than by its frequency.
3. transformers opens both folders, fills the same masks and writes the same spans.

What is measured on are pieces of books that the model does not learn from, several, so that the second text of a pair
may come from another book, as it does while learning. Each half is kept in LADDERLM_BENCH_SCRATCH when it is done.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ladderlm.data.stages import stream
from ladderlm.errors import NotFound
from ladderlm.models import open_model
from ladderlm.train import pretrain
from ladderlm.train.settings import PretrainConfig

ROOT = Path(__file__).resolve().parents[1]
CORPUS = Path(os.environ.get("LADDERLM_DATA", "../shared/data")) / "corpus" / "books-children.jsonl.gz"
EVERY, PIECE = 8, 192_000  # every eighth book is kept apart, and so many characters of it are measured on
MOST = 3_000_000  # parameters
SHAPE: dict[str, Any] = {
    "dim": 192, "heads": 6, "layers": 4, "vocab_size": 3000, "seq_len": 64, "batch_tokens": 4096, "warmup": 50,
}  # fmt: skip
PAIRS: dict[str, Any] = {"batch_tokens": 8192, "seq_len": 128}  # longer texts have more in common
SHORT: dict[str, Any] = {"dim": 96, "heads": 2, "layers": 2, "vocab_size": 1000, "batch_tokens": 2048}
TEXTS, GUESSES, WRITTEN = 8, 5, 16  # texts that transformers is asked about, guesses of a mask, tokens of spans


def books(folder: Path) -> tuple[Path, Path]:
    """(what to learn from, what to measure on), as files in `folder`."""
    if not CORPUS.exists():
        raise NotFound("no such corpus", where=str(CORPUS), cure="set LADDERLM_DATA to the folder that holds corpus/")
    texts = [record["text"] for record in stream(CORPUS)]
    held = [text[len(text) // 3 :][:PIECE] for text in texts[EVERY // 2 :: EVERY]]
    train = [text for i, text in enumerate(texts) if i % EVERY != EVERY // 2]
    return written(folder / "train.jsonl", train), written(folder / "held.jsonl", held)


def written(path: Path, texts: Iterable[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def learn(
    objective: str, minutes: float, changes: dict[str, Any], same: Callable[[Path, list[str]], float]
) -> dict[str, Any]:  # fmt: skip
    """The scores of one pretraining, and the share of texts on which transformers does the `same`."""
    with tempfile.TemporaryDirectory() as scratch:
        train, held = books(Path(scratch))
        out = Path(scratch) / "model"
        settings = {"data": str(train), "held_out": str(held), "out": str(out), **SHAPE, **changes}
        result = pretrain.run(PretrainConfig(objective=objective, minutes=minutes, **settings))
        size = open_model(str(out)).arch.parameters
        texts = [json.loads(line)["text"][1000:1120] for line in held.read_text(encoding="utf-8").splitlines()]
        agreed = same(out, texts[:TEXTS])
    return {"parameters": size, "steps": result.steps, "tokens": result.tokens, "seconds": round(result.seconds, 1),
            "same_in_transformers": agreed,
            **{k: round(v, 4) if isinstance(v, float) else v for k, v in result.scores.items()}}  # fmt: skip


def kept(scratch: str | None, objective: str, *given: Any) -> dict[str, Any]:
    """`learn`, or what it gave with this code before: so a proof that was broken off goes on."""
    if not scratch:
        return learn(objective, *given)
    paths = sorted((*ROOT.glob("src/ladderlm/train/*.py"), *ROOT.glob("src/ladderlm/nn/*.py"), Path(__file__)))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]
    place = Path(scratch) / "objectives" / f"{objective}-{code}.json"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(learn(objective, *given)))
    found: dict[str, Any] = json.loads(place.read_text())
    return found


def same_masks(folder: Path, texts: list[str]) -> float:
    """The share of texts whose middle token, masked, has the same first guesses here and in transformers."""
    import torch
    import transformers

    from ladderlm.nn import load_encoder

    files = open_model(str(folder))
    ours, theirs = load_encoder(files), transformers.MegatronBertForPreTraining.from_pretrained(folder).eval()
    head, tail = files.tokenizer.around.head, files.tokenizer.around.tail
    agreed = 0
    for text in texts:
        ids = torch.tensor([*head, *files.tokenizer.encode(text), *tail])
        place = len(ids) // 2
        ids[place] = files.tokenizer.mask_id
        with torch.no_grad():
            guessed = ours.logits(ours(ids, (len(ids),)))[place].topk(GUESSES).indices
            wanted = theirs(input_ids=ids[None]).prediction_logits[0, place].topk(GUESSES).indices
        agreed += torch.equal(guessed, wanted)
    return agreed / len(texts)


def same_spans(folder: Path, texts: list[str]) -> float:
    """The share of texts for whose missing middle third transformers writes the same."""
    import torch
    import transformers

    from ladderlm.nn import load_encoder_decoder
    from ladderlm.nn.search import generate

    files = open_model(str(folder))
    ours = load_encoder_decoder(files)
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    end, mark = files.tokenizer.eos_id, files.tokenizer.control["<extra_id_0>"]
    assert end is not None
    agreed = 0
    for text in texts:
        ids = files.tokenizer.encode(text)
        third = len(ids) // 3
        source = [*ids[:third], mark, *ids[2 * third :], end]
        found = generate(ours, source, max_tokens=WRITTEN, stop_ids=[end])
        wanted = theirs.generate(torch.tensor([source]), max_new_tokens=WRITTEN, do_sample=False)[0].tolist()[1:]
        marks = (end, files.arch.pad_id)  # the one is told by transformers only, the other follows it there
        agreed += [i for i in found if i not in marks] == [i for i in wanted if i not in marks]
    return agreed / len(texts)


def measure(minute: bool) -> dict[str, Any]:
    (long, short), changes = ((0.3, 0.3), SHORT) if minute else ((14.5, 6.0), {})
    threads = {"threads": int(os.environ.get("LADDERLM_BENCH_THREADS", "0"))}
    scratch = None if minute else os.environ.get("LADDERLM_BENCH_SCRATCH")
    masked = kept(scratch, "mlm+nsp", long, PAIRS | changes | threads, same_masks)
    spans = kept(scratch, "spans", short, changes | threads, same_spans)
    same = masked["same_in_transformers"] == spans["same_in_transformers"] == 1.0
    bars = {
        "masked tokens: right at least twice as often as the commonest":
            masked["masked_accuracy"] >= 2 * masked["unigram_accuracy"],
        "masked tokens: right more often than the left neighbour's follower":
            masked["masked_accuracy"] > masked["bigram_accuracy"],
        "pairs: at least 60 % right, the interval above 50 %":
            masked["next_accuracy"] >= 0.6 and masked["next_accuracy_low"] > 0.5,
        "spans: fewer nats than by frequency": spans["span_loss"] < spans["unigram_loss"],
        "transformers fills the same masks and writes the same spans": same,
        "at most 3 M parameters": max(masked["parameters"], spans["parameters"]) <= MOST,
        "at most 15 minutes each": max(masked["seconds"], spans["seconds"]) <= 15 * 60,
    }  # fmt: skip
    if minute:
        bars = {name: bars[name] for name in list(bars)[-3:]}  # the others need their time
    return {"minutes": [long, short], **threads, "masked_and_pairs": masked, "spans": spans, "bars": bars}
