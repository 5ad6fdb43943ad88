"""A model as two files that run on any laptop: `model.safetensors`, all its parameters, and `run.py`, all its code.

run.py needs Python and numpy, nothing of ours and no network. What it covers: decoder-only models of the families
`COVERED` (dense, with norms before, after or around a branch, rotary positions with any of the published scalings or
learned ones; LongRoPE up to its original context), with byte-level BPE or SentencePiece BPE tokenizers whose steps
`runtime/plan.py` can put into its terms. `write` refuses everything else. MoE, ALiBi, parallel branches and exact GELU
(Mixtral, Qwen MoE, Falcon) are not covered.

The parameter file is a safetensors file under the canonical names of `models/arch.py`, which are those of Hugging
Face's Llama; for Llama, Mistral, Qwen and SmolLM3 it is what transformers calls model.safetensors. Its metadata hold
config.json (`config`), tokenizer.json (`tokenizer`), the Jinja chat template (`chat_template`), `lineage`, what run.py
reads (`runtime`), and a CRC-32 of all that and the data. In "int8" a matrix is stored as I8 with F16 `.scales` for
every 32 neighbours in a row, beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ladderlm import events, store
from ladderlm.convert.runtime import run
from ladderlm.convert.runtime.pieces import literal_pieces
from ladderlm.convert.runtime.plan import tokenizer_plan
from ladderlm.engine.reference import ReferenceDecoder
from ladderlm.errors import FormatError, UsageError, nearest
from ladderlm.models import families, rope
from ladderlm.models.arch import Architecture
from ladderlm.models.folder import ModelFiles
from ladderlm.text.conversations import CONVERSATIONS
from ladderlm.text.render import render, wire_messages
from ladderlm.types import Conversation, FloatArray

COVERED = (
    "llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text", "olmo2", "phi3", "stablelm",
    "gpt2", "opt",
)  # fmt: skip
PRECISIONS = ("float16", "float32", "int8")
GROUP = 32  # weights that share a scale in "int8"
CLOSE = 2e-3  # how far logprobs may lie apart that two orders of summation give
_NEW = 16
_TEXTS = (
    "The capital of France is",
    "def f(x):\n    return x ** 2\n\n\n\t# 12345 don't I'LL 3.14  \r\n 日本語 e\u0301 été 👩\u200d👧 \x00 <|im_end|>",
)


def write(files: ModelFiles, path: str | Path, precision: str = "float16", *, replace: bool = False) -> Path:
    """Writes the folder `path` with run.py and model.safetensors, or nothing; the two are tried out before.

    "float16" takes two bytes a parameter, "float32" four, "int8" a little over one. UsageError for a model that
    run.py does not cover; FormatError for a weight that float16 cannot hold, or when the finished program gives other
    tokens or logits than the reference; StorageError where `path` exists and not `replace`.
    """
    path = Path(path)
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}", cure=nearest(precision, PRECISIONS))
    metadata = _metadata(files)
    with store.atomic_dir(path, replace=replace) as folder:
        shutil.copyfile(run.__file__, folder / "run.py")
        _write_parameters(folder / "model.safetensors", files, metadata, precision)
        check(folder, files, precision)
    return path


# --- What run.py is told ------------------------------------------------------------------------------------------


def _metadata(files: ModelFiles) -> dict[str, str]:
    """The texts in the parameter file's header. UsageError for a model that is not covered."""
    arch, tokenizer, template = files.arch, files.tokenizer, files.template
    _refuse(arch)
    runtime = {
        "format": run.FORMAT,
        "arch": dataclasses.asdict(arch) | {"windows": arch.windows or (0,) * arch.layers},
        "rope": _rope(arch, context(arch)),
        "context": context(arch),
        "plan": tokenizer_plan(tokenizer),
        "chat": literal_pieces(template) if template else None,
        "names": {
            "bos_token": template.bos if template else "",
            "eos_token": template.eos if template else "",
            "tools": None,
            "add_generation_prompt": True,
        },
    }
    config = families.to_hf(arch, bos_id=tokenizer.bos_id, eos_ids=tokenizer.stop_ids)
    return {
        "crc32": "0" * 8,  # first: it is filled in when the rest is known
        "format": "pt",
        "config": _json(config),
        "tokenizer": _json(json.loads(tokenizer.to_json())),
        "chat_template": template.source if template else "",
        "lineage": _json(dict(files.lineage)),
        "runtime": _json(runtime),
    }


