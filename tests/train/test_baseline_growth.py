"""The growth model fitted to a past: against the equation's own solutions and symmetries."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from tadiff_train.baselines import GrowthFit, fit_growth, forecast_growth
from tadiff_train.baselines.anatomy import Tissue, estimate_tissue, surroundings
from tadiff_train.baselines.course import Course
from tadiff_train.baselines.density import (
    VISIBLE,
    bounded_logit,
    density_of_mask,
    match_outline,
    wave_density,
)
from tadiff_train.baselines.parameters import PRIORS, parameters_of
from tadiff_train.metrics import dice
from tadiff_train.phantom.growth import Growth, TumourParameters, grow_interval

SIZE, SPACING_MM = 28, 2.0
SHAPE = (SIZE, SIZE, SIZE)
TRUTH = TumourParameters(
    rho_per_day=0.03,
    d_white_mm2_per_day=0.12,
    d_grey_mm2_per_day=0.012,
    alpha_per_gy=0.015,
    beta_per_gy2=0.0015,
    tmz_factor=0.4,
)
"""A front of 0.12 mm a day and 2 mm."""


def ball(radius_mm: float, centre: Sequence[float] = (13.5, 13.5, 13.5)) -> np.ndarray:
    away = np.indices(SHAPE) - np.reshape(centre, (3, 1, 1, 1))
    return np.sqrt((away**2).sum(axis=0)) * SPACING_MM - radius_mm


def uniform(shape: tuple[int, ...] = SHAPE) -> Tissue:
    return Tissue(np.ones(shape, np.bool_), np.ones(shape, np.float32), "")


def simulate(days: Sequence[int], treatments: Sequence[str]) -> np.ndarray:
    """(s, ...) masks of a tumour that first grows from a small ball for 40 days."""
    growth = Growth(np.full(SHAPE, TRUTH.d_white_mm2_per_day, np.float32), SPACING_MM)
    u = (1 / (1 + np.exp(np.clip(2 * ball(6.0), -30, 30)))).astype(np.float32)
    u = growth.advance(u, 40, TRUTH.rho_per_day)
    masks = [u > 0.16]
    for k in range(1, len(days)):
        u = grow_interval(
            growth,
            u,
            TRUTH,
            start=days[k - 1],
            end=days[k],
            treatment=treatments[k],
            course_start=days[0],
        )
        masks.append(u > 0.16)
    return np.stack(masks)


def fit(masks: np.ndarray, days: Sequence[int], treatments: Sequence[str], **other) -> GrowthFit:
    """In a brain of white matter alone."""
    brain = other.pop("brain", np.ones(masks.shape[1:], np.bool_))
    t1 = other.pop("t1", np.full(masks.shape, 0.5, np.float32))
    return fit_growth(t1, masks, brain, days, treatments, other.pop("spacing_mm", SPACING_MM))


DAYS, FREE = (0, 30, 60, 90), ("none",) * 4
MIXED_DAYS, MIXED = (0, 14, 28, 45, 80, 110), ("CRT", "CRT", "CRT", "CRT", "none", "TMZ")


@pytest.fixture(scope="module")
def untreated() -> tuple[np.ndarray, GrowthFit]:
    """Five sessions and a fit to the first four."""
    masks = simulate((*DAYS, 120), (*FREE, "none"))
    return masks, fit(masks[:4], DAYS, FREE)


@pytest.fixture(scope="module")
def treated() -> tuple[np.ndarray, GrowthFit]:
    """Six sessions and a fit to them."""
    masks = simulate(MIXED_DAYS, MIXED)
    return masks, fit(masks, MIXED_DAYS, MIXED)


def volume(fitted: GrowthFit, day: int, treatment: str) -> float:
    return forecast_growth(fitted, day=day, treatment=treatment).volumes_ml[0]


# The travelling wave.


def test_the_wave_solves_its_equation():
    """U'' + 2 U' + U (1 - U) = 0, by central differences."""
    h = 0.02
    z = np.arange(-8, 6, h)
    u = wave_density(z, 1.0).astype(np.float64)
    coarse = slice(None, None, 5)  # float32 leaves its noise in second differences
    u, h = u[coarse], 5 * h
    residual = np.diff(u, 2) / h**2 + (u[2:] - u[:-2]) / h + (u * (1 - u))[1:-1]
    assert np.abs(residual).max() < 2e-3
    assert wave_density(np.zeros(1), 1.0)[0] == pytest.approx(0.16, abs=1e-4)


