"""The loss of a larger pretraining, foretold from a sweep of small ones and then measured.

Models of 66,000 to 541,000 parameters read 200,000 to 1.6 million tokens of books each; the law fitted to these runs
foretells one of 4.4 times the work of the largest (2.2 times the parameters, twice the tokens), which is then run.
With LADDERLM_BENCH_SCRATCH the sweep stays there, and one that was broken off goes on.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from ladderlm.errors import NotFound
from ladderlm.train import scaling
from ladderlm.train.settings import ScalingConfig

CORPUS = Path(os.environ.get("LADDERLM_DATA", "../shared/data")) / "corpus" / "books-children.jsonl.gz"
SWEEP = {"sizes": "2x32,3x48,4x64,4x96", "tokens": "200k,400k,800k,1600k", "predict": "5x128:3200k"}
SHORT = {"sizes": "1x16,1x32,2x32", "tokens": "8k,16k,32k", "predict": "2x48:64k", "seq_len": 64}
MOST = 0.03


def measure(minute: bool) -> dict[str, Any]:
    if not CORPUS.exists():
        raise NotFound("no such corpus", where=str(CORPUS), cure="set LADDERLM_DATA to the folder that holds corpus/")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch if minute else os.environ.get("LADDERLM_BENCH_SCRATCH", scratch)) / "scaling"
        chosen: dict[str, Any] = {"seq_len": 128, **(SHORT if minute else SWEEP)}
        config = ScalingConfig(data=str(CORPUS), out=str(folder), threads=1, **chosen)
        found = scaling.run(config)  # foretold before the larger run begins
        size, tokens = scaling.target(config.predict)
        larger = scaling.measured(scaling.set_up(config, folder), f"larger-{size}-{tokens}", str(size), tokens)
    (told,) = found.predictions
    error = told.loss / larger.loss - 1
    work = [6 * p.parameters * p.tokens for p in (*found.points, larger)]
    figures = {
        "law": found.law.to_dict(),
        "runs": [p.to_dict() for p in found.points],
        "worst_error_of_the_fit": round(max(abs(found.law.loss(p.parameters, p.tokens) / p.loss - 1)
                                            for p in found.points), 4),
        "larger": {**larger.to_dict(), "times_the_work_of_the_largest": round(work[-1] / max(work[:-1]), 2)},
        "foretold": told.to_dict(),
        "error": round(error, 4),
        "in_the_interval": told.low <= larger.loss <= told.high,
    }  # fmt: skip
    bars = {
        "the loss of a run of at least 4 times the work is foretold within 3 %":
            abs(error) <= MOST and work[-1] >= 4 * max(work[:-1]),
    }  # fmt: skip
    return figures if minute else {**figures, "bars": bars}
