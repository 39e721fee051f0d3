"""The pictures: right slice, right numbers, marked as predicted, the same bytes every time."""

import dataclasses
import io
import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tadiff_rt import overview
from tadiff_rt.drawing import KNOWN_COLOUR
from tadiff_rt.errors import EngineError
from tadiff_rt.forecast import Forecaster
from tadiff_rt.overview import check_drawing, comparison_png, overview_png
from tadiff_rt.panels import largest_slice, show_slice, volume_words, warning
from tadiff_rt.readers import read_case
from tadiff_rt.scenarios import Comparison, PastVolume, Scenario

OPTIONS = {"samples": 2, "steps": 1, "slices": "3:7"}
DAYS = (190, 250)
T1C = 1


@pytest.fixture(scope="module")
def comparison(bundle, case_folder) -> Comparison:
    """Days 190 and 250, TMZ against none, two samples of slices 3 to 6."""
    forecaster, case = Forecaster.load(bundle, threads=1), read_case(case_folder)
    return forecaster.compare(case, days=["+30", "+90"], treatments=["TMZ", "none"], **OPTIONS)


@pytest.fixture(scope="module")
def forecast(comparison):
    """Day 250, TMZ."""
    return comparison.forecasts[Scenario(250, "TMZ")]


def pixels(png: bytes) -> np.ndarray:
    from matplotlib.image import imread

    return imread(io.BytesIO(png))


def drawn(monkeypatch, draw, *args):
    """The figure that a picture is made of, drawn."""
    with monkeypatch.context() as patch:
        patch.setattr(overview, "png", lambda figure: figure)
        figure = draw(*args)
    figure.canvas.draw()
    return figure


def texts(figure) -> list[str]:
    """Everything that a picture says in words."""
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def inscribed(axes) -> list[str]:
    """The words within a panel."""
    return [text.get_text() for text in axes.texts]


def panels(figure) -> list:
    """Axes that show an image, in the order drawn; colour bars aside."""
    return [axes for axes in figure.axes if axes.get_images()]


def shown(axes) -> np.ndarray:
    return np.asarray(axes.get_images()[0].get_array())


def outlines(axes) -> list[tuple[str, bool]]:
    """Colour of every outline and whether it is solid."""
    from matplotlib.colors import to_hex
    from matplotlib.contour import ContourSet

    return [
        (to_hex(lines.get_edgecolor()[0]), lines.get_linestyle()[0][1] is None)
        for lines in axes.collections
        if isinstance(lines, ContourSet)
    ]


def with_probability(forecast, *slices: int, level: float = 0.9, edge: int = 20):
    """The forecast with a tumour in these slices only."""
    probability = np.zeros_like(forecast.ensemble.probability)
    probability[list(slices), 8:edge, 8:edge] = level
    ensemble = dataclasses.replace(forecast.ensemble, probability=probability)
    return dataclasses.replace(forecast, ensemble=ensemble)


def one_sample(forecast):
    volume = dataclasses.replace(forecast.volume_ml, low_ml=None, high_ml=None)
    volume = dataclasses.replace(volume, samples_ml=volume.samples_ml[:1])
    ensemble = dataclasses.replace(forecast.ensemble, std=None)
    return dataclasses.replace(forecast, std=None, volume_ml=volume, ensemble=ensemble)


def with_scenarios(comparison: Comparison, days, treatments) -> Comparison:
    """The forecasts of the first day with other days and treatments, without differences."""
    first = comparison.first
    forecasts = {Scenario(day, name): first for day in days for name in treatments}
    return dataclasses.replace(comparison, forecasts=forecasts, differences=())


def test_it_shows_the_slice_with_the_most_tumour(forecast):
    assert largest_slice(with_probability(forecast, 5)) == 5


def test_without_tumour_it_shows_the_middle_of_what_was_forecast(forecast):
    assert largest_slice(with_probability(forecast)) == 5  # of 3, 4, 5, 6


def test_of_several_forecasts_it_shows_where_all_together_have_most(forecast):
    """Each has its largest tumour elsewhere."""
    one = with_probability(forecast, 3, 4)
    one.ensemble.probability[3] *= 1.05
    two = with_probability(forecast, 4, 6)
    two.ensemble.probability[6] *= 1.05
    assert (largest_slice(one), largest_slice(two)) == (3, 6)
    assert largest_slice(one, two) == largest_slice(two, one) == 4


