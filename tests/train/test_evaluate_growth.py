"""The growth baseline inside an evaluation: what it is given, what is scored, and its failures."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tadiff_rt.errors import GeometryError
from tadiff_train.baselines import GrowthForecast
from tadiff_train.data import Subject, find_subjects, read_subject
from tadiff_train.evaluation import Evaluation, Scope, results_json, results_table
from tadiff_train.evaluation.compare import METRICS, compare
from tadiff_train.evaluation.forecasts import seed_of
from tadiff_train.evaluation.growth import Grown, GrowthTask, grow_subject
from tadiff_train.evaluation.patients import open_patient
from tadiff_train.evaluation.plans import treated_is_less
from tests.train.toy_patients import (
    CONTRACT,
    SIZE,
    SUFFIXES,
    VOXEL_ML,
    Stub,
    Truth,
    image_path,
    mask_path,
    move_session,
    oracle,
    plans,
    run,
    run_all,
    write_subject,
)

TREATMENTS = ("CRT", "TMZ", "none")
TASK = GrowthTask(CONTRACT, Scope(), TREATMENTS, False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_subject(tmp_path)
    return tmp_path


@pytest.fixture
def truth(root: Path) -> Truth:
    return oracle(root, 4)


class Given:
    """In place of the fit: keeps what it is given and forecasts one voxel a day, or fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[dict] = []
        monkeypatch.setattr("tadiff_train.evaluation.growth.fit_growth", self.fit)
        monkeypatch.setattr("tadiff_train.evaluation.growth.forecast_growth", self.forecast)

    def fit(self, *args):
        if self.error:
            raise self.error
        self.t1, self.masks, self.brain, self.days, self.treatments, self.spacing_mm = args
        return SimpleNamespace(rho_per_day=0.01, converged=True, reason="", seconds=1.0, past=self)

    def forecast(self, fit, **asked) -> GrowthForecast:
        self.asked.append(asked)
        masks = np.zeros((asked["samples"], *self.masks.shape[1:]), np.bool_)
        for k, mask in enumerate(masks):
            held = np.argwhere(self.masks[-1])[: 20 + k + 5 * TREATMENTS.index(asked["treatment"])]
            mask[tuple(held.T)] = True
        return GrowthForecast(masks, ())


def subject_of(root: Path) -> Subject:
    (subject,) = find_subjects(root)
    return subject


def test_it_is_given_all_of_the_past_and_nothing_of_the_target(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    """Images and masks of every session before the last, in the window of the forecast."""
    given = Given(monkeypatch)
    grown = grow_subject(TASK, subject_of(root))
    assert grown.failure == ""
    assert given.days == (0, 14, 30, 90)
    assert given.treatments == ("CRT", "CRT", "CRT", "TMZ")
    assert given.spacing_mm == pytest.approx(1)
    for session in range(4):
        images, mask = oracle(root, session)
        np.testing.assert_array_equal(given.masks[session], mask)
        np.testing.assert_allclose(given.t1[session], images[0], atol=1e-6)
    np.testing.assert_array_equal(given.brain, (given.t1 > 0).any(axis=0))
    assert given.asked == [{"day": 141, "treatment": "TMZ", "samples": 1, "seed": 0}]
    assert grown.fit == {"rho_per_day": 0.01, "converged": True, "reason": "", "sessions": 4}


def test_the_target_changes_nothing_that_it_is_given(root: Path, monkeypatch: pytest.MonkeyPatch):
    before = Given(monkeypatch)
    grow_subject(TASK, subject_of(root))
    after = Given(monkeypatch)
    for modality in SUFFIXES:
        target, other = (image_path(root, "sub-001", s, modality) for s in (4, 3))
        target.write_bytes(other.read_bytes())
    mask_path(root, "sub-001", 4).write_bytes(mask_path(root, "sub-001", 3).read_bytes())
    grow_subject(TASK, subject_of(root))
    for name in ("t1", "masks", "brain"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))


