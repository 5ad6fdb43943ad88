"""`models pack` and `unpack`: a model as one file to share, and back.

The file is an uncompressed tar (POSIX.1-1988 ustar, pax for long names) of one folder: the card first, then the
model's files, then SHA256SUMS, which unpacking checks. The same model gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ladderlm import events, store
from ladderlm.config import option
from ladderlm.errors import FormatError, NotFound, StorageError, UsageError
from ladderlm.models.bounded import shown
from ladderlm.models.card import render_card
from ladderlm.models.folder import ModelFiles
from ladderlm.models.reference import open_model
from ladderlm.types import Value

SUMS, CARD = "SHA256SUMS", "README.md"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200}")
_SHARED = (".safetensors", ".gguf", ".json", ".jinja", ".md", ".txt", ".model")
_MOST_FILES, _MOST_TEXT = 5000, 64 * 2**20
_CHUNK = 2**22


@dataclass(frozen=True, slots=True)
class PackConfig(Value):
    model: str = option(help="the model: a folder, a .gguf file, an adapter folder, or a name")
    out: str = option("", "the file to write, such as model.tar")
    replace: bool = option(False, "replace --out if it exists")
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class UnpackConfig(Value):
    file: str = option(help="the packed model")
    out: str = option("", "the folder to write")
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class Packed(Value):
    """A packed model (or the folder it was unpacked to) and the sha256 of each file in it."""

    path: str
    bytes: int
    files: Mapping[str, str]
    sha256: str = ""


# --- What is shared -----------------------------------------------------------------------------------------------


def shared_files(files: ModelFiles) -> dict[str, Path | bytes]:
    """The files to share by name: those of the model, and its card, made from the lineage where there is none.

    Only data files: what is hidden, in folders below, or of another type stays at home. UsageError for base+adapter,
    which is two models.
    """
    if len(files.parts) > 1 and files.path.is_dir() and not (files.path / "adapter_config.json").is_file():
        raise UsageError("a base with an adapter is two models", where=files.ref, cure="merge them first: models merge")
    if files.path.is_file():
        named = re.sub(r"[^A-Za-z0-9_.+-]", "-", files.path.name).lstrip(".-+")
        found: dict[str, Path | bytes] = {named or "model.gguf": files.path}
    else:
        some = (p for p in sorted(files.path.iterdir()) if p.is_file() and _NAME.fullmatch(p.name))
        found = {p.name: p for p in some if p.suffix in _SHARED or p.name.startswith(("LICENSE", "NOTICE"))}
    found.pop(SUMS, None)
    if CARD not in found:
        found[CARD] = render_card(files.lineage, files.arch, name=files.name).encode()
    return found


def card_of(shared: Mapping[str, Path | bytes]) -> str:
    """The card among `shared`."""
    card = shared[CARD]
    return (card if isinstance(card, bytes) else card.read_bytes()).decode("utf-8", errors="replace")


# --- Packing ------------------------------------------------------------------------------------------------------


def pack(config: PackConfig) -> Packed:
    """Writes the file, whole or not at all. StorageError where it exists and `replace` was not asked for."""
    if not config.out:
        raise UsageError("the file needs a name", cure="--out model.tar")
    out = Path(config.out).expanduser()
    if out.exists() and not config.replace:
        raise StorageError("already exists", where=str(out), cure="choose another --out, or --replace")
    files = open_model(config.model)
    shared = shared_files(files)
    top = re.sub(r"[^A-Za-z0-9_.+-]", "-", files.name).lstrip(".-+") or "model"
    sums: dict[str, str] = {}
    with store.atomic_file(out, "wb") as raw, tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        ordered = sorted(shared, key=lambda name: (name != CARD, name))
        for name in events.track(ordered, "pack", unit="files"):
            sums[name] = _add(tar, f"{top}/{name}", shared[name])
        _add(tar, f"{top}/{SUMS}", "".join(f"{sums[name]}  {name}\n" for name in ordered).encode())
    return Packed(str(out), out.stat().st_size, sums, store.sha256_of(out))


class _Hashing:
    """A file that hashes what is read from it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.sum = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.sum.update(data)
        return data


