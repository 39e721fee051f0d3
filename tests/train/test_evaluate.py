"""Evaluation of stub forecasters on a toy data set, against truth read and cropped by hand."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from tadiff_rt.case import TREATMENTS, Case
from tadiff_rt.ensemble import volume_interval
from tadiff_rt.errors import GeometryError, UsageError
from tadiff_rt.forecast import choose_slices
from tadiff_rt.preprocess import DataContract, Window, prepare
from tadiff_rt.request import select_sources
from tadiff_rt.runner import EnsembleResult
from tadiff_rt.slices import parse_slices
from tadiff_train.evaluate import evaluate, on_network_grid
from tadiff_train.metrics import psnr, ssim
from tadiff_train.results import (
    METRICS,
    CounterfactualScore,
    PatientResult,
    Score,
    compare,
    results_json,
    results_table,
)

SIZE = 24
SHAPE = (22, 26, 16)
VOXEL_ML = 0.001
CONTRACT = DataContract(size=SIZE)
SUFFIXES = {"t1": "T1w", "t1c": "ce-gadolinium_T1w", "flair": "FLAIR"}
DAYS, PLAN = (0, 14, 30, 90, 141), ("CRT", "CRT", "CRT", "TMZ", "TMZ")

Truth = tuple[np.ndarray, np.ndarray]
"""(3, d, size, size) images and (d, size, size) tumour on the network's grid."""