def test_the_slice_shown_is_the_slice_named(forecast):
    at = show_slice(forecast, 4)
    assert np.array_equal(at.last, forecast.prepared.sources[4, 6:9])
    assert np.array_equal(at.mean, forecast.ensemble.mean[:, 4])
    assert np.array_equal(at.std, forecast.ensemble.std[:, 4])
    assert np.array_equal(at.probability, forecast.ensemble.probability[4])
    assert np.array_equal(at.last_mask, forecast.prepared.masks[2, 4])


def test_the_words_of_every_picture():
    assert warning(510) == "predicted, day 510, not acquired, research use"
    assert warning(510, 510) == warning(510)
    assert warning(600, 90, 510) == "predicted, days 90 to 600, not acquired, research use"


def test_volumes_in_words():
    volume = SimpleNamespace(mean_ml=12.34, low_ml=1.25, high_ml=20.0, level=0.9)
    assert volume_words(volume) == "12.3 ml (90%: 1.2 to 20.0)"
    assert volume_words(SimpleNamespace(mean_ml=12.34, low_ml=None, high_ml=None)) == "12.3 ml"


def test_an_overview_shows_every_map_of_the_forecast(forecast, monkeypatch):
    figure = drawn(monkeypatch, overview_png, with_probability(forecast, 4))
    at = show_slice(with_probability(forecast, 4), 4)
    expected = {
        0: [*at.last],
        1: [*at.mean],
        2: [*at.std],
        3: [at.probability],
    }
    columns: dict[int, list[np.ndarray]] = {0: [], 1: [], 2: [], 3: []}
    for axes in panels(figure):
        columns[axes.get_subplotspec().colspan.start].append(shown(axes))
    for column, images in expected.items():
        assert len(columns[column]) == len(images)
        assert all(map(np.array_equal, columns[column], images))
    for axes in panels(figure):
        column = axes.get_subplotspec().colspan.start
        said = warning(250) in inscribed(axes)
        assert said == (column > 0), "a panel of a forecast says so, one of a scan does not"
        known, predicted = (KNOWN_COLOUR, True), (overview.TREATMENT_COLOURS[0], True)
        assert outlines(axes) == [[known], [predicted], [], []][column]
    said = texts(figure)
    volume = forecast.volume_ml
    for part in (
        "treatment TMZ: predicted, day 250, not acquired, research use",
        f"tumour volume\n{volume.mean_ml:.1f} ml (90%: {volume.low_ml:.1f} to "
        f"{volume.high_ml:.1f})",
        "2 samples\n4 slices forecast\nshown: slice 4",
        *("T1", "T1c", "FLAIR", "R", "L", "segmented on scans"),
    ):
        assert part in said


def test_one_sample_has_no_spread_and_says_so(forecast, monkeypatch):
    figure = drawn(monkeypatch, overview_png, one_sample(forecast))
    assert "standard deviation\nneeds 2 samples" in texts(figure)
    assert len(panels(figure)) == 7


def test_a_comparison_shows_every_scenario_in_its_place(comparison, monkeypatch):
    """Row by row the treatments, column by column the days, all at one slice."""
    figure = drawn(monkeypatch, comparison_png, comparison)
    at = largest_slice(*comparison.forecasts.values())
    colour = dict(zip(("TMZ", "none"), overview.TREATMENT_COLOURS, strict=False))
    assert len(panels(figure)) == 6
    for axes in panels(figure):
        row, column = axes.get_subplotspec().rowspan.start, axes.get_subplotspec().colspan.start
        treatment = ("TMZ", "none")[row]
        if column == 0:
            last = show_slice(comparison.first, at)
            assert np.array_equal(shown(axes), last.last[T1C])
            assert axes.get_ylabel() == treatment
            assert axes.get_title() == ("last scan, day 160" if row == 0 else "")
            assert warning(160) not in inscribed(axes)
            assert outlines(axes) == [(KNOWN_COLOUR, True)]
            continue
        day = DAYS[column - 1]
        forecast = comparison.forecasts[Scenario(day, treatment)]
        assert np.array_equal(shown(axes), forecast.ensemble.mean[T1C, at])
        assert axes.get_title() == (f"day {day}" if row == 0 else "")
        assert set(inscribed(axes)) == {warning(day), volume_words(forecast.volume_ml)}
        reference = [(colour["none"], False)] if treatment == "TMZ" else []
        assert outlines(axes) == [(colour[treatment], True), *reference]
    for part in (
        f"T1c, slice {at}: predicted, days 190 to 250, not acquired, research use",
        "segmented on scans",
        "predicted, TMZ",
        "predicted, none",
        "none, same day",
    ):
        assert part in texts(figure)


