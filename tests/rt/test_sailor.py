"""The SAILOR layout, from a faithful small copy of it: files, intervals, treatments, masks.

The copy holds what the data set holds beside the files that are read: T2, intensity-corrected
variants, masks of other raters, dose and age.
"""

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tadiff_rt.case import MODALITIES, ReadOptions
from tadiff_rt.errors import TadiffError
from tadiff_rt.readers import read_case
from tadiff_rt.report import without_names

SHAPE = (9, 10, 11)
INTERVALS = (10, 24, 7, 15, 77)
DAYS = (0, 10, 34, 41, 56, 133)
WORDS = ("no", "CRT", "CRT", "CRT", "TMZ", "TMZ")
NAMES = {"t1": "T1", "t1c": "T1c", "flair": "Flair"}
LABELS = "tumour labels: published (1 oedema, 2 necrosis, 3 enhancing tumour)"
AFFINE = np.array([[-1.0, 0, 0, 96], [0, 1, 0, -132], [0, 0, 1.5, -78], [0, 0, 0, 1]])


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, 4)
    image.set_sform(affine, 4)
    nib.save(image, path)
    return data


def voxels(session: int, m: int) -> np.ndarray:
    rng = np.random.default_rng(10 * session + m)
    return rng.integers(0, 900, SHAPE).astype(np.float32)


def box(first: int, stop: int, value: float = 1.0) -> np.ndarray:
    data = np.zeros(SHAPE, np.float32)
    data[first:stop, 3:7, 4:8] = value
    return data


def write_session(folder: Path, s: int) -> None:
    for m, name in enumerate((*NAMES.values(), "T2")):
        save(folder / f"{name}.nii.gz", voxels(s, m))
    # What a careless pattern would take for T1c, or for the rater's mask.
    save(folder / "T1c-icor.nii.gz", voxels(s, 7))
    save(folder / "EdemaMask-ONCO.nii.gz", box(0, 9))
    save(folder / "EdemaMask-CL.nii.gz", box(1, 7))
    save(folder / "ContrastEnhancedMask-CL.nii.gz", box(2, 3 + s % 2))
    (folder / "treatment.txt").write_text(WORDS[s] + "\n")
    (folder / "RANO.txt").write_text("2\n")


def write_patient(root: Path, num_sessions: int = 6, name: str = "sub-17") -> Path:
    patient = root / name
    for s in range(num_sessions):
        write_session(patient / f"ses-{s + 1:02}", s)
    (patient / "intervals-days.txt").write_text("".join(f"{n}\n" for n in INTERVALS))
    (patient / "age-years.txt").write_text("56\n")
    save(patient / "DoseMap.nii.gz", voxels(0, 9))
    return patient


@pytest.fixture
def patient(tmp_path: Path) -> Path:
    return write_patient(tmp_path)


def findings(path: Path, **options: object) -> list[tuple[str, str]]:
    last = options.pop("last", None)
    with pytest.raises(TadiffError) as caught:
        read_case(path, ReadOptions(**options), last=last)
    return [(e.code, f"{e.message} [{e.where}] {e.fix}") for e in caught.value.findings]


def codes(path: Path, **options: object) -> list[str]:
    return [code for code, _ in findings(path, **options)]


def table(patient: Path, rows: str, header: str = "session,treatment") -> None:
    (patient / "treatments.csv").write_text(f"{header}\n{rows}")


ALL_ROWS = "".join(f"ses-{s:02},TMZ\n" for s in range(1, 7))


def test_a_patient_is_read_with_days_treatments_and_voxels(patient):
    case = read_case(patient)
    assert case.name == "sub-17"
    assert [s.name for s in case.sessions] == [f"ses-{s:02}" for s in range(1, 7)]
    assert tuple(s.day for s in case.sessions) == DAYS
    assert [s.treatment for s in case.sessions] == ["none", "CRT", "CRT", "CRT", "TMZ", "TMZ"]
    for s, session in enumerate(case.sessions):
        for m, modality in enumerate(MODALITIES):
            np.testing.assert_array_equal(session.images[modality].data, voxels(s, m))
    assert case.notes == (LABELS,)
    assert case.sessions[1].images["t1c"].label == "sub-17/ses-02/T1c.nii.gz"


