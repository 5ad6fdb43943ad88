"""What a torch device can do at most, measured: bytes read from its memory, and multiplications with additions."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ladderlm.engine.ceiling import Ceiling

BUFFER = {"cpu": 2**28, "mps": 2**28}  # bytes, far beyond any cache; elsewhere 2**30
SIDE = {"cpu": 1024, "mps": 2048}  # of the square matrices; elsewhere 8192


class Meter:
    """Measures the ceilings of `device`, with matrices in `dtype`; integers have none here: weights in fewer bits are
    widened before they are multiplied."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, side = device, SIDE.get(device.type, 8192)
        self._buffer = torch.ones(BUFFER.get(device.type, 2**30) // 4, device=device)
        self._matrix = torch.ones(side, side, device=device, dtype=dtype)

    def measure(self, seconds: float = 0.2) -> Ceiling:
        """The best of repeated passes, for about `seconds` each."""
        side = len(self._matrix)
        read = self._buffer.nbytes / self._best(lambda: self._buffer.sum(), seconds)
        operations = 2 * side**3 / self._best(lambda: self._matrix @ self._matrix, seconds)
        return Ceiling(read, operations, 0.0)

    def close(self) -> None:
        """Frees the device's memory."""
        self._buffer = self._matrix = torch.empty(0)

    @torch.no_grad()
    def _best(self, call: Callable[[], torch.Tensor], seconds: float) -> float:
        """The shortest time of a call."""
        call()
        best, until = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < until:
            self._wait()
            began = time.perf_counter()
            call()
            self._wait()
            best = min(best, time.perf_counter() - began)
        return best

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()
