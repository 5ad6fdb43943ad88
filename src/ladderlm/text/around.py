"""What a tokenizer puts around text: BOS, [CLS] and [SEP], </s>; one text or a pair, with token types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Part = tuple[int | str, int]  # a token's id, or "A" or "B" for a text; and its token type
_BARE: tuple[Part, ...] = (("A", 0),)


@dataclass(frozen=True)
class Around:
    """The post-processor of a tokenizer.json: what surrounds one text, and two."""

    single: tuple[Part, ...] = _BARE
    pair: tuple[Part, ...] = (("A", 0), ("B", 1))

    @property
    def head(self) -> tuple[int, ...]:
        """Ids before one text."""
        return tuple(p for p, _ in self.single[: _place(self.single)] if isinstance(p, int))

    @property
    def tail(self) -> tuple[int, ...]:
        """Ids after one text."""
        return tuple(p for p, _ in self.single[_place(self.single) :] if isinstance(p, int))

    def join(self, first: list[int], second: list[int] | None, max_length: int | None) -> tuple[list[int], list[int]]:
        """Ids and token types of a text or a pair; the longer text is cut first where `max_length` is passed."""
        parts = self.single if second is None else self.pair
        if max_length is not None:
            room = max(0, max_length - sum(isinstance(p, int) for p, _ in parts))
            first, second = _cut(first, second, room)
        texts = {"A": first, "B": second or []}
        ids: list[int] = []
        types: list[int] = []
        for part, kind in parts:
            new = [part] if isinstance(part, int) else texts[part]
            ids += new
            types += [kind] * len(new)
        return ids, types


def _place(parts: Sequence[Part]) -> int:
    return next((i for i, (p, _) in enumerate(parts) if p == "A"), len(parts))


def _cut(first: list[int], second: list[int] | None, room: int) -> tuple[list[int], list[int] | None]:
    """Longest first, as the `tokenizers` library does: a short text stays whole while the long one gives way."""
    if second is None:
        return first[:room], None
    if len(first) + len(second) <= room:
        return first, second
    short, long = sorted((len(first), len(second)))
    long = max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    return (first[:long], second[:short]) if len(first) > len(second) else (first[:short], second[:long])


def around(post: Mapping[str, Any] | None) -> Around:
    """From the `post_processor` of a tokenizer.json that the `tokenizers` library has accepted."""
    kind = (post or {}).get("type")
    if post is None or kind == "ByteLevel":
        return Around()
    if kind == "Sequence":
        steps = [around(p) for p in post["processors"] if p.get("type") != "ByteLevel"]
        return steps[-1] if steps else Around()
    if kind in ("BertProcessing", "RobertaProcessing"):
        cls, sep = int(post["cls"][1]), int(post["sep"][1])
        if kind == "BertProcessing":
            return Around(((cls, 0), ("A", 0), (sep, 0)), ((cls, 0), ("A", 0), (sep, 0), ("B", 1), (sep, 1)))
        single: tuple[Part, ...] = ((cls, 0), ("A", 0), (sep, 0))
        return Around(single, (*single, (sep, 0), ("B", 0), (sep, 0)))
    ids = {name: [int(i) for i in entry["ids"]] for name, entry in post["special_tokens"].items()}
    return Around(_parts(post["single"], ids), _parts(post["pair"], ids))


def _parts(steps: Sequence[Mapping[str, Any]], ids: Mapping[str, list[int]]) -> tuple[Part, ...]:
    found: list[Part] = []
    for step in steps:
        if "Sequence" in step:
            found.append((str(step["Sequence"]["id"]), int(step["Sequence"]["type_id"])))
        else:
            found += [(id, int(step["SpecialToken"]["type_id"])) for id in ids[step["SpecialToken"]["id"]]]
    return tuple(found)
