"""Prepared cases on disk: what they hold, when they are made anew, and what a crash leaves."""

import dataclasses
import errno
import hashlib
import itertools
import json
import os
import re
import resource
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tadiff_rt.case import ReadOptions
from tadiff_rt.errors import NiftiError, OutputError, ResourceError, TadiffError
from tadiff_rt.preprocess import DataContract
from tadiff_rt.readers import read_case
from tadiff_train.data import cache as cache_module
from tadiff_train.data import entry as entry_module
from tadiff_train.data.cache import cache_cases, cache_cohort, training_domain
from tadiff_train.data.entry import CachedCase, open_entry
from tests.train import layouts

CONTRACT = DataContract(size=32, spacing_mm=layouts.SPACING_MM, min_slices=4)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def cohort(tmp_path) -> Path:
    """The small cohort as BIDS."""
    return layouts.write_bids(tmp_path / "bids")


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def cached(cohort: Path, cache: Path, **options: object) -> list[CachedCase]:
    return cache_cases(cohort, CONTRACT, cache, **options)


def files_of(folder: Path) -> dict[Path, tuple[int, bytes]]:
    paths = (p for p in folder.rglob("*") if p.is_file())
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in paths}


def entries(cache: Path) -> list[str]:
    return sorted(os.listdir(cache))


def test_cases_hold_the_slices_around_the_tumour_as_the_network_sees_them(cohort, cache):
    told = []
    first, second = cached(cohort, cache, progress=lambda *done: told.append(done))
    assert told == [(1, 2), (2, 2)]
    assert (first.name, first.days, first.treatments) == ("sub-01", (0, 28, 77), (0, 1, 2))
    assert (second.name, second.days, second.treatments) == ("sub-02", (0, 70), (0, 1))
    assert first.images.shape == (6, 3, 3, 32, 32)
    assert first.masks.shape == (6, 3, 32, 32)
    assert (first.images.dtype, first.masks.dtype) == (np.float16, np.bool_)
    holds = [False, False, True, True, False, False]
    assert first.masks.any(axis=(1, 2, 3)).tolist() == holds
    # Contents are those of test_cohort's oracle, which is the same for every layout.


def test_slices_without_brain_are_not_kept(cohort, cache):
    for path in (cohort / "derivatives").rglob("sub-01*dseg.nii.gz"):
        mask = np.zeros(layouts.SHAPE, np.uint8)
        mask[8:10, 10:14, 10] = 1  # the topmost slice with brain: the margin above holds none
        layouts.save(path, mask)
    first, _ = cached(cohort, cache)
    assert first.masks.any(axis=(1, 2, 3)).tolist() == [True, False, False]
    assert first.provenance.slices == (1, 2, 3)


def test_a_patient_without_tumour_offers_no_slices(cohort, cache):
    for path in (cohort / "derivatives").rglob("sub-01*dseg.nii.gz"):
        layouts.save(path, np.zeros(layouts.SHAPE, np.uint8))
    first, second = cached(cohort, cache)
    assert first.images.shape == (0, 3, 3, 32, 32)
    assert len(second.images) == 6
    assert cached(cohort, cache)[0].images.shape == (0, 3, 3, 32, 32)


def test_a_second_call_maps_the_same_files(cohort, cache):
    first = cached(cohort, cache)
    before = files_of(cache)
    second = cached(cohort, cache)
    assert files_of(cache) == before
    for a, b in zip(first, second, strict=True):
        for one, other in ((a.images, b.images), (a.masks, b.masks)):
            assert isinstance(other, np.memmap)
            assert (other.mode, other.flags.writeable) == ("r", False)
            assert one.filename == other.filename
            assert one.tobytes() == other.tobytes()


def test_a_case_knows_where_it_comes_from(cohort, cache):
    case = cached(cohort, cache)[0]
    told = case.provenance
    read = read_case(cohort / "sub-01")
    assert told.source == str((cohort / "sub-01").resolve())
    assert told.layout == "bids"
    assert told.shape == case.images.shape
    for record, session in zip(told.sessions, read.sessions, strict=True):
        assert (record.name, record.day) == (session.name, session.day)
        assert record.treatment == session.treatment
        expected = {name: volume.sha256 for name, volume in session.images.items()}
        assert record.sha256 == {**expected, "mask": session.mask.sha256}
    counts = case.masks.astype(int).sum(axis=(2, 3)).tolist()
    assert [list(row) for row in told.tumour_voxels] == counts
    assert told.contract["size"] == 32
    assert told.options["affine"] == "agree"
    assert any(name.endswith("sub-01_sessions.tsv") for name, _, _ in told.files)
    named = [name for name, size, _ in told.files if size]
    assert len(named) == 3 * 4 + 1 + 1  # images and masks, the table, no treatments.csv