def test_behind_the_wave_room_shrinks_as_the_linearised_equation_says():
    room = 1 - wave_density(np.array([-13.0, -17.0]), 1.0).astype(np.float64)
    assert np.log(room[0] / room[1]) / 4 == pytest.approx(np.sqrt(2) - 1, rel=0.02)


def test_the_wave_moves_at_twice_the_root_of_d_rho_and_keeps_its_shape():
    d, rho, spacing = 0.4, 0.025, 1.0
    width = np.sqrt(d / rho)
    x = np.arange(200) * spacing
    u = np.broadcast_to(wave_density(x - 60, width)[:, None, None], (200, 3, 3)).copy()
    later = Growth(np.full(u.shape, d, np.float32), spacing).advance(u, 200, rho)[:, 1, 1]
    moved = float(np.interp(-0.16, -later, x)) - 60
    assert moved / 200 == pytest.approx(2 * np.sqrt(d * rho), rel=0.04)
    np.testing.assert_allclose(later, wave_density(x - 60 - moved, width), atol=0.01)


# Density from an outline.


def test_density_of_a_mask_is_visible_exactly_inside_it():
    mask, held = ball(14.0) < 0, ball(24.0) < 0
    u = density_of_mask(mask, held, 3.0, SPACING_MM)
    np.testing.assert_array_equal(u > VISIBLE, mask)
    assert not u[~held].any()
    assert u[13, 13, 13] == u.max() > 0.5


def test_density_does_not_fall_towards_csf():
    """A slab of tumour between a wall of CSF and free tissue: dense at the wall."""
    mask, held = np.zeros((2, 30, 8, 8), np.bool_)
    mask[5:15], held[5:] = True, True
    profile = density_of_mask(mask, held, 3.0, SPACING_MM)[:, 4, 4]
    assert profile[5] == profile[5:15].max() > 0.8
    assert not profile[:5].any()
    expected = wave_density((np.arange(5, 20) - 14.5) * SPACING_MM, 3.0)
    np.testing.assert_allclose(profile[5:20], expected, rtol=0.05)


def test_a_tumour_without_free_tissue_is_dense():
    full = np.ones((6, 6, 6), np.bool_)
    assert density_of_mask(full, full, 3.0, SPACING_MM).min() > 0.9


def test_a_scaled_tumour_is_scaled_back_by_its_outline():
    """All logits lowered by one number: the outline tells which, and nothing else changes."""
    x = (np.arange(40) - 19.5) * SPACING_MM
    u = np.broadcast_to(wave_density(x, 3.0)[:, None, None], (40, 8, 8))
    mask, held = u > VISIBLE, np.ones(u.shape, np.bool_)
    lowered = 1 / (1 + np.exp(-(bounded_logit(u) - 1.2)))
    back = match_outline(lowered.astype(np.float32), mask, held)
    seen = u > 1e-4  # below, the tail is cut
    difference = (bounded_logit(back) - bounded_logit(u))[seen]
    assert np.ptp(difference) < 1e-3
    assert abs(difference.mean()) < 0.3  # the outline lies somewhere between two voxels


def test_the_plateau_that_radiation_left_stays():
    mask, held = ball(14.0) < 0, np.ones(SHAPE, np.bool_)
    u = 0.3 * density_of_mask(ball(18.0) < 0, held, 3.0, SPACING_MM)
    assert not np.array_equal(u > VISIBLE, mask)
    matched = match_outline(u, mask, held)
    np.testing.assert_array_equal(matched > VISIBLE, mask)
    assert matched.max() < 0.45


