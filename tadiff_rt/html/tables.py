"""Tumour volumes and their differences, as a table and in words."""

from tadiff_rt.assembly import Forecast
from tadiff_rt.html import words
from tadiff_rt.html.nodes import Node, node
from tadiff_rt.panels import warning
from tadiff_rt.scenarios import Comparison, Difference, Scenario


def volume_table(comparison: Comparison) -> Node:
    """A row a scenario: mean, intervals, samples, and what differs from the reference."""
    level = words.percent(comparison.first.volume_ml.level)
    references = {d.reference.treatment for d in comparison.differences}
    titles = [
        "day",
        "treatment",
        "tumour volume, mean",
        f"{level} interval of a further sample",
        f"{level} interval of the mean",
        "samples",
        *(f"minus {words.treatment(reference)}, same noise" for reference in references),
    ]
    head = node("thead", node("tr", *(node("th", title, scope="col") for title in titles)))
    differences = {d.scenario: d for d in comparison.differences}
    rows = [
        _row(scenario, forecast, differences.get(scenario), bool(references))
        for scenario, forecast in comparison.forecasts.items()
    ]
    days = [scenario.day for scenario in comparison.forecasts]
    caption = node("caption", f"Tumour volume in ml: {warning(*days)}")
    return node("table", caption, head, node("tbody", *rows))


def _row(scenario: Scenario, forecast: Forecast, apart: Difference | None, compared: bool) -> Node:
    volume = forecast.volume_ml
    cells = [
        str(scenario.day),
        words.treatment(scenario.treatment),
        words.number(volume.mean_ml),
        _range(volume.low_ml, volume.high_ml),
        _range(*(volume.mean_interval_ml or (None, None))),
        str(len(volume.samples_ml)),
    ]
    if compared:
        cells.append(words.difference_volume(apart.volume_ml) if apart else "the reference")
    return node("tr", *(node("td", cell) for cell in cells))


def _range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "needs 2 samples"
    return f"{words.number(low)} to {words.number(high)}"


def differences_in_words(comparison: Comparison) -> Node:
    """A sentence for every difference."""
    return node("ul", *(node("li", words.difference(d)) for d in comparison.differences))


def covers(comparison: Comparison) -> str:
    """Which part of the head the volumes are of."""
    slices = {len(forecast.slices) for forecast in comparison.forecasts.values()}
    return (
        f"Volumes are of the {' or '.join(map(str, sorted(slices)))} axial slices that were "
        "forecast; tumour outside them is not counted."
    )
