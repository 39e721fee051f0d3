"""Evaluation of stub forecasters on a toy data set, against truth read and cropped by hand."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tadiff_rt.errors import GeometryError, UsageError
from tadiff_rt.preprocess import Window
from tadiff_rt.slices import parse_slices
from tadiff_train.data import find_subjects, read_subject
from tadiff_train.evaluation import PatientResult, Scope, on_network_grid, usable_subjects
from tadiff_train.evaluation.forecasts import seed_of
from tadiff_train.evaluation.patients import open_patient
from tadiff_train.evaluation.plans import order_found, treated_is_less
from tadiff_train.metrics import hd95, psnr, ssim
from tests.train.toy_patients import (
    CONTRACT,
    SHAPE,
    SUFFIXES,
    VOXEL_ML,
    Stub,
    Truth,
    brain_of_sources,
    ellipsoid,
    mask_path,
    move_session,
    oracle,
    plans,
    run,
    run_all,
    save,
    tumour_of,
    write_subject,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_subject(tmp_path)
    return tmp_path


@pytest.fixture
def truth(root: Path) -> Truth:
    return oracle(root, 4)


def test_the_truth_itself_is_a_perfect_forecast(root: Path, truth: Truth):
    """Read, turned, cropped and normalised by hand; the target is stored in other axes than the
    sources, and a window around its own brain would lie elsewhere."""
    assert oracle(root, 4, sources=(4,))[1].tolist() != truth[1].tolist()
    result = run(Stub(lambda _: truth, [0, 0]), root)
    assert result.model.dice == 1
    assert result.model.hd95_mm == 0
    assert result.model.signed_error_ml == 0
    assert result.model.brier == result.model.ece == 0
    assert result.model.crps_ml == pytest.approx(0, abs=1e-12)
    for modality in SUFFIXES:
        assert result.model.images.mae[modality] < 1e-7
        assert result.model.images.psnr[modality] > 130
        assert result.model.images.ssim[modality] == pytest.approx(1, abs=1e-6)
    assert result.model.change_dice == 1
    assert result.model.change_recall == 1
    assert all(interval.covered for interval in result.calibration.intervals)
    assert len(result.calibration.intervals) == 3


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("step", [-1, 1])
def test_one_voxel_of_misalignment_shows(root: Path, truth: Truth, axis: int, step: int):
    images, tumour = truth
    moved = np.roll(images, step, axis + 1), np.roll(tumour, step, axis)
    result = run(Stub(lambda _: moved), root)
    assert result.model.dice < 0.95
    assert result.model.hd95_mm >= 1
    assert all(value > 0.05 for value in result.model.images.mae.values())
    assert all(value < 0.8 for value in result.model.images.ssim.values())


def test_a_forecast_of_the_last_scan_is_the_copy_in_every_metric(root: Path, truth: Truth):
    last_images, last = oracle(root, 3)
    copied = run(Stub(lambda _: (last_images, last), [0, 0]), root)
    for name, ours in vars(copied.model).items():
        if name != "images":
            assert ours == pytest.approx(getattr(copied.copy, name), rel=1e-5), name
    for name, ours in vars(copied.model.images).items():
        assert ours == pytest.approx(getattr(copied.copy.images, name), rel=1e-5), name
    overlap = 2 * (last & truth[1]).sum() / (last.sum() + truth[1].sum())
    assert copied.copy.dice == pytest.approx(overlap)
    error_ml = (last.sum() - truth[1].sum()) * VOXEL_ML
    assert copied.copy.signed_error_ml == pytest.approx(error_ml)
    assert copied.copy.crps_ml == copied.copy.absolute_error_ml == pytest.approx(abs(error_ml))
    assert copied.copy.change_dice == 0
    assert copied.copy.change_recall == 0


def test_a_mask_has_its_wrong_brain_voxels_as_brier_score(root: Path, truth: Truth):
    result = run(Stub(lambda _: truth), root)
    at, last = list(result.slices), oracle(root, 3)[1]
    brain = brain_of_sources(root)[at]
    wrong = float((last ^ truth[1])[at][brain].mean())
    assert wrong > 0
    assert result.copy.brier == pytest.approx(wrong, rel=1e-6)


def test_image_metrics_are_of_the_brain_of_the_evaluated_slices(root: Path, truth: Truth):
    """Noise everywhere, wrong in the background and in other slices as well."""
    noise = np.random.default_rng(1).random(truth[0].shape)
    result = run(Stub(lambda _: (noise, truth[1])), root)
    at = list(result.slices)
    brain = brain_of_sources(root)[at]
    guess, images = noise[:, at].astype(np.float32), truth[0][:, at]
    for m, modality in enumerate(SUFFIXES):
        expected = psnr(guess[m], images[m], brain)
        assert result.model.images.psnr[modality] == pytest.approx(expected, abs=1e-4)
        assert result.model.images.psnr[modality] < 10
        per_slice = [ssim(*row) for row in zip(guess[m], images[m], brain, strict=True)]
        assert result.model.images.ssim[modality] == pytest.approx(np.mean(per_slice), abs=1e-4)


def test_a_missed_future_tumour_scores_0(root: Path, truth: Truth):
    """Pooled with three perfect source masks it would score 0.86."""
    images, tumour = truth
    result = run(Stub(lambda _: (images, np.zeros_like(tumour)), [0, 0]), root)
    assert result.model.dice == 0
    assert result.model.hd95_mm is None
    assert result.model.signed_error_ml == pytest.approx(-tumour.sum() * VOXEL_ML)
    assert result.model.absolute_error_ml == pytest.approx(tumour.sum() * VOXEL_ML)
    assert result.model.crps_ml == pytest.approx(tumour.sum() * VOXEL_ML)


def test_a_probability_is_cut_at_one_half_and_squashed_no_further(root: Path, truth: Truth):
    """A second sigmoid maps every probability to 0.5 or more."""
    images, tumour = truth
    unsure = np.where(tumour, 0.55, 0.45)
    result = run(Stub(lambda _: (images, unsure)), root)
    assert result.model.dice == 1
    assert result.model.brier == pytest.approx(0.45**2, rel=1e-5)


def test_images_that_overshoot_are_clipped(root: Path, truth: Truth):
    images, tumour = truth
    over = np.where(images >= 1, 1.2, np.where(images <= 0, -0.2, images))
    assert (over != images).any(axis=(1, 2, 3)).all()
    scored = run(Stub(lambda _: (over, tumour)), root).model.images
    assert max(scored.mae.values()) < 1e-7


def test_change_counts_the_voxels_that_differ_from_the_last_mask(root: Path, truth: Truth):
    images, tumour = truth
    last = oracle(root, 3)[1]
    grown, gone = tumour & ~last, last & ~tumour
    assert grown.any()
    assert gone.any()
    only_growth = run(Stub(lambda _: (images, last | grown)), root).model
    share = grown.sum() / (grown.sum() + gone.sum())
    assert only_growth.change_recall == pytest.approx(share)
    assert only_growth.change_dice == pytest.approx(2 * share / (1 + share))
    # Tumour everywhere has all growth right, and is no good forecast of change.
    assert run(Stub(lambda _: (images, np.ones_like(tumour))), root).model.change_dice < 0.1


def test_the_model_is_asked_before_the_target_and_for_the_target(root: Path, truth: Truth):
    stub = Stub(lambda _: truth)
    result = run(stub, root, coherence=0.5)
    ((case, request),) = stub.asked
    assert [session.name for session in case.sessions] == [f"ses-0{n}" for n in (1, 2, 3, 4)]
    assert request == {
        "day": 141,
        "treatment": "TMZ",
        "samples": 2,
        "steps": 3,
        "seed": seed_of(7, "sub-001"),
        "coherence": 0.5,
        "slices": ",".join(map(str, result.slices)),
        "extrapolate": True,
    }
    assert (result.target_day, result.horizon_days, result.num_sources) == (141, 51, 4)
    assert not result.extrapolated


@pytest.mark.parametrize("limits", [{"max_day": 140}, {"max_horizon_days": 50}], ids=str)
def test_a_target_beyond_training_is_marked(root: Path, truth: Truth, limits: dict):
    """The target is on day 141, 51 days after the last source."""
    stub = Stub(lambda _: truth)
    vars(stub.bundle.manifest.card).update(limits)
    assert run(stub, root).extrapolated


def tumour_slices(*masks: np.ndarray) -> list[int]:
    return np.flatnonzero(np.any(masks, axis=(0, 2, 3))).tolist()


def asked_slices(stub: Stub) -> list[int]:
    return [k for _, request in stub.asked for k in parse_slices(request["slices"]).listed]


def covered_slices(root: Path) -> list[int]:
    """Tumour of the three sources and two slices on either side, by hand."""
    held = tumour_slices(*(oracle(root, session)[1] for session in (1, 2, 3)))
    return sorted({k + reach for k in held for reach in range(-2, 3)})


def test_slices_are_chosen_by_the_past_and_not_by_the_target(root: Path, truth: Truth):
    stub = Stub(lambda _: truth)
    before = run(stub, root).slices
    assert list(before) == covered_slices(root)
    assert asked_slices(stub) == list(before)
    save(mask_path(root, "sub-001", 4), ellipsoid((9, 11, 7), (2, 2, 0.6)).astype(np.uint8), "RAS")
    assert run(Stub(lambda _: truth), root).slices == before


def test_tumour_invented_in_a_slice_without_any_counts(root: Path, truth: Truth):
    images, tumour = truth
    held = tumour_slices(tumour, oracle(root, 3)[1])
    invented = tumour.copy()
    invented[held[-1] + 1] = True
    said = run(Stub(lambda _: (images, invented), [0, 0]), root).model
    more = tumour[0].size * VOXEL_ML
    assert said.signed_error_ml == pytest.approx(more)
    assert said.dice < 0.5
    assert said.brier > 0.01


def test_without_tumour_in_any_source_all_brain_is_evaluated(root: Path, truth: Truth):
    for session in range(4):
        save(mask_path(root, "sub-001", session), np.zeros(SHAPE, np.uint8), "RAS")
    result = run(Stub(lambda _: truth), root)
    assert list(result.slices) == np.flatnonzero(brain_of_sources(root).any(axis=(1, 2))).tolist()
    assert result.model.dice == 1
    assert (result.copy.dice, result.unforecast_ml) == (0, 0)


def test_without_tumour_before_or_after_images_are_scored_on_all_forecast_slices(
    root: Path, truth: Truth
):
    for session in (3, 4):
        save(mask_path(root, "sub-001", session), np.zeros(SHAPE, np.uint8), "RAS")
    images, tumour = truth
    result = run(Stub(lambda _: (images, np.zeros_like(tumour))), root)
    earlier = tumour_slices(*(oracle(root, session)[1] for session in (1, 2)))
    assert list(result.slices) == list(range(earlier[0] - 2, earlier[-1] + 3))
    assert max(result.model.images.mae.values()) < 1e-7
    assert result.model.dice is None
    assert result.model.hd95_mm is None
    assert result.model.change_dice is None
    assert result.model.change_recall is None


@pytest.mark.parametrize(("max_slices", "step"), [(1, 9), (2, 5), (3, 3), (5, 2), (9, 1), (99, 1)])
def test_of_many_slices_every_kth_is_forecast_and_no_other(
    root: Path, truth: Truth, max_slices: int, step: int
):
    stub = Stub(lambda _: truth)
    every = covered_slices(root)
    assert len(every) == 9
    result = run(stub, root, max_slices=max_slices)
    assert set(result.slices) <= set(every)
    assert set(np.diff(result.slices)) <= {step}
    assert len(result.slices) == min(max_slices, 9)
    assert result.slice_step == step
    asked = asked_slices(stub)
    assert asked == list(result.slices)
    every_ml = VOXEL_ML * 9 / len(asked)
    assert result.true_ml == pytest.approx(truth[1][asked].sum() * every_ml)
    assert result.model.volume_ml == pytest.approx(result.true_ml)
    assert result.calibration.samples_ml[1] == pytest.approx(result.true_ml + 10 * every_ml)
    assert result.unforecast_ml == 0
    assert result.model.dice == 1


@pytest.mark.parametrize("max_slices", [1, 2, 3, 4, 5])
def test_slices_of_two_tumours_keep_an_even_step(root: Path, truth: Truth, max_slices: int):
    """Far apart, with slices between that hold none: distances need a grid."""
    for session in range(5):
        blobs = ellipsoid((9, 11, 1), (2, 2, 0.6)) | ellipsoid((9, 15, 14), (2, 2, 0.6))
        save(mask_path(root, "sub-001", session), blobs.astype(np.uint8), "RAS")
    every = covered_slices(root)
    assert len(every) < every[-1] - every[0] + 1
    slices = run(Stub(lambda _: truth), root, max_slices=max_slices).slices
    assert 1 <= len(slices) <= max_slices
    assert set(slices) <= set(every)
    steps = np.diff(slices)
    assert len(steps) == 0 or set(steps % steps.min()) == {0}


def test_of_two_groups_far_apart_one_slice_is_kept(root: Path, truth: Truth):
    """The middle of all lies between them."""
    for session in range(5):
        blobs = ellipsoid((9, 11, 1), (2, 2, 0.6)) | ellipsoid((9, 15, 14), (2, 2, 0.6))
        save(mask_path(root, "sub-001", session), blobs.astype(np.uint8), "RAS")
    (kept,) = run(Stub(lambda _: truth), root, max_slices=1).slices
    assert kept in covered_slices(root)


@pytest.mark.parametrize(("max_slices", "step"), [(99, 1), (5, 2)])
def test_surface_distances_know_the_voxels_and_the_left_out_slices(
    root: Path, truth: Truth, max_slices: int, step: int
):
    """Two masks in slices of their own: only the step between slices sets them apart."""
    images, tumour = truth
    at = tumour_slices(tumour, oracle(root, 3)[1])
    upper = np.zeros_like(tumour)
    upper[at[:3]] = tumour[at[2]]
    result = run(Stub(lambda _: (images, upper)), root, max_slices=max_slices)
    kept = list(result.slices)
    assert result.model.hd95_mm == hd95(upper[kept], tumour[kept], (step, 1, 1))
    assert result.model.hd95_mm != hd95(upper[kept], tumour[kept], (3 - step, 1, 1))


def test_gaps_between_evaluated_slices_are_empty_not_closed(root: Path, truth: Truth):
    """A tumour forecast in the wrong one of two places, as far off as the places are apart."""
    places = [ellipsoid((9, 11, 1), (2, 2, 0.6)), ellipsoid((9, 11, 14), (2, 2, 0.6))]
    both = places[0] | places[1]
    for session, blob in enumerate((both, both, both, *places)):
        save(mask_path(root, "sub-001", session), blob.astype(np.uint8), "RAS")
    last, future = oracle(root, 3)[1], oracle(root, 4)[1]
    result = run(Stub(lambda _: (truth[0], last)), root)
    assert len(result.slices) < result.slices[-1] - result.slices[0] + 1
    assert result.model.hd95_mm == hd95(last, future, (1, 1, 1)) == 13


def test_voxel_edges_go_with_their_axes(root: Path, truth: Truth):
    """x, y, z of the files are columns, rows and slices of the network's grid."""
    for path in root.rglob("*.nii.gz"):
        image = nib.load(path)
        edges = np.abs(nib.affines.apply_affine(image.affine, np.eye(3)) - image.affine[:3, 3])
        assert edges.sum() == pytest.approx(3)
        image.set_sform(np.diag([0.95, 1.02, 1.05, 1]) @ image.affine)
        image.set_qform(image.get_sform(), code="scanner")
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.get_sform(), image.header), path)
    (subject,) = find_subjects(root)
    patient = open_patient(read_subject(subject), CONTRACT, Scope())
    assert patient.spacing_mm == pytest.approx((1.05, 1.02, 0.95))
    assert patient.voxel_ml == pytest.approx(1.05 * 1.02 * 0.95 / 1000)


