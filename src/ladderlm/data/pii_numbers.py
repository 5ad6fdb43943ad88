"""Numbers that tell who somebody is: cards, bank accounts, phones, US social security, addresses of machines, dates.

A number is taken for what its checksum, a shape used for nothing else, or a word beside it says it is. The scan looks
at runs of digits and their separators only; the closer patterns are bounded, so that tables of numbers stay linear.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from functools import lru_cache

# A run goes on while a few separators join digits. (A class before a repeat lets the search skip fast.)
_RUN = re.compile(r"[0-9][0-9]*(?:[ .\-/()\u00a0\u2010-\u2013]{1,3}[0-9]+)*")
_MAX_RUN = 400  # characters looked at in one run; tables of numbers are cut into such pieces


@lru_cache(maxsize=2)  # the detectors of one text share the scan
def runs(text: str) -> tuple[tuple[int, int], ...]:
    """(start, end) of each run of digits and what joins them."""
    found = [run.span() for run in _RUN.finditer(text)]
    if all(end - start <= _MAX_RUN for start, end in found):
        return tuple(found)
    return tuple((at, min(at + _MAX_RUN, end)) for start, end in found for at in range(start, end, _MAX_RUN))


def _digits(text: str) -> str:
    return "".join(c for c in text if "0" <= c <= "9")


# --- Cards (ISO/IEC 7812) -----------------------------------------------------------------------------------------

_CARD = re.compile(r"(?<![\w.+])[0-9]{4}(?:[ \-]?[0-9]){8,15}(?![\w]|[.\-][0-9])")
_CARD_CUE = re.compile(
    r"(?i)\b(?:cards?|credit|debit|visa|maestro|mastercard|amex|diners|cc|pan|karte|carte|tarjeta)\b"
)
# issuer's first digits -> the lengths it uses; a Luhn digit alone is right once in ten by chance
_ISSUERS = (
    (re.compile(r"4"), (16,)), (re.compile(r"5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)"), (16,)),
    (re.compile(r"3[47]"), (15,)), (re.compile(r"3(?:0[0-5]|[689])"), (14,)),
    (re.compile(r"6(?:011|4[4-9]|5|2)"), (16,)), (re.compile(r"35(?:2[89]|[3-8])"), (16,)),
    (re.compile(r"2131|1800"), (15,)),
)  # fmt: skip


def luhn(digits: str) -> bool:
    """Whether the last digit is the Luhn check digit of the others."""
    odd = sum(int(d) for d in digits[-1::-2])
    even = sum(sum(divmod(2 * int(d), 10)) for d in digits[-2::-2])
    return (odd + even) % 10 == 0


def cards(text: str) -> Iterator[tuple[int, int]]:
    """Payment cards: an issuer's prefix at its usual length, or 12 to 19 digits that follow a cue."""
    for start, end in runs(text):
        if end - start < 12:
            continue
        for found in _CARD.finditer(text, start, min(end + 1, len(text))):
            digits = _digits(found[0])
            if len(set(digits)) < 2 or not luhn(digits):
                continue
            usual = any(p.match(digits) and len(digits) in lengths for p, lengths in _ISSUERS)
            if usual or _near(_CARD_CUE, text, *found.span(), 40, 0):
                yield found.span()


def _near(cue: re.Pattern[str], text: str, start: int, end: int, before: int, after: int) -> bool:
    if cue.search(text, max(0, start - before), start):
        return True
    return bool(after and cue.search(text, end, min(len(text), end + after)))


# --- IBAN (ISO 13616) ---------------------------------------------------------------------------------------------

_IBAN = re.compile(
    r"[A-Za-z](?<![^\W_][A-Za-z])[A-Za-z][0-9]{2}(?:[ \-]?[A-Za-z0-9]{4}){2,7}(?:[ \-]?[A-Za-z0-9]{1,3})?(?![^\W_])"
)
_IBAN_CHECK = re.compile(r"[0-9][0-9](?<=[A-Za-z]{2}[0-9]{2})[ \-]?[A-Za-z0-9]{4}")
_IBAN_LENGTH = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28,
    "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18,
    "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22,
    "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20,
    "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18,
    "NO": 15, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SC": 31, "SE": 24,
    "SI": 19, "SK": 24, "SM": 27, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24,
    "XK": 20,
}  # fmt: skip


def ibans(text: str) -> Iterator[tuple[int, int]]:
    """Bank accounts whose length is their country's and whose remainder mod 97 is one."""
    if not runs(text):
        return
    for check in _IBAN_CHECK.finditer(text):
        found = _IBAN.match(text, check.start() - 2)
        if found and (end := _iban_end(text, *found.span())):
            yield found.start(), end


