"""`ladderlm prompts`: saved prompt templates, for `ask --template`."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ladderlm.cli import args, show
from ladderlm.config import option
from ladderlm.errors import UsageError, nearest
from ladderlm.talk import prompting

_USAGE = """usage: ladderlm prompts list|show NAME|save NAME [TEXT]|rm NAME

Prompt templates for ladderlm ask --template NAME. {{name}} in the text is filled by --var name=value,
{{prompt}} by the prompt. `save` reads the text from stdin when it is not given; -s adds a system message."""


@dataclass(frozen=True)
class List:
    json: bool = option(False, "print JSON")


@dataclass(frozen=True)
class Show:
    name: str = option(help="the template")
    json: bool = option(False, "print JSON")


@dataclass(frozen=True)
class Save:
    name: str = option(help="what to call it; an existing one is replaced")
    text: tuple[str, ...] = option((), "the prompt, with {{variables}}; default: stdin", positional=True)
    system: str = option("", "system message", short="-s")


@dataclass(frozen=True)
class Remove:
    name: str = option(help="the template")


def main(argv: list[str]) -> int:
    actions = {"list": _list, "show": _show, "save": _save, "rm": _rm}
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if argv else 2
    if argv[0] not in actions:
        raise UsageError(f"unknown action {argv[0]!r}", cure=nearest(argv[0], actions))
    return actions[argv[0]](argv[1:])


def _list(argv: list[str]) -> int:
    config = args.parse("prompts list", List, argv)
    saved = prompting.templates()
    if config.json:
        show.emit_json([_plain(t) for t in saved])
    else:
        rows = [(t.name, ", ".join(prompting.variables_of(t.body)), " ".join(t.body.split())[:60]) for t in saved]
        show.table(rows, ("name", "variables", "text"))
    return 0


def _show(argv: list[str]) -> int:
    config = args.parse("prompts show", Show, argv)
    template = prompting.template(config.name)
    if config.json:
        show.emit_json(_plain(template))
    else:
        print((f"[system] {template.system}\n\n" if template.system else "") + template.body)
    return 0


def _save(argv: list[str]) -> int:
    config = args.parse("prompts save", Save, argv)
    body = " ".join(config.text) or (sys.stdin.read().strip() if not sys.stdin.isatty() else "")
    if not body:
        raise UsageError("no text", cure="give it after the name, or pipe it in")
    prompting.save_template(prompting.Template(config.name, body, config.system))
    return 0


def _rm(argv: list[str]) -> int:
    prompting.remove_template(args.parse("prompts rm", Remove, argv).name)
    return 0


def _plain(template: prompting.Template) -> dict[str, object]:
    return {
        "name": template.name,
        "text": template.body,
        "system": template.system,
        "variables": prompting.variables_of(template.body),
    }
