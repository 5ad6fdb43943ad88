"""Other programs that run the same model, for `bench --against`: each a System (work.py), in processes of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ladderlm.errors import LadderError, NotFound, UsageError
from ladderlm.evals.work import Ids, System, Work, fresh_prompts, need, through_the_door
from ladderlm.models.folder import ModelFiles
from ladderlm.talk.remote import RemoteChat
from ladderlm.types import Sampling

PEERS = ("llama.cpp", "transformers", "openvino")
OPENVINO_PYTHON = "LADDERLM_BENCH_OPENVINO"
LLAMA_FOLDER = "LLAMA_CPP_BIN"


def open_peer(name: str, files: ModelFiles, threads: int) -> System:
    """The peer of that name; UsageError for an unknown one, NotFound with the cure where it is not installed."""
    if name.startswith(("http://", "https://")):
        return Remote(name, files)
    if name == "llama.cpp":
        return LlamaCpp(files, threads)
    if name in ("transformers", "openvino"):
        return Child(name, files, threads)
    raise UsageError(f"unknown peer {name!r}", cure=f"one of {', '.join(PEERS)}, or the URL of a server")


# --- llama.cpp ----------------------------------------------------------------------------------------------------


class LlamaCpp:
    """llama-bench and llama-batched-bench, from the folder that LLAMA_CPP_BIN names or else PATH.

    A process for each measurement, with a warm-up of its own; it draws random tokens and samples nothing.
    """

    name = "llama.cpp"
    warms_up = True

    def __init__(self, files: ModelFiles, threads: int) -> None:
        if files.path.suffix != ".gguf":
            form, cure = "llama.cpp reads GGUF files", f"ladderlm export {files.ref} --to gguf OUT.gguf; bench that"
            raise UsageError(form, where=str(files.path), cure=cure)
        self._common = ["-m", str(files.path), "-t", str(threads)]
        self._one, self._many = find_tool("llama-bench"), find_tool("llama-batched-bench")
        kv = 4 * files.arch.layers * files.arch.kv_heads * files.arch.head_dim  # keys and values as float16
        self.about: dict[str, Any] = {"kv_bytes_per_position": kv}
        self.about |= _build(self._one, files.path)

    def measure(self, work: Work) -> float | None:
        if work.kind == "decode" and work.sequences > 1:
            size = work.sequences * -(-work.length // 256) * 256
            shape = ["-npp", str(work.prompt), "-ntg", str(work.tokens), "-npl", str(work.sequences), "-c", str(size)]
            shape += ["-pps"]  # all begin with one prompt, read once: only what they write is timed
            said = self._run([self._many, *self._common, *shape, "--output-format", "jsonl"])
            lines = [line for line in said.splitlines() if line.startswith("{")]
            return need(_parsed(lines[-1] if lines else "", self._many), "speed_tg", self._many)
        if work.kind == "decode":
            shape = ["-p", "0", "-n", str(work.tokens), "-d", str(work.prompt)]
        elif work.kind == "prefill":
            shape = ["-p", str(work.prompt), "-n", "0"]
        else:
            return None  # its server has that door: bench against its URL
        tests = _parsed(self._run([self._one, *self._common, "-r", "1", "-o", "json", *shape]), self._one)
        return need(tests[0] if isinstance(tests, list) and tests else {}, "avg_ts", self._one)

    def close(self) -> None: ...

    def _run(self, command: Sequence[str]) -> str:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            with subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL) as process:
                try:
                    code, peak = _wait(process)
                except BaseException:
                    process.kill()
                    raise
            out.seek(0), err.seek(0)
            if code:
                lines = err.read().decode(errors="replace").strip().splitlines() or [f"exit code {code}"]
                raise LadderError(lines[-1][:300], where=command[0])
            if peak:
                self.about["peak_bytes"] = max(peak, self.about.get("peak_bytes", 0))
            return out.read().decode(errors="replace")


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """The exit code, and the most resident memory in bytes where the system tells."""
    if not hasattr(os, "wait4"):
        return process.wait(), 0
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def find_tool(name: str) -> str:
    """The path of one of llama.cpp's programs; NotFound with the cure."""
    folder = os.environ.get(LLAMA_FOLDER)
    found = shutil.which(name, path=folder or None)
    if not found:
        cure = f"build llama.cpp for this processor and put its tools on PATH, or name their folder in {LLAMA_FOLDER}"
        raise NotFound(f"{name} is not there", where=folder or "PATH", cure=cure)
    return found


