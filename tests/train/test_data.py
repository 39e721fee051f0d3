"""Training windows: which sessions they take, how patients are drawn, and the cache below them."""

import dataclasses
import itertools
import shutil
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tadiff_rt.errors import UsageError
from tadiff_rt.preprocess import DataContract
from tadiff_train.data import (
    CachedCase,
    batches,
    cache_cases,
    choose_sessions,
    choose_target,
    subjects,
    training_domain,
)

CONTRACT = DataContract(size=32, spacing_mm=2.0, min_slices=4)
SHAPE = (24, 28, 10)  # R, A, S: the canonical array is 28 x 24 x 10
ENDINGS = ("T1w", "ce-gadolinium_T1w", "FLAIR")
SESSIONS = ((0, "CRT"), (30, "TMZ"), (75, "TMZ"))
RAS = np.diag([2.0, 2.0, 2.0, 1.0])


def write_volume(path: Path, data: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, RAS), path)


def head(seed: int) -> np.ndarray:
    """A textured box in the middle of the volume, different for every seed."""
    data = np.zeros(SHAPE, np.int16)
    data[4:20, 4:24, 1:9] = np.random.default_rng(seed).integers(300, 1000, (16, 20, 8))
    return data


def write_subject(root: Path, name: str, sessions=SESSIONS, *, tumour=True, masks=True) -> Path:
    rows = ["session_id\tdays_from_baseline\ttreatment"]
    for i, (day, treatment) in enumerate(sessions):
        stem = f"{name}/ses-{i + 1:02d}/anat/{name}_ses-{i + 1:02d}"
        rows.append(f"ses-{i + 1:02d}\t{day}\t{treatment}")
        for m, ending in enumerate(ENDINGS):
            write_volume(root / f"{stem}_{ending}.nii.gz", head(10 * i + m))
        if masks:
            mask = np.zeros(SHAPE, np.uint8)
            if tumour:
                mask[8 : 10 + i, 10:14, 6] = 1  # in one slice, growing
            folder = root / "derivatives" / "manual"
            write_volume(folder / f"{stem}_desc-tumour_dseg.nii.gz", mask)
    (root / name / f"{name}_sessions.tsv").write_text("\n".join(rows) + "\n")
    return root / name


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """Two subjects, of three and of two sessions."""
    root = tmp_path_factory.mktemp("bids")
    write_subject(root, "sub-01")
    write_subject(root, "sub-02", ((0, "CRT"), (200, "none")))
    return root


def case_of(num_sessions: int, num_slices: int = 3, value: float | None = None) -> CachedCase:
    """Every voxel holds its slice and session, or `value`; the left half of each mask is set."""
    images = np.zeros((num_slices, num_sessions, 3, 4, 6), np.float16)
    for at, s, m in itertools.product(range(num_slices), range(num_sessions), range(3)):
        images[at, s, m] = 100 * at + 10 * s + m if value is None else value
    masks = np.zeros((num_slices, num_sessions, 4, 6), bool)
    masks[..., :3] = True
    return CachedCase(
        "toy", tuple(50 * s for s in range(num_sessions)), (0,) * num_sessions, images, masks
    )


@pytest.mark.parametrize(
    ("num", "windows"),
    [
        (2, {(0, 0, 0, 1)}),
        (3, {(0, 0, 0, 1), (0, 0, 1, 2)}),
        (4, {(0, 0, 0, 1), (0, 0, 1, 2), (0, 1, 2, 3)}),
    ],
)
def test_short_histories_give_the_published_windows(num, windows):
    rng = np.random.default_rng(0)
    assert {tuple(choose_sessions(num, rng).tolist()) for _ in range(200)} == windows


def test_windows_run_in_time_order_with_the_target_last():
    rng = np.random.default_rng(1)
    windows = Counter(tuple(choose_sessions(7, rng).tolist()) for _ in range(6000))
    targets = Counter()
    for window, count in windows.items():
        *sources, target = window
        assert sources == sorted(sources)
        assert sources[-1] < target
        targets[target] += count
    # Every later session is the target equally often: 6000 / 6 with a deviation of 29.
    assert set(targets) == set(range(1, 7))
    assert all(abs(count - 1000) < 145 for count in targets.values())


