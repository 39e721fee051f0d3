"""The growth curve: tumour volume over days, past and forecast, as inline SVG."""

import math
from collections.abc import Sequence
from itertools import pairwise

from tadiff_rt.growth_curve import covers_known_tumour
from tadiff_rt.html import words
from tadiff_rt.html.nodes import Node, node
from tadiff_rt.panels import warning
from tadiff_rt.scenarios import Comparison, PastVolume

WIDTH, HEIGHT = 1080, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 190, 34, 52
SYMBOLS = ("circle", "square", "triangle", "diamond", "downwards")
"""Of treatments, as in the pictures (`drawing.MARKERS`)."""
APART = 9
"""Pixels between the intervals of treatments on one day."""
NEAR = 17
"""Pixels that labels of curves need below each other."""


def growth_curve(comparison: Comparison) -> Node:
    """Past volumes solid, forecasts with intervals; colours come from the style sheet."""
    days, top = _ranges(comparison)
    axes = _Axes(days, top)
    treatments = list(dict.fromkeys(s.treatment for s in comparison.forecasts))
    last = comparison.past[-1] if comparison.past else None
    drawing = node(
        "svg",
        node("title", "Tumour volume over days: known until the last scan, predicted after it"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        class_="curve",
    )
    drawing.extend(axes.frame())
    if last is not None:
        drawing.extend(axes.future(last.day, [s.day for s in comparison.forecasts]))
    drawing.extend(_past(axes, comparison.past))
    ends = []
    for i, treatment in enumerate(treatments):
        shift = (i - (len(treatments) - 1) / 2) * APART
        curve, end = _forecast(axes, comparison, treatment, i, shift, last)
        drawing.append(curve)
        ends.append((end, i, words.treatment(treatment)))
    drawing.extend(_labels(ends))
    return drawing


def ticks(top: float, about: int = 5) -> list[float]:
    """Round numbers from 0 to at least `top`, about so many steps of 1, 2 or 5 times a power."""
    raw = top / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))
    return [step * k for k in range(math.ceil(top / step - 1e-9) + 1)]


