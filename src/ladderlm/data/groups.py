"""Words that name groups of people, and words that are told of them: small lists of our own, open to the user's.

English, short on purpose: each word is common and seldom means anything else ("black" and "white" stand with a word for
people, for they are colours too). A file of one's own in TOML adds to them or takes their place:

    [groups.gender]              # an axis: its groups and their words or phrases of up to three words
    female = ["she", "woman"]
    male = ["he", "man"]
    [attributes]                 # what may be told of a group more than of another
    home = ["kitchen", "home"]
    [swap]                       # for balance: each word and its counterpart
    pairs = [["king", "queen"]]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ladderlm.config import read_toml
from ladderlm.errors import FormatError, nearest

Lists = Mapping[str, tuple[str, ...]]

# Each pair is exchanged both ways; he, him, his, she, her, hers are told apart by what follows them (swap.py).
GENDER_PAIRS: tuple[tuple[str, str], ...] = (
    ("he", "she"), ("himself", "herself"), ("man", "woman"), ("men", "women"), ("boy", "girl"), ("boys", "girls"),
    ("male", "female"), ("males", "females"), ("gentleman", "lady"), ("gentlemen", "ladies"), ("father", "mother"),
    ("fathers", "mothers"), ("dad", "mum"), ("dads", "mums"), ("daddy", "mummy"), ("papa", "mama"), ("son", "daughter"),
    ("sons", "daughters"), ("brother", "sister"), ("brothers", "sisters"), ("husband", "wife"), ("husbands", "wives"),
    ("grandfather", "grandmother"), ("grandpa", "grandma"), ("grandson", "granddaughter"), ("uncle", "aunt"),
    ("uncles", "aunts"), ("nephew", "niece"), ("nephews", "nieces"), ("boyfriend", "girlfriend"),
    ("stepfather", "stepmother"), ("stepson", "stepdaughter"), ("godfather", "godmother"), ("groom", "bride"),
    ("widower", "widow"), ("king", "queen"), ("kings", "queens"), ("prince", "princess"), ("princes", "princesses"),
    ("duke", "duchess"), ("sir", "madam"), ("actor", "actress"), ("actors", "actresses"), ("waiter", "waitress"),
    ("waiters", "waitresses"), ("policeman", "policewoman"), ("policemen", "policewomen"),
    ("businessman", "businesswoman"), ("businessmen", "businesswomen"), ("chairman", "chairwoman"),
    ("spokesman", "spokeswoman"), ("salesman", "saleswoman"), ("congressman", "congresswoman"),
    ("salesmen", "saleswomen"), ("schoolboy", "schoolgirl"), ("monk", "nun"), ("monks", "nuns"), ("hero", "heroine"),
    ("manhood", "womanhood"), ("fatherhood", "motherhood"), ("masculine", "feminine"), ("paternal", "maternal"),
)  # fmt: skip
_PRONOUNS = {"male": ("him", "his", "mr"), "female": ("her", "hers", "ms", "mrs")}

GROUPS: Mapping[str, Lists] = {
    "gender": {
        "male": (*(m for m, _ in GENDER_PAIRS), *_PRONOUNS["male"]),
        "female": (*(f for _, f in GENDER_PAIRS), *_PRONOUNS["female"]),
    },
    "religion": {
        "christian": ("christian", "christians", "christianity", "catholic", "catholics", "protestant", "protestants"),
        "muslim": ("muslim", "muslims", "islam", "islamic"),
        "jewish": ("jewish", "jew", "jews", "judaism"),
        "hindu": ("hindu", "hindus", "hinduism"),
        "buddhist": ("buddhist", "buddhists", "buddhism"),
        "sikh": ("sikh", "sikhs", "sikhism"),
        "unbelieving": ("atheist", "atheists", "atheism", "agnostic", "agnostics"),
    },
    "ethnicity": {
        "black": ("black people", "black man", "black men", "black woman", "black women", "african american",
                  "african americans", "black americans"),
        "white": ("white people", "white man", "white men", "white woman", "white women", "caucasian", "caucasians"),
        "asian": ("asian", "asians", "asian american", "asian americans"),
        "latino": ("latino", "latinos", "latina", "latinas", "hispanic", "hispanics"),
        "arab": ("arab", "arabs"),
        "indigenous": ("native american", "native americans", "indigenous people", "aboriginal people"),
        "roma": ("roma people", "romani people", "sinti"),
    },
    "age": {
        "young": ("young people", "young man", "young woman", "teenager", "teenagers", "youth"),
        "old": ("old people", "old man", "old woman", "elderly", "pensioner", "pensioners", "senior citizens"),
    },
    "orientation": {
        "heterosexual": ("heterosexual", "heterosexuals", "straight people"),
        "homosexual": ("homosexual", "homosexuals", "gay", "gays", "lesbian", "lesbians"),
        "bisexual": ("bisexual", "bisexuals"),
    },
    "disability": {
        "disabled": ("disabled", "blind man", "blind woman", "deaf", "wheelchair", "autistic", "handicapped"),
        "not disabled": ("able-bodied", "non-disabled", "sighted"),
    },
}  # fmt: skip

ATTRIBUTES: Lists = {
    "leading": ("leader", "leaders", "boss", "manager", "president", "director", "captain", "chief", "commander"),
    "caring": ("nurse", "nurses", "caring", "nanny", "housekeeper", "secretary", "babysitter", "caregiver"),
    "science": ("science", "scientist", "engineer", "mathematics", "physics", "doctor", "professor", "inventor"),
    "arts": ("poetry", "dance", "art", "novel", "music", "painter", "singer", "dancer"),
    "family": ("home", "family", "children", "marriage", "wedding", "kitchen", "household", "baby"),
    "career": ("career", "business", "salary", "office", "profession", "money", "work", "company"),
    "strength": ("strong", "brave", "bold", "powerful", "fierce", "mighty", "courage"),
    "looks": ("beautiful", "pretty", "lovely", "handsome", "ugly", "slender", "charming"),
    "crime": ("criminal", "crime", "thief", "murder", "terrorist", "terrorism", "violent", "prison", "gang"),
    "poverty": ("poor", "poverty", "beggar", "homeless", "slum"),
    "praise": ("honest", "kind", "clever", "wise", "friendly", "gentle", "good", "great"),
    "blame": ("lazy", "stupid", "dirty", "dishonest", "greedy", "bad", "evil", "cruel"),
}  # fmt: skip


@dataclass(frozen=True)
class Terms:
    """Axes with their groups' words, attributes with theirs, and pairs to swap."""

    groups: Mapping[str, Lists] = field(default_factory=lambda: GROUPS)
    attributes: Lists = field(default_factory=lambda: ATTRIBUTES)
    pairs: tuple[tuple[str, str], ...] = GENDER_PAIRS


