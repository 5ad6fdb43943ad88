"""What the rules of cleaning measure in a text, counted by compiled kernels over its code points.

A word is what whitespace separates (as `str.split`), a line what "\\n" separates, without space around it, a
paragraph a run of lines that are not empty. Lengths are in characters.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Callable, Mapping
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.uint32]
TERMINAL = '.!?"”…。！？」』؟۔।'  # how a line of prose ends
SENTENCE = ".!?…؟۔।"  # ends a sentence before space
SENTENCE_CJK = "。！？"  # ends one anywhere
CLOSING = "\"'”’)]»"
BULLETS = "•-*"
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")  # Gopher's
_SPACE, _ALPHA, _ALNUM, _PUNCTUATION, _TERMINAL, _SENTENCE, _CJK, _CLOSING, _BULLET = (1 << i for i in range(9))
STATS = (
    "characters", "words", "plain_words", "word_length", "alpha_words", "stop_words", "stop_word_share", "hashes",
    "ellipses", "sentences", "lines", "bullet_lines", "ellipsis_lines", "terminal_lines", "short_lines",
    "newlines_per_word", "duplicate_lines", "duplicate_line_characters", "duplicate_paragraphs",
    "duplicate_paragraph_characters", "top_2_gram", "top_3_gram", "top_4_gram", "duplicate_5_gram", "duplicate_6_gram",
    "duplicate_7_gram", "duplicate_8_gram", "duplicate_9_gram", "duplicate_10_gram", "braces",
)  # fmt: skip


def points(text: str) -> Points:
    """The code points of a text."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def measure(code_points: Points) -> Mapping[str, float]:
    """STATS of a text. Shares and ratios are those that clean_rules.py describes."""
    classes, stops = tables()
    return dict(zip(STATS, _measure(code_points, classes, stops).tolist(), strict=True))


def lines(code_points: Points) -> tuple[npt.NDArray[np.int64], ...]:
    """(start, end, words, characters of the longest word, ends like prose) of each line, end without the "\\n"."""
    table = _lines(code_points, tables()[0])
    return tuple(table)


@functools.cache
def tables() -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint64]]:
    """A set of classes for each code point under 2^16, and the stop words packed as `_word` packs them."""
    classes = np.zeros(1 << 16, np.uint16)
    for code in range(1 << 16):
        char = chr(code)
        classes[code] = _SPACE * char.isspace() | _ALPHA * char.isalpha() | _ALNUM * char.isalnum()
    for flag, chars in ((_PUNCTUATION, string.punctuation), (_TERMINAL, TERMINAL), (_SENTENCE, SENTENCE),
                        (_CJK, SENTENCE_CJK), (_CLOSING, CLOSING), (_BULLET, BULLETS)):  # fmt: skip
        for char in chars:
            classes[ord(char)] |= flag
    packed = [int.from_bytes(word.encode(), "big") for word in STOP_WORDS]
    return classes, np.array(packed, np.uint64)


_jit: Callable[..., Any] = numba.njit(cache=True, nogil=True, error_model="numpy")


@_jit
def _class(code: int, classes: npt.NDArray[np.uint16]) -> int:
    """Beyond 2^16 are pictures (0x1F000 to 0x1FFFF) and letters."""
    if code < 65536:
        return classes[code]
    return 0 if 0x1F000 <= code < 0x20000 else _ALPHA | _ALNUM


