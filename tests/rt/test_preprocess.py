"""From sessions to network input and back; the oracle is the published recipe written out slowly.

The ids G03 to G21 and V04 to V21 number the faults of the project's corpus.
"""

from dataclasses import replace
from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel import orientations
from scipy import ndimage

from tadiff_rt.case import MODALITIES, Session, Volume
from tadiff_rt.errors import GeometryError, InputDataError, NiftiError, TableError
from tadiff_rt.intensity import measure_range
from tadiff_rt.preprocess import DataContract, Window, prepare

ORIENTATIONS = [
    "".join(pair[side] for pair, side in zip(pairs, sides, strict=True))
    for pairs in permutations(("LR", "PA", "IS"))
    for sides in product((0, 1), repeat=3)
]
SHAPE = (26, 32, 22)
AFFINE = np.array([[-1.0, 0, 0, 13], [0, 1, 0, -16], [0, 0, 1, -11], [0, 0, 0, 1]])
CONTRACT = DataContract(size=28)


def head(centre: tuple[float, float, float] = (12, 17, 11)) -> np.ndarray:
    """A brain of 19 x 25 x 17 voxels, off the middle of the grid."""
    radii = (9.4, 12.4, 8.4)
    axes = np.indices(SHAPE).reshape(3, -1).T
    return (((axes - centre) / radii) ** 2).sum(axis=1).reshape(SHAPE) < 1


def scan(seed: int, centre: tuple[float, float, float] = (12, 17, 11)) -> np.ndarray:
    """A skull-stripped scan: three tissues and noise, background exactly 0."""
    rng = np.random.default_rng(seed)
    brain = head(centre)
    tissue = rng.choice([250.0, 500.0, 750.0], size=SHAPE, p=[0.2, 0.45, 0.35])
    return np.where(brain, tissue + rng.normal(scale=40, size=SHAPE), 0).astype(np.float32)


BRAIN = head()
SCAN = scan(7)


def ringing(thickness: tuple[float, float, float]) -> np.ndarray:
    """A head of sharp edges resampled to 1 mm by cubic splines, as deep as undershoot gets."""
    coarse = ndimage.zoom(scan(8).astype(np.float64) * 2, 1 / np.array(thickness), order=0)
    return ndimage.zoom(coarse, np.array(SHAPE) / coarse.shape, order=3)


def volume(data: np.ndarray, affine: np.ndarray = AFFINE, label: str = "") -> Volume:
    label = label or "t1.nii"
    return Volume(np.ascontiguousarray(data, np.float32), affine, label, str(hash(data.tobytes())))


def sessions(*, affine: np.ndarray = AFFINE) -> list[Session]:
    """Three sessions of different scans, each with a tumour of its own."""
    made = []
    for s in range(3):
        images = {
            modality: volume(scan(3 * s + m) * (1 + m), affine, f"ses-{s}/{modality}")
            for m, modality in enumerate(MODALITIES)
        }
        mask = np.zeros(SHAPE, np.float32)
        mask[10 : 12 + s, 14:18, 9:12] = [1, 2, 3]
        made.append(Session(f"ses-{s}", 30 * s, "TMZ", images, volume(mask, affine, f"mask-{s}")))
    return made


def edited(made: list[Session], s: int, modality: str, data: np.ndarray) -> list[Session]:
    """`made` with one image replaced."""
    old = made[s].images[modality]
    images = made[s].images | {modality: volume(data, old.affine, old.label)}
    return [*made[:s], replace(made[s], images=images), *made[s + 1 :]]


def reoriented(data: np.ndarray, affine: np.ndarray, axcodes: str) -> nibabel.Nifti1Image:
    transform = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt(axcodes)
    )
    return nibabel.Nifti1Image(data, affine).as_reoriented(transform)


def stored_as(original: Volume, axcodes: str) -> Volume:
    image = reoriented(original.data, original.affine, axcodes)
    data = np.ascontiguousarray(image.dataobj)
    return replace(original, data=data, affine=image.affine)


def session_stored_as(session: Session, axcodes: str) -> Session:
    images = {m: stored_as(image, axcodes) for m, image in session.images.items()}
    return replace(session, images=images, mask=stored_as(session.mask, axcodes))


