"""One process of a pretraining that torchrun starts: `one_of_several.py SETTINGS-JSON [STOP-AFTER]`.

With STOP-AFTER the last process gets a SIGTERM in that forward pass: all must stop after the same step.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import torch

from ladderlm.errors import Cancelled
from ladderlm.train import loop, pretrain

torch.set_num_threads(1)
stop = int(sys.argv[2]) if len(sys.argv) > 2 else 0
real, calls = loop._Loss.forward, iter(range(1, 10**6))


def forward(self, batch):  # type: ignore[no-untyped-def]
    if next(calls) == stop and os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1):
        os.kill(os.getpid(), signal.SIGTERM)
    return real(self, batch)


loop._Loss.forward = forward  # type: ignore[method-assign]
try:
    pretrain.run(pretrain.PretrainConfig(**json.loads(sys.argv[1])))
except Cancelled:
    sys.exit(0 if stop else 1)
