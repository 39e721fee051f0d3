"""Images on other grids: interpolation and averaging against scipy, nibabel and closed forms.

The ids G04 to G19 number the faults of the project's corpus.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel import orientations
from nibabel.processing import resample_from_to
from scipy import ndimage

from tadiff_rt.assembly import assemble
from tadiff_rt.case import MODALITIES, Session, Volume
from tadiff_rt.errors import InputDataError
from tadiff_rt.geometry import Grid, canonical_grid, grid_of
from tadiff_rt.interpolation import Map, back_to, box_weights, linear_weights, slices_between
from tadiff_rt.preprocess import DataContract, Prepared, prepare
from tadiff_rt.resample import network_grid
from tadiff_rt.runner import EnsembleResult

ORIENTATIONS = [
    "".join(pair[side] for pair, side in zip(pairs, sides, strict=True))
    for pairs in permutations(("LR", "PA", "IS"))
    for sides in product((0, 1), repeat=3)
]
PLI = ("P", "L", "I")
CONTRACT = DataContract(size=40, spacing_mm=2.0)
HEAD_MM = np.array([28.0, 34, 25])
"""Semi-axes of the brain, around the origin of the world."""


def affine_of(
    edges: tuple[float, ...], shape: tuple[int, ...], centre: tuple[float, ...] = (0, 0, 0)
) -> np.ndarray:
    """LAS, the middle of the grid at `centre`."""
    affine = np.diag([-edges[0], *edges[1:], 1.0])
    affine[:3, 3] = np.array(centre) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def turned(affine: np.ndarray, degrees: float, axis: int = 2) -> np.ndarray:
    a, b = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(4)
    i, j = (k for k in range(3) if k != axis)
    turn[[i, i, j, j], [i, j, i, j]] = a, -b, b, a
    return turn @ affine


def world(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """(*shape, 3) millimetres of every voxel."""
    index = np.moveaxis(np.indices(shape), 0, -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def tissue(mm: np.ndarray, m: int = 0) -> np.ndarray:
    """A smooth scan of a brain, a function of the place: what every grid samples."""
    x, y, z = np.moveaxis(mm, -1, 0)
    waves = np.sin(x / 9 + m) + np.cos(y / 11) + np.sin(z / 10 - m)
    return np.where(((mm / HEAD_MM) ** 2).sum(-1) < 1, 600 + 100 * waves, 0).astype(np.float32)


def ball(mm: np.ndarray, radius: float = 11, centre: tuple[float, ...] = (8, -5, 3)) -> np.ndarray:
    return (((mm - centre) ** 2).sum(-1) < radius**2).astype(np.float32)


Where = Callable[[np.ndarray], np.ndarray]


def volume(shape: tuple[int, ...], affine: np.ndarray, what: Where, label: str) -> Volume:
    data = what(world(shape, affine)).astype(np.float32)
    return Volume(data, affine, label, label)


FINE = ((72, 84, 66), (1.0, 1.0, 1.0))
THICK = ((72, 84, 13), (1.0, 1.0, 6.0))
COARSE = ((32, 36, 28), (2.5, 2.4, 2.6))


def session(k: int, grid: tuple, affine: np.ndarray | None = None) -> Session:
    shape, edges = grid
    affine = affine_of(edges, shape) if affine is None else affine
    images = {
        modality: volume(shape, affine, lambda mm, m=m: tissue(mm, m), f"s{k}/{modality}")
        for m, modality in enumerate(MODALITIES)
    }
    return Session(f"s{k}", 30 * k, "TMZ", images, volume(shape, affine, ball, f"s{k}/mask"))


def case(*grids: tuple) -> list[Session]:
    return [session(k, grid) for k, grid in enumerate(grids)]


def canonical(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """As nibabel turns it."""
    image = nibabel.Nifti1Image(data, affine)
    turn = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt(PLI)
    )
    return np.ascontiguousarray(image.as_reoriented(turn).dataobj)


def resampled(data: np.ndarray, affine: np.ndarray, target: Grid) -> np.ndarray:
    return Map(canonical_grid(data.shape, affine), target)(canonical(data, affine))


# Weights of one axis -----------------------------------------------------------------------------

SIZES = st.tuples(
    st.integers(1, 30), st.floats(0.2, 4), st.integers(1, 30), st.floats(0.2, 4), st.floats(-9, 9)
)


@given(SIZES)
@settings(max_examples=300, deadline=None)
def test_linear_weights_are_those_of_scipy(sizes: tuple[int, float, int, float, float]):
    num, edge, num_in, edge_in, shift = sizes
    values = np.random.default_rng(num).random(num_in)
    at = ((np.arange(num) - (num - 1) / 2) * edge - shift) / edge_in + (num_in - 1) / 2
    expected = ndimage.map_coordinates(values, [at], order=1, mode="nearest")
    inside = (at > -0.5) & (at < num_in - 0.5)
    near_the_end = (np.abs(at + 0.5) < 1e-5) | (np.abs(at - num_in + 0.5) < 1e-5)
    got = linear_weights(*sizes) @ values
    clear = ~near_the_end
    np.testing.assert_allclose(got[clear], np.where(inside, expected, 0)[clear], atol=2e-6)


@given(SIZES)
@settings(max_examples=300, deadline=None)
def test_box_weights_are_the_integral_of_steps(sizes: tuple[int, float, int, float, float]):
    """The antiderivative of a step function, interpolated by numpy at the ends of every voxel."""
    num, edge, num_in, edge_in, shift = sizes
    values = np.random.default_rng(num).random(num_in)
    ends_in = shift + (np.arange(num_in + 1) - num_in / 2) * edge_in
    integral = np.concatenate([[0], np.cumsum(values * edge_in)])
    ends = (np.arange(num + 1) - num / 2) * edge
    expected = np.diff(np.interp(ends, ends_in, integral)) / edge
    np.testing.assert_allclose(box_weights(*sizes) @ values, expected, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8, 1, 1.5, 2, 3, 5.5])
def test_constants_and_ramps_come_back_as_they_are(ratio: float):
    """Well inside, but for rounding; averages of steps follow a ramp up to their own ripple."""
    num_in, shift = 40, 0.37
    num = int(num_in / ratio) - 5
    make = box_weights if ratio > 1 else linear_weights
    weights = make(num, ratio, num_in, 1.0, shift)
    place_in = np.arange(num_in) - (num_in - 1) / 2 + shift
    place = (np.arange(num) - (num - 1) / 2) * ratio
    np.testing.assert_allclose(weights @ np.ones(num_in), 1, rtol=0, atol=1e-12)
    ripple = 0 if ratio <= 1 or ratio % 1 == 0 else 1 / 8 / ratio
    np.testing.assert_allclose(weights @ place_in, place, rtol=0, atol=1e-5 + ripple)


@pytest.mark.parametrize("edge", [1.1, 2.0, 7.0])
def test_averaging_keeps_the_total(edge: float):
    values = np.random.default_rng(3).random(30)
    weights = box_weights(40, edge, 30, 1.0, 0.21)
    assert (weights @ values).sum() * edge == pytest.approx(values.sum(), rel=1e-6)


@pytest.mark.parametrize("make", [linear_weights, box_weights])
@pytest.mark.parametrize("edge", [0.1, 0.3, 1.1, 2.0])
def test_a_grid_upon_itself_changes_nothing(make: Callable, edge: float):
    np.testing.assert_allclose(make(25, edge, 25, edge, 0.0), np.eye(25), rtol=0, atol=1e-6)
    if make is linear_weights:
        np.testing.assert_array_equal(make(25, edge, 25, edge, 0.0), np.eye(25))


# Volumes -----------------------------------------------------------------------------------------


def test_finer_grids_are_interpolated_as_nibabel_does():
    shape, edges = (20, 22, 9), (1.7, 1.9, 5.0)
    data = np.random.default_rng(0).random(shape).astype(np.float32)
    affine = affine_of(edges, shape, (3, -4, 5))
    target = canonical_grid((28, 30, 35), affine_of((1.0, 1.1, 0.9), (28, 30, 35), (3.3, -4.1, 5)))
    got = resampled(data, affine, target)
    image = nibabel.Nifti1Image(data.astype(np.float64), affine)
    expected = resample_from_to(image, (target.shape, target.affine), order=1, mode="nearest")
    np.testing.assert_allclose(got, expected.get_fdata(), rtol=0, atol=1e-5)


def test_thirds_are_averaged_as_reshape_does():
    data = np.random.default_rng(1).random((24, 21, 15)).astype(np.float32)
    affine = affine_of((1, 1, 1), data.shape)
    target = canonical_grid((8, 7, 5), affine_of((3, 3, 3), (8, 7, 5)))
    expected = canonical(data, affine).reshape(7, 3, 8, 3, 5, 3).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(resampled(data, affine, target), expected, rtol=0, atol=1e-6)


def test_outside_the_field_of_view_is_0():
    data = np.ones((10, 10, 10), np.float32)
    small = affine_of((1, 1, 1), data.shape)
    big = canonical_grid((20, 20, 20), affine_of((1, 1, 1), (20, 20, 20)))
    got = resampled(data, small, big)
    assert got.sum() == 1000
    np.testing.assert_array_equal(got[5:15, 5:15, 5:15], 1)


def test_map_tells_what_share_lies_outside():
    mm = world((20, 20, 20), affine_of((1, 1, 1), (20, 20, 20)))
    held = (np.abs(mm) < 6).all(-1).astype(np.float32)  # 12 mm cube
    own = canonical_grid((20, 20, 20), affine_of((1, 1, 1), (20, 20, 20)))
    cut = canonical_grid((4, 10, 30), affine_of((2.0, 2.0, 1.0), (4, 10, 30), (0, 0, 12)))
    # Along x 8 of 12 mm remain; along z the grid starts at -3: 9 of 12.
    image = np.ascontiguousarray(held)
    assert Map(own, cut).share_outside(image) == pytest.approx(1 - 8 / 12 * 9 / 12, abs=1e-5)
    assert Map(own, own).share_outside(image) == 0
    assert Map(own, cut).share_outside(np.zeros_like(image)) == 0


@pytest.mark.parametrize("grid", [FINE, COARSE, THICK], ids=["fine", "coarse", "thick"])
def test_a_ball_keeps_its_volume(grid: tuple):
    """4/3 pi r³, in millilitres of the network's voxels, and of the patient's."""
    made = case(grid, grid, grid)
    prepared = prepare(made, CONTRACT, resample=True)
    exact = 4 / 3 * np.pi * 11**3 / 1000
    assert prepared.voxel_ml == pytest.approx(0.008, rel=1e-6)
    for mask in prepared.masks:
        assert mask.sum() * prepared.voxel_ml == pytest.approx(exact, rel=0.06)
    back = prepared.to_patient_grid(prepared.masks[2])
    assert back.dtype == bool
    edges = grid[1]
    assert back.sum() * np.prod(edges) / 1000 == pytest.approx(exact, rel=0.08)


# prepare -----------------------------------------------------------------------------------------


def test_what_fits_is_not_touched():
    exact = ((36, 42, 33), (2.0, 2.0, 2.0))
    made = case(exact, exact, exact)
    plain, asked = prepare(made, CONTRACT), prepare(made, CONTRACT, resample=True)
    np.testing.assert_array_equal(plain.sources, asked.sources)
    assert asked.patient is None
    assert asked.notes == plain.notes == ()
    assert plain.voxel_ml == 0.008


def test_sources_show_the_scan_on_the_grid_of_the_network():
    """The scan is a function of the place, so the network's voxels can be computed directly."""
    made = case(COARSE, THICK, FINE)
    prepared = prepare(made, CONTRACT, resample=True)
    grid = prepared.grid
    assert grid.shape == (42, 36, 33)
    mm = world(grid.shape, grid.affine)
    brain = tissue(mm) > 0
    deep = ndimage.binary_erosion(brain, iterations=3)
    views = [prepared.window.paste(prepared.sources[:, c], grid.shape, 0) for c in range(9)]
    for c, view in enumerate(views):
        m = c % 3
        high = prepared.intensity_scale[m] if c > 5 else tissue(mm, m)[deep].max()
        error = np.abs(view * high - tissue(mm, m))[deep]
        # Voxels of 6 mm blur waves of 60 mm by 2 %.
        assert error.max() < 0.05 * high, c
        different = (view > 0) != brain
        assert different.mean() < 0.03, c


