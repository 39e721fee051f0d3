"""Growth against closed forms: logistic, heat kernel, front speed, linear-quadratic survival."""

import numpy as np
import pytest

from tadiff_train.phantom.growth import Growth, TumourParameters, fraction_days, grow_interval

PARAMETERS = TumourParameters(
    rho_per_day=0.02,
    d_white_mm2_per_day=0.1,
    d_grey_mm2_per_day=0.01,
    alpha_per_gy=0.03,
    beta_per_gy2=0.004,
    tmz_factor=0.4,
)


def still(shape: tuple[int, ...] = (3, 4, 5)) -> Growth:
    """Growth without diffusion."""
    return Growth(np.zeros(shape, np.float32), 1.0)


def logistic(u0: np.ndarray, rho_t: float) -> np.ndarray:
    return u0 * np.exp(rho_t) / (1 + u0 * np.expm1(rho_t))


def moments(u: np.ndarray, spacing_mm: float) -> tuple[float, list[float]]:
    """Mass and the variance along each axis, in mm^2."""
    u = u.astype(np.float64)
    variances = []
    for axis in range(3):
        profile = u.sum(tuple(a for a in range(3) if a != axis)) / u.sum()
        x = np.arange(len(profile)) * spacing_mm
        mean = (x * profile).sum()
        variances.append(float((((x - mean) ** 2) * profile).sum()))
    return float(u.sum()), variances


def test_without_diffusion_every_voxel_grows_logistically():
    u0 = np.random.default_rng(0).uniform(0.001, 0.99, (3, 4, 5)).astype(np.float32)
    u = still().advance(u0, 75, 0.03)
    np.testing.assert_allclose(u, logistic(u0.astype(np.float64), 0.03 * 75), rtol=2e-5)


def test_without_reaction_a_blob_spreads_like_the_heat_kernel():
    """Variance grows by 2 D t along each axis, and no cells appear or vanish."""
    d, spacing, days = 0.3, 2.0, 160
    grid = np.indices((45, 41, 43)) * spacing
    centre = np.array([44, 40, 42.0]).reshape(3, 1, 1, 1)
    widths = np.array([4.0, 5.0, 6.0]).reshape(3, 1, 1, 1)
    u0 = np.exp(-((grid - centre) ** 2 / (2 * widths**2)).sum(0)).astype(np.float32)
    mass0, before = moments(u0, spacing)
    u = Growth(np.full(u0.shape, d, np.float32), spacing).advance(u0, days, 0.0)
    mass, after = moments(u, spacing)
    assert mass == pytest.approx(mass0, rel=1e-5)
    growth = np.subtract(after, before)
    np.testing.assert_allclose(growth, 2 * d * days, rtol=0.02)


def test_front_advances_at_twice_the_root_of_d_rho():
    """Kolmogorov, Petrovsky and Piskunov 1937; measured late, when the start is forgotten."""
    d, rho, spacing = 0.8, 0.04, 1.0
    u = np.zeros((300, 2, 2), np.float32)
    u[:10] = 1
    growth = Growth(np.full(u.shape, d, np.float32), spacing)

    def front(u: np.ndarray) -> float:
        return float(np.interp(-0.5, -u[:, 0, 0], np.arange(len(u)) * spacing))

    u = growth.advance(u, 250, rho)
    start = front(u)
    u = growth.advance(u, 350, rho)
    assert (front(u) - start) / 350 == pytest.approx(2 * np.sqrt(d * rho), rel=0.08)


def test_flux_between_two_voxels_uses_their_mean_d():
    """Two voxels exchange cells at rate D/h^2, so their difference decays as exp(-2 D t / h^2)."""
    d = np.array([0.2, 0.02], np.float32).reshape(2, 1, 1)
    growth = Growth(d, 2.0)
    growth.max_step_days = 0.05
    u = growth.advance(np.array([1, 0.2], np.float32).reshape(2, 1, 1), 20, 0.0)
    expected = 0.8 * np.exp(-2 * 0.11 / 4 * 20)
    assert float(u[0, 0, 0] - u[1, 0, 0]) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_no_cell_crosses_a_wall_of_csf(axis: int):
    shape = [9, 9, 9]
    shape[axis] = 13
    d = np.full(shape, 0.2, np.float32)
    np.moveaxis(d, axis, 0)[6] = 0
    u0 = np.zeros(shape, np.float32)
    np.moveaxis(u0, axis, 0)[2] = 0.5
    u = Growth(d, 1.0).advance(u0, 200, 0.0)
    assert not np.moveaxis(u, axis, 0)[6:].any()
    assert u.sum(dtype=np.float64) == pytest.approx(u0.sum(dtype=np.float64), rel=1e-5)
    np.testing.assert_allclose(np.moveaxis(u, axis, 0)[5], 0.5 / 6, rtol=0.02)


def test_the_box_around_the_tumour_does_not_change_the_result():
    """A tumour in a corner of a wide grid and the same one in a grid computed as a whole."""
    u0 = np.zeros((40, 8, 8), np.float32)
    u0[4:7, 2:5, 3:6] = 0.8
    wide = np.zeros((400, 8, 8), np.float32)
    wide[:40] = u0
    small, large = (
        Growth(np.full(u.shape, 0.2, np.float32), 1.0).advance(u, 60, 0.03) for u in (u0, wide)
    )
    np.testing.assert_allclose(large[:30], small[:30], atol=2e-6)


def test_steps_stay_below_the_stability_bound():
    """With D near the bound of a 2-day step, an unstable scheme would overshoot."""
    u0 = np.zeros((21, 21, 21), np.float32)
    u0[10, 10, 10] = 1
    u = Growth(np.full(u0.shape, 1.5, np.float32), 1.0).advance(u0, 30, 0.0)
    assert u.min() >= 0
    assert u.max() < 0.01


def test_advance_leaves_its_input_alone():
    u0 = np.full((3, 4, 5), 0.3, np.float32)
    still().advance(u0, 10, 0.1)
    assert (u0 == np.float32(0.3)).all()


def test_thirty_fractions_on_weekdays():
    days = fraction_days(5, 0, 100)
    assert len(days) == 30
    assert days[:6] == [5, 6, 7, 8, 9, 12]
    assert days[-1] == 5 + 39


def test_a_full_course_kills_as_the_linear_quadratic_model_says():
    """Without proliferation: exp(-30 (alpha 2 Gy + beta 4 Gy^2)), however the course is cut."""
    parameters = TumourParameters(0.0, 0.0, 0.0, 0.03, 0.004, 0.4)
    u0 = np.full((3, 4, 5), 0.9, np.float32)
    u = u0
    for start, end in ((10, 17), (17, 18), (18, 51), (51, 90)):
        u = grow_interval(
            still(), u, parameters, start=start, end=end, treatment="CRT", course_start=10
        )
    np.testing.assert_allclose(u, 0.9 * np.exp(-30 * (0.03 * 2 + 0.004 * 4)), rtol=1e-4)


@pytest.mark.parametrize(("treatment", "factor"), [("none", 1.0), ("TMZ", 0.4)])
def test_treatment_sets_the_proliferation(treatment: str, factor: float):
    u0 = np.full((3, 4, 5), 0.2, np.float32)
    u = grow_interval(
        still(), u0, PARAMETERS, start=30, end=80, treatment=treatment, course_start=30
    )
    np.testing.assert_allclose(u, logistic(np.float64(0.2), factor * 0.02 * 50), rtol=2e-5)
