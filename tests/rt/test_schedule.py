"""The trained schedule, its one-based times and the levels that a run visits."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tadiff_rt.errors import UsageError
from tadiff_rt.schedule import GRIDS, NoiseSchedule

SCHEDULE = NoiseSchedule.linear()
SHORT_GRIDS = tuple(grid for grid in GRIDS if grid != "all")


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
@pytest.mark.parametrize("grid", SHORT_GRIDS)
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


@given(
    st.sampled_from([1, 2, 7, 600, 1000]),
    st.data(),
    st.sampled_from(SHORT_GRIDS),
    st.floats(0, 0.99),
    st.booleans(),
)
def test_levels_fall_from_the_start_and_stay_in_training(
    T: int, data: st.DataObject, grid: str, start: float, round_times: bool
):
    schedule = NoiseSchedule.linear(T)
    low, high = schedule.lam(float(T)), schedule.lam(1.0)
    start_lam = low + start * (high - low) if start and T > 1 else None
    first = T if start_lam is None else schedule.t_of_lam(start_lam)
    num_steps = data.draw(st.integers(1, int(first)))
    levels = schedule.levels(num_steps, grid, start_lam, round_times=round_times)
    assert len(levels.t) == len(levels.alpha) == len(levels.sigma) == num_steps
    whole = round_times or grid in ("trailing", "linspace")
    assert levels.t[0] == pytest.approx(int(first) if whole else first)
    assert levels.t[-1] >= 1
    assert not whole or all(t == int(t) for t in levels.t)
    assert all(a > b for a, b in itertools.pairwise(levels.t))
    np.testing.assert_allclose(np.square(levels.alpha), schedule.alpha_bar(np.array(levels.t)))
    np.testing.assert_allclose(np.square(levels.alpha) + np.square(levels.sigma), 1.0)


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


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [(1, (1000,)), (3, (1000, 667, 334)), (5, (1000, 800, 600, 401, 201))],
)
def test_linspace_grid_leaves_out_the_last_time(num_steps: int, expected: tuple[int, ...]):
    """1000, 800.2, 600.4, 400.6, 200.8 and not 1."""
    assert SCHEDULE.levels(num_steps, "linspace").t == expected


@pytest.mark.parametrize("start_lam", [None, -2.0])
@pytest.mark.parametrize("num_steps", [2, 5, 20, 200])
def test_quadratic_grid_is_even_in_the_root_of_t(num_steps: int, start_lam: float | None):
    t = SCHEDULE.levels(num_steps, "quadratic", start_lam).t
    first = 1000.0 if start_lam is None else SCHEDULE.t_of_lam(start_lam)
    assert (t[0], t[-1]) == (first, 1.0)
    np.testing.assert_allclose(np.diff(np.sqrt(t)), (1 - math.sqrt(first)) / (num_steps - 1))


@pytest.mark.parametrize("start_lam", [None, -2.0])
@pytest.mark.parametrize("num_steps", [2, 5, 20, 200])
def test_karras_grid_is_their_formula(num_steps: int, start_lam: float | None):
    """Karras et al. 2022, Eq. (5): (max^(1/7) + i/(n−1)·(min^(1/7) − max^(1/7)))^7."""
    levels = SCHEDULE.levels(num_steps, "karras", start_lam)
    sigma_max = math.exp(5.0588 if start_lam is None else 2.0)
    sigma_min = math.sqrt(1e-4 / (1 - 1e-4))
    ramp = np.arange(num_steps) / (num_steps - 1)
    expected = (sigma_max ** (1 / 7) + ramp * (sigma_min ** (1 / 7) - sigma_max ** (1 / 7))) ** 7
    sigmas = np.array(levels.sigma) / np.array(levels.alpha)
    np.testing.assert_allclose(sigmas, expected, rtol=1e-4)
    assert levels.t[-1] == 1.0


@pytest.mark.parametrize(
    ("grid", "second", "last"), [("trailing", 750, 50), ("linspace", 751, 51)]
)
def test_uniform_grids_from_a_given_level_start_there(grid: str, second: int, last: int):
    """From t = 800.5 to 0 in 16 parts, 750.47 and 50.03, or to 1, 750.53 and 50.97."""
    t = SCHEDULE.levels(16, grid, SCHEDULE.lam(800.5)).t
    assert (t[0], t[1], t[-1]) == (800, second, last)


@pytest.mark.parametrize("grid", SHORT_GRIDS)
def test_one_evaluation_is_at_the_start(grid: str):
    assert SCHEDULE.levels(1, grid).t == (1000.0,)
    assert SCHEDULE.levels(1, grid, -2.0).t[0] == pytest.approx(SCHEDULE.t_of_lam(-2.0), abs=1)


def distinct_whole_times(t: list[float], most: int) -> list[int]:
    """Rounded; from the end each moves up to pass the next; from the start down under the cap."""
    whole = [min(max(round(value), 1), most) for value in t]
    for i in reversed(range(len(whole) - 1)):
        whole[i] = max(whole[i], whole[i + 1] + 1)
    whole[0] = min(whole[0], most)
    for i in range(1, len(whole)):
        whole[i] = min(whole[i], whole[i - 1] - 1)
    return whole


@given(st.sampled_from([1, 2, 7, 60, 1000]), st.data(), st.sampled_from(SHORT_GRIDS))
def test_rounded_times_move_no_further_than_they_must(T: int, data: st.DataObject, grid: str):
    schedule = NoiseSchedule.linear(T)
    num_steps = data.draw(st.integers(1, T))
    levels = schedule.levels(num_steps, grid)
    expected = tuple(distinct_whole_times(list(levels.t), T))
    assert schedule.levels(num_steps, grid, round_times=True).t == expected
    assert schedule.rounded(levels).t == expected


def test_as_many_rounded_times_as_there_are_is_all_of_them():
    for grid in SHORT_GRIDS:
        assert SCHEDULE.levels(1000, grid, round_times=True).t == tuple(range(1000, 0, -1))


def test_levels_at_reads_fractional_times():
    levels = SCHEDULE.levels_at([900, 31.5, 1])
    assert levels.t == (900.0, 31.5, 1.0)
    a = SCHEDULE.alphas_cumprod
    alpha_bar = [a[899], math.sqrt(a[30] * a[31]), a[0]]
    np.testing.assert_allclose(levels.alpha, np.sqrt(alpha_bar), rtol=1e-13)
    np.testing.assert_allclose(levels.sigma, np.sqrt(1 - np.array(alpha_bar)), rtol=1e-12)


@pytest.mark.parametrize(
    "times", [[], [5, 5], [5, 6], [[5, 4]], 5.0, [5, 0.5], [1001, 5], [math.nan], [5, math.nan]]
)
def test_levels_at_rejects_times_that_do_not_fall_in_training(times: object):
    with pytest.raises(UsageError, match="TD3045"):
        SCHEDULE.levels_at(times)  # type: ignore[arg-type]


def test_full_grid_visits_every_trained_time_once():
    assert SCHEDULE.levels(1000, "all").t == tuple(range(1000, 0, -1))


def test_full_grid_from_a_given_level_starts_below_it():
    lam = SCHEDULE.lam(456.7)
    assert SCHEDULE.levels(456, "all", lam).t == tuple(range(456, 0, -1))
    with pytest.raises(UsageError, match="TD3010: num_steps must be an integer in 456 to 456"):
        SCHEDULE.levels(1000, "all", lam)


@pytest.mark.parametrize("start_lam", [-9.0, -5.06, 4.61, 9.0, math.nan, math.inf])
@pytest.mark.parametrize("grid", GRIDS)
def test_levels_rejects_starts_outside_training(start_lam: float, grid: str):
    with pytest.raises(UsageError, match=r"TD3047: start_lam must be in -5\.059 to 4\.605, got"):
        SCHEDULE.levels(20, grid, start_lam)


def test_levels_below_a_given_level_are_fewer():
    with pytest.raises(UsageError, match="TD3010: num_steps must be an integer in 1 to 258") as e:
        SCHEDULE.levels(300, start_lam=SCHEDULE.lam(258.9))
    assert "trained on 1000 timesteps" in str(e.value.fix)


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
    with pytest.raises(UsageError, match=r"TD3041: grid must be one of logsnr, .*got 'uniform'"):
        SCHEDULE.levels(20, "uniform")


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
