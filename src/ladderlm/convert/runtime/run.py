#!/usr/bin/env python3
"""Runs the language model in model.safetensors beside this file. Needs Python 3.10 and numpy, nothing else.

    python run.py "Once upon a time"           goes on with a text, greedily
    python run.py --chat                       talks, where the model was tuned to
    python run.py --next 10 "The capital of"   what may come next, and how probably
    cat letter.txt | python run.py --tokens 64 --temperature 0.8 --top-p 0.9 --seed 1

model.safetensors holds the weights by their names in Hugging Face's Llama and, as texts among its metadata, `config`
(config.json), `tokenizer` (tokenizer.json), `chat_template` (Jinja) and `runtime` (what else is needed here).
Arithmetic is float32. Letters: T new tokens, S all so far, D model, H heads, G key heads, K head dim, V vocabulary.
"""

from __future__ import annotations

import argparse
import codecs
import heapq
import json
import os
import re
import sys
import time
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # see `times`
try:
    import numpy as np
except ImportError:
    sys.exit("run.py: numpy is not installed: python -m pip install numpy")

Array = np.ndarray[Any, Any]
CORES = min(os.cpu_count() or 1, 8)
POOL = ThreadPoolExecutor(CORES)
FORMAT = 1
CHUNK = 128  # prompt tokens read at a time
DTYPES = {"F32": np.float32, "F16": np.float16, "I8": np.int8}
# Around what people wrote; where the model began to speak; around the form of a date.
MARK, BREAK, DATE = "\U0010fffc", "\U0010fffb", "\U0010fffa"
BLANK = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
STANDS = dict(zip(["Lu", "Ll", "Lt", "Lm", "Lo", "M", "N", "P", "S", "Z", "C"], "Ààǅʰª\u0300²¡¢\xa0\x80", strict=True))


class Problem(Exception):
    """What is told in one line."""


def read(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """The metadata and the tensors, as stored, of a parameter file. Problem when it is not whole."""
    damaged = Problem(f"{path.name} is damaged or was not written with this run.py: copy both files again")
    tensors: dict[str, Array] = {}
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            text = file.read(min(size, os.fstat(file.fileno()).st_size))
            header = json.loads(text)
            meta = header.pop("__metadata__")
            check = zlib.crc32(text.replace(meta["crc32"].encode(), b"0" * 8, 1))
            for name, entry in header.items():
                tensors[name] = np.empty(entry["shape"], DTYPES[entry["dtype"]])
                file.readinto(tensors[name].reshape(-1).data.cast("B"))
                check = zlib.crc32(tensors[name].data, check)
            runtime = json.loads(meta["runtime"])
            if f"{check:08x}" != meta["crc32"] or file.read(1) or runtime["format"] != FORMAT:
                raise damaged
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damaged from None
    except (OSError, MemoryError) as error:
        raise Problem(f"cannot read the parameters: {error}") from None
    return {**meta, **runtime}, tensors


def times(x_TD: Array, w_FD: Array) -> Array:
    """x W^T. Large products are shared out among threads of ours, which wait better than those of BLAS."""
    if len(x_TD) * w_FD.size < 2**22:
        return x_TD @ w_FD.T
    return np.concatenate(list(POOL.map(lambda rows: x_TD @ rows.T, np.array_split(w_FD, CORES))), -1)


def softmax(x: Array) -> Array:
    """Over the last axis."""
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def activate(kind: str, x: Array) -> Array:
    """SiLU, GELU by tanh, or ReLU."""
    if kind == "silu":
        return x / (1 + np.exp(-x))
    return 0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3))) if kind == "gelu_tanh" else np.maximum(x, 0)


def rotate(x_THK: Array, turn: Sequence[Array]) -> Array:
    """Rotary positions: coordinate j is turned with the one half the rotated width further."""
    (cos, sin), half = turn, turn[0].shape[-1]
    a, b, rest = x_THK[..., :half], x_THK[..., half : 2 * half], x_THK[..., 2 * half :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1)