def test_a_data_set_of_one_patient_is_that_patient(patient):
    assert read_case(patient.parent).name == "sub-17"
    write_patient(patient.parent, 1, "sub-02")
    ((code, text),) = findings(patient.parent)
    assert code == "TD3002"
    assert "sub-02, sub-17" in text


def test_the_two_masks_become_one_with_the_enhancing_tumour_on_top(patient):
    for s, session in enumerate(read_case(patient).sessions):
        expected = box(1, 7)
        expected[box(2, 3 + s % 2) > 0] = 3
        np.testing.assert_array_equal(session.mask.data, expected)
        np.testing.assert_array_equal(session.mask.affine, AFFINE)


def test_masks_may_be_stored_in_another_orientation(patient):
    path = patient / "ses-02" / "ContrastEnhancedMask-CL.nii.gz"
    image = nib.Nifti1Image(box(2, 4), AFFINE).as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt("SPR")
        )
    )
    save(path, np.asarray(image.dataobj), image.affine)
    expected = box(1, 7)
    expected[box(2, 4) > 0] = 3
    np.testing.assert_array_equal(read_case(patient).sessions[1].mask.data, expected)


@pytest.mark.parametrize("absent", ["EdemaMask-CL", "ContrastEnhancedMask-CL"])
def test_half_a_tumour_is_no_mask(patient, absent):
    (patient / "ses-03" / f"{absent}.nii.gz").unlink()
    case = read_case(patient)
    assert [s.mask is None for s in case.sessions] == [False, False, True, False, False, False]
    note, labels = case.notes
    assert labels == LABELS
    assert note.startswith("no mask for ses-03: it has")
    assert f"without {absent}" in note


def test_sessions_may_have_no_masks(patient):
    for mask in patient.glob("ses-*/*Mask-CL*"):
        mask.unlink()
    case = read_case(patient)
    assert all(s.mask is None for s in case.sessions)
    assert case.notes == ()


def test_empty_masks_are_noted(patient):
    for name in ("EdemaMask-CL", "ContrastEnhancedMask-CL"):
        save(patient / "ses-03" / f"{name}.nii.gz", np.zeros(SHAPE, np.float32))
    case = read_case(patient)
    assert case.notes == ("there is no tumour in the masks of ses-03", LABELS)
    assert case.sessions[2].mask.data.max() == 0


@pytest.mark.parametrize("top", [0.001, 0.5046, 5000.0])
def test_resampled_masks_keep_their_tumour_and_lose_their_noise(patient, top):
    """Maxima that occur in the data set."""
    noise = 0.04 * np.random.default_rng(1).standard_normal(SHAPE).clip(-2, 2)
    mask = (top * (box(1, 7) + noise * (box(1, 7) == 0))).astype(np.float32)
    save(patient / "ses-01" / "EdemaMask-CL.nii.gz", mask)
    case = read_case(patient)
    expected = box(1, 7)
    expected[box(2, 3) > 0] = 3
    np.testing.assert_array_equal(case.sessions[0].mask.data, expected)
    note, _ = case.notes
    assert note.startswith(f"EdemaMask-CL of ses-01: tumour is {mask.max():g}")


def test_a_mask_with_a_border_of_halves_is_refused(patient):
    mask = box(1, 7)
    mask[0, 3:7, 4:8] = 0.5
    save(patient / "ses-01" / "EdemaMask-CL.nii.gz", mask)
    ((code, text),) = findings(patient)
    assert code == "TD3209"
    assert "16 voxels" in text
    assert "sub-17/ses-01/EdemaMask-CL.nii.gz" in text


def test_masks_on_two_grids_are_refused(patient):
    shifted = AFFINE.copy()
    shifted[0, 3] += 1
    save(patient / "ses-01" / "EdemaMask-CL.nii.gz", box(1, 7), shifted)
    assert codes(patient) == ["TD3201"]


