"""XML read as a stream of events, with entity declarations refused: no billion laughs, no files named from within."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any, NamedTuple
from xml.parsers import expat

from ladderlm.data.archives import Refused

_CHUNK = 1 << 16


class Node(NamedTuple):
    """`kind` is start, end or text; `name` the element's name without its namespace (for text: the text)."""

    kind: str
    name: str
    attributes: dict[str, str]


def events(file: IO[bytes]) -> Iterator[Node]:
    """The elements and texts of an XML file in order. Raises Refused (broken-xml, xml-entities)."""
    found: list[Node] = []
    none: dict[str, str] = {}
    parser = expat.ParserCreate(namespace_separator="}")
    parser.buffer_text = True

    def start(name: str, attributes: dict[str, str]) -> None:
        plain = {key.rpartition("}")[2]: value for key, value in attributes.items()} if attributes else none
        found.append(Node("start", name.rpartition("}")[2], plain))

    def end(name: str) -> None:
        found.append(Node("end", name.rpartition("}")[2], none))

    def text(data: str) -> None:
        found.append(Node("text", data, none))

    def entity(*_: Any) -> None:
        raise Refused("xml-entities", "the XML declares entities")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.EntityDeclHandler = text, entity
    try:
        while data := file.read(_CHUNK):
            parser.Parse(data, False)
            yield from found
            found.clear()
        parser.Parse(b"", True)
        yield from found
    except expat.ExpatError as error:
        raise Refused("broken-xml", str(error)) from None
