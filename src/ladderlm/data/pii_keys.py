"""Secrets in text: keys and tokens of known makers, private key blocks, signed tokens, and assignments of random text.

Each form has a literal that plain text lacks; only where that literal stands is the pattern tried.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

_B = r"(?<![A-Za-z0-9_\-])"
_E = r"(?![A-Za-z0-9_\-])"
# literal that must be there -> the form, from its makers' documentation
_FORMS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("AKIA", re.compile(_B + r"AKIA[A-Z2-7]{16}" + _E)),  # Amazon: long-lived, then temporary
    ("ASIA", re.compile(_B + r"ASIA[A-Z2-7]{16}" + _E)),
    ("_", re.compile(r"gh[opusr]_[A-Za-z0-9]{36,255}" + _E)),  # GitHub: personal, OAuth, user, server, refresh
    ("github_pat_", re.compile(_B + r"github_pat_[A-Za-z0-9_]{40,255}" + _E)),
    ("glpat-", re.compile(_B + r"glpat-[A-Za-z0-9_\-]{20,64}")),
    ("xox", re.compile(_B + r"xox[abeoprs]-[A-Za-z0-9\-]{10,250}")),  # Slack
    ("hooks.slack.com/", re.compile(r"hooks\.slack\.com/services/T[A-Za-z0-9]+/B[A-Za-z0-9]+/[A-Za-z0-9]+")),
    ("AIza", re.compile(_B + r"AIza[A-Za-z0-9_\-]{35}" + _E)),  # Google
    ("_live_", re.compile(_B + r"[psr]k_live_[A-Za-z0-9]{16,255}" + _E)),  # Stripe
    ("hf_", re.compile(_B + r"hf_[A-Za-z0-9]{30,64}" + _E)),
    ("npm_", re.compile(_B + r"npm_[A-Za-z0-9]{36}" + _E)),
    # a signed web token (RFC 7519)
    ("eyJ", re.compile(_B + r"eyJ[A-Za-z0-9_\-]{8,4000}\.eyJ[A-Za-z0-9_\-]{8,8000}(?:\.[A-Za-z0-9_\-]{0,2000})?")),
    ("PRIVATE KEY", re.compile(r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----[^-]{0,20000}"
                               r"(?:-----END [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----)?")),
)  # fmt: skip
_SK = re.compile(_B + r"sk-[A-Za-z0-9_\-]{20,255}" + _E)
_VALUE = re.compile(r"[:=]>?\s{0,3}([\"'`]?)([A-Za-z0-9+/=_\-.!@#$%^&*~]{8,200})(?(1)\1|(?![\w(\[]))")
_NAME = re.compile(r"(?i)(?:passw|pwd|secret|token|credential|(?:api|access|auth|private|encryption|account)[_\- ]?key)"
                   r"[A-Za-z0-9_\-]{0,20}[\"']?\s{0,3}:?\Z")  # fmt: skip
_PLACEHOLDER = re.compile(
    r"(?i)x{4}|\*{3}|\.{3}|example|changeme|your|dummy|sample|test|none|null|placeholder|redacted|todo"
)
LEAST_ENTROPY = 3.0  # bits a character: words and names of variables lie below, random letters and digits above


def keys(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of each secret, in order of place."""
    found = {span for literal, form in _FORMS if literal in text for span in (m.span() for m in form.finditer(text))}
    if "sk-" in text:
        found |= {m.span() for m in _SK.finditer(text) if _random(m[0])}
    found |= set(_assignments(text))
    last = 0
    for start, end in sorted(found, key=lambda s: (s[0], -s[1])):
        if start >= last:
            yield start, end
            last = end


def _assignments(text: str) -> Iterator[tuple[int, int]]:
    """Values given to a name like password, secret, token or api_key that look random."""
    for found in _VALUE.finditer(text):
        if _NAME.search(text, max(0, found.start() - 40), found.start()) and _random(found[2]):
            yield found.span(2)


def _random(value: str) -> bool:
    """Whether letters and digits are mixed as chance mixes them; a path, a name or a placeholder is not."""
    if _PLACEHOLDER.search(value) or value.count("/") > 3 or value.count(".") > 3:
        return False
    kinds = [any(test(c) for c in value) for test in (str.isdigit, str.islower, str.isupper)]
    return kinds[0] and any(kinds[1:]) and entropy(value) >= LEAST_ENTROPY


def entropy(text: str) -> float:
    """Shannon's entropy of the characters, in bits each."""
    total = len(text)
    return -sum(n / total * math.log2(n / total) for n in Counter(text).values())