def test_an_outline_leaves_what_it_does_not_know():
    """No cell where there was none; all below the visible where nothing is seen."""
    u = np.where(ball(10.0) < 0, 0.7, 0).astype(np.float32)
    nothing, held = np.zeros(SHAPE, np.bool_), np.ones(SHAPE, np.bool_)
    hidden = match_outline(u, nothing, held)
    assert 0.1 < hidden.max() < VISIBLE
    assert not hidden[u == 0].any()
    assert not match_outline(u, ball(8.0) < 0, held)[u == 0].any()


def test_surroundings_average_what_is_known_and_nothing_else():
    values, known = np.full((20, 5, 5), 9.0), np.zeros((20, 5, 5), np.bool_)
    known[:4], values[:4] = True, 0.25
    filled = surroundings(values, known, 2.0, 1.0)
    np.testing.assert_allclose(filled[:6], 0.25, atol=0.01)
    np.testing.assert_allclose(filled[-1], 1.0, atol=0.01)


# Tissue.


def layers(gain: float = 1.0) -> np.ndarray:
    """(30, 12, 12) a third each of CSF, grey and white matter, with 2 % noise."""
    t1 = np.repeat([0.2, 0.5, 0.8], 10)[:, None, None] * np.ones((30, 12, 12))
    noise = 0.016 * np.random.default_rng(4).standard_normal(t1.shape)
    return np.clip(gain * (t1 + noise), 0, 1).astype(np.float32)


def test_tissue_is_told_apart_by_intensity():
    brain = np.ones((30, 12, 12), np.bool_)
    found = estimate_tissue(layers()[None], np.zeros((1, 30, 12, 12), np.bool_), brain)
    np.testing.assert_array_equal(found.held, np.arange(30)[:, None, None] + 0 * brain >= 10)
    assert found.white[10:20].mean() < 0.05
    assert found.white[20:].mean() > 0.95
    assert found.note == ""
    d = found.diffusivity(0.2)
    assert not d[:10].any()
    assert d[10:20].mean() == pytest.approx(0.02, rel=0.4)
    assert d[20:].mean() == pytest.approx(0.2, rel=0.05)


def test_an_earlier_scan_shows_what_a_later_tumour_hides():
    """The tumour, dark as CSF, covers both tissues; the later scan is also dimmer."""
    masks = np.zeros((2, 30, 12, 12), np.bool_)
    masks[1, 14:26, 3:9, 3:9] = True
    t1 = np.stack([layers(), layers(0.6)])
    t1[masks] = 0.12
    found = estimate_tissue(t1, masks, np.ones((30, 12, 12), np.bool_))
    assert found.held[masks[1]].all()
    assert found.white[14:20, 3:9, 3:9].mean() < 0.05
    assert found.white[20:26, 3:9, 3:9].mean() > 0.95


def test_what_every_scan_hides_is_like_its_surroundings():
    masks = np.zeros((1, 30, 12, 12), np.bool_)
    masks[0, 24:28, 4:8, 4:8] = True
    t1 = np.where(masks, 0.1, layers()[None]).astype(np.float32)
    found = estimate_tissue(t1, masks, np.ones((30, 12, 12), np.bool_))
    assert found.white[24:28, 4:8, 4:8].min() > 0.9


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_without_classes_all_brain_is_white_matter(noise: float):
    t1 = 0.5 + noise * np.random.default_rng(1).standard_normal((1, 20, 20, 20))
    brain = np.zeros((20, 20, 20), np.bool_)
    brain[3:17] = True
    found = estimate_tissue(t1.astype(np.float32), np.zeros((1, 20, 20, 20), np.bool_), brain)
    np.testing.assert_array_equal(found.held, brain)
    np.testing.assert_array_equal(found.white, brain.astype(np.float32))
    assert "told apart" in found.note


# The fit.


@pytest.mark.parametrize("speed_mm", [0.08, 0.16])
def test_the_fit_finds_the_speed_of_a_plane_front(speed_mm: float):
    """To 12 %: outlines hold whole voxels, and the prior of 0.12 mm a day pulls."""
    width = 2.5
    rho = speed_mm / (2 * width)
    shape = (70, 4, 4)
    growth = Growth(np.full(shape, rho * width**2, np.float32), SPACING_MM)
    x = (np.arange(70) - 15) * SPACING_MM
    u = np.broadcast_to(wave_density(x, width)[:, None, None], shape).astype(np.float32)
    masks = []
    for _ in range(6):
        masks.append(u > 0.16)
        u = growth.advance(u, 90, rho)
    fitted = fit(np.stack(masks), range(0, 540, 90), ("none",) * 6)
    speed = 2 * np.sqrt(fitted.d_white_mm2_per_day * fitted.rho_per_day)
    assert speed == pytest.approx(speed_mm, rel=0.12)
    assert fitted.converged
    assert fitted.reason.startswith("tissue classes")


