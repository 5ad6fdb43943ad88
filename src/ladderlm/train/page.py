"""The page that every run ends with: the model is measured as it comes, and once more when it has learnt.

A training command builds a `Page` before it trains and asks it for the outcome after:

    page = Page(model, files, held, config.seed)
    ...
    outcome = page.after(model, out)

`held` measures the task itself. What a decoder should have kept, plain English and the small set of general knowledge,
is measured here, the same for every run, and so are a few prompts that are the same everywhere.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ladderlm.data.tasks import forgetting_probe, general_texts
from ladderlm.errors import LadderError
from ladderlm.evals.classify import prompt_ids
from ladderlm.evals.cost import peak_memory_mb
from ladderlm.evals.helped import Scored
from ladderlm.evals.outcome import Measured, Outcome, Sample
from ladderlm.models.folder import ModelFiles
from ladderlm.nn.decoder import Decoder
from ladderlm.nn.search import go_on
from ladderlm.train.corpus import text_nats
from ladderlm.train.examples import Example, example_nats
from ladderlm.types import Conversation

# Asked of every decoder, so that the models of a chain stand side by side.
PROMPTS = ("What is the capital of France?", "Write one sentence about the sea.")
ANSWER_TOKENS = 32
BUDGET = 2048  # tokens in a forward pass


class Held(Protocol):
    """A task's own held-out side. The first figure of `measure` decides whether the run helped."""

    def measure(self, model: Any) -> Sequence[Scored]: ...

    def samples(self, model: Any) -> Sequence[Sample]: ...


class Page:
    """Measures before and after. Within `bare` the model is what the run began with (a tuned prompt is off)."""

    def __init__(
        self, model: Any, files: ModelFiles, held: Held, seed: int = 0,
        bare: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:  # fmt: skip
        self._files, self._held, self._seed = files, held, seed
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        with bare():
            self._before = self._measure(model)

    def after(self, model: Any, out: str, **cost: float) -> Outcome:
        """The outcome of a run whose result is called `out`; `cost` adds figures, such as money=0.3."""
        after = self._measure(model)
        told = {
            "wall_seconds": time.perf_counter() - self._wall,
            "processor_seconds": time.process_time() - self._cpu,
            "peak_memory_MB": peak_memory_mb(),
            "weights_trained": float(sum(p.numel() for p in model.parameters() if p.requires_grad)),
            **cost,
        }
        return Outcome(out, self._files.name, made_by(self._files), self._before, after, told, self._seed)

    def _measure(self, model: Any) -> Measured:
        training = model.training
        model.eval()
        try:
            task, samples = tuple(self._held.measure(model)), tuple(self._held.samples(model))
            if not isinstance(model, Decoder):
                return Measured(task, (), samples)
            said = tuple(Sample(p, "", answer(model, self._files, Conversation.of(p))) for p in PROMPTS)
            return Measured(task, tuple(kept(model, self._files)), (*samples, *said))
        finally:
            model.train(training)


def kept(decoder: Decoder, files: ModelFiles) -> list[Scored]:
    """What a model should not lose: bits per byte of general texts, and how many common sentences it ends rightly."""
    records = general_texts()
    start = files.tokenizer.document_start_id
    ids = files.tokenizer.encode_batch([r["text"] for r in records])
    first = start if start is not None else ids[0][0]
    bits = [n / math.log(2) for n in text_nats(decoder, ids, first)]
    sizes = tuple(float(len(r["text"].encode())) for r in records)
    return [
        Scored("bits per byte of general texts", tuple(r.id for r in records), tuple(bits), sizes, False),
        _knowledge(decoder, files, [] if start is None else [start]),
    ]


def _knowledge(decoder: Decoder, files: ModelFiles, start: list[int]) -> Scored:
    """evals.classify.choose on the model in training: the likeliest ending wins."""
    records, examples, owners = forgetting_probe(), list[Example](), list[tuple[int, int]]()
    for number, record in enumerate(records):
        prompt = [*start, *files.tokenizer.encode(record["prompt"])]
        for choice, text in enumerate(record["choices"]):
            ids = files.tokenizer.encode(text)
            examples.append(Example([*prompt, *ids], [False] * len(prompt) + [True] * len(ids)))
            owners.append((number, choice))
    best: dict[int, tuple[float, int]] = {}
    for (number, choice), nats in zip(owners, example_nats(decoder, examples, BUDGET, "forgetting"), strict=True):
        best[number] = min(best.get(number, (math.inf, 0)), (nats, choice))
    right = [float(r["choices"][best[n][1]] == r["answer"]) for n, r in enumerate(records)]
    return Scored("accuracy on general knowledge", tuple(r.id for r in records), tuple(right))


def answer(decoder: Decoder, files: ModelFiles, conversation: Conversation, most: int = ANSWER_TOKENS) -> str:
    """What a decoder in training says, greedily; "" where the prompt does not fit."""
    try:
        ids = prompt_ids(files.tokenizer, files.template, conversation)
        said = go_on(decoder, ids, max_tokens=most, stop_ids=files.tokenizer.stop_ids)
    except LadderError:
        return ""
    return files.tokenizer.decode(said).strip()


def made_by(files: ModelFiles) -> str:
    """The run that made a model, from its lineage; "" where it came from elsewhere."""
    lineage = files.lineage.get("adapter") or files.lineage
    return str(lineage.get("run") or "")