class Decoder:
    """A decoder-only Transformer that keeps the keys and values of what it has read."""

    def __init__(self, header: dict[str, Any], tensors: dict[str, Array]) -> None:
        self.arch, self.rope, self.context = header["arch"], header["rope"], int(header["context"])
        self.tensors = tensors
        for name in [n for n in tensors if not n.endswith(".scales")]:
            tensors[name] = tensors[name].astype(np.float32, copy=False)
            if name + ".scales" in tensors:  # each is for a group of neighbours in a row
                scales = tensors.pop(name + ".scales")
                tensors[name].reshape(*scales.shape, -1)[...] *= scales[..., None]
            if self.arch["norm_offset"] and name.endswith("norm.weight"):
                tensors[name] += 1
        self.head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
        empty = np.empty((2, self.arch["kv_heads"], 0, self.arch["head_dim"]), np.float32)
        self.kept = [empty] * self.arch["layers"]  # keys and values (2, G, room, K)
        self.ids: list[int] = []  # what was read

    def logits(self, ids: list[int], every: bool = False) -> Array:
        """Scores (T, V) of what follows `ids`, or each of them. What was read before is not read again."""
        if len(ids) > self.context:
            raise Problem(f"{len(ids)} tokens are too many for a context of {self.context}: shorten the text")
        pairs = zip(ids[:-1], self.ids, strict=False)
        same = 0 if every else sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        del self.ids[same:]
        hidden = [self.read(ids[at : at + CHUNK]) for at in range(same, len(ids), CHUNK)]
        logits_TV = times(np.concatenate(hidden) if every else hidden[-1][-1:], self.head)
        cap = self.arch["logit_cap"]
        return cap * np.tanh(logits_TV / cap) if cap else logits_TV

    def read(self, ids: list[int]) -> Array:
        """What the network makes of the next tokens, after its last norm."""
        places = np.arange(len(self.ids), len(self.ids) + len(ids))
        x_TD = self.tensors["model.embed_tokens.weight"][ids] * np.float32(self.arch["embed_scale"])
        if self.arch["positions"] == "learned":
            x_TD += self.tensors["model.embed_positions.weight"][places + self.arch["position_offset"]]
        turns = {}
        for kind, (angles, scale) in self.rope.items():
            angles_T1K = np.outer(places, angles)[:, None]
            turns[kind] = [(scale * f(angles_T1K)).astype(np.float32) for f in (np.cos, np.sin)]
        for layer in range(self.arch["layers"]):
            name = f"model.layers.{layer}."
            mixed_TD = self.attention(layer, self.norm(name + "input_layernorm", x_TD), turns)
            x_TD = x_TD + self.norm(name + "attention_out_norm", mixed_TD)
            mixed_TD = self.feed_forward(name + "mlp.", self.norm(name + "post_attention_layernorm", x_TD))
            x_TD = x_TD + self.norm(name + "mlp_out_norm", mixed_TD)
        self.ids += ids
        return self.norm("model.norm", x_TD)

    def linear(self, name: str, x_TD: Array) -> Array:
        """x W^T, and the bias where there is one."""
        bias = self.tensors.get(name + ".bias")
        return times(x_TD, self.tensors[name + ".weight"]) + (0 if bias is None else bias)

    def norm(self, name: str, x: Array) -> Array:
        """RMSNorm or LayerNorm over the last axis, where the file has one of this name."""
        if name + ".weight" not in self.tensors:
            return x
        if self.arch["norm"] == "layer":
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + np.float32(self.arch["norm_eps"]))
        return x * self.tensors[name + ".weight"] + self.tensors.get(name + ".bias", np.float32(0))

    def attention(self, layer: int, x_TD: Array, turns: dict[str, list[Array]]) -> Array:
        """Grouped-query attention of the new tokens to all so far, or to those in the layer's window."""
        arch, name, time = self.arch, f"model.layers.{layer}.self_attn.", len(x_TD)
        q, k, v_TD = (self.linear(f"{name}{part}_proj", x_TD) for part in "qkv")
        if arch["qk_norm"] == "all":
            q, k = self.norm(name + "q_norm", q), self.norm(name + "k_norm", k)
        q_THK, k_TGK, v_TGK = (y.reshape(time, -1, arch["head_dim"]) for y in (q, k, v_TD))
        if arch["qk_norm"] in ("head", "heads"):
            q_THK, k_TGK = self.norm(name + "q_norm", q_THK), self.norm(name + "k_norm", k_TGK)
        window = arch["windows"][layer]
        if turns and layer not in arch["unrotated"]:
            turn = turns["local" if window and "local" in turns else "full"]
            q_THK, k_TGK = rotate(q_THK, turn), rotate(k_TGK, turn)
        k_GSK, v_GSK = self.remember(layer, k_TGK, v_TGK)
        groups, seen, width = k_GSK.shape
        q_THK = q_THK * np.float32(arch["attention_scale"] or width**-0.5)
        scores = q_THK.transpose(1, 0, 2).reshape(groups, -1, width) @ k_GSK.transpose(0, 2, 1)
        if arch["attention_cap"]:
            scores = arch["attention_cap"] * np.tanh(scores / arch["attention_cap"])
        scores_HTS = scores.reshape(-1, time, seen)
        if time > 1 or window:
            back_TS = np.arange(seen - time, seen)[:, None] - np.arange(seen)  # how far back a key lies
            scores_HTS = np.where((back_TS < 0) | (back_TS >= (window or seen)), np.float32(-np.inf), scores_HTS)
        mixed_HTK = (softmax(scores_HTS).reshape(groups, -1, seen) @ v_GSK).reshape(-1, time, width)
        return self.linear(name + "o_proj", mixed_HTK.transpose(1, 0, 2).reshape(time, -1))

    def remember(self, layer: int, k_TGK: Array, v_TGK: Array) -> tuple[Array, Array]:
        """All keys and values of a layer (G, S, K), the new ones added."""
        start, end = len(self.ids), len(self.ids) + len(k_TGK)
        if end > (old := self.kept[layer]).shape[2]:
            self.kept[layer] = np.empty((2, old.shape[1], min(2 * end, self.context), old.shape[3]), np.float32)
            self.kept[layer][:, :, :start] = old[:, :, :start]
        kept = self.kept[layer]
        kept[0, :, start:end], kept[1, :, start:end] = k_TGK.transpose(1, 0, 2), v_TGK.transpose(1, 0, 2)
        return kept[0, :, :end], kept[1, :, :end]

    def feed_forward(self, name: str, x_TD: Array) -> Array:
        """down(f(gate x) * up x), or down(f(up x)) without a gate."""
        kind, up = self.arch["activation"], self.linear(name + "up_proj", x_TD)
        mixed = activate(kind, self.linear(name + "gate_proj", x_TD)) * up if self.arch["gated"] else activate(kind, up)
        return self.linear(name + "down_proj", mixed)


