"""Streaming statistics against two-pass numpy and exact fractions; intervals against scipy."""

import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.special
import scipy.stats

from tadiff_rt.ensemble import SliceStatistics, mask_probability, student_quantile, volume_interval
from tadiff_rt.errors import UsageError


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20250701)


def filled(images, logits, **options) -> SliceStatistics:
    statistics = SliceStatistics(images.shape[1:], logits.shape[1:], **options)
    for image, mask_logits in zip(images, logits, strict=True):
        statistics.add(image, mask_logits)
    return statistics


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_matches_two_pass_numpy(n, rng):
    images = rng.standard_normal((n, 3, 4, 5)).astype(np.float32)
    logits = 4 * rng.standard_normal((n, 4, 5)).astype(np.float32)
    got = filled(images, logits)
    probability = scipy.special.expit(logits.astype(np.float64))
    np.testing.assert_allclose(got.mean, images.mean(0, dtype=np.float64), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(got.std, images.std(0, ddof=1, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(got.tumour_probability, probability.mean(0), rtol=1e-12)
    assert got.areas == tuple((probability > 0.5).sum((1, 2)))
    assert got.count == n


def test_spread_survives_a_large_mean():
    """Spread 1e-4 on a mean of 1e6: E[x²] - mean² has no correct digit left in float64."""
    values = [1e6 + 1e-4 * k for k in (0, 3, -2, 5, 1)]
    exact = [Fraction(v) for v in values]
    mean = sum(exact) / 5
    variance = sum((v - mean) ** 2 for v in exact) / 4
    got = filled(np.array(values).reshape(5, 1), np.zeros((5, 1)))
    assert got.std is not None
    assert got.std[0] == pytest.approx(math.sqrt(variance), rel=1e-6)


def test_equal_samples_have_no_spread_at_all(rng):
    images = np.repeat(rng.random((1, 3, 2)), 7, axis=0)
    got = filled(images, np.zeros((7, 2)))
    np.testing.assert_array_equal(got.std, np.zeros((3, 2)))
    np.testing.assert_allclose(got.mean, images[0], rtol=1e-15)


def test_one_sample_has_a_mean_but_no_spread():
    got = filled(np.full((1, 2), 0.3), np.full((1, 2), 2.0))
    np.testing.assert_array_equal(got.mean, [0.3, 0.3])
    assert got.std is None
    assert got.areas == (2,)


def test_no_samples_have_no_statistics():
    statistics = SliceStatistics((2,), (2,))
    for name in ("mean", "std", "tumour_probability"):
        with pytest.raises(ValueError, match="no samples"):
            getattr(statistics, name)
    assert statistics.areas == ()


def test_probability_is_one_sigmoid_averaged_over_samples():
    """Two sigmoids would give 0.5 to 0.73; the sigmoid of the mean logit would give 0.5."""
    got = filled(np.zeros((2, 1)), np.array([[math.log(3)], [-math.log(1 / 9)]]))
    assert got.tumour_probability[0] == pytest.approx((0.75 + 0.9) / 2, rel=1e-14)


def test_probability_of_extreme_logits():
    """filterwarnings turns an overflow into an error."""
    got = mask_probability(np.array([-1e30, -800, 0, 800, 1e30], dtype=np.float32))
    np.testing.assert_array_equal(got, [0, 0, 0.5, 1, 1])


def test_area_counts_voxels_above_the_threshold():
    logits = scipy.special.logit([[0.2, 0.3, 0.6, 0.95], [0.1, 0.1, 0.1, 0.9]])
    images = np.zeros((2, 1))
    assert filled(images, logits).areas == (2, 1)
    assert filled(images, logits, threshold=0.25).areas == (3, 1)
    assert filled(images, logits, threshold=0.92).areas == (1, 0)
    assert filled(images, np.zeros((2, 4))).areas == (0, 0)  # exactly 0.5 is not above it


def test_memory_and_inputs_are_left_alone(rng):
    images, logits = rng.random((3, 2)), rng.random((3, 4))
    before = images.copy(), logits.copy()
    statistics = filled(images, logits)
    mean = statistics.mean
    images[:], logits[:] = np.nan, np.nan
    mean[:] = np.nan
    np.testing.assert_allclose(statistics.mean, before[0].mean(0), rtol=1e-13)
    statistics.add(before[0][0], before[1][0])
    arrays = [v for v in vars(statistics).values() if isinstance(v, np.ndarray)]
    assert sum(a.size for a in arrays) == 2 + 2 + 4


def test_rejects_arrays_of_another_shape():
    statistics = SliceStatistics((3, 4), (4,))
    with pytest.raises(ValueError, match=r"expected an image of shape \(3, 4\)"):
        statistics.add(np.zeros((1, 4)), np.zeros(4))  # would broadcast
    with pytest.raises(ValueError, match=r"mask logits of shape \(4,\), got"):
        statistics.add(np.zeros((3, 4)), np.zeros(1))
    assert statistics.count == 0


@pytest.mark.parametrize("threshold", [0, 1, -0.5, math.nan])
def test_rejects_a_threshold_that_is_no_probability(threshold):
    with pytest.raises(UsageError, match="TD3046: threshold must be inside 0 to 1"):
        SliceStatistics((1,), (1,), threshold=threshold)


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


@pytest.mark.parametrize("level", [0, 1, 90, math.nan])
def test_rejects_a_level_that_is_no_probability(level):
    with pytest.raises(UsageError, match="TD3046: level must be inside 0 to 1"):
        volume_interval([1.0, 2.0], level)
