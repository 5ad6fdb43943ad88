"""Personal data and secrets in text: where they are, by shape, checksum and the words around them.

It knows nothing of language models. Every detector starts from an anchor that plain text seldom has ("@", a digit, a
key's prefix), found by a scan in C, and only then looks closer, so that text without personal data costs next to
nothing. Numbers that could be anything need a checksum (cards: Luhn, ISO/IEC 7812; IBAN: mod 97, ISO 13616), a shape
that is used for nothing else, or a cue word nearby.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from ladderlm.data import pii_keys, pii_numbers
from ladderlm.errors import UsageError, nearest


class Finding(NamedTuple):
    """text[start:end] is of this kind."""

    kind: str
    start: int
    end: int


Names = Callable[[str], Iterable[tuple[int, int]]]  # text -> the places of people's names
Detector = Callable[[str], Iterable[tuple[int, int]]]

_LOCAL = re.compile(r"[\w.!#$%&*+/=?^`{|}~'-]{1,64}\Z")
_DOMAIN = re.compile(r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}([^\W\d_]{2,24}|xn--[a-z0-9-]{2,40})(?![\w-])")
# icon@2x.png is no address
_FILES = frozenset(
    ("png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "ts", "py", "json", "html", "txt", "md", "pdf")
)
_CREDENTIALS = re.compile(r"://([^\s/@:'\"<>]{1,100}:[^\s/@'\"<>]{1,200})@(?=[\w\[])")
_URL = re.compile(r"(?:[hH][tT]{2}[pP][sS]?://|(?<![\w@.])www\.)[^\s<>\"'{}|\\^`\x00-\x1f]{1,2000}")

_CLOSING = {")": "(", "]": "["}


def emails(text: str) -> Iterator[tuple[int, int]]:
    """Addresses after RFC 5322's dot-atom form, letters of any alphabet allowed."""
    at = text.find("@")
    while at >= 0:
        local = _LOCAL.search(text, max(0, at - 64), at)
        domain = _DOMAIN.match(text, at + 1)
        if local and domain and domain[1].lower() not in _FILES:
            name = local[0].lstrip("./'`*|{=?&#")
            # git@host: is the way to a repository, not to a person
            if name and not name.endswith(".") and ".." not in name and name != "git":
                yield at - len(name), domain.end()
        at = text.find("@", at + 1)


def credentials(text: str) -> Iterator[tuple[int, int]]:
    """The user:password of a URL."""
    if "://" in text:
        for found in _CREDENTIALS.finditer(text):
            yield found.span(1)


def urls(text: str) -> Iterator[tuple[int, int]]:
    """Web addresses, without the punctuation that ends the sentence around them."""
    if "://" not in text and "www." not in text:
        return
    for found in _URL.finditer(text):
        address = found[0].rstrip(".,;:!?*_")
        while address[-1:] in _CLOSING and address.count(_CLOSING[address[-1]]) < address.count(address[-1]):
            address = address[:-1].rstrip(".,;:!?*_")
        if "." in address or "localhost" in address:
            yield found.start(), found.start() + len(address)


# Earlier kinds win where findings overlap: a password in a URL is not the beginning of an e-mail address.
DETECTORS: dict[str, Detector] = {
    "key": pii_keys.keys,
    "credentials": credentials,
    "email": emails,
    "url": urls,
    "iban": pii_numbers.ibans,
    "ip": pii_numbers.addresses,
    "card": pii_numbers.cards,
    "ssn": pii_numbers.social_security,
    "driver_licence": pii_numbers.driver_licences,
    "birth_date": pii_numbers.birth_dates,
    "date": pii_numbers.dates,
    "phone": pii_numbers.phones,
}
KINDS = (*DETECTORS, "name")
# Web addresses and dates are only personal in some corpora; names need a model.
DEFAULT = tuple(kind for kind in DETECTORS if kind not in ("url", "date"))


def find(text: str, kinds: Iterable[str] = DEFAULT, names: Names | None = None) -> list[Finding]:
    """What is personal or secret in `text`, in order, without overlaps. Raises UsageError for an unknown kind.

    `names` (see pii_names.py) finds people; without it names are not looked for.
    """
    wanted = set(kinds)
    if unknown := wanted.difference(KINDS):
        raise UsageError(f"unknown kind {min(unknown)!r}", where="kinds", cure=nearest(min(unknown), KINDS))
    found: list[Finding] = []
    for kind, detector in DETECTORS.items():
        if kind in wanted:
            found = _with(found, kind, detector(text))
    return _with(found, "name", names(text)) if names is not None else found


def _with(found: list[Finding], kind: str, spans: Iterable[tuple[int, int]]) -> list[Finding]:
    """The findings, in order and apart, and those spans that touch none of them nor each other."""
    new: list[Finding] = []
    for start, end in spans:
        at = bisect_left(found, end, key=_start)  # those before `at` start before the span ends
        if not (at and found[at - 1].end > start) and not (new and start < new[-1].end):
            new.append(Finding(kind, start, end))
    return sorted(found + new, key=_start) if new else found


def _start(finding: Finding) -> int:
    return finding.start
