"""Tokenised text on disk: shards of ids, memory-mapped, with the edges of documents kept.

A folder holds `index.json` (format 1), `tokenizer.json`, and per shard NAME.bin (ids, little-endian uint16 or uint32),
NAME.starts (int64, where each document begins in its shard) and NAME.json (what is in it). Which records go into which
shard depends on the records alone, never on the workers. Every file is written whole or not at all, and a shard's
.json last: a run that was killed goes on after the shards it finished, if they hold the texts it meets again.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ladderlm import events, store
from ladderlm.errors import FormatError, NotFound, UsageError
from ladderlm.text.tokenizer import SpecialTokens, Tokenizer
from ladderlm.types import Record

FORMAT = 1
SHARD_BYTES = 32 << 20  # of text; memory is about ten times this for each worker
_INDEX = "index.json"


def write_shards(
    records: Iterable[Record],
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    workers: int = 2,
    lineage: Sequence[Mapping[str, Any]] = (),
) -> Shards:
    """Tokenises the `text` of records into a folder; each document is led by the document-start token.

    The whole corpus is never held: one group of records for each of `workers` threads (our encoder and the library's
    leave Python's lock), and one more. `lineage` is kept in the index. Raises UsageError for no text, or a folder that
    was made with another tokenizer or shard size.
    """
    folder = store.make_dir(Path(folder))
    with store.lock(folder / "shards"):
        settings = _settings(tokenizer, shard_bytes)
        _claim(folder, settings, tokenizer)
        found: list[dict[str, Any]] = []
        pending: deque[Future[dict[str, Any]]] = deque()
        with ThreadPoolExecutor(max(1, workers), "shard") as pool:
            for number, group in enumerate(events.track(_groups(records, shard_bytes), "tokenise", unit="shards")):
                pending.append(pool.submit(_shard, folder / f"{number:05d}", group, tokenizer, settings["dtype"]))
                if len(pending) > workers:
                    found.append(pending.popleft().result())
            found.extend(future.result() for future in pending)
        if not found:
            raise UsageError("no text to tokenise", where=str(folder), cure="records of kind text are needed")
        _finish(folder, settings, found, lineage)
    return Shards(folder)


def _settings(tokenizer: Tokenizer, shard_bytes: int) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "dtype": "<u2" if tokenizer.vocab_size <= 2**16 else "<u4",
        "vocab_size": tokenizer.vocab_size,
        "special": {**dataclasses.asdict(tokenizer.special), "stop": list(tokenizer.special.stop)},
        "tokenizer_sha256": hashlib.sha256(tokenizer.to_json().encode()).hexdigest(),
        "shard_bytes": shard_bytes,
    }


def _claim(folder: Path, settings: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Leaves the settings in the folder before any shard, or checks that they are those found there."""
    begun = folder / "settings.json"
    if begun.exists():
        if _json(begun) != settings:
            cure = "choose another folder, or remove this one"
            raise UsageError("these shards were begun with another tokenizer or size", where=str(folder), cure=cure)
        return
    for path, text in ((folder / "tokenizer.json", tokenizer.to_json()), (begun, json.dumps(settings, indent=2))):
        with store.atomic_file(path) as file:
            file.write(text)


def _groups(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    """Records in order, in groups of at least `size` bytes of text."""
    group: list[Record] = []
    held = 0
    for record in records:
        text = record.fields.get("text")
        if not isinstance(text, str):
            raise UsageError(f"a record of kind {record.kind} has no text", where=record.id)
        group.append(record)
        held += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
        if held >= size:
            yield group
            group, held = [], 0
    if group:
        yield group


def _shard(base: Path, group: Sequence[Record], tokenizer: Tokenizer, dtype: str) -> dict[str, Any]:
    """Writes one shard, unless it is there; returns what is in it."""
    texts = [record["text"] for record in group]
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    done = base.with_suffix(".json")
    if done.exists():
        found = _json(done)
        if found.get("texts_sha256") == digest.hexdigest():
            return found
    base.with_name(_INDEX).unlink(missing_ok=True)  # it told of another content
    ids, ends = tokenizer.encode_arrays(texts)
    starts = np.concatenate([[0], ends[:-1]])
    if tokenizer.document_start_id is not None:
        ids = np.insert(ids, starts, tokenizer.document_start_id)
        starts = starts + np.arange(len(starts))
    data = ids.astype(dtype).tobytes()
    for suffix, content in ((".bin", data), (".starts", starts.astype("<i8").tobytes())):
        with store.atomic_file(base.with_suffix(suffix), "wb") as file:
            file.write(content)
    found = {
        "name": base.name,
        "tokens": len(ids),
        "documents": len(texts),
        "bytes": sum(len(text.encode("utf-8", "replace")) for text in texts),
        "texts_sha256": digest.hexdigest(),
        "ids_sha256": hashlib.sha256(data).hexdigest(),
        "sources": dict(Counter(record.source for record in group)),
        "licences": dict(Counter(record.licence for record in group)),
    }
    with store.atomic_file(done) as file:
        json.dump(found, file, ensure_ascii=False)
    return found


def _finish(
    folder: Path, settings: Mapping[str, Any], found: Sequence[Mapping[str, Any]], lineage: Sequence[Mapping[str, Any]]
) -> None:
    """Writes the index. Shards left from a longer corpus are not in it."""
    totals: dict[str, Counter[str]] = {"sources": Counter(), "licences": Counter()}
    for shard in found:
        for key, counts in totals.items():
            counts.update(shard[key])
    content = hashlib.sha256("".join(shard["ids_sha256"] for shard in found).encode()).hexdigest()
    kept = [{k: v for k, v in shard.items() if k not in totals} for shard in found]
    index = {
        **settings,
        **{key: sum(shard[key] for shard in found) for key in ("tokens", "documents", "bytes")},
        "content_sha256": content,
        **{key: dict(counts) for key, counts in totals.items()},
        "lineage": [dict(entry) for entry in lineage],
        "shards": kept,
    }
    with store.atomic_file(folder / _INDEX) as file:
        json.dump(index, file, ensure_ascii=False, indent=2)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound("no such file", where=str(path), cure="ladderlm data shard writes such folders") from None
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise FormatError(f"not valid JSON: {error}", where=str(path)) from None
    if not isinstance(found, dict):
        raise FormatError("not an object", where=str(path))
    return found


def is_shards(path: str | Path) -> bool:
    """Whether a path is a finished folder of shards."""
    return (Path(path) / _INDEX).is_file() and (Path(path) / "settings.json").is_file()


class Shards:
    """A folder of shards as one long row of ids: `shards[a:b]` reads ids of any range, across the edges of shards.

    `len` counts tokens, `starts` (int64) says where each document begins. Nothing but `starts` is held in memory.
    """

    def __init__(self, folder: str | Path) -> None:
        """NotFound or FormatError for a folder that is not one, or is damaged, or of a newer format."""
        self.path = Path(folder)
        self.index = _json(self.path / _INDEX)
        if self.index.get("format") != FORMAT:
            cure = "a newer LadderLM reads it"
            raise FormatError(f"shards of format {self.index.get('format')!r}", where=str(self.path), cure=cure)
        try:
            self.dtype = np.dtype(str(self.index["dtype"]))
            counts = [int(shard["tokens"]) for shard in self.index["shards"]]
            names = [str(shard["name"]) for shard in self.index["shards"]]
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"a damaged index: {error}", where=str(self.path / _INDEX)) from None
        if any(Path(name).name != name for name in names):
            raise FormatError("a shard outside the folder", where=str(self.path / _INDEX))
        self.edges = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._maps = [self._map(name, count) for name, count in zip(names, counts, strict=True)]
        self._names = names

    def _map(self, name: str, count: int) -> np.ndarray:
        path = self.path / f"{name}.bin"
        if not path.is_file() or path.stat().st_size != count * self.dtype.itemsize:
            raise FormatError("a shard is missing or cut short", where=str(path), cure="write the shards again")
        return np.memmap(path, self.dtype, "r") if count else np.zeros(0, self.dtype)

    @functools.cached_property
    def starts(self) -> np.ndarray:
        parts = [np.fromfile(self.path / f"{name}.starts", "<i8") for name in self._names]
        return np.concatenate([part + edge for part, edge in zip(parts, self.edges, strict=False)])

    def __len__(self) -> int:
        return int(self.edges[-1])

    @property
    def ids_N(self) -> np.ndarray | Shards:
        """All ids: the mapped array itself when there is one shard."""
        return self._maps[0] if len(self._maps) == 1 else self

    @property
    def documents(self) -> int:
        return len(self.starts)

    def __getitem__(self, span: slice) -> np.ndarray:
        a, b, step = span.indices(len(self))
        if step != 1:
            raise UsageError("ids are read in order", where=f"step={step}")
        first = int(np.searchsorted(self.edges, a, "right")) - 1
        parts = []
        while a < b:
            edge = int(self.edges[first])
            part = self._maps[first][a - edge : b - edge]
            parts.append(part)
            a, first = a + len(part), first + 1
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, self.dtype), *parts])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[: len(self)], dtype=dtype)

    def until(self, number: int) -> Shards:
        """The same folder up to the beginning of one document."""
        end, other = int(self.starts[number]) if number < self.documents else len(self), copy.copy(self)
        other.edges = np.minimum(self.edges, end)
        other.starts = self.starts[:number]
        return other

    def document(self, number: int) -> np.ndarray:
        """The ids of one document, its start token among them."""
        if not 0 <= number < self.documents:
            raise NotFound(f"no document {number}", where=str(self.path), cure=f"0 to {self.documents - 1}")
        end = self.starts[number + 1] if number + 1 < self.documents else len(self)
        return self[int(self.starts[number]) : int(end)]

    def tokenizer(self) -> Tokenizer:
        """The tokenizer the shards were made with."""
        special = self.index.get("special") or {}
        try:
            found = SpecialTokens(**{**special, "stop": tuple(special.get("stop", ()))})
        except TypeError as error:
            raise FormatError(f"a damaged index: {error}", where=str(self.path / _INDEX)) from None
        return Tokenizer.from_file(self.path / "tokenizer.json", found)

    def verify(self) -> None:
        """Reads everything and compares it with the hashes in the index. FormatError names the shard that differs."""
        for shard, ids in zip(self.index["shards"], self._maps, strict=True):
            if hashlib.sha256(ids.tobytes()).hexdigest() != shard["ids_sha256"]:
                raise FormatError("a shard's content has changed", where=str(self.path / f"{shard['name']}.bin"))
