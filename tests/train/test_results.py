"""Comparison over patients, and the table and JSON of it."""

import dataclasses
import json

import numpy as np
import pytest

from tadiff_train.evaluation import Evaluation, PatientResult, results_json, results_table
from tadiff_train.evaluation.compare import METRICS, compare
from tadiff_train.evaluation.plans import order_found, treated_is_less
from tadiff_train.evaluation.results import GrowthResult
from tadiff_train.metrics import BrierScore, reliability
from tests.train.toy_results import calibration, patient, plan, score


def metric(name: str):
    (found,) = [m for m in METRICS if m.name == name]
    return found


def table_of(*results: PatientResult, **more) -> str:
    return results_table(Evaluation(results, **more))


def table_row(table: str, name: str) -> list[str]:
    (row,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


SPREAD = np.linspace(-0.2, 0.2, 10)
"""Patients differ far more than methods do: an unpaired comparison shows nothing."""


@pytest.mark.parametrize("baseline", ["copy", "growth"])
@pytest.mark.parametrize(
    ("name", "shift", "verdict"),
    [
        ("future-tumour Dice", 0.02, "better"),
        ("future-tumour Dice", -0.02, "worse"),
        ("future-tumour Dice", 0.0, "no difference shown"),
        ("future-tumour Dice", 0.001, "no difference shown"),
        ("PSNR (dB), FLAIR", 0.02, "better"),
        ("MAE", 0.02, "worse"),
        ("MAE", -0.02, "better"),
        ("SSIM", 0.5, "no difference shown"),
        ("signed volume error (ml)", 0.5, ""),
    ],
)
def test_methods_are_compared_patient_by_patient(
    baseline: str, name: str, shift: float, verdict: str
):
    wobble = 0.004 * np.array([1, -1] * 5)
    other = score(0.1)
    results = []
    for i, (x, w) in enumerate(zip(SPREAD, wobble, strict=True)):
        model = score(0.5 + x + shift + w, 20 + x + shift + w, 0.3 + x + shift + w)
        beside = {"copy": other, "growth": other, baseline: score(0.5 + x, 20 + x, 0.3 + x)}
        results.append(patient(i, model, **beside))
    got = compare(results, metric(name), baseline)
    assert got.verdict == verdict
    if name == "future-tumour Dice":
        assert got.difference.mean == pytest.approx(shift)
        assert got.other.mean == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "field", "better"),
    [
        ("HD95 (mm)", "hd95_mm", -1),
        ("Dice of tumour change", "change_dice", 1),
        ("changed voxels right", "change_recall", 1),
        ("absolute volume error (ml)", "absolute_error_ml", -1),
        ("CRPS of volume (ml)", "crps_ml", -1),
        ("Brier score of tumour", "brier", -1),
        ("ECE of tumour", "ece", -1),
    ],
)
def test_each_metric_is_its_field_in_its_direction(name: str, field: str, better: int):
    more, less = score(0.5, **{field: 0.9}), score(0.5, **{field: 0.4})
    got = compare([patient(i, more, less) for i in range(6)], metric(name))
    assert got.difference.mean == pytest.approx(0.5)
    assert got.verdict == ("better" if better > 0 else "worse")


@pytest.mark.parametrize(("count", "verdict"), [(5, "no difference shown"), (6, "better")])
def test_few_patients_show_nothing(count: int, verdict: str):
    """All on one side: 2 / 2^5 = 6 % by chance, 2 / 2^6 = 3 %."""
    results = [patient(i, score(0.8), score(0.6)) for i in range(count)]
    assert compare(results, metric("future-tumour Dice")).verdict == verdict


def test_undefined_values_leave_out_the_patient_for_both_methods():
    results = [patient(i, score(0.8), score(0.6)) for i in range(6)]
    results.append(patient(6, score(0.1), score(None)))
    results.append(patient(7, score(0.8, psnr=float("inf")), score(0.6)))
    got = compare(results, metric("future-tumour Dice"))
    assert (got.model.mean, got.model.count) == (pytest.approx(0.8), 7)
    assert got.left_out == 1
    assert compare(results, metric("PSNR (dB)")).model.count == 7
    row = table_row(table_of(*results), "future-tumour Dice")
    assert row[-1] == "+0.200 (+0.200 to +0.200): better [7 of 8]"