def test_problems_of_images_and_masks_are_reported_together(patient):
    (patient / "ses-02" / "T1.nii.gz").write_bytes(b"")
    (patient / "ses-03" / "Flair.nii.gz").unlink()
    (patient / "ses-04" / "EdemaMask-CL.nii.gz").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    assert codes(patient) == ["TD3316", "TD3101", "TD3108"]


def test_one_file_for_two_modalities_is_reported_with_the_rest(patient):
    (patient / "ses-02" / "T1c.nii.gz").unlink()
    os.symlink("T1.nii.gz", patient / "ses-02" / "T1c.nii.gz")
    (patient / "ses-04" / "EdemaMask-CL.nii.gz").write_bytes(b"")
    assert codes(patient) == ["TD3001", "TD3101"]


@pytest.mark.parametrize(
    ("patient_id", "sessions", "intervals"),
    [
        # The seven patients of the published table, by sessions and days known.
        ("sub-05", 5, 3),
        ("sub-08", 7, 5),
        ("sub-12", 10, 8),
        ("sub-15", 19, 6),
        ("sub-20", 10, 8),
        ("sub-22", 6, 4),
        ("sub-25", 11, 8),
        ("sub-99", 3, 3),  # one too many
    ],
)
def test_intervals_that_do_not_fit_the_sessions_are_refused(
    tmp_path, patient_id, sessions, intervals
):
    patient = tmp_path / patient_id
    for s in range(sessions):
        (patient / f"ses-{s + 1:02}").mkdir(parents=True)
    (patient / "intervals-days.txt").write_text("30\n" * intervals)
    with pytest.raises(TadiffError) as caught:
        read_case(patient, ReadOptions(treatments="published"))
    error = caught.value
    assert error.code == "TD3319"
    assert f"{patient_id} has {sessions} sessions and {intervals} intervals" in error.message
    assert f"expected {sessions - 1}" in error.message
    assert f"column day of {patient_id}/treatments.csv" in error.fix


def test_a_column_of_days_goes_before_the_intervals(patient):
    (patient / "intervals-days.txt").write_text("30\n")
    rows = "".join(f"ses-{s + 1:02},CRT,{100 * s}\n" for s in range(6))
    table(patient, rows, "session,treatment,day")
    case = read_case(patient)
    assert tuple(s.day for s in case.sessions) == (0, 100, 200, 300, 400, 500)
    assert case.notes == ("days are those of treatments.csv", LABELS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10\n24\n7\n15\n77.5\n", ["TD3306"]),
        ("10\n24\n-7\n15\n77\n", ["TD3308"]),
        ("2020-01-01\n24\n7\n15\nx\n", ["TD3307", "TD3306"]),
        ("99999\n99999\n7\n15\n77\n", ["TD3306"]),
        ("10\n0\n7\n15\n77\n", ["TD3309"]),  # a session on the day of another
        ("10\n24\n7\n15\n7\x007\n", ["TD3303"]),
        ("", ["TD3319"]),
        (None, ["TD3122"]),
    ],
)
def test_bad_intervals_are_refused(patient, text, expected):
    path = patient / "intervals-days.txt"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    found = findings(patient)
    assert [code for code, _ in found] == expected
    assert all("intervals-days.txt" in text for _, text in found)
    assert all("treatments.csv" in text for code, text in found if code in ("TD3122", "TD3319"))


@pytest.mark.parametrize(
    "text", ["10 24 7 15 77", "10.0\n24.0\n7\n15\n77\n\n", "10\r\n24 7\n15 77"]
)
def test_intervals_may_be_on_one_line_or_end_in_point_zero(patient, text):
    (patient / "intervals-days.txt").write_text(text)
    assert tuple(s.day for s in read_case(patient).sessions) == DAYS


