"""Decode with speculation over decode without: requests to edit or summarise a text, and free chat.

The default model on two engines, one that guesses and one that does not, which answer each request one after the
other, in turns first. What they write must be the same. Every round starts with an engine that has seen nothing. A
request's gain is the median of its rounds, by wall and by CPU seconds between the first token and the last.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from bench.engine import THREADS
from ladderlm import engine
from ladderlm.engine.engine import Engine
from ladderlm.models import open_model
from ladderlm.models.catalogue import DEFAULT_MODEL
from ladderlm.text.render import render
from ladderlm.types import Conversation, Sampling

TOKENS = 128
BRIDGE = (
    "The city council of Marlow met on Tuesday to discuss the new bridge. Anna Petrov, who leads the planning office, "
    "said that the old bridge was built in 1931 and can no longer carry heavy lorries. The new bridge will cost 14 "
    "million and open in three years. Several shop owners complained that the closed road would keep customers away. "
    "The council promised a temporary footbridge and free parking near the market until the work is done."
)
GARDEN = (
    "Water the tomatoes early in the morning, before the sun is high. Cut the lower leaves when the plants are as tall "
    "as your knee, and tie the stems to a stick with soft string. Feed them once a week with compost tea. When the "
    "first fruits turn orange, water less, so that they taste sweeter, and pick them before the first cold night."
)
LETTER = (
    "Dear Mr Olsen, thank you for youre letter of the third of May. We are sory to hear that the lamp arived broken. "
    "We have send a new one today, and it should reach you on Friday. You do not need to send the old lamp back. "
    "Please acept a voucher of ten euros for your next order. With kind regards, Maria Lind"
)
EDITS = (
    f"Copy the following text and correct its mistakes. Text: {BRIDGE}",
    f"Repeat this text exactly, but replace Marlow with Denham: {BRIDGE}",
    f"Summarise: {BRIDGE}",
    f"Correct the spelling of this text and change nothing else: {GARDEN}",
    f"Summarise in the words of the text: {GARDEN}",
    f"Correct the spelling mistakes in this letter: {LETTER}",
    f"Repeat this letter exactly, but write Mrs Berg instead of Mr Olsen: {LETTER}",
    f"Copy this text and leave out its last sentence: {GARDEN}",
)
CHATS = (
    "What is the capital of France and why is it famous?", "Tell me a short story about a fox.",
    "How do I boil an egg?", "Why is the sky blue?", "Write a poem about rain.", "What should I cook for six friends?",
    "Explain how a bicycle stays upright.", "Give me advice for my first day at a new job.",
)  # fmt: skip


def decode(model: Engine, ids: list[int], sampling: Sampling) -> tuple[list[int], float, float]:
    """The answer, and wall and CPU seconds from its first token to its last."""
    answer: list[int] = []
    began = 0.0, 0.0
    for delta in model.generate(ids, sampling):
        if delta.tokens and not answer:
            began = time.perf_counter(), time.process_time()
        answer += delta.ids
        if delta.tokens:
            wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    return answer, wall, cpu


def rounds(prompts: list[list[int]], count: int, temperature: float) -> list[tuple[float, float]]:
    """For each prompt the median gain, by wall and by CPU seconds."""
    files = open_model(DEFAULT_MODEL)
    gains: list[list[tuple[float, float]]] = [[] for _ in prompts]
    with engine.load(files, threads=int(THREADS), speculate=False) as plain:
        for number in range(count):
            with engine.load(files, threads=int(THREADS)) as guessing:
                for i, ids in enumerate(prompts):
                    sampling = Sampling(temperature=temperature, seed=number, max_tokens=TOKENS)
                    order = (plain, guessing) if (i + number) % 2 else (guessing, plain)
                    one, other = (decode(model, ids, sampling) for model in order)
                    (answer, wall, cpu), found = (one, other) if order[0] is plain else (other, one)
                    if found[0] != answer:
                        raise AssertionError("speculation changed an answer")
                    if len(answer) >= 32:
                        gains[i].append((wall / found[1], cpu / found[2]))
    return [(statistics.median(w for w, _ in g), statistics.median(c for _, c in g)) for g in gains if g]


def measure(minute: bool) -> dict[str, Any]:
    files = open_model(DEFAULT_MODEL)
    edits, chats = (
        [render(Conversation.of(text), files.tokenizer, files.template).ids for text in texts]
        for texts in (EDITS[:3] if minute else EDITS, CHATS[:3] if minute else CHATS)
    )
    edited = rounds(edits, 1 if minute else 5, 0.0)
    chatted = rounds(chats, 2 if minute else 9, 0.7)
    edit, chat = (statistics.median(wall for wall, _ in gains) for gains in (edited, chatted))
    result = {
        "edit_gain": round(edit, 3), "edit_gain_cpu": round(statistics.median(c for _, c in edited), 3),
        "chat_gain": round(chat, 3), "chat_gain_cpu": round(statistics.median(c for _, c in chatted), 3),
        "chat_gain_worst": round(min(w for w, _ in chatted), 3),
        "chat_gain_worst_cpu": round(min(c for _, c in chatted), 3),
        "edits": [[round(x, 2) for x in g] for g in edited], "chats": [[round(x, 2) for x in g] for g in chatted],
    }  # fmt: skip
    bars = {"edits and summaries: at least 1.5 x decode": edit >= 1.5}
    if not minute:  # two rounds are too few for a bar of 3 %
        bars["free chat: at least 0.97 x, each of them"] = min(w for w, _ in chatted) >= 0.97
    return {**result, "bars": bars}
