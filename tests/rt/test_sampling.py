"""How an ensemble is asked for: each option, its range and its error, and the plan they make."""

import math

import numpy as np
import pytest

from tadiff_rt.errors import TadiffError, UsageError
from tadiff_rt.manifest import OptimisedLevels
from tadiff_rt.noise import NoiseSource
from tadiff_rt.runner import SampleSize
from tadiff_rt.sampling import SamplingRequest, parse_share
from tadiff_rt.schedule import GRIDS, NoiseSchedule
from tadiff_rt.solvers import SOLVERS, make_plan, plan_at

SCHEDULE = NoiseSchedule.linear()


def asked(**fields) -> SamplingRequest:
    return SamplingRequest(**fields)


def codes(fields) -> list[str]:
    return [finding.code for finding in asked(**fields).findings()]


def test_without_options_a_request_is_five_samples_of_the_default_run():
    request = asked()
    assert request.findings() == []
    assert request.size() == SampleSize(5)
    assert request.noise() == NoiseSource(0)
    plan = request.plan(SCHEDULE, None)
    np.testing.assert_array_equal(plan.table, make_plan(SCHEDULE, "dpmpp_2m", 20).table)


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"samples": "1"}, SampleSize(1)),
        ({"samples": 10_000}, SampleSize(10_000)),
        ({"samples": "auto"}, SampleSize(64, 0.1)),
        ({"samples": "auto", "volume_ci": "5%"}, SampleSize(64, 0.05)),
        ({"samples": "auto", "volume_ci": 0.25, "max_samples": "12"}, SampleSize(12, 0.25)),
        ({"samples": "auto", "max_samples": 1}, SampleSize(1, 0.1)),
        ({"samples": "auto", "max_samples": "10000"}, SampleSize(10_000, 0.1)),
    ],
)
def test_the_number_of_samples(fields, size):
    assert asked(**fields).findings() == []
    assert asked(**fields).size() == size


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("10%", 0.1),
        ("0.1", 0.1),
        ("2.5%", 0.025),
        ("0.1%", 0.001),
        ("0.001", 0.001),
        ("100%", 1.0),
        ("1", 1.0),
        (1, 1.0),
        (0.1, 0.1),
        (1 / 3, 1 / 3),
        (0.1 + 0.2, 0.1 + 0.2),
        (np.float64(0.07), 0.07),
        (math.nextafter(0.001, 1), math.nextafter(0.001, 1)),
    ],
)
def test_a_share_is_a_fraction_or_a_percentage(text, share):
    assert parse_share(text) == pytest.approx(share, rel=1e-15)


@pytest.mark.parametrize(
    "text",
    [
        *("0", "0%", "0.09%", "0.0009", "101%", "1.01", "10", "-10%", "+10%", "1e-1", ".1", "1."),
        *("10 %", " 10%", "10%%", "%", "", "nan", "inf", "auto", "10percent", "\uff11%", "1_0%"),
        *(math.nan, math.inf, -0.1, 0.0, True),
    ],
)
def test_other_shares_are_refused(text):
    with pytest.raises(UsageError, match=r"must be in 0\.1% to 100%") as e:
        parse_share(text)
    assert (e.value.code, e.value.where, e.value.fix) == (
        "TD3021",
        "--volume-ci",
        "for example 10%",
    )


MALFORMED = [
    ({"samples": 0}, ["TD3015"]),
    ({"samples": "Auto"}, ["TD3015"]),
    ({"samples": "auto", "max_samples": 0}, ["TD3015"]),
    ({"samples": "auto", "max_samples": "10001"}, ["TD3015"]),
    ({"samples": "auto", "max_samples": "auto"}, ["TD3015"]),
    ({"samples": "auto", "volume_ci": "0%"}, ["TD3021"]),
    ({"samples": 5, "volume_ci": "10%"}, ["TD3021"]),
    ({"samples": "5", "volume_ci": 0.1}, ["TD3021"]),
    ({"steps": 0}, ["TD3016"]),
    ({"seed": -1}, ["TD3017"]),
    ({"grid": "even"}, ["TD3041"]),
    ({"grid": ""}, ["TD3041"]),
    ({"solver": "euler"}, ["TD3042"]),
    ({"coherence": 1.0}, ["TD3048"]),
    ({"coherence": -0.1}, ["TD3048"]),
    ({"coherence": math.nan}, ["TD3048"]),
    ({"latin": True, "samples": "auto"}, ["TD3049"]),
    ({"latin": True, "samples": 1}, ["TD3049"]),
    ({"latin": True, "samples": 4097}, ["TD3049"]),
    ({"latin": True, "coherence": 0.5}, ["TD3049"]),
    ({"samples": 0, "steps": 0, "seed": -1}, ["TD3015", "TD3016", "TD3017"]),
    ({"samples": 0, "grid": "x", "solver": "y"}, ["TD3015", "TD3041", "TD3042"]),
    ({"grid": "x", "coherence": 2.0}, ["TD3041", "TD3048"]),
]


@pytest.mark.parametrize(("fields", "expected"), MALFORMED)
def test_every_problem_is_found_once(fields, expected):
    assert codes(fields) == expected