def test_a_voxel_is_found_again_in_the_patients_space(cohort, cache):
    case = cached(cohort, cache)[0]
    told = case.provenance
    n, row, column = (int(i) for i in np.argwhere(case.masks[:, 2])[0])
    mm = np.array(told.affine) @ (row, column, told.slices[n], 1)
    file = next((cohort / "derivatives").rglob("sub-01_ses-03*dseg.nii.gz"))
    image = nib.load(file)
    voxel = np.linalg.inv(image.affine) @ mm
    np.testing.assert_allclose(voxel, np.rint(voxel), atol=1e-9)
    x, y, z = (int(i) for i in np.rint(voxel[:3]))
    assert np.asarray(image.dataobj)[x, y, z] > 0
    # And that of the first session, in which it is another one.
    every = {
        tuple(np.rint(np.linalg.inv(image.affine) @ np.array(told.affine) @ (r, c, k, 1))[:3])
        for n, k in enumerate(told.slices)
        for r, c in np.argwhere(case.masks[n, 0])
    }
    first = np.argwhere(layouts.tumour(1, 0) > 0)
    assert every == {tuple(voxel) for voxel in first.astype(float)}


@pytest.mark.parametrize("layout", layouts.WRITERS)
def test_whatever_is_changed_makes_a_new_entry(tmp_path, cache, layout):
    """One after another: each file that was read, changed, and then back as it was."""
    root = layouts.WRITERS[layout](tmp_path / "data")
    options = {"options": ReadOptions(**layouts.OPTIONS.get(layout, {}))}
    first = cached(root, cache, **options)[0].provenance
    (own,) = {one for one in entries(cache) if open_entry(cache / one).name == first.name}
    read = [Path(name) for name, size, _ in first.files if size > 0]
    assert len(read) >= 4
    for path in read[:: max(1, len(read) // 4)]:
        before = path.stat()
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        cached(root, cache, **options)
        assert len(entries(cache)) > 2, path
        again = {one for one in entries(cache) if open_entry(cache / one).name == first.name}
        assert len(again) == 2
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        state = files_of(cache)
        cached(root, cache, **options)
        assert files_of(cache) == state
        for one in again - {own}:
            for file in (cache / one).iterdir():
                file.unlink()
            (cache / one).rmdir()


def test_an_image_of_equal_size_and_time_goes_unnoticed(cohort, cache):
    """What the documentation admits; and that the digest of what was read tells them apart."""
    path = cohort / "sub-01/ses-01/anat/sub-01_ses-01_T1w.nii"
    path.with_suffix(".nii.gz").unlink()
    layouts.save(path, layouts.scan(1, 0, 0))
    case = cached(cohort, cache)[0]
    state = path.stat()
    layouts.save(path, layouts.scan(1, 0, 1))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size
    again = cached(cohort, cache)[0]
    assert again.images.filename == case.images.filename
    digest = read_case(cohort / "sub-01").sessions[0].images["t1"].sha256
    assert again.provenance.sessions[0].sha256["t1"] != digest


def test_a_new_mask_or_table_beside_the_subject_is_noticed(cohort, cache):
    cached(cohort, cache)
    mask = next((cohort / "derivatives").rglob("sub-01_ses-02*dseg.nii.gz"))
    other = cohort / "derivatives/second" / mask.relative_to(cohort / "derivatives/manual")
    other.parent.mkdir(parents=True)
    other.write_bytes(mask.read_bytes())
    with pytest.raises(TadiffError) as caught:
        cached(cohort, cache)
    assert caught.value.code == "TD3321"


@pytest.mark.parametrize(
    "change",
    [
        {"contract": dataclasses.replace(CONTRACT, size=40)},
        {"contract": dataclasses.replace(CONTRACT, percentiles=(10.0, 50.0))},
        {"options": ReadOptions(affine="sform")},
    ],
)
def test_another_contract_or_option_makes_new_entries(cohort, cache, change):
    first = cached(cohort, cache)
    changed = {"contract": CONTRACT, **change}
    again = cache_cases(cohort, folder=cache, **changed)
    assert len(entries(cache)) == 4
    assert {c.images.filename for c in first}.isdisjoint(c.images.filename for c in again)
    assert again[0].images.shape[-1] == changed["contract"].size


def test_a_new_folder_of_a_session_is_noticed(tmp_path, cache):
    """Even an empty one: whether it is a session is for the reader to say."""
    root = layouts.write_sailor(tmp_path / "s")
    cached(root, cache)
    (root / "sub-01/ses-04").mkdir()
    with pytest.raises(TadiffError) as caught:
        cached(root, cache)
    assert {e.code for e in caught.value.findings} >= {"TD3319"}
    (root / "sub-01/ses-04").rmdir()
    (root / "sub-01/.DS_Store").write_text("of no concern")
    before = files_of(cache)
    cached(root, cache)
    assert files_of(cache) == before


def test_a_session_left_out_of_one_patient_costs_the_others_nothing(tmp_path, cache):
    root = layouts.write_sailor(tmp_path / "s")
    options = ReadOptions(treatments="published")
    first = cached(root, cache, options=options)
    options = dataclasses.replace(options, leave_out=("sub-01/ses-02",))
    again = cached(root, cache, options=options)
    assert [len(case.days) for case in again] == [2, 2]
    assert len(entries(cache)) == 3
    assert again[1].images.filename == first[1].images.filename


def test_a_cache_among_the_images_of_a_subject_is_refused(cohort, tmp_path):
    """It would be read as images of that subject, and never be the same again."""
    (tmp_path / "link").symlink_to(cohort / "sub-01")
    for folder in (cohort / "sub-01/cache", tmp_path / "link/cache"):
        with pytest.raises(OutputError) as caught:
            cached(cohort / "sub-01", folder)
        assert caught.value.code == "TD8021"
        assert not folder.exists()
    assert len(cached(cohort / "sub-01", cohort / "cache")) == 1


def test_an_edited_table_makes_a_new_entry(cohort, cache):
    cached(cohort, cache)
    table = cohort / "sub-01/sub-01_sessions.tsv"
    table.write_text(table.read_text().replace("\t77\tnone", "\t80\tTMZ"))
    case = cached(cohort, cache)[0]
    assert (case.days, case.treatments) == ((0, 28, 80), (0, 1, 1))
    assert len(entries(cache)) == 3


def test_what_the_labels_mean_is_part_of_an_entry(cohort, cache):
    """The table lies above the folders of the subjects."""
    table = cohort / "derivatives/manual/desc-tumour_dseg.tsv"
    table.write_text("index\tname\n1\toedema\n")
    noted = cached(cohort, cache)[0].provenance.notes
    table.write_text("index\tname\n1\ttumour\n")
    assert cached(cohort, cache)[0].provenance.notes != noted
    assert len(entries(cache)) == 4


TEARS = {
    "no meta": lambda entry: (entry / "meta.json").unlink(),
    "half a meta": lambda entry: (entry / "meta.json").write_text('{"name": "sub-01"'),
    "another version's meta": lambda entry: (entry / "meta.json").write_text('{"days": [0]}'),
    "no masks": lambda entry: (entry / "masks.npy").unlink(),
    "half the images": lambda entry: os.truncate(entry / "images.npy", 5000),
    "images of others": lambda entry: np.save(entry / "images.npy", np.zeros((1, 3, 3, 32, 32))),
    "masks of others": lambda entry: np.save(entry / "masks.npy", np.zeros((6, 3, 32, 30), bool)),
    "images that are none": lambda entry: (entry / "images.npy").write_bytes(b"\x93NUMPY half"),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_entry_is_made_again(cohort, cache, tear):
    cached(cohort, cache)
    whole = {path: data for path, (_, data) in files_of(cache).items()}
    TEARS[tear](cache / entries(cache)[0])
    cached(cohort, cache)
    assert {path: data for path, (_, data) in files_of(cache).items()} == whole


def test_a_file_in_the_place_of_an_entry_gives_way(cohort, cache):
    cached(cohort, cache)
    names = entries(cache)
    for file in (cache / names[0]).iterdir():
        file.unlink()
    (cache / names[0]).rmdir()
    (cache / names[0]).write_text("mine?")
    assert [len(case.images) for case in cached(cohort, cache)] == [6, 6]


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "TD7002"), (errno.EACCES, "TD8002"), (errno.EIO, "TD8007")]
)
@pytest.mark.parametrize("fails_at", range(5))
def test_a_write_that_fails_leaves_nothing(cohort, cache, monkeypatch, number, code, fails_at):
    """Each of the writes of a patient, and the error that the system gives."""
    writes = itertools.count()
    really = os.write

    def write(descriptor: int, data: bytes) -> int:
        if next(writes) == fails_at:
            raise OSError(number, os.strerror(number))
        return really(descriptor, data)

    with monkeypatch.context() as broken:
        broken.setattr(os, "write", write)
        with pytest.raises((ResourceError, OutputError)) as caught:
            cached(cohort, cache, skip_bad=True)
    assert caught.value.code == code
    assert entries(cache) == []
    assert [len(case.images) for case in cached(cohort, cache)] == [6, 6]


