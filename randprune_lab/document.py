"""Pages that open anywhere, offline and without a script: the frame, and what stands in it."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

from randprune_lab import charts


def document(title: str, body: Iterable[str]) -> str:
    """A whole page; ``body``: its parts, HTML."""
    return _FRAME.format(title=text_of(title), style=_STYLE, body="\n".join(body))


def text_of(text: str) -> str:
    """Plain text as HTML."""
    return html.escape(text, quote=True)


def items(lines: Iterable[str]) -> str:
    """A list of plain sentences."""
    return f"<ul>{''.join(f'<li>{text_of(line)}</li>' for line in lines)}</ul>"


def section(heading: str, *parts: str) -> str:
    """A part of the page; ``parts``: HTML."""
    return f"<section><h2>{heading}</h2>{''.join(parts)}</section>"


def table_of(
    head: Iterable[str], rows: Iterable[Iterable[str]], *, marked: Iterable[int] = (), kind: str = "numbers"
) -> str:
    """Cells are plain text; the rows whose places are ``marked`` stand out."""
    top = "".join(f'<th scope="col">{text_of(cell)}</th>' for cell in head)
    strong = set(marked)
    lines = [
        f"<tr{' class=marked' * (place in strong)}>{''.join(f'<td>{text_of(cell)}</td>' for cell in row)}</tr>"
        for place, row in enumerate(rows)
    ]
    table = f'<table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    return f'<div class="wide" tabindex="0">{table}</div>'


def figure_of(chart: Any, sentence: str) -> str:
    """A chart, and what it says in words."""
    return f"<figure>{charts.to_svg(chart)}<figcaption>{text_of(sentence)}</figcaption></figure>"


_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
_STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --soft: #555; --back: #fff; --line: #d5d5d5; --mark: #e3f1fa;
  --notice: #fff1e0; --link: #0b5c93; }
@media (prefers-color-scheme: dark) { :root { --text: #e8e8e8; --soft: #b0b0b0; --back: #17191c; --line: #40444a;
  --mark: #17384d; --notice: #4a3010; --link: #7cc4f5; } }
@media print { :root { color-scheme: light; --text: #000; --soft: #444; --back: #fff; --line: #bbb; --mark: #e3f1fa;
  --notice: #fff1e0; --link: #000; } .wide { overflow: visible !important; } table { font-size: 0.68rem !important; }
  figure, tr { break-inside: avoid; } h2 { break-after: avoid; } }
body { max-width: 66rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; color: var(--text); background: var(--back);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 0.75rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0.75rem; border-bottom: 1px solid var(--line); padding-bottom: 0.25rem; }
a { color: var(--link); }
.summary { font-size: 1.1rem; max-width: 48rem; }
.notice { background: var(--notice); border-left: 4px solid #d55e00; padding: 0.6rem 0.9rem; }
.note, figcaption, footer { color: var(--soft); font-size: 0.87rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; line-height: 1.35; overflow-wrap: normal; }
th, td { padding: 0.3rem 0.45rem; border-bottom: 1px solid var(--line); vertical-align: top; text-align: left; }
th { vertical-align: bottom; border-bottom: 2px solid var(--line); }
.numbers th, .numbers td { text-align: right; }
.numbers td { white-space: nowrap; font-variant-numeric: tabular-nums; }
.candidates th:last-child, .candidates td:last-child { text-align: left; white-space: normal; min-width: 8rem; }
.words td:nth-child(-n+3) { overflow-wrap: anywhere; max-width: 16rem; }
.words td:first-child { white-space: nowrap; }
.claims td:first-child { min-width: 13rem; }
.marked td { background: var(--mark); font-weight: 600; }
.words .marked td:last-child { font-weight: 400; }
figure { margin: 1.25rem 0; }
figure svg { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; }
figcaption { margin-top: 0.4rem; max-width: 48rem; }
summary { cursor: pointer; margin: 0.5rem 0; }
li { margin: 0.2rem 0; }
footer { margin-top: 2.5rem; }
"""
