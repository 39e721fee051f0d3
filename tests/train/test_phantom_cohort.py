"""The data set on disk: names, tables, headers, truth, and equal bytes however it is made."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tadiff_rt.errors import OutputError
from tadiff_rt.readers import read_case
from tadiff_train.phantom.cohort import simulate_patient, write_cohort

pytest.importorskip("nilearn", reason="the template maps are in nilearn")


@pytest.fixture(scope="module")
def written(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[tuple[int, int]]]:
    """Two patients of seed 3 with their other futures, and the progress told."""
    out = tmp_path_factory.mktemp("cohort") / "bids"
    told: list[tuple[int, int]] = []
    write_cohort(out, 2, 96, 3, counterfactuals=True, progress=lambda *done: told.append(done))
    return out, told


@pytest.fixture(scope="module")
def cohort(written: tuple[Path, list[tuple[int, int]]]) -> Path:
    return written[0]


def sessions(cohort: Path, subject: str) -> list[dict[str, str]]:
    lines = (cohort / subject / f"{subject}_sessions.tsv").read_text().splitlines()
    columns = lines[0].split("\t")
    return [dict(zip(columns, line.split("\t"), strict=True)) for line in lines[1:]]


def truth(cohort: Path, subject: str) -> dict:
    folder = cohort / "derivatives" / "phantom" / subject
    return json.loads((folder / f"{subject}_desc-truth_parameters.json").read_text())


def load(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def volume_ml(path: Path) -> float:
    image = nib.load(path)
    return float(np.count_nonzero(image.dataobj) * np.prod(image.header.get_zooms()) / 1000)


def test_every_session_has_its_files_and_no_other(cohort: Path):
    for subject in ("sub-001", "sub-002"):
        expected = {f"{subject}_sessions.tsv"}
        for row in sessions(cohort, subject):
            stem = f"{row['session_id']}/anat/{subject}_{row['session_id']}"
            expected |= {f"{stem}_{s}.nii.gz" for s in ("T1w", "ce-gadolinium_T1w", "FLAIR")}
            labels = cohort / "derivatives/phantom" / subject / f"{stem}_desc-tumour_dseg.nii.gz"
            assert labels.is_file()
        root = cohort / subject
        found = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
        assert found == expected


def test_tables_tell_days_and_treatments_of_the_simulation(cohort: Path):
    patient = simulate_patient(3, 1, 96)
    rows = sessions(cohort, "sub-002")
    assert list(rows[0]) == ["session_id", "days_from_baseline", "treatment"]
    assert [int(r["days_from_baseline"]) for r in rows] == list(patient.days)
    assert [r["treatment"] for r in rows] == list(patient.treatments)
    participants = (cohort / "participants.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in participants] == [
        "participant_id",
        "sub-001",
        "sub-002",
    ]
    assert set(json.loads((cohort / "sessions.json").read_text())["treatment"]["Levels"]) == {
        "CRT",
        "TMZ",
        "none",
    }


def test_headers_place_every_image_on_one_grid(cohort: Path):
    affines = []
    for path in sorted(cohort.rglob("*.nii.gz")):
        image = nib.load(path)
        assert image.get_data_dtype() == (np.uint8 if "dseg" in path.name else np.int16)
        qform, qcode = image.get_qform(coded=True)
        sform, scode = image.get_sform(coded=True)
        assert qcode == scode == 1
        np.testing.assert_array_equal(qform, sform)
        assert nib.aff2axcodes(sform) == ("R", "A", "S")
        assert image.header.get_zooms() == (2, 2, 2)
        assert image.header.get_xyzt_units()[0] == "mm"
        assert image.shape[:2] == (96, 96)
        affines.append(sform)
    assert len(affines) > 30
    assert all((affine == affines[0]).all() for affine in affines)


def test_gzip_headers_hold_no_time_and_no_name(cohort: Path):
    """RFC 1952: byte 3 holds the flags, bytes 4-7 the time."""
    for path in cohort.rglob("*.nii.gz"):
        assert path.read_bytes()[:8] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00"


def test_truth_states_the_volumes_of_the_masks(cohort: Path):
    for subject in ("sub-001", "sub-002"):
        folder = cohort / "derivatives" / "phantom" / subject
        stated = truth(cohort, subject)
        measured = [volume_ml(p) for p in sorted(folder.rglob("*_desc-tumour_dseg.nii.gz"))]
        np.testing.assert_allclose(stated["volumes_ml"], measured, atol=1e-3)
        assert min(measured) >= 2
        assert max(measured) <= 150


def test_other_futures_are_ordered_by_strength_of_treatment(cohort: Path):
    """The same density before the interval: CRT, TMZ and none leave ever more tumour."""
    for subject in ("sub-001", "sub-002"):
        stated = truth(cohort, subject)
        volumes = {k.split("_")[1]: v for k, v in stated["counterfactual_volumes_ml"].items()}
        volumes[stated["treatments"][-1]] = stated["volumes_ml"][-1]
        assert volumes["CRT"] < volumes["TMZ"] < volumes["none"]


def test_other_futures_differ_near_the_tumour_only(cohort: Path):
    """The scanner's noise is shared, so voxels that no arm reaches are equal, bit by bit."""
    for subject in ("sub-001", "sub-002"):
        stated = truth(cohort, subject)
        session = f"ses-{len(stated['days']):02d}"
        stem = f"{subject}/{session}/anat/{subject}_{session}"
        other = next(iter({"CRT", "TMZ", "none"} - {stated["treatments"][-1]}))
        derived = cohort / "derivatives" / "phantom"
        actual = load(cohort / f"{stem}_ce-gadolinium_T1w.nii.gz")
        changed = load(derived / f"{stem}_ce-gadolinium_desc-{other}_T1w.nii.gz")
        masks = [load(derived / f"{stem}_desc-tumour{arm}_dseg.nii.gz") > 0 for arm in ("", other)]
        reached = np.argwhere(masks[0] | masks[1])
        low, high = reached.min(0) - 2, reached.max(0) + 3
        far = np.ones(actual.shape, bool)
        far[tuple(slice(max(a, 0), b) for a, b in zip(low, high, strict=True))] = False
        np.testing.assert_array_equal(actual[far], changed[far])
        assert (actual != changed).any()


