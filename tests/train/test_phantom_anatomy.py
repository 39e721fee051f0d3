"""The template against the files it comes from, and what deformation must preserve."""

from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tadiff_train.phantom.anatomy import Anatomy, deform, load_anatomy, smooth_field

pytest.importorskip("nilearn", reason="the template maps are in nilearn")


def template(name: str) -> nib.Nifti1Image:
    folder = Path(find_spec("nilearn").origin).parent / "datasets" / "data"
    return nib.load(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")


@pytest.mark.parametrize("size", [96, 192])
def test_maps_lie_where_the_template_says(size: int):
    """Averages of the template over the world-space cube of each of some voxels."""
    anatomy = load_anatomy(size)
    half = anatomy.spacing_mm / 2
    for name, mine, scale in (("t1", anatomy.t1, 1), ("gm", anatomy.gm, 255)):
        image = template(name)
        data = np.asarray(image.dataobj, np.float64) / scale
        for world in ([-30.0, -40.0, 20.0], [22.0, 30.0, 4.0], [5.0, -60.0, -30.0]):
            voxel = np.rint(np.linalg.solve(anatomy.affine[:3, :3], world - anatomy.affine[:3, 3]))
            centre = anatomy.affine[:3, :3] @ voxel + anatomy.affine[:3, 3]
            low, high = (
                nib.affines.apply_affine(np.linalg.inv(image.affine), centre + side)
                for side in (-half + 0.25, half - 0.25)
            )
            a, b, c = (slice(round(i), round(j) + 1) for i, j in zip(low, high, strict=True))
            assert data[a, b, c].size == anatomy.spacing_mm**3
            got = mine[tuple(voxel.astype(int))]
            assert got == pytest.approx(data[a, b, c].mean(), rel=1e-5)


@pytest.mark.parametrize("size", [96, 192])
def test_the_window_keeps_the_whole_brain(size: int):
    anatomy = load_anatomy(size)
    assert anatomy.t1.shape[:2] == (size, size)
    voxels = np.count_nonzero(np.asarray(template("t1").dataobj))
    assert anatomy.coverage.sum(dtype=np.float64) * anatomy.spacing_mm**3 == voxels


def test_tissue_fractions_fill_the_brain():
    anatomy = load_anatomy(96)
    total = anatomy.gm + anatomy.wm + anatomy.csf
    np.testing.assert_allclose(total, anatomy.coverage, atol=0.02)


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"96 .* or 192 .*, got 128"):
        load_anatomy(128)


def test_deformed_brains_differ_in_size_and_stay_whole():
    """Between a fully shrunken template (0.93 * 0.92 * 0.93) and one of 1.05 * 1.03."""
    template_ml = load_anatomy(96).brain.sum() * 8 / 1000
    volumes = []
    for seed in range(5):
        brain = deform(load_anatomy(96), np.random.default_rng(seed)).brain
        for axis in range(3):
            assert not brain.take([0, -1], axis).any()
        volumes.append(brain.sum() * 8 / 1000)
    assert np.ptp(volumes) > 50
    assert 0.7 * template_ml < min(volumes) < max(volumes) < 1.1 * template_ml


def test_a_brain_too_large_for_the_grid_is_shrunk_not_cut():
    full = np.ones((24, 24, 24), np.float32)
    anatomy = Anatomy(full, full * 0.5, full * 0.5, full, 8.0, np.eye(4))
    coverage = deform(anatomy, np.random.default_rng(1)).coverage
    assert not any((coverage.take([0, -1], axis) > 0.5).any() for axis in range(3))
    assert (coverage > 0.5).sum() > 0.4 * coverage.size


def test_left_and_right_are_swapped_in_about_half_of_the_brains():
    left = np.zeros((24, 24, 24), np.float32)
    left[4:10, 6:18, 6:18] = 1
    anatomy = Anatomy(left, left, left * 0, left, 8.0, np.eye(4))
    sides = [
        deform(anatomy, np.random.default_rng(seed)).t1[:12].sum() > left.sum() / 2
        for seed in range(20)
    ]
    assert 4 <= sum(sides) <= 16


def test_two_grids_sample_one_smooth_field():
    coarse = smooth_field(np.random.default_rng(2), (24, 24, 21), 8.0, 36.0)
    fine = smooth_field(np.random.default_rng(2), (48, 48, 42), 4.0, 36.0)
    averaged = fine.reshape(24, 2, 24, 2, 21, 2).mean((1, 3, 5))
    np.testing.assert_allclose(averaged, coarse, atol=0.02)
    assert coarse.std() > 0.1
