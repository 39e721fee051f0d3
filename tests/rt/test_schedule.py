"""The trained schedule, its one-based times and the levels that a run visits."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tadiff_rt.errors import UsageError
from tadiff_rt.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.linear()


@pytest.mark.parametrize(
    ("t", "alpha_bar"),
    [(1, 0.9999), (600, 0.025879), (666, 0.011133), (1000, 4.0358e-5)],
)
def test_alpha_bar_is_that_of_training_and_one_based(t: int, alpha_bar: float):
    """Values printed by the published code for alphas_cumprod[t - 1], five digits."""
    assert SCHEDULE.alpha_bar(t) == pytest.approx(alpha_bar, rel=5e-5)


def test_alpha_bar_is_the_running_product():
    product = 1.0
    for t in range(1, 1001):
        product *= 1 - (1e-4 + (2e-2 - 1e-4) * (t - 1) / 999)
        assert SCHEDULE.alpha_bar(t) == pytest.approx(product, rel=1e-12)


def test_integer_times_return_the_table_entry_exactly():
    times = np.arange(1.0, 1001)
    np.testing.assert_array_equal(SCHEDULE.alpha_bar(times), SCHEDULE.alphas_cumprod)


@pytest.mark.parametrize("t", [1, 500, 999])
def test_log_alpha_bar_is_linear_between_trained_times(t: int):
    low, high = SCHEDULE.alpha_bar(t), SCHEDULE.alpha_bar(t + 1)
    assert SCHEDULE.alpha_bar(t + 0.5) == pytest.approx(math.sqrt(low * high), rel=1e-13)
    assert SCHEDULE.alpha_bar(t + 0.25) == pytest.approx(low**0.75 * high**0.25, rel=1e-13)


@pytest.mark.parametrize("t", [0, 0.99, 1000.01, -3, math.nan])
def test_alpha_bar_rejects_times_outside_training(t: float):
    with pytest.raises(UsageError, match=r"TD3045: t must be in 1 to 1000 \(one-based\), got"):
        SCHEDULE.alpha_bar(t)


@pytest.mark.parametrize("t", [1, 10.7, 1000])
def test_lam_is_half_the_log_snr(t: float):
    a = SCHEDULE.alpha_bar(t)
    assert SCHEDULE.lam(t) == pytest.approx(math.log(math.sqrt(a) / math.sqrt(1 - a)), rel=1e-10)


@given(st.sampled_from([1, 2, 50, 1000]), st.floats(0, 1))
def test_t_of_lam_inverts_lam(T: int, fraction: float):
    schedule = NoiseSchedule.linear(T)
    t = 1 + fraction * (T - 1)
    assert schedule.t_of_lam(schedule.lam(t)) == pytest.approx(t, abs=1e-8)


def test_t_of_lam_rejects_levels_outside_training():
    with pytest.raises(UsageError, match=r"TD3045: lam must be in -5\.05"):
        SCHEDULE.t_of_lam(5.0)


@pytest.mark.parametrize("num_steps", [1, 2, 20, 50, 600, 1000])
@pytest.mark.parametrize("grid", ["logsnr", "trailing"])
def test_fewer_steps_never_rebuild_the_schedule(num_steps: int, grid: str):
    """A schedule rebuilt on 50 steps starts at alpha-bar 0.60, mostly image to the network."""
    levels = SCHEDULE.levels(num_steps, grid)
    assert levels.t[0] == 1000
    assert levels.alpha[0] ** 2 == pytest.approx(4.0358e-5, rel=5e-5)
    table = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))
    for t, alpha, sigma in zip(levels.t, levels.alpha, levels.sigma, strict=True):
        log_a = np.interp(t, np.arange(1, 1001), np.log(table))
        assert alpha**2 == pytest.approx(math.exp(log_a), rel=1e-11)
        assert sigma**2 == pytest.approx(-math.expm1(log_a), rel=1e-9)


@given(st.sampled_from([1, 2, 7, 600, 1000]), st.data(), st.sampled_from(["logsnr", "trailing"]))
def test_levels_fall_from_T_and_stay_in_training(T: int, data: st.DataObject, grid: str):
    num_steps = data.draw(st.integers(1, T))
    levels = NoiseSchedule.linear(T).levels(num_steps, grid)
    assert len(levels.t) == len(levels.alpha) == len(levels.sigma) == num_steps
    assert levels.t[0] == T
    assert levels.t[-1] >= 1
    assert all(a > b for a, b in itertools.pairwise(levels.t))


@pytest.mark.parametrize("num_steps", [2, 5, 20, 200])
def test_logsnr_grid_is_even_in_lambda_from_T_to_1(num_steps: int):
    levels = SCHEDULE.levels(num_steps)
    assert (levels.t[0], levels.t[-1]) == (1000.0, 1.0)
    lam = np.log(np.array(levels.alpha) / np.array(levels.sigma))
    first, last = 0.5 * math.log(4.03582977e-5 / (1 - 4.03582977e-5)), 0.5 * math.log(9999)
    np.testing.assert_allclose(lam, np.linspace(first, last, num_steps), atol=1e-8)


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [(1, (1000,)), (3, (1000, 667, 333)), (4, (1000, 750, 500, 250)), (7, None)],
)
def test_trailing_grid_is_that_of_diffusers(num_steps: int, expected: tuple[int, ...] | None):
    """diffusers: arange(T, 0, -T / n).round() - 1, there zero-based."""
    expected = expected or tuple(np.arange(1000, 0, -1000 / num_steps).round())
    assert SCHEDULE.levels(num_steps, "trailing").t == expected


def test_full_grid_visits_every_trained_time_once():
    assert SCHEDULE.levels(1000, "all").t == tuple(range(1000, 0, -1))


@pytest.mark.parametrize("num_steps", [0, -1, 1001, 10**9, 2.5, "20"])
def test_levels_rejects_impossible_step_counts(num_steps: object):
    with pytest.raises(UsageError, match="num_steps must be an integer in 1 to 1000") as error:
        SCHEDULE.levels(num_steps)  # type: ignore[arg-type]
    assert error.value.code == "TD3010"
    assert f"got {num_steps!r}" in error.value.message


def test_full_grid_rejects_fewer_steps():
    with pytest.raises(UsageError, match="TD3010: num_steps must be an integer in 1000 to 1000"):
        SCHEDULE.levels(50, "all")


def test_levels_rejects_an_unknown_grid():
    with pytest.raises(UsageError, match="TD3041: grid must be one of logsnr, trailing, all, got"):
        SCHEDULE.levels(20, "karras")


@pytest.mark.parametrize(
    "betas", [[], [0.0, 0.1], [0.1, 1.0], [0.1, -0.1], [0.1, math.nan], [[0.1, 0.2]]]
)
def test_rejects_betas_that_are_no_schedule(betas: list[float]):
    with pytest.raises(UsageError, match="TD3045: the noise schedule must be"):
        NoiseSchedule.from_betas(betas)


def test_schedule_is_read_only_and_keeps_its_own_copy():
    table = np.array([0.9, 0.5])
    schedule = NoiseSchedule(table)
    table[0] = 0.1
    assert schedule.alpha_bar(1) == 0.9
    with pytest.raises(ValueError, match="read-only"):
        schedule.alphas_cumprod[0] = 0.1