def test_a_patient_has_the_same_bytes_alone_and_from_another_process(cohort: Path, tmp_path: Path):
    out = tmp_path / "again"
    write_cohort(out, 1, 96, 3, counterfactuals=True, jobs=2, first=1)
    again = sorted(p.relative_to(out) for p in out.rglob("sub-002*") if p.is_file())
    assert len(again) > 16
    for path in again:
        assert (out / path).read_bytes() == (cohort / path).read_bytes(), path


@pytest.mark.slow
def test_the_two_grids_show_the_same_patient(cohort: Path):
    """The same plan and tumour on 1 mm and 2 mm; volumes differ by discretisation only."""
    fine, stated = simulate_patient(3, 0, 192), truth(cohort, "sub-001")
    assert list(fine.days) == stated["days"]
    np.testing.assert_allclose(fine.volumes_ml, stated["volumes_ml"], rtol=0.1)


def test_seeds_and_indices_give_different_patients(cohort: Path):
    one, two = (truth(cohort, s) for s in ("sub-001", "sub-002"))
    assert one["parameters"] != two["parameters"]
    assert asdict(simulate_patient(4, 0, 96).parameters) != one["parameters"]


def test_the_runtime_reads_a_simulated_patient(cohort: Path):
    case = read_case(cohort / "sub-002")
    rows = sessions(cohort, "sub-002")
    assert [s.day for s in case.sessions] == [int(r["days_from_baseline"]) for r in rows]
    for session, row in zip(case.sessions, rows, strict=True):
        name = f"sub-002_{row['session_id']}"
        folder = Path("sub-002", row["session_id"], "anat")
        expected = load(cohort / folder / f"{name}_ce-gadolinium_T1w.nii.gz")
        np.testing.assert_array_equal(session.images["t1c"].data, expected)


def test_progress_is_told_after_each_patient(
    written: tuple[Path, list[tuple[int, int]]],
):
    assert written[1] == [(1, 2), (2, 2)]


def test_a_folder_that_holds_something_is_refused(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match=r"TD8001.*not empty"):
        write_cohort(tmp_path, 1, 96, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="TD8001"):
        write_cohort(tmp_path / "out", 1, 96, 0)


def test_an_interrupted_cohort_has_no_description(tmp_path: Path):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cohort(tmp_path / "bids", 2, 96, 2, progress=interrupt)
    assert (tmp_path / "bids" / "sub-001").is_dir()
    assert not (tmp_path / "bids" / "dataset_description.json").exists()


def test_import_loads_neither_torch_nor_nilearn():
    code = "import sys, tadiff_train.phantom; print({'torch', 'nilearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
