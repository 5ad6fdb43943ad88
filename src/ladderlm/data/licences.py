"""What a licence allows: SPDX identifiers and expressions, and the ways people write them.

A table of families, not legal advice. What is not in it is unknown, and unknown is never taken for allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ladderlm.data.stages import Dropped, Stage
from ladderlm.errors import UsageError
from ladderlm.types import Record


@dataclass(frozen=True, slots=True)
class Terms:
    """May it be sold, must what is made of it stay under the same licence; None where nobody can say."""

    commercial: bool | None
    share_alike: bool | None = False
    flags: tuple[str, ...] = ()  # conditions worth a line in the model card

    @property
    def permissive(self) -> bool:
        """Commercial use and licences of one's own are allowed, at most credit is asked for."""
        return self.commercial is True and self.share_alike is False and not self.flags


UNKNOWN = Terms(None, None, ("unknown: ask before you share",))
_NC, _SA, _ND = "non-commercial use only", "share alike", "no derivatives"
_FREE = Terms(True)
# The first that matches decides. Names are lower case, words joined by hyphens.
_TABLE: tuple[tuple[str, Terms], ...] = (
    (r"(?:.*-)?unknown(?:-.*)?|none|other|noassertion|unlicensed|proprietary|all-rights-reserved", UNKNOWN),
    (r"(?:.*-)?gemma(?:-.*)?", Terms(None, None, ("use restricted by the Gemma terms",))),
    (r"(?:.*-)?llama(?:-?[0-9.]+)?(?:-.*)?", Terms(None, None, ("use restricted by the Llama licence",))),
    (r".*openrail.*|bigscience.*|creativeml.*", Terms(None, None, ("use restricted by a RAIL licence",))),
    (r"(?:.*-)?by-nc-sa(?:-.*)?", Terms(False, True, (_NC, _SA))),
    (r"(?:.*-)?by-nc-nd(?:-.*)?", Terms(False, True, (_NC, _ND))),
    (r"(?:.*-)?(?:nc|non-?commercial)(?:-.*)?|.*research-(?:only|use).*|.*academic.*", Terms(False, None, (_NC,))),
    (r"(?:.*-)?by-nd(?:-.*)?", Terms(True, True, (_ND,))),
    (r"(?:.*-)?by-sa(?:-.*)?|(?:.*-)?sa|odbl.*|cdla-sharing.*|gfdl.*|(?:cc-)?sampling.*", Terms(True, True, (_SA,))),
    (r"[al]?gpl.*|gnu.*|mpl.*|epl-.*|eupl.*|cddl.*|osl-.*|cecill-2.*|sspl.*", Terms(True, True, (_SA,))),
    (r"cc0.*|pddl.*|public-domain.*|pd|unlicense|us-government.*|wtfpl|mit-0|0bsd|blessing", _FREE),
    (r"mit(?:-.*)?|bsd.*|apache.*|isc|zlib.*|psf.*|python-2.*|bsl-1\.0|ncsa|postgresql|afl-.*|artistic-2.*", _FREE),
    (r"ms-pl|upl.*|x11.*|curl|ofl.*|blueoak.*", _FREE),
    (r"(?:cc-)?by(?:-[0-9].*)?|odc-by.*|cdla-permissive.*|etalab.*|ogl.*|dl-de-by.*", _FREE),
)  # fmt: skip
_COMPILED = tuple((re.compile(pattern), terms) for pattern, terms in _TABLE)
_LONG = (("creative commons", "cc"), ("attribution", "by"), ("share alike", "sa"), ("sharealike", "sa"),
         ("non commercial", "nc"), ("noncommercial", "nc"), ("non-commercial", "nc"), ("no derivatives", "nd"),
         ("noderivatives", "nd"), ("noderivs", "nd"), ("version", ""), ("license", ""), ("licence", ""),
         ("zero", "0"), ("the ", ""))  # fmt: skip
_URL = re.compile(r"https?://(?:www\.)?creativecommons\.org/(licenses|publicdomain)/([\w-]+)(?:/([\d.]+))?.*")


def plain_name(licence: str) -> str:
    """One way of writing a licence: lower case, words joined by hyphens ("CC BY-SA 4.0" -> "cc-by-sa-4.0")."""
    name = licence.strip().lower()
    if address := _URL.fullmatch(name):
        kind = (
            "cc0" if address[2] == "zero" else "public-domain" if address[1] == "publicdomain" else f"cc-{address[2]}"
        )
        return f"{kind}-{address[3]}" if address[3] else kind
    name = re.sub(r"\([^)]*\)", " ", name)
    for long, short in _LONG:
        name = name.replace(long, short)
    return re.sub(r"[\s_,/-]+", "-", name).strip("-.").replace("cc-0", "cc0")


def terms(licence: str) -> Terms:
    """What `licence` allows. "A and B" asks for both; of "A OR B" the freer may be chosen (SPDX expressions)."""
    choices = re.split(r"\s+or\s+", licence.strip(), flags=re.IGNORECASE)
    if len(choices) > 1:
        return max((terms(choice.strip("() ")) for choice in choices), key=_freedom)
    parts = re.split(r"\s+and\s+|\s*;\s*|\s+with\s+.*", licence.strip(), flags=re.IGNORECASE)
    found = [_single(part) for part in parts if part.strip("() ")] or [UNKNOWN]
    flags = tuple(dict.fromkeys(flag for t in found for flag in t.flags))
    return Terms(_all([t.commercial for t in found]), _any([t.share_alike for t in found]), flags)


def _single(licence: str) -> Terms:
    name = plain_name(licence.strip("() ") if licence.count("(") != licence.count(")") else licence)
    return next((terms for pattern, terms in _COMPILED if pattern.fullmatch(name)), UNKNOWN)


def _freedom(t: Terms) -> tuple[bool, bool, int]:
    return t.commercial is True, t.permissive, -len(t.flags)


def _all(values: list[bool | None]) -> bool | None:
    return False if False in values else None if None in values else True


def _any(values: list[bool | None]) -> bool | None:
    return True if True in values else None if None in values else False


def allowed(licence: str, wanted: str) -> bool:
    """Whether `licence` is "commercial", "permissive", or the licence named `wanted`."""
    if wanted == "commercial":
        return terms(licence).commercial is True
    if wanted == "permissive":
        return terms(licence).permissive
    return plain_name(licence) == plain_name(wanted)


def licence_stage(wanted: str) -> Stage:
    """Keeps records whose licence is `allowed`. Raises UsageError for an empty wish."""
    if not wanted.strip():
        raise UsageError("which licence?", cure="commercial, permissive, or a licence's name")

    def stage(records: Iterable[Record]) -> Iterator[Record | Dropped]:
        known: dict[str, str] = {}
        for record in records:
            if record.licence not in known:
                known[record.licence] = "" if allowed(record.licence, wanted) else _rule(record.licence, wanted)
            rule = known[record.licence]
            yield Dropped(record, rule) if rule else record

    return stage


def _rule(licence: str, wanted: str) -> str:
    found = terms(licence)
    if wanted not in ("commercial", "permissive"):
        return "licence-other"
    if found.commercial is None:
        return "licence-unknown" if found == UNKNOWN else "licence-restricted"
    return "licence-noncommercial" if found.commercial is False else "licence-not-permissive"
