"""The pictures: right slice, right numbers, marked as predicted, the same bytes every time."""

import dataclasses
import io
import sys

import numpy as np
import pytest

from tadiff_rt.errors import EngineError
from tadiff_rt.forecast import Forecaster
from tadiff_rt.overview import (
    check_drawing,
    difference_png,
    largest_slice,
    overview_png,
    show_slice,
)
from tadiff_rt.readers import read_case

REQUEST = {"day": "+90", "samples": 2, "steps": 1, "slices": "3:7"}


@pytest.fixture(scope="module")
def forecasts(bundle, case_folder):
    forecaster, case = Forecaster.load(bundle, threads=1), read_case(case_folder)
    return {t: forecaster.predict(case, treatment=t, **REQUEST) for t in ("TMZ", "none")}


def pixels(png: bytes) -> np.ndarray:
    from matplotlib.image import imread

    return imread(io.BytesIO(png))


def texts(monkeypatch, draw, *args) -> str:
    """Everything a picture says in words."""
    from matplotlib.text import Text

    said = []
    original = Text.draw
    monkeypatch.setattr(
        Text, "draw", lambda self, *a, **k: (said.append(self.get_text()), original(self, *a, **k))
    )
    draw(*args)
    return "\n".join(said)


def with_probability(forecast, at: int | None):
    """The forecast with a tumour in one slice only, or in none."""
    probability = np.zeros_like(forecast.ensemble.probability)
    if at is not None:
        probability[at, 8:20, 8:20] = 0.9
    ensemble = dataclasses.replace(forecast.ensemble, probability=probability)
    return dataclasses.replace(forecast, ensemble=ensemble)


def test_it_shows_the_slice_with_the_most_tumour(forecasts):
    assert largest_slice(with_probability(forecasts["TMZ"], 5)) == 5


def test_without_tumour_it_shows_the_middle_of_what_was_forecast(forecasts):
    assert largest_slice(with_probability(forecasts["TMZ"], None)) == 5  # of 3, 4, 5, 6


def test_the_slice_shown_is_the_slice_named(forecasts):
    forecast = forecasts["TMZ"]
    shown = show_slice(forecast, 4)
    assert np.array_equal(shown.last, forecast.prepared.sources[4, 6:9])
    assert np.array_equal(shown.mean, forecast.ensemble.mean[:, 4])
    assert np.array_equal(shown.probability, forecast.ensemble.probability[4])
    assert np.array_equal(shown.last_mask, forecast.prepared.masks[2, 4])


def test_every_picture_says_that_it_is_predicted(forecasts, monkeypatch):
    said = texts(monkeypatch, overview_png, forecasts["TMZ"])
    volume = forecasts["TMZ"].volume_ml
    for part in (
        "Day 250, TMZ: predicted, not acquired, research use",
        f"tumour {volume.mean_ml:.1f} ml",
        f"{volume.low_ml:.1f} to {volume.high_ml:.1f} ml",
        "2 samples",
    ):
        assert part in said
    said = texts(monkeypatch, difference_png, forecasts)
    assert "TMZ against none: predicted, not acquired, research use" in said
    assert "none minus TMZ" in said


def test_one_sample_has_no_spread_and_says_so(bundle, case_folder, monkeypatch):
    one = Forecaster.load(bundle, threads=1).predict(
        read_case(case_folder), treatment="TMZ", **{**REQUEST, "samples": 1}
    )
    assert "needs 2 samples" in texts(monkeypatch, overview_png, one)


def test_equal_forecasts_give_equal_bytes(forecasts):
    assert overview_png(forecasts["TMZ"]) == overview_png(forecasts["TMZ"])


def test_the_users_style_does_not_matter(forecasts):
    """Any of these would change the picture, the second would turn the head upside down."""
    import matplotlib

    mine = {
        "font.size": 30,
        "image.origin": "lower",
        "savefig.facecolor": "white",
        "savefig.bbox": "tight",
        "axes.titlelocation": "left",
    }
    plain = overview_png(forecasts["TMZ"]), difference_png(forecasts)
    with matplotlib.rc_context(mine):
        styled = overview_png(forecasts["TMZ"]), difference_png(forecasts)
        assert {name: matplotlib.rcParams[name] for name in mine} == mine
    assert styled == plain


@pytest.mark.parametrize("module", ["matplotlib", "matplotlib.backends.backend_agg", "contourpy"])
def test_a_missing_package_is_named_before_it_is_needed(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EngineError, match=f"the package {module.split('.')[0]},") as e:
        check_drawing()
    assert (e.value.code, e.value.fix) == ("TD5008", "pip install 'tadiff[cpu]'")


def test_another_forecast_gives_another_picture(forecasts):
    a, b = (
        pixels(overview_png(f)) for f in (forecasts["TMZ"], with_probability(forecasts["TMZ"], 4))
    )
    assert a.shape[2] >= 3
    assert a.shape != b.shape or not np.array_equal(a, b)
