"""Streams: what is emitted piece by piece equals what decode says at once, cut at the first stop string."""

import json
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from ladderlm.text.bpe import train_bpe
from ladderlm.text.detokenise import Detokeniser
from ladderlm.text.tokenizer import Tokenizer
from ladderlm.types import Candidate, Token

TOKENIZER = train_bpe(["hello world stop END " * 30], 300)


def run(ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], Detokeniser]:
    machine = Detokeniser(TOKENIZER, stop)
    return [*(machine.feed(Token(i))[0] for i in ids), machine.finish()], machine


def test_characters_come_whole() -> None:
    ids = TOKENIZER.encode("a🤖b")
    pieces, _ = run(ids)
    assert "".join(pieces) == "a🤖b"
    assert pieces[0] == "a"
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


def test_a_cut_character_ends_as_a_replacement_mark() -> None:
    pieces, _ = run(TOKENIZER.encode("🤖")[:-1])
    assert "".join(pieces) == "\N{REPLACEMENT CHARACTER}"


def test_stop_strings_never_show_and_nothing_follows() -> None:
    ids = TOKENIZER.encode("hello EN world END more")
    pieces, machine = run(ids, ("END",))
    assert "".join(pieces) == "hello EN world "
    assert machine.stopped


def test_the_earliest_stop_wins() -> None:
    pieces, _ = run(TOKENIZER.encode("abcdef"), ("def", "bc"))
    assert "".join(pieces) == "a"


def test_tokens_get_text_and_bytes() -> None:
    (id,) = TOKENIZER.encode("hello")[:1]
    text, token = Detokeniser(TOKENIZER).feed(Token(id, -0.5, (Candidate(id, -0.5),)))
    assert token.text == token.top[0].text == text
    assert bytes(token.data) == text.encode()
    assert token.logprob == -0.5


def test_control_tokens_have_no_text_in_the_stream() -> None:
    text, token = Detokeniser(TOKENIZER).feed(Token(2))
    assert text == ""
    assert token.text == "<|im_end|>"


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, 299), max_size=60),
    st.lists(st.text("abENDo 🤖é", min_size=1, max_size=4), max_size=3),
)
def test_streaming_equals_decoding(ids: list[int], stop: list[str]) -> None:
    pieces, machine = run(ids, tuple(stop))
    whole = TOKENIZER.decode(ids)
    cut = min((at for s in stop if (at := whole.find(s)) >= 0), default=len(whole))
    assert "".join(pieces) == whole[:cut]
    assert machine.stopped == (cut < len(whole))
    shown = ""
    for piece in pieces:  # at no time was something shown that a stop string would have taken back
        shown += piece
        assert whole[:cut].startswith(shown)


def test_a_first_space_of_sentencepiece_is_left_out_where_a_text_begins() -> None:
    vocabulary = {"<unk>": 0, "▁": 1, "H": 2, "i": 3, "▁H": 4, "▁Hi": 5}
    spec = {
        "version": "1.0", "added_tokens": [], "normalizer": {"type": "Prepend", "prepend": "▁"},
        "pre_tokenizer": None, "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [["▁", "H"], ["▁H", "i"]], "unk_token": "<unk>"},
    }  # fmt: skip
    tokenizer = Tokenizer.from_json(json.dumps(spec))
    assert tokenizer.decode([5, 5]) == "Hi Hi"
    for begins, expected in ((True, "Hi Hi"), (False, " Hi Hi")):
        reader = Detokeniser(tokenizer, begins=begins)
        assert "".join(reader.feed(Token(i, 0.0))[0] for i in (5, 5)) + reader.finish() == expected


def test_ten_thousand_stop_strings_cost_little_more_than_ten() -> None:
    ids = TOKENIZER.encode("hello world, wonderful world " * 40 + "the END 9999.")
    many = tuple(
        f"{first}{word} {i}."
        for i in range(2500)
        for first, word in zip("htwE", ("ello", "he", "or", "ND"), strict=True)
    )
    assert len(many) == 10_000
    seconds = {}
    for stop in (("nowhere",), many):
        machine = Detokeniser(TOKENIZER, stop)
        start = time.process_time()
        shown = "".join(machine.feed(Token(i))[0] for i in ids) + machine.finish()
        seconds[len(stop)] = time.process_time() - start
    assert seconds[10_000] < 10 * seconds[1] + 0.05
    assert shown.endswith("the END 9999.")  # 2,499 is the last of them
    pieces, machine = run(TOKENIZER.encode("hello END 2499. more"), many)
    assert "".join(pieces) == "hello "
    assert machine.stopped