def test_future_tumour_outside_the_forecast_slices_is_told(root: Path, truth: Truth):
    far = tumour_of(4) | ellipsoid((10, 13, 14), (2, 2, 0.5))
    save(mask_path(root, "sub-001", 4), far.astype(np.uint8), "RAS")
    result = run(Stub(lambda _: truth), root)
    outside = int((far & ~tumour_of(4)).sum())
    assert outside > 0
    assert result.unforecast_ml == pytest.approx(outside * VOXEL_ML)
    assert result.true_ml == pytest.approx(truth[1].sum() * VOXEL_ML)


def test_short_history_repeats_the_first_session(tmp_path: Path):
    write_subject(tmp_path, sessions=2)
    expected = oracle(tmp_path, 1, sources=(0,))
    result = run(Stub(lambda _: expected), tmp_path)
    assert result.num_sources == 1
    assert result.model.dice == 1


def test_another_window_of_the_forecast_is_a_bug(root: Path, truth: Truth):
    stub = Stub(lambda _: truth)
    stub.window = Window((0, 0), 24)
    with pytest.raises(AssertionError, match="different windows"):
        run(stub, root)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_a_target_prepared_unlike_the_sources_is_a_bug(
    root: Path, truth: Truth, axis: int, monkeypatch: pytest.MonkeyPatch
):
    def shifted(*args):
        images, tumour = on_network_grid(*args)
        return np.roll(images, 1, axis), np.roll(tumour, 1, axis - 1)

    monkeypatch.setattr("tadiff_train.evaluation.patients.on_network_grid", shifted)
    with pytest.raises(AssertionError, match="not prepared alike"):
        run(Stub(lambda _: truth), root)