def context(arch: Architecture) -> int:
    """How many tokens the bundle reads: with LongRoPE, whose angles change there, those of the original context."""
    long = arch.rope_scaling.get("rope_type") == "longrope"
    original = int(arch.rope_scaling.get("original_max_position_embeddings", arch.context_length))
    return min(arch.context_length, original) if long else arch.context_length


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _refuse(arch: Architecture) -> None:
    if arch.family not in COVERED:
        raise UsageError(f"a {arch.family} cannot be bundled", cure="covered: " + ", ".join(COVERED))
    covered = {
        "kind": ("decoder",), "head": ("lm",), "placement": ("pre", "inner", "sandwich"), "experts": (0,),
        "positions": ("rotary", "learned"), "qk_norm": ("", "head", "all"), "activation": ("silu", "gelu_tanh", "relu"),
    }  # fmt: skip
    for name, values in covered.items():
        if getattr(arch, name) not in values:
            raise UsageError(f"a {arch.family} with {name} {getattr(arch, name)!r} cannot be bundled")


def _rope(arch: Architecture, length: int) -> dict[str, tuple[list[float], float]]:
    """Angle per position of each pair and what sine and cosine are multiplied by: of all layers, of those with a
    window where they differ."""
    found: dict[str, tuple[list[float], float]] = {}
    for layer in range(arch.layers if arch.positions == "rotary" else 0):
        kind = "local" if arch.local_theta and arch.window(layer) else "full"
        if kind not in found:
            angles, scale = rope.frequencies(arch, layer, length)
            found[kind] = angles.tolist(), scale
    return found


# --- The parameter file -------------------------------------------------------------------------------------------