def test_the_grid_covers_the_last_t1_and_shares_its_centre_and_axes():
    shape, edges = (40, 50, 9), (1.3, 0.9, 5.5)
    affine = turned(affine_of(edges, shape, (4, 5, 6)), 12)
    t1 = Volume(np.zeros(shape, np.float32), affine, "t1", "")
    grid = network_grid(t1, PLI, 2.0)
    assert grid.shape == (23, 26, 25)  # 45, 52 and 49.5 mm
    own = grid_of(t1, PLI)
    for g in (grid, own):
        middle = g.affine @ [*((np.array(g.shape) - 1) / 2), 1]
        np.testing.assert_allclose(middle[:3], turned(np.eye(4), 12)[:3, :3] @ [4, 5, 6])
    cosines = grid.affine[:3, :3].T @ own.affine[:3, :3]
    np.testing.assert_allclose(cosines, np.diag([2 * 0.9, 2 * 1.3, 2 * 5.5]), atol=1e-12)


def test_the_background_is_0_again_and_the_brain_does_not_grow():
    made = case(THICK, THICK, THICK)
    prepared = prepare(made, CONTRACT, resample=True)
    voxels = (prepared.sources[:, 0] > 0).sum() * prepared.voxel_ml
    held = (made[0].images["t1"].data > 0).sum() * 0.006
    assert voxels == pytest.approx(held, rel=0.02)