def test_a_target_on_another_grid_is_refused(root: Path, truth: Truth):
    move_session(root, 4)
    with pytest.raises(GeometryError, match="another voxel grid"):
        run(Stub(lambda _: truth), root)


SWAPPED = {"none": "TMZ", "TMZ": "none", "CRT": "CRT"}


@pytest.fixture
def judged(root: Path, monkeypatch: pytest.MonkeyPatch):
    """Forecasts of the truth under the plan that `as_plan` names for each; all toy plans differ
    enough."""
    monkeypatch.setattr("tadiff_train.evaluation.plans.MIN_PLAN_DIFFERENCE_ML", 0.005)
    plans(root)
    given = mask_path(root, "sub-001", 4, "tumourTMZ")
    given.write_bytes(mask_path(root, "sub-001", 4).read_bytes())

    def judge(as_plan: dict[str, str]) -> tuple[PatientResult, Stub]:
        def answer(treatment: str) -> Truth:
            return oracle(root, 4, mask_path(root, "sub-001", 4, f"tumour{as_plan[treatment]}"))

        stub = Stub(answer)
        return run(stub, root, counterfactuals=True), stub

    return judge


def test_other_plans_are_forecast_with_one_seed_and_compared_with_their_truth(root, judged):
    result, stub = judged({name: name for name in SWAPPED})
    futures = plans(root) | {"TMZ": tumour_of(4)}
    assert [plan.treatment for plan in result.plans] == ["TMZ", "CRT", "none"]
    for plan in result.plans:
        assert plan.true_ml == pytest.approx(futures[plan.treatment].sum() * VOXEL_ML)
        # Two samples, of the truth and of 10 voxels more.
        assert plan.model_ml == pytest.approx(plan.true_ml + 5 * VOXEL_ML)
        assert plan.model_dice == 1
        assert (plan.growth_ml, plan.growth_dice) == (None, None)
    assert {request["seed"] for _, request in stub.asked} == {result.seed}
    assert {request["slices"] for _, request in stub.asked} == {stub.asked[0][1]["slices"]}
    assert order_found(result, "model") == [True, True]
    assert order_found(result, "growth") == []
    found = treated_is_less([result], "model")
    assert (found.count, found.of) == (1, 1)