def test_the_published_rule_counts_sessions_and_is_used_only_by_name(patient):
    case = read_case(patient, ReadOptions(treatments="published"))
    assert [s.treatment for s in case.sessions] == ["CRT"] * 4 + ["TMZ"] * 2
    assert case.notes == (
        "treatments by the published rule: CRT in the first 4 sessions, TMZ in all later ones",
        LABELS,
    )
    # By index among all sessions, as published, also where one is left out.
    options = ReadOptions(treatments="published", leave_out=("ses-02",))
    case = read_case(patient, options)
    assert [s.treatment for s in case.sessions] == ["CRT"] * 3 + ["TMZ"] * 2
    for file in patient.glob("ses-*/treatment.txt"):
        file.unlink()
    ((code, text),) = findings(patient)
    assert code == "TD3122"
    assert "sub-17/treatments.csv" in text
    assert "--treatments=published" in text
    assert read_case(patient, ReadOptions(treatments="published")).sessions[5].treatment == "TMZ"


def test_the_published_rule_needs_no_row_of_a_table(patient):
    table(patient, "ses-01,none\n")
    case = read_case(patient, ReadOptions(treatments="published"))
    assert [s.treatment for s in case.sessions] == ["CRT"] * 4 + ["TMZ"] * 2


@pytest.mark.parametrize("word", ["unknown", "crt", "none", ""])
def test_a_treatment_file_that_names_no_treatment_is_refused(patient, word):
    (patient / "ses-04" / "treatment.txt").write_text(word)
    (patient / "ses-06" / "treatment.txt").unlink()
    (first, text), (second, other) = findings(patient)
    assert (first, second) == ("TD3314", "TD3122")
    assert f"treatment {word!r} of ses-04" in text
    assert "sub-17/ses-06/treatment.txt" in other


def test_a_table_goes_before_the_files(patient):
    table(patient, ALL_ROWS)
    case = read_case(patient)
    assert [s.treatment for s in case.sessions] == ["TMZ"] * 6
    assert tuple(s.day for s in case.sessions) == DAYS


def test_a_common_table_beside_the_patients_is_read_for_this_one(patient):
    common = patient.parent / "treatments.csv"
    others = "sub-18,ses-01,nonsense,x\nsub-17,ses-09,CRT,9\n"
    rows = "".join(f"sub-17,ses-{s:02},CRT,{9 * s - 9}\n" for s in range(1, 7))
    common.write_text("case,session,treatment,day\n" + others + rows)
    ((code, text),) = findings(patient)
    assert code == "TD3316"
    assert "'ses-09'" in text
    assert "[treatments.csv, line 3]" in text
    common.write_text("case,session,treatment,day\nsub-18,ses-01,nonsense,x\n" + rows)
    case = read_case(patient)
    assert [(s.day, s.treatment) for s in case.sessions] == [(9 * s, "CRT") for s in range(6)]


def test_every_problem_of_a_table_is_reported_with_its_line(patient):
    rows = "ses-01,CRT,0\nses-01,TMZ,1\nses-02,tmz,2\nses-03,CRT,2.5\nses/4,CRT,4\nses-05,CRT\n"
    table(patient, rows, "session,treatment,day")
    found = [
        (code, text.rpartition(", line ")[2].partition("]")[0]) for code, text in findings(patient)
    ]
    assert found == [
        ("TD3309", "3"),
        ("TD3314", "4"),
        ("TD3306", "5"),
        ("TD3318", "6"),
        ("TD3304", "7"),
    ]


@pytest.mark.parametrize(
    "header", ["session,day", "session,treatment,dose", "case,session,treatment"]
)
def test_columns_of_a_table_are_exact(patient, header):
    table(patient, "a,b,c\n"[: 2 * len(header.split(",")) - 1] + "\n", header)
    assert set(codes(patient)) == {"TD3305"}


def test_sessions_and_rows_must_match(patient):
    rows = ALL_ROWS.replace("ses-03,TMZ\n", "").replace("ses-06", "ses-07")
    table(patient, rows)
    found = findings(patient)
    assert [code for code, _ in found] == ["TD3316", "TD3317", "TD3317"]
    assert "'ses-07'" in found[0][1]
    assert "--leave-out=ses-03" in found[1][1]
    (patient / "ses-06").rename(patient / "ses-07")
    case = read_case(patient, ReadOptions(leave_out=("ses-03",)))
    assert [(s.name, s.day) for s in case.sessions] == [
        ("ses-01", 0),
        ("ses-02", 10),
        ("ses-04", 41),
        ("ses-05", 56),
        ("ses-07", 133),
    ]


