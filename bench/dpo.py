"""DPO on real preferences: polite against impolite answers, and harmless against harmful ones.

The default model learns by LoRA for at most 15 minutes each. What counts is whether on held-out pairs the chosen answer
gained on the rejected one (the implicit reward), and of the harmless pairs on those whose answers are about as long.

Bars: 95 % of the polite pairs; of the length-matched harmless pairs more than half, with the whole 95 % interval.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

from ladderlm.errors import NotFound
from ladderlm.models.fetch import DEFAULT_MODEL
from ladderlm.train import align
from ladderlm.train.dpo import ALIKE
from ladderlm.train.settings import AlignConfig

DATA = Path(os.environ.get("LADDERLM_DATA", "../shared/data")) / "instruct"
POLITE, HARMLESS = DATA / "llms-from-scratch-preference.json", DATA / "hh-rlhf-harmless-pairs.jsonl.gz"
# The polite pairs are known by heart after one epoch: three tell fewer unseen ones apart. Of the harmless ones people
# often think otherwise: with a higher beta, or few of them in a step, the model is sure where it should not be.
LENGTH: dict[str, dict[str, Any]] = {
    "polite": {"epochs": 1.5, "beta": 1.5}, "harmless": {"minutes": 12.0, "beta": 0.1, "batch_tokens": 2048},
}  # fmt: skip
HELD_OUT = {"polite": (100, 120), "harmless": (300, 200)}  # pairs of one length, others; at most a third of all


def read(path: Path) -> bytes:
    if not path.exists():
        raise NotFound("no such data", where=str(path), cure="set LADDERLM_DATA to the folder that holds instruct/")
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def turns(text: str) -> list[dict[str, str]]:
    """A conversation written as "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    roles = {"Human": "user", "Assistant": "assistant"}
    found: list[dict[str, str]] = []
    for part in text.split("\n\n"):
        name, colon, said = part.partition(":")
        if colon and name in roles:
            found.append({"role": roles[name], "content": said.strip()})
        elif found:
            found[-1]["content"] += "\n\n" + part
    return found


def polite() -> list[dict[str, Any]]:
    rows = json.loads(read(POLITE))
    return [{key: row[key] for key in ("instruction", "input", "chosen", "rejected")} for row in rows]


def harmless() -> list[dict[str, Any]]:
    """The pairs that differ in their last turn only."""
    rows = []
    for line in read(HARMLESS).decode().splitlines():
        row = json.loads(line)
        chosen, rejected = turns(row["chosen"]), turns(row["rejected"])
        sound = chosen[:-1] == rejected[:-1] and chosen[-1]["role"] == rejected[-1]["role"] == "assistant"
        if sound and chosen[-1]["content"] and rejected[-1]["content"] and len(chosen) > 1:
            last = {"chosen": chosen[-1]["content"], "rejected": rejected[-1]["content"]}
            rows.append({"prompt": chosen[:-1], **last})
    return rows


def alike(row: dict[str, Any]) -> bool:
    """Whether both answers are of one length, by their characters as the alignment has it by tokens."""
    sizes = [len(row[side]) for side in ("chosen", "rejected")]
    return max(sizes) - min(sizes) <= ALIKE * max(sizes)


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> dict[str, str]:
    """Both sides as files, as AlignConfig names them. All of the few harmless pairs of one length are held out."""
    random.Random(0).shuffle(rows)
    kinds = [[row for row in rows if alike(row) == same] for same in (True, False)]
    cuts = [min(wanted, len(some), len(rows) // 6) for some, wanted in zip(kinds, HELD_OUT[name], strict=True)]
    sides = {
        "held_out": [row for some, cut in zip(kinds, cuts, strict=True) for row in some[:cut]],
        "data": [row for some, cut in zip(kinds, cuts, strict=True) for row in some[cut:]],
    }
    for side, some in sides.items():
        (folder / f"{name}.{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return {side: str(folder / f"{name}.{side}.jsonl") for side in sides}


def learn(folder: Path, name: str, rows: list[dict[str, Any]], threads: int, **changes: Any) -> dict[str, Any]:
    config = AlignConfig(
        **write(folder, name, rows), model=DEFAULT_MODEL, out=str(folder / name), threads=threads, skip_bad=True,
        **{"max_length": 512, "lr": 2e-4, "batch_tokens": 1024, **LENGTH[name], **changes},
    )  # fmt: skip
    result = align.run(config)
    kept = ("gained", "length_matched", "chosen_likelier_before", "chosen_likelier", "held_out_loss",
            "held_out_chosen_logratio", "held_out_rejected_logratio", "forgetting")  # fmt: skip
    return {"steps": result.steps, "tokens": result.tokens, "seconds": round(result.seconds, 1),
            "verdict": result.scores["helped"]["verdict"], **{k: result.scores[k] for k in kept}}  # fmt: skip


def measure(minute: bool) -> dict[str, Any]:
    threads = int(os.environ.get("LADDERLM_BENCH_THREADS", "2"))
    kinds = {"polite": polite(), "harmless": harmless()}
    length: dict[str, Any] = {}
    if minute:
        kinds = {name: [r for r in rows if len(json.dumps(r)) < 600][:60] for name, rows in kinds.items()}
        length = {"steps": 3, "minutes": 0.0, "batch_tokens": 512, "layers_trained": 4}
    with tempfile.TemporaryDirectory() as scratch:
        found = {name: learn(Path(scratch), name, rows, threads, **length) for name, rows in kinds.items()}
    bars = {
        "polite pairs: the chosen answer gained in at least 95 %": found["polite"]["gained"]["mean"] >= 0.95,
        "harmless pairs of one length: more than half, with the interval": found["harmless"]["length_matched"]["low"]
        > 0.5,
    }
    return {"threads": threads, "model": DEFAULT_MODEL, **found} | ({} if minute else {"bars": bars})