def test_a_forecast_that_mixes_up_treatments_fails_the_order(judged):
    result, _ = judged(SWAPPED)
    found = treated_is_less([result], "model")
    assert (found.count, found.of) == (0, 1)
    # No image tells a fixed order that treatments help: it is right wherever the truth is.
    assert treated_is_less([result], "rule").count == 1
    assert order_found(result, "rule") == [True, True]
    # Against the swapped one given: none is less, and so is CRT, rightly.
    assert sorted(order_found(result, "model")) == [False, True]


def test_a_forecast_that_ignores_treatments_fails_the_order(judged):
    result, _ = judged(dict.fromkeys(SWAPPED, "TMZ"))
    assert treated_is_less([result], "model").count == 0
    assert order_found(result, "model") == [False, False]


def test_plans_of_one_volume_have_no_order(root: Path, truth: Truth):
    """All toy tumours are alike within 0.5 ml."""
    plans(root)
    result = run(Stub(lambda _: truth), root, counterfactuals=True)
    assert len(result.plans) == 3
    assert order_found(result, "model") == []
    assert treated_is_less([result], "model").of == 0


def test_plans_are_forecast_when_asked_for(root: Path, truth: Truth):
    plans(root)
    stub = Stub(lambda _: truth)
    assert run(stub, root).plans == ()
    assert len(stub.asked) == 1


