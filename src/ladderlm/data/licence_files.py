"""The licence of a file: the SPDX line at its head, or the LICENSE file nearest above it in its folder or archive."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ladderlm.data.archives import Blob

_SPDX = re.compile(r"SPDX-License-Identifier:\s*([\w.+-]+(?: (?:AND|OR|WITH) [\w.+-]+)*)")
_NAMES = re.compile(r"(un)?licen[cs]e([-._ ].*)?|copying([-._ ].*)?", re.IGNORECASE)
# (words that only this licence's text has, its SPDX name); the first that fits
_WORDS = (
    ("GNU AFFERO GENERAL PUBLIC LICENSE", "AGPL-3.0-only"),
    ("GNU LESSER GENERAL PUBLIC LICENSE Version 3", "LGPL-3.0-only"),
    ("GNU LESSER GENERAL PUBLIC LICENSE", "LGPL-2.1-only"),
    ("GNU GENERAL PUBLIC LICENSE Version 2", "GPL-2.0-only"),
    ("GNU GENERAL PUBLIC LICENSE", "GPL-3.0-only"),
    ("Mozilla Public License Version 2.0", "MPL-2.0"),
    ("Apache License Version 2.0", "Apache-2.0"),
    ("PYTHON SOFTWARE FOUNDATION LICENSE", "PSF-2.0"),
    ("This is free and unencumbered software released into the public domain", "Unlicense"),
    ("CC0 1.0 Universal", "CC0-1.0"),
    ("Attribution-NonCommercial-ShareAlike 4.0", "CC-BY-NC-SA-4.0"),
    ("Attribution-NonCommercial 4.0", "CC-BY-NC-4.0"),
    ("Attribution-ShareAlike 4.0", "CC-BY-SA-4.0"),
    ("Attribution 4.0 International", "CC-BY-4.0"),
    ("Permission to use, copy, modify, and/or distribute this software", "ISC"),
    ("Permission is hereby granted, free of charge", "MIT"),
    ("Neither the name", "BSD-3-Clause"),
    ("Redistribution and use in source and binary forms", "BSD-2-Clause"),
)


def spdx(text: str) -> str:
    """The licence that the head of a text names by an SPDX-License-Identifier line, or ""."""
    found = _SPDX.search(text, 0, 2000)
    return found[1] if found else ""


def identify(text: str) -> str:
    """The SPDX name of a licence's text, or "" for one that is not known."""
    words = " ".join(text.split())
    return spdx(text) or next((name for mark, name in _WORDS if mark in words), "")


@dataclass(frozen=True, slots=True)
class LicenceFiles:
    """What LICENSE files say for the files in and under their folder; looked up once for each folder.

    `roots` leads from the first part of a name to the folder it lies in on disk.
    """

    found: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def is_licence(name: str) -> bool:
        return _NAMES.fullmatch(PurePosixPath(name).name) is not None

    def learn(self, name: str, data: bytes) -> None:
        """Takes in a licence file of an archive."""
        self.found.setdefault(PurePosixPath(name).parent.as_posix(), identify(data.decode("utf-8", "replace")))

    def of(self, blob: Blob) -> str:
        """The licence that the nearest LICENSE file within the collected folder or archive gives, or ""."""
        name = PurePosixPath(blob.name)
        folder = blob.path.parent if blob.path else None
        for above in name.parents:
            key = above.as_posix()
            on_disk = f"{folder}" if folder else key
            if on_disk not in self.found and folder:
                self.found[on_disk] = _look(folder)
            if licence := self.found.get(on_disk, ""):
                return licence
            folder = folder.parent if folder else None
        return ""


def _look(folder: Path) -> str:
    with contextlib.suppress(OSError):
        for file in sorted(folder.iterdir()):
            if _NAMES.fullmatch(file.name) and file.is_file():
                with file.open("rb") as opened:
                    return identify(opened.read(1 << 16).decode("utf-8", "replace"))
    return ""