def test_the_table_says_what_it_is_about():
    results = [patient(i, score(0.8), score(0.6), score(0.9), true_ml=6.0) for i in range(8)]
    table = table_of(*results, population="toys", settings={"model": "toy", "samples": 3})
    assert "8 toys." in table
    assert "median 60 days, 30 to 90" in table
    assert "model toy, samples 3" in table
    flat = " ".join(table.split())
    assert "given the true masks of past scans; the model sees images only" in flat
    assert "On simulated patients it knows the equation that made them" in flat
    assert table_row(table, "future-tumour Dice")[1:] == [
        "0.800 (0.800 to 0.800)",
        "0.600 (0.600 to 0.600)",
        "0.900 (0.900 to 0.900)",
        "+0.200 (+0.200 to +0.200): better",
        "-0.100 (-0.100 to -0.100): worse",
    ]
    assert table_row(table, "signed volume error (ml)")[-1] == "+0.00 (+0.00 to +0.00)"


def test_the_table_says_how_many_slices_were_left_out():
    results = [patient(i, score(0.8), score(0.6), slice_step=i + 1) for i in range(3)]
    assert "One in 1 to 3 slices was evaluated" in table_of(*results)
    assert "slices was evaluated" not in table_of(results[0])


def test_growth_makes_no_image():
    results = [patient(i, score(0.8), score(0.6), score(0.9, images=None)) for i in range(6)]
    assert compare(results, metric("SSIM"), "growth").difference is None
    row = table_row(table_of(*results), "SSIM, T1c")
    assert (row[3], row[5]) == ("-", "-")
    assert row[4] == "+0.000 (+0.000 to +0.000): no difference shown"


def test_the_table_splits_by_horizon_and_treatment():
    days = (59, 60, 119, 120)
    results = [
        patient(i, score(0.4 + 0.1 * (i % 4)), score(0.6), horizon_days=days[i % 4])
        for i in range(8)
    ]
    table = table_of(*results)
    near = table_row(table, "horizon < 60 days")
    middle, far = (
        table_row(table, "horizon 60 to 119 days"),
        table_row(table, "horizon >= 120 days"),
    )
    assert near[1:4] == ["2", "59", "0.400 / 0.600: no difference shown"]
    assert middle[1:4] == ["4", "89.5", "0.550 / 0.600: no difference shown"]
    assert far[1:4] == ["2", "120", "0.700 / 0.600: no difference shown"]
    assert table_row(table, "under TMZ")[1] == "4"
    assert "under CRT" not in table


def test_the_order_of_patients_changes_nothing():
    """Resampling draws places, not names."""
    rng = np.random.default_rng(0)
    results = [patient(i, score(*rng.random(2)), score(0.5)) for i in range(9)]
    shuffled = [results[i] for i in rng.permutation(9)]
    assert table_of(*results) == table_of(*shuffled)
    assert results_json(Evaluation(tuple(results))) == results_json(Evaluation(tuple(shuffled)))


ORDERS = [
    (plan("TMZ", 4.0, 4.0, 4.0), plan("none", 6.0, 5.0, 3.0), plan("CRT", 3.0, 5.0, 1.0)),
    (plan("none", 6.0, 5.0, 9.0), plan("TMZ", 5.4, 5.0, 8.0)),
    (plan("none", 6.0, 5.0), plan("TMZ", 5.7, 1.0)),
    (plan("CRT", 1.0, 2.0), plan("none", 6.0, 3.0), plan("TMZ", 7.0, 1.0)),
    (plan("CRT", 1.0, 2.0, 5.0), plan("none", 6.0, 3.0, 6.0), plan("TMZ", 5.0, 1.0, None)),
    (),
]
"""By patient: right for the model and wrong for growth; equal volumes; true ones too close; more
under treatment; no growth for one plan; no plans."""


def planned() -> list[PatientResult]:
    growth = score(0.5)
    return [patient(i, growth, growth, growth, plans=plans) for i, plans in enumerate(ORDERS)]


def test_treatment_should_leave_less_where_the_truth_does():
    model, growth = (treated_is_less(planned(), method) for method in ("model", "growth"))
    assert (model.count, model.of) == (2, 3)
    assert (growth.count, growth.of) == (1, 2)


def test_other_plans_are_on_the_right_side_of_the_given_one():
    found = [order_found(result, "model") for result in planned()]
    assert found == [[True, False], [False], [], [True, False], [True, False], []]
    found = [order_found(result, "growth") for result in planned()]
    assert found == [[False, True], [True], [], [], [True], []]


def test_the_table_states_the_order_of_plans_for_both_methods():
    table = table_of(*planned())
    assert (
        "- The model: TMZ < none holds where the truth's does: 2 of 3 (67%, 21% to 94%)" in table
    )
    assert "- Fitted growth: TMZ < none holds where the truth's does: 1 of 2" in table
    assert "3 of 7 on the right side" in table
    assert "Dice under other plans 0.500 (0.500 to 0.500) [5 of 6]" in table
    assert "Other treatment plans" not in table_of(patient(0, score(0.5), score(0.5)))