def test_undershoot_does_not_darken_the_brain():
    made = case(FINE, FINE, FINE)
    clean = prepare(made, CONTRACT, resample=True)
    data = made[0].images["t1"].data
    near = ndimage.binary_dilation(data > 0) & (data == 0)
    data[near] = -0.2 * data.max()
    np.testing.assert_array_equal(prepare(made, CONTRACT, resample=True).sources, clean.sources)


def test_notes_say_what_was_resampled_from_what_to_what():
    exact = ((36, 42, 33), (2.0, 2.0, 2.0))
    made = case(THICK, exact, exact)
    notes = prepare(made, CONTRACT, resample=True).notes
    names = [*MODALITIES, "mask"]
    assert notes == tuple(
        f"s0/{name}: resampled from voxels of 1 x 1 x 6 mm to 2 x 2 x 2 mm" for name in names
    )


def test_a_session_repeated_as_padding_is_resampled_once():
    first, _, last = case(THICK, THICK, COARSE)
    prepared = prepare([first, first, last], CONTRACT, resample=True)
    np.testing.assert_array_equal(prepared.sources[:, :3], prepared.sources[:, 3:6])
    assert len(prepared.notes) == 8


def test_masks_may_be_missing():
    made = case(THICK, THICK, THICK)
    made[0] = replace(made[0], mask=None)
    assert prepare(made, CONTRACT, resample=True).masks is None


