"""Distances between ensembles, by hand and of the tiny network, and what they are taken on."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest

from tadiff_rt.certify import command, network
from tadiff_rt.certify.network import (
    Distance,
    Drawn,
    certify_network,
    distance,
    drawn,
    mean_distance,
)
from tadiff_rt.certify.report import network_checks
from tadiff_rt.errors import UsageError
from tadiff_rt.forecast import Forecaster
from tadiff_rt.noise import normal
from tadiff_rt.readers import read_case
from tadiff_rt.sampling import SamplingRequest
from tadiff_rt.schedule import NoiseSchedule

SHAPE = (3, 6, 7)  # slices, height, width
SLICES = "3,5"
STEPS = 4


def ensemble(seed, shape=SHAPE, samples=5):
    """Random, with a brain that leaves out a third of the voxels."""
    rng = np.random.default_rng(seed)
    return Drawn(
        mean=rng.random((3, *shape)).astype(np.float32),
        std=rng.uniform(0.01, 0.3, (3, *shape)).astype(np.float32),
        probability=rng.random(shape).astype(np.float32),
        voxels=rng.integers(1, 40, samples),
        brain=rng.random(shape) < 0.67,
    )


def distance_by_loops(one, other):
    """Every field by its docstring, voxel by voxel."""
    mean, spread, stds, other_stds, probability = [], [], [], [], []
    both = ones = others = 0
    for at in np.ndindex(other.brain.shape):
        a, b = float(one.probability[at]), float(other.probability[at])
        ones, others, both = ones + (a > 0.5), others + (b > 0.5), both + (a > 0.5 and b > 0.5)
        if not other.brain[at]:
            continue
        probability.append(abs(a - b))
        for m in range(3):
            mean.append((float(one.mean[m][at]) - float(other.mean[m][at])) ** 2)
            spread.append((float(one.std[m][at]) - float(other.std[m][at])) ** 2)
            stds.append(float(one.std[m][at]))
            other_stds.append(float(other.std[m][at]))
    volumes = [sum(map(int, d.voxels)) / len(d.voxels) for d in (one, other)]
    return Distance(
        mean=math.sqrt(sum(mean) / len(mean)),
        spread=math.sqrt(sum(spread) / len(spread)),
        spread_ratio=sum(stds) / sum(other_stds),
        probability=sum(probability) / len(probability),
        dice=2 * both / (ones + others) if ones + others else 1.0,
        volume=abs(volumes[0] - volumes[1]) / max(volumes[1], 1.0),
    )


@pytest.mark.parametrize("seed", range(5))
def test_distance_is_what_a_loop_finds(seed):
    one, other = ensemble(seed), ensemble(100 + seed)
    found, expected = (dataclasses.astuple(d(one, other)) for d in (distance, distance_by_loops))
    assert found == pytest.approx(expected, rel=1e-5)


def test_an_ensemble_is_at_no_distance_from_itself():
    one = ensemble(1)
    same = distance(one, dataclasses.replace(one, mean=one.mean.copy()))
    assert same == Distance(mean=0, spread=0, spread_ratio=1, probability=0, dice=1, volume=0)


def changed(one, **fields):
    """The distance of a change of `one` from it, by field."""
    return dataclasses.asdict(distance(dataclasses.replace(one, **fields), one))


NONE = {"mean": 0, "spread": 0, "spread_ratio": 1, "probability": 0, "dice": 1, "volume": 0}


def test_a_shift_of_the_mean_is_its_own_distance():
    one = ensemble(2)
    assert changed(one, mean=one.mean + np.float32(0.25)) == {
        **NONE,
        "mean": pytest.approx(0.25, rel=1e-6),
    }


def test_what_is_outside_the_brain_does_not_count():
    one = ensemble(3)
    outside = ~one.brain * np.float32(0.4)
    moved = changed(one, mean=one.mean + outside, std=one.std + outside)
    assert moved == NONE


def test_the_brain_is_that_of_the_other():
    one, other = ensemble(4), ensemble(4)
    nothing = np.zeros(SHAPE, bool)
    assert distance(dataclasses.replace(one, brain=nothing), other) == Distance(**NONE)


def test_a_wider_ensemble_has_its_factor_as_ratio():
    one = ensemble(5)
    wider = changed(one, std=np.float32(1.5) * one.std)
    rms = 0.5 * math.sqrt((one.std[:, one.brain].astype(np.float64) ** 2).mean())
    assert wider == {
        **NONE,
        "spread": pytest.approx(rms, rel=1e-5),
        "spread_ratio": pytest.approx(1.5),
    }


def masks(*boxes):
    """Ensembles with probability 1 in rows a:b and 0 elsewhere, brain everywhere."""
    made = []
    for a, b in boxes:
        probability = np.zeros(SHAPE, np.float32)
        probability[:, a:b] = 1
        made.append(
            dataclasses.replace(ensemble(6), probability=probability, brain=np.ones(SHAPE, bool))
        )
    return made


@pytest.mark.parametrize(
    ("boxes", "dice", "probability"),
    [
        (((0, 2), (3, 5)), 0.0, 4 / 6),  # disjoint
        (((0, 2), (1, 3)), 0.5, 2 / 6),
        (((0, 2), (0, 2)), 1.0, 0.0),
        (((0, 0), (0, 2)), 0.0, 2 / 6),  # one is empty
        (((0, 2), (0, 0)), 0.0, 2 / 6),
        (((0, 0), (0, 0)), 1.0, 0.0),  # both are
    ],
)
def test_masks(boxes, dice, probability):
    one, other = masks(*boxes)
    found = distance(one, other)
    assert found.dice == pytest.approx(dice)
    assert found.probability == pytest.approx(probability)


def test_a_probability_of_one_half_is_no_tumour():
    one, other = masks((0, 2), (0, 2))
    at_half = dataclasses.replace(one, probability=one.probability / 2)
    assert distance(at_half, other).dice == 0


@pytest.mark.parametrize(
    ("one", "other", "volume"),
    [([12, 8], [20, 20, 20], 0.5), ([30], [20], 0.5), ([3, 4], [0, 0], 3.5), ([0], [0], 0)],
)
def test_volumes_are_compared_by_their_means(one, other, volume):
    both = [dataclasses.replace(ensemble(7), voxels=np.array(voxels)) for voxels in (one, other)]
    assert distance(*both).volume == pytest.approx(volume)


def test_the_mean_of_distances_is_that_of_every_field():
    found = [distance(ensemble(k), ensemble(9)) for k in range(3)]
    for field in dataclasses.fields(Distance):
        values = [getattr(d, field.name) for d in found]
        assert getattr(mean_distance(found), field.name) == pytest.approx(np.mean(values))


def test_two_ensembles_without_any_spread_have_a_ratio():
    """A network that is sure of its image: the ratio is 1, as for any equal ensembles."""
    one = dataclasses.replace(ensemble(8), std=np.zeros((3, *SHAPE), np.float32))
    assert distance(one, one).spread_ratio == 1
    # And one that has lost, or gained, all of it does not look the same.
    some = ensemble(8)
    assert distance(one, some).spread_ratio < 1e-9
    assert 1e9 < distance(some, one).spread_ratio < math.inf


def test_what_is_drawn_are_the_forecast_slices_and_their_brain():
    """Brain is where any source shows something: a session may have lost a slice or a sequence."""
    sources = np.zeros((4, 9, 2, 2), np.float32)
    sources[1, 8, 0, 0] = sources[3, 0, 1, 1] = sources[2] = 0.5
    images = np.arange(3 * 4 * 2 * 2, dtype=np.float32).reshape(3, 4, 2, 2)
    ensemble = SimpleNamespace(
        mean=images, std=images + 100, probability=images[2] + 200, tumour_voxels=np.array([5, 7])
    )
    forecast = SimpleNamespace(
        slices=(1, 3), ensemble=ensemble, prepared=SimpleNamespace(sources=sources)
    )
    found = drawn(forecast)
    np.testing.assert_array_equal(found.mean, images[:, [1, 3]])
    np.testing.assert_array_equal(found.std, images[:, [1, 3]] + 100)
    np.testing.assert_array_equal(found.probability, images[2, [1, 3]] + 200)
    np.testing.assert_array_equal(found.voxels, [5, 7])
    np.testing.assert_array_equal(found.brain, [[[1, 0], [0, 0]], [[0, 0], [0, 1]]])


# On the tiny network.


@pytest.fixture(scope="module")
def forecaster(bundle):
    loaded = Forecaster.load(bundle, threads=1)
    assert loaded.backend.halve()  # two rows a call: the ensembles below have few
    return loaded


@pytest.fixture(scope="module")
def case(case_folder):
    return read_case(case_folder)


@pytest.fixture(autouse=True)
def few_dense_steps(monkeypatch):
    monkeypatch.setattr(network, "DENSE_STEPS", 7)


class Counted:
    """A forecaster that keeps what it was asked."""

    def __init__(self, inner):
        self.inner = inner
        self.bundle = inner.bundle
        self.asked = []

    def predict(self, case, **request):
        request.pop("progress")
        self.asked.append(request)
        return self.inner.predict(case, **request)


REQUEST = SamplingRequest(steps=STEPS, seed=6)


@pytest.fixture(scope="module")
def measured(forecaster, case):
    """(certificate, what was asked) of REQUEST on two slices."""
    counted = Counted(forecaster)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "DENSE_STEPS", 7)
        found = certify_network(counted, case, REQUEST, samples=2, slices=SLICES)
    return found, counted.asked


def test_three_runs_are_compared(measured, case):
    """The plan, a dense run with its noise, and a dense run with other noise; all else alike."""
    found, asked = measured
    runs = [(a["solver"], a["grid"], a["steps"], a["seed"]) for a in asked]
    dense = ("dpmpp_2m", "logsnr", 7)
    assert runs == [("dpmpp_2m", "logsnr", STEPS, 6), (*dense, 6), (*dense, 7)]
    assert found.paired
    for request in asked:
        assert request["day"] == "+90"
        assert request["treatment"] == case.sessions[-1].treatment == "TMZ"
        assert (request["samples"], request["slices"], request["extrapolate"]) == (2, SLICES, True)
    assert (found.samples, found.slices) == (2, 2)


def test_the_distances_are_those_of_the_forecasts(measured, forecaster, case):
    """Drawn again, cut out of the patient's own arrays, and compared by loops."""
    found, asked = measured
    results = []
    for request in asked:
        forecast = forecaster.predict(case, **request)
        at = [3, 5]
        results.append(
            Drawn(
                forecast.ensemble.mean[:, at],
                forecast.ensemble.std[:, at],
                forecast.ensemble.probability[at],
                forecast.ensemble.tumour_voxels,
                forecast.prepared.sources[at].max(axis=1) > 0,
            )
        )
    fast, dense, other = results
    for got, one in ((found.plan, fast), (found.floor, other)):
        expected = dataclasses.astuple(distance_by_loops(one, dense))
        assert dataclasses.astuple(got) == pytest.approx(expected, rel=1e-4)
    assert 0.1 < dense.brain.mean() < 0.9


