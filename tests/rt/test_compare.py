"""What if: several scenarios with the same noise, each as it is alone, and what differs."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import scipy.stats

from tadiff_rt.differences import difference_of_volumes, past_volumes
from tadiff_rt.errors import TableError, UsageError
from tadiff_rt.forecast import Forecaster
from tadiff_rt.journal import discard_journal, journal_folders
from tadiff_rt.readers import read_case
from tadiff_rt.request import Scenario
from tests.rt.test_device_forecast import OnDevice
from tests.rt.test_forecast import same

DAYS, TREATMENTS = ["+90", "+30"], ["TMZ", "CRT", "none"]
OPTIONS = {"samples": 3, "steps": 2, "slices": "4:6"}


@pytest.fixture(scope="module")
def forecaster(bundle):
    return Forecaster.load(bundle, threads=1)


@pytest.fixture(scope="module")
def case(case_folder):
    return read_case(case_folder)


def compared(forecaster, case, days=DAYS, treatments=TREATMENTS, **options):
    return forecaster.compare(case, days=days, treatments=treatments, **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def comparison(forecaster, case):
    return compared(forecaster, case)


def same_comparison(a, b) -> bool:
    return (
        list(a.forecasts) == list(b.forecasts)
        and all(same(a.forecasts[s], b.forecasts[s]) for s in a.forecasts)
        and all(
            np.array_equal(x.probability, y.probability)
            and np.array_equal(x.std, y.std)
            and x.volume_ml == y.volume_ml
            for x, y in zip(a.differences, b.differences, strict=True)
        )
    )


def test_scenarios_are_those_of_single_forecasts_to_the_bit(forecaster, case, comparison):
    last = case.sessions[-1].day
    assert [s.name for s in comparison.forecasts] == [
        f"day{last + days}-{treatment}" for days in (30, 90) for treatment in TREATMENTS
    ]
    for scenario, forecast in comparison.forecasts.items():
        alone = forecaster.predict(case, day=scenario.day, treatment=scenario.treatment, **OPTIONS)
        assert same(forecast, alone)
        said, single = (dict(f.report) for f in (forecast, alone))
        assert said.pop("seconds").keys() == single.pop("seconds").keys()
        assert said == single


def probabilities(forecaster, case, scenario, count):
    """Tumour probability of each sample, from the means of ensembles that extend one another."""
    means = [
        forecaster.predict(
            case,
            day=scenario.day,
            treatment=scenario.treatment,
            **{**OPTIONS, "samples": n},
        ).tumour_probability.astype(float)
        for n in range(1, count + 1)
    ]
    sums = [np.zeros_like(means[0]), *(n * mean for n, mean in enumerate(means, start=1))]
    return np.array([b - a for a, b in itertools.pairwise(sums)])


def test_a_difference_is_that_of_its_samples(forecaster, case, comparison):
    assert len(comparison.differences) == 4
    difference = comparison.differences[2]
    day = max(scenario.day for scenario in comparison.forecasts)
    assert (difference.scenario, difference.reference) == (
        Scenario(day, "TMZ"),
        Scenario(day, "none"),
    )
    one, two = (
        probabilities(forecaster, case, s, 3) for s in (difference.scenario, difference.reference)
    )
    apart = one - two
    np.testing.assert_allclose(difference.probability, apart.mean(0), atol=1e-6)
    np.testing.assert_allclose(difference.std, apart.std(0, ddof=1), atol=1.5 / 255)
    # Far from what independent ensembles would give: the noise is common.
    independent = np.hypot(one.std(0, ddof=1), two.std(0, ddof=1))
    inside = independent > 0.02
    assert inside.any()
    assert difference.std[inside].mean() < 0.7 * independent[inside].mean()


def test_differences_of_volumes_are_paired(comparison):
    for difference in comparison.differences:
        a, b = (
            np.array(comparison.forecasts[s].volume_ml.samples_ml)
            for s in (difference.scenario, difference.reference)
        )
        np.testing.assert_allclose(difference.volume_ml.samples_ml, a - b)


def test_intervals_of_a_difference():
    volume = difference_of_volumes([3.0, 5.0, 4.5, 9.0], [1.0, 4.0, 6.0])
    apart = np.array([2.0, 1.0, -1.5])
    t = scipy.stats.t.ppf(0.95, 2) * apart.std(ddof=1)
    assert volume.samples_ml == tuple(apart)
    assert volume.mean_ml == pytest.approx(0.5)
    assert volume.low_ml == pytest.approx(0.5 - t * (1 + 1 / 3) ** 0.5)
    assert volume.high_ml == pytest.approx(0.5 + t * (1 + 1 / 3) ** 0.5)
    assert volume.mean_interval_ml == pytest.approx((0.5 - t / 3**0.5, 0.5 + t / 3**0.5))
    assert volume.low_ml < 0  # less tumour is possible: not cut off


def test_one_sample_has_a_difference_without_spread(forecaster, case):
    made = compared(forecaster, case, days=["+30"], treatments=["TMZ", "none"], samples=1)
    (difference,) = made.differences
    assert difference.std is None
    assert (difference.volume_ml.low_ml, difference.volume_ml.mean_interval_ml) == (None, None)
    assert np.abs(difference.probability).max() > 0


def test_one_treatment_is_compared_with_nothing(forecaster, case):
    made = compared(forecaster, case, treatments=["CRT"])
    assert made.differences == ()
    assert len(made.forecasts) == 2
    assert made.first.ensemble.kept == {}  # nothing is kept that nobody reads


def test_open_numbers_of_samples_are_paired_as_far_as_they_go(forecaster, case):
    auto = {"samples": "auto", "volume_ci": "1.3%", "max_samples": 14, "seed": 1}
    made = compared(forecaster, case, days=["+30"], treatments=["TMZ", "none"], **auto)
    counts = [len(f.volume_ml.samples_ml) for f in made.forecasts.values()]
    assert counts[0] != counts[1]  # else this tests nothing
    fewest = min(counts)
    (difference,) = made.differences
    assert len(difference.volume_ml.samples_ml) == fewest
    fixed = compared(
        forecaster, case, days=["+30"], treatments=["TMZ", "none"], seed=1, samples=fewest
    )
    (expected,) = fixed.differences
    assert difference.volume_ml == expected.volume_ml
    np.testing.assert_allclose(difference.probability, expected.probability, atol=1.1 / 255)
    np.testing.assert_array_equal(difference.std, expected.std)


@pytest.mark.parametrize(
    "options", [{}, {"samples": "auto", "volume_ci": "1.3%", "max_samples": 10}], ids=str
)
def test_a_device_compares_as_the_host_does(forecaster, case, options):
    there = Forecaster(forecaster.bundle, OnDevice(forecaster.backend), 0.0)
    expected = compared(forecaster, case, days=["+90"], **options)
    made = compared(there, case, days=["+90"], **options)
    for a, b in zip(made.differences, expected.differences, strict=True):
        np.testing.assert_allclose(a.probability, b.probability, atol=1e-6)
        # A probability at the border between two levels may round to either.
        np.testing.assert_allclose(a.std, b.std, atol=1.1 / 255)
        assert (np.abs(a.std - b.std) > 1e-6).mean() < 1e-3
        assert a.volume_ml == b.volume_ml


def test_workers_change_no_bit(forecaster, case, comparison):
    assert same_comparison(compared(forecaster, case, workers=2), comparison)


def test_progress_counts_all_scenarios(forecaster, case):
    said = []
    compared(forecaster, case, progress=lambda done, total: said.append((done, total)))
    total = 6 * 3 * 2 * 2  # scenarios, samples, slices, steps
    assert said[-1] == (total, total)
    assert [done for done, _ in said] == sorted({done for done, _ in said})


class Stopped(Exception):
    pass


@pytest.mark.parametrize("options", [{}, {"samples": "auto", "max_samples": 8}], ids=str)
def test_an_interrupted_comparison_goes_on_to_the_same_bits(forecaster, case, tmp_path, options):
    expected = compared(forecaster, case, **options)
    work, seen = tmp_path / "work", []

    def stop(done, total):
        seen.append(done)
        if done > 0.55 * total:
            raise Stopped

    with pytest.raises(Stopped):
        compared(forecaster, case, work=work, progress=stop, **options)
    left = []
    made = compared(
        forecaster, case, work=work, progress=lambda *said: left.append(said), **options
    )
    assert same_comparison(made, expected)
    assert len(left) < len(seen)
    discard_journal(work)
    assert not work.exists()


def test_a_work_folder_of_something_else_is_left_alone(forecaster, case, tmp_path):
    single = {**OPTIONS, "day": "+30", "treatment": "TMZ"}
    forecaster.predict(case, **single, work=tmp_path / "one")
    kept = sorted(path.name for path in (tmp_path / "one").iterdir())
    with pytest.raises(UsageError, match=r"TD3055.*another forecast"):
        compared(forecaster, case, work=tmp_path / "one")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == kept
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/a.txt").touch()
    with pytest.raises(UsageError, match=r"TD3055.*such as a\.txt"):
        journal_folders(tmp_path / "letters", ["day1-TMZ", "day2-TMZ"])
    discard_journal(tmp_path / "letters")
    assert (tmp_path / "letters/a.txt").exists()


def test_everything_wrong_with_several_scenarios_is_said_at_once(forecaster, case):
    with pytest.raises(TableError) as caught:
        compared(forecaster, case, days=["1", "+900", "+1000"])
    # +900 is beyond the trained horizon, +1000 also beyond the last trained day.
    assert sorted(e.code for e in caught.value.findings) == ["TD3312", *["TD3313"] * 3]


def test_past_volumes_are_those_of_the_masks(case, comparison):
    assert comparison.past == past_volumes(case.sessions[-3:])
    for past, session in zip(comparison.past, case.sessions[-3:], strict=True):
        voxel_ml = np.prod(np.linalg.norm(session.mask.affine[:3, :3], axis=0)) / 1000
        assert (past.day, past.treatment) == (session.day, session.treatment)
        assert past.volume_ml == pytest.approx((session.mask.data > 0).sum() * voxel_ml)
        assert past.volume_ml > 0


def test_a_session_that_is_repeated_is_one_past_volume(forecaster, case):
    only = dataclasses.replace(case, sessions=case.sessions[:1])
    made = compared(forecaster, only, days=["+30"], treatments=["TMZ"])
    assert [past.day for past in made.past] == [0]


def test_the_report_says_all_and_names_nobody(comparison, case):
    text = json.dumps(comparison.report, allow_nan=False)
    report = json.loads(text)
    assert list(report["scenarios"]) == [s.name for s in comparison.forecasts]
    assert [d["scenario"] for d in report["differences"]] == [
        d.scenario.name for d in comparison.differences
    ]
    low, high = report["differences"][0]["volume_ml"]["interval"]
    assert low < report["differences"][0]["volume_ml"]["mean"] < high
    assert len(report["past"]) == 3
    assert case.name not in text
    assert "ses-" not in text
