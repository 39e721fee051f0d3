"""Augmentation: points go where the map says, and what must stay the same does."""

import dataclasses
import math

import numpy as np
import pytest

from tadiff_train.data.augment import (
    AUGMENTS,
    Affine,
    AugmentConfig,
    augment,
    change_intensities,
    draw_affine,
    move,
)

H, W = 40, 56  # not square: exchanged axes show
FULL = AUGMENTS["full"]
ALWAYS = dataclasses.replace(FULL, flip_probability=0.0, affine_probability=1.0)
MAPS = {
    "shift": Affine(shift=(2.25, -3.5)),
    "rotation": Affine(angle=math.radians(9)),
    "scale": Affine(scale=1.1),
    "all": Affine(math.radians(-7), 0.93, (-1.75, 2.5)),
}


def grid() -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[:H, :W].astype(np.float64)
    return rows, columns


def forward(affine: Affine, row, column):
    """Where a point goes, coordinate by coordinate."""
    y, x = row - (H - 1) / 2, column - (W - 1) / 2
    c, s = math.cos(affine.angle), math.sin(affine.angle)
    return (
        affine.scale * (c * y - s * x) + (H - 1) / 2 + affine.shift[0],
        affine.scale * (s * y + c * x) + (W - 1) / 2 + affine.shift[1],
    )


def backward(affine: Affine, row, column):
    """Where a point comes from: the rotation undone by its transpose."""
    y = (row - (H - 1) / 2 - affine.shift[0]) / affine.scale
    x = (column - (W - 1) / 2 - affine.shift[1]) / affine.scale
    c, s = math.cos(affine.angle), math.sin(affine.angle)
    return c * y + s * x + (H - 1) / 2, -s * y + c * x + (W - 1) / 2