def test_rows_of_sessions_left_out_do_no_harm(patient):
    table(patient, ALL_ROWS)
    case = read_case(patient, ReadOptions(leave_out=("ses-03", "ses-05")))
    assert tuple(s.day for s in case.sessions) == (0, 10, 41, 133)
    assert case.notes == ("sessions left out as asked for: 2", LABELS)


def test_a_session_to_leave_out_must_exist(patient):
    ((code, text),) = findings(patient, leave_out=("ses-3",))
    assert code == "TD3005"
    assert "'ses-3'" in text


def test_incomplete_sessions_are_all_reported_or_skipped_with_a_note(patient):
    (patient / "ses-02" / "T1.nii.gz").unlink()
    (patient / "ses-05" / "T1c.nii.gz").unlink()  # T1c-icor.nii.gz is there and no T1c
    (patient / "ses-05" / "Flair.nii.gz").unlink()
    found = findings(patient)
    assert [code for code, _ in found] == ["TD3316"] * 3
    assert "ses-02 has no t1 image" in found[0][1]
    assert "sub-17/ses-05/{T1,T1c,Flair}.nii.gz" in found[2][1]
    case = read_case(patient, ReadOptions(skip_incomplete=True))
    assert tuple(s.day for s in case.sessions) == (0, 34, 41, 133)
    assert case.notes == (
        "the session on day 10 was skipped: it has no t1",
        "the session on day 56 was skipped: it has no t1c, flair",
        LABELS,
    )


def test_without_its_first_session_a_case_does_not_start_on_day_0(patient):
    (patient / "ses-01" / "T1.nii.gz").unlink()
    ((code, text),) = findings(patient, skip_incomplete=True)
    assert code == "TD3311"
    assert "--rebase-days" in text
    options = ReadOptions(skip_incomplete=True, rebase_days=True)
    assert tuple(s.day for s in read_case(patient, options).sessions) == (0, 24, 31, 46, 123)


def test_of_a_patient_without_complete_sessions_nothing_is_left(patient):
    for image in patient.glob("ses-*/Flair.nii.gz"):
        image.unlink()
    ((code, text),) = findings(patient, skip_incomplete=True)
    assert code == "TD3301"
    assert "no session is left that has all of t1, t1c, flair" in text
    every = tuple(f"ses-{s:02}" for s in range(1, 7))
    assert codes(patient, leave_out=every, treatments="published") == ["TD3301"]


def test_sessions_come_in_order_of_their_numbers(tmp_path):
    patient = write_patient(tmp_path)
    (patient / "ses-02").rename(patient / "ses-2")
    (patient / "ses-06").rename(patient / "ses-10")
    names = [s.name for s in read_case(patient).sessions]
    assert names == ["ses-01", "ses-2", "ses-03", "ses-04", "ses-05", "ses-10"]
    (patient / "ses-1").mkdir()
    assert codes(patient) == ["TD3309"]


def test_days_of_a_table_may_need_sorting(patient):
    rows = "".join(f"ses-{s:02},CRT,{abs(s - 2) * 7}\n" for s in (1, 2))
    for s in range(3, 7):
        rows += f"ses-{s:02},CRT,{7 * s}\n"
    table(patient, rows, "session,treatment,day")
    ((code, _),) = findings(patient)
    assert code == "TD3310"
    case = read_case(patient, ReadOptions(sort=True))
    assert [(s.name, s.day) for s in case.sessions[:2]] == [("ses-02", 0), ("ses-01", 7)]
    np.testing.assert_array_equal(case.sessions[0].images["t1"].data, voxels(1, 0))
    assert case.notes[-2] == "sessions were sorted by day"