def test_recent_sessions_mostly_but_any_earlier_ones_too():
    rng = np.random.default_rng(2)
    windows = Counter(tuple(choose_sessions(7, rng).tolist()) for _ in range(20_000))
    last = {w: n for w, n in windows.items() if w[3] == 6}
    assert set(last) == {(*s, 6) for s in itertools.combinations(range(6), 3)}
    # 0.7, and 1 of 20 subsets in the other 0.3: 0.715 with a deviation of 0.008.
    assert last[(3, 4, 5, 6)] / sum(last.values()) == pytest.approx(0.715, abs=0.035)


def test_target_slots():
    rng = np.random.default_rng(3)
    assert {choose_target(rng, "future") for _ in range(100)} == {3}
    slots = Counter(choose_target(rng, "published") for _ in range(8000))
    # Of the published draw: future 62.5 %, the others 12.5 % each; deviations below 45.
    assert slots[3] == pytest.approx(5000, abs=220)
    assert all(slots[s] == pytest.approx(1000, abs=150) for s in range(3))


def test_batches_hold_what_the_cache_holds():
    case = case_of(5)
    stream = batches([case], 4, seed=0)
    flips = 0
    for batch in itertools.islice(stream, 30):
        assert batch.images.shape == (4, 4, 3, 4, 6)
        assert batch.images.dtype == batch.masks.dtype == torch.float32
        assert batch.days.dtype == batch.treatments.dtype == torch.float32
        assert batch.target.dtype == torch.int64
        for i in range(4):
            sessions = (batch.days[i] / 50).long()
            at = int(batch.images[i, 0, 0, 0, 0]) // 100
            expected = 100 * at + 10 * sessions[:, None] + torch.arange(3)
            assert torch.equal(batch.images[i, :, :, 0, 0], expected.float())
            left = batch.masks[i, ..., 0].bool()
            assert left.all() or not left.any()
            flips += int(not left.any())
    assert 40 <= flips <= 80  # of 120, half of the time


def test_flips_move_images_and_masks_together():
    case = case_of(2)
    images = np.where(case.masks[:, :, None], 0.75, 0.25).astype(np.float16)
    images = np.broadcast_to(images, case.images.shape)
    case = dataclasses.replace(case, images=images)
    flips = set()
    for batch in itertools.islice(batches([case], 4, seed=5), 10):
        assert torch.equal(
            batch.images, (0.25 + 0.5 * batch.masks)[:, :, None].expand(-1, -1, 3, -1, -1)
        )
        flips |= set(batch.masks[:, 0, 0, 0].tolist())
    assert flips == {0.0, 1.0}


def test_patients_are_drawn_evenly_whatever_their_size():
    cases = [case_of(2, 1, 0.25), case_of(9, 40, 0.5), case_of(4, 3, 0.75)]
    values = [
        float(batch.images[i, 0, 0, 0, 0])
        for batch in itertools.islice(batches(cases, 10, seed=1), 120)
        for i in range(10)
    ]
    # 400 of 1200 each, deviation 16.
    assert all(abs(values.count(v) - 400) < 85 for v in (0.25, 0.5, 0.75))


def test_stream_is_a_function_of_the_seed():
    def first(seed: int) -> list[torch.Tensor]:
        stream = batches([case_of(6), case_of(3)], 3, seed, "published")
        return [
            torch.cat([getattr(b, f.name).flatten().double() for f in dataclasses.fields(b)])
            for b in itertools.islice(stream, 5)
        ]

    assert all(itertools.starmap(torch.equal, zip(first(4), first(4), strict=True)))
    assert not all(itertools.starmap(torch.equal, zip(first(4), first(5), strict=True)))


