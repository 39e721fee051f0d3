"""Intervals against scipy, scores and quantiles against exact fractions, rules by simulation."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tadiff_rt.ensemble import SliceStatistics
from tadiff_rt.errors import UsageError
from tadiff_rt.volume import (
    MIN_AUTO_SAMPLES,
    enough_samples,
    expected_pairwise_dice,
    fair_crps,
    mean_interval,
    student_quantile,
    volume_interval,
    volume_quantiles,
)

EIGHTHS = st.integers(0, 4000).map(lambda v: v / 8)
"""Volumes in ml; float64 holds them and their differences exactly."""


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 30, 199])
@pytest.mark.parametrize("level", [0.05, 0.5, 0.9, 0.99])
def test_student_quantile_is_that_of_scipy(level, degrees):
    expected = scipy.stats.t.ppf(0.5 + level / 2, degrees)
    assert student_quantile(level, degrees) == pytest.approx(expected, rel=1e-9)


def test_volume_interval_by_table():
    """Volumes 8, 10, 12: mean 10, s = 2, t(0.95; 2) = 2.920, so 10 ± 2.920 · 2 · √(4/3)."""
    mean, low, high = volume_interval([8, 10, 12], level=0.9)
    assert (mean, low, high) == pytest.approx((10, 10 - 6.743, 10 + 6.743), abs=1e-3)


def test_volume_interval_covers_the_next_draw_as_often_as_it_says():
    """4,000 ensembles of 5 normal volumes; the bound is 5 standard errors (false alarm 6e-7)."""
    draws = np.random.default_rng(1).normal(50, 4, (4000, 6))
    hits = 0
    for *volumes, following in draws.tolist():
        _, low, high = volume_interval(volumes, level=0.9)
        hits += low <= following <= high
    assert hits / 4000 == pytest.approx(0.9, abs=5 * math.sqrt(0.09 / 4000))


def test_volume_interval_never_goes_below_zero():
    mean, low, high = volume_interval([0.0, 0.0, 3.0])
    assert (mean, low) == (1.0, 0.0)
    assert high > 3


@pytest.mark.parametrize("volumes", [[], [12.5]])
def test_one_draw_gives_no_interval(volumes):
    assert volume_interval(volumes) is None
    assert mean_interval(volumes) is None
    assert volume_quantiles(volumes, [0.5]) is None


@pytest.mark.parametrize("level", [0, 1, 90, math.nan])
def test_rejects_a_level_that_is_no_probability(level):
    for ask in (volume_interval, mean_interval, lambda v, p: enough_samples(v, 0.1, p)):
        with pytest.raises(UsageError, match="TD3046: level must be inside 0 to 1"):
            ask([1.0, 2.0], level)
    with pytest.raises(UsageError, match="TD3046: probability must be inside 0 to 1"):
        volume_quantiles([1.0, 2.0], [0.5, level])


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("n", [2, 5, 30])
def test_mean_interval_is_that_of_scipy(level, n):
    volumes = np.random.default_rng(n).normal(40, 1, n)
    expected = scipy.stats.t.interval(level, n - 1, volumes.mean(), scipy.stats.sem(volumes))
    mean, *interval = mean_interval(volumes.tolist(), level)
    assert mean == pytest.approx(volumes.mean(), rel=1e-14)
    assert interval == pytest.approx(np.maximum(expected, 0), rel=1e-9)


def test_mean_interval_never_goes_below_zero():
    mean, low, high = mean_interval([0.0, 0.0, 3.0])
    assert (mean, low) == (1.0, 0.0)
    assert high > 3


def test_mean_interval_covers_the_mean_as_often_as_it_says():
    """4,000 ensembles of 5 normal volumes; the bound is 5 standard errors (false alarm 6e-7)."""
    draws = np.random.default_rng(2).normal(50, 4, (4000, 5))
    hits = sum(low <= 50 <= high for _, low, high in map(mean_interval, draws.tolist()))
    assert hits / 4000 == pytest.approx(0.9, abs=5 * math.sqrt(0.09 / 4000))


def test_enough_samples_turns_where_the_half_width_says():
    """Ten volumes: half-width t(0.95; 9) · s / √10 with t = 1.8331 from the table."""
    volumes = [8.0, 9, 9, 10, 10, 10, 10, 11, 11, 12]
    width = 1.8331 * np.std(volumes, ddof=1) / math.sqrt(10) / np.mean(volumes)
    assert enough_samples(volumes, 1.0001 * width)
    assert not enough_samples(volumes, 0.9999 * width)
    assert not enough_samples(volumes, 1.0001 * width, level=0.95)


def test_enough_samples_is_not_fooled_by_the_cut_at_zero():
    """Mean 0.5, half-width 1.0075: 2.015 times the mean, of which 0.5075 lies below zero."""
    volumes = [0.0, 0, 0, 0, 0, 3]
    assert not enough_samples(volumes, 2.01)
    assert enough_samples(volumes, 2.02)


@pytest.mark.parametrize("volume", [0.0, 12.3])
def test_equal_volumes_are_enough_from_the_smallest_number_on(volume):
    assert MIN_AUTO_SAMPLES == 6
    assert [enough_samples([volume] * n, 1e-9) for n in range(8)] == 6 * [False] + 2 * [True]


@pytest.mark.parametrize("width", [0, -0.1, math.inf, math.nan])
def test_rejects_a_relative_width_that_is_none(width):
    with pytest.raises(UsageError, match="TD3046: relative_width must be positive and finite"):
        enough_samples([1.0] * 6, width)


def test_stopping_when_enough_covers_less_often():
    """The docstring's row of 0.3 with 2,000 runs, found alike (0.870, 25.1) by a simulation that
    shares no code. Bounds are 5 standard errors; false alarm 6e-7 each."""
    rng = np.random.default_rng(4)
    covered, counts = 0, []
    for _ in range(2000):
        draws = rng.normal(1, 0.3, 64).tolist()
        n = next((n for n in range(2, 64, 2) if enough_samples(draws[:n], 0.1)), 64)
        _, low, high = mean_interval(draws[:n])
        covered += low <= 1 <= high
        counts.append(n)
    assert covered / 2000 == pytest.approx(0.869, abs=5 * math.sqrt(0.869 * 0.131 / 2000))
    assert np.mean(counts) == pytest.approx(25.2, abs=5 * np.std(counts) / math.sqrt(2000))


@given(
    st.lists(EIGHTHS, min_size=2, max_size=40),
    st.lists(st.fractions(Fraction(1, 500), Fraction(499, 500)), min_size=1, max_size=4),
)
def test_quantiles_are_definition_8_of_hyndman_and_fan(volumes, probabilities):
    """Q(p) = (1 − g) x_j + g x_(j+1), j = ⌊N p + m⌋, m = (p + 1)/3, in exact fractions."""
    ranked = [Fraction(v) for v in sorted(volumes)]
    ranked = [ranked[0], *ranked, ranked[-1]]
    expected = []
    for p in probabilities:
        position = min(max(len(volumes) * p + (p + 1) / 3, Fraction(0)), Fraction(len(volumes)))
        j = math.floor(position)
        g = position - j
        expected.append(float((1 - g) * ranked[j] + g * ranked[j + 1]))
    got = volume_quantiles(volumes, [float(p) for p in probabilities])
    assert isinstance(got, tuple)
    assert got == pytest.approx(expected, rel=1e-11, abs=1e-11)


@pytest.mark.parametrize(("p", "n"), [(0.25, 3), (0.1, 7), (0.05, 13), (0.025, 27)])
def test_n_supports_the_quantiles_documented(p, n):
    """Of volumes 1 … N the quantile is its own position; one volume fewer, and it is cut off."""
    low, high = volume_quantiles(range(1, n + 1), (p, 1 - p))
    assert low == pytest.approx((n + 1 / 3) * p + 1 / 3, rel=1e-12)
    assert high == pytest.approx(n + 1 - low, rel=1e-12)
    assert volume_quantiles(range(1, n), (p, 1 - p)) == (1, n - 1)
    assert (n - 1 + 1 / 3) * p + 1 / 3 < 1


def all_pairs_crps(values, truth) -> Fraction:
    """Ferro's definition, a loop over all pairs."""
    x, n = [Fraction(v) for v in values], len(values)
    pairs = sum(abs(a - b) for a, b in itertools.product(x, x))
    return sum(abs(v - Fraction(truth)) for v in x) / n - pairs / (2 * n * (n - 1))


