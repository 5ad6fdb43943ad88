"""Rung three in five lines: a small language model from your own text."""

import sys

import ladderlm

data, out, steps = sys.argv[1:]
config = ladderlm.PretrainConfig(data=data, out=out, steps=int(steps), vocab_size=512, replace=True)
result = ladderlm.pretrain(config)
print(result.model, dict(result.scores))
