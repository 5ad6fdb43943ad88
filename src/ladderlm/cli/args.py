"""A settings dataclass becomes a command line."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from ladderlm import config
from ladderlm.errors import nearest

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """argparse whose complaint about an unknown flag names the nearest one."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):  # type: ignore[no-untyped-def, override]
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [s for action in self._actions for s in action.option_strings]
            hint = f": {nearest(unknown[0], flags)}" if unknown[0].startswith("-") else ""
            self.error(f"unknown argument {unknown[0]!r}{hint}")
        return parsed

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: error: {message}\n  (see {self.prog} --help)\n")
        raise SystemExit(2)


def parse(prog: str, cls: type[T], argv: Sequence[str], section: str | None = None, description: str = "") -> T:
    """The settings that `argv` gives over the lower layers. `section` names the TOML table; default the verb."""
    parser = Parser(f"ladderlm {prog}", description=description, allow_abbrev=False)
    config.add_arguments(parser, cls)
    if "recipe" not in {f.name for f in dataclasses.fields(cls)}:  # type: ignore[arg-type]
        parser.add_argument("--recipe", type=Path, metavar="FILE", help="a TOML file, one table per command")
    args = parser.parse_args(list(argv))
    return config.collect(cls, section or prog.split()[0], args, getattr(args, "recipe", None))
