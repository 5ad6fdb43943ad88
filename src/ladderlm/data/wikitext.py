"""MediaWiki's markup as plain text: one pass over its brackets, then its lines. Time is linear in the text.

Kept: prose, lists, headings (of sections that hold something), the text of links, and of the few templates that carry
words (KEPT). Left out: other templates, tables, references, files, categories, formulas, and closing sections that
list sources. The markup is https://www.mediawiki.org/wiki/Help:Formatting; templates are not expanded.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection

_GONE = "ref|references|math|chem|gallery|timeline|score|imagemap|syntaxhighlight|source|templatestyles|graph|hiero"
_TOKEN = re.compile(
    rf"\{{\{{|\}}\}}|\[\[|\]\]|^[ \t:*]*\{{\||^[ \t]*\|\}}(?!\}})|<!--|-->|<(/?)({_GONE})\b[^<>]{{0,500}}?(/?)>",
    re.IGNORECASE | re.MULTILINE,
)
_CLOSES = {"}}": "{{", "]]": "[[", "|}": "{|", "-->": "<!--"}
_DEEPEST = 40
# which argument of a template is its text; 0: the first two, as "5 km"
KEPT = {"nowrap": 1, "nobr": 1, "small": 1, "abbr": 1, "lang": 2, "transliteration": 2, "circa": 1, "c.": 1, "quote": 1,
        "blockquote": 1, "convert": 0, "cvt": 0, "as of": 1, "em": 1, "strong": 1, "nihongo": 1, "ill": 1}  # fmt: skip
_ENDS = {"references", "external links", "see also", "notes", "further reading", "bibliography", "sources", "footnotes",
         "notes and references", "citations", "einzelnachweise", "weblinks", "siehe auch", "literatur", "références",
         "voir aussi", "liens externes", "referencias", "enlaces externos", "véase también"}  # fmt: skip
_FILES = frozenset({"file", "image", "category", "media"})
_LINK = re.compile(r"\[(?:https?:|ftp:)?//[^\s\]\[]{1,2000}(?:[ \t]+([^\]\n]{0,1000}))?\]")
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,1000}>")
_HEADING = re.compile(r"(={1,6})\s*([^\n]*?)\s*=+\s*$")


def plain(text: str, files: Collection[str] = _FILES) -> str:
    """The readable text of a page. `files` are the lower-case namespaces whose links show no text of their own."""
    text = _brackets(text, frozenset(files) | _FILES)
    text = re.sub(r"<br\s*/?>", "\n", text, flags=re.IGNORECASE)
    text = _LINK.sub(lambda m: m[1] or "", text)
    text = re.sub(r"'{2,5}|__[A-Z]{3,30}__", "", _TAG.sub("", text))
    text = html.unescape(text).replace("\xa0", " ")
    text = re.sub(r" ?\([\s;,:]{0,20}\)|(?<=\()[;,]\s|(?m:[ \t]+$)", "", text)
    return "\n".join(_lines(text)).strip()


def _brackets(text: str, files: frozenset[str]) -> str:
    """The text with every bracketed piece replaced by what it shows; an unclosed bracket is taken for text."""
    stack: list[tuple[str, list[str]]] = [("", [])]
    at = 0
    for match in _TOKEN.finditer(text):
        stack[-1][1].append(text[at : match.start()])
        at = match.end()
        token = (match[2] or match[0].strip(" \t:*")).lower()
        opener = _CLOSES.get(token, token if match[2] and match[1] else "")
        if match[2] and match[3]:
            continue  # <ref name=x/>
        if not opener:
            if len(stack) < _DEEPEST:
                stack.append((token, []))
        elif any(kind == opener for kind, _ in stack):
            while stack[-1][0] != opener:  # what was opened within and not closed is text
                _, pieces = stack.pop()
                stack[-1][1].extend(pieces)
            _, pieces = stack.pop()
            stack[-1][1].append(_shown(opener, "".join(pieces), files))
    stack[-1][1].append(text[at:])
    return "".join(piece for _, pieces in stack for piece in pieces)


def _shown(opener: str, inside: str, files: frozenset[str]) -> str:
    if opener == "[[":
        target, _, shown = inside.partition("|")
        space, colon, _ = target.partition(":")
        if colon and space.strip().lower() in files:
            return ""
        if colon and not shown and re.fullmatch(r"[a-z]{2,3}(-[a-z]+)?", space):  # the page in another language
            return ""
        return shown.rpartition("|")[2] or target.lstrip(":").partition("#")[0]
    if opener == "{{":
        name, *arguments = inside.split("|")
        name = name.strip().lower()
        which = 1 if name.startswith("lang-") else KEPT.get(name)
        plain_ones = [a.strip() for a in arguments if not re.match(r"\s*[\w-]+\s*=", a)]
        if which is not None and len(plain_ones) >= (which or 2):
            return " ".join(plain_ones[:2]) if which == 0 else plain_ones[which - 1]
    return ""


def _lines(text: str) -> list[str]:
    """Lists without their marks, headings only where text follows them, at most one blank line."""
    out: list[str] = []
    waiting: list[tuple[int, str]] = []
    skipping = 0
    for line in text.split("\n"):
        if (heading := _HEADING.match(line)) and heading[2].strip("= "):
            level = len(heading[1])
            if skipping and level > skipping:
                continue
            skipping = level if heading[2].strip("= ").lower() in _ENDS else 0
            waiting = [pair for pair in waiting if pair[0] < level]
            if not skipping:
                waiting.append((level, heading[2].strip("= ")))
            continue
        if skipping:
            continue
        marks = re.match(r"[*#:;]*", line)
        if marks and (end := marks.end()):
            line = ("- " if set(marks[0]) & set("*#") else "") + line[end:].strip()
        if not line.strip(" -"):
            if out and out[-1]:
                out.append("")
            continue
        for _, name in waiting:
            out += ["", name, ""] if out and out[-1] else [name, ""]
        waiting = []
        out.append(line.rstrip())
    return out
