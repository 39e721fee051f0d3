"""Metrics against scikit-image, closed forms and the traps of the published evaluation."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from skimage.metrics import structural_similarity

from tadiff_train import metrics
from tadiff_train.metrics import (
    absolute_volume_error,
    bootstrap_interval,
    dice,
    mae,
    psnr,
    signed_volume_error,
    ssim,
)

SHAPE = (32, 27)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.fixture
def brain() -> np.ndarray:
    rows, columns = np.indices(SHAPE)
    return ((rows - 15) / 12) ** 2 + ((columns - 14) / 9) ** 2 < 1


def smooth_pair(rng: np.random.Generator, brain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two slices that are alike but not equal, 0 outside the brain."""
    rows, columns = np.indices(SHAPE)
    a = 0.5 + 0.3 * np.sin(rows / 4) * np.cos(columns / 3)
    b = np.clip(a + rng.normal(scale=0.08, size=SHAPE), 0, 1)
    return np.where(brain, a, 0), np.where(brain, b, 0)


def test_noise_scores_8_db_not_28(rng: np.random.Generator):
    """E (u - v)² = 1/6 for uniform u, v; with wrapping 8-bit differences it is 27.9 dB."""
    a, b = rng.random((2, 3, 96, 96))
    assert psnr(a, b) == pytest.approx(10 * math.log10(6), abs=0.1)


def test_psnr_of_a_constant_error_is_its_closed_form(brain: np.ndarray):
    a = np.where(brain, 0.5, 0.0)
    b = np.where(brain, 0.6, 0.0)
    assert psnr(a, b, brain) == pytest.approx(20)
    assert mae(a, b, brain) == pytest.approx(0.1)


def test_the_background_does_not_count(rng: np.random.Generator, brain: np.ndarray):
    a, b = smooth_pair(rng, brain)
    spoiled = np.where(brain, b, rng.random(SHAPE))
    assert psnr(a, spoiled, brain) == psnr(a, b, brain)
    assert mae(a, spoiled, brain) == mae(a, b, brain)
    assert psnr(a, b, brain) < psnr(a, b)


def test_equal_images_have_no_error(rng: np.random.Generator, brain: np.ndarray):
    a, _ = smooth_pair(rng, brain)
    assert psnr(a, a, brain) == math.inf
    assert mae(a, a, brain) == 0
    assert ssim(a, a, brain) == pytest.approx(1, abs=1e-12)


def test_float32_is_compared_in_float64():
    """The square of 2^-80 is 0 in float32, which would make the images equal."""
    a, b = np.full((4, 4), 2.0**-80, np.float32), np.zeros((4, 4), np.float32)
    assert psnr(a, b) == pytest.approx(20 * 80 * math.log10(2))


def test_ssim_is_that_of_scikit_image_inside_the_mask(rng: np.random.Generator, brain: np.ndarray):
    a, b = smooth_pair(rng, brain)
    _, oracle = structural_similarity(
        a,
        b,
        full=True,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
    )
    assert ssim(a, b, brain) == pytest.approx(oracle[brain].mean(), abs=1e-12)
    assert ssim(a, b) == pytest.approx(oracle.mean(), abs=1e-12)
    assert ssim(a, b, brain) < ssim(a, b) - 0.05


def test_ssim_of_one_voxel_is_the_formula_over_its_window(rng: np.random.Generator):
    """Equation 13 of the paper, written out for one position with an explicit window."""
    a, b = rng.random((2, *SHAPE))
    row, column = 12, 15
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    p, q = (x[row - 5 : row + 6, column - 5 : column + 6] for x in (a, b))
    m, n = (weights * p).sum(), (weights * q).sum()
    v, w = (weights * (p - m) ** 2).sum(), (weights * (q - n) ** 2).sum()
    c = (weights * (p - m) * (q - n)).sum()
    expected = (2 * m * n + 1e-4) * (2 * c + 9e-4)
    expected /= (m**2 + n**2 + 1e-4) * (v + w + 9e-4)
    only = np.zeros(SHAPE, bool)
    only[row, column] = True
    assert ssim(a, b, only) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", [psnr, mae, ssim])
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8), np.uint8), "floats"),
        (np.full((8, 8), -0.2), "lie in"),  # an image in [-1, 1]
        (np.full((8, 8), 255.0), "lie in"),
        (np.full((8, 8), np.nan), "lie in"),
        (np.zeros((1, 8, 8)), "shapes differ"),  # would broadcast
    ],
)
def test_other_ranges_and_types_are_refused(metric, image: np.ndarray, message: str):
    good = np.full((8, 8), 0.5)
    with pytest.raises(ValueError, match=message):
        metric(good, image)
    with pytest.raises(ValueError, match=message):
        metric(image, good)


