"""Rung one: look at next-token tables, and classify by label likelihood."""

from __future__ import annotations

import math
from typing import Any

from ladderlm import talk
from ladderlm.types import Conversation

PROMPTS = ("Listen to your", "Don't listen to your")
WORDS = ("heart", "body", "mind", "parents", "doctor", "inner voice")
# Our own sentences, so that nothing needs a download: does a small model know praise from complaint?
REVIEWS = (
    ("The soup was warm, rich and exactly what I needed.", "positive"),
    ("I waited an hour and the food arrived cold.", "negative"),
    ("A clever story with characters you come to love.", "positive"),
    ("The battery dies before lunch and nobody answers the phone.", "negative"),
    ("My daughter laughed from the first page to the last.", "positive"),
    ("The room smelled of smoke and the bed was broken.", "negative"),
    ("Setting it up took two minutes and it just works.", "positive"),
    ("What a dull, endless, pointless film.", "negative"),
    ("The staff remembered our names and made us feel at home.", "positive"),
    ("It fell apart the first time I washed it.", "negative"),
    ("Best concert I have been to in years.", "positive"),
    ("They charged me twice and refused a refund.", "negative"),
)
QUESTION = 'Review: "{text}"\nIs this review positive or negative? Answer with one word.'


def run(model: str) -> dict[str, Any]:
    """Next-token tables of the two prompts, whole-word probabilities, and the classified reviews."""
    chat = talk.open_chat(model)
    tables = {}
    for prompt in PROMPTS:
        words = chat.word_sums(prompt, WORDS)
        tables[prompt] = {
            "tokens": [{"text": c.text, "probability": math.exp(c.logprob)} for c in chat.next(prompt, 8)],
            "words": [{"text": w, "probability": p} for w, p in sorted(words.items(), key=lambda i: -i[1])],
        }
    labels = ("positive", "negative")
    rows = []
    for text, label in REVIEWS:
        scores = chat.rank(Conversation.of(QUESTION.format(text=text)), labels)
        total = math.log(sum(math.exp(s - max(scores)) for s in scores)) + max(scores)
        best = max(range(len(labels)), key=scores.__getitem__)
        rows.append(
            {"text": text, "label": label, "answer": labels[best], "probability": math.exp(scores[best] - total)}
        )
    right = sum(row["label"] == row["answer"] for row in rows)
    return {"tables": tables, "reviews": rows, "right": right, "of": len(rows)}