def _iban_end(text: str, start: int, end: int) -> int:
    """Where the IBAN that starts at `start` ends, or 0: the pattern may have taken in the word after it."""
    wanted = _IBAN_LENGTH.get(text[start : start + 2].upper(), 99)
    at = start
    for at in range(start, end):
        wanted -= text[at].isalnum()
        if not wanted:
            break
    if wanted or text[at + 1 : at + 2].isalnum():
        return 0
    plain = "".join(c for c in text[start : at + 1] if c.isalnum()).upper()
    return at + 1 if int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1 else 0


# --- Addresses of machines ----------------------------------------------------------------------------------------

_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?<![\w.\-])(?:{_BYTE}\.){{3}}{_BYTE}(?![\w\-]|\.[0-9])")
_VERSION = re.compile(r"(?i)(?:\bv|\bversions?|\breleases?|\bsections?|\bchapter|§|[=~<>!]=|\bbuild)\s*:?\s*\Z")
# kept for manuals (RFC 5737, RFC 3849): nobody's
_DOCUMENTATION = re.compile(r"(?i)192\.0\.2\.|198\.51\.100\.|203\.0\.113\.|2001:0?db8:")
_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_IPV6_CHARS = re.compile(r"[0-9A-Fa-f:]*(?:(?<=:)[0-9]{1,3}(?:\.[0-9]{1,3}){3})?")


def addresses(text: str) -> Iterator[tuple[int, int]]:
    """IPv4 and IPv6 addresses that can belong to somebody: not loopback, unspecified, or a version number."""
    for start, end in runs(text):
        if end - start < 7:
            continue
        for found in _IPV4.finditer(text, start, min(end + 2, len(text))):
            address = ipaddress.ip_address(found[0])
            nobody = address.is_loopback or found[0].startswith(("0.", "255.")) or _DOCUMENTATION.match(found[0])
            if not nobody and not _VERSION.search(text, max(0, found.start() - 12), found.start()):
                yield found.span()
    last = 0
    for colons in _COLONS.finditer(text):
        if colons.start() < last:
            continue
        start = colons.start()
        while start > last and start > colons.start() - 40 and text[start - 1] in "0123456789abcdefABCDEF:":
            start -= 1
        found6 = _IPV6_CHARS.match(text, start)
        if not found6:
            continue
        last = max(last, found6.end())
        end = found6.end() - (found6[0].endswith(":") and not found6[0].endswith("::"))
        if _is_ipv6(text, start, end):
            yield start, end


def _is_ipv6(text: str, start: int, end: int) -> bool:
    shown = text[start:end]
    beside = text[max(0, start - 1) : start] + text[end : end + 1]
    # a::b is a name in C++ and a slice in Python: an address has digits, and more than two groups or a known start
    groups = [g for g in shown.split(":") if g]
    if any(c.isalnum() or c in "_.:" for c in beside if c != ".") or not any(c.isdigit() for c in shown):
        return False
    if len(groups) < 2 or _DOCUMENTATION.match(shown):
        return False
    if len(groups) < 3 and not re.match(r"(?i)fe80|f[cd][0-9a-f]{2}|2[0-9a-f]{3}|3[0-9a-f]{3}", shown):
        return False
    try:
        return not ipaddress.IPv6Address(shown).is_loopback
    except ValueError:
        return False


# --- Social security and driver's licences ------------------------------------------------------------------------

_SSN = re.compile(r"(?<![\w.\-/+])(?!000|666|9)[0-9]{3}([ \-])(?!00)[0-9]{2}\1(?!0000)[0-9]{4}(?![\w]|[\-/.][0-9])")
_SSN_BARE = re.compile(r"(?<![\w.\-/+])(?!000|666|9)[0-9]{3}(?!00)[0-9]{2}(?!0000)[0-9]{4}(?![\w]|[\-/.][0-9])")
_SSN_CUE = re.compile(r"(?i)\bssn\b|social[ \-]?security|\bss ?#|\btax(?:payer)? id")
_SAMPLES = ("078-05-1120", "219-09-9999", "123-45-6789")  # printed on cards and in manuals; nobody's
_LICENCE_CUE = re.compile(
    r"(?i)driv(?:er|ing)['’]?s?['’]? *(?:licen[cs]e|permit)(?: *(?:number|no\.?|num|id|#))?[^\w\n]{1,3}"
    r"(?:(?:is|was|nr)[ :]+)?"
)
_LICENCE = re.compile(r"(?=[A-Z0-9\- ]*[0-9]{4})[A-Z]{0,5}-?[0-9][A-Z0-9]*(?:[ \-][0-9][A-Z0-9]+)*(?![\w])")


