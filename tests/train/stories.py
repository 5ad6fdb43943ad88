"""Twenty tiny stories, and settings of a model they can teach in a second."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

SIZES = {"dim": 32, "heads": 2, "layers": 2, "vocab_size": 320, "seq_len": 128, "batch_tokens": 512, "threads": 2}
ANIMALS, PLACES = ("cat", "dog", "cow", "hen", "fox"), ("barn", "yard", "house", "field")
STORIES = [f"The {a} went to the {p}. The {a} liked the {p}." for a, p in itertools.product(ANIMALS, PLACES)]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path