def _add(tar: tarfile.TarFile, name: str, content: Path | bytes) -> str:
    """Adds a file without owner, time or mode of its own; returns its sha256."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content) if isinstance(content, bytes) else content.stat().st_size
    entry.mode = 0o644
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        hashing = _Hashing(file)
        tar.addfile(entry, hashing)
    return hashing.sum.hexdigest()


# --- Unpacking ----------------------------------------------------------------------------------------------------


def unpack(config: UnpackConfig) -> Packed:
    """Writes the folder of a packed model after checking every name, size and hash; whole or not at all.

    FormatError for a file that is not such a tar, holds anything but data files of one folder, or is damaged.
    """
    source = Path(config.file).expanduser()
    if not source.is_file():
        raise NotFound("no such file", where=str(source))
    if not config.out:
        raise UsageError("the model needs a place", cure="--out DIR")
    out = Path(config.out).expanduser()
    with store.atomic_dir(out) as folder:
        try:
            with tarfile.open(source, "r:") as tar:
                found, sums = _extract(tar, folder, source.stat().st_size, str(source))
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"not a packed model: {shown(str(error))}", where=str(source)) from None
        _check_sums(found, sums, str(source))
    return Packed(str(out), sum(p.stat().st_size for p in out.iterdir()), found)


def _extract(tar: tarfile.TarFile, folder: Path, size: int, where: str) -> tuple[dict[str, str], str]:
    """Writes the files; (their hashes, the text of SHA256SUMS)."""
    found: dict[str, str] = {}
    sums, top, total = "", "", 0
    for entry in tar:
        name = _checked(entry, top, where)
        top = entry.name.partition("/")[0]
        total += entry.size
        if name in found or (name == SUMS and sums):
            raise FormatError(f"{name} is there twice", where=where)
        if total > size or len(found) > _MOST_FILES:  # an uncompressed tar holds no more than its own size
            raise FormatError("the files are larger than what holds them", where=where)
        file = tar.extractfile(entry)
        assert file is not None  # a regular file
        if name == SUMS:
            sums = file.read(_MOST_TEXT).decode("utf-8", errors="replace")
            continue
        digest = hashlib.sha256()
        with (folder / name).open("xb") as target:
            while data := file.read(_CHUNK):
                digest.update(data)
                target.write(data)
        found[name] = digest.hexdigest()
    return found, sums


def _checked(entry: tarfile.TarInfo, top: str, where: str) -> str:
    """The plain name of an entry that is a data file of the one folder. FormatError for anything else."""
    parts = entry.name.split("/")
    said = shown(entry.name)
    if not entry.isreg() or entry.issparse():
        raise FormatError(f"'{said}' is no plain file: links, folders and devices are refused", where=where)
    if len(parts) != 2 or not all(_NAME.fullmatch(p) and ".." not in p for p in parts) or (top and parts[0] != top):
        raise FormatError(f"'{said}' is not the name of a file in one folder", where=where)
    name = parts[1]
    if name != SUMS and not name.endswith(_SHARED) and not name.startswith(("LICENSE", "NOTICE")):
        raise FormatError(f"'{said}' is no data file of a model", where=where, cure="weights come as safetensors, GGUF")
    return name


def _check_sums(found: Mapping[str, Any], sums: str, where: str) -> None:
    wanted = {name: digest for digest, _, name in (line.partition("  ") for line in sums.splitlines()) if name}
    if not wanted:
        raise FormatError(f"there is no {SUMS}", where=where, cure="pack it with: ladderlm models pack")
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            raise FormatError(f"{shown(name)} is not what was packed", where=where, cure="fetch the file again")
