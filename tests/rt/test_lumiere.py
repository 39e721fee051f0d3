"""The LUMIERE layout, from a faithful small copy of it: weeks, versions of the images, treatments.

The copy holds all three versions of every session with different voxels, so that a mixture shows,
and what else the data set holds: T2, masks in the space of single scans.
"""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tadiff_rt.case import MODALITIES, ReadOptions
from tadiff_rt.errors import TadiffError
from tadiff_rt.readers import read_case
from tadiff_rt.report import without_names

SHAPE = (9, 10, 11)
WEEKS = ("week-000-1", "week-003", "week-013", "week-021", "week-044")
DAYS = (0, 21, 91, 147, 308)
GIVEN = ("none", "CRT", "CRT", "TMZ", "TMZ")
REGISTERED = "HD-GLIO-AUTO-segmentation/registered"
ATLAS = "DeepBraTumIA-segmentation/atlas"
IMAGES = {
    "raw": ("T1", "CT1", "FLAIR", "T2"),
    "registered": tuple(f"{REGISTERED}/{n}_r2s_bet_reg" for n in ("T1", "CT1", "FLAIR", "T2")),
    "atlas": tuple(f"{ATLAS}/skull_strip/{n}_skull_strip" for n in ("t1", "ct1", "flair", "t2")),
}
MASKS = {"registered": f"{REGISTERED}/segmentation", "atlas": f"{ATLAS}/segmentation/seg_mask"}
VERSIONS = tuple(IMAGES)
LABELS = {
    "registered": "tumour labels: hdglio (1 oedema, 2 enhancing tumour)",
    "atlas": "tumour labels: deepbratumia (1 tumour, 2 tumour, 3 tumour)",
}


def voxels(version: str, week: str, m: int, high: int = 900) -> np.ndarray:
    seed = [VERSIONS.index(version), int(week[5:8]), len(week), m]
    return np.random.default_rng(seed).integers(0, high, SHAPE).astype(np.float32)


def save(path: Path, data: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([1.0, 1.0, 1.5, 1.0])
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, path)


def write_week(folder: Path, versions: tuple[str, ...]) -> None:
    for version in versions:
        for m, stem in enumerate(IMAGES[version]):
            save(folder / f"{stem}.nii.gz", voxels(version, folder.name, m))
        if version in MASKS:
            mask = voxels(version, folder.name, 9, high=3).astype(np.uint8)
            save(folder / f"{MASKS[version]}.nii.gz", mask)
    save(folder / f"{ATLAS.replace('atlas', 'native')}/segmentation/ct1_seg_mask.nii.gz", mask * 0)


def write_table(patient: Path, weeks: tuple[str, ...] = WEEKS) -> None:
    rows = "".join(f"{w},{t}\n" for w, t in zip(weeks, GIVEN, strict=False))
    (patient / "treatments.csv").write_text(f"session,treatment\n{rows}")


@pytest.fixture
def patient(tmp_path: Path) -> Path:
    """Patient-042 of a copy with one patient, with treatments."""
    folder = tmp_path / "Imaging" / "Patient-042"
    for week in WEEKS:
        write_week(folder / week, VERSIONS)
    write_table(folder)
    return folder


def read(path: Path, **options: object):
    last = options.pop("last", None)
    return read_case(path, ReadOptions(**{"lumiere_images": "atlas", **options}), last=last)


def findings(path: Path, **options: object) -> list[tuple[str, str]]:
    with pytest.raises(TadiffError) as caught:
        read(path, **options)
    return [(e.code, f"{e.message} [{e.where}] {e.fix}") for e in caught.value.findings]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_patient_is_read_with_days_of_weeks_treatments_and_voxels(patient, version):
    case = read(patient, lumiere_images=version)
    assert case.name == "Patient-042"
    assert [s.name for s in case.sessions] == list(WEEKS)
    assert tuple(s.day for s in case.sessions) == DAYS
    assert tuple(s.treatment for s in case.sessions) == GIVEN
    for session in case.sessions:
        for m, modality in enumerate(MODALITIES):
            expected = voxels(version, session.name, m)
            np.testing.assert_array_equal(session.images[modality].data, expected)
        if version in MASKS:
            expected = voxels(version, session.name, 9, high=3)
            np.testing.assert_array_equal(session.mask.data, expected)
        else:
            assert session.mask is None
    by = {"registered": "HD-GLIO-AUTO", "atlas": "DeepBraTumIA"}
    if version in by:
        assert case.notes == (
            f"tumour masks were drawn by {by[version]}, not by hand",
            LABELS[version],
        )