def read_terms(path: str | Path) -> Terms:
    """The lists in a TOML file; a table that it lacks keeps ours. Raises FormatError for anything else in it."""
    found = read_toml(Path(path))
    if unknown := found.keys() - {"groups", "attributes", "swap"}:
        raise FormatError(f"unknown table {min(unknown)!r}", where=str(path),
                          cure=nearest(min(unknown), ("groups", "attributes", "swap")))  # fmt: skip
    groups = {axis: _lists(table, f"{path} [groups.{axis}]") for axis, table in _table(found, "groups", path).items()}
    attributes = _lists(_table(found, "attributes", path), f"{path} [attributes]")
    pairs = _table(found, "swap", path).get("pairs", [])
    if not all(isinstance(p, list) and len(p) == 2 and all(isinstance(w, str) and w for w in p) for p in pairs):
        raise FormatError("pairs must be [[word, word], ...]", where=f"{path} [swap]")
    own = tuple((a.lower(), b.lower()) for a, b in pairs)
    return Terms(groups or GROUPS, attributes or ATTRIBUTES, own or GENDER_PAIRS)


def _table(found: Mapping[str, Any], name: str, path: str | Path) -> Mapping[str, Any]:
    table = found.get(name, {})
    if not isinstance(table, Mapping):
        raise FormatError(f"{name} must be a table", where=str(path))
    return table


def _lists(table: Any, where: str) -> Lists:
    if not isinstance(table, Mapping):
        raise FormatError("must be a table of lists", where=where)
    for name, words in table.items():
        if not isinstance(words, list) or not all(isinstance(w, str) and 1 <= len(w.split()) <= 3 for w in words):
            raise FormatError(f"{name} must be a list of words or phrases of up to three words", where=where)
    return {name: tuple(w.lower() for w in words) for name, words in table.items()}