@_jit
def _mix(h: np.uint64) -> np.uint64:
    """A bijection of 64 bits that spreads every bit (the finalizer of SplitMix64); never 0 in the end."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (h ^ (h >> np.uint64(31))) | np.uint64(1)


@_jit
def _words(c: Any, classes: Any, start: Any, length: Any, hashes: Any) -> Any:
    """Start, length and hash of each word; how many."""
    n, count, i = len(c), 0, 0
    while i < n:
        while i < n and _class(c[i], classes) & _SPACE:
            i += 1
        if i == n:
            break
        begin, h = i, np.uint64(0xCBF29CE484222325)
        while i < n and not _class(c[i], classes) & _SPACE:
            h = (h ^ np.uint64(c[i])) * np.uint64(0x100000001B3)
            i += 1
        start[count], length[count], hashes[count] = begin, i - begin, _mix(h)
        count += 1
    return count


@_jit
def _word_kinds(c: Any, classes: Any, stops: Any, start: Any, length: Any, count: Any) -> Any:
    """(plain words, their characters, words with a letter, different stop words, occurrences of stop words)."""
    plain = characters = alpha = stopped = seen = 0
    for w in range(count):
        begin, end = start[w], start[w] + length[w]
        kinds = 0
        for i in range(begin, end):
            kinds |= _class(c[i], classes)
            if kinds & _ALPHA:
                break
        alpha += (kinds & _ALPHA) != 0
        if kinds & _ALNUM:
            plain += 1
            characters += length[w]
        while begin < end and _class(c[begin], classes) & _PUNCTUATION:
            begin += 1
        while end > begin and _class(c[end - 1], classes) & _PUNCTUATION:
            end -= 1
        if 2 <= end - begin <= 4:
            packed = np.uint64(0)
            for i in range(begin, end):
                code = c[i] + 32 if 65 <= c[i] <= 90 else c[i]
                packed = (packed << np.uint64(8)) | np.uint64(code if code < 128 else 255)
            for s in range(len(stops)):
                if stops[s] == packed:
                    seen |= 1 << s
                    stopped += 1
    different = 0
    while seen:
        different += seen & 1
        seen >>= 1
    return plain, characters, alpha, different, stopped


@_jit
def _slot(keys: Any, mask: Any, key: Any) -> Any:
    """Where `key` is or belongs in an open table."""
    at = np.int64(key & np.uint64(mask))
    while keys[at] != 0 and keys[at] != key:
        at = (at + 1) & mask
    return at


@_jit
def _gram(prefix: Any, powers: Any, i: Any, n: Any) -> Any:
    """The hash of the n words from i on, from the hashes of the text up to each word."""
    return _mix(prefix[i + n] - prefix[i] * powers[n])


@_jit
def _top_gram(
    prefix: Any, powers: Any, ends: Any, count: Any, n: Any, keys: Any, mask: Any, tally: Any, first: Any
) -> Any:
    """Characters (with the spaces within) in all occurrences of the most frequent n-gram that occurs twice."""
    keys[: mask + 1] = 0
    best, at_best = 1, 0
    for i in range(count - n + 1):
        key = _gram(prefix, powers, i, n)
        at = _slot(keys, mask, key)
        if keys[at] == 0:
            keys[at], tally[at], first[at] = key, 1, i
            continue
        tally[at] += 1
        if tally[at] > best or (tally[at] == best and first[at] < at_best):
            best, at_best = tally[at], first[at]
    if best < 2:
        return 0
    return best * (ends[at_best + n] - ends[at_best] + n - 1)


@_jit
def _repeated_grams(prefix: Any, powers: Any, ends: Any, count: Any, n: Any, keys: Any, mask: Any) -> Any:
    """Characters of the words in n-grams that came before; an occurrence is counted once, then stepped over."""
    keys[: mask + 1] = 0
    total = i = 0
    while i < count - n + 1:
        key = _gram(prefix, powers, i, n)
        at = _slot(keys, mask, key)
        if keys[at] == key:
            total += ends[i + n] - ends[i]
            i += n
        else:
            keys[at] = key
            i += 1
    return total


@_jit
def _grams(out: Any, at: Any, hashes: Any, length: Any, count: Any, characters: Any) -> Any:
    """The nine n-gram measures into out[at:]."""
    size = 16
    while size < 2 * count:
        size *= 2
    keys = np.empty(size, np.uint64)
    tally, first = np.empty(size, np.int32), np.empty(size, np.int32)
    prefix, ends = np.zeros(count + 1, np.uint64), np.zeros(count + 1, np.int64)
    powers = np.ones(11, np.uint64)
    for n in range(1, 11):
        powers[n] = powers[n - 1] * np.uint64(0x9E3779B97F4A7C15)
    for w in range(count):
        prefix[w + 1] = prefix[w] * powers[1] + hashes[w]
        ends[w + 1] = ends[w] + length[w]
    for n in range(2, 5):
        out[at + n - 2] = _top_gram(prefix, powers, ends, count, n, keys, size - 1, tally, first) / characters
    for n in range(5, 11):
        out[at + n - 2] = _repeated_grams(prefix, powers, ends, count, n, keys, size - 1) / characters


@_jit
def _line_kinds(out: Any, c: Any, classes: Any) -> Any:
    """Counts of lines by how they begin, end and repeat, and of paragraphs that repeat, into their places of out."""
    n, newlines = len(c), 0
    for i in range(n):
        newlines += c[i] == 10
    size = 16
    while size < 2 * (newlines + 1):
        size *= 2
    keys, paragraph_keys = np.zeros(size, np.uint64), np.zeros(size, np.uint64)
    lines = bullets = ellipses = terminal = short = again = again_characters = 0
    paragraphs = paragraphs_again = paragraphs_characters = 0
    paragraph, paragraph_length = np.uint64(0), 0
    i = 0
    while i <= n:
        begin = i
        while i < n and c[i] != 10:
            i += 1
        end = i
        i += 1
        while begin < end and _class(c[begin], classes) & _SPACE:
            begin += 1
        while end > begin and _class(c[end - 1], classes) & _SPACE:
            end -= 1
        if begin < end:
            h = np.uint64(0xCBF29CE484222325)
            for j in range(begin, end):
                h = (h ^ np.uint64(c[j])) * np.uint64(0x100000001B3)
            h = _mix(h)
            lines += 1
            bullets += (_class(c[begin], classes) & _BULLET) != 0
            dots = end - begin >= 3 and c[end - 1] == 46 and c[end - 2] == 46 and c[end - 3] == 46
            ellipses += dots or c[end - 1] == 0x2026
            terminal += (_class(c[end - 1], classes) & _TERMINAL) != 0
            short += end - begin <= 30
            at = _slot(keys, size - 1, h)
            if keys[at] == h:
                again += 1
                again_characters += end - begin
            keys[at] = h
            paragraph = _mix(paragraph ^ h) * np.uint64(0x9E3779B97F4A7C15)
            paragraph_length += end - begin + (paragraph_length > 0)
        if paragraph_length and (begin >= end or i > n):
            h = _mix(paragraph)
            at = _slot(paragraph_keys, size - 1, h)
            paragraphs += 1
            if paragraph_keys[at] == h:
                paragraphs_again += 1
                paragraphs_characters += paragraph_length
            paragraph_keys[at] = h
            paragraph, paragraph_length = np.uint64(0), 0
    least = max(lines, 1)
    out[10], out[11], out[12], out[13], out[14] = (
        lines,
        bullets / least,
        ellipses / least,
        terminal / least,
        short / least,
    )
    out[15] = newlines
    out[16], out[17] = again / least, again_characters / max(n - newlines, 1)
    out[18], out[19] = paragraphs_again / max(paragraphs, 1), paragraphs_characters / max(n, 1)


@_jit
def _sentences(c: Any, classes: Any) -> Any:
    """How many sentences end."""
    n, found, i = len(c), 0, 0
    while i < n:
        kind = _class(c[i], classes)
        if kind & _SENTENCE:
            while i < n and _class(c[i], classes) & _SENTENCE:
                i += 1
            after = i
            while after < n and _class(c[after], classes) & _CLOSING:
                after += 1
            found += after == n or (_class(c[after], classes) & _SPACE) != 0
        elif kind & _CJK:
            while i < n and _class(c[i], classes) & _CJK:
                i += 1
            found += 1
        else:
            i += 1
    return found


@_jit
def _measure(c: Any, classes: Any, stops: Any) -> Any:
    n = len(c)
    out = np.zeros(30, np.float64)
    start, length = np.empty(n // 2 + 1, np.int32), np.empty(n // 2 + 1, np.int32)
    hashes = np.empty(n // 2 + 1, np.uint64)
    count = _words(c, classes, start, length, hashes)
    plain, characters, alpha, different, stopped = _word_kinds(c, classes, stops, start, length, count)
    marks = dots = braces = 0
    i = 0
    while i < n:
        marks += c[i] == 35
        braces += c[i] == 123
        dots += c[i] == 0x2026
        if c[i] == 46 and i + 2 < n and c[i + 1] == 46 and c[i + 2] == 46:
            dots += 1
            i += 2
        i += 1
    words = max(count, 1)
    out[0], out[1], out[2], out[3], out[4] = n, count, plain, characters / max(plain, 1), alpha / words
    out[5], out[6], out[7], out[8] = different, stopped / words, marks / words, dots / words
    out[9] = _sentences(c, classes)
    _line_kinds(out, c, classes)
    out[15] /= words
    _grams(out, 20, hashes, length, count, max(n, 1))
    out[29] = braces
    return out


@_jit
def _lines(c: Any, classes: Any) -> Any:
    """int64[5, lines]: start, end, words, the longest word's characters, ends like prose."""
    n, count = len(c), 1
    for i in range(n):
        count += c[i] == 10
    out = np.zeros((5, count), np.int64)
    begin = line = 0
    for i in range(n + 1):
        if i < n and c[i] != 10:
            continue
        words = longest = run = 0
        ends = False
        for j in range(begin, i):
            kind = _class(c[j], classes)
            if kind & _SPACE:
                run = 0
                continue
            words += run == 0
            run += 1
            longest = max(longest, run)
            ends = (kind & _TERMINAL) != 0
        out[0, line], out[1, line], out[2, line], out[3, line], out[4, line] = begin, i, words, longest, ends
        begin, line = i + 1, line + 1
    return out