def test_the_same_certificate_again_and_another_for_another_seed(measured, forecaster, case):
    again = certify_network(forecaster, case, REQUEST, samples=2, slices=SLICES)
    assert again == measured[0]
    other = dataclasses.replace(REQUEST, seed=8)
    unlike = certify_network(forecaster, case, other, samples=2, slices=SLICES)
    assert unlike.plan.mean != again.plan.mean
    assert unlike.floor.mean != again.floor.mean


def test_the_dense_run_is_at_no_distance_from_itself(forecaster, case):
    same = SamplingRequest(steps=7)
    found = certify_network(forecaster, case, same, samples=2, slices="5")
    assert found.plan == Distance(**NONE)
    assert found.floor.mean > 0.01
    assert found.floor.spread > 0.01
    assert found.floor.probability > 0.001
    assert all(check.passed for check in network_checks(found))


def test_other_settings_of_the_request_reach_the_plan_alone(forecaster, case):
    counted = Counted(forecaster)
    request = SamplingRequest(
        steps="3", solver="ddim", grid="karras", round_times=True, seed="2", samples=9
    )
    certify_network(counted, case, request, samples=2, slices="5")
    plan, *dense = counted.asked
    told = {"solver": "ddim", "grid": "karras", "steps": 3, "round_times": True, "seed": 2}
    assert {name: plan[name] for name in told} == told
    assert all(not asked.get("round_times") for asked in dense)
    assert [asked["seed"] for asked in dense] == [2, 3]
    assert {asked["samples"] for asked in counted.asked} == {2}


