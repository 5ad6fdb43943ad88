"""The two files: run.py gives what the model gives, alone, and fails in one line."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from bundle_models import NAMES, small_files

from ladderlm.convert import bundle
from ladderlm.convert.runtime import run
from ladderlm.convert.runtime.pieces import literal_pieces
from ladderlm.convert.runtime.plan import tokenizer_plan, translated
from ladderlm.engine.reference import ReferenceDecoder
from ladderlm.errors import FormatError, StorageError, UsageError
from ladderlm.models import ModelFiles, open_model
from ladderlm.text.render import render
from ladderlm.text.template import CHATML, ChatTemplate
from ladderlm.text.tokenizer import Tokenizer
from ladderlm.types import Conversation

LLAMA_3 = (
    "{{ bos_token }}{% set date = strftime_now('%d %b %Y') %}{% if messages[0].role == 'system' %}"
    "{% set system = messages[0].content | trim %}{% set messages = messages[1:] %}{% else %}{% set system = '' %}"
    "{% endif %}[{{ date }} {{ system }}]{% for m in messages %}"
    "{{ m.role[0] }}:{{ m.content | trim }};{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
THINKING = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' and '</think>' in m.content %}"
    "{{ m.content.split('</think>')[-1].lstrip('\\n') }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
COUNTING = "{% for m in messages %}{{ loop.index }}. {{ m.content }}\n{% endfor %}"


def program(folder: Path, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(folder / "run.py"), *args]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, encoding="utf-8", check=False)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return small_files("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def written(llama: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle.write(llama, tmp_path_factory.mktemp("written") / "two")


# --- The model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_greedy_tokens_of_each_family(name: str, tmp_path: Path) -> None:
    files = small_files(name, tmp_path / "model")
    folder = bundle.write(files, tmp_path / "two", "float32")
    ids = np.random.default_rng(1).integers(3, files.arch.vocab_size, min(24, bundle.context(files.arch) - 8)).tolist()
    (told,) = bundle.answers(folder, [{"ids": ids, "top": files.arch.vocab_size, "tokens": 7}])
    reference = ReferenceDecoder(files.arch, files.weights)
    wanted = np.log(run.softmax(reference.logits(ids).astype(np.float64)))
    ours = np.zeros_like(wanted)
    for row, best in zip(ours, told["top"], strict=True):
        for token, logprob in best:
            row[token] = logprob
    assert np.abs(ours - wanted).max() < 1e-4
    text = list(ids)
    for token in told["greedy"]:
        assert reference.logits(text)[-1].argmax() == token
        text.append(token)
    assert told["greedy"]


@pytest.mark.parametrize("name", ["mixtral", "falcon 7b", "falcon rw", "stablelm 2"])
def test_what_is_not_covered_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be bundled"):
        bundle.write(small_files(name, tmp_path / "model"), tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_a_tokenizer_that_is_not_covered_is_refused(llama: ModelFiles, tmp_path: Path) -> None:
    words = json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}})
    with pytest.raises(UsageError, match="WordLevel tokenizer cannot"):
        bundle.write(dataclasses.replace(llama, tokenizer=Tokenizer.from_json(words)), tmp_path / "two")


def test_wrong_uses(llama: ModelFiles, written: Path) -> None:
    with pytest.raises(UsageError, match="float16"):
        bundle.write(llama, written, "float15")
    with pytest.raises(StorageError, match="already exists"):
        bundle.write(llama, written)


def test_the_code_fits_and_the_parameters_take_two_bytes(llama: ModelFiles, written: Path, tmp_path: Path) -> None:
    assert sorted(p.name for p in written.iterdir()) == ["model.safetensors", "run.py"]
    assert (written / "run.py").read_text(encoding="utf-8").count("\n") <= 500
    data = (written / "model.safetensors").read_bytes()
    assert len(data) - 8 - int.from_bytes(data[:8], "little") == 2 * llama.arch.parameters
    tensors = safetensors.numpy.load_file(written / "model.safetensors")
    assert {name: value.shape for name, value in tensors.items()} == llama.arch.tensor_shapes()
    assert all(np.array_equal(v, llama.weights.float32(n).astype(np.float16)) for n, v in tensors.items())
    with safetensors.safe_open(written / "model.safetensors", "numpy") as file:
        metadata = file.metadata()
    assert json.loads(metadata["config"])["model_type"] == "llama"
    assert Tokenizer.from_json(metadata["tokenizer"]).encode("the") == llama.tokenizer.encode("the")
    assert metadata["chat_template"] == CHATML


def test_int8_is_half_the_size_and_near(llama: ModelFiles, written: Path, tmp_path: Path) -> None:
    small = bundle.write(llama, tmp_path / "small", "int8")
    tensors = safetensors.numpy.load_file(small / "model.safetensors")
    assert sum(t.nbytes for t in tensors.values()) < 1.1 * llama.arch.parameters
    question = [{"text": "the cat", "top": 5}]
    (near,), (exact,) = bundle.answers(small, question), bundle.answers(written, question)
    assert near["top"][0][0][0] == exact["top"][0][0][0]
    assert abs(near["top"][0][0][1] - exact["top"][0][0][1]) < 0.1


def test_values_beyond_float16_are_named(llama: ModelFiles, tmp_path: Path) -> None:
    class Large:
        names, shape = llama.weights.names, llama.weights.shape

        def float32(self, name: str) -> Any:
            return llama.weights.float32(name) * 1e6

        def blocks(self, name: str) -> None:
            return None

    with pytest.raises(FormatError, match=r"embed_tokens.*float32"):
        bundle.write(dataclasses.replace(llama, weights=Large()), tmp_path / "two")


def test_a_program_that_says_other_things_is_not_written(
    llama: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(run.__file__).read_text(encoding="utf-8")
    changes = {"x * x": ("x * x * 2", "other logits"), "logits_V.argmax()": ("logits_V.argmin()", "other tokens")}
    for right, (wrong, said) in changes.items():
        (tmp_path / "wrong.py").write_text(source.replace(right, wrong), encoding="utf-8")
        monkeypatch.setattr(run, "__file__", str(tmp_path / "wrong.py"))
        with pytest.raises(FormatError, match=said):
            bundle.write(llama, tmp_path / "two")
        assert not (tmp_path / "two").exists()


# --- The command line ---------------------------------------------------------------------------------------------


def test_it_goes_on_with_an_argument_or_a_pipe(written: Path) -> None:
    said = program(written, "the cat", "--tokens", "9")
    assert said.returncode == 0, said.stderr
    assert len(said.stdout) > 1
    assert said.stderr == ""
    assert program(written, "--tokens", "9", stdin="the cat\n").stdout == said.stdout
    drawn = [program(written, "the cat", "--temperature", "1", "--seed", s).stdout for s in "112"]
    assert drawn[0] == drawn[1] != drawn[2]
    assert program(written, "the cat", "--tokens", "9", "--temperature", "1", "--top-p", "0").stdout == said.stdout


def test_the_table_of_next_tokens(written: Path) -> None:
    rows = program(written, "--next", "5", "the cat").stdout.splitlines()
    shares = [float(row.split("%")[0]) for row in rows]
    assert len(rows) == 5
    assert shares == sorted(shares, reverse=True)
    assert all("'" in row for row in rows)


def test_chat_answers_line_after_line(llama: ModelFiles, written: Path) -> None:
    one, two = "the cat", "a <|im_end|> hat"
    talk = program(written, "--chat", "--tokens", "5", stdin=f"{one}\n{two}\n")
    assert talk.returncode == 0, talk.stderr
    question = Conversation.of(one)
    (told,) = bundle.answers(written, [{"ids": render(question, llama.tokenizer, llama.template).ids, "tokens": 5}])
    assert talk.stdout.startswith(llama.tokenizer.decode(told["greedy"]))
    assert talk.stdout.startswith(program(written, "--chat", "--tokens", "5", one).stdout)


def test_errors_are_one_line(written: Path, tmp_path: Path) -> None:
    long = program(written, "x" * 100)
    assert (long.returncode, long.stderr.count("\n")) == (1, 1)
    assert "too many for a context of 64" in long.stderr
    assert program(written).returncode == 2
    whole = (written / "model.safetensors").read_bytes()
    flipped = bytearray(whole)
    flipped[-100] ^= 1
    broken = {"cut": whole[:-3], "longer": whole + b"x", "flipped": bytes(flipped), "empty": b"", "header": whole[:99],
              "other": b"GGUF" + whole, "name": whole.replace(b"self_attn.q_proj", b"self_attn.z_proj", 1)}  # fmt: skip
    shutil.copy(written / "run.py", tmp_path)
    for name, data in broken.items():
        (tmp_path / "model.safetensors").write_bytes(data)
        done = program(tmp_path, "the")
        assert (done.returncode, done.stderr.count("\n"), done.stdout) == (1, 1, ""), name
        assert "damaged" in done.stderr
    (tmp_path / "model.safetensors").unlink()
    missing = program(tmp_path, "the")
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    assert "No such file" in missing.stderr


def test_without_numpy_it_says_so(written: Path) -> None:
    command = [sys.executable, "-I", "-S", str(written / "run.py"), "the"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "run.py: numpy is not installed: python -m pip install numpy\n")


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
def test_an_interrupt_is_quiet(written: Path) -> None:
    command = [sys.executable, "-I", str(written / "run.py"), "--chat", "--tokens", "3"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what is ignored here would be ignored there
    try:
        process = subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        assert process.stdin
        assert process.stdout
        process.stdin.write("the cat\n")
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)  # with its input open, whose end would end it too
        said = process.communicate()[1]
    assert (process.returncode, said) == (130, "")


# --- Tokenizers and templates -------------------------------------------------------------------------------------


def test_patterns_are_put_in_terms_of_re() -> None:
    assert translated(r"\s+(?!\S)|[\r\n]").startswith(r"[\t\n\x0b\x0c\r \xa0]+(?![^\t")
    for pattern in (r"\p{Han}+", r"\w+", "[一-龥]", r"\P{L}", r"a++", r"[a[b]]", r"\bx"):
        with pytest.raises(UsageError, match="pattern"):
            translated(pattern)


def mixed_text(shared_data: Path) -> str:
    """Some 100 kB of English, code, other scripts, emoji, control characters and runs of blanks."""
    text = (shared_data / "corpus" / "tinyshakespeare.txt").read_text(encoding="utf-8")[:40000]
    text += Path(run.__file__).read_text(encoding="utf-8")
    kinds = [chr(c) for c in range(0x21, 0x2FA1E, 23) if not 0xD800 <= c < 0xE000]
    text += "".join(f"{c}{' a1,  '[i % 6]}" for i, c in enumerate(kinds))
    text += (
        "日本語の文章。中文字符，标点！" * 40
        + "👩\u200d👩\u200d👧 e\u0301 ǆ ſ 'ſ it'S we'LL \x85\u2028\x1c\x00\x7f" * 20
    )
    return text + " " * 300 + "\n" * 40 + "\t \r\n" * 20 + "<|im_end|></s><unk> ▁ <0x0A> <tool_call>"


@pytest.mark.parametrize("which", ["smollm", "minimind", "torchtitan-test", "sentencepiece"])
def test_ids_and_bytes_are_those_of_the_tokenizers_library(which: str, shared_data: Path, request: Any) -> None:
    if which == "smollm":
        tokenizer = open_model(request.getfixturevalue("default_model")).tokenizer
    elif which == "sentencepiece":
        tokenizer = sentencepiece()
    else:
        tokenizer = Tokenizer.from_file(shared_data / "tokenizers" / which / "tokenizer.json")
    ours = run.Tokenizer(json.loads(tokenizer.to_json()), tokenizer_plan(tokenizer))
    text = mixed_text(shared_data)
    assert len(text.encode()) > 100_000
    for at in range(0, len(text), 1500):
        part = text[at : at + 1500]
        assert ours.encode(part) == tokenizer.encode(part)
        assert ours.encode(part, True) == tokenizer.encode(part, continues=True)
    assert [ours.data(i) for i in range(tokenizer.vocab_size)] == [
        tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)
    ]


def sentencepiece() -> Tokenizer:
    words = ["▁", "t", "h", "e", "a", "o", "th", "▁t", "▁th", "▁the", "he", "▁a", "an", "n", "▁an", "nd", "d", "▁and"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words]
    meta = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(words)],
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(words))],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
    }  # fmt: skip
    return Tokenizer.from_gguf(meta)


def test_templates_that_are_literal_pieces() -> None:
    chatml = literal_pieces(ChatTemplate(CHATML))
    assert chatml is not None
    assert chatml["answer"] == "<|im_end|>\n<|im_start|>assistant\n"
    assert chatml["system"] == ["<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n"]
    assert (chatml["trim"], chatml["forget"]) == ([], "")
    dated = literal_pieces(ChatTemplate(LLAMA_3, "<s>"))
    assert dated is not None
    assert f"{run.DATE}%d %b %Y{run.DATE}" in dated["open"]
    assert dated["trim"] == ["system", "user", "assistant"]
    plain = literal_pieces(ChatTemplate(NO_SYSTEM))
    assert plain is not None
    assert plain["system"] is None
    thinking = literal_pieces(ChatTemplate(THINKING))
    assert thinking is not None
    assert "think" in thinking["forget"]
    assert literal_pieces(ChatTemplate(COUNTING)) is None


@pytest.mark.parametrize("source", [CHATML, LLAMA_3, NO_SYSTEM, COUNTING])
def test_conversations_are_read_as_by_the_renderer(source: str, llama: ModelFiles, tmp_path: Path) -> None:
    """`write` itself compares them; here what a system message and a template of no pieces come to."""
    files = dataclasses.replace(llama, template=ChatTemplate(source, "<|im_start|>"))
    folder = bundle.write(files, tmp_path / "two")
    said = program(folder, "--chat", "--system", "be kind", "--tokens", "1", "the cat")
    refused = source == NO_SYSTEM
    assert said.returncode == refused, said.stderr
    assert ("refuses" in said.stderr) == refused


def test_a_template_of_no_pieces_asks_for_jinja2(llama: ModelFiles, tmp_path: Path) -> None:
    folder = bundle.write(dataclasses.replace(llama, template=ChatTemplate(COUNTING)), tmp_path / "two")
    hide = "import sys, runpy; sys.modules['jinja2'] = None; sys.argv = ['run.py', '--chat', 'the']; "
    hide += f"runpy.run_path({str(folder / 'run.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-I", "-c", hide], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "run.py: this model's chat template needs jinja2: python -m pip install jinja2\n"
    bare = bundle.write(dataclasses.replace(llama, template=None), tmp_path / "bare")
    assert "no chat template" in program(bare, "--chat", "the").stderr


# --- The default model --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_default_model_in_an_environment_of_numpy_alone(default_model: str, tmp_path: Path) -> None:
    from bench.bundle import numpy_alone

    files = open_model(default_model)
    folder = bundle.write(files, tmp_path / "two", "float32")
    python = numpy_alone(tmp_path / "venv")
    asked = [{"text": text, "tokens": 24} for text in ("The capital of France is", "def fibonacci(n):\n")]
    reference = ReferenceDecoder(files.arch, files.weights)
    for told in bundle.answers(folder, asked, [str(python), "-I"]):
        logits_TV = reference.logits([*told["ids"], *told["greedy"]])
        assert logits_TV[len(told["ids"]) - 1 : -1].argmax(1).tolist() == told["greedy"]
