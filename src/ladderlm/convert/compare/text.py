"""Do two forms of a model read and end text alike: tokenizer, special tokens, template."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence

from ladderlm import events
from ladderlm.convert.compare.verdict import Check, failed, passed, skipped
from ladderlm.errors import LadderError
from ladderlm.models.bounded import read_json
from ladderlm.models.folder import ModelFiles
from ladderlm.text.conversations import CONVERSATIONS
from ladderlm.text.render import render
from ladderlm.text.tokenizer import Tokenizer

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "  Leading, trailing and   repeated spaces  ",
    "Lines\nand\n\nblank lines\r\n\tand tabs\n",
    "def f(x):\n    return {'a': x ** 2, \"b\": [1, 2.5e-3]}  # code",
    "Numbers: 7, 42, 1234, 3.14159, 2026-11-21, 1,000,000",
    "don't we'll I'm they've CAN'T O'Neill",
    "Grüße aus Köln, où êtes-vous? Ελληνικά, русский язык, हिन्दी",
    "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3002\u4e2d\u6587\u53e5\u5b50 \ud55c\uad6d\uc5b4 \u0627\u0644\u0639\u0631",
    "\U0001f600\U0001f469\u200d\U0001f469\u200d\U0001f467 e\u0301 \ufb01 \u2028 \ufeff \x00 \x7f",
    "https://example.org/a?b=c&d=%20#e user@example.org C:\\path\\to",
    "<|im_end|> </s> <s> [INST] <|endoftext|> <eos> spelled in text",
)
"""Texts that tell vocabularies, cuts and normalisers apart."""
_PADDING = re.compile(r"\[PAD\d+\]")  # GGUF names every row of the embedding, used or not
AGAIN = "convert it again, from the folder that holds the right tokenizer"


def tokenizers(a: Tokenizer, b: Tokenizer) -> Check:
    """The same ids for the same text, the same text for the same ids."""
    name = "tokenizer"
    for text in TEXTS:
        ours, theirs = a.encode(text), b.encode(text)
        if ours != theirs:
            at = first_difference(ours, theirs)
            words = f"{text[:40]!r} becomes other tokens, from token {at + 1} on: {shown(a, ours, at)} in A"
            return failed(name, f"{words}, {shown(b, theirs, at)} in B", AGAIN)
    common, more = sorted((a.vocab_size, b.vocab_size))
    larger = a if a.vocab_size == more else b
    if not all(_PADDING.fullmatch(larger.token_text(i)) for i in range(common, more)):
        return failed(name, f"{a.vocab_size:,} tokens in A, {b.vocab_size:,} in B", AGAIN)
    for id in range(common):
        if a.token_bytes(id) != b.token_bytes(id):
            return failed(name, f"token {id} is {a.token_text(id)!r} in A, {b.token_text(id)!r} in B", AGAIN)
    if a.control != b.control:
        odd = sorted({*a.control.items()} ^ {*b.control.items()})[0]
        where = "A" if odd in a.control.items() else "B"
        words = f"only in {where} is {odd[0]!r} a control token with id {odd[1]}, which text cannot spell"
        return failed(name, words, AGAIN)
    return passed(name, f"{len(TEXTS)} texts become the same ids; all {common:,} tokens spell the same")


def specials(files_a: ModelFiles, files_b: ModelFiles) -> Check:
    """How a document begins and an answer ends."""
    name = "beginning and end"
    cure = "correct bos_token, eos_token and eos_token_id in B, or convert it again"
    a, b = files_a.tokenizer, files_b.tokenizer
    silent = [_names_no_end(files) for files in (files_a, files_b)]
    if silent[0] != silent[1]:
        does, silence, of = ("A", "B", a) if silent[1] else ("B", "A", b)
        words = f"{silence} names no end-of-text token (eos_token_id in generation_config.json or config.json), {does} "
        return failed(name, words + f"{_token(of, of.eos_id)}: in transformers or vLLM its answers would run on", cure)
    facts: tuple[tuple[str, Callable[[Tokenizer], int | None]], ...] = (
        ("the end-of-text token", lambda t: t.eos_id),
        ("the beginning-of-text token", lambda t: t.bos_id),
        ("the token before a document", lambda t: t.document_start_id),
    )
    for what, id_of in facts:
        if id_of(a) != id_of(b):
            words = f"{what} is {_token(a, id_of(a))} in A, {_token(b, id_of(b))} in B"
            if what.startswith("the end"):
                words += ": answers would run on, or stop early"
            return failed(name, words, cure)
    if a.add_bos != b.add_bos:
        does, not_ = ("A", "B") if a.add_bos else ("B", "A")
        return failed(name, f"{does} puts {_token(a, a.bos_id)} before text, {not_} does not", cure)
    if set(a.stop_ids) != set(b.stop_ids):
        odd = sorted({*a.stop_ids} ^ {*b.stop_ids})[0]
        where = "A" if odd in a.stop_ids else "B"
        return failed(name, f"only {where} ends an answer at {_token(a, odd)}: the other would run on", cure)
    ends = ", ".join(_token(a, i) for i in a.stop_ids) or "nothing"
    return passed(name, f"a document begins with {_token(a, a.document_start_id)}; an answer ends with {ends}")


def _names_no_end(files: ModelFiles) -> bool:
    """Whether a folder leaves it to its reader to guess which token ends an answer: not all do."""
    for name in ("generation_config.json", "config.json"):
        if files.path.is_dir() and (files.path / name).is_file():
            found = read_json(files.path / name)
            return isinstance(found, dict) and found.get("eos_token_id") in (None, [])
    return False


def templates(a: ModelFiles, b: ModelFiles) -> Check:
    """Conversations become the same ids."""
    name = "template"
    if a.template is None and b.template is None:
        return skipped(name, "neither has a chat template")
    if a.template is None or b.template is None:
        which = "A" if a.template is None else "B"
        cure = "convert it again, or put the template into tokenizer_config.json"
        return failed(name, f"{which} has no chat template: chats with it would be raw text", cure)
    refused = 0
    for label, conversation, prompt in events.track(CONVERSATIONS, "verify template", unit="conversations"):
        rows = []
        for files in (a, b):
            try:
                row = render(conversation, files.tokenizer, files.template, add_generation_prompt=prompt)
                rows.append((row.ids, row.text))
            except LadderError as error:
                rows.append(([], str(error)))
        (ours, said), (theirs, answered) = rows
        if ours != theirs:
            return _differ(name, label, a.tokenizer, b.tokenizer, ours, theirs, said, answered)
        refused += not ours
    count = len(CONVERSATIONS)
    words = f"{count - refused} of {count} conversations become the same ids"
    words += f"; both refuse the other {refused}" if refused else ""
    return passed(name, words + ("" if a.template.source == b.template.source else " (the templates' texts differ)"))


def _differ(
    name: str, label: str, a: Tokenizer, b: Tokenizer, ours: list[int], theirs: list[int], said: str, answered: str
) -> Check:
    cure = "copy chat_template from A to B's tokenizer_config.json, or convert it again"
    if not ours or not theirs:
        which, why = ("A", said) if not ours else ("B", answered)
        return failed(name, f"only {which} refuses the conversation {label!r}: {why}", cure)
    at = first_difference(ours, theirs)
    words = f"the conversation {label!r} differs from token {at + 1} on: {shown(a, ours, at)} in A"
    return failed(name, f"{words}, {shown(b, theirs, at)} in B", cure)


def first_difference(a: Sequence[object], b: Sequence[object]) -> int:
    """Where two sequences that are not equal part."""
    pairs = enumerate(itertools.zip_longest(a, b, fillvalue=None))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def shown(tokenizer: Tokenizer, ids: Sequence[int], at: int) -> str:
    """A few tokens from `at` on."""
    if at >= len(ids):
        return "nothing more"
    return " ".join(f"{tokenizer.token_text(i)!r}" for i in ids[at : at + 3]) + f" (id {ids[at]})"


def _token(tokenizer: Tokenizer, id: int | None) -> str:
    return "none" if id is None else f"{tokenizer.token_text(id)!r} (id {id})"