def test_names_may_be_in_any_case_and_not_compressed(patient):
    image = patient / "ses-02" / "Flair.nii.gz"
    image.unlink()
    save(image.with_name("FLAIR.nii"), voxels(1, 2))
    np.testing.assert_array_equal(
        read_case(patient).sessions[1].images["flair"].data, voxels(1, 2)
    )
    save(image, voxels(1, 2))
    save(patient / "ses-03" / "EdemaMask-CL.nii", box(1, 7))
    (first, text), (second, other) = findings(patient)
    assert (first, second) == ("TD3321", "TD3321")
    assert "FLAIR.nii, sub-17/ses-02/Flair.nii.gz" in text
    assert "2 files could be EdemaMask-CL of ses-03" in other


def test_last_reads_so_many_sessions_and_keeps_the_days_of_all(patient):
    (patient / "ses-01" / "T1.nii.gz").write_bytes(b"never read")
    (patient / "ses-02" / "EdemaMask-CL.nii.gz").write_bytes(b"never read")
    case = read_case(patient, last=3)
    assert tuple(s.day for s in case.sessions) == DAYS
    assert [len(s.images) for s in case.sessions] == [0, 0, 0, 3, 3, 3]
    assert [s.mask is None for s in case.sessions] == [True] * 3 + [False] * 3
    (patient / "ses-01" / "T1.nii.gz").unlink()
    assert codes(patient, last=1) == ["TD3316"]


def test_bad_days_are_reported_before_images_are_read(patient):
    (patient / "ses-02" / "T1.nii.gz").write_bytes(b"broken")
    (patient / "ses-03" / "T1.nii.gz").unlink()
    (patient / "intervals-days.txt").write_text("30\n")
    assert codes(patient) == ["TD3319", "TD3316"]


def test_a_folder_that_could_be_two_layouts_is_not_guessed_at(patient):
    (patient / "ses-01" / "anat").mkdir()
    ((code, text),) = findings(patient)
    assert code == "TD3006"
    assert "bids or sailor" in text
    assert read_case(patient, ReadOptions(layout="sailor")).name == "sub-17"
    ((code, _),) = findings(patient, layout="bids")
    assert code == "TD3122"


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"npy_grid": "PLI:1"}, "--npy-grid"),
        ({"lumiere_images": "atlas"}, "--lumiere-images"),
    ],
)
def test_options_of_other_layouts_are_refused(patient, options, flag):
    ((code, text),) = findings(patient, **options)
    assert code == "TD3007"
    assert flag in text
    assert "sailor case" in text


def test_notes_of_a_report_name_neither_patient_nor_session(patient):
    for name, value in (("ContrastEnhancedMask-CL", 2), ("EdemaMask-CL", 0)):
        save(patient / "ses-05" / f"{name}.nii.gz", box(2, 3, value))
    for name in ("ContrastEnhancedMask-CL", "EdemaMask-CL"):
        save(patient / "ses-06" / f"{name}.nii.gz", box(2, 3, 0))
    (patient / "ses-04" / "EdemaMask-CL.nii.gz").unlink()
    (patient / "ses-03" / "T1.nii.gz").unlink()
    mask = patient / "ses-05" / "ContrastEnhancedMask-CL.nii.gz"
    mask.write_bytes(gzip.decompress(mask.read_bytes()))  # a note of the NIfTI reader
    options = ReadOptions(skip_incomplete=True, leave_out=("ses-02",), treatments="published")
    case = read_case(patient, options)
    assert len(case.notes) == 8
    notes = without_names(case.notes, case)
    assert not [note for note in notes if "sub-" in note or "ses-" in note]
    assert "no mask for day 41: it has ContrastEnhancedMask-CL without EdemaMask-CL" in notes
    assert "there is no tumour in the masks of day 133" in notes


def test_a_patient_without_sessions_is_refused(tmp_path):
    (tmp_path / "sub-17").mkdir()
    (tmp_path / "sub-17" / "intervals-days.txt").write_text("1\n")
    assert codes(tmp_path / "sub-17") == ["TD3301"]


def test_a_patient_whose_name_is_no_safe_file_name_is_refused(tmp_path):
    assert codes(write_patient(tmp_path, 1, "sub-\u202e1")) == ["TD3318"]