def social_security(text: str) -> Iterator[tuple[int, int]]:
    """US numbers: three, two and four digits joined by hyphens, or otherwise written beside their name."""
    for start, end in runs(text):
        if end - start < 9:
            continue
        for found in _SSN.finditer(text, start, min(end + 2, len(text))):
            if found[0].replace(" ", "-") in _SAMPLES:
                continue
            phone = _PHONE_CUE.search(text, max(0, found.start() - 40), found.start())
            if (found[1] == "-" and not phone) or _near(_SSN_CUE, text, *found.span(), 40, 15):
                yield found.span()
        if _near(_SSN_CUE, text, start, end, 40, 0):
            for found in _SSN_BARE.finditer(text, start, min(end + 2, len(text))):
                yield found.span()


def driver_licences(text: str) -> Iterator[tuple[int, int]]:
    """The number said to be a driver's licence: its form differs from state to state, so only the words tell."""
    if not runs(text) or ("riv" not in text and "RIV" not in text):
        return
    for cue in _LICENCE_CUE.finditer(text):
        found = _LICENCE.match(text, cue.end(), min(len(text), cue.end() + 25))
        if found and 5 <= len(found[0]) <= 20:
            yield found.span()


# --- Dates --------------------------------------------------------------------------------------------------------

_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?)"
)
_YEAR = r"(?:1[89]|20)[0-9]{2}"
_DAY = r"(?:3[01]|[12][0-9]|0?[1-9])"
_DATE = re.compile(
    rf"(?<![\w./\-])(?:{_YEAR}(?P<s>[\-/.])(?:1[0-2]|0?[1-9])(?P=s){_DAY}(?:[ T][0-2][0-9]:[0-5][0-9](?::[0-5][0-9])?)?"
    rf"|{_DAY}(?P<t>[\-/.]){_DAY}(?P=t)(?:{_YEAR}|[0-9]{{2}})"
    rf"|{_DAY}(?:st|nd|rd|th)?(?: of)?[ \-]{_MONTH}\.?,?(?:[ \-]{_YEAR})?"
    rf"|{_MONTH}\.? {_DAY}(?:st|nd|rd|th)?(?!\d)(?:,? {_YEAR})?)(?![\w/]|[\-.][0-9])",
    re.IGNORECASE,
)
_BIRTH_ANCHORS = (
    "born",
    "Born",
    "BORN",
    "birth",
    "Birth",
    "BIRTH",
    "DOB",
    "dob",
    "D.O.B",
    "geboren",
    "né le",
    "née le",
)
_BIRTH_GAP = re.compile(r"[^\n.!?]{0,40}?[\s:(]")
_NEXT_SENTENCE = re.compile(r"[^\n]{0,30}?[.?!] (?:It|That)['’ ]\w+ ")


def birth_dates(text: str) -> Iterator[tuple[int, int]]:
    """Dates said to be somebody's birth."""
    if not runs(text):
        return
    spots = sorted(at + len(a) for a in _BIRTH_ANCHORS for at in _everywhere(text, a))
    for spot in spots:
        date = _DATE.search(text, spot, min(len(text), spot + 75))
        if date is None or not re.search(_YEAR + r"|[0-9]{2}\Z", date[0]):
            continue
        if _BIRTH_GAP.fullmatch(text, spot, date.start()) or _NEXT_SENTENCE.fullmatch(text, spot, date.start()):
            yield date.span()


def dates(text: str) -> Iterator[tuple[int, int]]:
    """Days of the calendar, written in figures or with an English month."""
    last = 0
    for start, end in runs(text):
        for found in _DATE.finditer(text, max(last, start - 12), min(len(text), end + 24)):
            yield found.span()
            last = found.end()


def _everywhere(text: str, part: str) -> Iterator[int]:
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + 1)


# --- Phones -------------------------------------------------------------------------------------------------------

