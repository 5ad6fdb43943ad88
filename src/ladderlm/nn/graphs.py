"""Steps of single tokens in few fixed shapes; on CUDA each is recorded once as a graph and then replayed.

Recording takes the host out of the step: hundreds of kernels start as one. Before it, torch.compile joins the small
operations around a layer's products; where its compiler is missing, the graph holds them one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ladderlm import events
from ladderlm.engine.cache import BLOCK
from ladderlm.nn.paged import layer_step

ROWS = (1, 2, 4, 8, 16, 32, 64)  # rows of a recorded step
FEWEST_PAGES = 8  # of a recorded step; then powers of two
WARM = 3  # runs before a recording, in which libraries choose their kernels and take their memory

Row = tuple[npt.NDArray[np.int64], int, int]  # a sequence's page table and length, and the id that follows


def bucket(rows: int, pages: int) -> tuple[int, int]:
    """The least shape that holds so many rows of so many pages."""
    return next(n for n in ROWS if n >= rows), max(FEWEST_PAGES, 1 << (pages - 1).bit_length())


class Recorded(NamedTuple):
    """A graph with the places of its input and output."""

    graph: torch.cuda.CUDAGraph
    input_B2P: Tensor
    logits_BV: Tensor


class Graphs:
    """Runs `decode`, a function of one tensor of ids, positions and page tables (B, 2 + P), in buckets."""

    most = ROWS[-1]

    def __init__(self, decode: Callable[[Tensor], Tensor], device: torch.device, *, record: bool) -> None:
        self._decode, self._device, self._record = decode, device, record
        self._known: dict[tuple[int, int], Recorded] = {}
        self._pool = torch.cuda.graph_pool_handle() if record else None
        self.step: Callable[..., Tensor] = layer_step
        self._compiled: Callable[..., Tensor] | None = None
        if record:
            self._compiled = torch.compile(layer_step, fullgraph=True, dynamic=False)

    def run(self, rows: Sequence[Row]) -> Tensor:
        """logits_BV, one row each."""
        count, pages = bucket(len(rows), max(length for _, length, _ in rows) // BLOCK + 1)
        table = np.zeros((count, 2 + pages), np.int64)  # rows beyond write to page 0, which is nobody's
        for row, (addresses, length, token) in zip(table, rows, strict=False):
            row[:2] = token, length
            row[2 : 2 + min(pages, len(addresses))] = addresses[:pages]
        if not self._record:
            return self._decode(torch.from_numpy(table).to(self._device))[: len(rows)]
        if (count, pages) not in self._known:
            self._known[count, pages] = self._recorded(torch.from_numpy(table))
        found = self._known[count, pages]
        found.input_B2P.copy_(torch.from_numpy(table).pin_memory(), non_blocking=True)
        found.graph.replay()
        return found.logits_BV[: len(rows)]

    def clear(self) -> None:
        self._known.clear()

    def _recorded(self, table: Tensor) -> Recorded:
        input_B2P = torch.zeros_like(table, device=self._device)  # every row fills up page 0 until the first replay
        events.emit("record", f"recording the step for {len(table)} rows of {table.shape[1] - 2} pages")
        try:
            return self._capture(input_B2P)
        except Exception as error:
            if self._compiled is None:
                raise
            first = str(error).partition("\n")[0]
            events.emit("record", f"going on without torch.compile, which failed: {first}")
            self._compiled = None
            return self._capture(input_B2P)

    def _capture(self, input_B2P: Tensor) -> Recorded:
        with torch._dynamo.config.patch(recompile_limit=256, accumulated_recompile_limit=4096):  # one a bucket
            self.step = self._compiled or layer_step
            try:
                side = torch.cuda.Stream(self._device)
                side.wait_stream(torch.cuda.current_stream(self._device))
                with torch.cuda.stream(side):
                    for _ in range(WARM):
                        self._decode(input_B2P)
                torch.cuda.current_stream(self._device).wait_stream(side)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                    logits_BV = self._decode(input_B2P)
            finally:
                self.step = layer_step
        return Recorded(graph, input_B2P, logits_BV)
