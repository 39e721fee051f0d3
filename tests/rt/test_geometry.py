"""Reorientation and grid comparison; nibabel is the oracle for all 48 orientations.

The ids G01 to G16 number the faults of the project's corpus.
"""

from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel import orientations

from tadiff_rt.case import Volume
from tadiff_rt.errors import GeometryError
from tadiff_rt.geometry import (
    canonical_view,
    check_same_grid,
    check_spacing,
    corner_shift_mm,
    from_canonical,
    grid_findings,
    to_canonical,
)

ORIENTATIONS = [
    "".join(pair[side] for pair, side in zip(pairs, sides, strict=True))
    for pairs in permutations(("LR", "PA", "IS"))
    for sides in product((0, 1), repeat=3)
]
SHAPE = (7, 6, 5)
AFFINE = np.array([[-1.1, 0, 0, 30], [0, 0.9, 0, -20], [0, 0, 1.2, -10], [0, 0, 0, 1.0]])


def volume(
    affine: np.ndarray = AFFINE, data: np.ndarray | None = None, label: str = "b"
) -> Volume:
    data = np.zeros(SHAPE, np.float32) if data is None else data
    return Volume(data, affine, label, "")


def turned(degrees: float, affine: np.ndarray = AFFINE) -> np.ndarray:
    """`affine` turned about all three world axes."""
    a, b = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    about_z = np.array([[a, -b, 0, 0], [b, a, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    about_x = np.array([[1, 0, 0, 0], [0, a, -b, 0], [0, b, a, 0], [0, 0, 0, 1]])
    return about_z @ about_x @ affine


def stored_as(axcodes: str, data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same voxels in the same places, with the axes of the array in another order: nibabel."""
    image = nibabel.Nifti1Image(data, affine)
    transform = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt(axcodes)
    )
    stored = image.as_reoriented(transform)
    return np.asarray(stored.dataobj), stored.affine


def shifted(mm: float, axis: int = 0) -> np.ndarray:
    affine = AFFINE.copy()
    affine[axis, 3] += mm
    return affine


@pytest.mark.parametrize("axcodes", ORIENTATIONS)
@pytest.mark.parametrize("degrees", [0, 20])
def test_reorients_as_nibabel_and_back_bitwise(axcodes: str, degrees: float):
    rng = np.random.default_rng(1)
    data, affine = stored_as(axcodes, rng.normal(size=SHAPE), turned(degrees))
    assert "".join(orientations.aff2axcodes(affine)) == axcodes

    canonical = to_canonical(data, affine)
    expected, expected_affine = stored_as("PLI", data, affine)
    np.testing.assert_array_equal(canonical.data, expected)
    np.testing.assert_allclose(canonical.affine, expected_affine, rtol=0, atol=1e-12)
    assert canonical.data.shape == canonical.grid.shape
    assert canonical.data.flags.c_contiguous

    back = from_canonical(canonical.data, canonical.grid)
    assert back.dtype == data.dtype
    np.testing.assert_array_equal(back, data)
    assert not np.shares_memory(canonical.data, data)


def test_canonical_axes_are_those_of_the_published_preprocessing():
    """Index 0 grows to posterior, 1 to left, 2 to inferior, whatever the file does."""
    affine = np.diag([1, 1, 1, 1.0])  # stored as R, A, S
    data = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    canonical = to_canonical(data, affine)
    assert canonical.data.shape == (5, 4, 6)
    assert canonical.data[0, 0, 0] == data[3, 4, 5]  # most anterior, right and superior
    assert canonical.data[1, 0, 0] == data[3, 3, 5]
    assert canonical.data[0, 1, 0] == data[2, 4, 5]
    assert canonical.data[0, 0, 1] == data[3, 4, 4]


def test_voxels_keep_their_place_in_the_world():
    data = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    canonical = to_canonical(data, turned(35))
    for index in [(0, 0, 0), (2, 3, 4), (5, 6, 4)]:
        at = np.argwhere(data == canonical.data[index])[0]
        np.testing.assert_allclose(
            canonical.affine @ [*index, 1], turned(35) @ [*at, 1], atol=1e-12
        )


def test_view_aliases_and_from_canonical_checks_the_shape():
    data = np.zeros(SHAPE)
    canonical = to_canonical(data, AFFINE)
    assert np.shares_memory(canonical_view(data, canonical.grid), data)
    with pytest.raises(ValueError, match=r"shape \(7, 6, 5\), the canonical grid has \(6, 7, 5\)"):
        from_canonical(data, canonical.grid)


@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    mirror=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_round_trip_is_exact_for_any_rotation(
    angles: tuple[float, float, float], shape: tuple[int, int, int], mirror: bool
):
    affine = np.diag([-1.0 if mirror else 1.0, 1, 1, 1])
    for degrees in angles:
        affine = turned(degrees, affine)
    data = np.arange(np.prod(shape)).reshape(shape)
    canonical = to_canonical(data, affine)
    np.testing.assert_array_equal(from_canonical(canonical.data, canonical.grid), data)


def test_corner_shift_is_the_largest_over_all_voxels():
    rng = np.random.default_rng(2)
    other = AFFINE.copy()
    other[:3] += rng.normal(scale=0.05, size=(3, 4))
    voxels = np.argwhere(np.ones(SHAPE))
    homogeneous = np.c_[voxels, np.ones(len(voxels))]
    distances = np.linalg.norm((homogeneous @ (AFFINE - other).T)[:, :3], axis=1)
    assert corner_shift_mm(AFFINE, other, SHAPE) == pytest.approx(distances.max(), rel=1e-12)


def test_one_grid_in_all_orientations_is_one_grid():  # G03, G05
    data = np.zeros(SHAPE, np.float32)
    for degrees in (0, 20):  # G13
        affine = turned(degrees)
        volumes = [volume(affine)]
        for axcodes in ORIENTATIONS:
            stored, stored_affine = stored_as(axcodes, data, affine)
            volumes.append(volume(stored_affine, stored))
        check_same_grid(volumes)


@pytest.mark.parametrize("axcodes", ORIENTATIONS)
def test_a_shift_is_found_in_every_orientation(axcodes: str):  # G01
    stored, affine = stored_as(axcodes, np.zeros(SHAPE, np.float32), shifted(1.1))
    with pytest.raises(GeometryError, match=r"up to 1\.1 mm apart, at most 0\.09 mm") as caught:
        check_same_grid([volume(label="a"), volume(affine, stored)])
    assert (caught.value.code, caught.value.where) == ("TD3201", "b")
    assert "ANTs" in caught.value.fix  # G16
    assert "elastix" in caught.value.fix


@pytest.mark.parametrize(("mm", "accepted"), [(0.089, True), (0.091, False)])
def test_a_tenth_of_the_smallest_voxel_edge_is_allowed(mm: float, accepted: bool):
    assert (grid_findings([volume(), volume(shifted(mm, 2))]) == []) == accepted


def test_a_rotation_is_found_at_the_corners():
    """Half a degree leaves the first voxel where it is and moves the far corner."""
    other = turned(0.5, np.diag([1.0, 1, 1, 1]))
    big = np.zeros((60, 60, 60), np.float32)
    with pytest.raises(GeometryError, match="another voxel grid"):
        check_same_grid([volume(np.eye(4), big), volume(other, big)])


def test_another_shape_is_another_grid():  # G02
    with pytest.raises(GeometryError, match="6 x 7 x 4 voxels after reorientation, a has 6 x 7"):
        check_same_grid([volume(label="a"), volume(data=np.zeros((7, 6, 4), np.float32))])


def test_a_header_flipped_without_its_data_is_named():  # G04
    flipped = AFFINE.copy()
    flipped[:, 0] *= -1
    shape = (180, 6, 5)
    volumes = [volume(AFFINE, np.zeros(shape)), volume(flipped, np.zeros(shape))]
    # The grids meet in one corner voxel: their far ends are two extents apart, less reorientation.
    with pytest.raises(GeometryError, match=r"differ by 196\.9 mm and have opposite") as caught:
        check_same_grid(volumes)
    assert caught.value.code == "TD3202"


def test_a_large_shift_of_the_same_handedness_is_a_shift():
    assert [f.code for f in grid_findings([volume(), volume(shifted(180))])] == ["TD3201"]


def test_mirrored_storage_with_a_small_shift_is_a_shift():
    stored, affine = stored_as("LPS", np.zeros(SHAPE, np.float32), shifted(0.5))
    assert np.linalg.det(affine) * np.linalg.det(AFFINE) < 0
    assert [f.code for f in grid_findings([volume(), volume(affine, stored)])] == ["TD3201"]


def test_every_volume_off_the_grid_is_a_finding():
    volumes = [volume(), volume(shifted(3), label="x"), volume(), volume(shifted(9), label="y")]
    assert [finding.where for finding in grid_findings(volumes)] == ["x", "y"]
    assert grid_findings([]) == []


@pytest.mark.parametrize(
    ("edges", "code"),
    [
        ((1, 1, 1), None),
        ((0.91, 1.09, 1), None),  # within a tenth
        ((0.89, 1, 1), "TD3207"),
        ((1, 1, 1.11), "TD3207"),
        ((0.5, 0.5, 6), "TD3207"),  # G14
        ((30, 30, 30), "TD3207"),  # G15
        ((0.01, 0.01, 0.01), "TD3207"),
    ],
)
def test_spacing_must_be_that_of_the_training(edges: tuple[float, ...], code: str | None):
    affine = turned(20, np.diag([*edges, 1.0]))
    if code is None:
        check_spacing(affine, 1.0, 0.1)
        return
    with pytest.raises(GeometryError, match=r"accepts 0\.9 to 1\.1 mm") as caught:
        check_spacing(affine, 1.0, 0.1, "t1.nii")
    assert (caught.value.code, caught.value.where) == (code, "t1.nii")
    assert "to 1 mm voxels" in caught.value.fix