def test_a_treatment_unknown_to_the_network_is_not_asked_for(root: Path, truth: Truth):
    plans(root)
    stub = Stub(lambda _: truth)
    del stub.bundle.manifest.card.treatments["CRT"]
    result = run(stub, root, counterfactuals=True)
    assert [plan.treatment for plan in result.plans] == ["TMZ", "none"]


def test_every_subject_is_evaluated_and_told(root: Path, truth: Truth):
    write_subject(root, 2, sessions=2)
    told: list[tuple[int, int]] = []
    results = run_all(Stub(lambda _: truth), root, progress=lambda *done: told.append(done))
    assert [result.name for result in results] == ["sub-001", "sub-002"]
    assert told == [(1, 2), (2, 2)]


def test_every_patient_has_draws_of_its_own(root: Path, truth: Truth):
    """With the draws of another, ranks and coverage would be of one patient many times."""
    write_subject(root, 2, sessions=2)
    stub = Stub(lambda _: truth)
    results = run_all(stub, root)
    asked = [request["seed"] for _, request in stub.asked]
    assert asked == [result.seed for result in results]
    assert len(set(asked)) == 2
    assert asked == [request["seed"] for _, request in stub.asked]
    assert seed_of(7, "sub-001") != seed_of(8, "sub-001")