def test_an_exact_past_forecasts_better_than_a_copy(untreated):
    masks, fitted = untreated
    forecast = forecast_growth(fitted, day=120, treatment="none")
    assert dice(forecast.masks[0], masks[4]) > 0.96
    assert dice(masks[3], masks[4]) < 0.85
    true_ml = masks[4].sum() * 0.008
    assert forecast.volumes_ml[0] == pytest.approx(true_ml, rel=0.06)
    assert forecast.volumes_ml[0] == pytest.approx(forecast.masks[0].sum() * 0.008)


def test_treatments_are_fitted_where_they_were_given(untreated, treated):
    (_, free), (masks, fitted) = untreated, treated
    assert (free.tmz_factor, free.alpha_per_gy) == (0.5, 0.025)
    assert fitted.alpha_per_gy != 0.025
    u, predicted = fitted.past.coarse.follow(fitted.parameters)
    for mask, density in zip(masks[1:], predicted, strict=True):
        assert (density > VISIBLE).sum() == pytest.approx(mask.sum(), rel=0.2)
    np.testing.assert_array_equal(u > VISIBLE, masks[-1])


def test_what_radiation_did_is_carried_past_later_outlines():
    """A dense tumour whose outline stays where it was while a tenth of it survives."""
    mask = ball(16.0) < 0
    course = Course(np.stack([mask] * 3), uniform(), (0, 45, 46), ("CRT",) * 3, SPACING_MM)
    parameters = dataclasses.replace(TRUTH, rho_per_day=1e-4, d_white_mm2_per_day=4e-4)
    wave = density_of_mask(mask, course.tissue.held, 2.0, SPACING_MM)
    u, (first, _) = course.follow(parameters)
    survival = parameters.fraction_survival**30
    np.testing.assert_allclose(first[mask], survival * wave[mask], rtol=0.02)
    np.testing.assert_array_equal(u > VISIBLE, mask)
    assert u.max() < wave.max() - 0.1


def test_a_treated_past_forecasts_every_treatment_in_order(treated):
    _, fitted = treated
    none, tmz = volume(fitted, 170, "none"), volume(fitted, 170, "TMZ")
    assert volume(fitted, 170, "CRT") < tmz < none


def test_more_days_without_treatment_are_more_volume(untreated):
    volumes = [volume(untreated[1], day, "none") for day in (90, 100, 120, 160)]
    assert volumes == sorted(set(volumes))


def test_on_the_last_day_the_forecast_is_the_last_mask(untreated, treated):
    for masks, fitted, day in ((*untreated, 90), (*treated, 110)):
        forecast = forecast_growth(fitted, day=day, treatment="CRT")
        np.testing.assert_array_equal(forecast.masks[0], masks[len(fitted.past.fine.days) - 1])


def test_a_tumour_that_did_not_change_is_forecast_unchanged():
    mask = ball(14.0) < 0
    fitted = fit(np.stack([mask] * 5), (0, 60, 120, 180, 240), ("none",) * 5)
    speed = 2 * np.sqrt(fitted.d_white_mm2_per_day * fitted.rho_per_day)
    assert speed < 0.02
    assert dice(forecast_growth(fitted, day=260, treatment="none").masks[0], mask) > 0.97


