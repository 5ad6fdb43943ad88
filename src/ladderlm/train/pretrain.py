"""Pretraining from random weights: text, tokenizer, windows, the loop, and how good it got on unseen text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ladderlm import events
from ladderlm.data.collect import collect
from ladderlm.data.records import make_record, split
from ladderlm.errors import UsageError
from ladderlm.evals.compress import xz_bits_per_byte
from ladderlm.evals.intervals import bootstrap_ratio
from ladderlm.evals.ngram import KneserNey
from ladderlm.models.card import joint_licence
from ladderlm.models.folder import save_model
from ladderlm.nn.decoder import Decoder
from ladderlm.nn.loss import mean_nats
from ladderlm.text.bpe import train_bpe
from ladderlm.text.template import CHATML, ChatTemplate
from ladderlm.text.tokenizer import Tokenizer
from ladderlm.train.corpus import Tokens, text_nats, tokenise, windows
from ladderlm.train.loop import Watch, fit
from ladderlm.train.optim import Optimiser
from ladderlm.train.result import (
    Result,
    begin,
    check_finished,
    conclude,
    describe_data,
    destination,
    use_threads,
)
from ladderlm.train.settings import PretrainConfig
from ladderlm.types import Record, Run

HELD_OUT_SHARE = 0.05
HELD_OUT_BYTES = 200_000
HELD_OUT_PIECE = 4_000  # characters; several pieces make an interval possible


def run(config: PretrainConfig) -> Result:
    """Trains and writes a model folder; a measured comparison with xz and a trigram goes into its run's report."""
    if not (config.data or config.resume):
        raise UsageError("no data to train on", cure="name a file or folder, or python:docs")
    if not config.resume:
        config.loop()  # complains before any work is done
    run_, config = begin("pretrain", config, config.resume)
    use_threads(config.threads)
    train, held = load_text(config)
    tokenizer = load_tokenizer(config, train)
    start = tokenizer.document_start_id
    if start is None:
        raise UsageError("the tokenizer has no document-start token", where=config.tokenizer, cure="train one")
    tokens = tokenise(train, tokenizer)
    arch = config.architecture(tokenizer.vocab_size)
    message = f"{arch.parameters / 1e6:.2f} M parameters, {len(tokens.ids_N):,} tokens in {len(train):,} documents"
    events.emit("pretrain", message, data={"parameters": arch.parameters, "tokens": len(tokens.ids_N)})
    decoder = Decoder(arch).initialise(config.seed)
    optimiser = Optimiser(
        decoder.named_parameters(), config.lr, muon_lr=config.muon_lr, weight_decay=config.weight_decay
    )
    held_ids = tokenizer.encode_batch([r["text"] for r in held])

    def evaluate() -> dict[str, float]:
        return {"held_out_loss": sum(text_nats(decoder, held_ids, start)) / sum(map(len, held_ids))}

    batches = windows(tokens, config.seq_len, config.micro_batch, config.seed, start)
    fitted = fit(
        decoder, mean_nats, batches, optimiser, run_, config.loop(),
        watch=Watch(evaluate if config.evaluate_every else None), stage="pretrain",
    )  # fmt: skip
    check_finished(run_, fitted, "pretrain")
    scores = measure(text_nats(decoder, held_ids, start), held, held_ids, tokens, start)
    path = destination(config.out)
    save(path, config, decoder, tokenizer, describe_data(config.data, train), run_, scores)
    return conclude(run_, f"Pretraining of {path.name}", summary(scores), path, fitted, scores)


def load_text(config: PretrainConfig) -> tuple[list[Record], list[Record]]:
    """(train, held out). A lone document is cut near its end; else whole documents are kept apart."""
    records = collect(config.data, licence=config.licence)
    if config.held_out:
        held = collect(config.held_out, licence=config.licence)
    elif len(records) == 1:
        text = records[0]["text"]
        cut = len(text) - min(int(len(text) * HELD_OUT_SHARE), HELD_OUT_BYTES)
        pieces = [text[i : i + HELD_OUT_PIECE] for i in range(cut, len(text), HELD_OUT_PIECE)]
        records, held = [_part(records[0], text[:cut])], [_part(records[0], piece) for piece in pieces]
    else:
        records, held = split(records, HELD_OUT_SHARE, config.seed)
    kept, size = [], 0
    for record in held:
        if size < HELD_OUT_BYTES:
            kept.append(record)
            size += len(record["text"].encode())
    return records, kept


def _part(record: Record, text: str) -> Record:
    return make_record("text", {"text": text}, source=record.source, licence=record.licence)


def load_tokenizer(config: PretrainConfig, train: Sequence[Record]) -> Tokenizer:
    if not config.tokenizer:
        return train_bpe((r["text"] for r in train), config.vocab_size)
    path = Path(config.tokenizer).expanduser()
    return Tokenizer.from_folder(path) if path.is_dir() else Tokenizer.from_file(path)


def measure(
    nats_each: Sequence[float], held: Sequence[Record], held_ids: Sequence[Sequence[int]], tokens: Tokens, start: int
) -> dict[str, Any]:
    """Bits per byte of the held-out text: the model's, a Kneser-Ney trigram's on the same tokens, and xz's."""
    sizes = [len(r["text"].encode()) for r in held]
    found = bootstrap_ratio([n / math.log(2) for n in nats_each], sizes)
    trigram = KneserNey(3).fit(np.asarray(tokens.ids_N, dtype=np.int64))
    said = [i for ids in held_ids for i in (start, *ids)]
    return {
        "bits_per_byte": found.mean,
        "bits_per_byte_low": found.low,
        "bits_per_byte_high": found.high,
        "perplexity": math.exp(sum(nats_each) / max(1, sum(map(len, held_ids)))),
        "trigram_bits_per_byte": trigram.bits(said) / sum(sizes),
        "xz_bits_per_byte": xz_bits_per_byte("".join(r["text"] for r in held)),
        "held_out_bytes": sum(sizes),
    }


def summary(scores: dict[str, Any]) -> str:
    return (
        f"{scores['bits_per_byte']:.3f} bits per byte [{scores['bits_per_byte_low']:.3f}, "
        f"{scores['bits_per_byte_high']:.3f}] on {scores['held_out_bytes']:,} bytes of unseen text; a trigram on the "
        f"same tokens {scores['trigram_bits_per_byte']:.3f}, xz on the text alone {scores['xz_bits_per_byte']:.3f}."
    )


def save(
    path: Path, config: PretrainConfig, decoder: Decoder, tokenizer: Tokenizer, data: list[dict[str, Any]], run_: Run,
    scores: dict[str, Any],
) -> None:  # fmt: skip
    """The model folder. A base model carries a chat template too, so that it can be served and tuned as it is."""
    recipe = dataclasses.asdict(config)
    lineage: dict[str, Any] = {"parent": None, "data": data, "recipe": recipe, "run": run_.id, "scores": scores}
    lineage["licence"] = joint_licence(lineage)
    texts = [tokenizer.token_text(i) if i is not None else "" for i in (tokenizer.bos_id, tokenizer.eos_id)]
    template = ChatTemplate(CHATML, *texts) if "<|im_start|>" in tokenizer.control else None
    save_model(
        path, decoder.arch, decoder.state(), tokenizer, template, generation={}, lineage=lineage,
        replace=config.replace,
    )  # fmt: skip
