"""Sentences that say what a function or class is, from the standard library's docstrings, and their grammar."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from ladderlm.data.collect import arguments, python_modules

# implementation modules whose public name is another; twins of a module for another system are left out
_PUBLIC = {"_pydecimal": "decimal", "_pyio": "io", "_collections_abc": "collections.abc", "posixpath": "os.path",
           "_weakrefset": "weakref", "_strptime": "time"}  # fmt: skip
_TWINS = {"ntpath", "nturl2path", "_pylong", "_pydatetime", "_compat_pickle"}


@dataclass(frozen=True, slots=True)
class Documented:
    """A function or class and the first sentence of its docstring."""

    module: str
    name: str  # within the module, such as `Thread.join`
    kind: Literal["function", "class", "property"]
    arguments: tuple[str, ...]
    sentence: str

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def signature(self) -> str:
        shown = [*self.arguments[:5], *(["..."] if len(self.arguments) > 5 else [])]
        return f"{self.path}({', '.join(shown)})" if self.kind == "function" else self.path

    @property
    def package(self) -> str:
        return self.module.split(".")[0]

    @property
    def public(self) -> bool:
        return not any(part.startswith("_") for part in self.path.split("."))


@lru_cache(maxsize=2)
def documented(root: Path | None = None) -> tuple[Documented, ...]:
    """Every function and class of the standard library that has a clean first sentence, in a fixed order.

    No sentence comes twice (compared by its letters): the first that has it keeps it.
    """
    seen, out = set[str](), list[Documented]()
    for module, source in python_modules(root):
        if module in _TWINS:
            continue
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            continue
        for item in _walk(tree, _PUBLIC.get(module, module), ()):
            key = re.sub(r"[^a-z0-9]+", " ", item.sentence.lower())
            if key not in seen and item.path not in seen:
                seen.update((key, item.path))
                out.append(item)
    return tuple(out)


def _walk(node: ast.AST, module: str, path: tuple[str, ...]) -> Iterator[Documented]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names = (*path, child.name)
            sentence = first_sentence(ast.get_docstring(child) or "")
            if sentence and child.name != "__init__":
                given = () if isinstance(child, ast.ClassDef) else tuple(arguments(child))
                yield Documented(module, ".".join(names), _kind(child), given, sentence)
            yield from _walk(child, module, names)


def _kind(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> Literal["function", "class", "property"]:
    if isinstance(node, ast.ClassDef):
        return "class"
    names = [getattr(d, "attr", getattr(d, "id", "")) for d in node.decorator_list]
    return "property" if any(n.endswith("property") or n in ("setter", "getter") for n in names) else "function"


_SENTENCE_END = re.compile(r"(?<=[a-z0-9)`'\"\]]\.)(?<!e\.g\.)(?<!i\.e\.)(?<!vs\.)(?<!cf\.)\s+(?=[A-Z`\"'(*])")
_UNWANTED = re.compile(r">>>|b' '|https?:|@|\\|\||->|::|^(Internal|Note|Usage|XXX|TODO|Deprecated|Ttk)\b|\b(see|See) ")


def first_sentence(docstring: str, low: int = 5, high: int = 40) -> str:
    """The docstring's first sentence on one line, `low` to `high` words, ending in a full stop; "" if not clean."""
    paragraph = re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0]
    text = " ".join(paragraph.split())
    text = re.sub(r":[\w:]+:`~?\.?([^`<]+)`", r"`\1`", text).replace("``", "`")
    text = _SENTENCE_END.split(text, maxsplit=1)[0]
    whole = (
        text.endswith(".")
        and not text.endswith("..")
        and text.isascii()
        and re.match(r"[A-Z][a-z']*,? [\w`'\"*(]", text)
    )
    balanced = all(text.count(a) == text.count(b) for a, b in ("()", "[]", "{}")) and text.count('"') % 2 == 0
    if not whole or not balanced or text.count("`") % 2 or _UNWANTED.search(text):
        return ""
    return text if low <= len(text.split()) <= high else ""


# --- Grammar ------------------------------------------------------------------------------------------------------