@given(st.lists(EIGHTHS, min_size=2, max_size=30), EIGHTHS)
def test_fair_crps_is_the_sum_over_all_pairs(values, truth):
    given_values = list(values)
    got = fair_crps(values, truth)
    assert got == pytest.approx(float(all_pairs_crps(values, truth)), rel=1e-12, abs=1e-11)
    assert values == given_values


def test_fair_crps_of_a_narrow_ensemble_far_from_zero():
    """Sorted values times 2k − N − 1 would cancel here: 1e-4 apart at 1e9."""
    values = [1e9 + k / 8192 for k in (5, 1, 9, 2, 2)]
    expected = float(all_pairs_crps(values, 1e9))
    assert fair_crps(values, 1e9) == pytest.approx(expected, rel=1e-12)
    assert fair_crps([0.1] * 7, 0.1) == 0


@pytest.mark.parametrize("n", [2, 3, 4])
def test_fair_crps_is_unbiased(n):
    """Over all ensembles of a lopsided distribution, against E|X − y| − E|X − X'|/2."""
    outcomes = {0: Fraction(1, 2), 1: Fraction(1, 3), 4: Fraction(1, 6)}
    got = sum(
        float(math.prod(outcomes[v] for v in members)) * fair_crps(members, 1.5)
        for members in itertools.product(outcomes, repeat=n)
    )
    error = sum(p * abs(v - Fraction(3, 2)) for v, p in outcomes.items())
    spread = sum(p * q * abs(a - b) for a, p in outcomes.items() for b, q in outcomes.items())
    assert got == pytest.approx(float(error - spread / 2), rel=1e-13)


