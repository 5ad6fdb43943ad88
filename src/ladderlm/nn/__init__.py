"""Torch modules: the decoder, low-rank adapters and the losses that training shares."""

from ladderlm.nn.decoder import Decoder, load_decoder

__all__ = ["Decoder", "load_decoder"]
