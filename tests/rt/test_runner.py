"""Which samples of which slices make an ensemble, what they leave, and when they are enough."""

import itertools
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats

from tadiff_rt.noise import NoiseSource
from tadiff_rt.runner import EnsembleResult, SampleSize, run_ensemble
from tadiff_rt.volume import MIN_AUTO_SAMPLES
from tests.rt.test_batches import (
    DEPTH,
    SIZE,
    Lean,
    Stub,
    images,
    network,
    peak_channels,
    runner,
    runner_channels,
)

EVERYWHERE = np.ones((SIZE, SIZE), bool)
SLICES = (1, 3, 4)


def same(a: EnsembleResult, b: EnsembleResult) -> bool:
    """Every bit of every array."""
    names = ("mean", "std", "probability", "tumour_voxels", "tumour_overlaps")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


@pytest.fixture(scope="module")
def members():
    """(5, 3, DEPTH, SIZE, SIZE) images and (5, DEPTH, SIZE, SIZE) target logits, drawn alone."""
    rows = [(at, k) for at in SLICES for k in range(5)]
    stack, logits = np.zeros((5, 3, DEPTH, SIZE, SIZE)), np.zeros((5, DEPTH, SIZE, SIZE))
    for (at, k), image, mask in runner(Stub(1)).run(rows):
        stack[k, :, at], logits[k, at] = image, mask[3]
    return stack, logits


def test_statistics_are_those_of_the_members(members):
    """Two-pass numpy; slices that were not asked for stay 0."""
    stack, logits = members
    inside = EVERYWHERE.copy()
    inside[:, :3] = False
    got = run_ensemble(runner(Stub(4), workers=2), inside, SLICES, SampleSize(5))
    probability = np.where(inside, scipy.special.expit(logits), 0)
    masks = probability > 0.5
    masks[:, [at for at in range(DEPTH) if at not in SLICES]] = False
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(got.mean, stack.mean(0), rtol=eps, atol=eps)
    np.testing.assert_allclose(got.std, stack.std(0, ddof=1), rtol=2 * eps, atol=eps)
    expected = probability.mean(0)[list(SLICES)]
    np.testing.assert_allclose(got.probability[list(SLICES)], expected, rtol=eps, atol=1e-30)
    assert not got.probability[[0, 2]].any()
    assert got.tumour_voxels.tolist() == masks.sum((1, 2, 3)).tolist()
    assert got.tumour_overlaps.tolist() == (masks[1:] & masks[:-1]).sum((1, 2, 3)).tolist()
    assert len(set(got.tumour_voxels.tolist())) > 1
    for array in (got.mean, got.std, got.probability):
        assert array.dtype == np.float32


def test_one_sample_has_no_spread():
    got = run_ensemble(runner(Stub()), EVERYWHERE, SLICES, SampleSize(1))
    assert got.std is None
    assert got.tumour_voxels.shape == (1,)
    assert got.tumour_overlaps.shape == (0,)


def test_voxels_beyond_the_patients_grid_hold_no_tumour():
    got = run_ensemble(runner(Stub()), ~EVERYWHERE, SLICES, SampleSize(3))
    assert got.tumour_voxels.tolist() == [0, 0, 0]
    assert not got.probability.any()
    assert got.mean[:, list(SLICES)].any()


@pytest.mark.parametrize(
    ("solver", "samples"), [("dpmpp_2m", 4), ("ddpm", 4), ("unipc_3", 3), ("dpmpp_2s", 2)]
)
def test_workers_and_buckets_do_not_change_an_ensemble(solver, samples):
    expected = run_ensemble(runner(Stub(1), solver), EVERYWHERE, SLICES, SampleSize(samples))
    for workers in (1, 2, 3):
        for bucket in (4, 2):
            request = runner(Stub(bucket), solver, workers=workers)
            got = run_ensemble(request, EVERYWHERE, SLICES, SampleSize(samples))
            assert same(got, expected)


def test_a_slice_does_not_depend_on_the_others_asked_for():
    every = run_ensemble(runner(Stub()), EVERYWHERE, range(DEPTH), SampleSize(3))
    for at in range(DEPTH):
        alone = run_ensemble(runner(Stub()), EVERYWHERE, [at], SampleSize(3))
        assert np.array_equal(alone.mean[:, at], every.mean[:, at])
        assert np.array_equal(alone.std[:, at], every.std[:, at])
        assert np.array_equal(alone.probability[at], every.probability[at])


# How many.


@pytest.mark.parametrize(
    ("size", "drawn", "more"),
    [
        (SampleSize(5), [], 5),
        (SampleSize(5), [7] * 3, 2),
        (SampleSize(5), [7] * 5, 0),
        (SampleSize(64, 0.1), [], MIN_AUTO_SAMPLES),
        (SampleSize(64, 0.1), [100] * 6, 0),
        (SampleSize(64, 0.1), [0] * 6, 0),
        (SampleSize(64, 0.1), [50, 100, 150, 50, 100, 150], 2),
        (SampleSize(64, 1.0), [50, 100, 150, 50, 100, 150], 0),
        (SampleSize(7, 0.1), [50, 100, 150, 50, 100, 150], 1),
        (SampleSize(6, 0.1), [50, 100, 150, 50, 100, 150], 0),
        (SampleSize(4, 0.1), [], 4),
        (SampleSize(4, 0.1), [100] * 4, 0),
        (SampleSize(1, 0.1), [100], 0),
    ],
)
def test_the_next_round(size, drawn, more):
    assert size.next_round(drawn) == more


