"""One process or several: who we are under torchrun, and the few things that processes must agree on.

`torchrun --nproc-per-node N -m ladderlm pretrain ...` starts the same command N times. "ddp" keeps all of the model in
every process; "fsdp" (FSDP2, torch's `fully_shard`) splits weights, gradients and optimiser state among them. Either
way a step's gradient is that of all batches of the step, each process having read its share of them.

Nothing here is sent as a pickle: numbers and bytes go as tensors.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ladderlm.errors import UsageError
from ladderlm.train.settings import PARALLEL

PATIENCE = timedelta(minutes=30)  # one process may prepare data while the others wait
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class World:
    """This process among `size`, by its number `rank`. The default is a process by itself."""

    rank: int = 0
    size: int = 1
    parallel: str = "ddp"
    device: str = "cpu"

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        return self.size > 1 and self.parallel == "fsdp"

    # --- Agreement ------------------------------------------------------------------------------------------------

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes, in double precision."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        found: list[float] = sums.tolist()
        return found

    def told(self, value: float) -> float:
        """What the first process has."""
        return self.total([value if self.main else 0.0])[0]

    def told_text(self, text: str) -> str:
        """The first process's text, in every process."""
        if self.size == 1:
            return text
        data = text.encode() if self.main else b""
        buffer = torch.zeros(int(self.told(len(data))), dtype=torch.uint8, device=self.device)
        if data:
            buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        if len(buffer):
            dist.broadcast(buffer, 0)
        return bytes(buffer.cpu().tolist()).decode()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    # --- The model ------------------------------------------------------------------------------------------------

    def shard(self, model: M) -> M:
        """The model as this process holds it: on its device, under "fsdp" only a part of every weight.

        To be called before the optimiser is made: parameters become new ones.
        """
        model = model.to(self.device)
        if self.sharded:
            from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

            for module in model.modules():
                if isinstance(module, nn.ModuleList) and hasattr(module[0], "self_attn"):
                    for layer in module:
                        fully_shard(layer)
                        if hasattr(layer, "steps"):
                            register_fsdp_forward_method(layer, "steps")
            fully_shard(model, reshard_after_forward=False)  # the head reads the embeddings after the forward pass
        return model

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module`, whose forward gives the loss, with gradients averaged over processes under "ddp"."""
        if self.size == 1 or self.sharded:
            return module
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(module, gradient_as_bucket_view=True)

    @contextlib.contextmanager
    def syncing(self, module: nn.Module, model: nn.Module, last: bool) -> Iterator[None]:
        """While the block runs gradients are only summed here, unless it is the `last` batch of the step."""
        if self.sharded:
            model.set_requires_gradient_sync(last)  # type: ignore[operator]
            yield
        elif self.size > 1 and not last:
            with module.no_sync():  # type: ignore[operator]
                yield
        else:
            yield

    def after_reading(self, model: nn.Module) -> None:
        """Forgets weights gathered by a forward pass without a backward one: they grow stale."""
        if self.sharded:
            model.reshard()  # type: ignore[operator]

    def whole(self, tensor: Tensor) -> Tensor:
        """All of a tensor that may be split among processes, on the CPU. All processes must ask."""
        full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        return full.detach().cpu()

    @torch.no_grad()
    def unsharded(self, model: M, fresh: Callable[[], M]) -> M:
        """The model whole and on the CPU: itself, or under "fsdp" a `fresh` one with its weights."""
        if self.sharded:
            held = {name: self.whole(parameter) for name, parameter in model.named_parameters()}
            model = fresh()
            for name, parameter in model.named_parameters():
                parameter.copy_(held[name])
        return model.cpu()

    def each_bytes(self, data: Tensor) -> list[Tensor]:
        """Every process's bytes, which are equally many, in the order of their ranks."""
        if self.size == 1:
            return [data]
        found = [torch.zeros_like(data, device=self.device) for _ in range(self.size)]
        dist.all_gather(found, data.to(self.device))
        return [f.cpu() for f in found]


ALONE = World()


@torch.no_grad()
def fill(target: Tensor, full: Tensor) -> None:
    """Copies a whole tensor into one that may hold a part of it."""
    target.copy_(share_like(target, full.to(target.device)))


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    part: Any = tensor
    return part.to_local() if hasattr(part, "to_local") else part


def part_like(whole: Tensor, part: Tensor) -> Tensor:
    """This process's `part` of something split as `whole` is, sharing its memory."""
    if not hasattr(whole, "full_tensor"):
        return part
    from torch.distributed.tensor import DTensor

    split: Any = whole
    return DTensor.from_local(
        part, split.device_mesh, split.placements, run_check=False, shape=split.shape, stride=split.stride()
    )


def whole_like(parameter: Tensor, part: Tensor) -> Tensor:
    """All of what is split as `parameter` is, out of every process's `part`."""
    split: Any = part_like(parameter, part)
    return split.full_tensor() if hasattr(split, "full_tensor") else part


def share_like(parameter: Tensor, whole: Tensor) -> Tensor:
    """`whole` split as `parameter` is."""
    if not hasattr(parameter, "full_tensor"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    split: Any = parameter
    return distribute_tensor(whole, split.device_mesh, split.placements, src_data_rank=None)


@contextlib.contextmanager
def joined(parallel: str = "ddp", device: str = "cpu") -> Iterator[World]:
    """The world that torchrun has set up, left again at the end; without torchrun this process alone."""
    if parallel not in PARALLEL:
        raise UsageError(f"unknown parallelism {parallel!r}", cure="known: " + ", ".join(PARALLEL))
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(parallel=parallel, device=device)
        return
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    try:
        yield World(dist.get_rank(), size, parallel, device)
    finally:
        dist.destroy_process_group()


def first(world: World, make: Callable[[], str]) -> str:
    """The text that the first process makes, in every process; the others wait for it."""
    return world.told_text(make() if world.main else "")
