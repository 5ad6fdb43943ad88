"""One-page reports: text, tables, samples side by side and curves, as Markdown and as one HTML file without scripts."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ladderlm.evals.curve import Curve, slug, to_svg
from ladderlm.store import atomic_file, make_dir


@dataclass(frozen=True, slots=True)
class Text:
    """Markdown: paragraphs, "- " lists, **bold**, `code` and [links](https://...)."""

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Samples:
    """Answers to the same prompts side by side, shown as written: `rows` are (prompt, answer, answer, ...)."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Picture:
    """A finished drawing: one <svg> element that carries its styles. Wider than the page, it scrolls."""

    name: str
    svg: str
    caption: str = ""

    @property
    def slug(self) -> str:
        return slug(self.name)


Item = Text | Table | Samples | Curve | Picture


@dataclass(frozen=True, slots=True)
class Section:
    heading: str
    items: list[Item] = field(default_factory=list)


class Report:
    """A title and sections, filled from top to bottom, for a folder: report.md, report.html and a file per curve."""

    def __init__(self, title: str, summary: str = "") -> None:
        self.title = title
        self.sections = [Section("", [Text(summary)] if summary else [])]

    def section(self, heading: str, text: str = "") -> Report:
        """Begins a section; what is added next belongs to it."""
        self.sections.append(Section(heading, [Text(text)] if text else []))
        return self

    def text(self, text: str) -> Report:
        self.sections[-1].items.append(Text(text))
        return self

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> Report:
        self.sections[-1].items.append(Table(columns, rows, caption))
        return self

    def samples(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Report:
        self.sections[-1].items.append(Samples(columns, rows))
        return self

    def curve(
        self, name: str, lines: Mapping[str, Sequence[tuple[float, float]]], x: str = "step", y: str = "",
        dots: Mapping[str, Sequence[tuple[float, float]]] | None = None, log: bool = False,
    ) -> Report:  # fmt: skip
        """A drawing of named lines of (x, y) points, as Curve tells. `name` also names its file."""
        self.sections[-1].items.append(Curve(name, lines, x, y or name, dots or {}, log))
        return self

    def picture(self, name: str, svg: str, caption: str = "") -> Report:
        """A drawing made elsewhere. `name` also names its file."""
        self.sections[-1].items.append(Picture(name, svg, caption))
        return self

    @property
    def drawings(self) -> dict[str, str]:
        """The <svg> elements by the names of their files."""
        items = [item for section in self.sections for item in section.items]
        drawn = {f"{c.slug}.svg": to_svg(c) for c in items if isinstance(c, Curve)}
        return drawn | {f"{p.slug}.svg": p.svg for p in items if isinstance(p, Picture)}

    def to_markdown(self) -> str:
        parts = [f"# {_line(self.title)}"]
        for section in self.sections:
            if section.heading:
                parts.append(f"## {_line(section.heading)}")
            parts += [_markdown(item) for item in section.items]
        return "\n\n".join(parts) + "\n"

    def to_html(self) -> str:
        """One self-contained page: inline styles and drawings, light and dark, no script; every text is escaped."""
        parts = [f"<h1>{html.escape(self.title)}</h1>"]
        for section in self.sections:
            inner = "\n".join(_html(item) for item in section.items)
            heading = f"<h2>{html.escape(section.heading)}</h2>\n" if section.heading else ""
            parts.append(f"<section>\n{heading}{inner}\n</section>")
        return _PAGE.format(title=html.escape(self.title), style=_STYLE, body="\n".join(parts))

    def write(self, folder: str | Path) -> Path:
        """Writes the files, each whole or not at all. Returns the path of report.html."""
        folder = make_dir(Path(folder))
        pages = {"report.md": self.to_markdown(), "report.html": self.to_html()}
        for name, text in (self.drawings | pages).items():
            with atomic_file(folder / name) as file:
                file.write(text)
        return folder / "report.html"


def cell(value: Any) -> str:
    """A table cell: three significant digits for fractions, thousands set apart in whole numbers."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "–" if value is None else str(value)


# --- Markdown -----------------------------------------------------------------------------------------------------


def _line(text: str) -> str:
    return " ".join(text.split())


def _markdown(item: Item) -> str:
    match item:
        case Text():
            return item.text.strip()
        case Curve():
            return f"![{_line(item.name)}]({item.slug}.svg)"
        case Picture():
            drawn = f"![{_line(item.name)}]({item.slug}.svg)"
            return f"{drawn}\n\n{item.caption}" if item.caption else drawn
        case Samples():
            rows = [[f"`{_line(r[0])}`" if r else "", *r[1:]] for r in item.rows]
            return _markdown_table(item.columns, rows)
        case Table():
            table = _markdown_table(item.columns, [[cell(v) for v in row] for row in item.rows])
            return f"{table}\n\n{item.caption}" if item.caption else table


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str]) -> str:
        safe = (html.escape(c, quote=False).replace("|", "\\|").strip().replace("\n", "<br>") for c in cells)
        return "| " + " | ".join(safe) + " |"

    return "\n".join([row(columns), "|" + " --- |" * len(columns), *map(row, rows)])


