"""Settings that follow from others: what one dial sets, the learning rates nobody named, and the speed to hope for."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ladderlm.errors import UsageError
from ladderlm.models.arch import Architecture
from ladderlm.train.settings import PretrainConfig

WIDTH = 64  # of a head, and per layer of the whole
TOKENS_PER_PARAMETER = 20  # compute-optimal (Hoffmann et al. 2022)
RATED = 192  # the width that the learning rates below were found at; they fall with its square root
LR, MUON_LR, GO_ON_LR = 0.01, 0.01, 1e-4
# Of AdamW and Muon. At the rates of next tokens masked ones are learnt later, or never, and what tells a pair of texts
# is drowned: it is faint, and of many tokens.
MASKED = {"mlm": (0.002, MUON_LR), "mlm+nsp": (0.001, 0.003)}
BATCH, BATCH_TOKENS = 2048, 20e6  # tokens in a step of a run of so many tokens; it grows with their square root


def derived(config: PretrainConfig) -> PretrainConfig:
    """`config` with everything in numbers. `depth` sets sizes, batch and rates, and steps unless they are given."""
    found = _by_depth(config) if config.depth else config
    lr, muon_lr = (GO_ON_LR, 0.0) if config.model else MASKED.get(config.objective, (LR, MUON_LR))
    shrink = math.sqrt(RATED / found.dim) if config.depth and not config.model else 1.0
    return dataclasses.replace(
        found, lr=config.lr or lr * shrink, muon_lr=config.muon_lr if config.muon_lr >= 0 else muon_lr * shrink,
        precision=settled(config.precision, config.device),
    )  # fmt: skip


def settled(precision: str, device: str) -> str:
    """`precision` with "auto" decided. Raises UsageError for one that the hardware has no instructions for."""
    if precision == "auto":
        return "bf16" if multiplies_bf16(device) else "fp32"
    if precision in FAST and not FAST[precision](device):
        raise UsageError(f"no instructions for products in {precision}", where=device, cure="leave out --precision")
    return precision


def multiplies_bf16(device: str) -> bool:
    """Whether the hardware has instructions for products of bfloat16."""
    if device != "cpu":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return _has("avx512_bf16", "amx_bf16")


def multiplies_int8(device: str) -> bool:
    """Whether the processor has instructions for products of 8-bit integers."""
    return device == "cpu" and _has("avx512_vnni", "avx_vnni", "amx_int8")


def _has(*any_of: str) -> bool:
    found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(found.get(name) for name in any_of)


FAST: dict[str, Callable[[str], bool]] = {"bf16": multiplies_bf16, "int8": multiplies_int8}


def _by_depth(config: PretrainConfig) -> PretrainConfig:
    if config.depth < 0 or config.model:
        raise UsageError("depth is for a model of one's own", where=f"depth={config.depth}", cure="a number from 1 on")
    shaped = dataclasses.replace(
        config, layers=config.depth, dim=WIDTH * config.depth, heads=config.depth, kv_heads=0, hidden=0
    )
    tokens = TOKENS_PER_PARAMETER * shaped.architecture(config.vocab_size).parameters
    batch = 2 ** round(math.log2(BATCH * math.sqrt(tokens / BATCH_TOKENS)))
    batch = max(batch, BATCH, config.seq_len)
    steps = config.steps or (0 if config.minutes else math.ceil(tokens / batch))
    return dataclasses.replace(shaped, batch_tokens=batch, steps=steps)


def token_flops(arch: Architecture, seq_len: int) -> float:
    """Floating-point operations that a token costs, forward and backward.

    Six for each weight that is multiplied (a tied embedding is, as the head), and those of attention's two products.
    """
    table = 0 if arch.tied else arch.vocab_size * arch.dim
    seen = seq_len / (2 if arch.kind == "decoder" else 1)
    layers = arch.layers + arch.decoder_layers
    return 6.0 * (arch.parameters - table) + 12.0 * layers * arch.heads * arch.head_dim * seen


def peak_flops(device: str, precision: str) -> float:
    """Operations a second of a matrix product of 1,024 (on a GPU 8,192) rows and columns here: the best of five."""
    size = 1024 if device == "cpu" else 8192
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, best = torch.ones(size, size, dtype=kind, device=device), 0.0
    for _ in range(5):
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best
