"""Cohorts of every layout, from faithful small copies with the defects seen in the wild."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tadiff_rt.case import ReadOptions
from tadiff_rt.errors import ResourceError, TableError, TadiffError, UsageError
from tadiff_rt.preprocess import DataContract
from tadiff_train.data import cohort as cohort_module
from tadiff_train.data.cache import cache_cases, cache_cohort
from tadiff_train.data.cohort import (
    Subject,
    find_subjects,
    findings_of,
    read_subject,
    subjects,
)
from tadiff_train.data.findings import LeftOut, left_out_table, merged
from tests.train import layouts

CONTRACT = DataContract(size=32, spacing_mm=layouts.SPACING_MM, min_slices=4)
FOLDERS = ("bids", "sailor", "lumiere")
FILES = {"npy": "sub-01_image.npy", "manifest": "manifest.csv"}
"""What names a cohort, or a part of it, beside its folder."""


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    """The cohort in every layout; not to be changed."""
    base = tmp_path_factory.mktemp("layouts")
    return {layout: write(base / layout) for layout, write in layouts.WRITERS.items()}


def copied(root: Path, to: Path) -> Path:
    return Path(shutil.copytree(root, to))


def options_of(layout: str, **changes: object) -> ReadOptions:
    return ReadOptions(**{**layouts.OPTIONS.get(layout, {}), **changes})


def found(root: Path, **options: object) -> list[tuple[str, str]]:
    return [(s.name, s.layout) for s in find_subjects(root, ReadOptions(**options))]


def raised(call, *args, **kwargs) -> list[tuple[str, str]]:
    with pytest.raises(TadiffError) as caught:
        call(*args, **kwargs)
    return [(e.code, f"{e.message} [{e.where}] {e.fix}") for e in caught.value.findings]


def cached(root: Path, folder: Path, layout: str, **changes: object):
    skip_bad = bool(changes.pop("skip_bad", False))
    options = options_of(layout, **changes)
    return cache_cohort(root, CONTRACT, folder, options=options, skip_bad=skip_bad)


@pytest.mark.parametrize("layout", layouts.WRITERS)
def test_every_layout_is_found(roots, layout):
    names = layouts.NAMES[layout]
    assert found(roots[layout]) == [(name, layout) for name in names]


@pytest.mark.parametrize("layout", layouts.WRITERS)
def test_every_layout_gives_the_same_training_data(roots, layout, tmp_path):
    """Stored along other axes, under other names, with days and treatments told otherwise."""
    cases = cached(roots[layout], tmp_path, layout).cases
    assert [case.name for case in cases] == list(layouts.NAMES[layout])
    for case, (p, sessions) in zip(cases, layouts.COHORT.items(), strict=True):
        assert case.days == tuple(day for day, _ in sessions)
        assert case.treatments == tuple(layouts.TREATMENT_CODES[name] for _, name in sessions)
        # Tumour in slices 7 and 8 of 12: 4 and 3 from superior, with two more on either side.
        assert case.provenance.slices == (1, 2, 3, 4, 5, 6)
        for s in range(len(sessions)):
            for m in range(3):
                raw = layouts.scan(p, s, m).astype(float)
                low, high = np.percentile(raw[raw > 0], CONTRACT.percentiles)
                scaled = np.where(raw > 0, np.clip(raw, low, high) / high, 0)
                expected = in_window(layouts.canonical(scaled))[:, :, 1:7]
                got = np.moveaxis(case.images[:, s, m], 0, 2)
                np.testing.assert_allclose(got, expected, rtol=0, atol=5e-4)
            mask = in_window(layouts.canonical(layouts.tumour(p, s)) > 0)[:, :, 1:7]
            np.testing.assert_array_equal(np.moveaxis(case.masks[:, s], 0, 2), mask)


def in_window(array: np.ndarray) -> np.ndarray:
    """The brain of 18 x 14 voxels, which lies at (4, 3) of 24 x 20, in the middle of 32 x 32."""
    return np.pad(array[4:22, 3:17], ((7, 7), (9, 9), (0, 0)))


@pytest.mark.parametrize("layout", FILES)
def test_a_file_names_a_cohort_too(roots, layout):
    subjects_of_file = found(roots[layout] / FILES[layout])
    expected = layouts.NAMES[layout][:1] if layout == "npy" else layouts.NAMES[layout]
    assert [name for name, _ in subjects_of_file] == list(expected)


@pytest.mark.parametrize("layout", FOLDERS)
def test_a_single_subject_is_a_cohort_of_one(roots, layout):
    name = layouts.NAMES[layout][0]
    folder = next(roots[layout].rglob(name))
    assert found(folder) == [(name, layout)]
    assert read_subject(*find_subjects(folder)).name == name


def test_lumiere_is_named_by_its_root_or_by_its_imaging_folder(roots):
    assert found(roots["lumiere"] / "Imaging") == found(roots["lumiere"])


def test_a_relative_root_is_where_it_is_said(roots, monkeypatch):
    monkeypatch.chdir(roots["bids"] / "sub-01")
    assert found(Path(".")) == [("sub-01", "bids")]
    assert found(Path("..")) == found(roots["bids"])


def test_a_manifest_of_one_case_needs_no_column_case(roots, tmp_path):
    root = copied(roots["manifest"], tmp_path / "m")
    lines = (root / "manifest.csv").read_text().splitlines()
    rows = [line.partition(",")[2] for line in (lines[0], *lines[1:4])]
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    (case,) = cached(root, tmp_path / "cache", "manifest").cases
    assert (case.name, case.days) == ("manifest", (0, 28, 77))


def test_problems_of_rows_are_those_of_their_case(roots, tmp_path):
    root = copied(roots["manifest"], tmp_path / "m")
    table = root / "manifest.csv"
    text = table.read_text()
    bad = text.replace("scan1,28,TMZ", "scan0,x,tmz").replace(
        "loose/2-1-b.nii.gz", "loose/none.nii.gz"
    )
    table.write_text(bad)
    problems = raised(cached, root, tmp_path / "cache", "manifest")
    assert [code for code, _ in problems] == ["TD3306", "TD3314", "TD3309", "TD3122"]
    assert all("manifest.csv, line 3" in text for _, text in problems[:3])
    assert all(text.count("P01") for _, text in problems[:3])
    assert "P02" in problems[3][1]
    table.write_text(text.replace("P02,scan0,0", "P02,scan0,90"))
    (code, what), (also, _) = raised(cached, root, tmp_path / "cache", "manifest")
    assert (code, also) == ("TD3310", "TD3311")
    assert "P02" in what
    assert "scan1 (day 70) comes after scan0 (day 90)" in what
    options = {"sort": True, "rebase_days": True}
    assert cached(root, tmp_path / "cache", "manifest", **options).cases[1].days == (0, 20)
    table.write_text(text.replace("P02,", "P/2,"))
    assert [code for code, _ in raised(find_subjects, root)] == ["TD3318"]
    table.write_text(text.replace("loose/1-1-c.nii.gz", ""))
    ((code, what),) = raised(cached, root, tmp_path / "cache", "manifest")
    assert code == "TD3316"
    assert "line 3" in what
    table.write_text(text.replace("P01,scan0", "P01,scan0,1"))
    assert [code for code, _ in raised(find_subjects, root)] == ["TD3304"]


@pytest.mark.parametrize("skip_bad", [False, True])
def test_options_that_are_not_for_a_table_are_refused_once(roots, tmp_path, skip_bad):
    """Although it has two cases, and also when bad ones are to be skipped."""
    table = roots["manifest"] / "manifest.csv"
    for changes, code in (
        ({"npy_grid": "PLI:2"}, "TD3007"),
        ({"layout": "bids"}, "TD3007"),
        ({"nonfinite": "drop"}, "TD3005"),
    ):
        options = ReadOptions(**changes)
        problems = raised(
            cache_cohort, table, CONTRACT, tmp_path, options=options, skip_bad=skip_bad
        )
        assert [found for found, _ in problems] == [code]
    assert raised(find_subjects, roots["manifest"], ReadOptions(layout="bids"))[0][0] == "TD3030"


def test_options_of_other_layouts_are_refused_once(roots, tmp_path):
    options = {"npy_grid": "PLI:2", "skip_bad": True}
    problems = raised(cached, roots["sailor"], tmp_path, "sailor", **options)
    assert [code for code, _ in problems] == ["TD3007"]


@pytest.mark.parametrize("path", ["nowhere", "empty", "notes.txt", "sub-17_label.npy"])
def test_where_there_is_no_subject_all_layouts_are_named(tmp_path, path):
    (tmp_path / "empty" / "derivatives").mkdir(parents=True)
    (tmp_path / "empty" / "sub-99.txt").write_text("")
    (tmp_path / "notes.txt").write_text("")
    np.save(tmp_path / "sub-17_label.npy", np.zeros(1))
    with pytest.raises(UsageError) as caught:
        find_subjects(tmp_path / path)
    error = caught.value
    assert error.code == "TD3030"
    assert path in error.message
    for layout in ("BIDS", "SAILOR", "LUMIERE", "_image.npy", "manifest.csv"):
        assert layout in error.fix


def test_subjects_are_paths_in_order_of_name(tmp_path):
    for name in ("sub-10", "sub-02", "derivatives"):
        (tmp_path / name).mkdir()
    (tmp_path / "sub-99.txt").write_text("")
    assert subjects(tmp_path) == [tmp_path / "sub-02", tmp_path / "sub-10"]


def test_folders_that_are_links_are_followed_once(roots, tmp_path):
    """Data managers keep files elsewhere; a link upwards makes a circle."""
    (tmp_path / "store").mkdir()
    shutil.copytree(roots["sailor"] / "sub-01", tmp_path / "store" / "x")
    (tmp_path / "cohort").mkdir()
    os.symlink(tmp_path / "store" / "x", tmp_path / "cohort" / "sub-09")
    os.symlink("..", tmp_path / "store" / "x" / "ses-01" / "up")
    (case,) = cached(tmp_path / "cohort", tmp_path / "cache", "sailor").cases
    assert case.name == "sub-09"
    files = [Path(name).name for name, size, _ in case.provenance.files if size >= 0]
    assert files.count("T1.nii.gz") == 3


def test_mixed_layouts_are_not_guessed_at(roots, tmp_path):
    root = copied(roots["bids"], tmp_path / "mixed")
    shutil.copytree(roots["sailor"] / "sub-02", root / "sub-03")
    ((code, text),) = raised(find_subjects, root)
    assert code == "TD3006"
    assert "bids: sub-01, sub-02; sailor: sub-03" in text
    assert found(root, layout="sailor")[0] == ("sub-01", "sailor")

    for file in roots["npy"].iterdir():
        shutil.copy(file, root)
    ((code, text),) = raised(find_subjects, root)
    assert code == "TD3006"
    assert "subject folders and npy arrays" in text
    assert found(root, layout="npy") == [("sub-01", "npy"), ("sub-02", "npy")]
    assert len(found(root, layout="bids")) == 3
    shutil.copy(roots["manifest"] / "manifest.csv", root)
    assert "and a manifest.csv" in raised(find_subjects, root)[0][1]


def test_a_subject_of_two_layouts_is_a_finding_of_that_subject(roots, tmp_path):
    root = copied(roots["sailor"], tmp_path / "s")
    (root / "sub-02" / "ses-01" / "anat").mkdir()
    kept = cached(root, tmp_path / "cache", "sailor", skip_bad=True)
    assert [case.name for case in kept.cases] == ["sub-01"]
    ((one),) = kept.left_out
    assert (one.subject.name, one.findings[0].code) == ("sub-02", "TD3006")


@pytest.mark.parametrize("layout", FOLDERS)
def test_an_empty_folder_and_a_link_that_leads_nowhere_are_not_passed_over(
    roots, tmp_path, layout
):
    root = copied(roots[layout], tmp_path / "c")
    first = next(root.rglob(layouts.NAMES[layout][0]))
    empty, gone, loop = (
        first.with_name(first.name[:-2] + number) for number in ("55", "66", "77")
    )
    empty.mkdir()
    os.symlink("nowhere", gone)
    os.symlink(loop, loop)
    bad = [empty.name, gone.name, loop.name]
    assert found(root)[2:] == [(name, layout) for name in bad]
    kept = cached(root, tmp_path / "cache", layout, skip_bad=True)
    assert [one.subject.name for one in kept.left_out] == bad
    assert len(kept.cases) == 2


def test_a_folder_that_cannot_be_listed_is_a_finding_of_its_subject(roots, monkeypatch, tmp_path):
    """As without permission, which a test that runs as root cannot take away."""

    def marks_of(folder: Path) -> list[str]:
        if folder.name == "sub-01":
            raise TableError("TD3123", "cannot be listed: Permission denied", where=folder.name)
        return ["sailor"]

    monkeypatch.setattr(cohort_module, "marks_of", marks_of)
    assert found(roots["sailor"]) == [("sub-01", "sailor"), ("sub-02", "sailor")]


def test_one_bad_patient_does_not_hide_the_next(roots, tmp_path):
    root = copied(roots["bids"], tmp_path / "b")
    (root / "sub-01/ses-02/anat/sub-01_ses-02_FLAIR.nii.gz").unlink()
    (root / "sub-02/ses-01/anat/sub-02_ses-01_T1w.nii.gz").write_bytes(b"")
    told = []
    with pytest.raises(TadiffError) as caught:
        cache_cohort(root, CONTRACT, tmp_path / "c", lambda *done: told.append(done))
    assert [e.code for e in caught.value.findings] == ["TD3316", "TD3101"]
    assert told == [(1, 2), (2, 2)]
    # Nobody is left: then they are refused also where bad ones are to be skipped.
    assert len(raised(cached, root, tmp_path / "c", "bids", skip_bad=True)) == 2


def test_who_is_left_out_is_said(roots, tmp_path, capsys):
    root = copied(roots["bids"], tmp_path / "b")
    for name in ("T1w", "FLAIR"):
        (root / f"sub-01/ses-02/anat/sub-01_ses-02_{name}.nii.gz").write_bytes(b"")
    (case,) = cache_cases(root, CONTRACT, tmp_path / "c", skip_bad=True)
    assert case.name == "sub-02"
    out, err = capsys.readouterr()
    heading, line = err.splitlines()
    assert out == ""
    assert heading == "left out: 1 of 2 subjects"
    assert line == "  sub-01  TD3101  the file is empty (and 1 more)"


def test_the_table_of_those_left_out_escapes_hostile_names():
    subject = Subject("sub-\x1b[31m", Path("sub-x"), "bids")
    text = left_out_table([LeftOut(subject, (TableError("TD3318", "is\u202ebad"),))], 3)
    assert text.isascii()
    assert "\x1b" not in text


def test_what_is_not_about_a_subject_ends_at_once():
    subject = Subject("sub-01", Path("sub-01"), "bids")
    for error in (
        ResourceError("TD7002", "the disk is full"),
        UsageError("TD3005", "--affine 'x' is unknown"),
    ):
        with pytest.raises(type(error)):
            findings_of(subject, error)


def test_findings_name_their_subject():
    subject = Subject("sub-01", Path("sub-01"), "bids")
    for error, where in (
        (TableError("TD3122", "gone", where="sub-01/ses-01"), "sub-01/ses-01"),
        (TableError("TD3122", "gone", where="ses-01"), "sub-01: ses-01"),
        (TableError("TD3122", "gone"), "sub-01"),
        (TableError("TD3122", "sub-01 has gone"), ""),
    ):
        (finding,) = findings_of(subject, error)
        assert finding.where == where


def test_the_seven_short_interval_lists(roots, tmp_path):
    """The published script reads these patients with days that belong to other sessions."""
    root = copied(roots["sailor"], tmp_path / "s")
    layouts.write_short_sailor(root)
    problems = raised(cached, root, tmp_path / "cache", "sailor")
    assert [code for code, _ in problems] == ["TD3319"] * 7
    for (_, text), (p, (sessions, intervals)) in zip(problems, layouts.SHORT.items(), strict=True):
        assert f"sub-{p:02} has {sessions} sessions and {intervals} intervals" in text
    kept = cached(root, tmp_path / "cache", "sailor", skip_bad=True)
    assert [case.name for case in kept.cases] == ["sub-01", "sub-02"]
    assert [one.subject.name for one in kept.left_out] == [f"sub-{p:02}" for p in layouts.SHORT]
    # Who knows the days of one of them writes them down.
    rows = "".join(f"ses-{s + 1:02},CRT,{40 * s}\n" for s in range(layouts.SHORT[22][0]))
    (root / "sub-22" / "treatments.csv").write_text("session,treatment,day\n" + rows)
    kept = cached(root, tmp_path / "cache", "sailor", skip_bad=True)
    assert kept.cases[2].name == "sub-22"
    assert kept.cases[2].days == (0, 40, 80, 120, 160, 200)
    assert len(kept.left_out) == 6


def test_two_sessions_of_one_week(roots, tmp_path):
    """Before and after surgery, as most LUMIERE patients begin."""
    root = copied(roots["lumiere"], tmp_path / "l")
    patient = root / "Imaging" / "Patient-002"
    (patient / "week-000").rename(patient / "week-000-1")
    layouts.write_lumiere_week(patient / "week-000-2", 2, 0)
    table = root / "Imaging" / "treatments.csv"
    text = table.read_text()
    both = "Patient-002,week-000-1,CRT\nPatient-002,week-000-2,CRT\n"
    table.write_text(text.replace("Patient-002,week-000,CRT\n", both))
    ((code, what),) = raised(cached, root, tmp_path / "c", "lumiere")
    assert code == "TD3309"
    assert "week-000-1 and week-000-2 are both on day 0" in what
    assert "Patient-002" in what
    # The name of a session is looked for in every patient, and need not be in all.
    for name in ("week-000-1", "Patient-002/week-000-1"):
        cases = cached(root, tmp_path / "c", "lumiere", leave_out=(name,)).cases
        assert [case.days for case in cases] == [(0, 28, 77), (0, 70)]
    ((code, what),) = raised(
        cached, root, tmp_path / "c", "lumiere", leave_out=("Patient-001/week-000-1", "week-004")
    )
    assert code == "TD3005"
    assert "'Patient-001/week-000-1'" in what
    assert "week-004" not in what


def test_a_session_left_out_of_one_patient_stays_in_another(roots, tmp_path):
    """Of both patients that have it; the days of the other then do not begin with 0."""
    root = roots["lumiere"]
    for names, days in (
        (("Patient-001/week-000",), [(0, 49), (0, 70)]),
        (("Patient-001/week-004",), [(0, 77), (0, 70)]),
        (("week-004", "Patient-001/week-011"), [(0,), (0, 70)]),
    ):
        options = {"leave_out": names, "rebase_days": True}
        cases = cached(root, tmp_path, "lumiere", **options).cases
        assert [case.days for case in cases] == days


def test_missing_sequences(roots, tmp_path):
    for layout, file in (
        ("sailor", "sub-01/ses-02/Flair.nii.gz"),
        ("lumiere", f"Imaging/Patient-001/week-004/{layouts.LUMIERE_IMAGES[2]}.nii.gz"),
    ):
        root = copied(roots[layout], tmp_path / layout)
        (root / file).unlink()
        ((code, text),) = raised(cached, root, tmp_path / "c", layout)
        assert code == "TD3316"
        assert layouts.NAMES[layout][0] in text
        first, second = cached(root, tmp_path / "c", layout, skip_incomplete=True).cases
        assert (first.days, second.days) == ((0, 77), (0, 70))
        note = "the session on day 28 was skipped: it has no flair"
        assert note in first.provenance.notes
        assert note not in second.provenance.notes


def test_missing_masks(roots, tmp_path):
    """Training needs a mask of every session; half of SAILOR's two is none."""
    for layout, file, fix in (
        ("bids", "derivatives/manual/sub-01/ses-02/anat/*_dseg.nii.gz", "dseg"),
        ("sailor", "sub-01/ses-02/EdemaMask-CL.nii.gz", "EdemaMask-CL"),
        ("lumiere", f"Imaging/Patient-001/week-004/{layouts.LUMIERE_MASK}.nii.gz", "--leave-out"),
        ("npy", "sub-01_label.npy", "label.npy"),
        ("manifest", "", "column mask"),
    ):
        root = copied(roots[layout], tmp_path / layout)
        if layout == "manifest":
            table = root / "manifest.csv"
            table.write_text(table.read_text().replace("loose/1-1-tumour.nii.gz", ""))
        for path in root.glob(file) if file else ():
            path.unlink()
        ((code, text),) = raised(cached, root, tmp_path / "c", layout)
        assert code == "TD3031"
        assert layouts.NAMES[layout][0] in text
        assert fix in text
        kept = cached(root, tmp_path / "c", layout, skip_bad=True)
        assert [case.name for case in kept.cases] == [layouts.NAMES[layout][1]]