# --- HTML ---------------------------------------------------------------------------------------------------------


def _html(item: Item) -> str:
    match item:
        case Text():
            return _html_text(item.text)
        case Curve():
            caption = f"<figcaption>{html.escape(item.name)}</figcaption>"
            return f"<figure>\n{to_svg(item)}\n{caption}\n</figure>"
        case Picture():
            caption = f"<figcaption>{html.escape(item.caption)}</figcaption>" if item.caption else ""
            return f'<figure>{caption}\n<div class="wide picture">{item.svg}</div>\n</figure>'
        case Samples():
            head = "".join(f"<th>{html.escape(c)}</th>" for c in item.columns)
            body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>\n" for row in item.rows)
            return f'<div class="wide"><table class="samples"><tr>{head}</tr>\n{body}</table></div>'
        case Table():
            numbers = [all(_is_number(v) for v in column) for column in zip(*item.rows, strict=True)]
            kinds = [' class="number"' if number else "" for number in numbers or [False] * len(item.columns)]
            head = "".join(f"<th{k}>{html.escape(c)}</th>" for c, k in zip(item.columns, kinds, strict=True))
            rows = ["".join(_html_cell(v) for v in row) for row in item.rows]
            body = "".join(f"<tr>{row}</tr>\n" for row in rows)
            caption = f"<caption>{html.escape(item.caption)}</caption>" if item.caption else ""
            return f'<div class="wide"><table>{caption}<tr>{head}</tr>\n{body}</table></div>'


def _html_cell(value: Any) -> str:
    return f'<td class="number">{cell(value)}</td>' if _is_number(value) else f"<td>{html.escape(cell(value))}</td>"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _html_text(text: str) -> str:
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.splitlines()
        if lines and all(line.startswith("- ") for line in lines):
            blocks.append("<ul>" + "".join(f"<li>{_inline(line[2:])}</li>" for line in lines) + "</ul>")
        else:
            blocks.append(f"<p>{_inline(block)}</p>")
    return "\n".join(blocks)


def _inline(text: str) -> str:
    text = html.escape(text)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    text = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
    return re.sub(r"\[([^\]]+)\]\((https?://[^\s)]+|[\w./-]+)\)", r'<a href="\2">\1</a>', text)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5b6068; --line: #d8dbe0; --page: #fff; --tint: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #a0a6b0; --line: #3a3f47; --page: #16181c; --tint: #1f2227; }
}
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
code { font-family: ui-monospace, monospace; font-size: .92em; background: var(--tint); padding: .1em .3em; }
.wide { overflow-x: auto; } figure { margin: 1rem 0; } figcaption, caption { color: var(--soft); text-align: left; }
table { border-collapse: collapse; font-size: .94rem; margin: 1rem 0; }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem; border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
table.samples { table-layout: fixed; width: 100%; min-width: 40rem; }
table.samples td { white-space: pre-wrap; word-wrap: break-word; }
svg { max-width: 100%; height: auto; } .picture svg { max-width: none; }
@media print { body { margin: 0; max-width: none; } }
"""