def known_well(voxels, share: float) -> bool:
    """Student's interval of the mean at 90 %, by scipy."""
    n = len(voxels)
    reach = scipy.stats.t.ppf(0.95, n - 1) * np.std(voxels, ddof=1) / math.sqrt(n)
    return bool(reach <= share * np.mean(voxels))


class Spread(Stub):
    """Tumours whose area varies more from sample to sample."""

    def denoise(self, sources, x, shifts):
        super().denoise(sources, x, shifts)
        return network(sources, x, shifts[0, 0], spread=0.8)


def spread_out(seed: int, size: SampleSize, workers: int = 1) -> EnsembleResult:
    request = runner(Spread(4), noise=NoiseSource(seed), steps=2, workers=workers)
    return run_ensemble(request, EVERYWHERE, SLICES, size)


def stop_by_hand(voxels, share: float, most: int) -> int:
    """How many samples the rule asks for, looking after 6, 8, 10, ..."""
    return next((n for n in range(6, most, 2) if known_well(voxels[:n], share)), most)


def test_samples_are_added_until_the_volume_is_known():
    """Exactly as many as scipy asks for, and the bits are those of a fixed run of that number."""
    most, stops = 31, []
    for seed, share in itertools.product(range(4), (0.03, 0.12, 0.25)):
        voxels = spread_out(seed, SampleSize(most)).tumour_voxels.tolist()
        n = stop_by_hand(voxels, share, most)
        auto = spread_out(seed, SampleSize(most, share))
        assert len(auto.tumour_voxels) == n
        assert same(auto, spread_out(seed, SampleSize(n)))
        assert same(auto, spread_out(seed, SampleSize(most, share), workers=3))
        stops.append(n)
    # At once, at the cap, which an odd round reaches, and at four or more places between.
    assert {6, most} < set(stops)
    assert len(set(stops)) >= 6


def test_a_cap_below_the_least_number_is_kept():
    got = run_ensemble(runner(Stub()), EVERYWHERE, SLICES, SampleSize(3, 0.5))
    assert len(got.tumour_voxels) == 3


def test_equal_tumours_are_enough_at_once():
    """Lean masks are those of the noise; outside the grid all are 0."""
    got = run_ensemble(runner(Lean()), ~EVERYWHERE, SLICES, SampleSize(64, 0.1))
    assert got.tumour_voxels.tolist() == [0] * MIN_AUTO_SAMPLES


# Memory.


def ensemble_channels(request, slices: int, open_slices: int, rows: int, size: int) -> float:
    """What the docstrings allow: a float64 image is two of float32."""
    result = 7 * len(request.sources)
    python = rows * 130 / (4 * size * size)
    return runner_channels(request) + result + 24 * open_slices + 36 + python + 1


def by_chance(batch: int, workers: int) -> float:
    """What may or may not be held at the worst moment of the first worker.

    A sample being added, finished batches, and all that the other workers hold.
    """
    return 24 + 36 + 14 * batch + (workers - 1) * (54 * batch + 18)


@pytest.mark.parametrize(("batch", "workers"), [(1, 1), (4, 1), (2, 2)])
def test_memory_does_not_grow_with_samples(batch, workers):
    """60 samples more of 4 slices, kept, would be 60 · 4 · 3 channels of images alone."""
    size = 48
    inside = np.ones((size, size), bool)

    def peak(samples: int) -> float:
        request = runner(Lean(batch), sources=images(4, size), workers=workers, steps=2)
        found = peak_channels(
            lambda: run_ensemble(request, inside, range(4), SampleSize(samples)), size
        )
        assert found < ensemble_channels(request, 4, 1, 4 * samples, size)
        return found

    peak(4)  # numpy fills caches of its own in the first run
    few, many = peak(4), peak(64)
    assert many - few < by_chance(batch, workers) < 60 * 4 * 3 / 3


def test_memory_of_an_open_number_of_samples():
    """Every slice is open, whatever the number of samples."""
    size, depth = 48, 12
    inside = np.ones((size, size), bool)

    def peak(samples: int) -> float:
        request = runner(Lean(4), sources=images(depth, size), steps=2)
        ask = SampleSize(samples, 0.001)
        result = []
        found = peak_channels(
            lambda: result.append(run_ensemble(request, inside, range(depth), ask)), size
        )
        assert len(result[0].tumour_voxels) == samples
        assert found < ensemble_channels(request, depth, depth, depth * samples, size)
        assert found > 24 * depth
        return found

    peak(4)
    assert peak(40) - peak(6) < by_chance(4, 1) < 34 * depth * 3 / 3