class _Axes:
    """Days and millilitres to pixels."""

    def __init__(self, days: Sequence[int], top_ml: float) -> None:
        self.days = sorted(set(days))
        self.first, self.final = self.days[0], max(self.days[-1], self.days[0] + 1)
        self.ticks_ml = ticks(top_ml)

    def x(self, day: float) -> float:
        """Pixels from the left."""
        share = (day - self.first) / (self.final - self.first)
        return round(LEFT + 16 + share * (WIDTH - LEFT - RIGHT - 32), 1)

    def y(self, volume_ml: float) -> float:
        """Pixels from the top."""
        share = volume_ml / self.ticks_ml[-1]
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    def frame(self) -> list[Node]:
        """Grid lines with their numbers and what the axes are."""
        parts = []
        digits = 0 if self.ticks_ml[1] >= 1 else 2
        for tick in self.ticks_ml:
            y = self.y(tick)
            parts.append(node("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
            text = words.number(tick, digits)
            parts.append(node("text", text, x=LEFT - 8, y=y + 4, class_="tick end"))
        taken = -math.inf
        for day in self.days:
            x = self.x(day)
            parts.append(
                node("line", x1=x, x2=x, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM + 5, class_="axis")
            )
            if x - taken >= 26:
                parts.append(
                    node("text", str(day), x=x, y=HEIGHT - BOTTOM + 19, class_="tick middle")
                )
                taken = x
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(
            node(
                "text",
                "days since the first scan",
                x=middle,
                y=HEIGHT - 8,
                class_="label middle",
            )
        )
        parts.append(node("text", "tumour volume in ml", x=8, y=18, class_="label"))
        return parts

    def future(self, last_day: int, predicted_days: Sequence[int]) -> list[Node]:
        """What lies after the last scan is predicted, and says so."""
        x, bottom = self.x(last_day), HEIGHT - BOTTOM
        return [
            node(
                "rect",
                x=x,
                y=TOP,
                width=WIDTH - RIGHT - x,
                height=bottom - TOP,
                class_="future",
            ),
            node("line", x1=x, x2=x, y1=TOP, y2=bottom, class_="now"),
            node("text", warning(*predicted_days), x=x + 8, y=TOP + 15, class_="note"),
        ]


def _ranges(comparison: Comparison) -> tuple[list[int], float]:
    days = [p.day for p in comparison.past] + [s.day for s in comparison.forecasts]
    volumes = [p.volume_ml for p in comparison.past if p.volume_ml is not None]
    for forecast in comparison.forecasts.values():
        volume = forecast.volume_ml
        volumes += [volume.mean_ml, *([volume.high_ml] if volume.high_ml is not None else [])]
    return days, max([*volumes, 0.1]) * 1.06


def _past(axes: _Axes, past: Sequence[PastVolume]) -> list[Node]:
    known = [(axes.x(p.day), axes.y(p.volume_ml)) for p in past if p.volume_ml is not None]
    parts = [_line(known, "past")] if len(known) > 1 else []
    return [*parts, *(node("circle", cx=x, cy=y, r=5, class_="past") for x, y in known)]


def _forecast(
    axes: _Axes,
    comparison: Comparison,
    treatment: str,
    i: int,
    shift: float,
    last: PastVolume | None,
) -> tuple[Node, tuple[float, float]]:
    """A treatment's means, intervals and samples; and where its curve ends."""
    group = node("g", class_=f"treatment t{i % len(SYMBOLS)}")
    points = []
    if last and last.volume_ml is not None and covers_known_tumour(comparison.first):
        points.append((axes.x(last.day), axes.y(last.volume_ml)))
    for scenario in (s for s in comparison.forecasts if s.treatment == treatment):
        volume = comparison.forecasts[scenario].volume_ml
        x, y = axes.x(scenario.day) + shift, axes.y(volume.mean_ml)
        points.append((x, y))
        text = f"{words.plan(scenario)}: {words.volume(volume)}; {warning(scenario.day)}"
        marks = node("g", node("title", text))
        if volume.low_ml is not None and volume.high_ml is not None:
            low, high = axes.y(volume.low_ml), axes.y(volume.high_ml)
            path = f"M{x - 4},{high}h8M{x},{high}V{low}M{x - 4},{low}h8"
            marks.append(node("path", d=path, class_="interval"))
        marks.extend(
            node("circle", cx=x, cy=axes.y(ml), r=1.8, class_="sample") for ml in volume.samples_ml
        )
        marks.append(_symbol(SYMBOLS[i % len(SYMBOLS)], x, y))
        group.append(marks)
    group.insert(0, _line(points, "mean"))
    return group, points[-1]


def _symbol(name: str, x: float, y: float) -> Node:
    if name == "circle":
        return node("circle", cx=x, cy=y, r=5.5, class_="mark")
    path = {
        "square": f"M{x - 5},{y - 5}h10v10h-10z",
        "triangle": f"M{x},{y - 6.5}l6.5,11h-13z",
        "diamond": f"M{x},{y - 7}l6,7l-6,7l-6,-7z",
        "downwards": f"M{x},{y + 6.5}l6.5,-11h-13z",
    }[name]
    return node("path", d=path, class_="mark")


def _line(points: Sequence[tuple[float, float]], name: str) -> Node:
    return node("polyline", points=" ".join(f"{x},{y}" for x, y in points), class_=name)


def _labels(ends: Sequence[tuple[tuple[float, float], int, str]]) -> list[Node]:
    """The treatments' names at the ends of their curves, moved apart where they would overlap."""
    ordered = sorted(ends, key=lambda end: end[0][1])
    places = [end[0][1] + 5 for end in ordered]
    for above, below in pairwise(range(len(places))):
        places[below] = max(places[below], places[above] + NEAR)
    excess = max(0.0, places[-1] - (HEIGHT - BOTTOM))
    x = WIDTH - RIGHT + 12
    labels = []
    for place, (_, i, name) in zip(places, ordered, strict=True):
        group = node("g", class_=f"treatment t{i % len(SYMBOLS)}")
        group.append(_symbol(SYMBOLS[i % len(SYMBOLS)], x, place - excess - 4))
        group.append(node("text", name, x=x + 13, y=place - excess, class_="treatment-name"))
        labels.append(group)
    return labels


def legend(comparison: Comparison) -> str:
    """What the marks of the curve stand for."""
    known = any(p.volume_ml is not None for p in comparison.past)
    past = (
        "Blue: volume of the known tumour masks of past scans. "
        if known
        else "No tumour masks were given: the volumes of past scans are not known. "
    )
    if known and not covers_known_tumour(comparison.first):
        past += (
            "The slices that were forecast hold only part of the segmented tumour: their volumes "
            "cannot be compared with those of the scans. "
        )
    level = words.percent(comparison.first.volume_ml.level)
    return (
        f"{past}Forecasts: the mean of the samples (large mark), each sample (small dots) and the "
        f"interval in which a further sample falls with a probability of {level} (bar). Dashed "
        "lines only join marks: nothing was computed between them."
    )
