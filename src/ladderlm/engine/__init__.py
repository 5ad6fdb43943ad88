"""Inference on the CPU: `load` a model and ask it for logits, answers and scores; `load_embedder` for vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ladderlm.errors import UsageError
from ladderlm.types import KVType

if TYPE_CHECKING:
    from ladderlm.engine.backend import Backend
    from ladderlm.engine.embed import Embedder
    from ladderlm.engine.engine import Engine
    from ladderlm.models.arch import Architecture
    from ladderlm.models.folder import ModelFiles
    from ladderlm.models.weights import Weights

__all__ = ["check", "load", "load_embedder", "on_cpu"]


def load(
    files: ModelFiles,
    *,
    threads: int | None = None,
    kv_bytes: int | None = None,
    kv_dtype: KVType = "auto",
    speculate: bool = True,
    draft: ModelFiles | None = None,
    exact: bool = False,
) -> Engine:
    """An Engine for `files` on `threads` threads (default: the cores, at most 8). Close it, or use it in `with`.

    `kv_bytes` and `speculate` are the Engine's. `draft` is a smaller model with the same tokenizer that guesses what
    this one writes: same answers, sooner.
    `kv_dtype`: how keys and values are kept; "auto" is float16 beside quantised weights, else float32, and int8 halves
    the memory of float16.
    Quantised weights are multiplied with activations in 8 bits; `exact` takes float32 ones, many times slower, to
    compare what is in two files.
    Raises UsageError for a model that does not continue text, saying what it does instead, and for a draft model
    that cuts text into other tokens.
    """
    check(files)
    from ladderlm.engine.engine import Engine

    guesser = None
    if draft is not None:
        check(draft)
        if _vocabulary(draft) != _vocabulary(files):
            raise UsageError("a draft model must have the model's tokenizer", where=f"{draft.name} for {files.name}")
        guesser = on_cpu(draft.arch, draft.weights, threads=threads, key=draft.hash)
    backend = on_cpu(files.arch, files.weights, threads=threads, key=files.hash, exact=exact, kv_dtype=kv_dtype)
    # The numpy reference sums in another order when a step has more rows: there, guesses could change an answer.
    speculate = speculate and files.arch.compiled
    return Engine(backend, files.tokenizer, kv_bytes=kv_bytes, speculate=speculate, draft=guesser)


def _vocabulary(files: ModelFiles) -> list[str]:
    return [files.tokenizer.token_text(i) for i in range(files.tokenizer.vocab_size)]


def check(files: ModelFiles) -> None:
    """Raises UsageError for a model that does not continue text, saying what it does instead."""
    arch = files.arch
    if arch.kind != "decoder":
        what = f"{files.name} does not continue text: it {arch.purpose}"
        vectors = " (for vectors: open_embedder)" if arch.kind == "encoder" else ""
        cure = f"use it in Python with ladderlm.nn.load_model{vectors}"
        raise UsageError(what, where=f"{arch.family} {arch.kind}", cure=cure)


def on_cpu(
    arch: Architecture, weights: Weights, *, threads: int | None = None, key: str | None = None, exact: bool = False,
    kv_dtype: KVType = "auto",
) -> Backend:  # fmt: skip
    """The compiled kernels, or the numpy reference for the families they do not run. `key` names a packed copy."""
    from ladderlm.engine.network import Network
    from ladderlm.engine.plain import PlainNetwork

    if arch.compiled:
        return Network(arch, weights, threads=threads, key=key, exact=exact, kv_dtype=kv_dtype)
    if kv_dtype not in ("auto", "float32"):
        raise UsageError(f"keys and values of {arch.family} are kept in float32", where=f"kv_dtype={kv_dtype}")
    return PlainNetwork(arch, weights)


def load_embedder(files: ModelFiles, *, pooling: str = "") -> Embedder:
    """An Embedder for `files`, an encoder or a decoder. `pooling`: "mean", "cls" or "last" in the place of its own.

    Raises UsageError for an encoder-decoder, and for layers after the pooling, which are not supported.
    """
    from ladderlm.engine.embed import Embedder
    from ladderlm.engine.encoder import ReferenceEncoder
    from ladderlm.engine.plain import Widened
    from ladderlm.engine.reference import ReferenceDecoder

    if files.arch.kind == "encoder-decoder":
        raise UsageError(f"{files.name} makes no vectors: it {files.arch.purpose}", where=files.arch.family)
    weights = Widened(files.weights)
    if files.arch.kind == "encoder":
        return Embedder(files, ReferenceEncoder(files.arch, weights).hidden_each, pooling=pooling)
    decoder = ReferenceDecoder(files.arch, weights)
    return Embedder(files, lambda documents: [decoder.hidden(ids) for ids in documents], pooling=pooling)
