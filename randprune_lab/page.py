"""Panels 1 to 4 without Python: a page of its own for a browser, and a still picture for a saved notebook."""

from __future__ import annotations

import html
import itertools
import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from randprune_lab import charts, pictures
from randprune_lab.explorer import Explorer, controls_table
from randprune_lab.files import write_atomically
from randprune_lab.panels import Table
from randprune_lab.state import ExploreState

MICROSCOPE = Path(__file__).with_name("microscope.js")
MOST_TENSORS = 200  # that a page holds: some 25 KB each
MOST_DRAWN = 2**27  # weights that masks are drawn of for a page; beyond, only those of the tensor it opens with
LINE = 110  # characters of a sentence under a still picture


def write_page(path: str | Path, explorer: Explorer, state: ExploreState) -> Path:
    """Write panels 1 to 4 of every tensor, with these settings, into one file that opens anywhere without a network.

    Sliders rest; tensors, masks and pairs of masks can be chosen.

    Raises:
        ValueError: the weights cannot be read, or ``path`` cannot be a file.
        OSError: the file cannot be written.
    """
    target = Path(path)
    if target.is_dir() or any(parent.is_file() for parent in target.absolute().parents):
        raise ValueError(f"{target}: no file can be written there. Name a file in a folder.")
    first = explorer.quick(state)
    if first["microscope"] is None:
        raise ValueError(" ".join(notice["text"] for notice in first["notices"]))
    names = _chosen(explorer, state)
    drawable = sum(explorer.source.tensors[name].n for name in names) <= MOST_DRAWN
    views = {name: _view(explorer, state.but(tensor=name), masks=drawable or name == state.tensor) for name in names}
    tables = [
        part for name, part in explorer.slow_parts(state, explorer.keys(state) | {"table": ""}) if name == "table"
    ]
    data = {
        "controls": {"kind": "controls", "controls": controls_table()},
        "source": {"kind": "source", **explorer.describe(), "moments": []},
        "table": {"kind": "table", "seq": 1, **tables[-1]} if tables else None,
        "views": views,
        "first": state.tensor,
    }
    title = f"{explorer.source.label} at sparsity {state.sparsity:g}"
    page = _FRAME.format(
        title=html.escape(title),
        data=json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
        module=MICROSCOPE.read_text(encoding="utf-8").replace("</script", "<\\/script"),
        still=still_picture(views[state.tensor]),
    )
    write_atomically(target, page.encode(errors="replace"))
    return target


def _chosen(explorer: Explorer, state: ExploreState) -> list[str]:
    """The tensors that the page shows: the one it opens with, then matrices in their order."""
    matrices = (info.name for info in explorer.source.tensors.values() if len(info.shape) >= 2)
    return list(dict.fromkeys([state.tensor, *matrices]))[:MOST_TENSORS]


def _view(explorer: Explorer, state: ExploreState, *, masks: bool) -> dict[str, Table]:
    view = {"quick": {"kind": "quick", **explorer.quick(state)}}
    wanted = {"sweep", "candidates"} if masks else {"sweep"}
    known = {name: key for name, key in explorer.keys(state).items() if name not in wanted}
    for name, part in explorer.slow_parts(state, known):
        view[name] = {"kind": name, **part}
    return view


def still_picture(view: dict[str, Table]) -> str:
    """Panels 1, 2, 4 and the agreement of the masks as one SVG, a sentence under each."""
    quick, sweep, drawn = view["quick"], view.get("sweep"), view.get("candidates")
    if quick["microscope"] is None:
        return _stacked([], [notice["text"] for notice in quick["notices"]])
    return _stacked(list(_pictures(quick, sweep, drawn)), [])


