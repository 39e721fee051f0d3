"""Diagrams of the site, drawn while it is built: the usual way would load a program from afar."""

import re

import merm

FENCE = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, **kwargs: object) -> str:
    """`markdown` with every block of mermaid as inline SVG."""
    return FENCE.sub(lambda block: diagram(block[1]), markdown)


def diagram(source: str) -> str:
    """One flowchart as HTML of one line, which Markdown leaves alone."""
    svg = merm.render_diagram(source)
    return f'<div class="diagram">{" ".join(svg.split())}</div>'
