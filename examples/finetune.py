"""Rung two in five lines: tune an adapter on records, and see whether it helped."""

import sys

import ladderlm

data, out, steps = sys.argv[1:]
config = ladderlm.FinetuneConfig(data=data, out=out, steps=int(steps), replace=True)
result = ladderlm.finetune(config)
print(result.model, dict(result.scores))