def test_the_same_past_gives_the_same_fit(untreated):
    masks, fitted = untreated
    again = fit(masks[:4], DAYS, FREE)
    assert dataclasses.replace(again, seconds=fitted.seconds) == fitted


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mirrored_past_has_a_mirrored_forecast(axis: int):
    """In layered tissue, with the tumour off centre; rounding may turn a voxel."""
    shape = (30, 12, 12)
    axes = np.indices(shape)
    away = np.sqrt(((axes - np.reshape((20, 5, 7), (3, 1, 1, 1))) ** 2).sum(axis=0))
    masks = np.stack([away < 2.5, away < 3.5]) & (axes[0] >= 10)
    t1 = np.stack([layers(), layers(0.8)])
    brain = np.ones(shape, np.bool_)
    there = fit(masks, (0, 40), ("none", "TMZ"), t1=t1, brain=brain)
    back = [np.flip(x, axis + x.ndim - 3).copy() for x in (masks, t1, brain)]
    mirrored = fit(back[0], (0, 40), ("none", "TMZ"), t1=back[1], brain=back[2])
    assert mirrored.rho_per_day == pytest.approx(there.rho_per_day, rel=1e-3)
    one, two = (forecast_growth(f, day=90, treatment="none").masks[0] for f in (there, mirrored))
    assert masks[1].sum() < one.sum() < brain.sum() / 2
    assert (np.flip(two, axis) != one).sum() <= 2


def scaled_course(time: float, length: float) -> tuple[Course, TumourParameters]:
    """One past with other units of time and length."""
    masks = simulate(DAYS, FREE)
    days = tuple(int(time * day) for day in DAYS)
    course = Course(masks, uniform(), days, ("none", "none", "TMZ", "none"), SPACING_MM * length)
    rho = TRUTH.rho_per_day / time
    d = TRUTH.d_white_mm2_per_day * length**2 / time
    return course, dataclasses.replace(TRUTH, rho_per_day=rho, d_white_mm2_per_day=d)


@pytest.mark.parametrize(("time", "length", "atol"), [(2, 1, 0.01), (1, 3, 1e-5)])
def test_units_of_time_and_length_do_not_matter(time: int, length: int, atol: float):
    """Steps are at most 2 days whatever the unit; in time, only their errors differ."""
    ends = []
    for a, b in ((1, 1), (time, length)):
        course, parameters = scaled_course(a, b)
        u, _ = course.follow(parameters)
        ends.append(course.forecast(u, parameters, 120 * a, "none"))
    assert ends[0].max() > 0.7
    np.testing.assert_allclose(ends[1], ends[0], atol=atol)


def test_a_course_of_radiation_is_given_once(treated):
    """It began on day 0, so that CRT after day 45 is no more than TMZ."""
    masks, _ = treated
    fitted = fit(masks[:4], MIXED_DAYS[:4], MIXED[:4])
    later = [forecast_growth(fitted, day=80, treatment=t).masks for t in ("CRT", "TMZ")]
    np.testing.assert_array_equal(*later)
    second = fit(masks, MIXED_DAYS, MIXED)
    assert volume(second, 150, "CRT") < volume(second, 150, "TMZ")


@pytest.mark.parametrize(("before", "beyond"), [(0.0, 0.3), (0.0, -0.4), (-3.0, 2.0)])
def test_shares_of_voxels_make_volume_and_overlap_smooth(before: float, beyond: float):
    """A slab of 10 x 8 x 8 voxels, predicted to begin `before` and end `beyond` its outline."""
    mask = np.zeros((40, 8, 8), np.bool_)
    mask[10:20] = True
    course = Course(mask[None], uniform(mask.shape), (0,), ("none",), SPACING_MM)
    x = np.arange(40)
    inside = np.minimum(19.5 + beyond - x, x - 9.5 + before)
    lu = np.log(0.16 / 0.84) + inside * SPACING_MM / 3.0
    u = np.broadcast_to((1 / (1 + np.exp(-lu)))[:, None, None], mask.shape).astype(np.float32)
    log_ratio, overlap = course.agreement(u, 0, 3.0)
    slice_ml = 64 * 0.008
    pred_ml, seen_ml = (10 + before + beyond) * slice_ml, 10 * slice_ml
    both_ml = (10 + min(before, 0) + min(beyond, 0)) * slice_ml
    assert log_ratio == pytest.approx(np.log((pred_ml + 0.5) / (seen_ml + 0.5)), abs=1e-3)
    assert overlap == pytest.approx((2 * both_ml + 0.5) / (pred_ml + seen_ml + 0.5), abs=1e-3)


