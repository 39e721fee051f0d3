"""What an ensemble says of its own error: known answers through the whole evaluation."""

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from tadiff_train.evaluation import Evaluation, PatientResult, results_table
from tadiff_train.evaluation.plans import share
from tadiff_train.evaluation.pooled import coverage, mean_curve, pooled, reachable_level
from tadiff_train.metrics import reliability
from tests.train.toy_patients import (
    VOXEL_ML,
    Stub,
    Truth,
    brain_of_sources,
    oracle,
    run,
    write_subject,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bids")
    write_subject(folder)
    return folder


@pytest.fixture(scope="module")
def truth(root: Path) -> Truth:
    return oracle(root, 4)


@pytest.fixture(scope="module")
def brain(root: Path) -> np.ndarray:
    return brain_of_sources(root)


def test_volumes_are_those_of_the_samples(root: Path, truth: Truth):
    more = [0, 10, 40, -20]
    result = run(Stub(lambda _: truth, more), root, samples=4)
    expected = (truth[1].sum() + np.array(more)) * VOXEL_ML
    assert result.calibration.samples_ml == pytest.approx(expected.tolist())


def test_crps_is_its_definition(root: Path, truth: Truth):
    """E|X - y| - E|X - X'| / 2 over all pairs of different samples."""
    more = np.array([5.0, 10, 40, -20])
    result = run(Stub(lambda _: truth, more), root, samples=4)
    pairs = [abs(a - b) for a, b in itertools.combinations(more, 2)]
    expected = np.abs(more).mean() - np.mean(pairs) / 2
    assert result.model.crps_ml == pytest.approx(expected * VOXEL_ML)


def test_one_sample_has_no_spread_and_its_error_as_crps(root: Path, truth: Truth):
    result = run(Stub(lambda _: truth, [30]), root, samples=1)
    assert result.calibration.intervals == ()
    assert result.calibration.images == {}
    assert result.model.crps_ml == pytest.approx(30 * VOXEL_ML)
    found = pooled(Evaluation((result,)))
    assert found.ranks is found.flatness is None
    assert coverage([result], "model")[0.9].of == 0
    assert "no interval, no rank" in results_table(Evaluation((result,)))


def test_intervals_are_where_one_more_draw_would_lie(root: Path, truth: Truth):
    """Prediction intervals of Student's t, by scipy."""
    more = [5, 10, 40, 60]
    result = run(Stub(lambda _: truth, more), root, samples=4)
    volumes = (truth[1].sum() + np.array(more)) * VOXEL_ML
    scale = volumes.std(ddof=1) * math.sqrt(1 + 1 / 4)
    assert [interval.level for interval in result.calibration.intervals] == [0.5, 0.8, 0.9]
    for interval in result.calibration.intervals:
        low, high = scipy.stats.t.interval(interval.level, 3, volumes.mean(), scale)
        assert (interval.low_ml, interval.high_ml) == pytest.approx((low, high), rel=1e-9)
    # The truth is 1.13 standard deviations below the mean; t is 0.76, 1.64 and 2.35.
    assert [interval.covered for interval in result.calibration.intervals] == [False, True, True]


def test_tumour_probability_is_judged_in_the_brain_of_the_evaluated_slices(
    root: Path, truth: Truth, brain: np.ndarray
):
    images, tumour = truth
    rng = np.random.default_rng(3)
    p = np.where(tumour, 0.7, 0.1) + 0.2 * rng.random(tumour.shape)
    p[~brain] = 0.9
    result = run(Stub(lambda _: (images, p)), root)
    at = list(result.slices)
    expected = reliability(p[at].astype(np.float32), tumour[at], brain[at])
    curve = result.calibration.tumour
    assert curve.count.sum() == brain[at].sum()
    np.testing.assert_array_equal(curve.count, expected.count)
    np.testing.assert_allclose(curve.frequency, expected.frequency)
    assert result.model.ece == pytest.approx(expected.ece)


def test_entropy_points_at_the_wrong_voxels(root: Path, truth: Truth, brain: np.ndarray):
    """Sure where right, unsure where wrong: 0. Sure of the errors and unsure of the rest: over 1,
    which an entropy taken the wrong way round would swap."""
    images, tumour = truth
    wrong = np.random.default_rng(0).random(tumour.shape) < 0.2
    unsure = np.where(wrong, 0.5, tumour)
    assert run(Stub(lambda _: (images, unsure)), root).calibration.tumour_ause == pytest.approx(0)
    sure = np.where(wrong, ~tumour, np.where(tumour, 0.6, 0.4))
    assert run(Stub(lambda _: (images, sure)), root).calibration.tumour_ause > 1


def away(images: np.ndarray, by: np.ndarray | float) -> np.ndarray:
    """Images off by so much, on the side where they stay in [0, 1]."""
    return np.where(images > 0.5, images - by, images + by)


@pytest.mark.parametrize("samples", [2, 5])
def test_spread_is_compared_with_the_error_of_the_mean(root: Path, truth: Truth, samples: int):
    """Spread 0.06 of k samples and error 0.04: the mean of k samples is off by its own scatter."""
    images, tumour = truth
    stub = Stub(lambda _: (away(images, 0.04), tumour), std=0.06)
    result = run(stub, root, samples=samples)
    for found in result.calibration.images.values():
        skill = found.spread_skill
        assert skill.error == pytest.approx(0.04, rel=1e-4)
        assert skill.spread == pytest.approx(0.06 * math.sqrt((samples + 1) / samples), rel=1e-4)
        assert skill.bin_count.sum() == brain_of_sources(root)[list(result.slices)].sum()


def test_spread_of_each_modality_is_its_own(root: Path, truth: Truth):
    images, tumour = truth
    std = np.array([0.01, 0.02, 0.04])[:, None, None, None]
    stub = Stub(lambda _: (away(images, 0.5 * std), tumour), std=std)
    found = run(stub, root).calibration.images
    for value, image in zip([0.01, 0.02, 0.04], found.values(), strict=True):
        assert image.spread_skill.spread == pytest.approx(value * math.sqrt(1.5), rel=1e-4)
        assert image.spread_skill.error == pytest.approx(value / 2, rel=1e-3)


@pytest.mark.parametrize(("power", "good"), [(1, True), (-1, False)])
def test_spread_that_goes_with_the_error_sorts_it(
    root: Path, truth: Truth, power: int, good: bool
):
    images, tumour = truth
    error = 0.01 + 0.3 * np.random.default_rng(0).random(images.shape)
    stub = Stub(lambda _: (away(images, error), tumour), std=0.1 * error**power)
    for image in run(stub, root).calibration.images.values():
        assert image.ause == pytest.approx(0, abs=1e-3) if good else image.ause > 1.5


def named(result: PatientResult, *names: str) -> list[PatientResult]:
    return [dataclasses.replace(result, name=name) for name in names]


def test_pooling_counts_voxels_and_ranks_patients(root: Path, truth: Truth):
    images, tumour = truth
    p = np.where(tumour, 0.75, 0.15)
    above = run(Stub(lambda _: (images, p), [5, 10, 15]), root, samples=3)
    below = run(Stub(lambda _: truth, [-5, -10, 15]), root, samples=3)
    found = pooled(Evaluation((*named(above, "a", "b"), *named(below, "c"))))
    assert found.ranks.tolist() == [2, 0, 1, 0]
    parts = [r.calibration.tumour for r in (above, above, below)]
    assert found.tumour.count.sum() == sum(part.count.sum() for part in parts)
    # All three have the same voxels, so that pooled means are means of means.
    assert found.tumour.ece == pytest.approx((above.model.ece * 2 + below.model.ece) / 3)
    briers = [above.model.brier, above.model.brier, below.model.brier]
    assert found.brier.score == pytest.approx(np.mean(briers))
    b = found.brier
    assert b.score == pytest.approx(b.reliability - b.resolution + b.uncertainty + b.within_bin)


def test_ties_of_ranks_do_not_depend_on_the_order_of_patients(root: Path, truth: Truth):
    two, one = (run(Stub(lambda _: truth, more), root) for more in ([0, 0], [0, 5]))
    names = [f"sub-{i}" for i in range(40)]
    results = [*named(two, *names[:20]), *named(one, *names[20:])]
    forward, backward = (pooled(Evaluation(tuple(found))) for found in (results, results[::-1]))
    assert forward.ranks.tolist() == backward.ranks.tolist()
    assert min(forward.ranks) > 0


def test_coverage_counts_patients_at_each_level(root: Path, truth: Truth):
    inside = run(Stub(lambda _: truth, [-5, 5]), root)
    # 1.5 standard deviations of the prediction; t of 1 degree is 1, 3.1 and 6.3.
    between = run(Stub(lambda _: truth, [8, 18]), root)
    found = coverage([inside, between, between], "model")
    assert [(part.count, part.of) for part in found.values()] == [(1, 3), (3, 3), (3, 3)]


def test_wilson_is_its_formula():
    """Wilson 1927: the roots of |p - k/n| = z sqrt(p (1 - p) / n)."""
    z = scipy.stats.norm.ppf(0.975)
    for k, n in ((0, 9), (7, 9), (30, 30)):
        found = share(k, n)
        p = k / n
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        assert found.low == pytest.approx((middle - half) / (1 + z * z / n), abs=1e-12)
        assert found.high == pytest.approx((middle + half) / (1 + z * z / n), abs=1e-12)
        assert found.share == p
    assert share(0, 0).share is None


@pytest.mark.parametrize("samples", [2, 4, 6])
def test_the_level_that_samples_reach_is_counted_by_permutations(samples: int):
    """Of all orders of k samples and a further draw, those in which it is not an extreme."""
    orders = list(itertools.permutations(range(samples + 1)))
    inside = sum(0 < order[-1] < samples for order in orders)
    assert reachable_level(samples) == pytest.approx(inside / len(orders))


def test_the_mean_curve_is_the_root_of_the_mean_square(root: Path, truth: Truth):
    images, tumour = truth
    found = [
        run(Stub(lambda _, by=by: (away(images, by), tumour), std=by), root).calibration
        for by in (0.03, 0.04)
    ]
    curve = mean_curve(found, "t1", lambda skill: skill.bin_error)
    np.testing.assert_allclose(curve, 0.05 / math.sqrt(2), rtol=1e-3)