def test_session_major_arrays(roots, tmp_path):
    root = copied(roots["npy"], tmp_path / "n")
    image = np.load(root / "sub-01_image.npy")
    wrong = image.reshape(4, 3, *image.shape[1:]).swapaxes(0, 1).reshape(image.shape)
    np.save(root / "sub-01_image.npy", wrong)
    ((code, text),) = raised(cached, root, tmp_path / "c", "npy")
    assert code == "TD3322"
    assert "sub-01_image.npy" in text
    assert "ordered by session" in text


def test_pointers_instead_of_arrays(roots, tmp_path):
    """As the published repository ships them: its days are a pointer to 176 bytes."""
    root = copied(roots["npy"], tmp_path / "n")
    for key, size in (("image", 409_440_128), ("days", 176), ("treatment", 176)):
        (root / f"sub-02_{key}.npy").write_bytes(layouts.POINTER % (size, size))
    problems = raised(cached, root, tmp_path / "c", "npy")
    assert [code for code, _ in problems] == ["TD3108"] * 3
    assert all("git lfs pull" in text and "sub-02" in text for _, text in problems)
    assert len(cached(root, tmp_path / "c", "npy", skip_bad=True).cases) == 1


def test_arrays_of_an_unknown_grid_need_it_named(roots, tmp_path):
    with pytest.raises(TadiffError) as caught:
        cache_cohort(roots["npy"], CONTRACT, tmp_path)
    (finding,) = caught.value.findings
    assert finding.code == "TD3205"
    assert finding.where == "sub-01_image.npy, sub-02_image.npy"


