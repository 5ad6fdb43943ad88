"""The conversation at the terminal: streamed answers, /commands, history kept in the workspace."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ladderlm import store
from ladderlm.cli import args, show
from ladderlm.cli.talking import SamplingFlags, changed, note, say, started, think, visible
from ladderlm.config import option
from ladderlm.errors import FormatError, LadderError, NotFound, UsageError, nearest
from ladderlm.talk import Talker
from ladderlm.types import Conversation, Delta, Message, Sampling

HELP = """\
/help                  this list
/system [TEXT]         set the system message; without TEXT take it away
/model [REF]           go on with another model; without REF tell which one it is
/set [NAME=VALUE]      such as /set temperature=0.5; without it show the settings
/retry                 answer the last question again
/undo                  take back the last question and its answer
/clear                 start afresh; the system message stays
/save FILE, /load FILE keep the conversation in a JSON file, go on with one
/next [K]              the K likeliest tokens that could come next, right here
/exit                  leave (so does Ctrl-D); Ctrl-C stops an answer"""


@dataclass(frozen=True)
class Chat(SamplingFlags):
    system: str = option("", "system message", short="-s")
    resume: str = option("", 'go on with a kept conversation: its number, or "last"')


def main(argv: list[str]) -> int:
    config = args.parse("chat", Chat, argv, description="Talk with a model. /help tells the commands.")
    if config.json:
        raise UsageError("a conversation is not JSON", cure="ladderlm ask --json, or /save FILE")
    session = Session(config)
    try:
        return session.run()
    finally:
        session.close()


class _Leave(Exception):
    """/exit was typed."""


class Session:
    """One conversation and the model it is had with."""

    def __init__(self, config: Chat) -> None:
        self._config = config
        self.conversation = Conversation((Message.of("system", config.system),) if config.system else ())
        self._row: int | None = None
        if config.resume:
            self._row, self.conversation = _kept(config.resume)
        self._ref = config.model
        self._talker: Talker = config.open()
        self.sampling: Sampling = config.over(self._talker.defaults)
        self._person = sys.stdin.isatty() and sys.stdout.isatty()
        self._failed = False

    def close(self) -> None:
        self._talker.close()

    def run(self) -> int:
        """Reads lines until their end or /exit. In a pipe the exit code tells whether every line went well."""
        if self._person:
            note(f"{self._talker.name}. /help tells the commands, Ctrl-D leaves.")
        for line in self._lines():
            try:
                if line.startswith("/"):
                    self._command(line)
                elif line.strip():
                    self._ask(line)
            except _Leave:
                break
            except KeyboardInterrupt:
                sys.stderr.write("\n")
            except LadderError as error:
                self._failed = True
                sys.stderr.write(f"{error}\n")
        return int(self._failed and not self._person)

    def _lines(self) -> Iterator[str]:
        if not self._person:
            for line in sys.stdin:
                yield line.rstrip("\n")
            return
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives input() editing and history
        while True:
            try:
                yield input("> ")
            except EOFError:
                sys.stdout.write("\n")
                return
            except KeyboardInterrupt:
                sys.stdout.write("\n")
                note("Ctrl-D leaves.")

    # --- Talking --------------------------------------------------------------------------------------------------

    def _ask(self, text: str) -> None:
        before = self.conversation
        self.conversation = before.add("user", text)
        try:
            self._reply()
        except BaseException:
            self.conversation = before
            raise

    def _reply(self) -> None:
        """Streams an answer; one that Ctrl-C stopped is kept as far as it came."""
        said: list[str] = []
        stream = started(self._talker.stream(self.conversation, dataclasses.replace(self.sampling, n=1)))
        began, tokens, last = time.monotonic(), 0, Delta()
        try:
            for delta in stream:
                last, tokens = delta if delta.finish_reason else last, tokens + len(delta.tokens)
                if delta.part == "reasoning":
                    think(delta.text)
                elif delta.part == "text":
                    said.append(delta.text)
                    say(delta.text)
        except KeyboardInterrupt:
            if not said:
                raise
            note("\n(stopped)")
        finally:
            getattr(stream, "close", lambda: None)()
        say("\n")
        if last.finish_reason == "length":
            note("(cut off: the limit of tokens or the context was reached)")
        elif self._person and tokens > 1:
            note(f"({tokens} tokens, {tokens / max(1e-9, time.monotonic() - began):.0f} a second)")
        self.conversation = self.conversation.add("assistant", "".join(said))
        self._keep()

    def _keep(self) -> None:
        """Writes the conversation into the workspace's database."""
        values = (self._ref, _dump(self.conversation), json.dumps(self.sampling.to_dict()))
        with contextlib.closing(store.database()) as db, db:
            if self._row is None:
                sql = "INSERT INTO conversations (model, conversation, sampling, created) VALUES (?, ?, ?, ?)"
                self._row = db.execute(sql, (*values, time.time())).lastrowid
            else:
                sql = "UPDATE conversations SET model = ?, conversation = ?, sampling = ? WHERE id = ?"
                db.execute(sql, (*values, self._row))

    # --- Commands -------------------------------------------------------------------------------------------------

    def _command(self, line: str) -> None:
        name, _, rest = line[1:].strip().partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: print(HELP),
            "system": self._system,
            "model": self._model,
            "set": self._set,
            "retry": self._retry,
            "undo": self._undo,
            "clear": self._clear,
            "save": self._save,
            "load": self._load,
            "next": self._next,
            "exit": self._exit,
        }
        if name not in commands:
            raise UsageError(f"unknown command /{name}", cure=nearest(name, commands))
        commands[name](rest.strip())

    def _exit(self, _: str) -> None:
        raise _Leave

    def _system(self, text: str) -> None:
        turns = [m for m in self.conversation.messages if m.role != "system"]
        if text:
            turns.insert(0, Message.of("system", text))
        self.conversation = dataclasses.replace(self.conversation, messages=tuple(turns))

    def _model(self, ref: str) -> None:
        if not ref:
            print(f"{self._talker.name} ({self._ref})")
            return
        config = dataclasses.replace(self._config, model=ref)
        new = config.open()
        self._talker.close()
        self._talker, self._ref, self._config = new, ref, config
        self.sampling = config.over(new.defaults)
        note(new.name)

    def _set(self, assignment: str) -> None:
        if assignment:
            self.sampling = changed(self.sampling, assignment)
        else:
            print("\n".join(f"{name}={value}" for name, value in self.sampling.to_dict().items()) or "all at default")

    def _turns(self) -> tuple[Message, ...]:
        """The conversation without its last question and what came after it."""
        turns = self.conversation.messages
        last = next((i for i in reversed(range(len(turns))) if turns[i].role == "user"), None)
        if last is None:
            raise UsageError("nothing was asked yet")
        return turns[:last]

    def _retry(self, _: str) -> None:
        before = self.conversation
        question = before.messages[len(self._turns())]
        self.conversation = dataclasses.replace(before, messages=(*self._turns(), question))
        try:
            self._reply()
        except BaseException:
            self.conversation = before
            raise

    def _undo(self, _: str) -> None:
        self.conversation = dataclasses.replace(self.conversation, messages=self._turns())
        if self._row is not None:
            self._keep()

    def _clear(self, _: str) -> None:
        system = tuple(m for m in self.conversation.messages if m.role == "system")
        self.conversation, self._row = dataclasses.replace(self.conversation, messages=system), None

    def _save(self, file: str) -> None:
        if not file:
            raise UsageError("no file named", cure="/save talk.json")
        data = {"format": 1, "model": self._ref, **self.conversation.to_dict(), "sampling": self.sampling.to_dict()}
        store.write_json(Path(file).expanduser(), data)
        note(f"kept in {file}")

    def _load(self, file: str) -> None:
        if not file:
            raise UsageError("no file named", cure="/load talk.json")
        data = store.read_json(Path(file).expanduser())
        if not isinstance(data, dict) or data.get("format") != 1:
            raise FormatError("not a conversation of this version", where=file)
        conversation = Conversation.from_dict({k: data[k] for k in ("messages", "tools") if k in data})
        sampling = Sampling.from_dict(data.get("sampling") or {})
        self.conversation, self.sampling, self._row = conversation, sampling, None
        note(f"{len(conversation.messages)} messages")

    def _next(self, count: str) -> None:
        if count and not (count.isdigit() and int(count)):
            raise UsageError("not a number of tokens", where=f"/next {count}")
        with show.progress():
            table = self._talker.next(self.conversation, int(count or 10))
        show.table([(visible(c.text), f"{math.exp(c.logprob):.2%}") for c in table], ("token", "probability"))


def _dump(conversation: Conversation) -> str:
    return json.dumps(conversation.to_dict(), ensure_ascii=False)


def _kept(which: str) -> tuple[int, Conversation]:
    """A conversation that the workspace keeps."""
    with contextlib.closing(store.database()) as db:
        if which == "last":
            row = db.execute("SELECT id, conversation FROM conversations ORDER BY id DESC LIMIT 1").fetchone()
        elif which.isdigit():
            row = db.execute("SELECT id, conversation FROM conversations WHERE id = ?", (int(which),)).fetchone()
        else:
            raise UsageError('must be a number or "last"', where=f"--resume {which}")
    if row is None:
        raise NotFound("no such conversation", where=f"--resume {which}")
    return int(row[0]), Conversation.from_dict(json.loads(row[1]))