def test_the_table_states_calibration():
    """True volume above all of 4, 5 and 6.5 ml in two patients of eight, between in the others."""
    results = [
        patient(
            i,
            score(0.8),
            score(0.6),
            true_ml=9.0 if i < 2 else 6.0,
            calibration=calibration(true_ml=9.0 if i < 2 else 6.0),
        )
        for i in range(8)
    ]
    table = table_of(*results)
    assert "samples: 0, 0, 6, 2 patients" in table
    # (5.17 - 1.18, 5.17 + 1.18) and 4.2 times that at 90 %.
    assert "interval of the model at 50%: 6 of 8 (75%, 41% to 93%), 2.4 ml wide" in table
    assert "90%: 8 of 8 (100%, 68% to 100%), 8.5 ml wide" in table
    assert "The range of 3 samples holds a further draw with probability 50%" in table
    ratio = np.sqrt(4 / 3 / 2)
    assert f"T1 {ratio:.3f} ({ratio:.3f} to {ratio:.3f})" in table
    assert "AUSE: 0.125 (0.125 to 0.125)" in table
    assert "standard deviation of the images: T1 0.250" in table
    assert "interval of fitted growth" not in table


def test_pooled_brier_score_is_taken_apart():
    curve = calibration().tumour
    table = table_of(patient(0, score(0.8), score(0.6)))
    assert f"ECE {curve.ece:.4f}; Brier score " in table
    fields = [field.name for field in dataclasses.fields(BrierScore)]
    content = json.loads(results_json(Evaluation((patient(0, score(0.8), score(0.6)),))))
    assert list(content["calibration"]["tumour"]["brier"]) == fields


def test_json_holds_every_patient_and_no_infinity():
    results = [patient(i, score(0.8, psnr=float("inf")), score(0.6)) for i in range(7)]
    evaluation = Evaluation(tuple(results), population="toys", settings={"steps": 20})
    text = results_json(evaluation)
    assert text == results_json(evaluation)
    content = json.loads(text, parse_constant=pytest.fail)
    assert content["format"] == 2
    assert content["population"] == "toys"
    assert content["settings"] == {"steps": 20}
    assert content["growth"] == "not run"
    assert len(content["patients"]) == 7
    first = content["patients"][0]
    assert first["model"]["images"]["psnr"]["t1"] is None
    assert first["model"]["dice"] == 0.8
    assert first["calibration"]["samples_ml"] == [4.0, 5.0, 6.5]
    assert len(first["calibration"]["tumour"]["count"]) == 10
    compared = content["groups"]["all"][0]
    assert (compared["metric"], compared["verdict"]) == ("future-tumour Dice", "better")
    assert compared["difference"]["mean"] == pytest.approx(0.2)
    assert content["calibration"]["ranks"] == [0, 0, 7, 0]
    assert content["calibration"]["coverage"]["model"][2]["level"] == 0.9


def test_json_compares_with_both_baselines():
    failed = GrowthResult(None, {}, (), "no fit")
    results = [patient(i, score(0.8), score(0.6), score(0.7)) for i in range(6)]
    results.append(dataclasses.replace(results[0], name="sub-900", growth=failed))
    content = json.loads(results_json(Evaluation(tuple(results))))
    assert content["growth"] == "run"
    by_baseline = {row["baseline"]: row for row in content["groups"]["all"][:2]}
    assert by_baseline["growth"]["difference"]["mean"] == pytest.approx(0.1)
    assert by_baseline["growth"]["left_out"] == 1
    assert by_baseline["copy"]["left_out"] == 0
    assert content["patients"][-1]["growth"]["failure"] == "no fit"


def test_no_patients_give_a_sentence():
    assert results_table(Evaluation(())).startswith("No patient was evaluated")
    assert json.loads(results_json(Evaluation(())))["patients"] == []


def test_the_reliability_curve_stands_in_the_table():
    """Of the voxels of all patients; bins without any are left out."""
    curves = [
        reliability(np.array([0.0, 0.0, 0.75, 0.75]), np.array([False, False, True, True])),
        reliability(np.array([0.0, 0.0, 0.75, 0.75]), np.array([False, True, True, False])),
    ]
    table = table_of(
        *(
            patient(
                i,
                score(0.5),
                score(0.5),
                calibration=dataclasses.replace(calibration(), tumour=curve),
            )
            for i, curve in enumerate(curves)
        )
    )
    assert table_row(table, "forecast probability")[1:] == ["0.000", "0.750"]
    assert table_row(table, "share that is tumour")[1:] == ["0.250", "0.750"]
    assert table_row(table, "voxels")[1:] == ["4", "4"]
