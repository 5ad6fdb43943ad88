"""Rung three in five lines: a small language model from your own text."""

import sys

import ladderlm

config = ladderlm.PretrainConfig(data=sys.argv[1], out=sys.argv[2], steps=int(sys.argv[3]), vocab_size=512, replace=True)
result = ladderlm.pretrain(config)
print(result.model, dict(result.scores))
