"""Streaming statistics against two-pass numpy, exact fractions and exact enumeration."""

import io
import itertools
import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from tadiff_rt import ensemble, volume
from tadiff_rt.ensemble import SliceStatistics, mask_probability
from tadiff_rt.errors import UsageError

OUTCOMES = {0: Fraction(1, 2), 1: Fraction(1, 3), 4: Fraction(1, 6)}
"""A lopsided distribution of one voxel, value -> probability; float32 holds the values exactly."""


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20250701)


def filled(images, logits, **options) -> SliceStatistics:
    statistics = SliceStatistics(images.shape[1:], logits.shape[1:], **options)
    for image, mask_logits in zip(images, logits, strict=True):
        statistics.add(image, mask_logits)
    return statistics


def every_sequence(n: int) -> tuple[np.ndarray, np.ndarray]:
    """((n, 3^n) all ensembles of n OUTCOMES, one a voxel, (3^n,) their probabilities)."""
    members = np.array(list(itertools.product(OUTCOMES, repeat=n)), dtype=np.float32).T
    weights = [math.prod(OUTCOMES[int(v)] for v in column) for column in members.T]
    return members, np.array([float(w) for w in weights])


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_matches_two_pass_numpy(n, rng):
    images = rng.standard_normal((n, 3, 4, 5)).astype(np.float32)
    logits = 4 * rng.standard_normal((n, 4, 5)).astype(np.float32)
    truth = rng.standard_normal((3, 4, 5))
    got = filled(images, logits, truth=truth)
    probability = scipy.special.expit(logits.astype(np.float64))
    masks = probability > 0.5
    pairs = np.abs(np.diff(images.astype(np.float64), axis=0)).mean(0)
    crps = np.abs(images - truth).mean(0) - pairs / 2
    np.testing.assert_allclose(got.mean, images.mean(0, dtype=np.float64), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(got.std, images.std(0, ddof=1, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(got.tumour_probability, probability.mean(0), rtol=1e-12)
    np.testing.assert_allclose(got.pair_difference, pairs, rtol=1e-12)
    np.testing.assert_allclose(got.crps, crps, rtol=1e-11, atol=1e-14)
    assert got.areas == tuple(masks.sum((1, 2)))
    assert got.overlaps == tuple((masks[1:] & masks[:-1]).sum((1, 2)))
    assert got.count == n


def test_every_bit_is_that_of_knuths_recurrence(rng):
    """Truth and pairs are bystanders: what a forecast's bits are made of does not see them."""
    images, logits = rng.random((6, 50)).astype(np.float32), rng.standard_normal((6, 50))
    mean, squares = np.zeros(50), np.zeros(50)
    for k, x in enumerate(images.astype(np.float64), start=1):
        before = mean.copy()
        mean += (x - before) / k
        squares += (x - before) * (x - mean)
    for got in (filled(images, logits), filled(images, logits, truth=images[3])):
        np.testing.assert_array_equal(got.mean, mean)
        np.testing.assert_array_equal(got.std, np.sqrt(squares / 5))
        np.testing.assert_array_equal(
            got.tumour_probability, sum(mask_probability(row) for row in logits) / 6
        )


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=12).flatmap(
        lambda values: st.tuples(st.just(values), st.permutations(values))
    )
)
def test_order_of_samples_changes_mean_and_spread_by_rounding_only(orders):
    """Each of n updates rounds a few times, relative to the largest value (or its square)."""
    n, largest = len(orders[0]), max(abs(v) for v in orders[0])
    one, other = (filled(np.array(v).reshape(n, 1), np.zeros((n, 1))) for v in orders)
    rounding = 8 * n * np.finfo(np.float64).eps
    np.testing.assert_allclose(one.mean, other.mean, rtol=0, atol=rounding * largest)
    np.testing.assert_allclose(one.std**2, other.std**2, rtol=0, atol=rounding * largest**2)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_pair_difference_is_unbiased(n):
    """Exact expectation over all 3^n ensembles. Pairs of a sample with itself would bias it."""
    members, weights = every_sequence(n)
    got = filled(members, np.zeros((n, 1))).pair_difference
    expected = sum(p * q * abs(a - b) for a, p in OUTCOMES.items() for b, q in OUTCOMES.items())
    assert weights @ got == pytest.approx(float(expected), rel=1e-13)


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("truth", [-1.0, 0.5, 1.0, 5.0])
def test_crps_is_unbiased(n, truth):
    """Exact expectation over all 3^n ensembles against the integral of (F(x) − 1{x >= y})²."""
    members, weights = every_sequence(n)
    got = filled(members, np.zeros((n, 1)), truth=np.full(3**n, truth)).crps
    knots = sorted({*map(Fraction, OUTCOMES), Fraction(truth)})
    below = [sum(p for v, p in OUTCOMES.items() if v <= left) for left in knots]
    expected = sum(
        (right - left) * (f - (left >= truth)) ** 2
        for (left, right), f in zip(itertools.pairwise(knots), below, strict=False)
    )
    assert weights @ got == pytest.approx(float(expected), rel=1e-13)


def test_variance_of_consecutive_pairs_is_the_one_documented(rng):
    """Closed forms for N(0, 1) with v = Var |X − X'| and c = Cov(|X − X'|, |X − X''|):
    (4 v + 6 c)/16 consecutive and (v + 6 c)/10 over all pairs of 5, ratio 1.425. 200,000 voxels:
    the bound is about 7 standard errors (false alarm below 1e-9)."""
    images = rng.standard_normal((5, 200_000)).astype(np.float32)
    got = filled(images, np.zeros((5, 1))).pair_difference
    everyone = np.mean([np.abs(a - b) for a, b in itertools.combinations(images, 2)], axis=0)
    assert got.var() / everyone.var(dtype=np.float64) == pytest.approx(1.425, abs=0.02)


def test_pairs_are_subtracted_in_float64():
    """1 − 3e-8 is no float32. Only pairs take a float64 sample at float32 precision."""
    values = [1.0, 3e-8, 0.7, 1 / 3]
    exact = [Fraction(float(np.float32(v))) for v in values]
    expected = sum(abs(a - b) for a, b in itertools.pairwise(exact)) / 3
    got = filled(np.array(values).reshape(4, 1), np.zeros((4, 1)), truth=[0.2])
    assert got.pair_difference[0] == pytest.approx(float(expected), rel=1e-15)
    error = sum(abs(Fraction(v) - Fraction(0.2)) for v in values) / 4
    assert got.crps[0] == pytest.approx(float(error - expected / 2), rel=1e-14)


def test_overlaps_are_of_neighbours_and_of_the_threshold():
    logits = scipy.special.logit(
        [[0.9, 0.9, 0.6, 0.1], [0.1, 0.9, 0.9, 0.6], [0.1] * 4, [0.9] * 4, [0.6, 0.9, 0.9, 0.9]]
    )
    images = np.zeros((5, 1))
    assert filled(images, logits).overlaps == (2, 0, 0, 4)
    assert filled(images, logits, threshold=0.7).overlaps == (1, 0, 0, 3)
    assert all(type(v) is int for v in filled(images, logits).overlaps)


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
    np.testing.assert_array_equal(got.pair_difference, np.zeros((3, 2)))
    np.testing.assert_allclose(got.mean, images[0], rtol=1e-15)


def test_one_sample_has_a_mean_but_no_spread():
    got = filled(np.full((1, 2), 0.3), np.full((1, 2), 2.0), truth=[0.1, 0.2])
    np.testing.assert_array_equal(got.mean, [0.3, 0.3])
    assert got.std is None
    assert got.pair_difference is None
    assert got.crps is None
    assert got.areas == (2,)
    assert got.overlaps == ()


def test_no_samples_have_no_statistics():
    statistics = SliceStatistics((2,), (2,), truth=[0.1, 0.2])
    for name in ("mean", "std", "tumour_probability", "pair_difference", "crps"):
        with pytest.raises(ValueError, match="no samples"):
            getattr(statistics, name)
    assert statistics.areas == ()
    assert statistics.overlaps == ()


def test_crps_needs_the_truth():
    with pytest.raises(ValueError, match="give it as truth"):
        _ = filled(np.zeros((2, 1)), np.zeros((2, 1))).crps
    with pytest.raises(ValueError, match=r"expected truth of shape \(3, 4\), got \(4,\)"):
        SliceStatistics((3, 4), (4,), truth=np.zeros(4))  # would broadcast


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


def test_inputs_are_copied_and_left_alone(rng):
    """One buffer a batch, written anew for every sample, as a backend may do."""
    images = rng.random((3, 2)).astype(np.float32)
    logits, truth = rng.standard_normal((3, 4)), rng.random(2)
    expected = filled(images, logits, truth=truth)
    reused, buffer, mask_buffer = truth.copy(), np.zeros(2, np.float32), np.zeros(4)
    statistics = SliceStatistics((2,), (4,), truth=reused)
    reused[:] = np.nan
    for image, mask_logits in zip(images, logits, strict=True):
        buffer[:], mask_buffer[:] = image, mask_logits
        statistics.add(buffer, mask_buffer)
        np.testing.assert_array_equal(buffer, image)
    buffer[:] = np.nan
    for name in ("mean", "std", "tumour_probability", "pair_difference", "crps"):
        getattr(statistics, name)[:] = np.nan
        np.testing.assert_array_equal(getattr(statistics, name), getattr(expected, name))
    assert statistics.overlaps == expected.overlaps


def test_memory_does_not_grow_with_samples(rng):
    """60 samples more cost two integers each; one image more would be 49,152 bytes."""
    image, logits = rng.random((3, 64, 64)).astype(np.float32), rng.standard_normal((64, 64))

    def bytes_of(n: int) -> tuple[int, int]:
        """(held after n samples, most at any time)."""
        tracemalloc.start()
        statistics = SliceStatistics(image.shape, logits.shape, truth=image)
        for _ in range(n):
            statistics.add(image, logits)
        held = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert statistics.count == n
        return held

    bytes_of(4)  # numpy fills caches of its own in the first run
    few, many = bytes_of(4), bytes_of(64)
    assert many[0] - few[0] < 60 * 128
    assert many[1] - few[1] < 60 * 128


NAMES = ("mean", "std", "tumour_probability", "pair_difference", "areas", "overlaps", "count")


@pytest.mark.parametrize("split", [1, 2, 4, 5])
def test_restored_statistics_go_on_bit_for_bit(split, rng):
    """Through an archive, as a journal keeps them; the first go on undisturbed."""
    images = rng.random((5, 3, 4, 5)).astype(np.float32)
    logits = rng.standard_normal((5, 4, 5)).astype(np.float32)
    expected = filled(images, logits, threshold=0.4)
    first = filled(images[:split], logits[:split], threshold=0.4)
    buffer = io.BytesIO()
    np.savez(buffer, **first.state())
    buffer.seek(0)
    with np.load(buffer) as kept:
        second = SliceStatistics.restored(dict(kept))
    assert second.threshold == 0.4
    direct = SliceStatistics.restored(first.state())
    for got in (second, direct, first):
        for image, mask_logits in zip(images[split:], logits[split:], strict=True):
            got.add(image, mask_logits)
        for name in NAMES:
            np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
        assert all(type(area) is int for area in got.areas + got.overlaps)


def test_the_state_of_statistics_with_a_truth_is_not_kept():
    with pytest.raises(ValueError, match="truth"):
        filled(np.zeros((2, 3)), np.zeros((2, 3)), truth=np.zeros(3)).state()


def broken_states() -> dict[str, dict]:
    state = filled(np.zeros((3, 2, 4)), np.zeros((3, 4))).state()
    without = {name: array for name, array in state.items() if name != "_squares"}
    return {
        "empty": {},
        "one missing": without,
        "one more": {**state, "_more": np.zeros(3)},
        "shape": {**state, "_pair_sum": np.zeros((2, 5))},
        "shape that would broadcast": {**state, "_squares": np.zeros((1, 4))},
        "dtype": {**state, "_mean": np.zeros((2, 4), np.float32)},
        "mask dtype": {**state, "_last_mask": np.zeros(4, np.uint8)},
        "image of another shape": {**state, "_mean": np.zeros((3, 4))},
        "overlaps": {**state, "_overlaps": np.zeros(3, np.int64)},
        "no samples": {**state, "_areas": np.zeros(0, np.int64)},
        "threshold": {**state, "threshold": np.array(1.0)},
    }


@pytest.mark.parametrize("name", broken_states())
def test_what_is_no_state_is_refused(name):
    with pytest.raises(ValueError, match="not the state of statistics"):
        SliceStatistics.restored(broken_states()[name])


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


def test_volume_functions_are_found_here_too():
    """Scripts of the first release import them from this module."""
    assert ensemble.volume_interval is volume.volume_interval
    assert ensemble.student_quantile is volume.student_quantile