def test_a_version_of_the_images_is_chosen_by_name(patient):
    ((code, text),) = findings(patient, lumiere_images="auto")
    assert code == "TD3006"
    assert all(f"{version}: " in text for version in VERSIONS)
    assert "--lumiere-images=atlas" in text


@pytest.mark.parametrize("version", VERSIONS)
def test_the_only_version_there_is_needs_no_choice(tmp_path, version):
    patient = tmp_path / "Patient-042"
    for week in WEEKS[:2]:
        for m, stem in enumerate(IMAGES[version]):
            save(patient / week / f"{stem}.nii.gz", voxels(version, week, m))
    write_table(patient, WEEKS[:2])
    case = read(patient, lumiere_images="auto")
    expected = voxels(version, WEEKS[1], 1)
    np.testing.assert_array_equal(case.sessions[1].images["t1c"].data, expected)


def test_raw_images_have_a_skull_which_is_noted(patient):
    (note,) = read(patient, lumiere_images="raw").notes
    assert note.startswith("images are as scanned, with skull")
    assert "skull-stripped and registered" in note
    for week in patient.iterdir():
        for version in VERSIONS[1:] if week.is_dir() else ():
            shutil.rmtree(week / IMAGES[version][0].partition("/")[0])
    case = read(patient, lumiere_images="auto")
    assert case.notes == (note,)
    assert without_names(case.notes, case) == [note]


def test_a_folder_of_one_patient_is_that_patient(patient):
    assert read(patient.parent).name == "Patient-042"
    (patient.parent / "Patient-001").mkdir()
    ((code, text),) = findings(patient.parent)
    assert code == "TD3002"
    assert "Patient-001, Patient-042" in text


def test_two_sessions_of_one_week_have_no_order_in_days(patient):
    """As before and after surgery, which is how most patients begin."""
    write_week(patient / "week-000-2", VERSIONS)
    weeks = ("week-000-1", "week-000-2", *WEEKS[1:])
    rows = "".join(f"{w},CRT\n" for w in weeks)
    (patient / "treatments.csv").write_text("session,treatment\n" + rows)
    ((code, text),) = findings(patient)
    assert code == "TD3309"
    assert "week-000-1 and week-000-2 are both on day 0" in text
    assert "column day of Patient-042/treatments.csv" in text
    assert "--leave-out" in text

    case = read(patient, leave_out=("week-000-1",))
    assert [s.name for s in case.sessions] == list(weeks[1:])
    assert case.sessions[0].day == 0

    days = (0, 3, 21, 90, 149, 310)
    rows = "".join(f"{w},CRT,{d}\n" for w, d in zip(weeks, days, strict=True))
    (patient / "treatments.csv").write_text("session,treatment,day\n" + rows)
    case = read(patient)
    assert tuple(s.day for s in case.sessions) == days
    assert [s.name for s in case.sessions] == list(weeks)
    assert "days are those of treatments.csv" in case.notes


def test_sessions_come_in_order_of_week_then_of_number(patient):
    (patient / "week-044").rename(patient / "week-1044")
    write_week(patient / "week-021-10", VERSIONS)
    write_week(patient / "week-021-2", VERSIONS)
    names = ["week-000-1", "week-003", "week-013", "week-021", "week-021-2", "week-021-10"]
    rows = "".join(f"{n},CRT,{9 * i}\n" for i, n in enumerate([*names, "week-1044"]))
    (patient / "treatments.csv").write_text("session,treatment,day\n" + rows)
    assert [s.name for s in read(patient).sessions] == [*names, "week-1044"]


def test_treatments_are_never_made_up(patient):
    (patient / "treatments.csv").unlink()
    (patient / "week-013" / f"{IMAGES['atlas'][0]}.nii.gz").unlink()
    (first, text), (second, _) = findings(patient)
    assert first == "TD3122"
    assert "Patient-042/treatments.csv" in text
    assert "session,treatment" in text
    assert second == "TD3316"
    ((code, text),) = findings(patient, treatments="published")
    assert code == "TD3007"
    assert "sailor" in text


def test_one_table_may_serve_all_patients(patient):
    (patient / "treatments.csv").unlink()
    rows = "".join(f"Patient-042,{w},{t}\n" for w, t in zip(WEEKS, GIVEN, strict=True))
    table = patient.parent / "treatments.csv"
    table.write_text("case,session,treatment\nPatient-001,week-000,TMZ\n" + rows)
    assert tuple(s.treatment for s in read(patient).sessions) == GIVEN
    table.write_text("case,session,treatment\nPatient-001,week-000,TMZ\n")
    assert [code for code, _ in findings(patient)] == ["TD3317"] * 5