# Priors and spread.


def test_priors_hold_published_values_within_two_deviations():
    """Swanson et al. 2000: rho 0.012, D 0.65; Pedicini et al. 2014: alpha 0.12."""
    published = {"rho_per_day": 0.012, "width_mm": np.sqrt(0.65 / 0.012), "alpha_per_gy": 0.12}
    for name, value in published.items():
        prior = PRIORS[name]
        assert abs(np.log(value / prior.median)) / prior.log_sd < 2, name


def test_parameters_are_medians_times_powers():
    found = parameters_of(np.array([1.0, -1.0, 2.0, 0.0]))
    rho, width = 0.02 * np.exp(0.8), 3.0 * np.exp(-0.8)
    assert found.rho_per_day == pytest.approx(rho)
    assert found.d_white_mm2_per_day == pytest.approx(rho * width**2)
    assert found.tmz_factor == pytest.approx(0.5 * np.exp(1.4))
    assert found.alpha_per_gy == pytest.approx(0.025)
    assert found.fraction_survival == pytest.approx(np.exp(-2 * 0.025 - 4 * 0.0025))
    assert parameters_of(np.full(4, 3.0)).d_white_mm2_per_day == 2.0


def test_samples_spread_with_what_is_not_known(untreated):
    """Of one seed the same; around the forecast; wider for a treatment never seen."""
    _, fitted = untreated
    free, again = (
        forecast_growth(fitted, day=110, treatment="none", samples=8, seed=3) for _ in "ab"
    )
    assert free.volumes_ml == again.volumes_ml
    assert free.masks.shape == (8, *SHAPE)
    assert min(free.volumes_ml) < volume(fitted, 110, "none") < max(free.volumes_ml)
    tmz = forecast_growth(fitted, day=110, treatment="TMZ", samples=8, seed=3).volumes_ml
    assert len(set(tmz)) == 8
    other = forecast_growth(fitted, day=110, treatment="none", samples=8, seed=4)
    assert other.volumes_ml != free.volumes_ml
    covariance = fitted.posterior.covariance
    assert covariance[0, 0] < 0.9
    assert covariance[2, 2] == covariance[3, 3] == 1


# What a past may hold.


def test_one_session_has_the_prior_alone():
    mask = ball(14.0) < 0
    fitted = fit(mask[None], (0,), ("CRT",))
    assert (fitted.rho_per_day, fitted.tmz_factor, fitted.alpha_per_gy) == (0.02, 0.5, 0.025)
    assert fitted.d_white_mm2_per_day == pytest.approx(0.02 * 9)
    assert "prior" in fitted.reason
    assert (fitted.evaluations, fitted.converged) == (0, True)
    assert volume(fitted, 60, "none") > mask.sum() * 0.008


def test_two_sessions_of_one_day_say_nothing_of_growth():
    fitted = fit(np.stack([ball(14.0) < 0, ball(12.0) < 0]), (5, 5), ("none", "none"))
    assert "prior" in fitted.reason
    forecast = forecast_growth(fitted, day=5, treatment="none")
    np.testing.assert_array_equal(forecast.masks[0], ball(12.0) < 0)


def test_without_a_tumour_none_is_forecast():
    fitted = fit(np.zeros((2, *SHAPE), np.bool_), (0, 40), ("none", "none"))
    assert "no tumour" in fitted.reason
    forecast = forecast_growth(fitted, day=100, treatment="none")
    assert not forecast.masks.any()
    assert forecast.volumes_ml == (0.0,)


def test_a_tumour_that_was_not_there_at_first_starts_where_it_is_seen():
    masks = np.stack([np.zeros(SHAPE, np.bool_), ball(10.0) < 0, ball(13.0) < 0])
    fitted = fit(masks, (0, 40, 70), ("none",) * 3)
    assert fitted.evaluations > 0
    assert fitted.loss < 3
    assert volume(fitted, 90, "none") > masks[2].sum() * 0.008