def test_cases_that_cannot_be_trained_on_are_left_out():
    single, empty, good = case_of(1, value=0.1), case_of(3, 0), case_of(2, value=0.5)
    for batch in itertools.islice(batches([single, empty, good], 4, seed=0), 10):
        assert torch.all(batch.images == 0.5)
    with pytest.raises(UsageError, match="TD3032"):
        next(batches([single, empty], 4, seed=0))


def test_cache_holds_the_slices_around_the_tumour_as_the_network_sees_them(cohort, tmp_path):
    told = []
    first, second = cache_cases(cohort, CONTRACT, tmp_path, lambda *done: told.append(done))
    assert told == [(1, 2), (2, 2)]
    assert (first.name, first.days, first.treatments) == ("sub-01", (0, 30, 75), (0, 1, 1))
    assert (second.name, second.days, second.treatments) == ("sub-02", (0, 200), (0, 2))
    # Tumour in z = 6 of 10, which is slice 3 from superior; the head fills z = 1 to 8.
    assert first.images.shape == (5, 3, 3, 32, 32)
    assert first.masks.shape == (5, 3, 32, 32)
    assert first.masks.any(axis=(1, 2, 3)).tolist() == [False, False, True, False, False]
    for s, m in itertools.product(range(3), range(3)):
        raw = head(10 * s + m).astype(float)
        low, high = np.percentile(raw[raw > 0], CONTRACT.percentiles)
        scaled = np.where(raw > 0, np.clip(raw, low, high) / high, 0)
        for k in range(5):
            # P, L: anterior first, then right first. The box of 20 x 16 voxels is centred in 32.
            plane = scaled[4:20, 4:24, 8 - k][::-1, ::-1].T
            expected = np.pad(plane, ((6, 6), (8, 8)))
            np.testing.assert_allclose(first.images[k, s, m], expected, rtol=0, atol=5e-4)
    mask = np.zeros(SHAPE, bool)
    mask[8:12, 10:14, 6] = True  # of the third session
    plane = mask[4:20, 4:24, 6][::-1, ::-1].T
    np.testing.assert_array_equal(first.masks[2, 2], np.pad(plane, ((6, 6), (8, 8))))


def test_slices_without_brain_are_not_kept(tmp_path):
    subject = write_subject(tmp_path / "bids", "sub-01")
    for path in (tmp_path / "bids/derivatives").rglob("*dseg.nii.gz"):
        mask = np.zeros(SHAPE, np.uint8)
        mask[8:10, 10:14, 8] = 1  # the topmost slice with brain: the margin above holds none
        write_volume(path, mask)
    (case,) = cache_cases(subject.parent, CONTRACT, tmp_path / "cache")
    assert case.masks.any(axis=(1, 2, 3)).tolist() == [True, False, False]


def files_of(folder: Path) -> dict[Path, tuple[int, bytes]]:
    paths = (p for p in folder.rglob("*") if p.is_file())
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in paths}


def test_second_call_maps_the_same_files(cohort, tmp_path):
    first = cache_cases(cohort, CONTRACT, tmp_path)
    before = files_of(tmp_path)
    second = cache_cases(cohort, CONTRACT, tmp_path)
    assert files_of(tmp_path) == before
    for a, b in zip(first, second, strict=True):
        assert isinstance(b.images, np.memmap)
        assert a.images.filename == b.images.filename
        assert a.images.tobytes() == b.images.tobytes()
        assert a.masks.tobytes() == b.masks.tobytes()