def test_sessions_before_one_without_a_mask_are_left_out(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    mask_path(root, "sub-001", 0).unlink()
    given = Given(monkeypatch)
    assert grow_subject(TASK, subject_of(root)).fit["sessions"] == 3
    assert given.days == (14, 30, 90)
    assert given.treatments == ("CRT", "CRT", "TMZ")


def test_a_failure_is_told_with_its_reason(root: Path, monkeypatch: pytest.MonkeyPatch):
    Given(monkeypatch, ValueError("residuals are not finite"))
    grown = grow_subject(TASK, subject_of(root))
    assert grown.failure == "ValueError: residuals are not finite"
    assert grown.masks == {}
    Given(monkeypatch, KeyError("a bug"))
    with pytest.raises(KeyError):
        grow_subject(TASK, subject_of(root))


def test_an_early_session_on_another_grid_fails_the_baseline_alone(root: Path, truth: Truth):
    move_session(root, 0)
    result = run(Stub(lambda _: truth), root, grow=grow_subject)
    assert result.growth.failure.startswith(GeometryError.__name__)
    assert result.growth.score is None
    assert result.model.dice == 1


def test_its_mask_is_scored_on_the_evaluated_slices(root: Path, truth: Truth, monkeypatch):
    Given(monkeypatch)
    result = run(Stub(lambda _: truth), root, grow=grow_subject, max_slices=5, samples=1)
    at, last = list(result.slices), oracle(root, 3)[1]
    mask = np.zeros_like(last)
    mask[tuple(np.argwhere(last)[:25].T)] = True
    assert 0 < mask[at].sum() < 25
    score = result.growth.score
    assert score.volume_ml == pytest.approx(mask[at].sum() * VOXEL_ML * 9 / 5)
    both = 2 * (mask & truth[1])[at].sum()
    assert score.dice == pytest.approx(both / (mask[at].sum() + truth[1][at].sum()))
    assert score.images is None
    assert score.crps_ml == score.absolute_error_ml
    assert result.growth.intervals == ()


def test_its_spread_is_that_of_as_many_draws_as_the_model_has(root, truth, monkeypatch):
    given = Given(monkeypatch)
    result = run(Stub(lambda _: truth), root, grow=grow_subject, samples=3)
    assert given.asked[-1] == {
        "day": 141,
        "treatment": "TMZ",
        "samples": 3,
        "seed": seed_of(7, "sub-001"),
    }
    volumes = np.array([25, 26, 27]) * VOXEL_ML
    away = np.abs(volumes - result.true_ml).mean()
    assert result.growth.score.crps_ml == pytest.approx(away - (1 + 1 + 2) / 6 * VOXEL_ML)
    assert result.growth.score.volume_ml == pytest.approx(25 * VOXEL_ML)
    assert len(result.growth.intervals) == 3
    assert not result.growth.intervals[-1].covered


def test_other_plans_are_forecast_by_one_fit(root, truth, monkeypatch):
    monkeypatch.setattr("tadiff_train.evaluation.plans.MIN_PLAN_DIFFERENCE_ML", 0.005)
    given = Given(monkeypatch)
    plans(root)
    result = run(Stub(lambda _: truth), root, grow=grow_subject, counterfactuals=True, samples=1)
    assert [asked["treatment"] for asked in given.asked] == ["TMZ", "CRT", "none"]
    volumes = {plan.treatment: plan.growth_ml for plan in result.plans}
    assert volumes == pytest.approx({t: 0.02 + 0.005 * k for k, t in enumerate(TREATMENTS)})
    assert all(plan.growth_dice is not None for plan in result.plans)
    found = treated_is_less([result], "growth")
    assert (found.count, found.of) == (1, 1)


def perfect(task: GrowthTask, subject: Subject) -> Grown:
    """The truth, but for sub-002, of which it says nothing."""
    if subject.name == "sub-002":
        return Grown(failure="ValueError: no tumour")
    patient = open_patient(read_subject(subject), task.contract, task.scope)
    return Grown({"TMZ": patient.true_tumour}, fit={"rho_per_day": 0.1})


def test_patients_without_it_are_counted_and_left_out_of_its_comparison(root: Path, truth: Truth):
    write_subject(root, 2)
    last = oracle(root, 3)
    results = run_all(Stub(lambda _: last, [0, 0]), root, grow=perfect)
    assert [r.growth.failure for r in results] == ["", "ValueError: no tumour"]
    (dice,) = [metric for metric in METRICS if metric.name == "future-tumour Dice"]
    found = compare(results, dice, "growth")
    assert (found.other.mean, found.other.count, found.left_out) == (1, 1, 1)
    assert found.difference.mean == pytest.approx(results[0].model.dice - 1)
    assert compare(results, dice, "copy").left_out == 0
    table = results_table(Evaluation(tuple(results)))
    assert "Fitted growth failed for 1 of 2 patients: ValueError: no tumour (1)." in table
    assert "no difference shown [1 of 2]" in table
    assert '"failure": "ValueError: no tumour"' in results_json(Evaluation(tuple(results)))


def test_without_it_the_table_says_so(root: Path, truth: Truth):
    table = results_table(Evaluation((run(Stub(lambda _: truth), root),)))
    assert "was not run" in table
    assert "fitted growth |" not in table


def test_the_real_one_forecasts_from_the_past(root: Path):
    """A tumour that grew by a sixth in 90 days, forecast for 51 more: still there, not twice."""
    grown = grow_subject(GrowthTask(CONTRACT, Scope(), TREATMENTS, False, 2), subject_of(root))
    assert grown.failure == ""
    last = oracle(root, 3)[1].sum()
    (mask,) = grown.masks.values()
    assert mask.shape[1:] == (SIZE, SIZE)
    assert 0.5 * last < mask.sum() < 2 * last
    assert len(grown.volumes_ml) == 2
    assert grown.fit["rho_per_day"] > 0


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_processes(root: Path, truth: Truth):
    write_subject(root, 2)
    evaluate = partial(run_all, Stub(lambda _: truth), root, grow=grow_subject)
    one, two = (results_json(Evaluation(tuple(evaluate(jobs=jobs)))) for jobs in (1, 2))
    assert '"failure": ""' in one
    assert one == two