def test_all_scenarios_are_shown_at_one_slice(comparison, monkeypatch):
    """Those of the first day have their largest tumour elsewhere."""
    tumours = {
        scenario: with_probability(
            forecast, 5 if scenario.day == 190 else 4, edge=scenario.day // 10
        )
        for scenario, forecast in comparison.forecasts.items()
    }
    figure = drawn(monkeypatch, comparison_png, dataclasses.replace(comparison, forecasts=tumours))
    for axes in panels(figure)[1:3]:
        day = int(axes.get_title().removeprefix("day "))
        assert np.array_equal(
            shown(axes), comparison.forecasts[Scenario(day, "TMZ")].ensemble.mean[T1C, 4]
        )


def test_the_outline_of_the_reference_is_that_of_its_own_day(comparison, monkeypatch):
    tumours = {
        scenario: with_probability(forecast, 4, edge=14 + 3 * number)
        for number, (scenario, forecast) in enumerate(comparison.forecasts.items())
    }
    figure = drawn(monkeypatch, comparison_png, dataclasses.replace(comparison, forecasts=tumours))
    widths = {}
    for axes in panels(figure):
        place = axes.get_subplotspec()
        key = place.rowspan.start, place.colspan.start
        widths[key] = [np.ptp(c.get_paths()[0].vertices[:, 0]) for c in axes.collections]
    # In order of days, then treatments: edges 14, 17, 20, 23.
    assert widths[0, 1] == pytest.approx([6, 9], abs=0.5)
    assert widths[1, 1] == pytest.approx([9], abs=0.5)
    assert widths[0, 2] == pytest.approx([12, 15], abs=0.5)
    assert widths[1, 2] == pytest.approx([15], abs=0.5)


def curve_of(figure):
    (axes,) = [axes for axes in figure.axes if axes.get_xlabel().startswith("days")]
    return axes


def lopsided(forecast):
    """The forecast with an interval that reaches further up than down."""
    mean_ml = forecast.volume_ml.mean_ml
    volume = dataclasses.replace(forecast.volume_ml, low_ml=0.5 * mean_ml, high_ml=2 * mean_ml)
    return dataclasses.replace(forecast, volume_ml=volume)


def test_the_curve_shows_past_volumes_and_forecasts_with_intervals(comparison, monkeypatch):
    forecasts = {s: lopsided(forecast) for s, forecast in comparison.forecasts.items()}
    comparison = dataclasses.replace(comparison, forecasts=forecasts)
    axes = curve_of(drawn(monkeypatch, comparison_png, comparison))
    past = [(past.day, past.volume_ml) for past in comparison.past]
    assert [day for day, _ in past] == [30, 75, 160]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), past)
    span = 250 - 30
    assert len(axes.containers) == 2
    for treatment, bars in zip(("TMZ", "none"), axes.containers, strict=True):
        line, _, (segments,) = bars
        volumes = [comparison.forecasts[Scenario(day, treatment)].volume_ml for day in DAYS]
        days, means = line.get_xydata().T
        np.testing.assert_allclose(means, [volume.mean_ml for volume in volumes])
        np.testing.assert_allclose(days, DAYS, atol=0.01 * span)
        for segment, volume in zip(segments.get_segments(), volumes, strict=True):
            np.testing.assert_allclose(segment[:, 1], (volume.low_ml, volume.high_ml))
    first, second = (bars[0].get_xdata() for bars in axes.containers)
    assert (second > first).all(), "bars of one day stand side by side"
    assert axes.get_xlabel() == "days since the first session"
    assert axes.get_ylabel() == "ml"
    assert "90%" in axes.get_title()
    assert axes.get_ylim()[0] == 0


def joined_to(axes) -> list[tuple[float, float]]:
    """Where the dashed line of every treatment begins."""
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    return [tuple(line.get_xydata()[0]) for line in dashed]