def test_another_contract_makes_new_entries(cohort, tmp_path):
    first = cache_cases(cohort, CONTRACT, tmp_path)
    other = dataclasses.replace(CONTRACT, size=40)
    again = cache_cases(cohort, other, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    assert [c.images.shape[-1] for c in (*first, *again)] == [32, 32, 40, 40]
    clipped = dataclasses.replace(CONTRACT, percentiles=(10.0, 50.0))
    darker = cache_cases(cohort, clipped, tmp_path)
    assert darker[0].images.tobytes() != first[0].images.tobytes()


def test_an_edited_table_makes_a_new_entry(tmp_path):
    subject = write_subject(tmp_path / "bids", "sub-01")
    root, cache = subject.parent, tmp_path / "cache"
    cache_cases(root, CONTRACT, cache)
    table = subject / "sub-01_sessions.tsv"
    table.write_text(table.read_text().replace("\t75\tTMZ", "\t80\tnone"))
    (case,) = cache_cases(root, CONTRACT, cache)
    assert (case.days, case.treatments) == ((0, 30, 80), (0, 1, 2))
    assert len(list(cache.iterdir())) == 2


def test_a_torn_entry_is_made_again(cohort, tmp_path):
    cache_cases(cohort, CONTRACT, tmp_path)
    whole = {path: data for path, (_, data) in files_of(tmp_path).items()}
    torn = sorted(tmp_path.iterdir())[0]
    (torn / "meta.json").unlink()
    (torn / "images.npy").write_bytes(b"\x93NUMPY half of")
    (torn / "masks.npy").unlink()
    cache_cases(cohort, CONTRACT, tmp_path)
    assert {path: data for path, (_, data) in files_of(tmp_path).items()} == whole


def test_the_mark_of_a_complete_entry_comes_last_and_whole(cohort, tmp_path, monkeypatch):
    """A crash while the arrays are written leaves no entry that a later run would trust."""

    def full_disk(path, array):
        Path(path).write_bytes(b"\x93NUMPY")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(np, "save", full_disk)
        with pytest.raises(OSError, match="No space"):
            cache_cases(cohort, CONTRACT, tmp_path)
    assert not list(tmp_path.rglob("meta.json"))
    assert [len(c.images) for c in cache_cases(cohort, CONTRACT, tmp_path)] == [5, 5]


def test_a_session_without_a_mask_is_refused(tmp_path):
    subject = write_subject(tmp_path / "bids", "sub-07")
    derived = tmp_path / "bids/derivatives/manual/sub-07"
    shutil.rmtree(derived / "ses-02")
    with pytest.raises(UsageError, match="sub-07") as caught:
        cache_cases(subject.parent, CONTRACT, tmp_path / "cache")
    assert caught.value.code == "TD3031"
    assert not (tmp_path / "cache").exists()


def test_a_patient_without_tumour_offers_no_slices(tmp_path):
    subject = write_subject(tmp_path / "bids", "sub-01", tumour=False)
    # Brain up to the first slice, so that a slice kept by mistake is not saved by being empty.
    for path in subject.rglob("*.nii.gz"):
        data = np.zeros(SHAPE, np.int16)
        data[4:20, 4:24] = np.random.default_rng(0).integers(300, 1000, (16, 20, 10))
        write_volume(path, data)
    (case,) = cache_cases(subject.parent, CONTRACT, tmp_path / "cache")
    assert case.images.shape == (0, 3, 3, 32, 32)
    with pytest.raises(UsageError, match="TD3032"):
        next(batches([case], 1, seed=0))


def test_subjects_are_the_folders_in_order_of_name(tmp_path):
    for name in ("sub-10", "sub-02", "derivatives"):
        (tmp_path / name).mkdir()
    (tmp_path / "sub-99.txt").write_text("")
    assert [p.name for p in subjects(tmp_path)] == ["sub-02", "sub-10"]
    with pytest.raises(UsageError, match="TD3030"):
        subjects(tmp_path / "derivatives")


def test_training_domain_is_what_occurs():
    a = dataclasses.replace(case_of(3), days=(0, 40, 300), treatments=(0, 0, 2))
    b = dataclasses.replace(case_of(2), days=(0, 310), treatments=(0, 0))
    domain = training_domain([a, b])
    assert domain.treatments == {"CRT": 0, "none": 2}
    assert domain.max_day == 310
    assert domain.max_horizon_days == 310
    assert training_domain([a]).max_horizon_days == 260
    assert training_domain([]).model_dump() == {
        "treatments": {},
        "max_day": 0,
        "max_horizon_days": 0,
    }