# Verbs that begin docstrings. Those in _NOUNS are nouns as well: after "and" they are not taken for verbs.
_VERBS_TEXT = """
    abort accept access acquire activate add adjust advance allow append apply arrange assert assign attach
    await begin bind block break build calculate call cancel change check choose clean clear close collect
    combine comment compare compile compute concatenate configure connect construct consume contract convert
    copy count create decode decorate decrement define delete deliver derive destroy detach determine disable
    discard dispatch display divide do drop dump duplicate emit enable encode ensure enter establish evaluate
    examine execute exit expand expect extend extract feed fetch fill filter find finish flush force format
    forward generate get give grab group guess handle hide highlight identify ignore implement import include
    increment indicate infer initialize initiate insert inspect install instantiate interpret invoke issue
    iterate join keep kill launch list listen load locate lock log look make manage map mark match merge modify
    move multiply normalize notify obtain open optimize override pack parse pass perform pop post prepare
    prepend present print process produce prompt provide pull push put query quit quote raise read rebuild
    receive recompute reconfigure record redirect reduce refresh register release reload remove rename render
    reorder repeat replace report represent request reset resize resolve restore resume retrieve return reverse
    rewind rotate round run save scan schedule scroll search seek select send serialize set setup show shut
    shutdown signal skip sort specify split squeeze start step stop store strip subtract suspend swap switch
    synchronize take tell terminate test time toggle tokenize transform translate traverse truncate try turn
    undo unlock unpack unregister unset update use validate verify wait walk warn wrap write yield
"""
_NOUNS_TEXT = """
    access call change check close comment copy count display dump exit filter format group handle import
    increment issue join list lock log look map mark match move open pack pass post present print process prompt
    query quote read record release report request reset return reverse round run save scan search set setup
    show signal sort split start step stop store strip switch test time try turn use value wait walk wrap write
    yield
"""
_VERBS, _NOUNS = frozenset(_VERBS_TEXT.split()), frozenset(_NOUNS_TEXT.split())
_PARTICLES = frozenset(
    (
        "the",
        "a",
        "an",
        "of",
        "to",
        "for",
        "from",
        "as",
        "in",
        "it",
        "its",
        "them",
        "each",
        "all",
        "True",
        "False",
        "None",
    )
)
_IRREGULAR = {"do": "does", "have": "has", "be": "is", "undo": "undoes"}
_LEADS = {"Base class": "is the base class", "Abstract base class": "is an abstract base class",
          "Exception raised": "is the exception raised", "Raised": "is raised", "Called": "is called",
          "A": "is a", "An": "is an", "The": "is the"}  # fmt: skip


def third_person(verb: str) -> str:
    """he/she/it form: return -> returns, push -> pushes, try -> tries."""
    if verb in _IRREGULAR:
        return _IRREGULAR[verb]
    if re.search(r"(s|x|z|ch|sh)$", verb):
        return verb + ("zes" if verb == "quiz" else "es")
    return verb[:-1] + "ies" if re.search(r"[^aeiou]y$", verb) else verb + "s"


_THIRD_PERSONS = frozenset(third_person(v) for v in _VERBS)
_FINITE = re.compile(rf" (is|are|was|were|has|can|must|should|represents|{'|'.join(sorted(_THIRD_PERSONS))}) ")


def about(item: Documented) -> str | None:
    """A full sentence that names the item: "Join two paths." -> "`os.path.join` joins two paths."

    None where the docstring's grammar does not allow it safely.
    """
    name = f"`{item.path}`"
    for lead, becomes in _LEADS.items():
        if item.sentence.startswith(lead + " ") and (item.kind != "function" or lead == "Called"):
            if lead in ("A", "An", "The") and _FINITE.search(
                re.split(r" (?:that|which|who|when|where) ", item.sentence)[0]
            ):
                return None  # "The class represents ...": a whole sentence, not a noun
            return f"{name} {becomes}{item.sentence[len(lead) :]}"
    words = item.sentence.split(" ")
    verb = words[0].rstrip(",").lower()
    if verb in _THIRD_PERSONS:
        return f"{name} {item.sentence[0].lower()}{item.sentence[1:]}"
    if verb not in _VERBS:
        return None
    words[0] = third_person(verb) + words[0][len(verb) :]
    for i, word in enumerate(words[1:], 1):  # the verbs joined to the first: "Read X and close it."
        bare = word.rstrip(",.")
        joined = words[i - 1] in ("and", "or", "then", "otherwise", "else") or words[i - 1].endswith(",")
        if joined and bare in _VERBS:
            following = words[i + 1] if i + 1 < len(words) else ""
            if bare in _NOUNS and following.rstrip(",.;") not in _PARTICLES:
                return None
            words[i] = third_person(bare) + word[len(bare) :]
    return f"{name} {' '.join(words)}"