@pytest.mark.parametrize("values", [[], [3.0]])
def test_fair_crps_needs_two_values(values):
    with pytest.raises(ValueError, match=f"at least two values, got {len(values)}"):
        fair_crps(values, 1.0)


@pytest.mark.parametrize("n", [2, 3])
def test_expected_pairwise_dice_is_unbiased(n):
    """Over all ensembles of four masks, one of them empty; sizes differ, so 2 Σ overlaps over
    Σ areas would be another number."""
    masks = {
        (): Fraction(1, 4),
        (0,): Fraction(1, 2),
        (0, 1, 2): Fraction(1, 6),
        (1, 3): Fraction(1, 12),
    }

    def dice(a, b) -> Fraction:
        return Fraction(2 * len({*a} & {*b}), len(a) + len(b)) if a or b else Fraction(1)

    got = 0.0
    for members in itertools.product(masks, repeat=n):
        overlaps = [len({*a} & {*b}) for a, b in itertools.pairwise(members)]
        weight = float(math.prod(masks[m] for m in members))
        got += weight * expected_pairwise_dice([len(m) for m in members], overlaps)
    expected = sum(p * q * dice(a, b) for a, p in masks.items() for b, q in masks.items())
    assert got == pytest.approx(float(expected), rel=1e-13)


def test_expected_pairwise_dice_of_totals_over_slices():
    """Three samples of two slices; totals of slice statistics give the Dice of the volumes."""
    masks = np.random.default_rng(3).random((3, 2, 5, 4)) < 0.4
    slices = [SliceStatistics((1,), (5, 4)) for _ in range(2)]
    for sample in masks:
        for statistics, mask in zip(slices, sample, strict=True):
            statistics.add(np.zeros(1), np.where(mask, 3.0, -3.0))
    got = expected_pairwise_dice(
        np.sum([s.areas for s in slices], axis=0), np.sum([s.overlaps for s in slices], axis=0)
    )
    dice = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in itertools.pairwise(masks)]
    assert type(got) is float
    assert got == pytest.approx(np.mean(dice), rel=1e-15)


def test_expected_pairwise_dice_of_empty_masks():
    assert expected_pairwise_dice([0, 0], [0]) == 1
    assert expected_pairwise_dice([0, 3, 0, 0], [0, 0, 0]) == pytest.approx(1 / 3)
    assert expected_pairwise_dice([5], []) is None
    assert expected_pairwise_dice([], []) is None


def test_expected_pairwise_dice_rejects_numbers_of_something_else():
    with pytest.raises(ValueError, match="3 areas have 2 overlaps, got 3"):
        expected_pairwise_dice([1, 2, 3], [1, 1, 1])
    with pytest.raises(ValueError, match="masks of 2 and 3 voxels cannot share 4"):
        expected_pairwise_dice([2, 3], [4])
    with pytest.raises(ValueError, match="cannot share -1"):
        expected_pairwise_dice([2, 3], [-1])
