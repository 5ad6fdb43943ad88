"""Rejection sampling: several answers to every prompt, and the best of each is what is learnt (Touvron et al. 2023).

All are drawn before the first step, by the model as it was, and kept in the run's folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ladderlm import events, store
from ladderlm.errors import UsageError
from ladderlm.models.folder import ModelFiles
from ladderlm.nn.loss import Batch, mean_nats
from ladderlm.train.aligning import loop_config, panels
from ladderlm.train.checks import Checks
from ladderlm.train.distributed import World
from ladderlm.train.examples import Example, Packing, sorted_batch
from ladderlm.train.loop import fit
from ladderlm.train.page import Page
from ladderlm.train.result import Result, check_finished, conclude, describe_data, destination
from ladderlm.train.rollout import Answer, Roller
from ladderlm.train.rounds import HeldPrompts, Setting, compare, setting
from ladderlm.train.settings import AlignConfig
from ladderlm.train.tuning import prepare, save_tuned
from ladderlm.types import Run

TOGETHER = 32  # prompts of a draw, for the progress shown


def best_answers(answers: Sequence[Answer], *, checked: bool) -> list[Answer]:
    """The best answer to each prompt: of those that came to an end, and of equals the shortest.

    `checked`: rewards are shares of checks, and an answer that passes none is not learnt.
    """
    best: dict[int, Answer] = {}
    for answer in answers:
        if not answer.stopped or len(answer.ids) < 2 or (checked and answer.reward <= 0):
            continue
        held = best.get(answer.prompt)
        if held is None or (answer.reward, -len(answer.ids)) > (held.reward, -len(held.ids)):
            best[answer.prompt] = answer
    return [best[prompt] for prompt in sorted(best)]


def draw(config: AlignConfig, run: Run, roller: Roller, given: Setting) -> list[Answer]:
    """The best answers of this run: drawn, or read where it has drawn them already."""
    path = run.path / "best.json"
    if path.exists():
        return [Answer.from_dict(a) for a in store.read_json(path)["answers"]]
    answers: list[Answer] = []
    starts = range(0, len(given.train), TOGETHER)
    for start in events.track(starts, "sample", unit="batches"):
        prompts = given.train[start : start + TOGETHER]
        drawn = roller.sample(prompts, config.samples, config.seed, start)
        rewards = given.reward([prompts[a.prompt].record for a in drawn], [a.text for a in drawn])
        answers += [
            dataclasses.replace(a, prompt=a.prompt + start, reward=r) for a, r in zip(drawn, rewards, strict=True)
        ]
    best = best_answers(answers, checked=isinstance(given.reward, Checks))
    mean = sum(a.reward for a in answers) / len(answers)
    events.emit("align", f"{len(answers):,} answers of mean reward {mean:.3f}; best of {len(best):,} prompts kept")
    store.write_json(path, {"format": 1, "mean": mean, "answers": [a.to_dict() for a in best]})
    return best


def learn(config: AlignConfig, run: Run, files: ModelFiles) -> Result:
    """Learns the best of its own answers; `run` and `files` are the run begun and the model to align."""
    given = setting(config, files)
    decoder, optimiser = prepare(config, files, lora_lr=5e-4, full_lr=2e-5)
    with Roller(decoder, files, config.max_tokens, config.threads) as roller:
        held = HeldPrompts(roller, given)
        told = Page(decoder, files, held, config.seed)
        best = draw(config, run, roller, given)
        if not best:
            raise UsageError("no answer is good enough to learn from", where=config.data,
                             cure="more --samples, easier prompts, or a better model")  # fmt: skip
        examples = []
        for answer in best:
            ids = given.train[answer.prompt].ids
            examples.append(Example([*ids, *answer.ids], [False] * len(ids) + [True] * len(answer.ids)))
        packing = Packing([len(e.ids) for e in examples], config.batch_tokens, config.seed)

        def batches(i: int) -> Batch:
            return sorted_batch([examples[k] for k in packing(i)])

        loop = loop_config(config, packing.batches_in(config.epochs))
        fitted = fit(
            decoder, mean_nats, batches, optimiser, run, loop, stage="align", world=World(device=config.device)
        )
        check_finished(run, fitted, "align")
        outcome = told.after(decoder, destination(config.out).name)
    scores, summary = compare(held, outcome, given, config.seed)
    scores |= {"prompts": len(given.train), "prompts_kept": len(best)}
    path = save_tuned(config, files, decoder, describe_data(config.data, given.records), run.id, scores)
    title = f"Alignment of {files.name} by the best of {config.samples}"
    return conclude(run, title, summary, path, fitted, scores, panels(run), outcome)
