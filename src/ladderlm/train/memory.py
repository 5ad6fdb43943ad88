"""The memory that training takes: worked out by going through a step without computing it, and measured.

Every operation of a step runs on tensors that have a shape and no memory (torch's FakeTensorMode), while storages are
counted as they come and go. So the figures hold for every objective and architecture, with recomputation or without.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ladderlm.nn.linear import products
from ladderlm.nn.loss import ROWS
from ladderlm.nn.stack import recompute
from ladderlm.train.ema import Average
from ladderlm.train.objective import Objective
from ladderlm.train.optim import optimiser_of
from ladderlm.train.settings import PretrainConfig
from ladderlm.types import Value

# What a process grows by for a byte of tensors: glibc's heap leaves gaps between aligned blocks. Measured.
GROWTH = 1.9
PEAK_RESET = "5"  # see clear_refs in proc(5)


@dataclass(frozen=True, slots=True)
class Footprint(Value):
    """Bytes at the peak of a step, by what they are for; `logits` are those of one block of positions.

    `activations` is all else: what the backward pass needs, and what operations and the optimiser make between.
    """

    weights: int
    gradients: int
    optimiser: int
    average: int
    logits: int
    activations: int

    @property
    def tensors(self) -> int:
        return sum(self.to_dict().values())

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint's tensors on the disk."""
        return self.weights + self.optimiser + self.average


def footprint(
    build: Callable[[], nn.Module], objective: Objective, batch: Any, config: PretrainConfig, passes: int
) -> Footprint:
    """What a step of so many forward passes over batches like `batch` takes, in the numbers that `derived` gives."""
    with FakeTensorMode(allow_non_fake_inputs=True), _Live() as live:
        model = build()
        if config.recompute:
            recompute(model)
        optimiser = optimiser_of(model, config)
        average = Average(optimiser.named, config.ema) if config.ema else None
        for _ in range(2):  # from the first step on the optimiser has moments
            for _ in range(min(passes, 2)):  # in the second pass there are gradients from the first
                with products(config.precision, config.device):
                    loss, _ = objective.loss(model, batch)
                loss.backward()
            del loss
            nn.utils.clip_grad_norm_(optimiser.parameters, 1.0)
            optimiser.step(1.0)
        weights = sum(_bytes(p) for p in optimiser.parameters)
        kept = {
            "weights": weights,
            "gradients": weights,
            "optimiser": sum(_bytes(t) for t in optimiser.state().values()),
            "average": sum(_bytes(t) for t in average.state().values()) if average else 0,
            "logits": 4 * min(ROWS, batch.weight) * model.arch.vocab_size,  # type: ignore[union-attr]
        }
    return Footprint(**kept, activations=max(0, live.most - sum(kept.values())))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class _Live(TorchDispatchMode):
    """Counts the bytes of all storages that operations make while it is on, `most` being the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.held: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0.0  # a figure that is only logged
        if func is torch.ops.aten.nonzero.default:  # experts: nobody knows which tokens go where, so all go everywhere
            return torch.zeros(args[0].numel(), args[0].dim(), dtype=torch.long, device=args[0].device)
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.see(tensor.untyped_storage())
        return out

    def see(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.held:
            return
        self.now += size
        self.most = max(self.most, self.now)

        def gone(_: Any) -> None:
            if self.held.pop(key, None) is not None:
                self.now -= size

        self.held[key] = weakref.ref(storage, gone)


class Peak:
    """The most memory that this process takes from here on; what it held but did not need goes back first.

    What torch loads when it first takes a step is there before, so that it does not count.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device, self.exact = device, True
        _first_step()
        gc.collect()
        if device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_reserved(device)
            return
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # glibc's
        try:
            Path("/proc/self/clear_refs").write_text(PEAK_RESET)
        except OSError:
            self.exact = False
        self.before = _status("VmRSS") or 0

    def growth(self) -> int | None:
        """Bytes at the peak above those at the beginning; None where the system does not tell."""
        if self.device != "cpu":
            return torch.cuda.max_memory_reserved(self.device) - self.before
        most = _status("VmHWM")
        return most - self.before if most is not None and self.exact else None


@functools.cache
def _first_step() -> None:
    weight_MM = nn.Parameter(torch.zeros(1024, 1024))
    (weight_MM @ weight_MM).sum().backward()
    torch.optim.AdamW([weight_MM], fused=True).step()


def _status(key: str) -> int | None:
    """A size in /proc/self/status, in bytes."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return 1024 * int(line.split()[1])
    return None


def available(device: str = "cpu") -> int | None:
    """Bytes that this process may take now; None where the system does not tell."""
    if device != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    with contextlib.suppress(OSError, ValueError):  # a container may have less than the machine
        most, taken = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        found.append(most - taken)
    return max(0, min(found)) if found else None