def test_a_file_size_limit_is_a_full_disk(cohort, cache):
    """From the system itself: the images of a patient are larger than the limit."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(ResourceError) as caught:
            cached(cohort, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.code == "TD7002"
    assert entries(cache) == []


def test_a_cache_that_cannot_be_a_folder_is_refused(cohort, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError):
        cached(cohort, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_what_a_killed_process_left_is_removed(cohort, cache):
    """It dies when all is written and nothing has its name."""
    code = (
        "import os, sys; from pathlib import Path; from tadiff_rt.preprocess import DataContract;"
        "from tadiff_train.data import entry, cache_cases;"
        "entry._rename = lambda *paths: os.kill(os.getpid(), 9);"
        "contract = DataContract(size=32, spacing_mm=2.0, min_slices=4);"
        "cache_cases(Path(sys.argv[1]), contract, Path(sys.argv[2]))"
    )
    ended = subprocess.run([sys.executable, "-c", code, cohort, cache], cwd=ROOT, check=False)
    assert ended.returncode == -9
    (left,) = entries(cache)
    assert sorted(os.listdir(cache / left)) == ["images.npy", "masks.npy", "meta.json"]
    cached(cohort, cache)
    assert len(entries(cache)) == 2
    assert left not in entries(cache)


def test_files_that_change_while_they_are_read_are_refused(cohort, cache, monkeypatch):
    table = cohort / "sub-01/sub-01_sessions.tsv"
    really = entry_module.read_subject

    def read_subject(subject, options):
        case = really(subject, options)
        table.write_text(table.read_text() + "\n")
        return case

    monkeypatch.setattr(entry_module, "read_subject", read_subject)
    with pytest.raises(NiftiError) as caught:
        cached(cohort, cache)
    assert caught.value.code == "TD3129"
    assert "sub-01" in caught.value.where


BUILD = """
import hashlib, sys
from pathlib import Path
from tadiff_rt.preprocess import DataContract
from tadiff_train.data import cache_cases