def _pictures(quick: Table, sweep: Table | None, drawn: Table | None) -> Iterable[tuple[str, str]]:
    panel, curve = quick["microscope"], quick["curve"]
    masks = drawn["drawn"] if drawn and not drawn["failed"] else []
    edges = panel["edges"]
    bars = [
        {"low": low, "high": high, **{kind: panel[kind][place] for kind in ("kept", "undecided", "pruned")}}
        for place, (low, high) in enumerate(itertools.pairwise(edges))
    ]
    yield charts.to_svg(pictures.microscope_chart(bars, panel["tau"], panel["reach_at"])), panel["sentence"]
    points = [{"magnitude": at, "q": q} for at, q in zip(curve["magnitudes"], curve["q"], strict=True)]
    dots = drawn["dots"] if drawn and masks else {"magnitudes": [], "kept": []}
    spots = [{"magnitude": at, "kept": kept} for at, kept in zip(dots["magnitudes"], dots["kept"], strict=True)]
    yield charts.to_svg(pictures.keep_curve_chart(points, curve["tau"], spots)), curve["sentence"]
    here = quick["point"]["values"][sweep["field"]] if sweep else None
    if sweep and sweep["x"] and here is not None and quick["point"]["ir"] is not None:
        line = [{"x": x, "ir": ir} for x, ir in zip(sweep["x"], sweep["ir"], strict=True)]
        known = [{"x": here, "ir": mask["ir"]} for mask in masks if mask["number"]]
        label = " ".join(filter(None, (sweep["label"], sweep["symbol"])))
        point = {"x": here, "ir": quick["point"]["ir"]}
        yield charts.to_svg(pictures.sweep_chart(line, label, sweep["scale"] == "log", point, known)), sweep["sentence"]
    if drawn and len(masks) > 1:
        labels = [mask["label"] for mask in masks]
        yield charts.to_svg(pictures.agreement_chart(drawn["agreement"], labels)), drawn["sentence"]


def _stacked(drawings: Sequence[tuple[str, str]], notices: Sequence[str]) -> str:
    """SVG pictures one below the other, the sentence of each under it."""
    parts, top, widest = [], 0.0, 720.0
    for svg, sentence in drawings:
        width, height = (float(re.search(rf'{side}="([\d.]+)', svg)[1]) for side in ("width", "height"))  # type: ignore[index]
        parts.append(svg.replace("<svg ", f'<svg x="0" y="{top:g}" ', 1))
        top, widest = top + height, max(widest, width)
        lines, top = _lines(sentence, top)
        parts.append(lines)
    for notice in notices:
        lines, top = _lines(notice, top + 8)
        parts.append(lines)
    words = _xml(" ".join([*(sentence for _, sentence in drawings), *notices]))
    size = f'width="{widest:g}" height="{top + 8:g}" viewBox="0 0 {widest:g} {top + 8:g}"'
    back = '<rect width="100%" height="100%" fill="white"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{words}">{back}{"".join(parts)}</svg>'
    )


def _xml(text: str) -> str:
    """As text of an XML document, which knows no control characters."""
    return html.escape("".join(sign if sign.isprintable() else "?" for sign in text), quote=True)


def _lines(sentence: str, top: float) -> tuple[str, float]:
    """A sentence as lines of text; where the next thing may begin."""
    style = 'font-family="sans-serif" font-size="12" fill="#444"'
    text = ""
    for line in textwrap.wrap(sentence, LINE):
        top += 16
        text += f'<text x="10" y="{top:g}" {style}>{_xml(line)}</text>'
    return text, top + 16


_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 0 auto; padding: 1rem; max-width: 100rem; font: 1rem/1.5 system-ui, sans-serif; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #17191c; color: #e8e8e8; }} }}
@media (prefers-color-scheme: light) {{ body {{ background: #fff; color: #1b1b1b; }} }}
h1 {{ font-size: 1.4rem; overflow-wrap: anywhere; }}
footer {{ margin-top: 1rem; font-size: 0.87rem; }}
noscript svg {{ max-width: 100%; height: auto; }}
</style>
</head>
<body>
<h1>{title}</h1>
<main id="panel"></main>
<noscript>{still}</noscript>
<footer>Made by RandPrune Lab. Method: <a href="https://arxiv.org/abs/2310.13183">arXiv 2310.13183</a>.</footer>
<script type="application/json" id="data">{data}</script>
<script type="module">
{module}
const data = JSON.parse(document.getElementById("data").textContent);
const NOTE = "This page was made with these settings: its sliders rest. Tensors, masks and pairs can be chosen; "
  + "move everything with randprune_lab.explore in Jupyter.";
// The answers that Python would give, from what the page holds.
const answer = (question) => {{
  const state = question.state ?? {{ tensor: data.first }};
  const view = data.views[state.tensor] ?? {{ quick: {{ ...data.views[data.first].quick,
    notices: [{{ kind: "warning", text: `${{state.tensor}} is not in this page.` }}] }} }};
  const kept = {{ pinned: state.pinned ?? null, pair: state.pair ?? null }};
  const seq = question.seq;
  setTimeout(() => {{
    panel.update({{ ...view.quick, seq, answers: seq, state: {{ ...view.quick.state, ...kept }} }});
    for (const name of ["sweep", "candidates"]) if (view[name]) panel.update({{ ...view[name], seq }});
  }});
}};
const panel = mount(document.getElementById("panel"), answer, {{ frozen: true, note: NOTE }});
for (const name of ["controls", "source", "table"]) if (data[name]) panel.update(data[name]);
</script>
</body>
</html>
"""