def stand(char: str) -> str:
    """What patterns see: as `re` knows no \\p{L}, a character beyond ASCII is one that stands for all of its kind."""
    kind = "Z" if char in BLANK else unicodedata.category(char)
    return char if char < "\x80" or char == "ſ" else STANDS.get(kind) or STANDS[kind[0]]  # (?i:'s) is also 'ſ


def either(names: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the names, the longest first."""
    return re.compile("(" + ("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)") + ")")


class Tokenizer:
    """Byte-pair encoding over bytes (GPT-2 and most since) or over ▁ for spaces (SentencePiece).

    Ids are those of the `tokenizers` library, but text never becomes a control token. `plan`: what tokenizer.json says.
    """

    def __init__(self, file: dict[str, Any], plan: dict[str, Any]) -> None:
        self.plan, model, self.control = plan, file["model"], plan["control"]
        self.names = {i: name for table in (model["vocab"], plan["added"], self.control) for name, i in table.items()}
        self.whole = {*plan["added"].values(), *self.control.values()}  # ids of tokens that are spelled as they are
        self.vocab = vocab = {name: i for name, i in model["vocab"].items() if name not in self.control}
        self.merges: dict[tuple[int, int], tuple[int, int]] = {}
        for rank, pair in enumerate(model["merges"]):
            a, b = pair.split(" ") if isinstance(pair, str) else pair
            if a in vocab and b in vocab and a + b in vocab:
                self.merges[vocab[a], vocab[b]] = rank, vocab[a + b]
        self.cuts = [re.compile(pattern) for pattern in plan["cuts"]]
        self.added, self.spelled = either(plan["added"]), either(self.control)
        self.letters = dict(enumerate(plan["letters"]))  # byte -> what stands for it; none for SentencePiece
        self.bytes = {letter: byte for byte, letter in self.letters.items()}

    def encode(self, text: str, continues: bool = False) -> list[int]:
        """Ids of a text. With `continues` it follows other text: no space is put in front."""
        text, ids, at = text.encode("utf-8", "replace").decode(), list[int](), 0
        for found in self.added.finditer(text):
            ids += [*self.segment(text[at : found.start()], at, continues), self.plan["added"][found[0]]]
            at = found.end()
        return ids + self.segment(text[at:], at, continues)

    def segment(self, text: str, at: int, continues: bool) -> list[int]:
        """Ids of text without added tokens that stands at place `at`."""
        text = unicodedata.normalize("NFC", text) if self.plan["nfc"] else text
        if self.letters:
            return [i for piece in self.pieces(text) for i in self.word(piece)]
        text, bare = text.replace(" ", "▁"), text[:1] not in (" ", "▁", "")
        wanted = {"always": text, "missing": bare, "first": bare and at == 0}.get(self.plan["prefix"])
        return self.merge("▁" + text if wanted and not continues else text)

    def pieces(self, text: str) -> list[str]:
        """What no token reaches over: each pattern cuts what the one before left."""
        kinds, spans = text.translate({ord(c): stand(c) for c in set(text)}), [(0, len(text))]
        for cut in self.cuts:
            finer = []
            for start, end in spans:
                edges = [start, *(edge for found in cut.finditer(kinds, start, end) for edge in found.span()), end]
                finer += [(a, b) for a, b in pairwise(edges) if a < b]
            spans = finer
        return [text[start:end] for start, end in spans]

    def word(self, piece: str) -> list[int]:
        """Ids of a piece, by bytes."""
        letters = piece.encode().decode("latin-1").translate(self.letters)
        return [self.vocab[letters]] if self.plan["whole_words"] and letters in self.vocab else self.merge(letters)

    def merge(self, text: str) -> list[int]:
        """A token for each character, then neighbours merged: the pair of lowest rank first, the leftmost of equals."""
        ids, unknown = list[int](), self.plan["unknown"]
        for char in text:
            if char in self.vocab:
                ids.append(self.vocab[char])
            elif self.plan["fallback"]:
                ids += [self.vocab[f"<0x{b:02X}>"] for b in char.encode()]
            elif unknown is not None and not (self.plan["fuse"] and ids[-1:] == [unknown]):
                ids.append(unknown)
        before, after = list(range(-1, len(ids) - 1)), list(range(1, len(ids) + 1))
        heap = [(*self.merges[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in self.merges]
        heapq.heapify(heap)
        while heap:
            _, made, i = heapq.heappop(heap)
            j = after[i]
            if ids[i] < 0 or j >= len(ids) or self.merges.get((ids[i], ids[j]), (0, -1))[1] != made:
                continue  # one of the two has been merged since
            ids[i], ids[j], after[i] = made, -1, after[j]
            if after[i] < len(ids):
                before[after[i]] = i
            for left in (before[i], i):
                pair = (ids[left], ids[after[left]]) if left >= 0 and after[left] < len(ids) else (-1, -1)
                if pair in self.merges:
                    heapq.heappush(heap, (*self.merges[pair], left))
        return [i for i in ids if i >= 0]

    def data(self, id: int) -> bytes:
        """The bytes of a token."""
        name = self.names.get(id, "")
        if id in self.whole or (self.letters and not self.bytes.keys() >= set(name)):
            return name.encode()
        if self.letters:
            return bytes(self.bytes[c] for c in name)
        byte = re.fullmatch("<0x([0-9A-Fa-f]{2})>", name)
        return bytes([int(byte[1], 16)]) if byte else name.replace("▁", " ").encode()

    def prompt(self, text: str) -> list[int]:
        """Ids of the beginning of a document."""
        return [*self.plan["document_start"], *self.encode(text)]

    def rendered(self, text: str, hidden: dict[int, str]) -> list[int]:
        """Ids of a template's output: its control tokens are real, `hidden` is what single characters stand for."""
        ids, last, fresh, first = list[int](), "", True, True  # the control token before; after one; at the start
        for part in text.split(BREAK):
            parts = [*self.spelled.split(part), ""]  # text, control token, text, ... text
            for piece, control in zip(parts[::2], parts[1::2], strict=True):
                piece = piece.translate(hidden)
                piece = piece.lstrip(BLANK) if last in self.plan["eats_right"] else piece
                piece = piece.rstrip(BLANK) if control in self.plan["eats_left"] else piece
                ids += self.encode(piece, not (first if self.plan["prefix"] == "first" else fresh))
                last, fresh, first = ("", False, False) if piece else (last, fresh, first)
                if control:
                    ids.append(self.control[control])
                    last, fresh, first = control, True, False
        return ids


class Chat:
    """Conversations as the model knows them, by pieces of its template where these are exact, else by jinja2."""

    def __init__(self, header: dict[str, Any], tokenizer: Tokenizer) -> None:
        self.header, self.tokenizer, self.pieces = header, tokenizer, header["chat"]
        if not header.get("chat_template"):
            raise Problem("this model has no chat template: give it a text to go on with")
        if not self.pieces:
            try:
                from jinja2.sandbox import ImmutableSandboxedEnvironment as Sandbox
            except ImportError:
                raise Problem("this model's chat template needs jinja2: python -m pip install jinja2") from None
            jinja = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
            jinja.filters["tojson"] = lambda value, **more: json.dumps(value, ensure_ascii=False, **more)
            jinja.globals.update(raise_exception=self.refuse, strftime_now=time.strftime)
            self.template = jinja.from_string(header["chat_template"])

    @staticmethod
    def refuse(message: str) -> None:
        raise Problem(f"the chat template refuses this conversation: {message}")

    def ids(self, messages: list[dict[str, str]]) -> list[int]:
        """What the model reads before it answers. Control tokens that people spell stay text."""
        hidden = {ord(MARK): ""}
        messages = [{**m, "content": self.cover(m["content"], m["role"], hidden)} for m in messages]
        text = self.render(messages) if self.pieces else self.template.render(self.header["names"], messages=messages)
        return self.tokenizer.rendered(text, hidden)

    def cover(self, text: str, role: str, hidden: dict[int, str]) -> str:
        """`text` with a character in the place of every control token, and marks around it, inside its blanks."""

        def hide(found: re.Match[str]) -> str:
            hidden[code := 0x10F000 + len(hidden)] = found[0]
            return chr(code)

        if self.pieces:
            return MARK + self.tokenizer.spelled.sub(hide, self.said(text, role)) + MARK
        text, front = self.tokenizer.spelled.sub(hide, text), BREAK if role == "assistant" else MARK
        return re.sub(r"\A(\s*)(.*?)(\s*)\Z", rf"\1{front}\2{MARK}\3", text, count=1, flags=re.DOTALL)

    def said(self, text: str, role: str) -> str:
        """What the template takes of a message: perhaps without the reasoning, or the blanks around it."""
        text = re.sub(self.pieces["forget"], "", text) if role == "assistant" else text
        return text.strip() if role in self.pieces["trim"] else text

    def render(self, messages: list[dict[str, str]]) -> str:
        """By pieces: the opening or a system message between two; then turns, each with what comes after it."""
        text = self.pieces["open"]
        for message in messages:
            if message["role"] == "system":
                if not self.pieces["system"]:
                    self.refuse("it knows no system message")
                text = message["content"].join(self.pieces["system"])
            else:
                after = "answer" if message is messages[-1] else message["role"]
                text += message["content"] + self.pieces[after]
        return re.sub(f"{DATE}(.*?){DATE}", lambda found: time.strftime(found[1]), text)


class Writer:
    """Draws tokens after a text; the likeliest ones at temperature 0."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, args: argparse.Namespace) -> None:
        self.decoder, self.tokenizer, self.args = decoder, tokenizer, args
        self.random = np.random.default_rng(args.seed)

    def draw(self, logits_V: Array) -> int:
        """The likeliest token, or one of the likeliest that hold `top_p` of the probability."""
        if self.args.temperature <= 0:
            return int(logits_V.argmax())
        p_V = softmax(logits_V.astype(np.float64) / self.args.temperature)
        order = np.argsort(-p_V, kind="stable")
        order = order[np.cumsum(p_V[order]) - p_V[order] < max(self.args.top_p, 1e-12)]
        return int(self.random.choice(order, p=p_V[order] / p_V[order].sum()))

    def tokens(self, ids: list[int], limit: int) -> Iterator[int]:
        """At most `limit` tokens after `ids`, to the end of the turn or of the context."""
        for _ in range(min(limit, max(1, self.decoder.context - len(ids)))):
            token = self.draw(self.decoder.logits(ids)[-1])
            if token in self.tokenizer.plan["stop"]:
                return
            yield token
            ids = [*ids, token]

    def say(self, ids: list[int]) -> str:
        """Prints what follows `ids` as it comes, and returns it."""
        reader, said = codecs.getincrementaldecoder("utf-8")("replace"), ""
        for token in self.tokens(ids, self.args.tokens):
            if self.tokenizer.names.get(token) not in self.tokenizer.control:
                said += (text := reader.decode(self.tokenizer.data(token)))
                print(text, end="", flush=True)
        print(reader.decode(b"", True), flush=True)
        return said

    def table(self, ids: list[int]) -> None:
        """Prints the likeliest next tokens."""
        p_V = softmax(self.decoder.logits(ids)[-1].astype(np.float64))
        for token in np.argsort(-p_V, kind="stable")[: self.args.next]:
            print(f"{100 * p_V[token]:6.2f} %  {self.tokenizer.data(int(token)).decode('utf-8', 'backslashreplace')!r}")

    def converse(self, chat: Chat) -> None:
        """Answers the prompt, or line after line until an empty one."""
        messages = [{"role": "system", "content": self.args.system}] if self.args.system else []
        mark = "> " if sys.stdin.isatty() else ""
        for text in [" ".join(self.args.prompt)] if self.args.prompt else iter(lambda: input(mark), ""):
            messages.append({"role": "user", "content": text})
            messages.append({"role": "assistant", "content": self.say(chat.ids(messages))})

    def serve(self, header: dict[str, Any]) -> None:
        """For programs. A line of input is a JSON object with `ids`, `text` or `messages`; one of output has the `ids`,
        as `greedy` the `tokens` that follow, as `top` the likeliest [id, logprob] at each position, and `seconds`."""
        for line in sys.stdin:
            asked, began = json.loads(line), time.perf_counter()
            ids = Chat(header, self.tokenizer).ids(asked["messages"]) if "messages" in asked else asked.get("ids")
            told = {"ids": self.tokenizer.prompt(asked["text"]) if ids is None else ids}
            if "top" in asked:
                rows_TV = np.log(softmax(self.decoder.logits(told["ids"], every=True).astype(np.float64)))
                best = np.argsort(-rows_TV, -1, kind="stable")[:, : asked["top"]]
                told["top"] = [[[int(i), row[i]] for i in few] for row, few in zip(rows_TV, best, strict=True)]
            if "tokens" in asked:
                told["greedy"] = list(self.tokens(told["ids"], asked["tokens"]))
            print(json.dumps({**told, "seconds": time.perf_counter() - began}), flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("run.py", description="Runs the language model in model.safetensors beside it.")
    parser.add_argument("prompt", nargs="*", help="the text to go on with; without it, what is piped in")
    parser.add_argument("--chat", action="store_true", help="talk: answer the prompt, or line after line")
    parser.add_argument("--system", default="", help="with --chat: what the model is told first")
    parser.add_argument("--tokens", type=int, default=256, help="write at most so many tokens (256)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (the default) takes the likeliest token")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw among the likeliest with this much probability")
    parser.add_argument("--seed", type=int, help="makes draws repeatable")
    parser.add_argument("--next", type=int, metavar="K", help="only show the K likeliest next tokens")
    parser.add_argument("--json-logits", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    lines = args.chat or args.json_logits  # are read one by one
    text = " ".join(args.prompt) or ("" if lines or sys.stdin.isatty() else sys.stdin.read().removesuffix("\n"))
    if not (text or lines):
        parser.error('no text: python run.py "Once upon a time"')
    header, tensors = read(Path(__file__).resolve().with_name("model.safetensors"))
    tokenizer = Tokenizer(json.loads(header["tokenizer"]), header["plan"])
    writer = Writer(Decoder(header, tensors), tokenizer, args)
    if args.json_logits:
        writer.serve(header)
    elif args.chat:
        writer.converse(Chat(header, tokenizer))
    else:
        (writer.table if args.next else writer.say)(tokenizer.prompt(text))


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        sys.exit(f"run.py: {problem}")
    except (EOFError, KeyboardInterrupt, BrokenPipeError) as end:  # of the input, by the user, by the reader
        os._exit(0 if isinstance(end, EOFError) else 130)