@pytest.mark.parametrize(
    ("fields", "where", "what"),
    [
        ({"samples": "auto", "max_samples": 0}, "--max-samples", "from 1 to 10000, got '0'"),
        ({"samples": 5, "volume_ci": "10%"}, "--volume-ci", "fixed number of samples"),
        ({"samples": "auto", "latin": True}, "--latin", "how many samples"),
        (
            {"grid": "even"},
            "--grid",
            f"{', '.join((*GRIDS, 'optimised', 'distilled', 'auto'))}, got 'even'",
        ),
        ({"solver": "euler"}, "--solver", f"one of {', '.join((*SOLVERS, 'auto'))}, got 'euler'"),
    ],
)
def test_a_problem_names_its_option_and_what_it_accepts(fields, where, what):
    (finding,) = asked(**fields).findings()
    assert finding.where == where
    assert what in finding.message


def test_hostile_names_are_quoted():
    (finding,) = asked(solver="\x1b[2J" * 1000).findings()
    assert "\x1b" not in finding.message
    assert len(finding.message) < 400


@pytest.mark.parametrize(
    ("fields", "noise"),
    [
        ({"seed": "9"}, NoiseSource(9)),
        ({"coherence": 0.99}, NoiseSource(0, 0.99)),
        ({"latin": True, "samples": 4096}, NoiseSource(0, latin=4096)),
        ({"latin": True}, NoiseSource(0, latin=5)),
    ],
)
def test_the_noise(fields, noise):
    assert asked(**fields).findings() == []
    assert asked(**fields).noise() == noise


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("round_times", [False, True])
@pytest.mark.parametrize("start_lam", [None, -2.0])
def test_the_plan_is_that_of_the_parts(solver, round_times, start_lam):
    request = asked(solver=solver, steps="7", grid="trailing", round_times=round_times)
    expected = make_plan(SCHEDULE, solver, 7, "trailing", start_lam, round_times=round_times)
    got = request.plan(SCHEDULE, start_lam)
    np.testing.assert_array_equal(got.table, expected.table)
    assert (got.solver, got.grid) == (solver, "trailing")


def test_a_schedule_has_fewer_steps_than_a_request_may_ask_for():
    short = NoiseSchedule.linear(50)
    assert asked(steps=51).findings() == []
    assert asked(steps=50).plan(short, None).num_steps == 50
    with pytest.raises(UsageError, match="from 1 to 50, got '51'") as e:
        asked(steps=51).plan(short, None)
    assert e.value.code == "TD3016"


def levels(solver="dpmpp_2m", times=(1000.0, 700.5, 220.25, 1.5), start_lam=None):
    return OptimisedLevels(
        solver=solver,
        start_lam=start_lam,
        times=times,
        distance={},
        spread={},
        searched_on="nothing",
    )


HELD = (levels("ddim"), levels(), levels(times=(990.0, 300.0, 2.0)), levels(start_lam=-2.0))


@pytest.mark.parametrize(
    ("solver", "steps", "start_lam", "which"),
    [
        ("ddim", 4, None, 0),
        ("dpmpp_2m", 4, None, 1),
        ("dpmpp_2m", "3", None, 2),
        ("dpmpp_2m", 4, -2.0, 3),
    ],
)
def test_optimised_levels_are_run_exactly(solver, steps, start_lam, which):
    request = asked(solver=solver, steps=steps, grid="optimised")
    assert request.findings() == []
    plan = request.plan(SCHEDULE, start_lam, HELD)
    assert plan.t.tolist() == list(HELD[which].times)
    assert (plan.solver, plan.grid) == (solver, "optimised")
    np.testing.assert_array_equal(plan.table, plan_at(SCHEDULE, solver, HELD[which].times).table)


@pytest.mark.parametrize(
    ("solver", "steps", "start_lam", "held"),
    [
        ("dpmpp_2m", 5, None, HELD),
        ("unipc_2", 4, None, HELD),
        ("ddim", 4, -2.0, HELD),
        ("dpmpp_2m", 3, -2.0, HELD),
        ("dpmpp_2m", 4, -2.5, HELD),
        ("dpmpp_2m", 4, None, ()),
    ],
)
def test_levels_of_another_run_are_not_taken(solver, steps, start_lam, held):
    with pytest.raises(UsageError, match="no optimised levels") as e:
        asked(solver=solver, steps=steps, grid="optimised").plan(SCHEDULE, start_lam, held)
    assert (e.value.code, e.value.where) == ("TD3056", "--grid")
    assert f"for {solver} with {steps} steps" in e.value.message
    assert ("ddim with 4 steps, dpmpp_2m with 4 steps" if held else "none") in e.value.message
    assert e.value.fix.endswith(f"--optimise --solver {solver} --steps {steps}")


def test_levels_are_not_rounded():
    with pytest.raises(UsageError, match="cannot be rounded") as e:
        asked(steps=4, grid="optimised", round_times=True).plan(SCHEDULE, None, HELD)
    assert (e.value.code, e.value.where) == ("TD3058", "--round-times")


def test_levels_are_for_their_own_grid_only():
    plan = asked(steps=4).plan(SCHEDULE, None, HELD)
    np.testing.assert_array_equal(plan.table, make_plan(SCHEDULE, "dpmpp_2m", 4).table)


def test_levels_that_do_not_fall_are_refused():
    """A damaged manifest; times outside the schedule too."""
    for times in ((1000.0, 2.0, 700.0, 1.0), (1001.0, 3.0, 2.0, 1.0), (3.0, 2.0, 1.0, 0.5)):
        with pytest.raises(TadiffError) as e:
            asked(steps=4, grid="optimised").plan(SCHEDULE, None, (levels(times=times),))
        assert e.value.code == "TD3045"


def test_the_limit_of_an_open_number_is_not_ignored():
    assert codes({"samples": 5, "max_samples": "rubbish"}) == ["TD3015"]
