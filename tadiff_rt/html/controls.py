"""What the reader can choose in the viewer, and the frames of its two pictures."""

from typing import Any

from tadiff_rt.html import words
from tadiff_rt.html.nodes import Node, node
from tadiff_rt.scenarios import Comparison

NO_DIFFERENCE = "This plan is the reference: nothing to subtract from it."


def controls(comparison: Comparison, data: dict[str, Any]) -> list[Node]:
    """The choices: plan, sequence, view, overlay, opacity, outlines."""
    return [
        _plans(comparison),
        node(
            "div",
            node(
                "div",
                _buttons("sequence", "Sequence", list(words.TITLES.items()), "t1c"),
                _buttons(
                    "view", "View", [("axial", "Axial"), ("planes", "Three planes")], "axial"
                ),
                class_="row",
            ),
            node(
                "div",
                _overlay(data),
                _slider("opacity", "Opacity", 0, 100, 60),
                _outlines(),
                class_="row",
            ),
            class_="options",
        ),
    ]


def figures(comparison: Comparison, data: dict[str, Any]) -> list[Node]:
    """Last scan and forecast, the slice they show, and at which resolution."""
    last = comparison.past[-1] if comparison.past else None
    day = f", day {last.day}" if last else ""
    title = f"Last scan{day}: acquired"
    if last is not None and last.volume_ml is not None:
        title += f". Tumour {words.number(last.volume_ml)} ml"
    first = data["plans"][0]
    slices = data["kinds"]["image"]["shape"][2]
    return [
        _outline_keys(data),
        node(
            "div",
            _picture("last", title, ""),
            _picture("forecast", first["label"], first["volume"]),
            class_="pair",
        ),
        node(
            "div",
            _slider("slice", "Axial slice", 1, slices, data["start"][2] + 1),
            _colour_bar(),
            node("span", NO_DIFFERENCE, id="overlay-note", class_="small", hidden=""),
            class_="row under",
        ),
        node("p", "", id="values", class_="small values", aria_live="off"),
        node("p", _resolution(data), class_="small"),
    ]


def _outline_keys(data: dict[str, Any]) -> Node:
    keys = [("forecast-key", "forecast: tumour probability one half")]
    if data["last"]["mask"]:
        keys.insert(0, ("known-key", "known tumour mask of the last scan"))
    entries = [
        node("span", node("span", id=name, class_="key"), text, class_="entry")
        for name, text in keys
    ]
    return node("p", *entries, class_="legend-row")


def _plans(comparison: Comparison) -> Node:
    """Days by treatments; the chosen one is pressed."""
    scenarios = list(comparison.forecasts)
    treatments = list(dict.fromkeys(s.treatment for s in scenarios))
    days = list(dict.fromkeys(s.day for s in scenarios))
    rows = []
    for day in days:
        buttons = [
            node(
                "button",
                words.treatment(scenario.treatment),
                type="button",
                data_plan=i,
                aria_pressed="true" if i == 0 else "false",
            )
            for i, scenario in enumerate(scenarios)
            if scenario.day == day
        ]
        rows.append(
            node(
                "div",
                node("span", f"day {day}", class_="day"),
                *buttons,
                class_="plan-row",
            )
        )
    label = "Plan" if len(treatments) > 1 else "Day"
    return node("div", node("span", label, class_="name"), node("div", *rows), class_="plans")


def _buttons(group: str, title: str, choices: list[tuple[str, str]], chosen: str) -> Node:
    buttons = [
        node(
            "button",
            text,
            type="button",
            **{f"data_{group}": value},
            aria_pressed="true" if value == chosen else "false",
        )
        for value, text in choices
    ]
    return node("div", node("span", title, class_="name"), *buttons, class_="choice", role="group")


def _overlay(data: dict[str, Any]) -> Node:
    """Overlays that at least one plan has."""
    plans = data["plans"]
    choices = [("none", "None"), ("probability", "Tumour probability")]
    if plans[0]["std"]:
        choices.append(("std", "Uncertainty of the image"))
    if any(p["difference"] for p in plans):
        reference = next(p["reference"] for p in plans if p["difference"])
        choices.append(("difference", f"Difference to {reference}"))
    if any(p["difference_std"] for p in plans):
        choices.append(("difference_std", "Uncertainty of the difference"))
    options = [node("option", text, value=value) for value, text in choices]
    select = node("select", *options, id="overlay")
    return node("label", node("span", "Overlay", class_="name"), select, class_="choice")


def _outlines() -> Node:
    box = node("input", type="checkbox", id="outlines", checked="")
    return node("label", box, "Outlines", class_="check")


def _slider(name: str, title: str, low: int, high: int, value: int) -> Node:
    return node(
        "label",
        node("span", title, class_="name"),
        node("input", type="range", id=name, min=low, max=high, step=1, value=value),
        node("output", "", id=f"{name}-value"),
        class_="choice",
    )


def _picture(name: str, title: str, text: str) -> Node:
    stage = node(
        "div",
        node("canvas", id=f"{name}-canvas", tabindex=0, aria_label=title),
        node("canvas", id=f"{name}-ink", class_="ink", aria_hidden="true"),
        class_="stage",
    )
    caption = node(
        "figcaption",
        node("strong", title, id=f"{name}-title"),
        " ",
        node("span", text, id=f"{name}-text"),
    )
    return node("figure", stage, caption)


def _colour_bar() -> Node:
    return node(
        "div",
        node("span", "", id="bar-title", class_="name"),
        node("span", "", id="bar-low"),
        node("canvas", id="bar", width=180, height=12),
        node("span", "", id="bar-high"),
        id="colour-bar",
        hidden="",
    )


def _resolution(data: dict[str, Any]) -> str:
    image, std = data["kinds"]["image"], data["kinds"]["std"]
    text = (
        f"Shown at {_edges(image)} mm, cropped to the brain and the slices that were forecast, "
        f"in {image['levels'] + 1} grey levels"
    )
    if data["plans"][0]["std"] and std["spacing_mm"] != image["spacing_mm"]:
        text += f"; standard deviations are averaged over {_edges(std)} mm"
    return (
        f"{text}. The volumes in the result folder have every voxel. Radiological view: the "
        "patient's right is on the left."
    )


def _edges(kind: dict[str, Any]) -> str:
    return " × ".join(f"{mm:g}" for mm in kind["spacing_mm"])