def _build(tool: str, model: Path) -> dict[str, str]:
    """The tools' version, and which instructions they were built for where llama-perplexity is beside them."""
    version = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False)
    about = {"version": " ".join((version.stdout + version.stderr).split("\n")[0].split()).removeprefix("version: ")}
    if beside := shutil.which("llama-perplexity", path=str(Path(tool).parent)):
        # It tells of the processor before it complains of an empty text.
        command = [beside, "-m", str(model), "-f", os.devnull, "-c", "64"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if told := re.search(r"system_info: .*\| CPU : (.*)", done.stdout + done.stderr):
            about["built_for"] = " ".join(re.findall(r"(\w+) = 1", told[1]))
    return about


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise LadderError("it printed no JSON", where=where, cure="use a version from 2026 on") from None


# --- A server -----------------------------------------------------------------------------------------------------


class Remote:
    """Any OpenAI-compatible server. It gets text, of random tokens of the local model's vocabulary."""

    warms_up = False

    def __init__(self, url: str, files: ModelFiles) -> None:
        address, _, model = url.partition("#")
        self._chat, self._files = RemoteChat(address, model), files
        self.name = url
        self.about: dict[str, Any] = {"model": self._chat.name}
        self._random = np.random.default_rng()

    def measure(self, work: Work) -> float | None:
        if work.kind not in ("first", "answers"):
            return None
        prompts = fresh_prompts(self._random, self._files.arch.vocab_size, work)
        return through_the_door(self._ask, prompts, work)

    def _ask(self, ids: Ids, tokens: int) -> Iterator[int]:
        counted = 0
        sampling = Sampling(temperature=0, max_tokens=tokens, min_tokens=tokens)
        for delta in self._chat.complete(self._files.tokenizer.decode(ids), sampling):
            if delta.text:
                counted += 1
                yield 1
            if delta.usage and delta.usage.completion_tokens:
                yield delta.usage.completion_tokens - counted  # a chunk may hold several tokens

    def close(self) -> None:
        self._chat.close()


# --- Python programs ----------------------------------------------------------------------------------------------


class Child:
    """transformers or OpenVINO GenAI in a process that runs peer.py; LADDERLM_BENCH_OPENVINO may name its Python."""

    warms_up = False

    def __init__(self, name: str, files: ModelFiles, threads: int) -> None:
        self.name = name
        self._vocab, self._random = files.arch.vocab_size, np.random.default_rng()
        python = os.environ.get(OPENVINO_PYTHON, sys.executable) if name == "openvino" else sys.executable
        program = str(Path(__file__).with_name("peer.py"))
        command = [python, "-P", program, name, str(files.path), str(threads)]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        try:
            self.about: dict[str, Any] = self._answer()
        except BaseException:
            self.close()
            raise

    def measure(self, work: Work) -> float | None:
        prompts = fresh_prompts(self._random, self._vocab, work)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"kind": work.kind, "prompts": prompts, "tokens": work.tokens}) + "\n")
        self._process.stdin.flush()
        found = self._answer()["figure"]
        return None if found is None else float(found)

    def _answer(self) -> dict[str, Any]:
        """Its next line; libraries may print others."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                said: dict[str, Any] = json.loads(line)
                if "error" in said:
                    raise NotFound(said["error"], where=self.name, cure=said.get("cure"))
                return said
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        raise LadderError(f"it stopped: {lines[-1][:300] if lines else 'without a word'}", where=self.name)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            assert pipe is not None
            pipe.close()
