"""Settings: defaults < user file < recipe < environment < flag. An unknown key is an error with the nearest name.

A command's settings are one flat frozen dataclass beside its `run(config)`; `option()` gives a field its help text.
The user file is `config.toml` in the workspace; a recipe is any TOML file; both hold one table per command.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ladderlm.errors import FormatError, NotFound, UsageError, nearest

T = TypeVar("T")


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    positional: bool = False,
    short: str | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """A dataclass field that is also a command-line option.

    A field without default is a required positional argument; `positional=True` with a default is an optional one;
    a tuple-typed positional takes any number of values and a tuple-typed flag may be repeated.
    """
    meta = {"help": help, "positional": positional, "short": short, "choices": choices}
    return dataclasses.field(default=default, metadata=meta)


def user_file() -> Path:
    return Path(os.environ.get("LADDERLM_HOME") or Path.home() / ".ladderlm").expanduser() / "config.toml"


def read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as f:
            return tomllib.load(f)
    except FileNotFoundError:
        raise NotFound("no such recipe", where=str(path)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"not valid TOML: {error}", where=str(path)) from None


def load(
    cls: type[T],
    section: str,
    *,
    recipe: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> T:
    """`cls` filled from all layers. `section` names the TOML table and the environment prefix."""
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for path in (user_file(), recipe):
        if path is None or (path is not recipe and not path.exists()):
            continue
        table = read_toml(path).get(section, {})
        values |= _checked(cls, table, f"[{section}] in {path}")
    prefix = f"LADDERLM_{section.upper().replace('.', '_')}_"
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        if (raw := environ.get(prefix + f.name.upper())) is not None:
            values[f.name] = _from_text(f.name, _hints(cls)[f.name], raw)
    values |= _checked(cls, flags or {}, "flags")
    missing = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and f.name not in values]  # type: ignore[arg-type]
    if missing:
        raise UsageError(f"missing: {', '.join(missing)}", where=section)
    return cls(**values)


def add_arguments(parser: argparse.ArgumentParser, cls: type) -> None:
    """Adds one argument per field of `cls`; absent flags stay absent, so that lower layers show through."""
    hints = _hints(cls)
    for f in dataclasses.fields(cls):
        hint, many = _scalar(hints[f.name])
        required = f.default is dataclasses.MISSING
        text = f.metadata.get("help", "")
        if not required and f.default not in (None, (), "", False):
            text += f" (default: {f.default})"
        kwargs: dict[str, Any] = {"help": text.replace("%", "%%")}
        if f.metadata.get("choices"):
            kwargs["choices"] = f.metadata["choices"]
        if required or f.metadata.get("positional"):
            nargs = ("+" if required else "*") if many else (None if required else "?")
            if not required:
                kwargs["default"] = argparse.SUPPRESS
            parser.add_argument(f.name, nargs=nargs, type=_parser(f.name, hint), metavar=f.name.upper(), **kwargs)
            continue
        names = ["--" + f.name.replace("_", "-")]
        if f.metadata.get("short"):
            names.insert(0, f.metadata["short"])
        kwargs |= {"dest": f.name, "default": argparse.SUPPRESS}
        if hint is bool:
            parser.add_argument(*names, action=argparse.BooleanOptionalAction if f.default else "store_true", **kwargs)
        else:
            kwargs["metavar"] = None if kwargs.get("choices") else f.name.upper()
            action = "append" if many else "store"
            parser.add_argument(*names, type=_parser(f.name, hint), action=action, **kwargs)


def collect(cls: type[T], section: str, args: argparse.Namespace, recipe: Path | None = None) -> T:
    """The settings for a parsed command line."""
    names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    flags = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(args).items() if k in names}
    return load(cls, section, recipe=recipe, flags=flags)


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _scalar(hint: Any) -> tuple[Any, bool]:
    """The element type of `hint`, and whether it holds many."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _scalar(next(a for a in args if a is not type(None)))
    if origin is tuple:
        return args[0], True
    if origin is typing.Literal:
        return str, False
    return hint, False


def _parser(name: str, hint: Any) -> Any:
    def parse(text: str) -> Any:
        try:
            return _from_text(name, hint, text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def _from_text(name: str, hint: Any, text: str) -> Any:
    hint, many = _scalar(hint)
    if many:
        return tuple(_from_text(name, hint, t) for t in text.split(",") if t)
    if hint is bool:
        if text.lower() not in ("0", "1", "true", "false", "yes", "no"):
            raise UsageError(f"{name} must be true or false", where=text)
        return text.lower() in ("1", "true", "yes")
    try:
        return hint(text)
    except (TypeError, ValueError):
        raise UsageError(f"{name} must be {hint.__name__}", where=repr(text)) from None


def _checked(cls: type, table: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(table, Mapping):
        raise FormatError("must be a table", where=where)
    hints, out = _hints(cls), {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in hints:
            raise UsageError(f"unknown setting {key!r}", where=where, cure=nearest(name, hints))
        hint, many = _scalar(hints[name])
        if many and isinstance(value, (list, tuple)):
            value = tuple(hint(v) for v in value)
        elif hint is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        elif hint is Path and isinstance(value, str):
            value = Path(value)
        elif value is not None and isinstance(hint, type) and not isinstance(value, hint):
            raise UsageError(f"{key} must be {hint.__name__}, not {type(value).__name__}", where=where)
        out[name] = value
    return out
