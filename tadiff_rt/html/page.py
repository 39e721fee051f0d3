"""The page: template, style sheet, scripts and data put together."""

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from tadiff_rt.html import words
from tadiff_rt.html.controls import controls, figures
from tadiff_rt.html.curve import growth_curve, legend
from tadiff_rt.html.nodes import markup, node
from tadiff_rt.html.provenance import how_made, limits, notes, training_banner
from tadiff_rt.html.tables import covers, differences_in_words, volume_table
from tadiff_rt.html.viewer import viewer_data
from tadiff_rt.overview import comparison_png
from tadiff_rt.panels import warning
from tadiff_rt.scenarios import Comparison

MAX_BYTES = 14_000_000
"""Of a page: few mail servers and ticket systems take files that are larger."""
FRAME_BYTES = 200_000
"""Of them, more than headers, names of volumes and controls take."""

WORKING = 8
"""Float32 volumes while one is mapped back, cropped, averaged, quantised and compressed."""
TEXTS = 6
"""Copies of the text at a time: volumes, JSON, escaped JSON, the page, and its bytes."""

SCRIPTS = ("niivue.umd.js", "volumes.js", "outlines.js", "overlays.js", "report.js")


def report_html(comparison: Comparison) -> bytes:
    """A page to look at a comparison: one file, which loads nothing and needs no network.

    Last scan beside forecast with overlays, the growth curve, volumes and differences, how all
    of it was made. The volumes are cropped to the head and averaged over blocks until the page
    is at most MAX_BYTES; it says at which resolution it shows them. It holds neither the name of
    the case nor paths. Equal comparisons give equal bytes.

    Returns:
        HTML in UTF-8.
    """
    picture = comparison_png(comparison)
    parts = _text_parts(comparison)
    parts["overview"] = base64.b64encode(picture).decode()
    scripts = [_file(name) for name in SCRIPTS]
    style = _file("report.css")
    parts["style"] = style
    parts["scripts"] = "\n".join(f"<script>{script}</script>" for script in scripts)
    parts["policy"] = _policy(scripts, style)
    parts["licences"] = markup(node("pre", _file("niivue.LICENSES.txt")))
    rest = sum(len(part.encode()) for part in parts.values())
    data = viewer_data(comparison, MAX_BYTES - rest - FRAME_BYTES)
    parts["controls"] = markup(*controls(comparison, data))
    parts["figures"] = markup(*figures(comparison, data))
    parts["data"] = _json(data)
    return Template(_file("page.html")).substitute(parts).encode()


def page_memory_bytes(voxels: int, days: int) -> int:
    """What `report_html` takes at most beside the comparison.

    The voxels, in bytes, that later volumes are the difference to: three images of the last scan,
    and a mean and a deviation of each of the first scenario of a day; WORKING copies of a volume;
    and the text.

    Args:
        voxels: of a volume of the patient; a cropped page takes less.
        days: with a scenario.
    """
    return (3 + 6 * days) * voxels + WORKING * 4 * voxels + TEXTS * MAX_BYTES


def _text_parts(comparison: Comparison) -> dict[str, str]:
    """The parts of the page that are words, tables and drawings."""
    scenarios = list(comparison.forecasts)
    days = list(dict.fromkeys(s.day for s in scenarios))
    plans = list(dict.fromkeys(words.treatment(s.treatment) for s in scenarios))
    when = f"day{'s'[: len(days) - 1]} {words.listed([str(day) for day in days])}"
    last = f" Last scan: day {comparison.past[-1].day}." if comparison.past else ""
    differences = (
        [
            node("h3", "Differences between treatments"),
            differences_in_words(comparison),
            node(
                "p",
                "Every treatment was drawn with the same noise, so its samples are compared one "
                "by one with those of the reference. The interval is that of one further pair.",
                class_="small",
            ),
        ]
        if comparison.differences
        else []
    )
    return {
        "summary": markup(
            node("p", f"Forecasts for {when}, under {words.listed(plans)}.{last}", class_="lead")
        ),
        "banner": markup(*training_banner(comparison)),
        "notes": markup(*notes(comparison)),
        "curve": markup(growth_curve(comparison)),
        "legend": markup(node("p", legend(comparison), class_="small")),
        "table": markup(volume_table(comparison)),
        "covers": markup(node("p", covers(comparison), class_="small")),
        "differences": markup(*differences),
        "made": markup(how_made(comparison)),
        "limits": markup(limits()),
        "use": warning(*days),
    }


@cache
def _file(name: str) -> str:
    return (files("tadiff_rt.html") / name).read_text(encoding="utf-8")


def _policy(scripts: list[str], style: str) -> str:
    """What the browser may run and load: these very texts, and pictures inside the page."""
    hashes = " ".join(_hash(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src {_hash(style)}; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _json(data: Any) -> str:
    """JSON that no HTML parser takes for an end of the script that it stands in."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
