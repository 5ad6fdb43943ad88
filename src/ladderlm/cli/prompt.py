"""`ladderlm chat`, `ladderlm ask` and `ladderlm next`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladderlm import store
from ladderlm.cli import args, show
from ladderlm.cli.talking import ModelFlags, SamplingFlags, note, say, started, think, visible
from ladderlm.config import option
from ladderlm.errors import UsageError
from ladderlm.talk import Talker, batch, prompting, sees
from ladderlm.talk.images import read_image
from ladderlm.types import Cancel, Completion, Conversation, Delta, Message, Sampling

RAW_TOKENS = 256  # raw text has no end of its own


def chat(argv: list[str]) -> int:
    from ladderlm.cli.chat import main

    return main(argv)


# --- ask ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask(SamplingFlags):
    prompt: tuple[str, ...] = option((), "the question; piped text is appended to it", positional=True)
    system: str = option("", "system message", short="-s")
    image: tuple[Path, ...] = option((), "show the model a PNG, JPEG, WebP or GIF file (may be repeated); remotes only")
    raw: bool = option(False, f"continue the text as it is, without chat template (at most {RAW_TOKENS} tokens)")
    n: int | None = option(None, "number of answers")
    best_of: int | None = option(None, "write so many answers and keep the likeliest n")
    logprobs: int | None = option(None, "with --json: log-probabilities of the tokens, and of the K likeliest")
    schema: Path | None = option(None, "JSON schema file that the answer must match")
    task: str = option("", 'what to do with the prompt, such as "translate to French"')
    examples: Path | None = option(None, "JSONL with solved examples: {input, output} or {prompt, completion}")
    choices: str = option("", "a,b,c: rank these answers by likelihood instead of writing one")
    template: str = option("", "saved prompt template (see: ladderlm prompts); {{prompt}} stands for the prompt")
    var: tuple[str, ...] = option((), "NAME=VALUE for the template (may be repeated)")
    batch: Path | None = option(None, "JSONL with one question a row: {prompt} or {messages}, {id}, template variables")
    out: Path | None = option(None, "JSONL for the answers to --batch; what it holds already is not asked again")
    concurrency: int = option(4, "questions of --batch at a time")

    @property
    def variables(self) -> dict[str, str]:
        pairs = [v.partition("=") for v in self.var]
        if wrong := next((name for name, found, _ in pairs if not found), None):
            raise UsageError("must be NAME=VALUE", where=f"--var {wrong}")
        return {name: value for name, _, value in pairs}


def ask(argv: list[str]) -> int:
    config = args.parse("ask", Ask, argv, description="One question, one answer. Without -m: the default model.")
    _check(config)
    if config.batch is not None:
        return _batch(config)
    text = _prompt_and_pipe(config)
    question = _Question(config)
    asked = _shown(question(text, config.variables), config)
    with contextlib.closing(config.open()) as talker:
        if config.choices:
            return _choose(talker, asked, config)
        if config.json:
            return _answer_json(talker, asked, config)
        return _answer(talker, asked, _sampling(config, talker))


def _check(config: Ask) -> None:
    """What cannot go together."""
    if (config.batch is None) != (config.out is None):
        raise UsageError("--batch and --out belong together")
    if config.batch and (config.prompt or config.choices):
        raise UsageError("--batch takes its questions from the file", cure="leave out the prompt and --choices")
    if config.image and (config.raw or config.batch):
        raise UsageError("--image does not go with --raw and --batch")
    if config.image and not sees(config.model):
        cure = "choose one that sees with -m URL#model, or leave --image out"
        raise UsageError("this model reads text only", where=f"-m {config.model}", cure=cure)
    if config.choices and len(_choices(config)) < 2:
        raise UsageError("at least two choices are needed", where=f"--choices {config.choices}")
    if config.logprobs is not None and not config.json:
        raise UsageError("--logprobs needs --json")
    if config.var and not config.template:
        raise UsageError("--var needs --template")


def _choices(config: Ask) -> list[str]:
    return [c.strip() for c in config.choices.split(",") if c.strip()]


def _prompt_and_pipe(config: Ask) -> str:
    """The prompt's words, then what was piped in."""
    text, piped = " ".join(config.prompt), ""
    if sys.stdin is not None and not sys.stdin.closed and not sys.stdin.isatty():
        try:
            piped = sys.stdin.read()
        except UnicodeDecodeError:
            raise UsageError("the piped text is not UTF-8", where="stdin") from None
    if text and piped.strip():
        return f"{text}\n\n{piped.strip()}"
    text = text or piped.strip()
    if not text and not config.template:
        raise UsageError("no prompt", cure='such as: ladderlm ask "What is a ladder?"')
    return text