def stored_as(original: Volume, axcodes: str) -> Volume:
    image = nibabel.Nifti1Image(original.data, original.affine)
    turn = orientations.ornt_transform(
        orientations.io_orientation(original.affine), orientations.axcodes2ornt(axcodes)
    )
    stored = image.as_reoriented(turn)
    return replace(original, data=np.ascontiguousarray(stored.dataobj), affine=stored.affine)


SMALL = (((42, 44, 11), (1.7, 1.9, 5.0)), ((30, 34, 27), (2.5, 2.5, 2.5)))


@pytest.fixture(scope="module")
def plain() -> tuple[list[Session], Prepared]:
    """An oblique case on two grids."""
    made = [
        session(k, grid, turned(affine_of(grid[1], grid[0], (0.3 * k, 1.7, -0.4)), 17))
        for k, grid in enumerate((SMALL[0], SMALL[1], SMALL[0]))
    ]
    return made, prepare(made, CONTRACT, resample=True)


def moved(made: list[Session], change: Callable[[Volume], Volume]) -> list[Session]:
    return [
        replace(s, images={m: change(v) for m, v in s.images.items()}, mask=change(s.mask))
        for s in made
    ]


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PIR", "SLA"])
def test_affines_in_float32_change_no_bit_either(plain, axcodes: str):  # G05
    """As NIfTI files hold them: the origin of a flipped axis is rounded anew."""

    def rounded(v: Volume) -> Volume:
        return replace(v, affine=v.affine.astype(np.float32).astype(np.float64))

    expected = prepare(moved(plain[0], rounded), CONTRACT, resample=True)
    stored = moved(plain[0], lambda v: rounded(stored_as(v, axcodes)))
    prepared = prepare(stored, CONTRACT, resample=True)
    np.testing.assert_array_equal(prepared.sources, expected.sources)
    np.testing.assert_array_equal(prepared.masks, expected.masks)