def test_the_curve_joins_scan_and_forecast_only_where_they_compare(comparison, monkeypatch):
    """Masks lie in slices 3 to 5 of the canonical grid; forecast were 3 to 6, or two of them."""
    last = comparison.past[-1]
    axes = curve_of(drawn(monkeypatch, comparison_png, comparison))
    assert joined_to(axes) == [(last.day, last.volume_ml)] * 2
    assert axes.get_title().startswith("Tumour volume, forecasts over 4 slices\n")
    part = {
        scenario: dataclasses.replace(forecast, slices=(3, 4))
        for scenario, forecast in comparison.forecasts.items()
    }
    partial = dataclasses.replace(comparison, forecasts=part)
    axes = curve_of(drawn(monkeypatch, comparison_png, partial))
    assert [day for day, _ in joined_to(axes)] == pytest.approx([190, 190], abs=2)
    assert "2 slices, which hold only part of the segmented tumour" in axes.get_title()


def test_a_last_scan_without_mask_is_not_joined(comparison, monkeypatch):
    past = (*comparison.past[:-1], PastVolume(160, "TMZ", None))
    axes = curve_of(drawn(monkeypatch, comparison_png, dataclasses.replace(comparison, past=past)))
    assert [day for day, _ in joined_to(axes)] == pytest.approx([190, 190], abs=2)
    assert len(axes.lines[0].get_xydata()) == 2


def test_a_case_without_masks_is_drawn_without_them(comparison, monkeypatch):
    unknown = {
        scenario: dataclasses.replace(
            forecast, prepared=dataclasses.replace(forecast.prepared, masks=None)
        )
        for scenario, forecast in comparison.forecasts.items()
    }
    past = tuple(dataclasses.replace(past, volume_ml=None) for past in comparison.past)
    bare = dataclasses.replace(comparison, forecasts=unknown, past=past)
    for figure in (
        drawn(monkeypatch, comparison_png, bare),
        drawn(monkeypatch, overview_png, bare.first),
    ):
        assert "segmented on scans" not in texts(figure)
        scans = [a for a in panels(figure) if a.get_subplotspec().colspan.start == 0]
        assert [outlines(axes) for axes in scans] == [[]] * len(scans)


def test_one_sample_has_no_bars(comparison, monkeypatch):
    forecasts = {s: one_sample(forecast) for s, forecast in comparison.forecasts.items()}
    single = dataclasses.replace(comparison, forecasts=forecasts)
    axes = curve_of(drawn(monkeypatch, comparison_png, single))
    assert [bars.has_yerr for bars in axes.containers] == [False, False]
    assert "bars" not in axes.get_title()


def test_a_single_scenario_is_shown_in_full(comparison):
    single = with_scenarios(comparison, [190], ["TMZ"])
    assert comparison_png(single) == overview_png(comparison.first)


def test_of_many_days_the_first_and_the_last_are_among_those_shown(comparison, monkeypatch):
    days = (170, 180, 190, 200, 210, 220, 230, 240)
    figure = drawn(monkeypatch, comparison_png, with_scenarios(comparison, days, ["TMZ"]))
    titles = [title for axes in panels(figure) if (title := axes.get_title())]
    assert titles == ["last scan, day 160", "day 170", "day 190", "day 210", "day 220", "day 240"]
    assert len(curve_of(figure).containers[0][0].get_xdata()) == len(days)
    assert warning(170, 240) in "\n".join(texts(figure))


@pytest.mark.parametrize(
    ("days", "treatments"),
    [
        ([190], ["TMZ"]),
        ([190], ["TMZ", "none"]),
        ([190, 250, 1234], ["TMZ"]),
        ([190, 250, 340], ["TMZ", "CRT", "none"]),
        ([170, 190, 250, 340, 99_999], ["TMZ", "CRT", "none"]),
    ],
)
def test_no_words_overlap_or_leave_the_picture(comparison, monkeypatch, days, treatments):
    """Rectangles around what is written, but for the numbers along axes, drawn by matplotlib."""
    from matplotlib.text import Text

    figure = drawn(monkeypatch, comparison_png, with_scenarios(comparison, days, treatments))
    ticks = {
        label
        for axes in figure.findobj(lambda artist: hasattr(artist, "get_xticklabels"))
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels())
    }
    words = [
        text
        for text in figure.findobj(Text)
        if text.get_text() and text.get_visible() and text not in ticks
    ]
    boxes = [text.get_window_extent() for text in words]
    whole = figure.bbox
    for text, box in zip(words, boxes, strict=True):
        assert box.x0 >= whole.x0, text
        assert box.y0 >= whole.y0, text
        assert box.x1 <= whole.x1, text
        assert box.y1 <= whole.y1, text
    for (one, a), (two, b) in itertools.combinations(zip(words, boxes, strict=True), 2):
        assert not a.overlaps(b), f"{one} and {two}"


