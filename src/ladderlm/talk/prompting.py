"""Prompts from parts: few-shot examples, and templates with {{variables}}."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ladderlm import store
from ladderlm.errors import FormatError, NotFound, UsageError, nearest
from ladderlm.types import Conversation, Message

_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


# --- Few-shot -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Example:
    """A solved instance of a task."""

    input: str
    output: str


STOP = ("\nInput:",)  # where a base model would go on with an example of its own


def read_examples(path: Path) -> tuple[Example, ...]:
    """From JSONL: {"input", "output"} or {"prompt", "completion"} in each line."""
    if not path.is_file():
        raise NotFound("no such file", where=str(path))
    found = []
    for number, row in enumerate(store.read_jsonl(path), 1):
        pair = next((p for p in (("input", "output"), ("prompt", "completion")) if set(p) <= row.keys()), None)
        if pair is None or not all(isinstance(row[name], str) for name in pair):
            raise FormatError(
                "an example needs the texts input and output (or prompt and completion)", where=f"{path}, row {number}"
            )
        found.append(Example(row[pair[0]], row[pair[1]]))
    if not found:
        raise FormatError("no examples", where=str(path))
    return tuple(found)


def few_shot_text(task: str, examples: Sequence[Example], query: str) -> str:
    """A prompt for a base model: the task, solved examples, and the query left open. Stop at STOP."""
    head = [task.strip()] if task.strip() else []
    solved = [f"Input: {e.input.strip()}\nOutput: {e.output.strip()}" for e in examples]
    return "\n\n".join([*head, *solved, f"Input: {query.strip()}\nOutput:"])


def few_shot_chat(task: str, examples: Sequence[Example], query: str, system: str = "") -> Conversation:
    """The same for a chat model: the task as system message, the examples as earlier turns."""
    said = "\n\n".join(t.strip() for t in (system, task) if t.strip())
    turns = [Message.of("system", said)] if said else []
    for e in examples:
        turns += [Message.of("user", e.input), Message.of("assistant", e.output)]
    return Conversation((*turns, Message.of("user", query)))


def probabilities(log_likelihoods: Sequence[float]) -> list[float]:
    """The share of each choice, summing to 1."""
    most = max(log_likelihoods)
    shares = [math.exp(value - most) for value in log_likelihoods]
    return [share / math.fsum(shares) for share in shares]


# --- Templates ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Template:
    """A saved prompt. `system` goes before it as the system message."""

    name: str
    body: str
    system: str = ""


def fill(body: str, variables: Mapping[str, Any]) -> str:
    """`body` with its {{variables}} filled in, in a Jinja sandbox. UsageError names what is missing or wrong."""
    try:
        return _ENVIRONMENT.from_string(body).render(variables)
    except jinja2.UndefinedError as error:
        missing = [name for name in variables_of(body) if name not in variables]
        if not missing:
            raise UsageError(f"the template asks for what is not there: {error}") from None
        flags = " ".join(f"--var {name}=..." for name in missing)
        raise UsageError(f"the template needs {', '.join(missing)}", cure=flags) from None
    except jinja2.TemplateError as error:
        raise UsageError(f"the template does not parse: {error}") from None
    except Exception as error:  # a template is a program: anything can go wrong in it
        raise UsageError(f"the template failed: {type(error).__name__}: {error}") from None


def variables_of(body: str) -> list[str]:
    """The names that `body` uses, sorted. UsageError when it does not parse."""
    try:
        return sorted(jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(body)))
    except jinja2.TemplateError as error:
        raise UsageError(f"the template does not parse: {error}") from None


def save_template(template: Template) -> None:
    """Keeps a template in the workspace; one of the same name is replaced."""
    if not template.name or template.name != template.name.strip():
        raise UsageError("a template needs a name", where=repr(template.name))
    variables_of(template.body)
    with _database() as db:
        row = (template.name, template.body, template.system, time.time())
        db.execute("INSERT OR REPLACE INTO templates (name, body, system, created) VALUES (?, ?, ?, ?)", row)


def templates() -> list[Template]:
    """All saved templates by name."""
    with _database() as db:
        rows = db.execute("SELECT name, body, system FROM templates ORDER BY name").fetchall()
    return [Template(name, body, system or "") for name, body, system in rows]


def template(name: str) -> Template:
    """A saved template. NotFound with the nearest name otherwise."""
    saved = {t.name: t for t in templates()}
    if name not in saved:
        cure = nearest(name, saved) if saved else "save one: ladderlm prompts save NAME TEXT"
        raise NotFound(f"no prompt template {name!r}", cure=cure)
    return saved[name]


def remove_template(name: str) -> None:
    template(name)
    with _database() as db:
        db.execute("DELETE FROM templates WHERE name = ?", (name,))


@contextlib.contextmanager
def _database() -> Iterator[Any]:
    """The workspace's database for one transaction."""
    with contextlib.closing(store.database()) as db, db:
        yield db