def head(seed: int = 0, rim: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """Textured tissue that fills `rim` of the window, and discs of tumour, in every session."""
    rng = np.random.default_rng(seed)
    rows, columns = grid()
    inside = ((rows - 19.5) / 20) ** 2 + ((columns - 27.5) / 28) ** 2 < rim**2
    images = rng.uniform(0.1, 1, (4, 3, H, W)) * inside
    radius = np.array([2.5, 3.5, 4.5, 5.5])[:, None, None]
    masks = (rows - 17.2) ** 2 + (columns - 30.7) ** 2 < radius**2
    return images.astype(np.float32), masks


def alike(image: np.ndarray) -> np.ndarray:
    return np.broadcast_to(image.astype(np.float32), (4, 3, H, W)).copy()


NO_TUMOUR = np.zeros((4, H, W), bool)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("point", [(12.0, 15.0), (24.0, 41.0)])
def test_a_point_goes_where_the_map_says(name, point):
    rows, columns = grid()
    spot = 0.6 * np.exp(-((rows - point[0]) ** 2 + (columns - point[1]) ** 2) / 8)
    images, _ = move(alike(0.2 + spot), NO_TUMOUR, MAPS[name])
    to = forward(MAPS[name], *point)
    near = (rows - to[0]) ** 2 + (columns - to[1]) ** 2 < 36
    light = (images - 0.2) * near
    for axis, expected in ((rows, to[0]), (columns, to[1])):
        centre = (light * axis).sum((2, 3)) / light.sum((2, 3))
        np.testing.assert_allclose(centre, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("name", MAPS)
def test_every_voxel_shows_the_place_it_comes_from(name):
    def wave(row, column):
        return 0.5 + 0.3 * np.sin(row / 3) * np.cos(column / 4 + 1)

    images, _ = move(alike(wave(*grid())), NO_TUMOUR, MAPS[name])
    row, column = backward(MAPS[name], *grid())
    interior = (row > 2) & (row < H - 3) & (column > 2) & (column < W - 3)
    error = (images - wave(row, column))[..., interior]
    assert interior.mean() > 0.6
    assert np.abs(error).max() < 0.01


def test_whole_voxels_are_moved_exactly():
    images, masks = head(rim=0.6)
    moved, tumour = move(images, masks, Affine(shift=(3.0, -2.0)))
    np.testing.assert_allclose(moved, np.roll(images, (3, -2), (2, 3)), rtol=0, atol=2e-5)
    assert np.array_equal(tumour, np.roll(masks, (3, -2), (1, 2)))


@pytest.mark.parametrize("name", MAPS)
def test_masks_move_with_their_images(name):
    images, masks = head()
    images = np.where(masks[:, None], 0.9, 0.3 * (images > 0)).astype(np.float32)
    moved, tumour = move(images, masks, MAPS[name])
    for s in range(4):
        differ = (moved[s, 0] > 0.6) != tumour[s]
        row, column = backward(MAPS[name], *grid())
        distance = np.hypot(row - 17.2, column - 30.7) - (2.5 + s)
        assert not (differ & (np.abs(distance) > 1)).any()


@pytest.mark.parametrize("seed", range(3))
def test_volumes_and_growth_are_kept(seed):
    """Area times scale^2, rounded, for small and ragged tumours alike; a lone voxel stays."""
    rng = np.random.default_rng(seed)
    images, masks = head(seed)
    ragged = np.zeros((H, W), bool)
    ragged[14:20, 20:27] = rng.random((6, 7)) < 0.6
    lone = np.zeros((H, W), bool)
    lone[15, 25] = True
    masks = np.stack([masks[0], masks[3], ragged, lone])
    for _ in range(40):
        affine = draw_affine(images, rng.random(4), ALWAYS)
        _, moved = move(images, masks, affine)
        expected = [round(affine.scale**2 * int(m.sum())) for m in masks]
        assert moved.sum((1, 2)).tolist() == expected


STILL = dataclasses.replace(ALWAYS, flip_probability=0.5, max_gain=0.0, max_log_gamma=0.0)
"""Places alone change."""


@pytest.mark.parametrize("seed", range(6))
def test_a_window_keeps_its_tumour_where_its_images_show_it(seed):
    images, masks = head()
    images = np.where(masks[:, None], 0.9, 0.3 * (images > 0)).astype(np.float32)
    moved, tumour = augment(images, masks, np.random.default_rng(seed), STILL)
    for s in range(4):
        for axis in grid():
            seen, drawn = axis[moved[s, 0] > 0.6].mean(), axis[tumour[s]].mean()
            assert drawn == pytest.approx(seen, abs=0.2)
    assert not np.array_equal(tumour, masks)


def test_sessions_and_modalities_move_alike():
    images, masks = head()
    images[:], masks[:] = images[2, 1], masks[2]
    for seed in range(5):
        moved, tumour = augment(images, masks, np.random.default_rng(seed), STILL)
        assert (moved == moved[0, 0]).all()
        assert (tumour == tumour[0]).all()
        assert not np.array_equal(moved, images)


def test_texture_is_kept():
    """White noise keeps most of its variance, of which linear interpolation leaves too little."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0.1, 1, (4, 3, H, W)).astype(np.float32)
    ratios = []
    for _ in range(20):
        moved, _ = move(images, NO_TUMOUR, Affine(rng.uniform(-0.2, 0.2), 1.0, (0.5, 0.3)))
        ratios.append(moved[..., 10:30, 15:40].var() / images[..., 10:30, 15:40].var())
    assert 0.62 < np.mean(ratios) < 1


@pytest.mark.parametrize("name", MAPS)
def test_the_edge_of_the_brain_stays_sharp_and_its_background_0(name):
    images, masks = head(rim=0.7)
    flat = np.where(images > 0, np.float32(0.5), np.float32(0))
    moved, _ = move(flat, masks, MAPS[name])
    assert set(np.round(np.unique(moved), 6).tolist()) == {0.0, 0.5}
    row, column = backward(MAPS[name], *grid())
    rim = np.hypot((row - 19.5) / 20, (column - 27.5) / 28)
    voxel = 1.5 / 20
    assert (moved[..., rim < 0.7 - voxel] > 0).all()
    assert not moved[..., rim > 0.7 + voxel].any()
    area = (flat[0, 0] > 0).sum() * MAPS[name].scale ** 2
    assert (moved[0, 0] > 0).sum() == pytest.approx(area, rel=0.02)


def test_sessions_keep_their_own_background():
    images, masks = head()
    flat = np.where(images > 0, np.float32(0.5), np.float32(0))
    flat[1, :, :20] = 0
    moved, _ = move(flat, masks, Affine(shift=(2.3, 0.0)))
    assert set(np.round(np.unique(moved), 6).tolist()) == {0.0, 0.5}
    assert not moved[1, :, :22].any()
    assert (moved[0, :, 20:22, 25:30] > 0).all()


def test_flips_are_exact():
    images, masks = head()
    flip = AugmentConfig(flip_probability=1.0)
    mirrored, tumour = augment(images, masks, np.random.default_rng(0), flip)
    assert np.array_equal(mirrored, images[:, :, :, ::-1])
    assert np.array_equal(tumour, masks[:, :, ::-1])
    assert mirrored.strides == images.strides  # torch takes no views that run backwards


def test_none_returns_its_input_bit_for_bit():
    images, masks = head()
    got = augment(images, masks, np.random.default_rng(0), AUGMENTS["none"])
    assert got[0].tobytes() == images.tobytes()
    assert got[1].tobytes() == masks.tobytes()


@pytest.mark.parametrize("preset", ["flip", "full"])
def test_presets_do_what_they_say_as_often_as_they_say(preset):
    """Half of 400 windows, within five deviations of 10."""
    images, masks = head()
    config = dataclasses.replace(AUGMENTS[preset], max_gain=0.0, max_log_gamma=0.0)
    rng = np.random.default_rng(0)
    flipped = same = 0
    for _ in range(400):
        got, _ = augment(images, masks, rng, config)
        flipped += np.array_equal(got, images[..., ::-1])
        same += np.array_equal(got, images)
    share = {"flip": 0.5, "full": 0.25}[preset]
    deviation = math.sqrt(400 * share * (1 - share))
    assert flipped == pytest.approx(400 * share, abs=5 * deviation)
    assert same == pytest.approx(400 * share, abs=5 * deviation)


def test_augmentation_is_a_function_of_the_generator():
    images, masks = head()
    before = images.tobytes(), masks.tobytes()
    first, again, other = (
        augment(images, masks, np.random.default_rng(seed), ALWAYS) for seed in (1, 1, 2)
    )
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])
    assert (images.tobytes(), masks.tobytes()) == before


@pytest.mark.parametrize("preset", AUGMENTS)
def test_every_preset_draws_the_same_numbers(preset):
    """What is drawn after augmentation must not depend on it."""
    rng, plain = np.random.default_rng(5), np.random.default_rng(5)
    augment(*head(), rng, AUGMENTS[preset])
    augment(*head(), plain, AugmentConfig())
    assert rng.random() == plain.random()


def test_results_are_images_and_masks():
    rng = np.random.default_rng(3)
    for seed in range(20):
        images, masks = head(seed, rim=rng.uniform(0.5, 1))
        got, tumour = augment(images, masks, rng, FULL)
        assert (got.dtype, got.shape) == (np.float32, images.shape)
        assert (tumour.dtype, tumour.shape) == (np.bool_, masks.shape)
        assert got.min() == 0
        assert 0.5 < got.max() <= 1


def test_intensities_follow_their_formula():
    images, _ = head()
    rng = np.random.default_rng(1)
    factor, power = rng.uniform(0.8, 1.2, (4, 3)), rng.uniform(0.8, 1.2, (4, 3))
    got = change_intensities(images, factor, power)
    held_back = 0
    for s in range(4):
        for m in range(3):
            curve = images[s, m].astype(np.float64) ** power[s, m]
            gain = min(factor[s, m], 1 / curve.max())
            held_back += gain < factor[s, m]
            np.testing.assert_allclose(got[s, m], gain * curve, rtol=2e-6, atol=0)
    assert 2 < held_back < 10
    assert got.max() <= 1
    assert np.array_equal(got == 0, images == 0)


def test_intensities_of_1_change_nothing():
    images, _ = head()
    assert change_intensities(images, np.ones((4, 3)), np.ones((4, 3))).tobytes() == (
        images.tobytes()
    )


def test_intensities_are_drawn_for_each_image_within_their_limits():
    """The change of an image is read off at two of its voxels, of 0.2 and 0.4."""
    images = alike(np.where(grid()[0] < 20, 0.2, 0.4))
    masks = head()[1]
    config = AugmentConfig(max_gain=0.15, max_log_gamma=0.25)
    rng = np.random.default_rng(2)
    drawn = []
    for _ in range(60):
        got, tumour = augment(images, masks, rng, config)
        assert np.array_equal(tumour, masks)
        low, high = got[..., 0, 0].astype(np.float64), got[..., -1, 0]
        power = np.log(high / low) / math.log(2)
        drawn.append([low / 0.2**power, np.log(power)])
    gain, log_gamma = np.array(drawn).swapaxes(0, 1)
    for value, centre, limit in ((gain, 1, 0.15), (log_gamma, 0, 0.25)):
        assert np.abs(value - centre).max() <= limit + 1e-5
        assert np.abs(value - centre).max() > 0.97 * limit
        # 720 even draws: the mean has a deviation of limit / sqrt(3 * 720).
        assert value.mean() == pytest.approx(centre, abs=5 * limit / math.sqrt(2160))
        assert value.std(axis=(1, 2)).min() > 0.2 * limit  # sessions and modalities differ
    assert abs(np.corrcoef(gain.ravel(), log_gamma.ravel())[0, 1]) < 0.2


@pytest.mark.parametrize("target", [0, 3])
def test_the_target_keeps_its_intensities(target):
    images, masks = head()
    config = AugmentConfig(max_gain=0.15, max_log_gamma=0.25)
    got, _ = augment(images, masks, np.random.default_rng(0), config, target=target)
    for s in range(4):
        assert np.array_equal(got[s], images[s]) == (s == target)


WIDE = AugmentConfig(affine_probability=1.0, max_rotation_deg=15, max_scale=0.2, max_shift=0.1)


def test_maps_are_drawn_evenly_within_their_limits():
    rows, columns = grid()
    images = alike(((rows - 19.5) ** 2 + (columns - 27.5) ** 2 < 64) * 0.5)
    rng = np.random.default_rng(0)
    maps = [draw_affine(images, rng.random(4), WIDE) for _ in range(1000)]
    drawn = {
        "angle": (np.array([m.angle for m in maps]), math.radians(15)),
        "scale": (np.log([m.scale for m in maps]), math.log(1.2)),
        "down": (np.array([m.shift[0] for m in maps]), 0.1 * H),
        "right": (np.array([m.shift[1] for m in maps]), 0.1 * W),
    }
    for value, limit in drawn.values():
        assert 0.98 * limit < np.abs(value).max() <= limit + 1e-12
        assert value.mean() == pytest.approx(0, abs=5 * limit / math.sqrt(3000))
        assert value.std() == pytest.approx(limit / math.sqrt(3), rel=0.1)
    correlation = np.corrcoef([value for value, _ in drawn.values()])
    assert np.abs(correlation - np.eye(4)).max() < 0.2


@pytest.mark.parametrize(("rim", "offset"), [(0.6, (0, 0)), (0.6, (3, -4)), (0.9, (0, 0))])
def test_tissue_stays_in_the_window(rim, offset):
    images = np.roll(head(rim=rim)[0], offset, (2, 3))
    rows, columns = (axis[images.any(axis=(0, 1))] for axis in grid())
    rng = np.random.default_rng(0)
    scales = []
    for _ in range(200):
        affine = draw_affine(images, rng.random(4), WIDE)
        row, column = forward(affine, rows, columns)
        assert min(row.min(), column.min()) > -1e-9
        assert row.max() < H - 1 + 1e-9
        assert column.max() < W - 1 + 1e-9
        scales.append(affine.scale)
    assert max(scales) > (1.19 if rim < 0.8 else 1.05)


def test_tissue_that_does_not_fit_is_centred():
    images = np.ones((4, 3, H, W), np.float32)
    config = dataclasses.replace(WIDE, max_scale=0.01)
    for place in ([0.9, 0.9, 0.1, 0.9], [0.1, 0.5, 0.9, 0.1]):
        affine = draw_affine(images, np.array(place), config)
        assert affine.scale == pytest.approx(1 / 1.01)
        assert affine.shift == pytest.approx((0, 0), abs=1e-9)


def test_a_window_without_tissue_stays_empty():
    images = np.zeros((4, 3, H, W), np.float32)
    got, masks = augment(images, NO_TUMOUR, np.random.default_rng(0), ALWAYS)
    assert not got.any()
    assert not masks.any()
