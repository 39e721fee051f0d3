"""Diagrams of the site, drawn while it is built: the usual way would load a program from afar.

merm draws flowcharts and pies. Bar charts it does not know: those are drawn here, by matplotlib,
from the few lines of the language that benchmarks/answers.py writes.
"""

import io
import json
import re

import merm

FENCE = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BAR, LINE, EDGE = "#0072B2", "#D55E00", "#888888"
"""Of Okabe and Ito 2008; grey reads on light and dark pages."""


def on_page_markdown(markdown: str, **kwargs: object) -> str:
    """`markdown` with every block of mermaid as inline SVG."""
    return FENCE.sub(lambda block: diagram(block[1]), markdown)


def diagram(source: str) -> str:
    """One diagram as HTML of one line, which Markdown leaves alone."""
    svg = xychart(source) if source.startswith("xychart-beta") else merm.render_diagram(source)
    return f'<div class="diagram">{" ".join(svg.split())}</div>'


def xychart(source: str) -> str:
    """A bar chart, upright or lying, with a line if there is one, as SVG.

    Raises:
        ValueError: a line of `source` is none that is understood.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    first, *lines = [line.strip() for line in source.strip().splitlines()]
    found: dict[str, str] = {}
    for line in lines:
        told = re.fullmatch(r"(title|x-axis|y-axis|bar|line) (.+)", line)
        if told is None:
            raise ValueError(f"not understood in a chart: {line!r}")
        found[told[1]] = told[2]
    names = [str(name) for name in json.loads(found["x-axis"])]
    bars = json.loads(found["bar"])
    lying = first.endswith("horizontal")
    figure = Figure(figsize=(8, 0.35 * len(names) + 0.9) if lying else (6, 3))
    axes = figure.add_subplot()
    if lying:
        drawn = axes.barh(names, bars, color=BAR)
        axes.invert_yaxis()
    else:
        drawn = axes.bar(names, bars, color=BAR)
    axes.bar_label(drawn, labels=[f"{value:g}" for value in bars], padding=3, color=EDGE)
    if "line" in found:
        axes.plot(names, json.loads(found["line"]), color=LINE, marker="o")
    axes.set_title(json.loads(found["title"]), color=EDGE, fontsize=10)
    axes.tick_params(colors=EDGE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(**{"x" if lying else "y": 0.12})
    picture = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "tadiff"}):
        figure.savefig(picture, format="svg", transparent=True, bbox_inches="tight",
                       metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))  # fmt: skip
    return picture.getvalue()[picture.getvalue().index("<svg") :]