def test_sessions_without_a_treatment_are_listed(patient):
    write_table(patient, WEEKS[:3])
    found = findings(patient)
    assert [code for code, _ in found] == ["TD3317", "TD3317"]
    assert ["week-021" in found[0][1], "week-044" in found[1][1]] == [True, True]


def test_incomplete_sessions_are_all_reported_or_skipped_with_a_note(patient):
    (patient / "week-003" / f"{IMAGES['atlas'][2]}.nii.gz").unlink()
    for m in range(3):
        (patient / "week-021" / f"{IMAGES['atlas'][m]}.nii.gz").unlink()
    found = findings(patient)
    assert [code for code, _ in found] == ["TD3316"] * 4
    folder = "Patient-042/week-003/DeepBraTumIA-segmentation/atlas/skull_strip"
    assert f"{folder}/{{t1_skull_strip,ct1_skull_strip,flair_skull_strip}}.nii.gz" in found[0][1]
    case = read(patient, skip_incomplete=True)
    assert [s.name for s in case.sessions] == ["week-000-1", "week-013", "week-044"]
    assert case.notes[:2] == (
        "the session on day 21 was skipped: it has no flair",
        "the session on day 147 was skipped: it has no t1, t1c, flair",
    )
    assert not [note for note in case.notes if "week" in note or "Patient" in note]
    # Other versions of these sessions are complete.
    assert len(read(patient, lumiere_images="registered").sessions) == 5


def test_where_expected_images_lie_is_said_for_every_version(tmp_path):
    patient = tmp_path / "Patient-042"
    (patient / "week-000").mkdir(parents=True)
    (patient / "treatments.csv").write_text("session,treatment\nweek-000,CRT\n")
    for version, expected in {
        "auto": "[Patient-042/week-000/{T1,CT1,FLAIR}.nii.gz]",
        "raw": "[Patient-042/week-000/{T1,CT1,FLAIR}.nii.gz]",
        "registered": "{T1_r2s_bet_reg,CT1_r2s_bet_reg,FLAIR_r2s_bet_reg}.nii.gz]",
    }.items():
        found = findings(patient, lumiere_images=version)
        assert [code for code, _ in found] == ["TD3316"] * 3
        assert expected in found[0][1]


def test_a_session_without_a_mask_is_read(patient):
    (patient / "week-013" / f"{MASKS['atlas']}.nii.gz").unlink()
    assert [s.mask is None for s in read(patient).sessions] == [False, False, True, False, False]


def test_two_files_for_one_image_or_mask_are_not_chosen_between(patient):
    save(patient / "week-003" / f"{IMAGES['atlas'][1]}.nii", voxels("atlas", "week-003", 1))
    save(patient / "week-013" / f"{MASKS['atlas']}.nii", voxels("atlas", "week-003", 1))
    found = findings(patient)
    assert [code for code, _ in found] == ["TD3321", "TD3321"]
    assert "could be t1c of week-003" in found[0][1]
    assert "could be mask of week-013" in found[1][1]


def test_a_first_week_that_is_not_0_is_refused_or_rebased(patient):
    ((code, text),) = findings(patient, leave_out=("week-000-1",))
    assert code == "TD3311"
    assert "week-003, is on day 21" in text
    case = read(patient, leave_out=("week-000-1",), rebase_days=True)
    assert tuple(s.day for s in case.sessions) == (0, 70, 126, 287)


def test_pointers_and_damaged_images_of_all_sessions_are_reported_together(patient):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (patient / "week-003" / f"{IMAGES['atlas'][0]}.nii.gz").write_bytes(pointer)
    (patient / "week-044" / f"{MASKS['atlas']}.nii.gz").write_bytes(b"")
    assert [code for code, _ in findings(patient)] == ["TD3108", "TD3101"]
    assert [code for code, _ in findings(patient, last=1)] == ["TD3101"]


def test_last_reads_so_many_sessions_and_keeps_the_days_of_all(patient):
    case = read(patient, last=2)
    assert tuple(s.day for s in case.sessions) == DAYS
    assert [len(s.images) for s in case.sessions] == [0, 0, 0, 3, 3]


def test_only_folders_of_weeks_are_sessions(patient):
    (patient / "week-44b").mkdir()
    (patient / "week-099").write_text("a file")
    assert len(read(patient).sessions) == 5
    empty = patient.parent / "Patient-043"
    empty.mkdir()
    (empty / "week-001").write_text("a file")
    assert [code for code, _ in findings(empty)] == ["TD3301"]