@pytest.mark.parametrize(
    ("solver", "paired"), [("sde_dpmpp_2m", False), ("ddpm", False), ("unipc_3", True)]
)
def test_solvers_that_draw_noise_have_a_dense_run_that_does(solver, paired, forecaster, case):
    counted = Counted(forecaster)
    request = SamplingRequest(solver=solver, steps=3, seed=4)
    found = certify_network(counted, case, request, samples=2, slices="5")
    dense = "dpmpp_2m" if paired else "sde_dpmpp_2m"
    runs = [(a["solver"], a["grid"], a["steps"], a["seed"]) for a in counted.asked]
    assert runs == [
        (solver, "logsnr", 3, 4),
        (dense, "logsnr", 7, 4),
        (dense, "logsnr", 7, 5),
    ]
    assert found.paired is paired


def test_a_stochastic_dense_run_is_at_no_distance_from_itself(forecaster, case):
    same = SamplingRequest(solver="sde_dpmpp_2m", steps=7)
    found = certify_network(forecaster, case, same, samples=2, slices="5")
    assert found.plan == Distance(**NONE)
    assert not found.paired
    assert found.floor.mean > 0.01


@pytest.mark.parametrize(("timesteps", "steps"), [(4, 4), (7, 7), (1000, 7)])
def test_a_dense_run_has_no_more_steps_than_there_are(timesteps, steps):
    schedule = NoiseSchedule.linear(timesteps)
    run = {"solver": "dpmpp_2m", "grid": "logsnr", "steps": steps}
    assert network.dense_run(schedule) == run
    assert network.dense_run(schedule, stochastic=True) == {**run, "solver": "sde_dpmpp_2m"}