def test_patients_that_cannot_be_used_are_found_before_any_forecast(root: Path, truth: Truth):
    write_subject(root, 2, sessions=1)
    write_subject(root, 3)
    mask_path(root, "sub-003", 4).unlink()
    card = Stub(lambda _: truth).bundle.manifest.card
    usable, bad = usable_subjects(find_subjects(root), card, Scope())
    assert [subject.name for subject in usable] == ["sub-001"]
    assert {name: error.code for name, error in bad.items()} == {
        "sub-002": "TD3035",
        "sub-003": "TD3036",
    }


def test_what_cannot_be_judged_is_refused(root: Path, truth: Truth):
    with pytest.raises(UsageError, match="at least 1, got 0") as caught:
        Scope(max_slices=0)
    assert caught.value.code == "TD3034"
    with pytest.raises(UsageError, match="is none of all") as caught:
        Scope(slices="some")
    assert caught.value.code == "TD3018"
    mask_path(root, "sub-001", 2).unlink()
    with pytest.raises(UsageError, match="no tumour mask of ses-03") as caught:
        run(Stub(lambda _: truth), root)
    assert caught.value.code == "TD3036"


def test_a_single_session_is_no_evaluation(tmp_path: Path):
    write_subject(tmp_path, sessions=1)
    with pytest.raises(UsageError, match="one session") as caught:
        run(Stub(lambda _: pytest.fail("nothing to ask")), tmp_path)
    assert caught.value.code == "TD3035"
