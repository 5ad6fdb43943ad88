"""The ways of cutting text into words that our own scanner knows, and the classes of characters they rest on.

Nothing here is compiled: this tells which pre-tokenizer of a tokenizer.json is which pattern. Whatever is not one of
them stays with the `tokenizers` library.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import pre_tokenizers

from ladderlm import store
from ladderlm.text.parts import steps_of
from ladderlm.text.specs import CUTS, Spec

LETTER, NUMBER, BLANK = 1, 2, 4  # bits of a class
GPT2, SMOLLM, CL100K = 0, 1, 2  # styles
_PLANES = (0, 1, 2, 3, 14)  # of Unicode: no letter, number or blank lies in another
_PLANE = 1 << 16


class Pattern(NamedTuple):
    """A style, and how many digits make a word (of CL100K)."""

    style: int
    digits: int


# The names are those of GGUF's tokenizer.ggml.pre (see specs.CUTS).
PATTERNS = {
    "gpt-2": Pattern(GPT2, 0),
    "smollm": Pattern(SMOLLM, 1),
    "llama-bpe": Pattern(CL100K, 3),
    "qwen2": Pattern(CL100K, 1),
}


def pre_tokenizer_spec(name: str) -> Spec:
    """The tokenizer.json part of a known pattern."""
    steps = [dict(step) for step in CUTS[name].steps]
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}


def pattern_of(pre_tokenizer: Any) -> Pattern | None:
    """The pattern that a pre-tokenizer cuts by; None for one not known here."""
    wanted = [_essence(step) for step in steps_of(pre_tokenizer)]
    for name, pattern in PATTERNS.items():
        if wanted == [_essence(step) for step in CUTS[name].steps]:
            return pattern
    return None


def _essence(step: Mapping[str, Any]) -> dict[str, Any]:
    """A step without what changes offsets only, its defaults filled in."""
    found = {key: value for key, value in step.items() if key != "trim_offsets"}
    if found.get("type") == "ByteLevel":
        found = {"add_prefix_space": True, "use_regex": True, **found}
    return found


@functools.cache
def classes() -> np.ndarray:
    """The class of each code point, uint8: LETTER, NUMBER or BLANK, 0 for others.

    Asked of the `tokenizers` library itself, whose version of Unicode is not Python's; kept in the cache by version.
    """
    path = store.cache_dir() / "classes" / f"tokenizers-{tokenizers.__version__}.bin"
    size = 17 * _PLANE
    if path.is_file() and path.stat().st_size == size:
        return np.fromfile(path, np.uint8)
    table = np.zeros(size, np.uint8)
    for bit, regex in ((LETTER, r"[^\p{L}]+"), (NUMBER, r"[^\p{N}]+"), (BLANK, r"\S+")):
        splitter = pre_tokenizers.Split(tokenizers.Regex(regex), "removed")
        for plane in _PLANES:
            first = plane * _PLANE
            points = np.arange(first, first + _PLANE)
            points = points[(points < 0xD800) | (points >= 0xE000)]
            for _, (start, end) in splitter.pre_tokenize_str("".join(map(chr, points))):
                table[points[start:end]] |= bit
    with store.atomic_file(path, "wb") as file:
        file.write(table.tobytes())
    return table