class _Question:
    """Turns a prompt into what the model is asked, by template, task, examples and system message."""

    def __init__(self, config: Ask) -> None:
        self._raw, self._task = config.raw, config.task
        self._template = prompting.template(config.template) if config.template else None
        self._examples = prompting.read_examples(config.examples) if config.examples else ()
        self._system = config.system or (self._template.system if self._template else "")

    def __call__(self, text: str, variables: Mapping[str, Any]) -> str | Conversation:
        if self._template is not None:
            names = prompting.variables_of(self._template.body)
            filled = prompting.fill(self._template.body, {"prompt": text, **variables} if text else variables)
            text = filled if "prompt" in names or not text else f"{filled}\n\n{text}"
        if self._task or self._examples:
            if self._raw:
                return self._before() + prompting.few_shot_text(self._task, self._examples, text)
            return prompting.few_shot_chat(self._task, self._examples, text, self._system)
        return self._before() + text if self._raw else Conversation.of(text, self._system or None)

    def of_row(self, row: batch.Row) -> str | Conversation:
        if "messages" in row and not self._raw:
            return batch.conversation_of(row, self._system)
        has_prompt = "prompt" in row or "input" in row or self._template is None
        return self(batch.prompt_of(row) if has_prompt else "", row)

    def _before(self) -> str:
        return f"{self._system}\n\n" if self._system else ""


def _shown(asked: str | Conversation, config: Ask) -> str | Conversation:
    """What is asked, with the images of --image in its last turn."""
    if isinstance(asked, str) or not config.image:
        return asked
    *before, last = asked.messages
    images = map(read_image, config.image)
    return dataclasses.replace(asked, messages=(*before, Message(last.role, (*last.parts, *images))))


def _sampling(config: Ask, talker: Talker) -> Sampling:
    sampling = config.over(talker.defaults)
    if config.raw and sampling.max_tokens is None:
        sampling = dataclasses.replace(sampling, max_tokens=RAW_TOKENS)
    if config.raw and (config.task or config.examples) and not sampling.stop:
        sampling = dataclasses.replace(sampling, stop=prompting.STOP)
    if config.schema is not None:
        schema = store.read_json(config.schema)
        wanted = {"name": "answer", "schema": schema, "strict": True}
        sampling = dataclasses.replace(sampling, response_format={"type": "json_schema", "json_schema": wanted})
    return sampling


def _stream(
    talker: Talker, asked: str | Conversation, sampling: Sampling, cancel: Cancel | None = None
) -> Iterator[Delta]:
    if isinstance(asked, str):
        return talker.complete(asked, sampling, cancel=cancel)
    return talker.stream(asked, sampling, cancel=cancel)


def _answer(talker: Talker, asked: str | Conversation, sampling: Sampling) -> int:
    """Prints the answer as it comes; several answers one after the other, numbered."""
    if sampling.n > 1:
        completion = Completion.fold(started(_stream(talker, asked, sampling)))
        for choice in completion.choices:
            say(f"[{choice.index + 1}] {choice.text.strip()}\n")
        return 0
    seen: list[Delta] = []
    for delta in started(_stream(talker, asked, sampling)):
        seen.append(dataclasses.replace(delta, tokens=()))
        (think if delta.part == "reasoning" else say)(delta.text)
    completion = Completion.fold(seen)
    if not completion.text.endswith("\n"):
        say("\n")
    _remarks(completion)
    return 0


def _remarks(completion: Completion) -> None:
    if completion.choices and completion.choices[0].finish_reason == "length":
        note("(cut off: the limit of tokens was reached)")
    if completion.usage.cost is not None:
        note(f"(cost {completion.usage.cost:.6g})")


def _answer_json(talker: Talker, asked: str | Conversation, config: Ask) -> int:
    completion = Completion.fold(started(_stream(talker, asked, _sampling(config, talker))))
    answers = []
    for choice in completion.choices:
        answer: dict[str, Any] = {"text": choice.text, "finish_reason": choice.finish_reason}
        if choice.reasoning:
            answer["reasoning"] = choice.reasoning
        if config.schema is not None:
            with contextlib.suppress(ValueError):  # an answer that was cut off is not JSON yet
                answer["data"] = json.loads(choice.text)
        if config.logprobs is not None:
            answer["tokens"] = [token.to_dict() for token in choice.tokens]
        answers.append(answer)
    first = answers[0] if len(answers) == 1 else {"answers": answers}
    show.emit_json({"model": talker.name, **first, "usage": completion.usage.to_dict()})
    return 0


def _choose(talker: Talker, asked: str | Conversation, config: Ask) -> int:
    choices = _choices(config)
    with show.progress():
        scores = talker.rank(asked, choices)
    rows = sorted(zip(choices, scores, prompting.probabilities(scores), strict=True), key=lambda row: -row[1])
    if config.json:
        table = [{"text": text, "probability": share, "logprob": score} for text, score, share in rows]
        show.emit_json({"model": talker.name, "choice": rows[0][0], "choices": table})
    else:
        shown = [(text, f"{share:.1%}", f"{score:.2f}") for text, score, share in rows]
        show.table(shown, ("choice", "probability", "logprob"))
    return 0