contract = DataContract(size=32, spacing_mm=2.0, min_slices=4)
for line in sys.stdin:
    digest = hashlib.sha256()
    for case in cache_cases(Path(sys.argv[1]), contract, Path(sys.argv[2])):
        digest.update(case.images.tobytes() + case.masks.tobytes())
    print(digest.hexdigest(), flush=True)
"""


@pytest.mark.slow
def test_processes_that_build_one_cache_do_no_harm(cohort, cache):
    """As those that torchrun starts; over a torn entry, which both want to replace."""
    digest = hashlib.sha256()
    for case in cached(cohort, cache):
        digest.update(case.images.tobytes() + case.masks.tobytes())
    arguments = [sys.executable, "-c", BUILD, cohort, cache]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen(arguments, cwd=ROOT, **pipes) as one,
        subprocess.Popen(arguments, cwd=ROOT, **pipes) as other,
    ):
        for attempt in range(6):
            for name in entries(cache):
                TEARS["no masks" if attempt % 2 else "half the images"](cache / name)
            for process in (one, other):
                print(file=process.stdin, flush=True)
            for process in (one, other):
                assert process.stdout.readline().strip() == digest.hexdigest()
            assert len(entries(cache)) == 2


def test_an_entry_that_is_missing_for_a_moment_is_waited_for(cohort, cache):
    """Between two renames of a process that replaces it."""
    cached(cohort, cache)
    entry, aside = cache / entries(cache)[0], cache / "aside"
    before = open_entry(entry).provenance
    entry.rename(aside)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_module, "PATIENCE_S", 0.05)
        with pytest.raises(OutputError, match="TD8020"):
            cache_module._opened(entry)
    threading.Timer(0.1, lambda: aside.rename(entry)).start()
    assert cache_module._opened(entry).provenance == before


@pytest.mark.slow
def test_several_processes_read_the_same(tmp_path, cache):
    root = layouts.write_sailor(tmp_path / "s", {p: layouts.COHORT[2] for p in range(1, 5)})
    (root / "sub-02/ses-01/T1.nii.gz").write_bytes(b"")
    (root / "sub-02/ses-02/Flair.nii.gz").unlink()
    (root / "sub-03/intervals-days.txt").write_text("")
    told = []
    with pytest.raises(TadiffError) as caught:
        cache_cohort(root, CONTRACT, cache, lambda *done: told.append(done), jobs=2)
    with pytest.raises(TadiffError) as alone:
        cache_cohort(root, CONTRACT, tmp_path / "other")
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    one, other = (
        [(type(e), e.code, e.message, e.where, e.fix) for e in error.value.findings]
        for error in (caught, alone)
    )
    assert one == other
    assert [code for _, code, *_ in one] == ["TD3316", "TD3101", "TD3319"]
    kept = cache_cohort(root, CONTRACT, cache, skip_bad=True, jobs=2)
    assert [case.name for case in kept.cases] == ["sub-01", "sub-04"]
    assert entries(cache) == entries(tmp_path / "other")


class Killed(ProcessPoolExecutor):
    """As when the system takes a process away while it reads."""

    def map(self, make, found):
        return super().map(os._exit, [1] * len(found))


def test_a_process_that_is_killed_is_an_error_of_ours(cohort, cache, monkeypatch):
    monkeypatch.setattr(cache_module, "ProcessPoolExecutor", Killed)
    with pytest.raises(ResourceError) as caught:
        cached(cohort, cache, jobs=2)
    assert caught.value.code == "TD7001"


def test_a_window_costs_its_bytes(tmp_path, cache):
    """Pages of the file that a process holds, and bytes that it allocates."""
    size = 192
    root = layouts.write_bids(tmp_path / "b", {1: layouts.COHORT[1]})
    contract = dataclasses.replace(CONTRACT, size=size)
    (case,) = cache_cases(root, contract, cache)
    window_bytes = 3 * 3 * size * size * 2
    whole = Path(case.images.filename).stat().st_size
    assert whole > 5 * window_bytes
    assert case.images[2].flags.c_contiguous
    before = resident_bytes(case.images.filename)
    tracemalloc.start()
    window = case.images[2][[0, 0, 1]]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(case.images, np.memmap)
    assert window.nbytes == window_bytes
    assert peak < window_bytes + 20_000
    if before is not None:
        # A fault brings neighbours along, up to a large page or two; not all the file.
        assert resident_bytes(case.images.filename) - before < whole / 2


def resident_bytes(file: Path) -> int | None:
    """Of a mapped file in this process, as Linux counts them; None where nobody does."""
    try:
        maps = Path("/proc/self/smaps").read_text()
    except OSError:
        return None
    parts = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", maps)
    own = [part for part in parts if part.split("\n", 1)[0].endswith(str(file))]
    assert own
    return sum(1024 * int(re.search(r"\nRss:\s+([0-9]+) kB", part)[1]) for part in own)


def test_meta_is_json_that_people_can_read(cohort, cache):
    cached(cohort, cache)
    for name in entries(cache):
        text = (cache / name / "meta.json").read_text()
        assert text.count("\n") > 20
        assert json.loads(text)["name"].startswith("sub-0")


def test_training_domain_is_what_occurs():
    arrays = np.zeros((1, 3, 3, 4, 4), np.float16), np.zeros((1, 3, 4, 4), bool)
    a = CachedCase("a", (0, 40, 300), (0, 0, 2), *arrays)
    b = CachedCase("b", (0, 310), (0, 0), *arrays)
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