def published_normalisation(data: np.ndarray) -> np.ndarray:
    """Clip the voxels > 0 to percentiles, z-score by their moments, stretch all to [0, 1]."""
    data = data.astype(np.float64)
    low, high = np.percentile(data[data > 0], [0.2, 99.8])
    clipped = np.where(data > 0, np.clip(data, low, high), data)
    mean, std = clipped[data > 0].mean(), clipped[data > 0].std()
    scored = (clipped - mean) / std
    return (scored - scored.min()) / (scored.max() - scored.min())


def published_window(volumes: np.ndarray, size: int, source: np.ndarray) -> np.ndarray:
    """Crop (c, h, w, d) to the box of `source` > 0 in plane, then pad symmetrically to size."""
    held = np.argwhere((source > 0).any(axis=0))
    (h0, w0, _), (h1, w1, _) = held.min(axis=0), held.max(axis=0) + 1
    pads = [((size - n) // 2, size - n - (size - n) // 2) for n in (h1 - h0, w1 - w0)]
    return np.pad(volumes[:, h0:h1, w0:w1], [(0, 0), *pads, (0, 0)])


def published_pipeline(made: list[Session], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sources (d, 9, size, size) and masks (3, d, size, size), one step at a time."""
    images = [session.images[modality] for session in made for modality in MODALITIES]
    stack = np.stack(
        [reoriented(published_normalisation(i.data), i.affine, "PLI").get_fdata() for i in images]
    )
    masks = np.stack([reoriented(s.mask.data, s.mask.affine, "PLI").get_fdata() > 0 for s in made])
    sources = np.moveaxis(published_window(stack, size, stack), 3, 0)
    return sources, np.moveaxis(published_window(masks, size, stack), 3, 1)


@pytest.mark.parametrize(
    "size",
    [
        25,  # the brain's own length: the narrowest window that fits
        28,  # lies within the grid along one axis, sticks out along the other
        33,  # odd padding
        48,  # larger than the grid
    ],
)
def test_equals_the_published_pipeline_written_out(size: int):
    made = sessions()
    prepared = prepare(made, DataContract(size=size))
    sources, masks = published_pipeline(made, size)
    assert prepared.sources.shape == (SHAPE[2], 9, size, size)
    assert prepared.sources.dtype == np.float32
    assert prepared.sources.flags.c_contiguous
    np.testing.assert_allclose(prepared.sources, sources, rtol=0, atol=1e-7)
    assert prepared.masks.dtype == bool
    np.testing.assert_array_equal(prepared.masks, masks)
    np.testing.assert_array_equal(prepared.brain, (sources > 0).any(axis=(1, 2, 3)))


def test_intensity_scale_is_the_upper_percentile_of_the_last_session():
    made = sessions()
    expected = [
        np.percentile(made[2].images[m].data[head()].astype(np.float64), 99.8) for m in MODALITIES
    ]
    np.testing.assert_array_equal(prepare(made, CONTRACT).intensity_scale, expected)


@pytest.mark.parametrize("axcodes", ORIENTATIONS)
def test_storage_orientation_changes_no_bit(axcodes: str):  # G03, G05
    made = sessions()
    expected = prepare(made, CONTRACT)
    stored = [session_stored_as(session, axcodes) for session in made]
    prepared = prepare(stored, CONTRACT)
    np.testing.assert_array_equal(prepared.sources, expected.sources)
    np.testing.assert_array_equal(prepared.masks, expected.masks)
    np.testing.assert_array_equal(prepared.intensity_scale, expected.intensity_scale)

    forecast = np.random.default_rng(5).random((SHAPE[2], 28, 28))
    back = prepared.to_patient_grid(forecast, fill=-1)
    assert back.shape == stored[2].images["t1"].data.shape
    image = reoriented(expected.to_patient_grid(forecast, fill=-1), AFFINE, axcodes)
    np.testing.assert_array_equal(back, np.asarray(image.dataobj))


def test_files_of_one_case_may_be_stored_in_different_orientations():  # G03
    made = sessions()
    expected = prepare(made, CONTRACT)
    mixed = [
        session_stored_as(session, axcodes)
        for session, axcodes in zip(made, ("RAS", "PIR", "LAS"), strict=True)
    ]
    mixed[1].images["t1c"] = stored_as(mixed[1].images["t1c"], "SLP")
    np.testing.assert_array_equal(prepare(mixed, CONTRACT).sources, expected.sources)


def test_results_return_to_the_voxels_they_came_from():
    """A copied last scan, times its scale, is the last scan up to the two percentiles."""
    made = [session_stored_as(session, "PIR") for session in sessions()]
    prepared = prepare(made, CONTRACT)
    for m, modality in enumerate(MODALITIES):
        back = prepared.to_patient_grid(prepared.sources[:, 6 + m]) * prepared.intensity_scale[m]
        data = made[2].images[modality].data.astype(np.float64)
        low, high = np.percentile(data[data > 0], [0.2, 99.8])
        expected = np.where(data > 0, np.clip(data, low, high), 0)
        np.testing.assert_allclose(back, expected, rtol=1e-6)


def test_results_keep_their_type_and_fill_what_lies_outside_the_window():
    prepared = prepare(sessions(), DataContract(size=25))
    ones = np.ones((SHAPE[2], 25, 25), np.float16)
    back = prepared.to_patient_grid(ones, fill=7)
    assert back.dtype == np.float16
    # The brain spans 25 of 32 voxels along y, from 5 on, and 19 of 26 along x, from 3 on.
    inside = np.zeros(SHAPE, bool)
    inside[0:25, 5:30] = True
    np.testing.assert_array_equal(back, np.where(inside, 1, 7))
    with pytest.raises(ValueError, match=r"expected \(22, 25, 25\)"):
        prepared.to_patient_grid(ones[1:])


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    start=st.tuples(*[st.integers(-6, 8)] * 2),
    size=st.integers(1, 12),
)
@settings(max_examples=200, deadline=None)
def test_cut_and_paste_are_inverse(shape: tuple[int, int, int], start: tuple[int, int], size: int):
    if any(a + size <= 0 or a >= n for a, n in zip(start, shape, strict=False)):
        return  # a window is placed around brain voxels, so it always meets the grid
    window = Window(start, size)
    array = np.arange(1, np.prod(shape) + 1).reshape(shape)
    stack = window.cut(array)
    for k, i, j in np.ndindex(stack.shape):
        h, w = i + start[0], j + start[1]
        in_grid = 0 <= h < shape[0] and 0 <= w < shape[1]
        assert stack[k, i, j] == (array[h, w, k] if in_grid else 0)
        assert window.inside(shape)[i, j] == in_grid
    pasted = window.paste(stack, shape, -1)
    kept = np.isin(array, stack)
    np.testing.assert_array_equal(pasted, np.where(kept, array, -1))


@pytest.mark.parametrize("thickness", [(1.5, 1.5, 1.5), (1, 1, 4)], ids=["isotropic", "thick"])
def test_undershoot_of_interpolation_is_clamped(thickness: tuple[float, float, float]):
    data = np.round(ringing(thickness))  # as int16 files are; it ends the ringing far away
    assert data.min() < -136
    assert (data < 0).sum() > 0.3 * BRAIN.sum()

    contract = DataContract(size=40)
    prepared = prepare(edited(sessions(), 1, "flair", data), contract)
    clamped = prepare(edited(sessions(), 1, "flair", np.maximum(data, 0)), contract)
    np.testing.assert_array_equal(prepared.sources, clamped.sources)
    assert prepared.sources.min() == 0


@pytest.mark.parametrize("offset", [260, 300, 500, 700])
def test_an_offset_is_told_from_undershoot(offset: float):
    """A shift of resampled data, where both are: 260 removes half of the darkest tissue."""
    measure_range(np.round(ringing((1.5, 1.5, 1.5))), (0.2, 99.8), "")
    shifted = np.where(BRAIN, SCAN - offset, 0).astype(np.float32)
    with pytest.raises(NiftiError, match="already normalised or shifted"):
        measure_range(shifted, (0.2, 99.8), "")


def test_single_negative_voxels_do_not_matter_however_deep():
    spoiled = SCAN.copy()
    spoiled[0, 0, 0] = spoiled[12, 17, 11] = -100 * SCAN.max()
    got = measure_range(spoiled, (0.2, 99.8), "")
    brain = SCAN[spoiled > 0].astype(np.float64)
    assert (got.low, got.high) == tuple(np.percentile(brain, [0.2, 99.8]))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("side", [0, -1])
def test_negative_voxels_in_a_cleft_of_the_head_are_outside_it(axis: int, side: int):
    """A cleft is open to one of six sides, and its walls ring like any edge."""
    cleft = np.zeros(SHAPE, bool)
    half = SHAPE[axis] // 2
    others = [slice(n // 2 - 3, n // 2 + 4) for n in np.delete(SHAPE, axis)]
    np.moveaxis(cleft, axis, 0)[slice(0, half) if side == 0 else slice(half, None), *others] = True
    assert (cleft & BRAIN).sum() > 0.08 * BRAIN.sum()
    spoiled = np.where(cleft, -0.2 * SCAN.max(), SCAN).astype(np.float32)
    whole = np.where(cleft, 0, SCAN).astype(np.float32)
    assert measure_range(spoiled, (0.2, 99.8), "") == measure_range(whole, (0.2, 99.8), "")


def test_voxels_within_the_head_may_lie_just_below_zero():
    """Ventricles of a FLAIR image are 0 up to noise and ringing."""
    dark = np.where(np.random.default_rng(9).random(SHAPE) < 0.1, -0.9, 100)
    got = measure_range((BRAIN * dark * (1 + SCAN / 1e4)).astype(np.float32), (0.2, 99.8), "")
    assert got.low > 99


def z_scored(data: np.ndarray) -> np.ndarray:
    brain = data[data > 0]
    return np.where(data > 0, (data - brain.mean()) / brain.std(), 0)


def one_voxel() -> np.ndarray:
    data = np.zeros(SHAPE)
    data[12, 17, 11] = 500
    return data


FILLED = np.pad(1 + SCAN[1:-1, 1:-1, 1:-1], 1, mode="edge")
FILLED[np.ix_([0, -1], [0, -1])] = FILLED[[0, -1], :, :1] = FILLED[[0, -1], :, -1:] = 0
FILLED[:, [0, -1], :1] = FILLED[:, [0, -1], -1:] = 0
REFUSED: dict[str, tuple[str, np.ndarray]] = {
    "V04 constant brain": ("TD3124", BRAIN * 400),
    "V04 constant but for one voxel": ("TD3124", BRAIN * 400 + one_voxel()),
    "V05 all zero": ("TD3125", np.zeros(SHAPE)),
    "V06 all negative": ("TD3125", -SCAN - 10),
    "V06 brain negative": ("TD3125", -SCAN),
    "V07 background -1024": ("TD3126", np.where(BRAIN, SCAN, -1024)),
    "V07 background -1 of 1": ("TD3126", 2 * SCAN / SCAN.max() - 1),
    "V08 brain less 300": ("TD3127", np.where(BRAIN, SCAN - 300, 0)),
    "V09 z-scored brain": ("TD3127", z_scored(SCAN)),
    "V09 z-scored image": ("TD3126", (SCAN - SCAN.mean()) / SCAN.std()),
    "V11 uniform offset": ("TD3126", SCAN + 50),
    "V11 noise in air": ("TD3126", SCAN + np.random.default_rng(0).random(SHAPE)),
    "V11 interpolated and not masked": ("TD3126", ringing((1.5, 1.5, 1.5))),
    "V11 tissue up to the faces": ("TD3126", FILLED),
    "V12 one voxel": ("TD3125", one_voxel()),
    "V20 checkerboard of 1e4": (
        "TD3127",
        SCAN + BRAIN * (np.indices(SHAPE).sum(0) % 2 - 0.5) * 2e4,
    ),
}


@pytest.mark.parametrize(("code", "data"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_refuses_what_is_no_scan_by_its_code(code: str, data: np.ndarray, scale: float):
    """At any scale, and in float32 as it would be read."""
    with pytest.raises(NiftiError) as caught:
        prepare(edited(sessions(), 1, "t1c", data * scale), CONTRACT)
    assert [f.code for f in caught.value.findings] == [code]
    assert caught.value.where == "ses-1/t1c"


def test_one_hot_voxel_changes_next_to_nothing():  # V10
    """Of quantised tissue the percentiles stay what they were, so every other voxel does too."""
    rng = np.random.default_rng(3)
    levels = np.where(BRAIN, rng.choice([200, 400, 600, 800], size=SHAPE), 0)
    hot = levels.copy()
    hot[12, 17, 11] = 1_000_000_000
    clean, spoiled = (
        prepare(edited(sessions(), 0, "t1", data), CONTRACT).sources for data in (levels, hot)
    )
    different = np.abs(clean - spoiled) > 1e-6
    assert different.sum() <= 1
    assert spoiled.max() == 1


@pytest.mark.parametrize("scale", [1e35, 1e-41])
def test_scanner_units_do_not_matter(scale: float):  # V13
    """Denormal numbers keep 1e-5 of their value at 1e-40; float32 statistics would overflow."""
    expected = prepare(sessions(), CONTRACT).sources
    scaled = edited(sessions(), 2, "t1", (SCAN.astype(np.float64) * scale).astype(np.float32))
    unscaled = prepare(edited(sessions(), 2, "t1", SCAN), CONTRACT).sources
    got = prepare(scaled, CONTRACT).sources
    np.testing.assert_allclose(got, unscaled, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(got[:, :6], expected[:, :6])


@pytest.mark.parametrize("levels", [(100, 200, 300, 400), (1, 2)])
def test_few_grey_levels_are_enough(levels: tuple[int, ...]):  # V16
    data = np.where(BRAIN, np.random.default_rng(4).choice(levels, size=SHAPE), 0)
    sources = prepare(edited(sessions(), 0, "flair", data), CONTRACT).sources[:, 2]
    expected = np.array([0, *levels], np.float64) / max(levels)
    np.testing.assert_allclose(np.unique(sources), expected, atol=1e-7)


def test_an_empty_slice_stays_empty_and_is_reported():  # V17
    made = sessions()
    for session in made:
        for image in session.images.values():
            image.data[:, :, 12] = 0
    prepared = prepare(made, CONTRACT)
    k = SHAPE[2] - 1 - 12  # slices run from superior to inferior
    assert not prepared.sources[k].any()
    assert not prepared.brain[k]
    assert prepared.brain[k - 1]
    assert np.isfinite(prepared.sources).all()


def test_strong_noise_gives_finite_input():  # V20
    noise = (np.indices(SHAPE).sum(0) % 2 - 0.5) * 2e4
    sources = prepare(edited(sessions(), 0, "t1", BRAIN * (20000 + noise)), CONTRACT).sources
    assert np.isfinite(sources).all()
    assert set(np.round(np.unique(sources[:, 0]), 6)) == {0, np.float32(0.333333), 1}


def test_equal_modalities_and_a_huge_mask_are_remarked_on():  # V15, V21
    made = sessions()
    made[1] = replace(made[1], images=dict.fromkeys(MODALITIES, made[1].images["t1"]))
    made[2] = replace(made[2], mask=volume(BRAIN * 3.0, label="mask"))
    notes = prepare(made, CONTRACT).notes
    assert [note[:5] for note in notes] == ["W3130", "W3128"]
    assert "ses-1" in notes[0]
    assert "100% of the brain" in notes[1]
    assert prepare(sessions(), CONTRACT).notes == ()


def test_empty_and_missing_masks():  # V14
    made = [replace(session, mask=volume(np.zeros(SHAPE))) for session in sessions()]
    prepared = prepare(made, CONTRACT)
    assert prepared.masks.shape == (3, SHAPE[2], 28, 28)
    assert not prepared.masks.any()
    made[0] = replace(made[0], mask=None)
    assert prepare(made, CONTRACT).masks is None


def cropped(made: list[Session], box: tuple[slice, slice, slice]) -> list[Session]:
    """The sessions on a smaller grid; the affine stays, as all of them move alike."""

    def crop(old: Volume) -> Volume:
        return volume(old.data[box], old.affine, old.label)

    return [
        replace(s, images={m: crop(i) for m, i in s.images.items()}, mask=crop(s.mask))
        for s in made
    ]


def test_brain_at_the_edge_of_the_grid_does_not_wrap_around():  # G21
    """The grid cuts through the brain, and the window sticks out of it: zeros lie beyond."""
    made = cropped(sessions(), np.s_[10:, :20, :])
    prepared = prepare(made, CONTRACT)
    assert min(prepared.window.start) < 0
    sources, _ = published_pipeline(made, CONTRACT.size)
    np.testing.assert_allclose(prepared.sources, sources, rtol=0, atol=1e-7)
    back = prepared.to_patient_grid(prepared.sources[:, 6] > 0, fill=False)
    np.testing.assert_array_equal(back, made[2].images["t1"].data > 0)


def test_a_window_too_small_for_the_brain_is_refused_with_the_count():  # G17
    """Along y the brain spans 25 voxels; 22 leave out one plane in front and two behind."""
    with pytest.raises(
        GeometryError, match=r"spans 25 x 19 voxels in plane, .* 22 x 22"
    ) as caught:
        prepare(sessions(), DataContract(size=22))
    assert caught.value.code == "TD3211"
    inside = BRAIN[:, 7:29].sum()
    other_side = BRAIN[:, 6:28].sum()
    counts = {f"{BRAIN.sum() - n} brain voxels would be cut off" for n in (inside, other_side)}
    assert any(count in caught.value.message for count in counts)


def test_one_stray_voxel_can_push_the_brain_out_of_the_window():  # G17
    data = SCAN.copy()
    data[12, 0, 11] = 600
    with pytest.raises(GeometryError, match="spans 30 x 19 voxels in plane"):
        prepare(edited(sessions(), 2, "flair", data), CONTRACT)


def test_tumour_outside_the_window_is_refused():
    made = sessions()
    mask = made[1].mask.data.copy()
    mask[12, 0, :2] = 1
    made[1] = replace(made[1], mask=volume(mask, label="mask-1"))
    with pytest.raises(GeometryError, match="2 tumour voxels lie outside") as caught:
        prepare(made, DataContract(size=25))
    assert (caught.value.code, caught.value.where) == ("TD3211", "mask-1")


@pytest.mark.parametrize("num_slices", [1, 2, 7])
def test_too_few_slices(num_slices: int):  # G18
    made = cropped(sessions(), np.s_[:, :, 8 : 8 + num_slices])
    with pytest.raises(GeometryError, match=f"{num_slices} axial slices, at least 8") as caught:
        prepare(made, CONTRACT)
    assert caught.value.code == "TD3208"


def test_a_slab_through_the_brain_is_accepted():
    """Eight slices cropped tightly: the brain fills most of both end faces."""
    made = cropped(sessions(), np.s_[3:22, 5:30, 7:15])
    assert prepare(made, CONTRACT).sources.shape == (8, 9, 28, 28)


@pytest.mark.parametrize("edges", [(0.5, 0.5, 6), (30, 30, 30)])
def test_spacing_outside_the_contract_is_one_finding(edges: tuple[float, ...]):  # G14, G15
    with pytest.raises(GeometryError, match=r"trained on 1 mm") as caught:
        prepare(sessions(affine=np.diag([*edges, 1.0])), CONTRACT)
    assert [f.code for f in caught.value.findings] == ["TD3207"]


def test_sessions_on_different_grids_are_refused():  # G16
    moved = AFFINE.copy()
    moved[0, 3] += 5
    made = [*sessions()[:2], sessions(affine=moved)[2]]
    with pytest.raises(GeometryError, match="5 mm apart") as caught:
        prepare(made, CONTRACT)
    assert [f.code for f in caught.value.findings] == ["TD3201"] * 4
    assert caught.value.where == "ses-2/t1"


def test_all_findings_are_raised_together():
    moved = AFFINE.copy()
    moved[1, 3] -= 2
    made = sessions()
    made = edited(made, 0, "t1", BRAIN * 400.0)
    made = edited(made, 2, "flair", np.zeros(SHAPE))
    made[1].images["t1c"] = volume(SCAN, moved, "ses-1/t1c")
    with pytest.raises(InputDataError) as caught:
        prepare(made, CONTRACT)
    assert [(f.code, f.where) for f in caught.value.findings] == [
        ("TD3201", "ses-1/t1c"),
        ("TD3124", "ses-0/t1"),
        ("TD3125", "ses-2/flair"),
    ]


def test_a_session_repeated_as_padding_equals_its_copies():
    first, second, _ = sessions()
    copies = sessions()[0]
    shared = prepare([first, first, second], CONTRACT)
    separate = prepare([first, copies, second], CONTRACT)
    np.testing.assert_array_equal(shared.sources, separate.sources)
    np.testing.assert_array_equal(shared.sources[:, :3], shared.sources[:, 3:6])


def test_repeated_images_are_reported_once():
    bad = edited(sessions(), 0, "t1", np.zeros(SHAPE))[0]
    with pytest.raises(NiftiError) as caught:
        prepare([bad, bad, sessions()[2]], CONTRACT)
    assert len(caught.value.findings) == 1


def test_the_number_of_sessions_is_the_model_s():
    with pytest.raises(TableError, match="2 sessions were given, the model needs 3") as caught:
        prepare(sessions()[:2], CONTRACT)
    assert caught.value.code == "TD3315"
