"""Tiny encoders and encoder-decoders with random weights, and records that they can learn in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stories import ANIMALS, PLACES, STORIES

from ladderlm.models.folder import save_model
from ladderlm.nn.encoder import Encoder
from ladderlm.nn.seq2seq import EncoderDecoder
from ladderlm.train.masked import Masked
from ladderlm.train.settings import PretrainConfig
from ladderlm.train.spans import Spans

SIZES: dict[str, Any] = {"dim": 32, "heads": 2, "layers": 2, "vocab_size": 330, "seq_len": 64, "threads": 1}

BIG = ("cow", "dog")
CLASSES = [{"text": s, "label": "big" if s.split()[1] in BIG else "small"} for s in STORIES]
ENTITIES = [
    {
        "tokens": f"The {a} went to the {p} today".split(),
        "tags": ["O", "B-animal", "O", "O", "O", "B-place", "O"],
    }
    for a in ANIMALS
    for p in PLACES
]
QUESTIONS = [
    {"context": f"The {a} went to the {p}.", "question": "Who went?", "answers": [a]} for a in ANIMALS for p in PLACES
]
PAIRS = [{"source": f"The {a} went to the {p}.", "target": f"{p} {a}"} for a in ANIMALS for p in PLACES]
OTHERS = ("red", "blue", "six", "ten", "up", "down", "salt", "iron", "moon")  # nothing that an anchor shares
TRIPLES = [{"anchor": a, "positive": b, "negative": ""} for a, b in zip((*ANIMALS, *PLACES), OTHERS, strict=True)]
KINDS = {"class": CLASSES, "spans": ENTITIES, "qa": QUESTIONS, "translation": PAIRS, "triple": TRIPLES}


def encoder(folder: Path) -> Path:
    """A model folder with a BERT of two layers."""
    config = PretrainConfig(data="x", **SIZES)
    tokenizer = Masked.make_tokenizer(STORIES, config)
    arch = Masked.architecture(config, tokenizer)
    model = Encoder(arch).initialise(1)
    save_model(folder, arch, model.state(), tokenizer, None, generation={}, lineage={"licence": "CC0-1.0"})
    return folder


def encoder_decoder(folder: Path) -> Path:
    """A model folder with a T5 of two layers."""
    config = PretrainConfig(data="x", **SIZES)
    tokenizer = Spans.make_tokenizer(STORIES, config)
    arch = Spans.architecture(config, tokenizer)
    model = EncoderDecoder(arch).initialise(1)
    save_model(folder, arch, model.state(), tokenizer, None, generation={}, lineage={"licence": "CC0-1.0"})
    return folder