def test_a_choice_for_the_whole_cohort_is_asked_for_once():
    """In one paragraph with all places; what must be repaired one by one has one each."""
    places = ("Patient-001", "Patient-002")
    choices = [UsageError("TD3006", "3 versions", where=p, fix="choose") for p in places]
    other = UsageError("TD3006", "2 versions", where="Patient-003", fix="choose")
    empty = [TableError("TD3101", "empty", where=p, fix="copy") for p in places]
    told = merged([choices[0], empty[0], choices[1], other, empty[1]])
    assert [(type(e), e.code, e.message, e.where, e.fix) for e in told] == [
        (UsageError, "TD3006", "3 versions", "Patient-001, Patient-002", "choose"),
        (TableError, "TD3101", "empty", "Patient-001", "copy"),
        (UsageError, "TD3006", "2 versions", "Patient-003", "choose"),
        (TableError, "TD3101", "empty", "Patient-002", "copy"),
    ]


def test_what_macos_leaves_beside_arrays_is_no_subject(roots, tmp_path):
    root = copied(roots["npy"], tmp_path / "n")
    (root / "._sub-01_image.npy").write_bytes(b"\x00\x05\x16\x07")
    (root / ".DS_Store").write_bytes(b"")
    assert found(root) == [("sub-01", "npy"), ("sub-02", "npy")]