def _batch(config: Ask) -> int:
    assert config.batch is not None
    assert config.out is not None
    rows = batch.read_rows(config.batch)
    question = _Question(config)
    with contextlib.closing(config.open()) as talker:
        sampling = _sampling(config, talker)

        def ask_row(row: batch.Row, cancel: Cancel) -> Iterator[Delta]:
            return _stream(talker, question.of_row({**config.variables, **row}), sampling, cancel)

        with show.progress():
            result = batch.run(rows, config.out, ask_row, concurrency=config.concurrency)
    if config.json:
        show.emit_json(result.to_dict())
    else:
        parts = [f"{result.answered} answered", f"{result.skipped} were there", f"{result.failed} failed"]
        parts += [f"{result.left} left"] if result.left else []
        parts += [f"cost {result.cost:.6g}"] if result.cost is not None else []
        print(f"{', '.join(parts)}: {config.out}")
    if result.stopped:
        print(f"ladderlm ask: {result.stopped}", file=sys.stderr)
    return 1 if result.failed or result.left else 0


# --- next ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Next(ModelFlags):
    prompt: str = option(None, "the text to go on from", positional=True)
    compare: str | None = option(None, "a second prompt, shown beside the first")
    k: int = option(10, "how many tokens", short="-k")
    words: str = option("", "a,b,c: probability of whole words, however many tokens they have")


def next_(argv: list[str]) -> int:
    config = args.parse("next", Next, argv, description="What comes next, and how likely each token is.")
    if config.prompt is None:
        raise UsageError("no prompt", cure='such as: ladderlm next "Listen to your"')
    if config.k < 1:
        raise UsageError("must be at least 1", where=f"-k {config.k}")
    prompts = [config.prompt] if config.compare is None else [config.prompt, config.compare]
    words = [w.strip() for w in config.words.split(",") if w.strip()]
    with contextlib.closing(config.open()) as talker, show.progress():
        name = talker.name
        tables = [_table(talker, prompt, config.k, words) for prompt in prompts]
    if config.json:
        show.emit_json({"model": name, "prompts": tables})
        return 0
    _show_tokens(tables)
    if words:
        _show_words(tables, words)
    if any(p.endswith(" ") for p in prompts):
        note("A prompt ends with a space, which tokens usually begin with: the table would differ without it.")
    return 0


def _table(talker: Talker, prompt: str, k: int, words: Sequence[str]) -> dict[str, Any]:
    tokens = [
        {"id": c.id, "text": c.text, "probability": math.exp(c.logprob), "logprob": c.logprob}
        for c in talker.next(prompt, k)
    ]
    table: dict[str, Any] = {"prompt": prompt, "tokens": tokens}
    return table | {"words": talker.word_sums(prompt, words)} if words else table


def _show_tokens(tables: Sequence[Mapping[str, Any]]) -> None:
    """One table a prompt, side by side; with bars for people, tab-separated for pipes."""
    if sys.stdout.isatty():
        _draw(tables)
        return
    columns = ["#"]
    for table in tables:
        columns += [visible(table["prompt"]) if len(tables) > 1 else "token", "probability"]
    rows: list[list[Any]] = []
    for i in range(max(len(table["tokens"]) for table in tables)):
        row: list[Any] = [i + 1]
        for table in tables:
            token = table["tokens"][i] if i < len(table["tokens"]) else None
            row += ["", ""] if token is None else [visible(token["text"]), f"{token['probability']:.2%}"]
        rows.append(row)
    show.table(rows, columns)


def _draw(tables: Sequence[Mapping[str, Any]]) -> None:
    from rich.columns import Columns
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    most = max((t["probability"] for table in tables for t in table["tokens"]), default=1.0)
    drawn = []
    for table in tables:
        out = Table(title=Text(visible(table["prompt"])), box=None, padding=(0, 1))
        out.add_column("token", no_wrap=True)
        out.add_column("p", justify="right", no_wrap=True)
        out.add_column("", no_wrap=True, min_width=16)
        for token in table["tokens"]:
            bar = Text(_bar(token["probability"] / most), style="cyan")
            out.add_row(Text(visible(token["text"])), f"{token['probability']:.2%}", bar)
        drawn.append(out)
    Console().print(Columns(drawn, padding=(0, 2)))


def _show_words(tables: Sequence[Mapping[str, Any]], words: Sequence[str]) -> None:
    columns = ["word", *(visible(t["prompt"]) if len(tables) > 1 else "probability" for t in tables)]
    ordered = sorted(words, key=lambda word: -tables[0]["words"][word])
    show.table([[word, *(f"{t['words'][word]:.3%}" for t in tables)] for word in ordered], columns)


def _bar(share: float, width: int = 16) -> str:
    """A bar in eighths of a character."""
    eighths = round(share * width * 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]
