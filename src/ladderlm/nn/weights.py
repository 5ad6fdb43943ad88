"""A module's weights: filled from a model's files, drawn at random, and given back under their canonical names."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import nn

from ladderlm.errors import FormatError
from ladderlm.types import FloatArray

if TYPE_CHECKING:
    from ladderlm.models.arch import Architecture
    from ladderlm.models.folder import ModelFiles

M = TypeVar("M", bound=nn.Module)
_ENDS = ("o_proj.weight", "down_proj.weight", "relative.weight")  # the first two end a branch of the residual stream


@torch.no_grad()
def fill(module: M, files: ModelFiles, *, fresh: frozenset[str] = frozenset()) -> M:
    """Gives a module made on the meta device the weights of `files`, by name; those in `fresh` are left alone."""
    module.to_empty(device="cpu")
    held = set(files.weights.names())
    for name, parameter in module.named_parameters():
        if name in fresh:
            continue
        if name not in held:
            raise FormatError(f"the model has no tensor {name!r}", where=str(files.path))
        array = files.weights.float32(name)
        if array.shape != tuple(parameter.shape):
            raise FormatError(f"{name} is {array.shape}, not {tuple(parameter.shape)}", where=str(files.path))
        parameter.copy_(torch.from_numpy(np.require(array, np.float32, ["C", "W"])))
    return module


@torch.no_grad()
def initialise(module: M, arch: Architecture, seed: int, *, only: frozenset[str] | None = None) -> M:
    """Random weights: normal with deviation 1/sqrt(inputs), the two that end a residual branch zero.

    Zero branches make the fresh network an identity, which lets deep and shallow ones start at one rate
    (Zhang et al. 2019, "Fixup"). `only`: the parameters named, if not all.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if only is not None and name not in only:
            continue
        if parameter.ndim != 2:
            parameter.fill_(0.0 if name.endswith(".bias") or arch.norm_offset else 1.0)
        elif name.endswith(_ENDS):
            parameter.zero_()
        else:
            scale = 0.02 / arch.logit_scale if ".embed_" in name or "lm_head" in name else parameter.shape[1] ** -0.5
            if name.endswith("q_proj.weight"):  # so that scores have deviation 1 whatever scales them
                scale *= arch.head_dim**-0.5 / arch.scale
            parameter.normal_(0.0, scale, generator=generator)
    return module


def state(module: nn.Module) -> dict[str, FloatArray]:
    """The weights under their canonical names; a copy."""
    return {name: p.detach().numpy().astype(np.float32, copy=True) for name, p in module.named_parameters()}
