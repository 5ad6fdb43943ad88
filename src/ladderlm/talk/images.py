"""Images that a conversation shows: what may be one, and where its bytes are while it is being answered.

A part of a message holds the hash of its image alone. The bytes lie here, in memory and never on disk.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import threading
import weakref
from collections import OrderedDict
from pathlib import Path

from ladderlm.errors import FormatError, NotFound, Overloaded, StorageError, UsageError
from ladderlm.types import Conversation, Image

LARGEST = 8 * 2**20  # bytes of one image
MEMORY = 256 * 2**20  # bytes of all images that are held
MOST = 4096  # images that are kept though nobody uses them
_DATA = re.compile(r"data:(image/[a-z]+);base64,")
_KINDS = {
    "image/png": (b"\x89PNG\r\n\x1a\n",),
    "image/jpeg": (b"\xff\xd8\xff",),
    "image/gif": (b"GIF87a", b"GIF89a"),
}
TYPES = (*_KINDS, "image/webp")
_KNOWN = "PNG, JPEG, WebP or GIF"


class Blob:
    """Bytes that stay in their `Blobs` at least as long as somebody holds this object."""

    __slots__ = ("__weakref__", "data", "sha256")

    def __init__(self, data: bytes, sha256: str) -> None:
        self.data, self.sha256 = data, sha256


class Blobs:
    """Bytes by their sha256, `limit` of them at most. What nobody holds any more is kept while there is room, the
    latest longest."""

    def __init__(self, limit: int = MEMORY) -> None:
        self.limit = limit
        self._guard = threading.Lock()
        self._all: weakref.WeakValueDictionary[str, Blob] = weakref.WeakValueDictionary()
        self._latest: OrderedDict[str, Blob] = OrderedDict()

    def put(self, data: bytes) -> Blob:
        """Overloaded where what others hold leaves no room."""
        name = hashlib.sha256(data).hexdigest()
        with self._guard:
            blob = self._all.get(name)
            if blob is None:
                self._make_room(len(data))
                blob = self._all[name] = Blob(data, name)
            self._latest[name] = blob
            self._latest.move_to_end(name)
        return blob

    def get(self, sha256: str) -> Blob:
        """NotFound for what was never there or had to go."""
        if (blob := self._all.get(sha256)) is None:
            raise NotFound("an image is no longer in memory", where=f"sha256 {sha256[:12]}", cure="give it again")
        return blob

    @property
    def bytes(self) -> int:
        return sum(len(blob.data) for blob in self._all.values())

    def _make_room(self, size: int) -> None:
        while len(self._latest) >= MOST:
            self._latest.popitem(last=False)
        tried = []
        while (full := self.bytes + size > self.limit) and self._latest:
            tried.append(self._latest.popitem(last=False)[0])
        for name in reversed(tried):
            if (held := self._all.get(name)) is not None:  # by somebody else
                self._latest[name] = held
                self._latest.move_to_end(name, last=False)
        if full:
            raise Overloaded("the images of other requests fill the memory", cure="try again later")


HELD = Blobs()  # of this process


# --- What is an image ---------------------------------------------------------------------------------------------


def kind_of(data: bytes) -> str | None:
    """The media type by an image's first bytes; None for what is none of `TYPES`."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for kind, magic in _KINDS.items() if data.startswith(magic)), None)


def checked(data: bytes, told: str, where: str) -> bytes:
    """`data`, which is to be an image of the media type `told`. UsageError otherwise."""
    if told not in TYPES:
        raise UsageError("not a type of image that is taken", where=where, cure=f"use {_KNOWN}")
    if len(data) > LARGEST:
        raise UsageError(f"an image of more than {LARGEST >> 20} MB", where=where, cure="scale it down")
    if (found := kind_of(data)) != told:
        what = f"said to be {told}, it is {found}" if found else f"not {_KNOWN}"
        raise UsageError(what, where=where, cure="check the image and its media type")
    return data


def decoded(url: str, where: str) -> bytes:
    """The image in a data: URL. UsageError, which names `where` and never the content, for all that is not strictly
    base64 of an image of the type it tells."""
    begun = _DATA.match(url)
    if begun is None:
        cure = "such as data:image/png;base64,..."
        raise UsageError("not an image as a data: URL in base64", where=where, cure=cure)
    if (len(url) - begun.end()) // 4 * 3 > LARGEST + 2:
        raise UsageError(f"an image of more than {LARGEST >> 20} MB", where=where, cure="scale it down")
    try:
        data = base64.b64decode(url[begun.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise UsageError("not valid base64", where=where, cure="use the standard alphabet, padded") from None
    return checked(data, begun[1], where)


def images_of(conversation: Conversation) -> list[Image]:
    """All that it shows, in order."""
    return [part for message in conversation.messages for part in message.parts if isinstance(part, Image)]


def data_url(image: Image) -> str:
    """The image with its bytes. NotFound where they are no longer held."""
    return f"data:{image.media_type};base64,{base64.b64encode(HELD.get(image.sha256).data).decode()}"


def read_image(file: str | Path) -> Image:
    """The image in a file, as a part of a message: `Conversation.of("What is this?", images=[read_image("a.png")])`.

    Its bytes are kept in memory: the latest 256 MB (4096 images) of what was read.
    """
    path = Path(file).expanduser()
    try:
        with path.open("rb") as opened:
            data = opened.read(LARGEST + 1)
    except FileNotFoundError:
        raise NotFound("no such image", where=str(path)) from None
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if (kind := kind_of(data)) is None:
        raise FormatError(f"not an image that is known: {_KNOWN}", where=str(path))
    return Image(HELD.put(checked(data, kind, str(path))).sha256, kind)