def ellipsoid(centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    axes = np.indices(SHAPE).reshape(3, -1).T
    return (((axes - centre) / radii) ** 2).sum(axis=1).reshape(SHAPE) < 1


def brain_of(session: int) -> np.ndarray:
    """Wider at one side in the third source, and at the other two in the target, which would
    move a window of its own."""
    brain = ellipsoid((10, 13, 8), (8.5, 9.5, 7.5))
    if session == 3:
        brain |= np.roll(brain, -1, axis=0)
    if session == 4:
        brain |= np.roll(brain, 2, axis=0) | np.roll(brain, 2, axis=1)
    return brain


def tumour_of(session: int) -> np.ndarray:
    """Grows and moves, in the target also up; the shape is alike under no shift or flip."""
    z = 8.2 if session == 4 else 7
    blob = ellipsoid((8 + 0.5 * session, 11, z), (2.2 + 0.3 * session, 3.4, 2.6))
    return blob | ellipsoid((11, 15, 8), (2.4, 1.5, 1.2))


def save(path: Path, data: np.ndarray, axcodes: str) -> None:
    """Stores an array on R, A, S axes in another order of axes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.eye(4)
    affine[:3, 3] = -10
    ras = nib.Nifti1Image(data, affine)
    transform = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(axcodes)
    )
    image = ras.as_reoriented(transform)
    image.set_qform(image.affine, code="scanner")
    image.set_sform(image.affine, code="scanner")
    nib.save(image, path)


def mask_path(root: Path, subject: str, session: int, desc: str = "tumour") -> Path:
    name = f"{subject}_ses-{session + 1:02d}_desc-{desc}_dseg.nii.gz"
    folder = root / "derivatives" / "phantom" / subject / f"ses-{session + 1:02d}" / "anat"
    return folder / name


def image_path(root: Path, subject: str, session: int, modality: str) -> Path:
    name = f"{subject}_ses-{session + 1:02d}_{SUFFIXES[modality]}.nii.gz"
    return root / subject / f"ses-{session + 1:02d}" / "anat" / name


def write_subject(root: Path, number: int = 1, sessions: int = len(DAYS)) -> None:
    """The last `sessions` of DAYS, the target in another storage order than the sources."""
    subject, first = f"sub-{number:03d}", len(DAYS) - sessions
    rows = ["session_id\tdays_from_baseline\ttreatment"]
    for s in range(sessions):
        rng = np.random.default_rng([number, first + s])
        axcodes = "LPS" if s == sessions - 1 else "RAS"
        tumour = tumour_of(first + s)
        for modality in SUFFIXES:
            tissue = rng.choice([250.0, 500.0, 750.0], size=SHAPE) + rng.normal(
                scale=40, size=SHAPE
            )
            tissue[tumour] += 300
            scan = np.where(brain_of(first + s), tissue, 0).astype(np.float32)
            save(image_path(root, subject, s, modality), scan, axcodes)
        save(mask_path(root, subject, s), tumour.astype(np.uint8), axcodes)
        rows.append(f"ses-{s + 1:02d}\t{DAYS[first + s] - DAYS[first]}\t{PLAN[first + s]}")
    (root / subject / f"{subject}_sessions.tsv").write_text("\n".join(rows) + "\n")


def pli(path: Path) -> np.ndarray:
    """By hand: nearest R, A, S axes, then all flipped and the first two exchanged."""
    data = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)
    return data[::-1, ::-1, ::-1].transpose(1, 0, 2)


def oracle(root: Path, session: int, mask: Path | None = None, sources=(1, 2, 3)) -> Truth:
    """Session `session` of sub-001 in the window around the brains of `sources`, by hand."""
    subject, margin = "sub-001", 30
    paths = [image_path(root, subject, s, m) for s in sources for m in SUFFIXES]
    brain = np.any([pli(path) > 0 for path in paths], axis=0)
    corner = []
    for axis in (0, 1):
        held = np.flatnonzero(brain.any(axis=(1 - axis, 2)))
        first, n = held.min(), held.max() + 1 - held.min()
        corner.append(first - (SIZE - n) // 2 + margin)

    def cut(data: np.ndarray) -> np.ndarray:
        wide = np.pad(data, ((margin, margin), (margin, margin), (0, 0)))
        a, b = corner
        return np.moveaxis(wide[a : a + SIZE, b : b + SIZE], 2, 0)

    images = []
    for modality in SUFFIXES:
        data = pli(image_path(root, subject, session, modality)).astype(np.float64)
        low, high = np.percentile(data[data > 0], (0.2, 99.8))
        images.append(cut(np.where(data > 0, np.clip(data, low, high) / high, 0)))
    return np.stack(images), cut(pli(mask or mask_path(root, subject, session)) > 0)


class Stub:
    """Answers every request with volumes on the network's grid, chosen by treatment."""

    def __init__(self, answer: Callable[[str], Truth | EnsembleResult], samples: int = 2) -> None:
        card = SimpleNamespace(
            data=CONTRACT, max_day=400, max_horizon_days=51, treatments=dict(TREATMENTS)
        )
        self.bundle = SimpleNamespace(manifest=SimpleNamespace(card=card))
        self.answer = answer
        self.asked: list[tuple[Case, dict]] = []
        self.window: Window | None = None

    def predict(self, case: Case, **request) -> SimpleNamespace:
        self.asked.append((case, request))
        prepared = prepare(select_sources(case)[0], CONTRACT)
        slices = list(choose_slices(prepared, parse_slices(request["slices"])))
        images, tumour = self.answer(request["treatment"])
        depth, samples = len(prepared.sources), request["samples"]
        result = EnsembleResult.empty(depth, SIZE, samples)
        result.mean[:, slices] = images[:, slices]
        result.probability[slices] = tumour[slices]
        result.tumour_voxels[:] = (tumour[slices] > 0.5).sum() + 10 * np.arange(samples)
        if self.window:
            prepared = dataclasses.replace(prepared, window=self.window)
        return SimpleNamespace(ensemble=result, prepared=prepared)


def run(stub: Stub, root: Path, **options) -> PatientResult:
    settings = {"samples": 2, "steps": 3, "seed": 7} | options
    (result,) = evaluate(stub, root, **settings)
    return result


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
    result = run(Stub(lambda _: truth), root)
    assert result.model.dice == 1
    assert result.model.signed_error_ml == 0
    for modality in SUFFIXES:
        assert result.model.mae[modality] < 1e-7
        assert result.model.psnr[modality] > 130
        assert result.model.ssim[modality] == pytest.approx(1, abs=1e-6)
    assert result.change_dice == 1
    assert result.change_recall == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("step", [-1, 1])
def test_one_voxel_of_misalignment_shows(root: Path, truth: Truth, axis: int, step: int):
    images, tumour = truth
    moved = np.roll(images, step, axis + 1), np.roll(tumour, step, axis)
    result = run(Stub(lambda _: moved), root)
    assert result.model.dice < 0.95
    assert all(value > 0.05 for value in result.model.mae.values())
    assert all(value < 0.8 for value in result.model.ssim.values())


def test_the_copy_is_the_last_source_with_its_mask(root: Path, truth: Truth):
    last_images, last = oracle(root, 3)
    copied = run(Stub(lambda _: (last_images, last)), root)
    for field in dataclasses.fields(Score):
        ours, copy = getattr(copied.model, field.name), getattr(copied.copy, field.name)
        assert ours == pytest.approx(copy, rel=1e-5), field.name
    overlap = 2 * (last & truth[1]).sum() / (last.sum() + truth[1].sum())
    assert copied.copy.dice == pytest.approx(overlap)
    assert copied.copy.signed_error_ml == pytest.approx((last.sum() - truth[1].sum()) * VOXEL_ML)
    assert copied.change_dice == 0
    assert copied.change_recall == 0


def test_image_metrics_are_of_the_brain_of_the_evaluated_slices(root: Path, truth: Truth):
    """Noise everywhere, wrong in the background and in other slices as well."""
    noise = np.random.default_rng(1).random(truth[0].shape)
    result = run(Stub(lambda _: (noise, truth[1])), root)
    sources = [oracle(root, s)[0] for s in (1, 2, 3)]
    at = list(result.slices)
    brain = np.any(np.array(sources) > 0, axis=(0, 1))[at]
    guess, images = noise[:, at].astype(np.float32), truth[0][:, at]
    for m, modality in enumerate(SUFFIXES):
        expected = psnr(guess[m], images[m], brain)
        assert result.model.psnr[modality] == pytest.approx(expected, abs=1e-4)
        assert result.model.psnr[modality] < 10
        per_slice = [ssim(*row) for row in zip(guess[m], images[m], brain, strict=True)]
        assert result.model.ssim[modality] == pytest.approx(np.mean(per_slice), abs=1e-4)


def test_a_missed_future_tumour_scores_0(root: Path, truth: Truth):
    """Pooled with three perfect source masks it would score 0.86."""
    images, tumour = truth
    result = run(Stub(lambda _: (images, np.zeros_like(tumour))), root)
    assert result.model.dice == 0
    assert result.model.signed_error_ml == pytest.approx(-tumour.sum() * VOXEL_ML)
    assert result.model.absolute_error_ml == pytest.approx(tumour.sum() * VOXEL_ML)


def test_a_probability_is_cut_at_one_half_and_squashed_no_further(root: Path, truth: Truth):
    """A second sigmoid maps every probability to 0.5 or more."""
    images, tumour = truth
    unsure = np.where(tumour, 0.55, 0.45)
    assert run(Stub(lambda _: (images, unsure)), root).model.dice == 1


def test_images_that_overshoot_are_clipped(root: Path, truth: Truth):
    images, tumour = truth
    over = np.where(images >= 1, 1.2, np.where(images <= 0, -0.2, images))
    assert (over != images).any(axis=(1, 2, 3)).all()
    assert max(run(Stub(lambda _: (over, tumour)), root).model.mae.values()) < 1e-7


def test_change_counts_the_voxels_that_differ_from_the_last_mask(root: Path, truth: Truth):
    images, tumour = truth
    last = oracle(root, 3)[1]
    grown, gone = tumour & ~last, last & ~tumour
    assert grown.any()
    assert gone.any()
    only_growth = run(Stub(lambda _: (images, last | grown)), root)
    share = grown.sum() / (grown.sum() + gone.sum())
    assert only_growth.change_recall == pytest.approx(share)
    assert only_growth.change_dice == pytest.approx(2 * share / (1 + share))
    # Tumour everywhere has all growth right, and is no good forecast of change.
    assert run(Stub(lambda _: (images, np.ones_like(tumour))), root).change_dice < 0.1


def test_the_model_is_asked_before_the_target_and_for_the_target(root: Path, truth: Truth):
    stub = Stub(lambda _: truth)
    result = run(stub, root)
    for case, request in stub.asked:
        assert [session.name for session in case.sessions] == [f"ses-0{n}" for n in (1, 2, 3, 4)]
        assert {key: request[key] for key in ("day", "treatment", "samples", "steps", "seed")} == {
            "day": 141,
            "treatment": "TMZ",
            "samples": 2,
            "steps": 3,
            "seed": 7,
        }
    assert (result.target_day, result.horizon_days, result.num_sources) == (141, 51, 4)
    assert not result.extrapolated


@pytest.mark.parametrize("limits", [{"max_day": 140}, {"max_horizon_days": 50}], ids=str)
def test_a_target_beyond_training_is_marked(root: Path, truth: Truth, limits: dict):
    """The target is on day 141, 51 days after the last source."""
    stub = Stub(lambda _: truth)
    vars(stub.bundle.manifest.card).update(limits)
    assert run(stub, root).extrapolated
    assert all(request["extrapolate"] for _, request in stub.asked)


def tumour_slices(*masks: np.ndarray) -> list[int]:
    return np.flatnonzero(np.any(masks, axis=(0, 2, 3))).tolist()


def test_slices_hold_tumour_before_or_after(root: Path, truth: Truth):
    stub = Stub(lambda _: truth)
    result = run(stub, root)
    assert tumour_slices(truth[1]) != tumour_slices(oracle(root, 3)[1])
    assert list(result.slices) == tumour_slices(truth[1], oracle(root, 3)[1])
    assert [request["slices"] for _, request in stub.asked] == [
        f"{result.slices[0]}:{result.slices[-1] + 1}"
    ]


def test_without_tumour_before_or_after_images_are_scored_on_all_forecast_slices(
    root: Path, truth: Truth
):
    for session in (3, 4):
        save(mask_path(root, "sub-001", session), np.zeros(SHAPE, np.uint8), "RAS")
    images, tumour = truth
    result = run(Stub(lambda _: (images, np.zeros_like(tumour))), root)
    earlier = tumour_slices(*(oracle(root, session)[1] for session in (1, 2)))
    assert list(result.slices) == list(range(earlier[0] - 2, earlier[-1] + 3))
    assert max(result.model.mae.values()) < 1e-7
    assert result.model.dice is None
    assert result.change_dice is None
    assert result.change_recall is None


@pytest.mark.parametrize(("max_slices", "step"), [(2, 3), (3, 2), (4, 2), (6, 1), (99, 1)])
def test_of_many_slices_every_kth_is_forecast_and_no_other(
    root: Path, truth: Truth, max_slices: int, step: int
):
    stub = Stub(lambda _: truth)
    every = tumour_slices(truth[1], oracle(root, 3)[1])
    assert len(every) == 6
    result = run(stub, root, max_slices=max_slices)
    assert set(result.slices) <= set(every)
    assert set(np.diff(result.slices)) == {step}
    assert len(result.slices) == 6 / step
    forecast = [parse_slices(request["slices"]) for _, request in stub.asked]
    asked = [k for choice in forecast for k in choice.listed]
    assert asked == list(result.slices)
    assert result.true_ml == pytest.approx(truth[1][asked].sum() * VOXEL_ML)
    assert result.unforecast_ml == 0
    assert result.model.dice == 1


def test_future_tumour_outside_the_forecast_slices_is_told(root: Path, truth: Truth):
    far = tumour_of(4) | ellipsoid((10, 13, 14), (2, 2, 0.5))
    save(mask_path(root, "sub-001", 4), far.astype(np.uint8), "RAS")
    result = run(Stub(lambda _: truth), root)
    outside = int((far & ~tumour_of(4)).sum())
    assert outside > 0
    assert result.unforecast_ml == pytest.approx(outside * VOXEL_ML)
    assert result.true_ml == pytest.approx(truth[1].sum() * VOXEL_ML)


def test_volumes_of_a_sample_add_up_over_runs_of_slices(root: Path, truth: Truth):
    """The stub's sample k has 10 k voxels more in each of the runs, here single slices."""
    stub = Stub(lambda _: truth)
    result = run(stub, root, max_slices=3, samples=4)
    runs, voxels = len(result.slices), truth[1][list(result.slices)].sum()
    assert len(stub.asked) == runs > 1
    volumes = [(voxels + 10 * runs * k) * VOXEL_ML for k in range(4)]
    assert result.interval_ml == pytest.approx(volume_interval(volumes, 0.9)[1:])
    assert result.covered == (result.interval_ml[0] <= result.true_ml <= result.interval_ml[1])


@pytest.mark.parametrize(("extra", "covered"), [(0, True), (60, False)])
def test_coverage_is_of_the_true_volume(root: Path, truth: Truth, extra: int, covered: bool):
    images, tumour = truth
    more = tumour.copy()
    at = np.argwhere((images[0] > 0) & ~tumour & tumour.any(axis=(1, 2))[:, None, None])
    more[tuple(at[:extra].T)] = True
    # Samples of n and n + 10 voxels: the interval is n + 5 ± 6.3 · 7.1 · 1.2 voxels.
    assert run(Stub(lambda _: (images, more)), root).covered is covered


def test_one_sample_has_no_interval(root: Path, truth: Truth):
    result = run(Stub(lambda _: truth), root, samples=1)
    assert result.interval_ml is None
    assert result.covered is None


def test_short_history_repeats_the_first_session(tmp_path: Path):
    write_subject(tmp_path, sessions=2)
    expected = oracle(tmp_path, 1, sources=(0,))
    result = run(Stub(lambda _: expected), tmp_path)
    assert result.num_sources == 1
    assert result.model.dice == 1


def test_another_window_of_the_forecast_is_a_bug(root: Path, truth: Truth):
    stub = Stub(lambda _: truth)
    stub.window = Window((0, 0), SIZE)
    with pytest.raises(AssertionError, match="different windows"):
        run(stub, root)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_a_target_prepared_unlike_the_sources_is_a_bug(
    root: Path, truth: Truth, axis: int, monkeypatch: pytest.MonkeyPatch
):
    def shifted(*args):
        images, tumour = on_network_grid(*args)
        return np.roll(images, 1, axis), np.roll(tumour, 1, axis - 1)

    monkeypatch.setattr("tadiff_train.evaluate.on_network_grid", shifted)
    with pytest.raises(AssertionError, match="not prepared alike"):
        run(Stub(lambda _: truth), root)


def test_a_target_on_another_grid_is_refused(root: Path, truth: Truth):
    """Equal shape, moved by one voxel in the header only."""
    for modality in SUFFIXES:
        path = image_path(root, "sub-001", 4, modality)
        image = nib.load(path)
        affine = image.affine.copy()
        affine[0, 3] += 1
        moved = nib.Nifti1Image(np.asarray(image.dataobj), affine)
        moved.set_qform(affine, code="scanner")
        moved.set_sform(affine, code="scanner")
        nib.save(moved, path)
    with pytest.raises(GeometryError, match="another voxel grid"):
        run(Stub(lambda _: truth), root)


def plans(root: Path) -> dict[str, np.ndarray]:
    """Without treatment there is more tumour, after chemoradiation less."""
    futures = {
        "none": tumour_of(4) | ellipsoid((10, 9, 7), (3, 2, 2)),
        "CRT": tumour_of(4) & ~ellipsoid((10, 13, 7), (9, 2.2, 9)),
    }
    for treatment, future in futures.items():
        path = mask_path(root, "sub-001", 4, f"tumour{treatment}")
        save(path, future.astype(np.uint8), "LPS")
    return futures


@pytest.mark.parametrize("right", [True, False])
def test_other_plans_are_judged_by_the_sign_of_their_difference(
    root: Path, truth: Truth, right: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tadiff_train.evaluate.MIN_PLAN_DIFFERENCE_ML", 0.005)
    futures = plans(root)
    given = mask_path(root, "sub-001", 4, "tumourTMZ")
    given.write_bytes(mask_path(root, "sub-001", 4).read_bytes())
    swapped = {"none": "CRT", "CRT": "none", "TMZ": "TMZ"}

    def answer(treatment: str) -> Truth:
        future = treatment if right else swapped[treatment]
        desc = "tumour" if future == "TMZ" else f"tumour{future}"
        return oracle(root, 4, mask_path(root, "sub-001", 4, desc))

    stub = Stub(answer)
    result = run(stub, root, counterfactuals=True)
    scores = {score.treatment: score for score in result.counterfactuals}
    assert set(scores) == {"none", "CRT"}
    for treatment, score in scores.items():
        expected = (futures[treatment].sum() - tumour_of(4).sum()) * VOXEL_ML
        assert abs(expected) > 0.005
        assert score.true_difference_ml == pytest.approx(expected)
        assert score.sign_agrees is right
        assert (score.dice == 1) is right
        if right:
            assert score.predicted_difference_ml == pytest.approx(expected)
    assert {request["seed"] for _, request in stub.asked} == {7}
    assert result.model == run(Stub(answer), root).model


def test_plans_of_one_volume_have_no_sign(root: Path, truth: Truth):
    """All toy tumours are alike within 0.5 ml."""
    plans(root)
    result = run(Stub(lambda _: truth), root, counterfactuals=True)
    assert [score.sign_agrees for score in result.counterfactuals] == [None, None]


def test_every_subject_is_evaluated_and_told(tmp_path: Path, truth: Truth):
    write_subject(tmp_path, 2, sessions=2)
    told: list[tuple[int, int]] = []
    results = evaluate(
        Stub(lambda _: truth),
        tmp_path,
        samples=2,
        steps=1,
        seed=0,
        progress=lambda *done: told.append(done),
    )
    assert [result.name for result in results] == ["sub-001", "sub-002"]
    assert told == [(1, 2), (2, 2)]


def test_what_cannot_be_judged_is_refused(root: Path, truth: Truth):
    with pytest.raises(UsageError, match="only the last") as caught:
        run(Stub(lambda _: truth), root, targets="all")
    assert caught.value.code == "TD3034"
    with pytest.raises(UsageError, match="at least 1"):
        run(Stub(lambda _: truth), root, max_slices=0)
    mask_path(root, "sub-001", 2).unlink()
    with pytest.raises(UsageError, match="no tumour mask of ses-03") as caught:
        run(Stub(lambda _: truth), root)
    assert caught.value.code == "TD3036"


def test_a_single_session_is_no_evaluation(tmp_path: Path):
    write_subject(tmp_path, sessions=1)
    with pytest.raises(UsageError, match="one session") as caught:
        run(Stub(lambda _: pytest.fail("nothing to ask")), tmp_path)
    assert caught.value.code == "TD3035"


def score(dice: float | None, psnr: float = 20.0, mae: float = 0.1) -> Score:
    modalities = ("t1", "t1c", "flair")
    return Score(
        dice=dice,
        volume_ml=5.0,
        signed_error_ml=-1.0,
        absolute_error_ml=1.0,
        ssim=dict.fromkeys(modalities, 0.5),
        psnr=dict.fromkeys(modalities, psnr),
        mae=dict.fromkeys(modalities, mae),
    )


def patient(i: int, model: Score, copy: Score, **more) -> PatientResult:
    known = {
        "name": f"sub-{i:03d}",
        "treatment": "TMZ" if i % 2 else "none",
        "target_day": 200,
        "horizon_days": 30 if i < 4 else 90,
        "num_sources": 3,
        "extrapolated": False,
        "slices": (4, 5, 6),
        "true_ml": 6.0,
        "unforecast_ml": 0.0,
        "change_dice": 0.25,
        "change_recall": 0.5,
        "interval_ml": (4.0, 6.5),
        "covered": True,
    }
    return PatientResult(model=model, copy=copy, **(known | more))


def metric(name: str):
    (found,) = [m for m in METRICS if m.name == name]
    return found


SPREAD = np.linspace(-0.2, 0.2, 10)
"""Patients differ far more than methods do: an unpaired comparison shows nothing."""


@pytest.mark.parametrize(
    ("name", "shift", "verdict"),
    [
        ("future-tumour Dice", 0.02, "better"),
        ("future-tumour Dice", -0.02, "worse"),
        ("future-tumour Dice", 0.0, "no difference shown"),
        ("PSNR (dB), FLAIR", 0.02, "better"),
        ("MAE", 0.02, "worse"),
        ("MAE", -0.02, "better"),
        ("SSIM", 0.5, "no difference shown"),
        ("signed volume error (ml)", 0.5, ""),
    ],
)
def test_methods_are_compared_patient_by_patient(name: str, shift: float, verdict: str):
    wobble = 0.004 * np.array([1, -1] * 5)
    results = [
        patient(
            i,
            score(0.5 + x + shift + w, 20 + x + shift + w, 0.3 + x + shift + w),
            score(0.5 + x, 20 + x, 0.3 + x),
        )
        for i, (x, w) in enumerate(zip(SPREAD, wobble, strict=True))
    ]
    got = compare(results, metric(name))
    assert got.verdict == verdict
    if name == "future-tumour Dice":
        assert got.difference.mean == pytest.approx(shift)
        assert got.copy.mean == pytest.approx(0.5)


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
    assert compare(results, metric("PSNR (dB)")).model.count == 7
    assert "future-tumour Dice [1 undefined]" in results_table(results)


def table_row(table: str, name: str) -> list[str]:
    (row,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_table_says_what_it_is_about():
    other = CounterfactualScore("none", 0.5, 4.0, 1.0, True)
    wrong = dataclasses.replace(other, treatment="CRT", sign_agrees=False)
    results = [
        patient(i, score(0.8), score(0.6), covered=i < 6, counterfactuals=(other, wrong))
        for i in range(8)
    ]
    table = results_table(results, settings={"model": "toy", "samples": 5})
    assert "8 simulated patients, never seen in training" in table
    assert "median 60 days, 30 to 90" in table
    assert "model toy, samples 5" in table
    assert "the model sees images only" in table
    assert "for 6 of 8 patients (75%)" in table
    assert "8 of 16 pairs" in table
    row = table_row(table, "future-tumour Dice")
    assert row[1:] == [
        "0.800 (0.800 to 0.800)",
        "0.600 (0.600 to 0.600)",
        "+0.200 (+0.200 to +0.200)",
        "better",
    ]
    assert table_row(table, "signed volume error (ml)")[-1] == "-"


def test_the_table_splits_by_horizon_and_treatment():
    results = [
        patient(i, score(0.8 if i < 4 else 0.4), score(0.6), horizon_days=59 if i < 4 else 60)
        for i in range(8)
    ]
    table = results_table(results)
    near, far = table_row(table, "horizon < 60 days"), table_row(table, "horizon >= 60 days")
    assert near[1:4] == ["4", "59", "0.800 / 0.600: no difference shown"]
    assert far[1:4] == ["4", "60", "0.400 / 0.600: no difference shown"]
    assert table_row(table, "under TMZ")[1] == "4"
    assert "under CRT" not in table


def test_json_holds_every_patient_and_no_infinity():
    results = [patient(i, score(0.8, psnr=float("inf")), score(0.6)) for i in range(7)]
    text = results_json(results, settings={"steps": 20})
    assert text == results_json(results, settings={"steps": 20})
    content = json.loads(text, parse_constant=pytest.fail)
    assert content["population"] == "simulated patients, never seen in training"
    assert content["settings"] == {"steps": 20}
    assert len(content["patients"]) == 7
    assert content["patients"][0]["model"]["psnr"]["t1"] is None
    assert content["patients"][0]["model"]["dice"] == 0.8
    first = content["groups"]["all"][0]
    assert (first["metric"], first["verdict"]) == ("future-tumour Dice", "better")
    assert first["difference"]["mean"] == pytest.approx(0.2)


def test_no_patients_give_a_sentence():
    assert results_table([]).startswith("No patient was evaluated")
    assert json.loads(results_json([]))["patients"] == []
