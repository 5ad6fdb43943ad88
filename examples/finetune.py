"""Rung two in five lines: tune an adapter on records, and see whether it helped."""

import sys

import ladderlm

config = ladderlm.FinetuneConfig(data=sys.argv[1], out=sys.argv[2], steps=int(sys.argv[3]), replace=True)
result = ladderlm.finetune(config)
print(result.model, dict(result.scores))