def test_other_noise_differs_at_the_largest_seed(forecaster, case):
    counted = Counted(forecaster)
    request = SamplingRequest(steps=1, seed=str(2**64 - 1))
    certify_network(counted, case, request, samples=2, slices="5")
    assert [asked["seed"] for asked in counted.asked] == [2**64 - 1, 2**64 - 1, 2**64 - 2]


def test_progress_rises_to_the_end_over_all_three_runs(forecaster, case):
    heard = []
    certify_network(
        forecaster,
        case,
        REQUEST,
        samples=2,
        slices=SLICES,
        progress=lambda done, of: heard.append((done, of)),
    )
    done = [d for d, _ in heard]
    assert {of for _, of in heard} == {1000}
    assert done == sorted(done)
    assert len(done) == (STEPS + 7 + 7) * 2  # a call for every evaluation of each of two batches
    assert (done[0], done[-1]) == (1000 // (18 * 2), 1000)
    plan = done[: STEPS * 2]
    assert plan[-1] == 1000 * STEPS // 18  # its share, by evaluations a sample


# Which cases and slices.


def prepared_like(case_slices, tumour, depth=40):
    """Stands for `prepare`: brain in some slices, and tumour in some of those."""
    sources = np.zeros((depth, 9, 2, 2), np.float32)
    sources[case_slices] = 1
    shown = np.zeros((3, depth, 2, 2), bool)
    shown[:, tumour] = True
    return SimpleNamespace(
        sources=sources, brain=sources.any(axis=(1, 2, 3)), masks=shown if tumour else None
    )


@pytest.fixture
def slices_of(forecaster, case, monkeypatch):
    def chosen(brain, tumour):
        prepared = prepared_like(brain, tumour)
        monkeypatch.setattr(command, "prepare", lambda sources, contract: prepared)
        return command.tumour_slices(forecaster, case)

    return chosen


def test_slices_are_spread_over_the_tumour(slices_of):
    """Twelve with tumour and two beyond on either side: eight of 8 ... 23, in two combs."""
    chosen = slices_of(list(range(2, 38)), list(range(10, 22)))
    assert len(chosen) == len(set(chosen)) == 8
    assert set(chosen) <= set(range(8, 24))
    for half in (chosen[:4], chosen[4:]):
        gaps = np.diff(half)
        assert min(gaps) >= 2
        assert max(gaps) - min(gaps) <= 1
        assert half[-1] - half[0] >= 9
    assert abs(np.mean(chosen) - 15.5) < 1


def test_slices_of_a_head_without_tumour_are_spread_over_the_brain(slices_of):
    chosen = slices_of(list(range(2, 38)), [])
    assert len(chosen) == 8
    assert set(chosen) <= set(range(2, 38))
    assert max(chosen) - min(chosen) > 24


@pytest.mark.parametrize("tumour", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_few_slices_are_all_taken_once(slices_of, forecaster, case, count, tumour, monkeypatch):
    """Of the brain, or of the tumour, which is chosen with two slices beyond on either side."""
    shown = list(range(14, 14 + count))
    if tumour:
        monkeypatch.setattr(command, "choose_slices", lambda prepared, wanted: tuple(shown))
    chosen = slices_of(shown, [])
    assert sorted(chosen) == shown
    assert chosen == [*shown[::2], *shown[1::2]]


@pytest.mark.parametrize("count", [9, 10, 17])
def test_of_more_slices_eight_are_taken_once(slices_of, count):
    shown = list(range(4, 4 + count))
    chosen = slices_of(shown, [])
    assert len(chosen) == len(set(chosen)) == 8
    assert set(chosen) <= set(shown)


def test_masks_that_show_no_tumour_are_as_good_as_none(slices_of, forecaster, case, monkeypatch):
    prepared = prepared_like(list(range(2, 38)), [])
    blank = np.zeros((3, 40, 2, 2), bool)
    expected = slices_of(list(range(2, 38)), [])
    without = SimpleNamespace(sources=prepared.sources, brain=prepared.brain, masks=blank)
    monkeypatch.setattr(command, "prepare", lambda sources, contract: without)
    assert command.tumour_slices(forecaster, case) == expected


def test_a_single_slice_cannot_be_split(slices_of, forecaster, case):
    slices_of([4], [])
    with pytest.raises(UsageError) as refused:
        command._split(forecaster, [case])
    assert (refused.value.code, refused.value.where) == ("TD3057", "--case")


def test_two_slices_are_split(slices_of, forecaster, case):
    slices_of([4, 5], [])
    (seen,), (unseen,) = command._split(forecaster, [case])
    assert {seen.slices, unseen.slices} == {"4", "5"}


def test_one_case_is_split_by_slices(slices_of, forecaster, case):
    chosen = slices_of(list(range(2, 38)), list(range(10, 22)))
    (seen,), (unseen,) = command._split(forecaster, [case])
    assert seen.case is unseen.case is case
    assert seen.slices == ",".join(map(str, chosen[:4]))
    assert unseen.slices == ",".join(map(str, chosen[4:]))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_several_cases_are_split_by_cases(slices_of, forecaster, case, count):
    chosen = slices_of(list(range(2, 38)), list(range(10, 22)))
    cases = [dataclasses.replace(case, notes=(str(k),)) for k in range(count)]
    seen, unseen = command._split(forecaster, cases)
    assert [sample.case for sample in seen] == cases[::2]
    assert [sample.case for sample in unseen] == cases[1::2]
    assert {sample.slices for sample in (*seen, *unseen)} == {",".join(map(str, chosen[:4]))}


def test_the_same_noise_is_the_seed_with_its_last_bit_turned():
    """What `certify_network` relies on: draws of neighbouring seeds are unrelated."""
    a, b = (normal(seed, 0, 3, 0, (3, 32, 32)).ravel() for seed in (6, 6 ^ 1))
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(a.size)  # false alarm 6e-7
