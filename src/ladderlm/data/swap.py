"""Words of one group exchanged for those of another, so that a text says of the one what it said of the other.

Counterfactual data augmentation (Lu et al. 2018, "Gender bias in neural natural language processing"). English
pronouns need their neighbours: "her" is "him" before a word that cannot begin a noun phrase's rest, else "his"; "his"
before such a word is "hers", else "her". Names are not changed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ladderlm.data.groups import GENDER_PAIRS
from ladderlm.data.rewrite import Edit

_WORD = re.compile(r"[^\W\d_]+")
# What may follow an object or a pronoun that stands alone, and does not follow "his" or "her" before a noun.
_ALONE = frozenset(_WORD.findall(
    "my your his her our their its him them us "
    "a about across after again against all along also although always am among an and any anymore anything are "
    "around as at away be because been before behind being below beneath beside between beyond both but by can "
    "could did do does down during each else ever every everything for forever from had has have he here how "
    "however i if immediately in instead into is it like may maybe me much must near never no nor not nothing now "
    "of off often on once only onto or otherwise out over perhaps please quickly rather said says shall she "
    "should since slowly so some something soon still such sure tell than that the then there these they this "
    "those though through throughout till to today together tomorrow tonight too toward towards twice under "
    "unless until up upon very was we were what whatever when whenever where whether which while who whom whose "
    "why will with within without would yesterday yet you"
))  # fmt: skip
# "let her go": the verb takes an object, and a bare verb follows
_TAKES_OBJECT = frozenset(("let", "lets", "letting"))
_EITHER = frozenset(("home", "back", "well", "later", "inside", "outside", "forward", "either"))
_TITLES = frozenset(("mr", "mrs", "ms", "miss", "dr", "prof"))
_NOUNS_IN_LY = frozenset(_WORD.findall(
    "family belly reply supply assembly bully ally folly jelly lily monopoly anomaly butterfly fly elderly "
    "melancholy italy lovely lonely friendly lively silly ugly jolly early only daily weekly monthly yearly holy "
    "deadly costly curly motherly fatherly sisterly brotherly ghostly godly worldly earthly homely sickly orderly "
    "stately bodily"
))  # fmt: skip
_DETERMINERS = frozenset(("the", "a", "my", "your", "his", "her", "our", "their", "this", "that"))
_NAMES_TOO = frozenset(("king", "kings", "prince", "duke", "queen", "nun", "monk", "hero", "sir", "lady"))
_ONE_WAY = {"mr": "ms", "mrs": "mr", "ms": "mr"}


class Swapper:
    """Exchanges the words of pairs, keeping capitals. With the pronouns unless `pairs` are the user's own."""

    def __init__(self, pairs: Sequence[tuple[str, str]] = GENDER_PAIRS) -> None:
        self._other = {a.lower(): b.lower() for pair in pairs for a, b in (pair, pair[::-1])}
        self._gender = "he" in self._other

    def edits(self, text: str) -> list[Edit]:
        words = list(_WORD.finditer(text))
        found = []
        for at, word in enumerate(words):
            plain = word[0].lower()
            new = self._pronoun(text, words, at) if self._gender else ""
            new = new or self._other.get(plain, "")
            if new and not (plain in _NAMES_TOO and _in_a_name(text, words, at)):
                found.append(Edit(word.start(), word.end(), _cased(word[0], new)))
        return found

    def _pronoun(self, text: str, words: list[re.Match[str]], at: int) -> str:
        plain = words[at][0].lower()
        if plain == "him":
            return "her"
        if plain == "hers":
            return "his"
        if plain in _ONE_WAY and words[at][0][0].isupper():
            return _ONE_WAY[plain]
        if plain == "her":
            return "him" if _stands_alone(text, words, at) else "his"
        if plain == "his":
            return "hers" if _stands_alone(text, words, at) else "her"
        return ""


def _stands_alone(text: str, words: list[re.Match[str]], at: int, further: bool = True) -> bool:
    """Whether no noun belongs to the pronoun words[at]."""
    if at + 1 == len(words):
        return True
    between = text[words[at].end() : words[at + 1].start()]
    if between.strip(" \t\n\"'“‘(*_"):  # a comma or a full stop; "her 'friend'" goes on
        return True
    following = words[at + 1][0]
    if at and words[at - 1][0].lower() in _TAKES_OBJECT and words[at][0].lower() == "her":
        return True
    plain = following.lower()
    if plain in _EITHER or (plain.endswith("ly") and plain not in _NOUNS_IN_LY):
        # "told her quietly." but "her slowly growing fear"; "drove her home." but "her home town"
        return further and _stands_alone(text, words, at + 1, False)
    return plain in _ALONE


def _in_a_name(text: str, words: list[re.Match[str]], at: int) -> bool:
    """ "Martin Luther King", "Stephen King": a capital after a capital within a sentence."""
    if not at or not words[at][0][0].isupper() or not words[at - 1][0][0].isupper():
        return False
    before, gap = words[at - 1][0].lower(), text[words[at - 1].end() : words[at].start()]
    if before in _TITLES and gap in (" ", ". "):
        return True
    first = at == 1 or text[words[at - 2].end() : words[at - 1].start()].strip(" \t\n\"'“‘(") != ""
    return gap == " " and not (first and before in _DETERMINERS)


def _cased(old: str, new: str) -> str:
    if old.isupper() and len(old) > 1:
        return new.upper()
    return new.capitalize() if old[0].isupper() else new
