"""A page about a dataset: one HTML file that needs nothing else, light or dark as the reader's screen is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from ladderlm.data.licences import terms
from ladderlm.data.stats import Stats

_STYLE = """
:root{--ground:#fbfaf7;--card:#fff;--ink:#23262b;--soft:#6b7078;--line:#e6e3dc;--bar:#7d9cb5;--warn:#a8652a}
@media(prefers-color-scheme:dark){:root{--ground:#17191c;--card:#1f2226;--ink:#e4e2dd;--soft:#9a9da3;--line:#30343a;
--bar:#5d7f9b;--warn:#d69a62}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:60rem;margin:0 auto;padding:3rem 1.25rem 4rem}
h1{font-size:1.6rem;font-weight:600;margin:0;overflow-wrap:anywhere}
h2{font-size:1rem;font-weight:600;margin:0 0 .75rem}
p.about{color:var(--soft);margin:.25rem 0 2rem}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:1rem;margin:0 0 1rem;padding:0}
.figures div,section{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:1rem 1.15rem}
.figures dt{color:var(--soft);font-size:.85rem}
.figures dd{margin:0;font-size:1.45rem;font-variant-numeric:tabular-nums}
.parts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1rem;align-items:start}
section.wide{grid-column:1/-1}
section.wide td.b{width:75%}
table{width:100%;border-collapse:collapse;font-size:.9rem}
caption{text-align:left;color:var(--soft);font-size:.85rem;caption-side:bottom;padding-top:.6rem}
th{font-weight:400;text-align:left;padding:.2rem .75rem .2rem 0;max-width:16rem;overflow-wrap:anywhere}
td{padding:.2rem 0}
td.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums;padding-left:.75rem;width:1%}
td.b{width:45%}
td.b i{display:block;height:.6rem;border-radius:.3rem;background:var(--bar);min-width:2px}
small{color:var(--warn)}
footer{color:var(--soft);font-size:.85rem;margin-top:2rem}
"""


def render_page(name: str, found: Stats, shown: int = 12) -> str:
    """The page of a dataset called `name`; each list shows its `shown` largest entries."""
    figures = [("records", f"{found.records:,}"), ("words", f"{found.words:,}")]
    if found.tokens is not None:
        figures.append(("tokens", f"{found.tokens:,}"))
    size = f"{found.bytes / 1e9:,.1f} GB" if found.bytes >= 1e9 else f"{found.bytes / 1e6:,.1f} MB"
    share = f" ({found.repeated / found.records:.1%})" if found.records else ""
    figures += [("size", size), ("repeated", f"{found.repeated:,}{share}")]
    least, median, high, most = found.words_each
    about = f"A record has {median:,} words in the middle of the range, {least:,} at least, {most:,} at most."
    parts = [_lengths(found.lengths, f"95 % of the records have at most {high:,} words.")]
    for title, counts in (("Domains", found.domains), ("Sources", found.sources), ("Languages", found.languages),
                          ("Kinds", found.kinds), ("Labels", found.labels)):  # fmt: skip
        parts.append(_bars(title, counts, shown))
    parts.append(_licences(found.licences, shown))
    cards = "".join(f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd></div>" for what, value in figures)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(name)}</title><style>{_STYLE}</style></head><body><main>"
        f'<h1>{escape(name)}</h1><p class="about">{escape(about)}</p><dl class="figures">{cards}</dl>'
        f'<div class="parts">{"".join(parts)}</div><footer>Made by LadderLM: ladderlm data stats --page</footer>'
        "</main></body></html>\n"
    )


def _table(title: str, rows: Sequence[tuple[str, int]], note: str = "", wide: bool = False) -> str:
    """`rows` are (name in HTML, count), with a bar each."""
    if not rows:
        return ""
    most = max(count for _, count in rows) or 1
    body = "".join(f'<tr><th scope="row">{name}</th>{_bar(count, most)}</tr>' for name, count in rows)
    caption = f"<caption>{escape(note)}</caption>" if note else ""
    return f"<section{' class=wide' if wide else ''}><h2>{escape(title)}</h2><table>{caption}{body}</table></section>"


def _bar(count: int, most: int) -> str:
    line = f'<i style="width:{100 * count / most:.1f}%"></i>' if count else ""
    return f'<td class="b">{line}</td><td class="n">{count:,}</td>'


def _bars(title: str, counts: Mapping[str, int], shown: int) -> str:
    rows = [(escape(name or "(none)"), count) for name, count in list(counts.items())[:shown]]
    more = len(counts) - shown
    return _table(title, rows, f"and {more:,} more" if more > 0 else "")


def _licences(counts: Mapping[str, int], shown: int) -> str:
    rows = []
    for name, count in list(counts.items())[:shown]:
        flags = ", ".join(terms(name).flags)
        rows.append((escape(name or "(none)") + (f"<br><small>{escape(flags)}</small>" if flags else ""), count))
    return _table("Licences", rows)


def _lengths(lengths: Sequence[int], note: str) -> str:
    first = next((i for i, n in enumerate(lengths) if n), 0)
    rows = [(f"up to {2**i:,} words", n) for i, n in enumerate(lengths) if i >= first]
    return _table("Lengths", rows, note, wide=True)
