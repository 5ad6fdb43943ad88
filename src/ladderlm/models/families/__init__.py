"""The families that are read and written: what config.json says, and what their files call the tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from types import ModuleType
from typing import Any

from ladderlm.errors import FormatError, nearest
from ladderlm.models.arch import Architecture
from ladderlm.models.families import bert, gpt, llama, marian, t5
from ladderlm.models.families.config import SERVED, Config
from ladderlm.models.families.stored import Stored

_HOMES: dict[str, ModuleType] = {family: home for home in (llama, gpt, bert, marian, t5) for family in home.CLASSES}
FAMILIES: tuple[str, ...] = tuple(_HOMES)


def from_hf(config: Mapping[str, Any], names: Collection[str] = ()) -> Architecture:
    """The Architecture of a config.json; `names` are the tensors beside it, where they are known.

    FormatError for an unknown family, naming the nearest known one.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in _HOMES:
        raise FormatError(f"the family {family!r} is not supported: {nearest(str(family), FAMILIES)}", cure=SERVED)
    try:
        arch: Architecture = _HOMES[family].read(Config(config, names))
    except (TypeError, ValueError, OverflowError) as error:  # a hostile field of another type
        raise FormatError(f"not a sound {family} config: {error}", where="config.json") from None
    pad = config.get("pad_token_id", arch.pad_id)
    return dataclasses.replace(arch, pad_id=pad if isinstance(pad, int) and 0 <= pad < arch.vocab_size else -1)


def to_hf(
    arch: Architecture, *, bos_id: int | None = None, eos_ids: Sequence[int] = (), dtype: str = "float32"
) -> dict[str, Any]:
    """A config.json that transformers loads."""
    eos = list(eos_ids)
    home = _home(arch)
    return {
        "architectures": [home.CLASSES[arch.family]],
        "model_type": arch.family,
        **home.write(arch),
        "dtype": dtype,
        "torch_dtype": dtype,
        "pad_token_id": None if arch.pad_id < 0 else arch.pad_id,
        "bos_token_id": bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
    }


def stored(arch: Architecture) -> list[Stored]:
    """The tensors of a file of this family, in the order of the forward pass."""
    found: list[Stored] = _home(arch).stored(arch)
    return found


def _home(arch: Architecture) -> ModuleType:
    if arch.family not in _HOMES:
        raise FormatError(f"the family {arch.family!r} is not supported: {nearest(arch.family, FAMILIES)}")
    return _HOMES[arch.family]
