"""The images that requests show: decoded, or fetched where the server may, and held while the request lasts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from ladderlm.errors import NotFound, UsageError
from ladderlm.serve import trail
from ladderlm.serve.fetch import SECONDS, Fetcher
from ladderlm.serve.wire.base import See, blind
from ladderlm.talk.images import HELD, Blob, decoded, images_of, kind_of
from ladderlm.types import Conversation, Image

T = TypeVar("T")
MOST = 64  # images of one request, those of the responses before it among them
LARGEST = 32 * 2**20  # bytes of them all
FETCHING = 16
Wanted = Sequence[tuple[str, str]]  # URLs, and their places in the request


def wanted(build: Callable[[See], T]) -> tuple[T, Wanted]:
    """What `build(see)` makes of a request, with nothing in the place of its images, and which these are."""
    found: list[tuple[str, str]] = []

    def note(url: str, where: str) -> Image:
        found.append((url, where))
        return Image("", "")

    return build(note), found


@dataclass(frozen=True)
class Images:
    """`fetches`: whether images are fetched from the addresses that requests name, so many requests' at a time."""

    fetches: bool = False
    fetcher: Fetcher = field(default_factory=Fetcher)
    fetching: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(FETCHING, "serve-fetch"))

    async def take(self, wanted: Wanted) -> See:
        """Takes the images in, for the request that is being answered. UsageError names the place at fault."""
        _count(len(wanted), wanted[0][1])
        places: dict[str, str] = {}
        for url, where in wanted:
            places.setdefault(url, where)
        slow = self.fetching if any(map(_remote, places)) else None  # what is only decoded does not wait behind these
        blobs = await asyncio.get_running_loop().run_in_executor(slow, self._take, places)
        _hold(blobs.values())
        _weigh([blobs[url] for url, _ in wanted], wanted[0][1])
        parts = {url: Image(blob.sha256, kind_of(blob.data) or "") for url, blob in blobs.items()}
        return lambda url, where: parts[url]

    def _take(self, places: Mapping[str, str]) -> dict[str, Blob]:
        """The bytes at each URL."""
        deadline = time.monotonic() + SECONDS
        found: dict[str, Blob] = {}
        for url, where in places.items():
            if not _remote(url):
                data = decoded(url, where)
            elif self.fetches:
                data = self.fetcher.image(url, where, deadline)
            else:
                cure = "send it as a data: URL (or have it served with --fetch-images)"
                raise UsageError("this server fetches no images", where=where, cure=cure)
            found[url] = HELD.put(data)
            _weigh(found.values(), where)
        return found


def _remote(url: str) -> bool:
    return url[:6].lower().startswith(("http:", "https:"))


def again(talk: Conversation, *, sees: bool, where: str) -> Conversation:
    """The same conversation, which may show images of earlier requests, held anew. UsageError where that cannot be."""
    images = images_of(talk)
    if not images:
        return talk
    if not sees:
        blind("", where)
    _count(len(images), where)
    try:
        blobs = [HELD.get(image.sha256) for image in images]
    except NotFound:
        what = "an image of the responses before is no longer in memory"
        raise UsageError(what, where=where, cure="send the whole input") from None
    _weigh(blobs, where)
    _hold(blobs)
    return talk


def _count(images: int, where: str) -> None:
    if images > MOST:
        raise UsageError(f"more than {MOST} images", where=where, cure="leave some out")


def _weigh(blobs: Iterable[Blob], where: str) -> None:
    """An image that is shown twice is sent on twice."""
    if sum(len(blob.data) for blob in blobs) > LARGEST:
        raise UsageError(f"images of more than {LARGEST >> 20} MB in all", where=where, cure="scale them down")


def _hold(blobs: Iterable[Blob]) -> None:
    if (request := trail.current()) is not None:
        request.held += blobs


def held() -> list[Blob]:
    """The images of the request that is being answered."""
    request = trail.current()
    return [] if request is None else list(request.held)
