"""Int4 and int8 folder forms of a model that was never quantised: what they cost in perplexity, bytes and speed.

A decoder of 26.7 M parameters is pretrained on the standard library's sources with our recipe (20 minutes on two
quiet cores), or taken ready from the folder that LADDER_QUANTISE_MODEL names, which must hold its recipe. Calibration
text is from its training part; perplexity is measured by our engine on its held-out part, window by window, so that
intervals are paired: each window under both models, resampled.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from ladderlm.convert import cost
from ladderlm.convert.cost import text_windows
from ladderlm.convert.quantise import QuantiseConfig, run
from ladderlm.data.records import write_records
from ladderlm.models import ModelFiles, open_model
from ladderlm.train import pretrain
from ladderlm.train.settings import PretrainConfig

MOST_BYTES, MOST_LOSS = 0.34, 0.03  # of 16 bits; of the perplexity
FORMS = {
    "int4 rtn": {"method": "rtn"},
    "int4 gptq": {},
    "int4 gptq, calibrated on its own writing": {"calibrate": ""},
    "int4 rtn, groups of 128": {"method": "rtn", "group": 128},
    "int4 gptq, groups of 128": {"group": 128},
    "int8 gptq": {"bits": 8},
}


def trained(minute: bool, work: Path) -> ModelFiles:
    """The model to quantise, and never quantised before."""
    ready = os.environ.get("LADDER_QUANTISE_MODEL")
    if ready:
        return open_model(ready)
    size: dict[str, Any] = {"vocab_size": 8192, "layers": 7, "dim": 512, "heads": 8, "minutes": 20.0}
    if minute:
        size = {"vocab_size": 1024, "layers": 2, "dim": 128, "heads": 2, "minutes": 0.3}
    config = PretrainConfig(data="python:sources", out=str(work / "model"), batch_tokens=4096, **size)
    return open_model(pretrain.run(config).model)


def measure(minute: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        files = trained(minute, work)
        train, held = pretrain.load_text(PretrainConfig.from_dict(files.lineage["recipe"]))
        write_records(work / "calibration.jsonl", train)
        windows = text_windows(files, [r["text"] for r in held])[: 20 if minute else None]
        tokens = sum(len(w) - 1 for w in windows)
        before = cost.measure(files, windows)
        figures: dict[str, Any] = {
            "parameters": files.arch.parameters, "bytes_of_16_bits": 2 * files.arch.parameters,
            "held_out_tokens": tokens, "windows": len(windows), "perplexity_fp32": math.exp(sum(before.nats) / tokens),
            "decode_tokens_per_second_fp32": before.tokens_per_second, "forms": {},
        }  # fmt: skip
        found: dict[str, cost.Measured] = {}
        for name, changes in FORMS.items():
            if minute and "own" in name:
                continue
            budget = {"tokens": 4096} if minute else {}
            settings = {"calibrate": str(work / "calibration.jsonl"), **budget, **changes}
            begin = time.perf_counter()
            made = run(QuantiseConfig(model=str(files.path), out=str(work / "int"), replace=True, **settings))
            seconds = time.perf_counter() - begin
            found[name] = cost.measure(open_model(made.model), windows)
            figures["forms"][name] = {
                "bytes": made.bytes, "share_of_16_bits": made.share, "seconds_to_make": seconds,
                "perplexity": math.exp(sum(found[name].nats) / tokens),
                "decode_tokens_per_second": found[name].tokens_per_second,
                "perplexity_increase": cost.increase(found[name], before, windows).to_dict(),
            }  # fmt: skip
        gain = cost.increase(found["int4 gptq"], found["int4 rtn"], windows)
        figures["int4_gptq_over_rtn"] = gain.to_dict()
        int4 = figures["forms"]["int4 gptq"]
        increase = int4["perplexity_increase"]["high"]
        bars = {
            "int4: at most 34 % of the bytes of 16 bits": int4["share_of_16_bits"] <= MOST_BYTES,
            "int4: perplexity at most 3 % higher than fp32 (upper end)": increase <= MOST_LOSS,
            "calibrated better than rounding to nearest (paired)": gain.high < 0,
            "at least 25 M parameters": files.arch.parameters >= 25_000_000,
        }
        return {**figures, "bars": {} if minute else bars}