def test_a_tumour_that_vanished_is_hidden_not_gone():
    masks = np.stack([ball(10.0) < 0, ball(12.0) < 0, np.zeros(SHAPE, np.bool_)])
    fitted = fit(masks, (0, 30, 60), ("none",) * 3)
    assert volume(fitted, 60, "none") == 0
    assert volume(fitted, 400, "none") > 0


def test_a_tumour_may_touch_the_border():
    """A quarter of a ball in an edge of the grid is a quarter of the ball in the middle."""
    whole = np.stack([ball(r) < 0 for r in (12.0, 16.0)])
    quarter = whole[:, 14:, 14:]
    large, small = (fit(m, (0, 40), ("none", "none")) for m in (whole, quarter))
    assert small.rho_per_day == pytest.approx(large.rho_per_day, rel=0.1)
    assert volume(small, 60, "none") == pytest.approx(volume(large, 60, "none") / 4, rel=0.03)


def test_images_of_one_millimetre_are_solved_on_two():
    """Odd numbers of voxels: the same tumour in 1 mm and in the means of its blocks."""
    fine_axes = (np.indices((41, 43, 45)) - np.reshape((20, 22, 21), (3, 1, 1, 1))) ** 2
    away = np.sqrt(fine_axes.sum(axis=0))
    fine = np.stack([away < 10, away < 13.2])
    fitted = fit(fine, (0, 40), ("none", "none"), spacing_mm=1.0)
    assert fitted.past.coarse.spacing_mm == 2.0
    now = forecast_growth(fitted, day=40, treatment="none")
    np.testing.assert_array_equal(now.masks[0], fine[1])
    later = forecast_growth(fitted, day=60, treatment="none")
    radius = np.cbrt(later.volumes_ml[0] * 1000 * 3 / (4 * np.pi))
    assert radius == pytest.approx(13.2 + 1.6, abs=0.5)
    assert dice(later.masks[0], away < radius) > 0.97


def test_a_tumour_smaller_than_a_block_is_kept():
    fine = np.zeros((2, 21, 20, 21), np.bool_)
    fine[:, 8:10, 9, 9] = True
    fitted = fit(fine, (0, 30), ("none", "none"), spacing_mm=1.0)
    np.testing.assert_array_equal(np.argwhere(fitted.past.coarse.masks[1]), [[4, 4, 4]])
    np.testing.assert_array_equal(
        forecast_growth(fitted, day=30, treatment="none").masks[0], fine[1]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": np.zeros((2, 4, 4, 4), np.uint8)}, "boolean"),
        ({"t1": np.zeros((1, 4, 4, 4), np.float32)}, "must be"),
        ({"t1": np.full((2, 4, 4, 4), 7, np.float32)}, "0, 1"),
        ({"t1": np.full((2, 4, 4, 4), np.nan, np.float32)}, "0, 1"),
        ({"brain": np.zeros((4, 4, 4), np.bool_)}, "brain"),
        ({"days": (0, 3, 9)}, "3 days"),
        ({"days": (9, 3)}, "time order"),
        ({"treatments": ("none", "surgery")}, "surgery"),
        ({"spacing_mm": 0.0}, "spacing_mm"),
    ],
)
def test_a_past_that_does_not_fit_together_is_refused(change: dict, message: str):
    given = {
        "t1": np.full((2, 4, 4, 4), 0.5, np.float32),
        "masks": np.zeros((2, 4, 4, 4), np.bool_),
        "brain": np.ones((4, 4, 4), np.bool_),
        "days": (0, 30),
        "treatments": ("none", "none"),
        "spacing_mm": 2.0,
    }
    with pytest.raises(ValueError, match=message):
        fit_growth(**{**given, **change})


@pytest.mark.parametrize(
    ("day", "treatment", "samples", "message"),
    [
        (80, "none", 1, "before the last session, on day 90"),
        (120, "surgery", 1, "surgery"),
        (120, "none", 0, "samples"),
    ],
)
def test_a_forecast_that_is_not_possible_is_refused(
    untreated, day: int, treatment: str, samples: int, message: str
):
    with pytest.raises(ValueError, match=message):
        forecast_growth(untreated[1], day=day, treatment=treatment, samples=samples)
