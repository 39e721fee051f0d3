"""Rendered contrast: what a radiologist expects of T1, T1 with contrast and FLAIR."""

import numpy as np
import pytest

from tadiff_train.phantom.anatomy import Anatomy, load_anatomy
from tadiff_train.phantom.render import Rendered, Renderer, tumour_mask

pytest.importorskip("nilearn", reason="the template maps are in nilearn")


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return load_anatomy(96)


@pytest.fixture(scope="module")
def densities(anatomy: Anatomy) -> np.ndarray:
    """Cubes of 20 mm of oedema, enhancing tumour and necrosis in a healthy brain."""
    u = np.zeros(anatomy.t1.shape, np.float32)
    for x, density in ((26, 0.35), (44, 0.75), (62, 0.97)):
        u[x : x + 10, 60:70, 45:55] = density
    return u


@pytest.fixture(scope="module")
def rendered(anatomy: Anatomy, densities: np.ndarray) -> Rendered:
    return Renderer(anatomy).render(densities, np.random.default_rng(5))


def median(rendered: Rendered, modality: str, where: np.ndarray) -> float:
    return float(np.median(rendered.images[modality][where]))


def test_background_is_exactly_zero_and_brain_is_not(anatomy: Anatomy, rendered: Rendered):
    for image in rendered.images.values():
        assert image.dtype == np.int16
        np.testing.assert_array_equal(image > 0, anatomy.brain)
        assert 600 < np.percentile(image[image > 0], 99) < 3000


@pytest.mark.parametrize(
    ("modality", "dark_to_bright"),
    [("t1", "csf gm wm"), ("t1c", "csf gm wm"), ("flair", "csf wm gm")],
)
def test_tissues_have_the_order_of_their_sequence(
    anatomy: Anatomy, rendered: Rendered, densities: np.ndarray, modality: str, dark_to_bright: str
):
    levels = [
        median(rendered, modality, (getattr(anatomy, tissue) > 0.9) & (densities == 0))
        for tissue in dark_to_bright.split()
    ]
    assert levels[0] < 0.6 * levels[1]
    assert 1.1 * levels[1] < levels[2]


def test_tumour_classes_have_their_contrast(
    anatomy: Anatomy, rendered: Rendered, densities: np.ndarray
):
    white = (anatomy.wm > 0.9) & (densities == 0)
    oedema, rim, core = (np.isclose(densities, d) & anatomy.brain for d in (0.35, 0.75, 0.97))
    t1, t1c, flair = (
        {
            n: median(rendered, m, w)
            for n, w in (("w", white), ("o", oedema), ("r", rim), ("c", core))
        }
        for m in ("t1", "t1c", "flair")
    )
    assert t1["c"] < t1["o"] < t1["w"]
    assert t1c["r"] > 1.25 * t1c["w"] > 2 * t1c["c"]
    assert t1c["r"] / t1c["w"] > 1.5 * t1["r"] / t1["w"]
    assert flair["o"] > 1.25 * flair["w"]
    assert flair["c"] < 0.8 * flair["w"]


def test_labels_follow_the_published_convention():
    u = np.array([0, 0.15, 0.17, 0.59, 0.61, 0.89, 0.91, 1], np.float32).reshape(8, 1, 1)
    brain = np.ones(u.shape, bool)
    assert tumour_mask(u, brain).ravel().tolist() == [0, 0, 1, 1, 3, 3, 2, 2]
    assert not tumour_mask(u, ~brain).any()


def test_noise_is_one_to_three_percent_of_white_matter(anatomy: Anatomy):
    """Two renderings that share gain and bias would hide it; so neighbours are compared."""
    image = Renderer(anatomy).render(anatomy.t1 * 0, np.random.default_rng(8)).images["flair"]
    deep = np.argwhere((anatomy.wm > 0.99) & (np.roll(anatomy.wm, 1, 0) > 0.99)).T
    deep = tuple(deep)
    here = image[deep].astype(float)
    there = image[deep[0] - 1, deep[1], deep[2]]
    sigma = np.std(here - there) / np.sqrt(2)
    assert 0.009 * 800 < sigma < 0.033 * 800


def test_gain_and_bias_stay_in_their_range(anatomy: Anatomy):
    """Large-scale variation of white matter between sessions: gain 0.9-1.1, bias up to 10 %."""
    renderer = Renderer(anatomy)
    rng = np.random.default_rng(9)
    white = anatomy.wm > 0.95
    levels = [median(renderer.render(anatomy.t1 * 0, rng), "t1", white) for _ in range(8)]
    assert 0.8 * 800 < min(levels) < max(levels) < 1.2 * 800
    assert max(levels) / min(levels) > 1.05


def test_the_same_stream_gives_the_same_images(anatomy: Anatomy, densities: np.ndarray):
    a, b = (Renderer(anatomy).render(densities, np.random.default_rng(5)) for _ in range(2))
    for modality, image in a.images.items():
        np.testing.assert_array_equal(image, b.images[modality])