_EXT = r"(?:(?:[ ,]{0,2}(?:x|ext\.?|extension)[ .]?)[0-9]{1,6})?"
_S = r"[ .\-/\u00a0\u2010-\u2013]"
_INTERNATIONAL = re.compile(
    rf"(?<![\w+])(?:\+|(?<![0-9] )00)[1-9][0-9]{{0,3}}{_S}?(?:\(0?[0-9]{{0,4}}\){_S}?)?[0-9]{{1,5}}"
    rf"(?:{_S}?[0-9]{{2,5}}){{1,5}}{_EXT}(?!\w|\.[0-9])"
)
_AMERICAN = re.compile(
    r"(?<![\w.+\-/(])(?:1[ .\-])?(?:\([2-9][0-9]{2}\)[ .\-]?|[2-9][0-9]{2}([.\-]))[0-9]{3}(?(1)\1|[ .\-])[0-9]{4}"
    rf"{_EXT}(?![\w]|[.\-/][0-9])"
)
_TRUNK = re.compile(
    rf"(?<![\w.+\-/])(?<![0-9] )\(?0[1-9][0-9]{{0,4}}\)?(?:{_S}[0-9]{{2,4}}){{1,4}}(?:{_S}?[0-9]{{2,8}})?"
    rf"{_EXT}(?![\w]|[.\-/:][0-9])"
)
_ANY = re.compile(
    rf"(?<![\w.+\-/#$€£<>=*])(?:\([0-9]{{2,4}}\){_S}?)?[0-9]{{2,4}}(?:{_S}?[0-9]{{2,5}}){{1,4}}"
    rf"{_EXT}(?![\w%=*<>]|[.\-/:,][0-9])"
)
_PHONE_CUE = re.compile(
    r"(?i)\b(?:tele)?(?:phones?|phoning|phoned|fon|fono|f[oó]n)\b|\btel\b|\bt[ée]l[ée]phone\b"
    r"|\b(?:mobil|cell|fax|telefax|handy|gsm|whats ?app|sms|voicemail|hotline|pager)[a-zé]{0,6}\b"
    r"|\b(?:desk|office|home|work|direct)(?: (?:no|number)\.?)?\W{0,2}[:#]\W{0,3}\Z|\bcall(?:s|ed|ing)?\b"
    r"|\b(?:ring|dial|reach|text|contact)(?: (?:me|us|him|her|them))?(?: (?:on|at))?\W{0,3}\Z"
    r"|\bmessages? (?:to|on)\b|\banswer(?:s|ed|ing)? at\b"
)
_PHONE_AFTER = re.compile(r"(?i)\W{0,3}\(?(?:office|fax|mobile|home|cell|work|desk|phone|tel)\b")
_OTHER_CUE = re.compile(
    r"(?i)\b(?:card|iban|account|order|invoice|isbn|issn|pin|zip|postcode|version|page|pp|vol|doi|ticket|id|serial|ref"
    r"|reference|case|tracking|eur|usd)\b[^.\n]{0,12}\Z"
)
# a date, a span of years, or the form of a social security number
_NO_PHONE = re.compile(
    rf"(?:{_YEAR}[ .\-/][01]?[0-9][ .\-/][0-3]?[0-9]|[0-3]?[0-9][ .\-/][0-3]?[0-9][ .\-/]{_YEAR}"
    rf"|{_YEAR}\s?[\-–/]\s?{_YEAR}|[0-9]{{3}}-[0-9]{{2}}-[0-9]{{4}})\Z"
)


def phones(text: str) -> Iterator[tuple[int, int]]:
    """Telephone numbers: international (E.164), American, with a trunk zero, or any grouping beside a cue word."""
    last = 0
    for start, end in runs(text):
        if end - start < 6:
            continue
        at = max(last, start - 2)
        stop = min(len(text), end + 12)
        while at < end:
            span = _phone(text, at, start, stop)
            if span is None or span[0] >= end:
                break
            yield span
            last = at = span[1]


def _phone(text: str, at: int, start: int, stop: int) -> tuple[int, int] | None:
    """The first phone number in text[at:stop]."""
    best: tuple[int, int] | None = None
    for pattern in (_INTERNATIONAL, _AMERICAN, _TRUNK, _ANY):
        for found in pattern.finditer(text, at, stop):
            if best and found.start() >= best[0]:
                break
            if _plausible(text, pattern, *found.span()):
                best = found.span()
                break
    return best


def _plausible(text: str, pattern: re.Pattern[str], start: int, end: int) -> bool:
    shown = text[start:end]
    digits = _digits(re.split(r"(?i)[, ]*(?:x|ext)", shown, maxsplit=1)[0])
    if shown.count("(") != shown.count(")") or _NO_PHONE.match(shown):
        return False
    if pattern is _INTERNATIONAL:
        return 8 <= len(digits) <= 15 + 2 * shown.startswith("00") and (
            shown[0] == "+" or any(c in shown for c in " -.")
        )
    if pattern is _AMERICAN:
        return not _OTHER_CUE.search(text, max(0, start - 30), start)
    if pattern is _TRUNK and 9 <= len(digits) <= 12 and len(re.findall(_S + "+", shown)) > 1:
        return not _OTHER_CUE.search(text, max(0, start - 30), start)
    bare = shown.isdigit()
    if not 6 + bare <= len(digits) <= 13 or _OTHER_CUE.search(text, max(0, start - 30), start):
        return False
    line = max(text.rfind("\n\n", 0, start), start - (24 if bare else 48), 0)
    return bool(_PHONE_CUE.search(text, line, start) or _PHONE_AFTER.match(text, end))