@pytest.mark.parametrize("axcodes", ORIENTATIONS)
def test_storage_orientation_changes_no_bit(plain, axcodes: str):  # G05
    made, expected = plain
    stored = moved(made, lambda v: stored_as(v, axcodes))
    prepared = prepare(stored, CONTRACT, resample=True)
    np.testing.assert_array_equal(prepared.sources, expected.sources)
    np.testing.assert_array_equal(prepared.masks, expected.masks)
    np.testing.assert_array_equal(prepared.intensity_scale, expected.intensity_scale)
    stack = np.random.default_rng(5).random(prepared.sources[:, 0].shape).astype(np.float32)
    back = prepared.to_patient_grid(stack, slices=range(4, 20))
    assert back.shape == stored[2].images["t1"].data.shape
    there = expected.to_patient_grid(stack, slices=range(4, 20))
    again = stored_as(replace(made[2].images["t1"], data=there), axcodes)
    np.testing.assert_array_equal(back, again.data)


# The way back ------------------------------------------------------------------------------------


def test_results_return_linearly_as_nibabel_does(plain):
    made, prepared = plain
    stack = np.random.default_rng(2).random(prepared.sources[:, 0].shape).astype(np.float32)
    whole = prepared.window.paste(stack, prepared.grid.shape, 0)
    image = nibabel.Nifti1Image(whole.astype(np.float64), prepared.grid.affine)
    t1 = made[2].images["t1"]
    expected = resample_from_to(image, (t1.data.shape, t1.affine), order=1, mode="nearest")
    back = prepared.to_patient_grid(stack)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, expected.get_fdata(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numbers_keep_their_type_and_constants_their_value(plain, dtype: type):
    _, prepared = plain
    stack = np.full(prepared.sources[:, 0].shape, 0.7, dtype)
    back = prepared.to_patient_grid(stack, fill=0.7)
    assert back.dtype == dtype
    tolerance = {np.float16: 0, np.float32: 1e-6, np.float64: 1e-12}[dtype]
    np.testing.assert_allclose(back, dtype(0.7), rtol=0, atol=tolerance)


def test_labels_are_not_interpolated(plain):
    _, prepared = plain
    with pytest.raises(ValueError, match="int8 have nothing in between"):
        prepared.to_patient_grid(np.zeros(prepared.sources[:, 0].shape, np.int8))


def test_slices_between_forecast_ones_and_others_are_filled(plain):
    """Half of a forecast mixed with half of nothing is none."""
    made, prepared = plain
    depth = len(prepared.sources)
    chosen = range(6, 14)
    stack = np.zeros(prepared.sources[:, 0].shape, np.float32)
    stack[6:14] = 1
    back = prepared.to_patient_grid(stack, fill=-1, slices=chosen)
    x, y, _ = back.shape
    assert set(back[x // 2, y // 2]) == {-1, 1}
    t1 = grid_of(made[2].images["t1"])
    centre = (depth - 1) / 2
    at = (np.arange(t1.shape[2]) - (t1.shape[2] - 1) / 2) * 5 / 2 + centre
    assert 13.5 in at
    expected = (at >= 6) & (at <= 13)
    np.testing.assert_array_equal(slices_between(chosen, prepared.grid, t1), expected)


def test_a_round_trip_keeps_a_smooth_image():
    made = case(COARSE, COARSE, COARSE)
    prepared = prepare(made, CONTRACT, resample=True)
    back = prepared.to_patient_grid(prepared.sources[:, 6]) * prepared.intensity_scale[0]
    data = made[2].images["t1"].data
    deep = ndimage.binary_erosion(data > 0, iterations=3)
    assert np.abs(back - data)[deep].max() < 0.03 * data.max()


def test_back_to_takes_booleans_at_one_half():
    source = canonical_grid((4, 4, 4), np.eye(4))
    patient = canonical_grid((8, 4, 4), affine_of((0.5, 1, 1), (8, 4, 4), (1.5, 1.5, 1.5)))
    array = np.zeros((4, 4, 4), bool)
    array[:, :2] = True  # two of four voxels along world x, which the file stores flipped
    back = back_to(array, source, patient)
    assert back.dtype == bool
    assert back.mean() == 0.5


def test_a_forecast_lies_on_the_last_t1_and_its_volume_is_that_of_the_network(plain):
    made, prepared = plain
    result = EnsembleResult.empty(*prepared.sources[:, 0].shape[:2], 2)
    result.mean[:, 6:14] = np.moveaxis(prepared.sources[6:14, 6:9], 1, 0)
    result.std[:, 6:14] = 0.1
    result.probability[6:14] = prepared.masks[2, 6:14]
    result.tumour_voxels[:] = 250, 350
    forecast = assemble(result, prepared, made[2], tuple(range(6, 14)), {})
    t1 = made[2].images["t1"]
    assert forecast.mean.shape == (3, *t1.data.shape)
    np.testing.assert_array_equal(forecast.affine, t1.affine)
    assert forecast.volume_ml.samples_ml == pytest.approx((2.0, 2.8))
    deep = ndimage.binary_erosion(t1.data > 0, iterations=3)
    held = slices_between(range(6, 14), prepared.grid, grid_of(t1))
    covered = np.zeros(t1.data.shape, bool)
    covered[:, :, np.flatnonzero(held[::-1])] = True  # the file runs from inferior to superior
    assert (forecast.std[0][covered & deep] > 0).all()
    for statistic in (*forecast.mean, *forecast.std, forecast.tumour_probability):
        assert not statistic[~covered].any()
    error = np.abs(forecast.mean[0] - t1.data)[covered & deep]
    assert error.max() < 0.05 * t1.data.max()


# Refusals ----------------------------------------------------------------------------------------


def codes(made: list[Session], **options: bool) -> list[tuple[str, str]]:
    with pytest.raises(InputDataError) as caught:
        prepare(made, CONTRACT, **options)
    return [(finding.code, finding.where) for finding in caught.value.findings]


def fixes(made: list[Session], **options: bool) -> set[str]:
    with pytest.raises(InputDataError) as caught:
        prepare(made, CONTRACT, **options)
    return {finding.fix for finding in caught.value.findings}


def test_without_asking_nothing_is_resampled_and_the_option_is_named():  # G14, G16
    made = case(COARSE, THICK, FINE)
    assert {code for code, _ in codes(made)} == {"TD3201", "TD3207"}
    (fix,) = fixes(made)
    assert "`tadiff-rt predict --resample`" in fix
    assert "to 2 mm voxels" in fix


@pytest.mark.parametrize("degrees", [0.2, 5, 30])
@pytest.mark.parametrize("resample", [False, True])
def test_turned_images_need_registration(degrees: float, resample: bool):  # G16
    shape, edges = COARSE
    made = [*case(COARSE, COARSE)]
    made.append(session(2, COARSE, turned(affine_of(edges, shape), degrees)))
    found = codes(made, resample=resample)
    # The last session says where the axes lie.
    others = {f"s{k}/{name}" for k in (0, 1) for name in (*MODALITIES, "mask")}
    if resample:
        assert {where for _, where in found} == others
        assert {code for code, _ in found} == {"TD3201"}
    said = fixes(made, resample=resample)
    assert not any("--resample" in fix for fix in said)
    if "TD3201" in {code for code, _ in found}:
        assert any("ANTs" in fix and "elastix" in fix for fix in said)


def test_axes_turned_by_less_than_a_voxel_are_parallel():
    """0.05 degrees: 0.09 mm at 100 mm, what rounding of headers and rigid resampling leave."""
    shape, edges = COARSE
    made = [session(k, COARSE, turned(affine_of(edges, shape), 0.05 * k)) for k in range(2)]
    made.append(session(2, FINE))
    assert prepare(made, CONTRACT, resample=True).patient is not None


def test_a_header_flipped_without_its_data_is_still_found():  # G04
    made = case(COARSE, COARSE, FINE)
    flipped = made[0].images["t1c"].affine @ np.diag([-1.0, 1, 1, 1])
    made[0].images["t1c"] = replace(made[0].images["t1c"], affine=flipped)
    assert codes(made, resample=True) == [("TD3202", "s0/t1c")]
    elsewhere = affine_of(COARSE[1], COARSE[0], (0, 90, 0))
    made[0].images["t1c"] = replace(made[0].images["t1c"], affine=elsewhere)
    assert codes(made, resample=True) == [("TD3201", "s0/t1c")]


@pytest.mark.parametrize("edges", [(30, 30, 30), (0.01, 0.01, 0.01), (1.0, 1.0, 11.0)])
def test_voxels_of_no_head_scan_are_not_resampled(edges: tuple[float, ...]):  # G15
    made = case(COARSE, COARSE, COARSE)
    affine = affine_of(edges, COARSE[0])
    made[1].images["flair"] = replace(made[1].images["flair"], affine=affine)
    assert ("TD3207", "s1/flair") in codes(made, resample=True)


def test_a_field_of_view_of_metres_is_not_resampled():
    made = case(COARSE, COARSE, FINE)
    wide = affine_of((2, 9, 2), FINE[0])
    images = {m: replace(image, affine=wide) for m, image in made[2].images.items()}
    made[2] = replace(made[2], images=images)
    assert codes(made, resample=True) == [("TD3207", f"s2/{name}") for name in MODALITIES]


def test_too_few_slices_stay_too_few():  # G18
    """Seven thick slices would become 21."""
    shape, edges = (72, 84, 7), (1.0, 1.0, 6.0)
    made = [*case(FINE, FINE), session(2, (shape, edges))]
    made[2] = replace(made[2], mask=None)
    assert codes(made, resample=True) == [("TD3208", "s2/t1")]


def test_what_is_wrong_with_images_is_said_with_what_is_wrong_with_grids():
    made = case(COARSE, COARSE, COARSE)
    t1, flair = made[0].images["t1"], made[1].images["flair"]
    made[0].images["t1"] = replace(t1, data=t1.data + np.float32(50))
    made[1].images["flair"] = replace(flair, affine=turned(flair.affine, 20))
    expected = [("TD3201", "s1/flair"), ("TD3126", "s0/t1")]
    assert codes(made, resample=True) == expected
    with pytest.raises(InputDataError) as caught:
        prepare(made, CONTRACT, resample=True)
    assert "HD-BET" in caught.value.findings[1].fix
    assert "SynthStrip" in caught.value.findings[1].fix


def test_tumour_outside_the_last_t1_is_refused():
    """A T1 that ends within the tumour: at 11 of its 22 mm along z."""
    shape, edges = (72, 84, 40), (1.0, 1.0, 1.0)
    made = [*case(COARSE, COARSE), session(2, (shape, edges))]
    low = affine_of(edges, shape, (0, 0, -17))
    made[2] = session(2, (shape, edges), low)
    with pytest.raises(InputDataError, match=r"(49|50)\.\d\d% of the tumour lie") as caught:
        prepare(made, CONTRACT, resample=True)
    assert [f.code for f in caught.value.findings] == ["TD3211"] * 2
    assert caught.value.where == "s0/mask"


def test_brain_outside_the_last_t1_is_remarked_on():
    shape, edges = (72, 84, 36), (1.0, 1.0, 1.0)
    made = [*case(COARSE, COARSE), session(2, (shape, edges))]
    notes = [n for n in prepare(made, CONTRACT, resample=True).notes if n.startswith("W3212")]
    # Of an ellipsoid of semi-axis c, |z| > h holds 1 - (3 u - u³) / 2 with u = h / c.
    u = 18 / HEAD_MM[2]
    share = 1 - (3 * u - u**3) / 2
    assert [note.split(": ")[1] for note in notes] == [
        f"s{k}/{name}" for k in (0, 1) for name in MODALITIES
    ]
    assert all(abs(int(n.split(": ")[2].split("%")[0]) - 100 * share) < 2 for n in notes)


def test_brains_that_lie_elsewhere_are_remarked_on():
    """Parallel and not registered: headers say where the scanner's table was."""
    made = case(COARSE, COARSE, FINE)
    shape, edges = COARSE
    aside = session(1, COARSE)
    there = affine_of(edges, shape, (16, 0, 0))
    (made[1],) = moved([aside], lambda v: replace(v, affine=there))
    notes = [n for n in prepare(made, CONTRACT, resample=True).notes if n.startswith("W3213")]
    assert len(notes) == 1
    assert "s1" in notes[0]
    assert "does not register" in notes[0]