class _Rounded:
    """The model's weights as the bundle holds them, and as run.py then computes with them (`float32`)."""

    def __init__(self, files: ModelFiles, precision: str) -> None:
        self._weights, self.precision = files.weights, precision

    def names(self) -> list[str]:
        return self._weights.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights.shape(name)

    def blocks(self, name: str) -> None:
        return None

    def float32(self, name: str) -> FloatArray:
        """What run.py makes of the stored tensors."""
        stored = self.stored(name)
        values = stored[0][1].astype(np.float32, copy=False)
        if len(stored) > 1:
            values = values * np.repeat(stored[1][1], GROUP, axis=-1)
        return values

    def form(self, name: str) -> str:
        if self.precision != "int8":
            return "F32" if self.precision == "float32" else "F16"
        shape = self.shape(name)
        return "I8" if len(shape) == 2 and shape[1] % GROUP == 0 else "F16"

    def entries(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """(name, dtype, shape) of what is in the file; single bytes last, so that all else stays aligned."""
        found = []
        for name in self.names():
            shape, form = self.shape(name), self.form(name)
            found.append((name, form, shape))
            if form == "I8":
                found.append((name + ".scales", "F16", (shape[0], shape[1] // GROUP)))
        return sorted(found, key=lambda entry: entry[1] == "I8")

    def stored(self, name: str) -> list[tuple[str, np.ndarray]]:
        """The tensors of the file that hold this one: itself and, for I8, its scales."""
        values, form = self._weights.float32(name), self.form(name)
        if form == "F32":
            return [(name, values)]
        if form == "F16":
            return [(name, self._half(name, values))]
        groups = values.reshape(len(values), -1, GROUP)
        scales = self._half(name, np.abs(groups).max(-1) / 127)
        steps = np.where(scales == 0, 1, scales).astype(np.float32)[..., None]
        whole = np.clip(np.rint(groups / steps), -127, 127).astype(np.int8)
        return [(name, whole.reshape(values.shape)), (name + ".scales", scales)]

    @staticmethod
    def _half(name: str, values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            found = values.astype(np.float16)
        if not np.isfinite(found).all():
            raise FormatError("float16 cannot hold all its values", where=name, cure='precision="float32"')
        return found


def _write_parameters(path: Path, files: ModelFiles, metadata: dict[str, str], precision: str) -> None:
    """A safetensors file; its checksum is put in at the end."""
    weights = _Rounded(files, precision)
    sizes = {"F32": 4, "F16": 2, "I8": 1}
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, form, shape in weights.entries():
        size = int(np.prod(shape, dtype=np.int64)) * sizes[form]
        header[name] = {"dtype": form, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = _json(header).encode("utf-8", "replace")
    text += b" " * (-len(text) % 8)
    crc = zlib.crc32(text)
    with path.open("w+b") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, _, _ in events.track(weights.entries(), "bundle", unit="tensors"):
            data = np.ascontiguousarray(dict(weights.stored(name.removesuffix(".scales")))[name])
            crc = zlib.crc32(data.data, crc)
            file.write(data.data)
        file.seek(8 + text.index(b'"crc32":"') + len(b'"crc32":"'))
        file.write(f"{crc:08x}".encode())


# --- Trying it out ------------------------------------------------------------------------------------------------


def check(folder: Path, files: ModelFiles, precision: str) -> None:
    """Runs the bundle in `folder` and compares ids, logits and greedy tokens with the reference on the same weights.

    FormatError where they differ.
    """
    texts = [[*_start(files), *files.tokenizer.encode(text)] for text in _TEXTS]
    short = [ids[: max(1, context(files.arch) - _NEW)] for ids in texts]
    asked: list[dict[str, Any]] = [{"text": text} for text in _TEXTS]
    asked += [{"ids": ids, "tokens": _NEW, "top": 5} for ids in short]
    wanted = texts + short
    for conversation in _conversations(files):
        asked.append({"messages": wire_messages(conversation)})
        wanted.append(render(conversation, files.tokenizer, files.template).ids)
    reference = ReferenceDecoder(files.arch, _Rounded(files, precision))
    for request, ids, told in zip(asked, wanted, answers(folder, asked), strict=True):
        if told["ids"] != ids:
            shown = str(request.get("text") or request["messages"])[:60]
            raise FormatError(f"the bundle reads {shown!r} as other tokens", where=str(folder))
        if "greedy" in told:
            _compare(reference, told, files, str(folder))


def _start(files: ModelFiles) -> list[int]:
    start = files.tokenizer.document_start_id
    return [] if start is None else [start]


def _conversations(files: ModelFiles) -> Iterator[Conversation]:
    """Those of the common set that run.py can hold: text alone, the user last, a system message if the template does.

    Where it needs jinja2 for them, a token may differ where an earlier answer begins: then those without answers.
    """
    pieces = literal_pieces(files.template) if files.template else None
    roles = {"user", "assistant", "system"} if pieces and pieces["system"] else {"user", "assistant"}
    roles = roles if pieces else {"user", "system"}
    for _, conversation, prompt in CONVERSATIONS if files.template else ():
        messages = wire_messages(conversation)
        plain = not conversation.tools and all(m.keys() == {"role", "content"} for m in messages)
        held = {m["role"] for m in messages} <= roles
        if not prompt or not plain or not held or messages[-1]["role"] != "user":
            continue
        with contextlib.suppress(FormatError):
            render(conversation, files.tokenizer, files.template)
            yield conversation


def _compare(reference: ReferenceDecoder, told: dict[str, Any], files: ModelFiles, where: str) -> None:
    read, greedy = len(told["ids"]), told["greedy"]
    logits_TV = reference.logits([*told["ids"], *greedy]).astype(np.float64)
    logprobs_TV = np.log(run.softmax(logits_TV))
    for row_V, best in zip(logprobs_TV, told["top"], strict=False):
        if max(abs(row_V[i] - logprob) for i, logprob in best) > CLOSE:
            raise FormatError("the bundle gives other logits than the model", where=where)
    stop = set(files.tokenizer.stop_ids)
    for row_V, token in zip(logprobs_TV[read - 1 :], [*greedy, None], strict=True):
        if token is None and len(greedy) == _NEW:
            break
        chosen = max(row_V[i] for i in stop) if token is None else row_V[token]
        if chosen < row_V.max() - CLOSE:
            raise FormatError("the bundle writes other tokens than the model", where=where)


def answers(folder: str | Path, asked: Sequence[dict[str, Any]], python: Sequence[str] = ()) -> list[dict[str, Any]]:
    """What the run.py of a bundle answers to `asked`, in a process of its own that sees nothing of ours.

    A question has `ids`, `text` (a document's beginning) or `messages`; `tokens`: how many to write; `top`: how many
    logprobs to tell for each position. An answer has `ids`, `greedy`, `top` ([[id, logprob], ...] for each position)
    and `seconds`. `python` is the interpreter with its flags. FormatError with the program's own line when it fails.
    """
    command = [*(python or (sys.executable, "-I")), str(Path(folder) / "run.py"), "--json-logits"]
    lines = "".join(json.dumps(question) + "\n" for question in asked)
    done = subprocess.run(command, input=lines, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FormatError(f"the bundle does not run: {last}", where=str(folder))
    return [json.loads(line) for line in done.stdout.splitlines()]
