"""Ensembles that are exact, too narrow or perfect; integrals, closed forms, other programs."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from tadiff_rt.ensemble import SliceStatistics
from tadiff_rt.volume import fair_crps, volume_interval
from tadiff_train.metrics import (
    absolute_volume_error,
    ause,
    brier,
    coverage,
    crps,
    crps_gaussian,
    dice,
    hd95,
    quantile_interval,
    rank_flatness,
    rank_histogram,
    reliability,
    spread_skill,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def test_an_ensemble_of_perfect_masks_has_every_perfect_score():
    """With a second sigmoid, probabilities are at least 1/2, and the whole slice is tumour."""
    truth = np.zeros((12, 12), bool)
    truth[3:8, 2:7] = True
    statistics = SliceStatistics((1, 12, 12), (12, 12))
    for _ in range(5):
        statistics.add(np.zeros((1, 12, 12)), np.where(truth, 40.0, -40.0))
    probability = statistics.tumour_probability
    forecast = probability > 0.5
    assert dice(forecast, truth) == 1
    assert hd95(forecast, truth, [1.0, 1.0]) == 0
    assert brier(probability, truth).score < 1e-12
    assert reliability(probability, truth).ece < 1e-12
    volumes = np.array(statistics.areas, float)
    assert crps(volumes[:, None], np.array([25.0])).item() == 0
    assert absolute_volume_error(volumes.mean(), 25.0) == 0
    interval = volume_interval(volumes.tolist())
    assert interval is not None
    assert coverage(*np.array([interval[1:]]).T, np.array([25.0])) == 1
    perfect = spread_skill(np.zeros(9), np.zeros(9), num_samples=5, bins=3)
    assert (perfect.spread, perfect.error, perfect.ratio) == (0, 0, None)
    assert ause(np.zeros(144), np.zeros(144)) is None


def test_a_missed_future_mask_scores_0_although_the_past_is_perfect():
    """With the masks of the sources counted too, it would be 6/7."""
    past, future = np.zeros((2, 3, 8, 8), bool)
    past[:, 2:5, 2:5] = True
    future = past[0]
    assert dice(np.zeros((8, 8), bool), future) == 0
    pooled = dice(np.stack([*past, np.zeros((8, 8), bool)]), np.stack([*past, future]))
    assert pooled == pytest.approx(6 / 7)


def step_integral(samples: np.ndarray, truth: float) -> float:
    """Integral of (F - 1[x >= truth])^2 for the step function F of the samples, step by step."""
    at = np.sort([*samples, truth])
    share = [(samples <= x).mean() for x in at[:-1]]
    steps = zip(at[:-1], np.diff(at), share, strict=True)
    return float(sum(width * (f - (x >= truth)) ** 2 for x, width, f in steps))


@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_the_score_of_samples_is_its_integral(rng: np.random.Generator, k: int):
    samples, truth = rng.normal(size=(k, 20)), rng.normal(size=20)
    samples[:, 3] = samples[0, 3]
    samples[0, 4] = truth[4]
    expected = [step_integral(samples[:, i], truth[i]) for i in range(20)]
    np.testing.assert_allclose(crps(samples, truth, fair=False), expected, rtol=0, atol=1e-14)


def test_the_fair_score_is_that_of_the_runtime_place_by_place(rng: np.random.Generator):
    samples, truth = rng.normal(3, 2, size=(6, 4, 5)), rng.normal(size=(4, 5))
    before = samples.copy()
    got = crps(samples, truth)
    assert got.shape == (4, 5)
    for at in np.ndindex(4, 5):
        expected = fair_crps(samples[:, *at].tolist(), float(truth[at]))
        assert got[at] == pytest.approx(expected, abs=1e-14)
    np.testing.assert_array_equal(samples, before)  # sorted in a copy


def test_scores_of_other_programs():
    """scoringrules 0.10.0 and, for the last two, properscoring 0.1, with these numbers.

    scoringrules.crps_ensemble(0.7, x, estimator="fair"), the same with "nrg", and
    scoringrules.crps_normal(1.7, 0.4, 0.8).
    """
    x, truth = np.array([0.3, -1.2, 2.5, 0.9, 0.3])[:, None], np.array([0.7])
    assert crps(x, truth).item() == pytest.approx(0.14, abs=1e-12)
    assert crps(x, truth, fair=False).item() == pytest.approx(0.3, abs=1e-12)
    normal = crps_gaussian(*np.array([[0.4], [0.8], [1.7]]))
    assert normal.item() == pytest.approx(0.8836982356911598, abs=1e-12)


@pytest.mark.parametrize("k", [2, 3, 10])
def test_the_fair_score_does_not_depend_on_the_number_of_samples(rng: np.random.Generator, k: int):
    """E |X - Y| - E |X - X'| / 2 for X of N(0, 1) and Y of N(0.6, 0.8^2), from folded normals.

    The other form is larger by E |X - X'| / (2 k) = 1 / (k sqrt(pi)).
    """
    n = 60_000
    samples, truth = rng.normal(size=(k, n)), rng.normal(0.6, 0.8, size=n)
    expected = stats.foldnorm(0.6 / math.hypot(1, 0.8), scale=math.hypot(1, 0.8)).mean()
    expected -= 1 / math.sqrt(math.pi)
    for fair, extra in ((True, 0), (False, 1 / (k * math.sqrt(math.pi)))):
        values = crps(samples, truth, fair=fair)
        reach = 4 * values.std() / math.sqrt(n)
        assert values.mean() == pytest.approx(expected + extra, abs=reach)
        assert reach < 0.02


@pytest.mark.parametrize("std", [0.2, 1.0, 7.0])
@pytest.mark.parametrize("truth", [-3.0, 0.4, 1.1])
def test_the_normal_score_is_its_integral_and_the_limit_of_samples(std: float, truth: float):
    of = stats.norm(0.4, std)
    below = integrate.quad(lambda x: of.cdf(x) ** 2, 0.4 - 12 * std, truth, epsabs=1e-12)[0]
    above = integrate.quad(lambda x: of.sf(x) ** 2, truth, 0.4 + 12 * std, epsabs=1e-12)[0]
    expected = crps_gaussian(*np.array([[0.4], [std], [truth]])).item()
    if 0.4 - 12 * std < truth:
        assert expected == pytest.approx(below + above, abs=1e-9)
    quantiles = of.ppf((np.arange(20_000) + 0.5) / 20_000)[:, None]
    for fair in (True, False):
        limit = crps(quantiles, np.array([truth]), fair=fair).item()
        assert limit == pytest.approx(expected, abs=1e-4 * std)


def test_a_normal_without_spread_is_a_point():
    got = crps_gaussian(np.array([1.0, 2.0]), np.zeros(2), np.array([3.5, 2.0]))
    np.testing.assert_array_equal(got, [2.5, 0])
    narrow = crps_gaussian(np.array([1.0]), np.array([1e-300]), np.array([3.5]))
    assert narrow.item() == pytest.approx(2.5)


@pytest.mark.parametrize("k", [2, 5, 50])
def test_the_spread_of_an_exact_ensemble_is_its_error(rng: np.random.Generator, k: int):
    """Without (k + 1) / k, 2 samples would have a ratio of 0.82, and 5 of 0.91."""
    n = 20_000
    std = rng.uniform(0.5, 3, size=n)
    samples, truth = (std * rng.normal(size=(count, n)) for count in (k, 1))
    variance, squared = samples.var(axis=0, ddof=1), (samples.mean(axis=0) - truth[0]) ** 2
    exact = spread_skill(variance, squared, num_samples=k)
    assert exact.ratio == pytest.approx(1, abs=0.02)
    narrow = spread_skill(variance / 4, squared, num_samples=k)
    assert narrow.ratio == pytest.approx(exact.ratio / 2)
    if k == 50:
        np.testing.assert_allclose(exact.bin_spread / exact.bin_error, 1, atol=0.12)


def test_bins_of_few_samples_sort_by_chance(rng: np.random.Generator):
    """An exact ensemble of 2 whose true spread is the same everywhere."""
    samples, truth = rng.normal(size=(2, 5000)), rng.normal(size=5000)
    got = spread_skill(
        samples.var(axis=0, ddof=1), (samples.mean(axis=0) - truth) ** 2, num_samples=2
    )
    assert got.bin_spread[0] < 0.2 * got.bin_error[0]
    assert got.bin_spread[-1] > 1.5 * got.bin_error[-1]


def test_spread_and_skill_by_hand():
    """The factor for 2 samples is 3/2."""
    got = spread_skill(
        np.array([[16.0, 2.0, 4.0], [6.0, 8.0, 20.0]]),
        np.array([[1.0, 9.0, 25.0], [0.0, 4.0, 16.0]]),
        num_samples=2,
        bins=4,
    )
    np.testing.assert_array_equal(got.bin_count, [2, 2, 1, 1])
    np.testing.assert_allclose(got.bin_spread**2, [4.5, 10.5, 24, 30])
    np.testing.assert_allclose(got.bin_error**2, [17, 2, 1, 16])
    assert got.spread**2 == pytest.approx(14)
    assert got.error**2 == pytest.approx(55 / 6)
    assert got.ratio == pytest.approx(math.sqrt(14 * 6 / 55))


def test_ranks_by_hand(rng: np.random.Generator):
    samples = np.array([[4.0, 5.0, 1.0, 0.0], [2.0, 6.0, 3.0, 9.0]])
    got = rank_histogram(samples, np.array([3.0, 7.0, 4.5, 8.0]), rng)
    np.testing.assert_array_equal(got, [0, 2, 2])


def test_an_exchangeable_ensemble_is_flat_and_a_narrow_one_is_u_shaped(rng: np.random.Generator):
    k, n = 5, 12_000
    samples, truth = rng.normal(size=(k, n)), rng.normal(size=n)
    flat = rank_histogram(samples, truth, rng)
    assert flat.sum() == n
    assert abs(flat - n / 6).max() < 4 * math.sqrt(n * 5 / 36)
    assert rank_flatness(flat) > 0.01
    narrow = rank_histogram(0.4 * samples, truth, rng)
    assert narrow[[0, -1]].min() > 2 * narrow[1:-1].max()
    wide = rank_histogram(3 * samples, truth, rng)
    assert wide[[0, -1]].max() < 0.5 * wide[1:-1].min()
    low = rank_histogram(samples - 1, truth, rng)
    assert (np.diff(low) > 0).all()
    for counts in (narrow, wide, low):
        assert rank_flatness(counts) < 1e-9


def test_ties_are_drawn_and_stay_flat(rng: np.random.Generator):
    """Most patients have no tumour in any sample, nor in truth; a few ranks are certain."""
    n = 6000
    flat = rank_histogram(np.zeros((4, n)), np.zeros(n), rng)
    assert abs(flat - n / 5).max() < 4 * math.sqrt(n * 4 / 25)
    some = np.array([[0.0], [1.0], [1.0], [2.0]]).repeat(n, axis=1)
    counts = rank_histogram(some, np.ones(n), rng)
    assert counts[[0, 4]].sum() == 0
    assert abs(counts[1:4] - n / 3).max() < 4 * math.sqrt(n * 2 / 9)


def test_the_flatness_of_three_ranks_is_an_exponential():
    """With 2 degrees of freedom, p = exp(-x / 2); x = (25 + 0 + 25) / 10."""
    assert rank_flatness(np.array([5, 10, 15])) == pytest.approx(math.exp(-2.5))
    assert rank_flatness(np.array([10, 10, 10])) == pytest.approx(1)


@pytest.mark.parametrize(("patients", "ranks"), [(24, 6), (12, 11)])
def test_flat_histograms_of_few_patients_are_rejected_as_often_as_they_should(
    rng: np.random.Generator, patients: int, ranks: int
):
    drawn = rng.multinomial(patients, np.full(ranks, 1 / ranks), size=4000)
    p = np.array([rank_flatness(counts) for counts in drawn])
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.02)


def test_too_few_patients_show_nothing():
    assert rank_flatness(np.array([3, 6, 0])) is None
    assert rank_flatness(np.array([4, 6, 0])) is not None
    assert rank_flatness(np.array([40, 60])) is None
    assert rank_flatness(np.array([11, *[0] * 12])) is None  # 121 < 130
    assert rank_flatness(np.array([11, *[0] * 11])) is not None


@pytest.mark.parametrize("k", [3, 5, 20])
@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_the_interval_of_a_gaussian_ensemble_has_nominal_coverage(
    rng: np.random.Generator, k: int, level: float
):
    n = 1500
    volumes, truth = rng.normal(200, 9, size=(n, k)), rng.normal(200, 9, size=n)
    found = np.array([volume_interval(row.tolist(), level) for row in volumes])
    got = coverage(found[:, 1], found[:, 2], truth)
    assert got == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / n))


@pytest.mark.parametrize(("k", "r"), [(5, 1), (11, 2), (2, 1)])
def test_the_coverage_of_the_range_of_samples_is_smaller_as_derived(
    rng: np.random.Generator, k: int, r: int
):
    """All k + 1 places of a further draw are equally likely; k + 1 - 2 r of them are inside."""
    n = 6000
    level = (k + 1 - 2 * r) / (k + 1 / 3)
    samples, truth = rng.exponential(size=(n, k)), rng.exponential(size=n)
    found = np.array([quantile_interval(row.tolist(), level) for row in samples])
    ordered = np.sort(samples, axis=1)
    np.testing.assert_allclose(found, ordered[:, [r - 1, k - r]], rtol=1e-9)
    # Outwards by a rounding error, as the quantile is interpolated between equal numbers.
    got = coverage(found[:, 0] * (1 - 1e-9), found[:, 1] * (1 + 1e-9), truth)
    share = (k + 1 - 2 * r) / (k + 1)
    assert got == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / n))
    assert share < level


def test_few_samples_have_no_wide_quantile_interval():
    volumes = [3.0, 1.0, 2.0, 5.0, 4.0]
    assert quantile_interval(volumes, 0.75) == pytest.approx((1, 5))
    assert quantile_interval(volumes, 0.76) is None
    assert quantile_interval(volumes, 0.5) == pytest.approx((5 / 3, 13 / 3))
    assert quantile_interval([1.0], 0.5) is None


def test_coverage_counts_the_ends():
    low, high = np.zeros(5), np.full(5, 2.0)
    assert coverage(low, high, np.array([0, 2, 1, -0.1, 2.1])) == pytest.approx(3 / 5)
    assert coverage(low, low, low) == 1


ONES = np.ones(4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: crps(np.ones((3, 5)), ONES), r"\(k, ...\) of truth \(...\), got \(3, 5\)"),
        (lambda: crps(ONES, ONES), r"got \(4,\) and \(4,\)"),  # would broadcast
        (lambda: crps(ONES[None], ONES), "at least 2 samples, got 1"),
        (lambda: crps(np.ones((0, 4)), ONES, fair=False), "at least 1 samples, got 0"),
        (lambda: crps(np.full((3, 4), np.nan), ONES), "samples must be finite"),
        (lambda: crps(np.ones((3, 4)), ONES * np.inf), "truth must be finite"),
        (lambda: crps_gaussian(ONES, ONES, np.ones((1, 4))), "shapes differ"),
        (lambda: crps_gaussian(ONES, -ONES, ONES), "std must not be negative, got -1"),
        (lambda: crps_gaussian(ONES, ONES * np.nan, ONES), "std must be finite"),
        (lambda: spread_skill(ONES, np.ones(3), num_samples=2), "shapes differ"),
        (lambda: spread_skill(-ONES, ONES, num_samples=2), "variance must not be neg.*-1"),
        (lambda: spread_skill(ONES, -ONES, num_samples=2), "squared_error must not be neg.*-1"),
        (lambda: spread_skill(ONES, ONES * np.nan, num_samples=2), "squared_error must be finite"),
        (lambda: spread_skill(ONES, ONES, num_samples=1), "at least 2 samples, got 1"),
        (lambda: spread_skill(ONES, ONES, num_samples=2), "1 to the 4 places, got 10"),
        (lambda: spread_skill(ONES, ONES, num_samples=2, bins=0), "got 0"),
        (lambda: rank_histogram(np.ones((3, 2, 4)), np.ones((2, 4)), None), r"\(n,\), got"),
        (lambda: rank_histogram(np.ones((3, 4)), ONES * np.nan, None), "truth must be finite"),
        (lambda: rank_flatness(ONES), "integers, one a rank, got float64"),
        (lambda: rank_flatness(np.array([3])), r"of shape \(1,\)"),
        (lambda: rank_flatness(np.array([9, 9, -1])), "not be negative, got -1"),
        (lambda: coverage(ONES, ONES, np.ones(3)), "shapes differ"),
        (lambda: coverage(ONES, 0 * ONES, ONES), "low must not be above high"),
        (lambda: coverage(ONES, ONES * np.nan, ONES), "high must be finite"),
        (lambda: coverage(*np.ones((3, 0))), "not empty"),
        (lambda: quantile_interval([1.0, 2.0], 1.2), "level must be inside 0 to 1, got 1.2"),
        (lambda: quantile_interval([1.0, math.nan], 0.5), "samples must be finite"),
    ],
)
def test_what_is_no_ensemble_is_refused(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()