@pytest.mark.parametrize("mask", [np.zeros((8, 8), bool), np.ones((8, 8))])
def test_a_mask_must_be_boolean_and_hold_something(mask: np.ndarray):
    image = np.full((8, 8), 0.5)
    with pytest.raises(ValueError, match="boolean and not empty"):
        psnr(image, image, mask)


def test_ssim_takes_one_slice_only():
    """A Gaussian over the third axis would mix slices, or modalities."""
    with pytest.raises(ValueError, match="one slice"):
        ssim(np.zeros((3, 8, 8)), np.zeros((3, 8, 8)))


def test_dice_of_masks_counted_by_hand():
    a = np.array([True, True, True, False, False])
    b = np.array([False, True, True, True, True])
    assert dice(a, b) == pytest.approx(4 / 7)
    assert dice(a, ~a) == 0
    assert dice(a, np.zeros(5, bool)) == 0
    assert dice(a, a) == 1


def test_dice_of_two_empty_masks_is_undefined():
    empty = np.zeros((4, 4), bool)
    assert dice(empty, empty) is None


def test_dice_takes_no_probabilities():
    """0.5 everywhere, what a second sigmoid makes of nothing, would be tumour everywhere."""
    mask = np.ones((4, 4), bool)
    with pytest.raises(ValueError, match="threshold first"):
        dice(np.full((4, 4), 0.5), mask)
    with pytest.raises(ValueError, match="one shape"):
        dice(np.ones((1, 4, 4), bool), mask)


def test_the_sign_of_a_volume_error_says_too_large():
    assert signed_volume_error(12.5, 10.0) == 2.5
    assert signed_volume_error(7.5, 10.0) == -2.5
    assert absolute_volume_error(7.5, 10.0) == 2.5


def test_the_bootstrap_is_that_of_scipy(rng: np.random.Generator):
    """Two Monte Carlo runs of 10,000; the tolerance is 5 standard errors of a 2.5 % quantile."""
    values = rng.exponential(size=25)
    got = bootstrap_interval(values.tolist(), 0.95, seed=1)
    # Hesterberg 2015: the level at which a normal quantile is Student's, for a mean over n - 1.
    level = 2 * stats.norm.cdf(np.sqrt(25 / 24) * stats.t.ppf(0.975, 24)) - 1
    oracle = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=level,
        n_resamples=10_000,
        method="percentile",
        rng=rng,
    )
    assert got is not None
    assert got.mean == pytest.approx(values.mean())
    assert got.count == 25
    tolerance = 5 * 0.03 * values.std() / 5
    low, high = oracle.confidence_interval
    assert got.low == pytest.approx(low, abs=tolerance)
    assert got.high == pytest.approx(high, abs=tolerance)


def test_the_bootstrap_of_many_values_is_the_normal_interval(rng: np.random.Generator):
    values = rng.normal(3, 2, size=400)
    standard_error = values.std() / 20
    for level in (0.5, 0.95):
        got = bootstrap_interval(values.tolist(), level)
        reach = stats.norm.ppf((1 + level) / 2) * standard_error
        assert got is not None
        assert got.low == pytest.approx(values.mean() - reach, abs=0.1 * standard_error)
        assert got.high == pytest.approx(values.mean() + reach, abs=0.1 * standard_error)


@pytest.mark.parametrize("n", [6, 12])
def test_equal_methods_differ_by_chance_in_one_of_twenty_comparisons(n, rng, monkeypatch):
    """Percentiles alone say so in 14 % for 6 patients and 8 % for 12."""
    monkeypatch.setattr("tadiff_train.metrics.bootstrap.RESAMPLES", 1000)
    found = [bootstrap_interval(rng.normal(size=n).tolist(), seed=i) for i in range(1500)]
    wrong = np.mean([not interval.low <= 0 <= interval.high for interval in found])
    assert 0.03 < wrong < 0.075


def test_the_interval_of_one_or_two_patients_is_their_range():
    for values in ([0.3], [0.2, 0.6]):
        got = bootstrap_interval(values)
        assert (got.low, got.high) == (min(values), max(values))


def test_a_seed_fixes_the_interval():
    values = [0.137, 0.741, 0.402, 0.955, 0.318, 0.523, 0.876]
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_the_bootstrap_of_nothing_is_undefined_and_of_the_undefined_refused():
    assert bootstrap_interval([]) is None
    with pytest.raises(ValueError, match="finite"):
        bootstrap_interval([0.5, math.inf])
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval([0.5], 95)


def test_every_metric_is_explained():
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    functions = [name for name in metrics.__all__ if name.islower()]
    assert len(functions) >= 20
    assert [name for name in functions if f"`{name}`" not in page] == []
