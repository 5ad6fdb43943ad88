"""Where a run trains: what is made within `on(device)` lies there, unless it says otherwise.

Models are read, and random weights drawn, on the processor, so that a seed means the same everywhere, and then moved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ladderlm.errors import UsageError


def present(device: str) -> None:
    """Raises UsageError for a GPU that is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("there is no GPU", where="device=cuda", cure="leave out --device")


@contextlib.contextmanager
def on(device: str) -> Iterator[None]:
    """Within, new tensors are made on `device`. Raises UsageError where it is not there."""
    present(device)
    with contextlib.nullcontext() if device == "cpu" else torch.device(device):
        yield


def on_processor() -> contextlib.AbstractContextManager[object]:
    """Within, new tensors are made on the processor, wherever the run is."""
    return torch.device("cpu")
