"""Cleaning and deduplication from file to file, against datatrove's filters and datasketch; near-duplicates found.

The corpus is near.py's: edits and distractors of the standard library's documentation, beside that documentation and
its sources as they are. Both sides read the same JSON lines, apply the rules of Gopher, C4 (without its line ends) and
FineWeb, leave near-duplicates out, and write JSON lines. Each of the two works through the whole corpus: the rules
leave much of this one out, and deduplication should not look fast by that. Figures are CPU seconds, compilation and
imports aside, in turns. The peers are held to a part of the corpus, as they are slow. DATATROVE names a Python that has
datatrove, datasketch and rensa, when they are not installed beside LadderLM; without them only our figures are given.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bench.near import judged, near_duplicates
from ladderlm.data.clean import clean
from ladderlm.data.clean_rules import choose
from ladderlm.data.collect import python_corpus
from ladderlm.data.dedup import dedup
from ladderlm.data.minhash import MinHash
from ladderlm.data.records import write_records
from ladderlm.data.stages import Dropped, run_stage, stream

RULES = choose(["gopher", "c4", "fineweb"], without=["c4-line-end"])

_PEER = """
import json, re, sys, time
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter)
from datasketch import MinHash, MinHashLSH

def clean(lines):
    for line in lines:
        row = json.loads(line)
        document = Document(text=row["fields"]["text"], id=row["id"])
        if all(f.filter(document) is True for f in filters):
            row["fields"]["text"] = document.text
            yield row

def grams(text):
    words = re.findall(r"[^\\W_]+", text.lower())
    return {" ".join(words[i : i + 5]) for i in range(max(len(words) - 4, 1))}

def datasketch(rows):
    lsh = MinHashLSH(threshold=0.65, num_perm=256)
    for row in rows:
        m = MinHash(num_perm=256)
        m.update_batch([g.encode() for g in grams(row["fields"]["text"])])
        if not lsh.query(m):
            lsh.insert(row["id"], m)
            yield row

def rensa(rows):
    import rensa
    lsh = rensa.RMinHashLSH(threshold=0.65, num_perm=256, num_bands=64)
    kept = []
    for i, row in enumerate(rows):
        m = rensa.RMinHash(num_perm=256, seed=42)
        m.update(list(grams(row["fields"]["text"])))
        if not any(kept[j].jaccard(m) >= 0.65 for j in lsh.query(m)):
            lsh.insert(len(kept), m)
            kept.append(m)
            yield row

source, out = sys.argv[1:]
filters = [C4QualityFilter(filter_no_terminal_punct=False), GopherRepetitionFilter(), GopherQualityFilter(),
           FineWebQualityFilter()]
lines = open(source, encoding="utf-8").read().splitlines()
list(clean(lines[:1]))
found = {}
began = time.process_time()
rows = list(clean(open(source, encoding="utf-8")))
found["clean"] = time.process_time() - began
began = time.process_time()
everything = [json.loads(line) for line in open(source, encoding="utf-8")]
kept = list(datasketch(everything))
with open(out, "w", encoding="utf-8") as file:
    file.writelines(json.dumps(row, ensure_ascii=False) + "\\n" for row in kept)
found["dedup"] = time.process_time() - began
found |= {"cleaned": len(rows), "kept": len(kept)}
try:
    began = time.process_time()
    found["rensa_kept"] = len(list(rensa(everything)))
    found["rensa"] = time.process_time() - began
except ImportError:
    pass
