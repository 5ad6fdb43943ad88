"""A look at a fine-tuning before it is begun: records as the model would read them, and about what it will take."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ladderlm.errors import MissingExtra, UsageError
from ladderlm.serve import jobs, training
from ladderlm.serve.wire.runs import PreviewBody

if TYPE_CHECKING:
    from ladderlm.models.folder import ModelFiles
    from ladderlm.train.material import Material
    from ladderlm.train.settings import FinetuneConfig

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt")
SHOWN = 10
PASSES = 2.0  # of the whole model a token costs: forward and back through frozen weights


def preview(body: PreviewBody, reference: str) -> dict[str, Any]:
    """Raises MissingExtra without torch, LadderError where the file cannot be trained on."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        raise MissingExtra("torch", "train") from None
    from ladderlm.models.reference import open_model
    from ladderlm.train.material import load_material
    from ladderlm.train.settings import METHODS, FinetuneConfig

    suffix = Path(body.name).suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"no look at {suffix or 'such'} files", where="name", cure="known: " + ", ".join(SUFFIXES))
    method = body.method or "lora"
    if method not in METHODS:
        raise UsageError(f"unknown method {method!r}", where="method", cure="known: " + ", ".join(METHODS))
    files = open_model(reference)
    with tempfile.TemporaryDirectory(prefix="ladderlm-look-") as folder:
        data = Path(folder) / f"data{suffix}"
        data.write_text(body.text, encoding="utf-8")
        config = FinetuneConfig(
            data=str(data), model=reference, skip_bad=True, cut=True, method=method, epochs=body.epochs or 1.0
        )
        material = load_material(config, files)
        shown = [material.task.pieces(record) for record in material.records[: body.records or SHOWN]]
    share = len(body.text.encode()) / max(body.bytes or 0, len(body.text.encode()))
    return {
        "object": "fine_tuning.preview",
        "task": material.task.name,
        "records": [[{"text": p.text, "learnt": p.learnt, "note": p.note} for p in pieces] for pieces in shown],
        "lengths": material.lengths.to_dict(),
        "held_out": len(material.held),
        "bad": [{"line": bad.line, "reason": bad.reason} for bad in material.bad[:50]],
        "notes": list(material.notes),
        "share": share,
        "estimate": _estimate(config, files, material, share, jobs.pace("supervised", body.model)),
    }


def _estimate(
    config: FinetuneConfig, files: ModelFiles, material: Material, share: float, pace: float | None
) -> dict[str, Any]:  # fmt: skip
    """Nothing is tried out: by the `pace` of the last job, seconds a token, or guessed from sizes and this machine."""
    from ladderlm.train.derive import peak_flops, settled, token_flops
    from ladderlm.train.memory import available
    from ladderlm.train.plan import USUAL_MFU

    tokens = material.lengths.tokens / share * config.epochs
    if pace is None:
        flops = token_flops(files.arch, min(config.max_length, material.lengths.longest))
        pace = flops * _share_of_work(config.method) / (USUAL_MFU * peak_flops("cpu", settled(config.precision, "cpu")))
    batch = round(min(config.batch_tokens * material.lengths.fill, material.lengths.tokens))
    memory, trained = training.memory(files.arch, batch, config.method, config.rank)
    return {
        "tokens": round(tokens),
        "steps": max(1, round(material.packing.batches_in(config.epochs) / share)),
        "seconds": round(tokens * pace, 1),
        "memory_bytes": memory,
        "available_bytes": available("cpu"),
        "trained_parameters": trained,
    }


def _share_of_work(method: str) -> float:
    """Of a training step's work on all weights: frozen ones need no gradients of their own."""
    return 1.0 if method == "full" else PASSES / 3
