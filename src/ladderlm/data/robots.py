"""robots.txt as RFC 9309 has it: the group of our name, else of "*"; the longest fitting rule, allow over disallow."""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass

MAX_BYTES = 500 << 10  # RFC 9309, 2.5: at least this much is read


@dataclass(frozen=True, slots=True)
class Robots:
    """Which paths may be fetched. `rules` are (pattern, allowed); `delay` is Crawl-delay in seconds."""

    rules: tuple[tuple[str, bool], ...] = ()
    delay: float = 0.0

    def allows(self, url: str) -> bool:
        parts = urllib.parse.urlsplit(url)
        path = _normal((parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        fitting = [(len(pattern), allowed) for pattern, allowed in self.rules if _matches(pattern, path)]
        return max(fitting, default=(0, True))[1]


ALL, NOTHING = Robots(), Robots((("/", False),))


def parse(text: str, agent: str) -> Robots:
    """The rules of `text` for the crawler named `agent`."""
    groups: dict[str, list[tuple[str, bool]]] = {}
    delays: dict[str, float] = {}
    names: list[str] = []
    naming = False
    for line in text.splitlines():
        key, _, value = line.partition("#")[0].partition(":")
        key, value = key.strip().lower(), value.strip()
        if key == "user-agent":
            names = [*names, value.lower()] if naming else [value.lower()]
            groups.setdefault(names[-1], [])
        elif key in ("allow", "disallow") and value:
            for name in names:
                groups[name].append((_normal(value), key == "allow"))
        elif key == "crawl-delay":
            for name in names:
                delays[name] = float(value) if value.replace(".", "", 1).isdigit() else 0.0
        naming = key == "user-agent"
    name = agent.lower() if agent.lower() in groups else "*"
    return Robots(tuple(groups.get(name, ())), delays.get(name, 0.0))


def _normal(path: str) -> str:
    """Percent-encoding made the same on both sides, so that they can be compared."""
    return urllib.parse.quote(urllib.parse.unquote(path), safe="/*$?=&;:@+,!~()'%")


def _matches(pattern: str, path: str) -> bool:
    """Whether `path` begins as `pattern` says: * stands for anything, $ at the end for the end. In linear steps."""
    ends = pattern.endswith("$")
    first, *rest = (pattern[:-1] if ends else pattern).split("*")
    if not path.startswith(first):
        return False
    at = len(first)
    for i, piece in enumerate(rest):
        if ends and i == len(rest) - 1:
            return path.endswith(piece) and len(path) - len(piece) >= at
        if (found := path.find(piece, at)) < 0:
            return False
        at = found + len(piece)
    return at == len(path) if ends else True