print(json.dumps(found))
"""


def corpus(folder: Path, groups: int, megabytes: float) -> tuple[Path, Path]:
    """All of it, and its first `megabytes`."""
    records = near_duplicates(groups, seed=1) + python_corpus("docs") + python_corpus()[::3]
    records = sorted(records, key=lambda record: record.id)
    part, size = [], 0.0
    for record in records:
        part.append(record)
        size += len(record["text"].encode()) / 1e6
        if size >= megabytes:
            break
    write_records(folder / "all.jsonl", records)
    write_records(folder / "part.jsonl", part)
    return folder / "all.jsonl", folder / "part.jsonl"


def ours(source: Path, folder: Path) -> dict[str, float]:
    """CPU seconds of both stages, from file to file."""
    for old in folder.glob("our-*"):
        old.unlink()
    cleaned, kept = folder / "our-clean.jsonl", folder / "our-kept.jsonl"
    began = time.process_time()
    first = run_stage("clean", clean(RULES), [source], cleaned, {})
    middle = time.process_time()
    second = run_stage("dedup", dedup(), [source], kept, {})
    return {"clean": middle - began, "dedup": time.process_time() - middle, "cleaned": first.records_out,
            "kept": second.records_out}  # fmt: skip


def peers(source: Path, folder: Path) -> dict[str, float] | str:
    """The same of the others, or why there are none."""
    python = os.environ.get("DATATROVE", sys.executable)
    done = subprocess.run(
        [python, "-c", _PEER, str(source), str(folder / "peer.jsonl")],
        capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"], "HOME": str(folder)},
    )  # fmt: skip
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["the peers ended without a word"])[-1]
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def near(groups: int) -> dict[str, Any]:
    """Recall and precision over three seeds together, and what signatures alone cost."""
    totals: Counter[str] = Counter()
    seconds = size = 0.0
    minhash = MinHash()
    for seed in (11, 12, 13):
        records = near_duplicates(groups, seed)
        out = list(dedup()(records))
        drops = [(o.record, o.record.meta["duplicate_of"]) for o in out if isinstance(o, Dropped)]
        found = judged(records, drops)
        totals.update(wanted=int(found["wanted"]), left_out=int(found["left_out"]),
                      right=round(found["recall"] * found["wanted"]))  # fmt: skip
        began = time.process_time()
        for record in records:
            minhash(record["text"])
        seconds += time.process_time() - began
        size += sum(len(record["text"].encode()) for record in records) / 1e6
    return {"groups": 3 * groups, "wanted": totals["wanted"], "left_out": totals["left_out"],
            "recall": round(totals["right"] / totals["wanted"], 4),
            "precision": round(totals["right"] / totals["left_out"], 4),
            "signatures_mb_per_cpu_second": round(size / seconds, 1)}  # fmt: skip


def measure(minute: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, part = corpus(folder, *((150, 0.5) if minute else (1000, 2.0)))
        sizes = {path: sum(len(r["text"].encode()) for r in stream(path)) / 1e6 for path in (whole, part)}
        ours(part, folder)  # compiles
        mine, theirs, left_out = [], [], ""
        for _ in range(1 if minute else 3):
            mine.append(ours(part, folder))
            if isinstance(found := peers(part, folder), str):
                left_out = found
                break
            theirs.append(found)
        whole_run = min((ours(whole, folder) for _ in range(1 if minute else 3)), key=lambda r: r["clean"] + r["dedup"])
        speed = sizes[whole] / (whole_run["clean"] + whole_run["dedup"])
        ratios = [(b["clean"] + b["dedup"]) / (a["clean"] + a["dedup"]) for a, b in zip(mine, theirs, strict=False)]
    duplicates = near(100 if minute else 700)
    figures: dict[str, Any] = {
        "megabytes": round(sizes[whole], 1),
        "mb_per_cpu_second": round(speed, 1),
        "clean_mb_per_cpu_second": round(sizes[whole] / whole_run["clean"], 1),
        "dedup_mb_per_cpu_second": round(sizes[whole] / whole_run["dedup"], 1),
        "near_duplicates": duplicates,
        "part_megabytes": round(sizes[part], 2),
        "ours": mine,
        "datatrove_and_datasketch": theirs,
    }
    bars: dict[str, bool] = {
        "at least 6 MB a CPU-second": speed >= 6,
        "recall at least 0.95": duplicates["recall"] >= 0.95,
        "precision at least 0.98": duplicates["precision"] >= 0.98,
    }
    if ratios:
        figures["times_faster"] = round(statistics.median(ratios), 1)
        bars["at least 10 times datatrove and datasketch"] = figures["times_faster"] >= 10
    else:
        figures["left_out"] = f"datatrove and datasketch: {left_out}"
    return {**figures, "bars": bars}
