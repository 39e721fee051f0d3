"""The search for levels, each stage against brute force, and what becomes of its result.

`Ideal` stands for a network where only the search matters: the exact denoiser of a Gaussian
around the last scan, so that distances mean something and a run takes milliseconds.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import shutil

import numpy as np
import pytest

from tadiff_rt.bundle import MANIFEST, open_bundle
from tadiff_rt.certify import command, network, optimise, path
from tadiff_rt.certify.analytic import mask_error
from tadiff_rt.certify.network import Sample
from tadiff_rt.certify.optimise import Judge, search, spread_of
from tadiff_rt.certify.path import gram_of_trajectory, shortest_path
from tadiff_rt.certify.report import MASK_ERROR, SPREAD_RATIO, Check
from tadiff_rt.errors import EngineError, NumericsError, TadiffError, UsageError
from tadiff_rt.forecast import Forecaster
from tadiff_rt.manifest import OptimisedLevels
from tadiff_rt.noise import normal
from tadiff_rt.preprocess import prepare
from tadiff_rt.readers import read_case
from tadiff_rt.request import select_sources
from tadiff_rt.sampling import SamplingRequest
from tadiff_rt.solvers import make_plan, plan_at
from tests.rt.analytic import SCHEDULE, level

SIZE = 32
STD = np.linspace(0.02, 0.3, SIZE)[:, None] * np.ones(SIZE)
"""(h, w) of the posterior of `Ideal`: sure at the top of the image, unsure at its bottom."""


class Ideal:
    """The exact denoiser of N(last scan, STD²); logits rise with the image and fall with t."""

    name = description = "ideal"

    def __init__(self, logit=None, batch=4):
        self.batch, self.partial = batch, False
        self.logit = logit

    def condition(self, t, days, treatments):
        return t.astype(np.float32)[:, None]

    def denoise(self, sources, x, shifts):
        t = float(shifts[0, 0])
        x0 = self.x0(sources[:, -3:], x, t)
        alpha, sigma = level(t)
        rise = 20 * (x0.mean(axis=1, keepdims=True) - 0.5) - 0.02 * t
        logits = np.repeat(rise if self.logit is None else 0 * rise + self.logit, 4, axis=1)
        return ((x - alpha * x0) / sigma).astype(np.float32), logits.astype(np.float32)

    @staticmethod
    def x0(guess, x, t):
        alpha, sigma = level(t)
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return guess + gain * (x - alpha * guess)


@pytest.fixture(scope="module")
def case(case_folder):
    return read_case(case_folder)


@pytest.fixture
def few_levels(monkeypatch):
    monkeypatch.setattr(network, "DENSE_STEPS", 30)
    monkeypatch.setattr(path, "RECORDED_LEVELS", 17)
    monkeypatch.setattr(optimise, "SWEEPS", 1)
    monkeypatch.setattr(command, "SLICES_OF_A_CASE", 1)


def forecaster_of(bundle, backend=None, **card):
    """A forecaster of the tiny bundle with another card, on a backend of ours or its own."""
    opened = open_bundle(bundle)
    changed = opened.manifest.card.model_copy(update=card)
    manifest = opened.manifest.model_copy(update={"card": changed})
    backend = backend or Forecaster.load(bundle, threads=1).backend
    return Forecaster(dataclasses.replace(opened, manifest=manifest), backend, 0.0)


# 1. The recorded run.


def recorded_by_hand(case, contract, plan, rows, seed, informed, x0_range):
    """(M, rows, 3, h, w) of x and of x0 along `plan`, in float64, by the docstring of the plan."""
    prepared = prepare(select_sources(case)[0], contract)
    xs, x0s = [], []
    for at, sample in rows:
        guess = prepared.sources[at, -3:].astype(np.float64)
        x = normal(seed, sample, at, 0, (3, SIZE, SIZE)).astype(np.float64)
        if informed:
            x = plan.alpha[0] * guess + plan.sigma[0] * x
        track, estimates, before = [], [], 0.0
        for row in plan.table:
            x0 = Ideal.x0(guess, x, float(np.float32(row[0])))
            x0 = x0 if x0_range is None else x0.clip(*x0_range)
            track.append(x)
            estimates.append(x0)
            x = row[3] * x + row[4] * x0 + row[5] * before
            before = x0
        xs.append(track)
        x0s.append(estimates)
    return (np.moveaxis(np.array(values), 0, 1) for values in (xs, x0s))


@pytest.mark.parametrize(
    ("start_lam", "x0_range"), [(None, (0.0, 1.0)), (-2.0, (0.0, 1.0)), (None, None)]
)
def test_the_gram_matrix_is_that_of_the_recorded_arrays(
    bundle, case, start_lam, x0_range, monkeypatch
):
    """Three slices in two parts, two samples: buckets of four rows, of which some are padding."""
    monkeypatch.setattr(path, "RECORDED_LEVELS", 7)
    forecaster = forecaster_of(bundle, Ideal(), start_lam=start_lam, x0_range=x0_range)
    samples = [Sample(case, "3,5,6"), Sample(case, "4")]
    gram, plan = gram_of_trajectory(forecaster, samples, 2, 11)
    assert plan.t.tolist() == make_plan(SCHEDULE, num_steps=7, start_lam=start_lam).t.tolist()
    rows = list(itertools.product((3, 4, 5, 6), (0, 1)))
    card = forecaster.bundle.manifest.card
    x, x0 = recorded_by_hand(case, card.data, plan, rows, 11, start_lam is not None, card.x0_range)
    both = np.concatenate([x, x0]).reshape(14, -1)
    expected = np.array([[np.mean(a * b) for b in both] for a in both])
    np.testing.assert_allclose(gram, expected, rtol=1e-5, atol=1e-7)


# 2. Shortest paths.


def recorded(seed, plan, elements=40):
    """x and x0, (M, elements), of something like a run, and their inner products.

    x0 wanders, more at some levels than at others, and x is on its way to the last of them.
    """
    rng = np.random.default_rng(seed)
    pace = 0.3 * rng.random((plan.num_steps, 1)) ** 3
    x0 = 0.4 + np.cumsum(pace * rng.standard_normal((plan.num_steps, elements)), axis=0)
    x = plan.alpha[:, None] * x0[-1] + plan.sigma[:, None] * rng.standard_normal(elements)
    x += 0.3 * rng.random((plan.num_steps, 1)) ** 3 * rng.standard_normal(x.shape)
    both = np.concatenate([x, x0])
    return x, x0, both @ both.T / elements


def error_by_hand(x, x0, plan, i, j, k):
    """Root mean square of a step of 2M from level j to k, after level i, minus the recorded x."""
    times = [plan.t[at] for at in (i, j, k) if at is not None]
    table = plan_at(SCHEDULE, "dpmpp_2m", times)
    row = len(times) - 2
    reached = table.coef_x[row] * x[j] + table.coef_x0[row] * x0[j]
    if i is not None:
        reached = reached + table.coef_x0_prev[row] * x0[i]
    return math.sqrt(((reached - x[k]) ** 2).mean())


PLAN = make_plan(SCHEDULE, num_steps=9)


@pytest.mark.parametrize("seed", range(3))
def test_local_errors_are_those_of_steps_from_the_recorded_arrays(seed):
    x, x0, gram = recorded(seed, PLAN)
    for j, k in itertools.combinations(range(9), 2):
        (first,) = path._local_error(gram, PLAN, None, j, k)
        assert first == pytest.approx(error_by_hand(x, x0, PLAN, None, j, k), rel=1e-9)
        found = path._local_error(gram, PLAN, np.arange(j), j, k)
        expected = [error_by_hand(x, x0, PLAN, i, j, k) for i in range(j)]
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def path_cost(x, x0, plan, path, std):
    total = 0.0
    for at in range(len(path) - 1):
        i = path[at - 1] if at else None
        j, k = path[at], path[at + 1]
        alpha, sigma = level(plan.t[k])
        carried = std / math.sqrt(alpha**2 * std**2 + sigma**2)
        total += carried * error_by_hand(x, x0, plan, i, j, k)
    return total


@pytest.mark.parametrize("std", [0.02, 0.2])
@pytest.mark.parametrize("num_steps", [2, 3, 4, 6, 9])
@pytest.mark.parametrize("start_lam", [None, -2.0])
def test_the_shortest_path_is_that_of_exhaustive_search(num_steps, std, start_lam):
    plan = make_plan(SCHEDULE, num_steps=9, start_lam=start_lam)
    for seed in range(3):
        x, x0, gram = recorded(seed, plan)
        subsets = [(0, *s, 8) for s in itertools.combinations(range(1, 8), num_steps - 2)]
        costs = [path_cost(x, x0, plan, subset, std) for subset in subsets]
        path = shortest_path(gram, plan, num_steps, std)
        assert tuple(path) == subsets[int(np.argmin(costs))]


def test_exhaustive_search_has_something_to_choose():
    """The cheapest of the subsets above is not always the same, nor as dear as the others."""
    best = set()
    for seed in range(6):
        x, x0, _ = recorded(seed, PLAN)
        subsets = [(0, *s, 8) for s in itertools.combinations(range(1, 8), 3)]
        costs = sorted((path_cost(x, x0, PLAN, s, 0.2), s) for s in subsets)
        best.add(costs[0][1])
        assert costs[-1][0] > 1.2 * costs[0][0]
    assert len(best) > 1


# 3. Search.


def keeps_spread(spread: dict[str, float]) -> bool:
    return all(SPREAD_RATIO[0] <= ratio <= SPREAD_RATIO[1] for ratio in spread.values())


def test_spread_by_standard_deviation():
    plan = make_plan(SCHEDULE, num_steps=10)
    found = spread_of(plan, informed=False)
    assert list(found) == ["0.05", "0.1", "0.2", "0.5"]
    assert found["0.05"] == pytest.approx(0.9502, abs=1e-4)
    assert found["0.5"] == pytest.approx(1.0325, abs=1e-4)


class Planted:
    """A judge with a taste of its own."""

    solver = "dpmpp_2m"

    def __init__(self, taste):
        self.taste = taste
        self.asked = []

    def of_times(self, times):
        self.asked.append(list(times))
        return times

    def score(self, times):
        return self.taste(times)


def narrowness(times):
    """Least where the spread of narrow Gaussians is lost most."""
    return spread_of(plan_at(SCHEDULE, "dpmpp_2m", times), informed=False)["0.05"]


EVEN = SCHEDULE.levels(12).t
TRAILING = SCHEDULE.levels(12, "trailing").t


def test_a_judge_that_likes_lost_spread_does_not_get_it():
    """It gets as little spread as is allowed, and is never shown what has less."""
    judge = Planted(narrowness)
    times, best = search(judge, SCHEDULE, [TRAILING, EVEN], informed=False)
    assert 0.95 <= best == narrowness(times) < narrowness(EVEN)
    assert keeps_spread(spread_of(plan_at(SCHEDULE, "dpmpp_2m", times), informed=False))
    assert min(narrowness(asked) for asked in judge.asked) >= 0.95
    assert narrowness(TRAILING) < 0.5


def test_where_no_candidate_keeps_spread_nothing_is_searched():
    judge = Planted(narrowness)
    heard = []
    _, best = search(judge, SCHEDULE, [TRAILING], informed=False, say=heard.append)
    assert best == math.inf
    assert judge.asked == []
    assert len(heard) == 1


@pytest.mark.parametrize(("steps", "informed", "passes"), [(10, 1, 1), (7, 1, 0), (10, 0, 0)])
def test_a_plan_is_checked_from_the_start_that_will_be_made(steps, informed, passes):
    """Seven levels from a noised guess lose spread; any lose the mean where none is given."""
    times = SCHEDULE.levels(steps, start_lam=-2.0).t
    judge = Planted(lambda times: 1.0)
    _, best = search(judge, SCHEDULE, [times], informed=bool(informed))
    assert best == (1.0 if passes else math.inf)
    assert bool(judge.asked) is bool(passes)


def test_the_best_candidate_is_kept_where_nothing_is_better():
    judge = Planted(lambda times: 0.5 if list(times) == list(EVEN) else 0.7)
    other = SCHEDULE.levels(12, "quadratic").t
    times, best = search(judge, SCHEDULE, [other, EVEN], informed=False)
    assert (times, best) == (list(EVEN), 0.5)
    assert len(judge.asked) > 40  # it was looked for


def nearness(target):
    """Mean square distance in λ from target levels."""
    at = SCHEDULE.lam(np.array(target))
    return lambda times: float(((SCHEDULE.lam(np.array(times)) - at) ** 2).mean())


@pytest.mark.parametrize("seed", range(3))
def test_search_comes_nearer_and_keeps_times_falling(seed):
    """Towards levels whose inner λ are moved by a fifth of their spacing."""
    rng = np.random.default_rng(seed)
    lam = SCHEDULE.lam(np.array(EVEN))
    lam[1:-1] += 0.2 * rng.choice([-1, 1], 10) * (lam[1] - lam[0])
    taste = nearness([1000, *SCHEDULE.t_of_lam(lam[1:-1]), 1])
    judge = Planted(taste)
    times, best = search(judge, SCHEDULE, [EVEN], informed=False)
    assert best == taste(times) < 0.3 * taste(EVEN)
    assert (times[0], times[-1], len(times)) == (1000, 1, 12)
    for asked in judge.asked:
        assert (np.diff(asked) < 0).all()
        assert (asked[0], asked[-1], len(asked)) == (1000, 1, 12)


def test_moves_go_both_ways_by_shares_of_the_gaps(monkeypatch):
    """0.4 of the way to either neighbour in λ, halved each sweep; one inner level at a time."""
    monkeypatch.setattr(optimise, "analytic_checks", lambda *asked, **how: ())
    judge = Planted(lambda times: 1.0)
    heard = []
    search(judge, SCHEDULE, [EVEN], informed=False, say=heard.append)
    lam = SCHEDULE.lam(np.array(EVEN))
    moves = []
    for asked in judge.asked[1:]:
        moved = (SCHEDULE.lam(np.array(asked)) - lam) / (lam[1] - lam[0])
        (at,) = np.flatnonzero(np.abs(moved) > 1e-9)
        moves.append((int(at), round(float(moved[at]), 6)))
    expected = [
        (at, way * share) for share in (0.4, 0.2, 0.1) for at in range(1, 11) for way in (-1, 1)
    ]
    assert sorted(moves[:20]) == sorted(expected[:20])
    assert sorted(moves) == sorted(expected)
    assert len(heard) == 1 + 3


def test_a_judge_that_likes_bad_masks_does_not_get_them():
    """`certify --grid optimised` would refuse what `certify --optimise` has just stored."""

    def taste(times):
        return -mask_error(plan_at(SCHEDULE, "dpmpp_2m", times), SCHEDULE)

    _, best = search(Planted(taste), SCHEDULE, [EVEN], informed=False)
    assert -best <= MASK_ERROR


# 4. The judge.

SLICES = (("3,4",), ("5",))
"""Of the tiny case, in samples of one part each."""


@pytest.fixture
def ideal(bundle, few_levels):
    return forecaster_of(bundle, Ideal())


@pytest.fixture
def judge(ideal, case):
    return Judge(ideal, [Sample(case, "3,4"), Sample(case, "5")], 2, 7, "dpmpp_2m")


def test_the_dense_run_is_at_no_distance_and_other_noise_at_one(judge):
    dense = judge.of_grid(30)
    assert (dense.mean, dense.spread, dense.probability) == (0, 0, 0)
    assert (dense.spread_ratio, dense.dice) == (1, 1)
    assert judge.score(dense) == 0
    assert judge.score(judge.floor) == pytest.approx(1)
    assert judge.floor.mean > 0.01


def test_times_are_judged_like_the_grid_they_are_of(judge, ideal):
    assert judge.of_times(SCHEDULE.levels(10).t) == judge.of_grid(10)
    assert judge.of_times(SCHEDULE.levels(10, "karras").t) == judge.of_grid(10, "karras")
    assert judge.of_grid(10) != judge.of_grid(11)
    assert ideal.bundle.manifest.optimised == ()


def test_more_steps_are_nearer_to_the_dense_run(judge):
    scores = [judge.score(judge.of_grid(n)) for n in (6, 12, 24)]
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[2] < 0.5 * scores[0]


def test_the_score_is_the_mean_of_three_ratios(judge):
    found = judge.of_grid(6)
    ratios = [
        getattr(found, name) / getattr(judge.floor, name)
        for name in ("mean", "spread", "probability")
    ]
    assert judge.score(found) == pytest.approx(np.mean(ratios))


def test_a_judge_means_over_its_samples(judge, ideal, case):
    each = [
        Judge(ideal, [Sample(case, slices)], 2, 7, "dpmpp_2m").of_grid(6)
        for slices in ("3,4", "5")
    ]
    assert judge.of_grid(6).mean == pytest.approx(np.mean([one.mean for one in each]))


def test_the_floor_is_of_the_neighbouring_seed(ideal, case, judge):
    """The dense run of seed 7 beside that of 6, as `certify_network` compares them."""
    other = Judge(ideal, [Sample(case, "3,4"), Sample(case, "5")], 2, 6, "dpmpp_2m")
    assert other.floor.mean == pytest.approx(judge.floor.mean)
    assert other.of_grid(8) != judge.of_grid(8)


# 5. The whole search.


def test_levels_are_found_measured_and_described(ideal, case):
    heard = []
    request = SamplingRequest(steps="10", seed="3")
    found = command.optimise(ideal, request, [case], samples=2, say=heard.append)
    assert (found.solver, found.start_lam, len(found.times)) == ("dpmpp_2m", None, 10)
    assert (found.times[0], found.times[-1]) == (1000, 1)
    assert (np.diff(found.times) < 0).all()
    assert keeps_spread(found.spread)
    exact = spread_of(plan_at(SCHEDULE, "dpmpp_2m", found.times), informed=False)
    assert found.spread == pytest.approx(exact, abs=5e-5)
    assert list(found.distance) == [
        "these levels",
        "as many, even in log-SNR",
        "20, even in log-SNR",
        "other noise",
    ]
    assert found.distance["these levels"] < found.distance["as many, even in log-SNR"]
    assert found.distance["other noise"] == 1
    assert found.searched_on == "1 of 1 cases, 2 samples a slice; distances on other slices"
    assert "sub-17" not in found.model_dump_json()
    assert heard[0] == "recording a dense run"
    again = command.optimise(ideal, request, [case], samples=2)
    assert again == found


def test_distances_are_of_images_that_the_search_did_not_see(ideal, case, monkeypatch):
    asked = []
    whole = Forecaster.predict

    def predict(self, case, **request):
        asked.append((case.notes, request["slices"], request["steps"]))
        return whole(self, case, **request)

    cases = [dataclasses.replace(case, notes=(str(k),)) for k in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(Forecaster, "predict", predict)
        patch.setattr(command, "search", lambda judge, schedule, found, **_: (found[0], 0.0))
        patch.setattr(command, "_refuse_if_no_gain", lambda found, checks: None)
        found = command.optimise(ideal, SamplingRequest(steps=10), cases, samples=2)
    assert found.searched_on == "1 of 2 cases, 2 samples a slice; distances on other cases"
    searched = [steps for notes, _, steps in asked if notes == ("0",)]
    measured = [steps for notes, _, steps in asked if notes == ("1",)]
    assert searched == [17, 30, 30]  # recorded, then the dense runs of the judge
    assert measured == [30, 30, 10, 10, 20]
    judge = Judge(ideal, [Sample(cases[1], asked[0][1])], 2, 0 ^ 2, "dpmpp_2m")
    expected = {"as many, even in log-SNR": 10, "20, even in log-SNR": 20}
    for name, steps in expected.items():
        assert found.distance[name] == round(judge.score(judge.of_grid(steps)), 4)


@pytest.mark.slow
def test_levels_for_the_tiny_network_from_an_informed_start(bundle, case, few_levels, monkeypatch):
    """Measured on the very slice and noise that were searched, where a search cannot lose."""
    forecaster = forecaster_of(bundle, start_lam=-2.0)
    assert forecaster.backend.halve()
    sample = (Sample(case, "5"),)
    monkeypatch.setattr(command, "_split", lambda forecaster, cases: (sample, sample))
    whole = command.Judge
    monkeypatch.setattr(
        command, "Judge", lambda judged, on, size, seed, solver: whole(judged, on, size, 0, solver)
    )
    monkeypatch.setattr(path, "RECORDED_LEVELS", 13)
    monkeypatch.setattr(network, "DENSE_STEPS", 25)
    found = command.optimise(forecaster, SamplingRequest(steps=9), [case], samples=2)
    assert (found.start_lam, len(found.times)) == (-2.0, 9)
    assert found.times[0] == pytest.approx(SCHEDULE.t_of_lam(-2.0))
    assert found.times[-1] == 1
    assert found.distance["these levels"] < found.distance["as many, even in log-SNR"]
    exact = spread_of(plan_at(SCHEDULE, "dpmpp_2m", found.times), informed=True)
    assert keeps_spread(exact)
    assert found.spread == pytest.approx(exact, abs=5e-5)


@pytest.mark.parametrize("steps", [1, 4, 13, 20])
def test_steps_that_levels_are_not_optimised_for(steps, ideal, case):
    with pytest.raises(UsageError, match=f"5 to 12 steps, got {steps}") as refused:
        command.optimise(ideal, SamplingRequest(steps=steps), [case])
    assert (refused.value.code, refused.value.where) == ("TD3016", "--steps")


@pytest.mark.parametrize("steps", [5, 12])
def test_levels_are_not_searched_without_a_case(steps, ideal):
    with pytest.raises(UsageError, match="there is no case") as refused:
        command.optimise(ideal, SamplingRequest(steps=steps), [])
    assert (refused.value.code, refused.value.where) == ("TD3057", "--case")


def found_by(monkeypatch, times):
    """Has the search find these."""
    monkeypatch.setattr(command, "search", lambda *judged, **how: (list(times), 0.1))


def test_levels_as_good_as_even_ones_are_no_gain(ideal, case, monkeypatch):
    found_by(monkeypatch, SCHEDULE.levels(10).t)
    with pytest.raises(NumericsError, match="no better levels were found") as refused:
        command.optimise(ideal, SamplingRequest(steps=10), [case], samples=2)
    assert refused.value.code == "TD6005"
    assert "--case" in refused.value.fix


def test_levels_that_lose_spread_are_no_gain_however_near(ideal, case, monkeypatch):
    """Those of a whole dense run without its end: near in the mean, and 0.8 of the spread."""
    times = SCHEDULE.t_of_lam(np.linspace(SCHEDULE.lam(1000.0), SCHEDULE.lam(8.0), 12))
    found_by(monkeypatch, times)
    monkeypatch.setattr(Judge, "score", lambda judge, found: 1e-9 / (1e-12 + found.mean))
    with pytest.raises(NumericsError, match=r"failed: spread, Gaussian of std 0\.05") as refused:
        command.optimise(ideal, SamplingRequest(steps=12), [case], samples=2)
    assert refused.value.code == "TD6005"
    assert "mask: error of a probability 0.3" in refused.value.message
    assert "bias" not in refused.value.message


FINE = Check("spread", 1.0, "0.95 to 1.08", True)
BAD = Check("two modes", 0.0312, "at most 0.02", False)


@pytest.mark.parametrize(
    ("these", "even", "checks", "gain"),
    [
        (0.2, 0.3, [FINE], True),
        (0.3, 0.3, [FINE], False),
        (0.3, 0.2, [FINE], False),
        (0.2, 0.3, [FINE, BAD], False),
        (0.2, 0.3, [BAD, FINE], False),
        (math.nan, 0.3, [FINE], False),
        (0.2, math.nan, [FINE], False),
        (math.inf, math.inf, [FINE], False),
        (0.2, math.inf, [FINE], True),
    ],
)
def test_what_counts_as_gain(these, even, checks, gain):
    found = {"these levels": these, "as many, even in log-SNR": even}
    if gain:
        command._refuse_if_no_gain(found, checks)
        return
    with pytest.raises(NumericsError) as refused:
        command._refuse_if_no_gain(found, checks)
    assert refused.value.code == "TD6005"
    assert f"{these:.4f} against {even:.4f}" in refused.value.message
    assert ("failed: two modes 0.0312" in refused.value.message) is (BAD in checks)
    assert "spread" not in refused.value.message


def test_levels_that_fail_a_check_are_no_gain_however_they_were_found(ideal, case, monkeypatch):
    """All the checks of a certificate hold here too, such as one of the two modes alone."""
    times = SCHEDULE.levels(10).t

    def checks(plan, schedule, *, informed):
        assert (plan.t.tolist(), informed) == (list(times), False)
        return (FINE, BAD)

    found_by(monkeypatch, times)
    monkeypatch.setattr(command, "analytic_checks", checks)
    monkeypatch.setattr(Judge, "score", lambda judge, found: next(scores))
    scores = iter([0.1, 0.2, 0.3, 1.0])
    with pytest.raises(NumericsError, match=r"0\.1000 against 0\.2000.*failed: two modes 0\.0312"):
        command.optimise(ideal, SamplingRequest(steps=10), [case], samples=2)


@pytest.mark.parametrize("name", ["bias", "two modes", "mask", "levels", "rows"])
def test_the_search_is_never_shown_what_fails_a_check(name, monkeypatch):
    """Levels that have moved up in their third place fail here, however good they are."""

    def checks(plan, schedule, *, informed):
        return (FINE, Check(name, 1.0, "", bool(plan.t[2] <= EVEN[2])))

    monkeypatch.setattr(optimise, "analytic_checks", checks)
    judge = Planted(lambda times: -times[2])
    times, best = search(judge, SCHEDULE, [EVEN], informed=False)
    assert (times, best) == (list(EVEN), -EVEN[2])
    assert max(asked[2] for asked in judge.asked) == EVEN[2]


def test_a_head_without_tumour_can_be_certified(bundle, case, few_levels):
    """Every probability is 0 in every ensemble: nothing is as near as other noise and passes."""
    forecaster = forecaster_of(bundle, Ideal(logit=-90.0))
    made = command.certify(forecaster, SamplingRequest(), [case], samples=2)
    assert made.passed


@pytest.mark.parametrize(("solver", "steps"), [("sde_dpmpp_2m", 40), ("ddpm", 200)])
def test_a_sound_stochastic_solver_passes_on_a_network(solver, steps, bundle, case, few_levels):
    """Steps that pass every analytic check, on the exact denoiser, whatever the seed.

    A run that draws noise is another ensemble than the dense one, as far from it as other noise.
    """
    forecaster = forecaster_of(bundle, Ideal())
    for seed in range(4):
        request = SamplingRequest(solver=solver, steps=steps, seed=seed)
        made = command.certify(forecaster, request, [case], samples=8)
        failed = [check.what for check in made.checks if not check.passed]
        assert not any("network" not in what for what in failed), "unsound"
        assert failed == []
        mean = next(check for check in made.checks if check.what.endswith("mean image"))
        assert mean.demanded.endswith("(1.5 x other noise)")


@pytest.mark.parametrize("factor", [0.0, 0.7, 1.4])
@pytest.mark.parametrize(("solver", "steps"), [("sde_dpmpp_2m", 40), ("ddpm", 200)])
def test_a_wrong_share_of_noise_fails_on_a_network(
    solver, steps, factor, bundle, case, few_levels, monkeypatch
):
    """In the plan alone, not in the dense run that it is compared with."""
    whole = SamplingRequest.plan

    def plan(request, *asked):
        made = whole(request, *asked)
        if int(request.steps) != steps:
            return made
        return dataclasses.replace(made, coef_noise=factor * made.coef_noise)

    monkeypatch.setattr(SamplingRequest, "plan", plan)
    request = SamplingRequest(solver=solver, steps=steps)
    made = command.certify(forecaster_of(bundle, Ideal()), request, [case], samples=8)
    failed = [check.what for check in made.checks if not check.passed]
    assert "rows: error for a known image" in failed
    assert any(what.startswith("network") and "spread ratio" in what for what in failed)


def test_a_head_without_tumour_can_be_searched_on(bundle, case, few_levels):
    """The floor of the probability is 0, as is every distance from it."""
    forecaster = forecaster_of(bundle, Ideal(logit=-90.0))
    judge = Judge(forecaster, [Sample(case, "5")], 2, 0, "dpmpp_2m")
    assert judge.floor.probability == 0 < judge.floor.mean
    found = judge.of_grid(10)
    ratios = [getattr(found, name) / getattr(judge.floor, name) for name in ("mean", "spread")]
    assert judge.score(found) == pytest.approx(sum(ratios) / 3)
    assert judge.score(dataclasses.replace(found, probability=1e-9)) == math.inf
    levels = command.optimise(forecaster, SamplingRequest(steps=10), [case], samples=2)
    assert levels.distance["these levels"] < levels.distance["as many, even in log-SNR"]
    assert levels.distance["other noise"] == round(2 / 3, 4)


# 6. What is stored.


@pytest.fixture
def own(bundle, tmp_path):
    """A copy of the bundle that a test may write to."""
    return shutil.copytree(bundle, tmp_path / "own.tadiff")


def levels(steps=8, solver="dpmpp_2m", start_lam=None, mark=""):
    return OptimisedLevels(
        solver=solver,
        start_lam=start_lam,
        times=tuple(np.linspace(1000, 1, steps).tolist()),
        distance={"these levels": 0.1},
        spread={"0.05": 1.0},
        searched_on=mark,
    )


def hashes(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != MANIFEST
    }


def test_levels_are_stored_in_place_of_those_of_the_same_run(own):
    before, files = open_bundle(own), hashes(own)
    others = [levels(8), levels(9), levels(8, "ddim"), levels(8, start_lam=-2.0)]
    for one in others:
        command.store(open_bundle(own), one)
    assert open_bundle(own).manifest.optimised == tuple(others)
    command.store(open_bundle(own), levels(8, mark="again"))
    after = open_bundle(own).manifest
    assert after.optimised == (*others[1:], levels(8, mark="again"))
    assert after.model_copy(update={"optimised": ()}) == before.manifest
    assert hashes(own) == files
    assert sorted(path.name for path in own.iterdir()) == sorted([*files, MANIFEST])
    for artefact in after.artefacts:
        assert open_bundle(own).read(artefact)


def test_stored_times_come_back_to_the_last_bit(own):
    times = SCHEDULE.levels(9, "karras").t
    command.store(open_bundle(own), levels().model_copy(update={"times": times}))
    manifest = open_bundle(own).manifest
    request = SamplingRequest(steps=9, grid="optimised")
    plan = request.plan(SCHEDULE, None, manifest.optimised)
    assert (plan.t.tolist(), plan.grid) == (list(times), "optimised")


@pytest.mark.parametrize("at", ["open", "fsync", "replace"])
def test_the_old_manifest_survives_a_failing_write(at, own, monkeypatch):
    command.store(open_bundle(own), levels(7))
    opened = open_bundle(own)
    before = (own / MANIFEST).read_bytes()

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, at, fail)
    with pytest.raises(TadiffError):
        command.store(opened, levels(9))
    monkeypatch.undo()
    assert (own / MANIFEST).read_bytes() == before
    assert open_bundle(own).manifest.optimised == (levels(7),)


def test_levels_that_are_not_numbers_are_not_stored(own):
    bad = levels().model_copy(update={"distance": {"these levels": math.nan}})
    before = (own / MANIFEST).read_bytes()
    with pytest.raises(NumericsError, match="TD6001"):
        command.store(open_bundle(own), bad)
    assert (own / MANIFEST).read_bytes() == before


def test_two_searches_on_one_bundle_both_keep_their_levels(own):
    """`--steps 8` in one terminal, `--steps 10` in another."""
    first, second = open_bundle(own), open_bundle(own)
    command.store(first, levels(8))
    command.store(second, levels(10))
    stored = json.loads((own / MANIFEST).read_text())["optimised"]
    assert sorted(len(entry["times"]) for entry in stored) == [8, 10]


def test_a_bundle_that_has_gone_is_an_engine_error(own):
    opened = open_bundle(own)
    shutil.rmtree(own)
    with pytest.raises(EngineError, match="TD5002"):
        command.store(opened, levels())
    assert not own.exists()


def test_optimised_levels_are_not_rounded():
    """They are fractional; rounded they would be other levels than those that were measured."""
    request = SamplingRequest(steps=8, grid="optimised", round_times=True)
    with pytest.raises(UsageError, match="fractional times and cannot be rounded") as refused:
        request.plan(SCHEDULE, None, (levels(),))
    assert (refused.value.code, refused.value.where) == ("TD3058", "--round-times")
