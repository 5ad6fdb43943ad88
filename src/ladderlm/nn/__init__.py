"""Torch modules: decoder, encoder, encoder-decoder, what is trained beside them, and the losses of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ladderlm.nn.backend import load_engine
from ladderlm.nn.decoder import Decoder, load_decoder
from ladderlm.nn.encoder import Encoder, load_encoder
from ladderlm.nn.seq2seq import EncoderDecoder, load_encoder_decoder

if TYPE_CHECKING:
    from ladderlm.models.folder import ModelFiles

__all__ = [
    "Decoder", "Encoder", "EncoderDecoder", "load_decoder", "load_encoder", "load_encoder_decoder", "load_engine",
    "load_model",
]  # fmt: skip


def load_model(files: ModelFiles) -> Decoder | Encoder | EncoderDecoder:
    """The module for `files`' kind of model, with its weights."""
    if files.arch.kind == "encoder":
        return load_encoder(files)
    return load_encoder_decoder(files) if files.arch.kind == "encoder-decoder" else load_decoder(files)