def test_treatments_differ_in_colour_and_marker(comparison, monkeypatch):
    many = with_scenarios(comparison, [190, 250], ["TMZ", "CRT", "none"])
    axes = curve_of(drawn(monkeypatch, comparison_png, many))
    looks = [(bars[0].get_color(), bars[0].get_marker()) for bars in axes.containers]
    colours, markers = zip(*looks, strict=True)
    assert len({*colours, KNOWN_COLOUR}) == 4
    assert len(set(markers)) == 3


def test_nine_scenarios_of_192_pixels_take_less_than_a_mebibyte(comparison):
    """With noise over the whole of every image, which is what PNG compresses worst."""
    rng = np.random.default_rng(5)

    def large(stack: np.ndarray, noise: float = 0.03) -> np.ndarray:
        zoomed = stack.repeat(6, axis=-1).repeat(6, axis=-2).astype(np.float32)
        zoomed += noise * rng.standard_normal(zoomed.shape, dtype=np.float32)
        return np.clip(zoomed, 0, 1)

    first = comparison.first
    masks = first.prepared.masks.repeat(6, axis=-1).repeat(6, axis=-2)
    prepared = dataclasses.replace(
        first.prepared, sources=large(first.prepared.sources), masks=masks
    )
    forecasts = {}
    for day, treatment in itertools.product((190, 250, 340), ("TMZ", "CRT", "none")):
        ensemble = dataclasses.replace(
            first.ensemble,
            mean=large(first.ensemble.mean),
            std=large(first.ensemble.std),
            probability=large(first.ensemble.probability, 0.0),
        )
        forecasts[Scenario(day, treatment)] = dataclasses.replace(
            first, ensemble=ensemble, prepared=prepared
        )
    many = dataclasses.replace(comparison, forecasts=forecasts, differences=())
    assert many.first.ensemble.mean.shape[-2:] == (192, 192)
    assert len(comparison_png(many)) < 1 << 20


def test_equal_forecasts_give_equal_bytes(comparison, forecast):
    assert overview_png(forecast) == overview_png(forecast)
    assert comparison_png(comparison) == comparison_png(comparison)


def test_the_users_style_does_not_matter(comparison, forecast):
    """Any of these would change the picture, the second would turn the head upside down."""
    import matplotlib

    mine = {
        "font.size": 30,
        "image.origin": "lower",
        "savefig.facecolor": "white",
        "savefig.bbox": "tight",
        "axes.titlelocation": "left",
    }
    plain = overview_png(forecast), comparison_png(comparison)
    with matplotlib.rc_context(mine):
        styled = overview_png(forecast), comparison_png(comparison)
        assert {name: matplotlib.rcParams[name] for name in mine} == mine
    assert styled == plain


@pytest.mark.parametrize("module", ["matplotlib", "matplotlib.backends.backend_agg", "contourpy"])
def test_a_missing_package_is_named_before_it_is_needed(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EngineError, match=f"the package {module.split('.')[0]},") as e:
        check_drawing()
    assert (e.value.code, e.value.fix) == ("TD5008", "pip install 'tadiff[cpu]'")


def test_another_forecast_gives_another_picture(forecast):
    a, b = (pixels(overview_png(f)) for f in (forecast, with_probability(forecast, 4)))
    assert a.shape[2] >= 3
    assert a.shape != b.shape or not np.array_equal(a, b)


def test_pictures_have_one_resolution_and_are_drawn_once(forecast, monkeypatch):
    from matplotlib.figure import Figure

    calls = []
    draw = Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda self, *a: (calls.append(1), draw(self, *a))[1])
    picture = overview_png(forecast)
    assert len(calls) == 1
    figure = drawn(monkeypatch, overview_png, forecast)
    width, height = (int(110 * inches) for inches in figure.get_size_inches())
    assert pixels(picture).shape[:2] == (height, width)