@pytest.mark.parametrize("layout", ["bids", "npy"])
def test_a_folder_around_the_cohort_is_told_from_an_empty_one(roots, tmp_path, layout):
    root = copied(roots[layout], tmp_path / "unpacked/data").parent
    (root / "__MACOSX/sub-01").mkdir(parents=True)
    (root / "docs").mkdir()
    ((code, text),) = raised(find_subjects, root)
    assert code == "TD3030"
    assert text.endswith(f"give one of its folders: {root}/data")


def test_lumiere_without_treatments_is_refused_by_patient(roots, tmp_path):
    root = copied(roots["lumiere"], tmp_path / "l")
    (root / "Imaging" / "treatments.csv").unlink()
    problems = raised(cached, root, tmp_path / "c", "lumiere")
    assert [code for code, _ in problems] == ["TD3122", "TD3122"]
    assert ["Patient-001" in problems[0][1], "Patient-002" in problems[1][1]] == [True, True]


def test_sessions_on_grids_of_their_own_are_refused(roots, tmp_path):
    """As LUMIERE's registered images are: on one grid within a session only."""
    root = copied(roots["lumiere"], tmp_path / "l")
    week = root / "Imaging" / "Patient-002" / "week-010"
    affine = layouts.RAS.copy()
    affine[0, 3] += 3
    for m, stem in enumerate(layouts.LUMIERE_IMAGES):
        layouts.save(week / f"{stem}.nii.gz", layouts.scan(2, 1, m), "LPS", affine)
    layouts.save(week / f"{layouts.LUMIERE_MASK}.nii.gz", layouts.whole(2, 1), "LPS", affine)
    problems = raised(cached, root, tmp_path / "c", "lumiere")
    assert {code for code, _ in problems} == {"TD3201"}


def test_provenance_of_every_layout_says_where_it_came_from(roots, tmp_path):
    for layout, root in roots.items():
        case = cached(root, tmp_path, layout).cases[0]
        meta = json.loads(case.provenance.model_dump_json())
        assert meta["layout"] == layout
        assert Path(meta["source"]).is_relative_to(root.resolve())
        assert meta["options"]["npy_grid"] == ("PLI:2" if layout == "npy" else "")
        assert [s["treatment"] for s in meta["sessions"]] == ["CRT", "TMZ", "none"]
