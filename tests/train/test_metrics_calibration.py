"""Calibration of probabilities: simulators whose error is known, definitions, scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from tadiff_train.metrics import (
    Reliability,
    brier,
    brier_from_reliability,
    merge,
    reliability,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(8)


def forecasts(rng: np.random.Generator, n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, mostly small, and truths that are more often tumour than they say."""
    p = rng.beta(0.3, 1.2, size=n)
    return p, rng.random(n) < np.sqrt(p)


def assert_same(a: Reliability, b: Reliability) -> None:
    np.testing.assert_array_equal(a.count, b.count)
    for name in ("edges", "mean_probability", "frequency", "variance", "covariance"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-12, atol=1e-15)


def test_counted_by_hand():
    p = np.array([0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
    y = np.array([False, True, False, True, True, True])
    r = reliability(p, y, bins=4)
    np.testing.assert_array_equal(r.edges, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(r.count, [2, 1, 1, 2])
    np.testing.assert_allclose(r.mean_probability, [0.05, 0.3, 0.5, 0.95])
    np.testing.assert_allclose(r.frequency, [0.5, 0, 1, 1])
    np.testing.assert_allclose(r.variance, [0.0025, 0, 0, 0.0025], atol=1e-17)
    np.testing.assert_allclose(r.covariance, [0.025, 0, 0, 0], atol=1e-17)
    assert r.ece == pytest.approx((2 * 0.45 + 0.3 + 0.5 + 2 * 0.05) / 6)


def test_a_calibrated_simulator_has_no_calibration_error(rng: np.random.Generator):
    """Of 10 bins of 40,000 voxels, the frequency has a standard error of at most 0.0025."""
    p = rng.random(400_000)
    r = reliability(p, rng.random(p.size) < p)
    assert r.ece < 0.003
    assert brier_from_reliability(r).reliability < 1e-5


def test_an_overconfident_simulator_has_the_error_of_its_formula(rng: np.random.Generator):
    """Tumour with probability (1/2 + q) / 2 where q is said: E |q - that| = E |q - 1/2| / 2 = 1/8.

    No bin of an even number holds both signs of the error, so that none cancel.
    """
    q = rng.random(400_000)
    r = reliability(q, rng.random(q.size) < (0.5 + q) / 2)
    assert r.ece == pytest.approx(1 / 8, abs=0.003)
    assert reliability(q, rng.random(q.size) < (0.5 + q) / 2, bins=1).ece < 0.003  # cancels


def test_the_curve_is_that_of_scikit_learn(rng: np.random.Generator):
    p, y = forecasts(rng)
    r = reliability(p, y, bins=7)
    frequency, mean = calibration_curve(y, p, n_bins=7)
    np.testing.assert_allclose(r.frequency, frequency, rtol=1e-12)
    np.testing.assert_allclose(r.mean_probability, mean, rtol=1e-12)


def test_the_error_is_that_of_netcal():
    """netcal 1.4.0: netcal.metrics.ECE(bins=10).measure(p, y); torchmetrics 1.9.0 agrees."""
    p = [0.03, 0.08, 0.12, 0.18, 0.31, 0.37, 0.44, 0.52, 0.58, 0.66, 0.71, 0.77, 0.83, 0.94, 0.99]
    y = [0, 0, 0, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 1]
    assert reliability(np.array(p), np.array(y, bool)).ece == pytest.approx(
        0.2286666666666667, abs=1e-12
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("samples", [5, 10])
def test_shares_of_samples_fall_on_the_edge_they_equal(samples: int, dtype: type):
    """3/5 is below the 0.6000000000000001 of linspace; 0.7 in float32 is below 0.7."""
    p = (np.arange(samples + 1) / samples).astype(dtype)
    r = reliability(p, np.ones(samples + 1, bool), bins=10)
    expected = np.zeros(10, int)
    expected[:: 10 // samples] = 1
    expected[-1] += 1
    np.testing.assert_array_equal(r.count, expected)


def test_bins_without_voxels_have_no_mean_and_no_weight():
    r = reliability(np.array([0.05, 0.95]), np.array([False, True]), bins=10)
    assert np.isnan(r.mean_probability[1:9]).all()
    assert np.isnan(r.frequency[1:9]).all()
    assert r.ece == pytest.approx(0.05)


def test_only_the_mask_counts(rng: np.random.Generator):
    p, y = (x.reshape(40, 100) for x in forecasts(rng))
    inside = rng.random(p.shape) < 0.3
    assert_same(reliability(p, y, inside), reliability(p[inside], y[inside]))
    assert_same(reliability(np.where(inside, p, np.nan), y, inside), reliability(p, y, inside))


def test_merged_patients_are_their_voxels_together(rng: np.random.Generator):
    p, y = forecasts(rng)
    p[:500] *= 0.2  # leaves bins of the first part empty
    parts = [slice(0, 500), slice(500, 530), slice(530, None)]
    merged = merge([reliability(p[part], y[part], bins=8) for part in parts])
    whole = reliability(p, y, bins=8)
    assert_same(merged, whole)
    assert merged.ece == pytest.approx(whole.ece, rel=1e-12)
    assert brier_from_reliability(merged).score == pytest.approx(brier_score_loss(y, p))


def test_merging_needs_parts_of_the_same_bins(rng: np.random.Generator):
    p, y = forecasts(rng, 50)
    with pytest.raises(ValueError, match="the same bins, got 10 and 8"):
        merge([reliability(p, y), reliability(p, y, bins=8)])
    with pytest.raises(ValueError, match="no part"):
        merge([])


@pytest.mark.parametrize("bins", [1, 2, 10, 37])
def test_the_parts_of_the_brier_score_add_up(rng: np.random.Generator, bins: int):
    p, y = forecasts(rng)
    b = brier(p, y, bins=bins)
    assert b.score == pytest.approx(np.mean((p - y) ** 2), abs=1e-14)
    assert b.score == pytest.approx(brier_score_loss(y, p), abs=1e-14)
    total = b.reliability - b.resolution + b.uncertainty + b.within_bin
    assert total == pytest.approx(b.score, abs=1e-12)


def test_each_part_of_the_brier_score_is_its_definition(rng: np.random.Generator):
    """Murphy 1973 and Stephenson et al. 2008, bin by bin and voxel by voxel."""
    p, y = forecasts(rng, 300)
    base = sum(y) / 300
    reliability_, resolution, variance, covariance = 0.0, 0.0, 0.0, 0.0
    for k in range(4):
        inside = [(a, b) for a, b in zip(p, y, strict=True) if k / 4 <= a < (k + 1) / 4]
        mean = sum(a for a, _ in inside) / len(inside)
        frequency = sum(b for _, b in inside) / len(inside)
        reliability_ += len(inside) * (mean - frequency) ** 2 / 300
        resolution += len(inside) * (frequency - base) ** 2 / 300
        variance += sum((a - mean) ** 2 for a, _ in inside) / 300
        covariance += sum((a - mean) * (b - frequency) for a, b in inside) / 300
    b = brier(p, y, bins=4)
    assert b.reliability == pytest.approx(reliability_, abs=1e-14)
    assert b.resolution == pytest.approx(resolution, abs=1e-14)
    assert b.uncertainty == pytest.approx(base * (1 - base), abs=1e-14)
    assert b.within_bin == pytest.approx(variance - 2 * covariance, abs=1e-14)
    assert abs(b.within_bin) > 1e-3


def test_equal_probabilities_in_a_bin_leave_murphys_three_parts(rng: np.random.Generator):
    p = rng.integers(0, 6, size=900) / 5
    b = brier(p, rng.random(900) < p**2, bins=10)
    assert b.within_bin == pytest.approx(0, abs=1e-15)
    assert b.score == pytest.approx(b.reliability - b.resolution + b.uncertainty, abs=1e-14)


def test_brier_scores_of_known_forecasts(rng: np.random.Generator):
    y = np.arange(100) < 30
    perfect = brier(y.astype(float), y)
    assert (perfect.score, perfect.reliability) == (0, 0)
    assert perfect.resolution == pytest.approx(perfect.uncertainty) == pytest.approx(0.21)
    climate = brier(np.full(100, 0.3), y)
    assert climate.score == pytest.approx(0.21)
    assert climate.resolution == pytest.approx(0, abs=1e-15)
    coin = brier(np.full(100, 0.5), y)
    assert coin.score == pytest.approx(0.25)
    assert coin.reliability == pytest.approx(0.04)
    wrong = brier((~y).astype(float), y)
    assert wrong.score == pytest.approx(1)


def test_float32_probabilities_are_averaged_in_float64():
    """In float32, a sum of ones stops at 2^24; here it would lose the hundredths."""
    p = np.full(3_000_000, 0.01, np.float32)
    r = reliability(p, np.zeros(p.size, bool))
    assert r.mean_probability[0] == pytest.approx(float(np.float32(0.01)), rel=1e-9)


GOOD = np.full((3, 4), 0.5)
TRUE = np.ones((3, 4), bool)


@pytest.mark.parametrize("metric", [reliability, brier])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((3, 4), int), TRUE), "floats in .0, 1., got int64"),
        ((TRUE, TRUE), "floats in .0, 1., got bool"),
        ((GOOD * 3, TRUE), "lie in .0, 1., got 1.5 to 1.5"),  # logits
        ((-GOOD, TRUE), "lie in .0, 1., got -0.5"),
        ((GOOD * math.nan, TRUE), "lie in .0, 1., got nan"),
        ((GOOD, GOOD), "truth must be boolean, got float64"),
        ((GOOD, TRUE[0]), r"shapes differ: \(3, 4\), \(4,\)"),
        ((GOOD, TRUE, TRUE[0]), r"the mask's \(4,\)"),
        ((GOOD, TRUE, ~TRUE), "boolean and not empty"),
        ((GOOD, TRUE, GOOD), "boolean and not empty, got float64"),
        ((GOOD, TRUE, None, 0), "bins must be at least 1, got 0"),
    ],
)
def test_what_is_no_probability_is_refused(metric, arguments, message: str):
    with pytest.raises(ValueError, match=message):
        metric(*arguments)
