"""The 95 % Hausdorff distance against numbers found by hand, all pairs, and MONAI."""

import itertools
import math

import numpy as np
import pytest
from scipy.ndimage import binary_dilation
from scipy.spatial.distance import cdist

from tadiff_train.metrics import dice, hd95


def box(shape: tuple[int, ...], *ranges: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*r) for r in ranges)] = True
    return mask


def surface_voxels(mask: np.ndarray) -> np.ndarray:
    """Indices of the voxels with a face neighbour outside the mask or the array, one by one."""
    padded = np.pad(mask, 1)
    found = []
    for at in np.argwhere(padded):
        steps = [(axis, step) for axis in range(mask.ndim) for step in (-1, 1)]
        neighbours = [
            tuple(at + step * np.eye(mask.ndim, dtype=int)[axis]) for axis, step in steps
        ]
        if not all(padded[n] for n in neighbours):
            found.append(at - 1)
    return np.array(found)


def from_all_pairs(a: np.ndarray, b: np.ndarray, spacing_mm: tuple[float, ...]) -> float:
    between = cdist(surface_voxels(a) * np.array(spacing_mm), surface_voxels(b) * spacing_mm)
    return max(np.percentile(between.min(axis=axis), 95) for axis in (0, 1))


def test_single_voxels_are_as_far_as_their_centres():
    a, b = box((9, 9), (2, 3), (1, 2)), box((9, 9), (5, 6), (5, 6))
    assert hd95(a, b, [2.0, 0.5]) == pytest.approx(math.hypot(6, 2))
    assert hd95(a, b, [0.5, 2.0]) == pytest.approx(math.hypot(1.5, 8))
    assert hd95(a[None], b[None], [7.0, 2.0, 0.5]) == pytest.approx(math.hypot(6, 2))


@pytest.mark.parametrize(("strays", "expected"), [(0, 0.0), (1, 0.0), (2, 10.0)])
def test_one_stray_voxel_in_21_does_not_count_two_do(strays: int, expected: float):
    """Of 21 sorted distances, 95 % is the 20th: the percentile needs no interpolation."""
    line = box((16, 21), (2, 3), (0, 21))
    b = line.copy()
    b[2, 21 - strays :] = False
    b[12, :strays] = True
    assert b.sum() == 21
    assert hd95(b, b & line, [1.0, 1.0]) == pytest.approx(expected)


def test_the_larger_direction_counts():
    """All of a is on b; of the 40 voxels of b, those beyond a are 1 ... 20 from it."""
    a, b = box((3, 40), (1, 2), (0, 20)), box((3, 40), (1, 2), (0, 40))
    expected = np.percentile([0] * 20 + list(range(1, 21)), 95)
    assert expected == pytest.approx(18.05)
    assert hd95(a, b, [1.0, 1.0]) == pytest.approx(expected)
    assert hd95(b, a, [1.0, 1.0]) == pytest.approx(expected)


def test_only_the_surface_counts():
    full = box((9, 9, 9), (1, 8), (1, 8), (1, 8))
    hollow = full & ~box((9, 9, 9), (2, 7), (2, 7), (2, 7))
    assert hd95(full, hollow, [1.0, 1.0, 1.0]) == 0
    core = box((9, 9, 9), (4, 5), (4, 5), (4, 5))
    assert hd95(full, core, [1.0, 1.0, 1.0]) > 4


@pytest.mark.parametrize("shape", [(14, 11), (6, 9, 8)])
def test_it_is_that_of_all_pairs_of_surface_voxels(shape: tuple[int, ...]):
    rng = np.random.default_rng(2)
    spacing_mm = (3.0, 0.9, 1.7)[-len(shape) :]
    for _ in range(12):
        a, b = (binary_dilation(rng.random(shape) < 0.03, iterations=2) for _ in range(2))
        assert hd95(a, b, spacing_mm) == pytest.approx(from_all_pairs(a, b, spacing_mm))


def test_a_mask_on_the_edge_of_the_array_has_a_surface_there():
    """Cut off by the edge, and whole in a larger array, the box is the same."""
    a, b = box((6, 6), (0, 3), (0, 4)), box((6, 6), (2, 6), (3, 6))
    wide = [np.pad(mask, 4) for mask in (a, b)]
    assert hd95(a, b, [1.0, 2.0]) == hd95(*wide, [1.0, 2.0])
    assert hd95(np.ones((5, 5), bool), box((5, 5), (0, 5), (0, 5)), [1.0, 1.0]) == 0


def test_it_is_that_of_monai():
    """MONAI 1.6.1; medpy 0.5.2 pools both directions, surface-distance 0.1 weighs by area.

    a, b = numpy.zeros((2, 1, 1, 7, 9, 11)); a[..., 0:4, 1:7, 2:9] = b[..., 2:7, 3:9, 1:6] = 1
    monai.metrics.compute_hausdorff_distance(
        torch.tensor(a), torch.tensor(b), True, percentile=95, spacing=[3.0, 1.0, 1.5])
    """
    a = box((7, 9, 11), (0, 4), (1, 7), (2, 9))
    b = box((7, 9, 11), (2, 7), (3, 9), (1, 6))
    assert hd95(a, b, [3.0, 1.0, 1.5]) == pytest.approx(9.143265724182129, abs=1e-6)


def test_masks_without_a_surface_have_no_distance():
    empty, mask = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    for a, b in itertools.product((empty, mask), (empty, mask)):
        assert (hd95(a, b, [1.0, 1.0]) is None) == (a is empty or b is empty)
    assert dice(empty, mask) == 0  # what is missed costs Dice


@pytest.mark.parametrize(
    ("a", "b", "spacing_mm", "message"),
    [
        (np.ones((4, 4)), np.ones((4, 4), bool), [1, 1], "boolean, got float64"),
        (np.ones((1, 4), bool), np.ones((4, 4), bool), [1, 1], r"one shape, got \(1, 4\)"),
        (np.ones(4, bool), np.ones(4, bool), [1], r"\(d, h, w\), got shape \(4,\)"),
        (np.ones((4, 4), bool), np.ones((4, 4), bool), [1, 1, 1], r"2 positive.*\[1, 1, 1\]"),
        (np.ones((4, 4), bool), np.ones((4, 4), bool), [1, 0], r"2 positive.*\[1, 0\]"),
        (np.ones((4, 4), bool), np.ones((4, 4), bool), [1, math.inf], "2 positive.*inf"),
        (np.ones((4, 4), bool), np.ones((4, 4), bool), [math.nan, 1], "2 positive.*nan"),
    ],
)
def test_what_has_no_distance_is_refused(a, b, spacing_mm, message: str):
    with pytest.raises(ValueError, match=message):
        hd95(a, b, spacing_mm)
