"""Reading a case from disk: BIDS folders and manifest.csv with real, small NIfTI files."""

import os
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tadiff_rt.case import MODALITIES, ReadOptions
from tadiff_rt.errors import TableError, TadiffError, UsageError
from tadiff_rt.readers import read_case

SUFFIX = {"t1": "T1w", "t1c": "ce-gadolinium_T1w", "flair": "FLAIR"}
DAYS, TREATMENTS = (0, 84, 171, 240), ("CRT", "TMZ", "none", "TMZ")


def write_image(path, seed, dtype=np.float32, high=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(seed).integers(0, high, (9, 10, 11)).astype(dtype)
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    affine[:3, 3] = -7, 8, -9
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, path)
    return data.astype(np.float32)


def bids_table(root, subject="sub-17", sessions=range(4)):
    rows = [f"ses-{s + 1:02}\t{DAYS[s]}\t{TREATMENTS[s]}\tHGG\n" for s in sessions]
    table = root / subject / f"{subject}_sessions.tsv"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text("session_id\tdays_from_baseline\ttreatment\tpathology\n" + "".join(rows))


def image_path(root, session, modality, subject="sub-17"):
    name = f"{subject}_{session}_{SUFFIX[modality]}.nii.gz"
    return root / subject / session / "anat" / name


@pytest.fixture
def bids(tmp_path):
    """A data set of one subject, four sessions: (root, voxels by session index and modality)."""
    bids_table(tmp_path)
    voxels = {}
    for s in range(4):
        for m, modality in enumerate(MODALITIES):
            path = image_path(tmp_path, f"ses-{s + 1:02}", modality)
            voxels[s, modality] = write_image(path, seed=10 * s + m)
    return tmp_path, voxels


@pytest.fixture
def manifest(tmp_path):
    """A manifest.csv of two sessions; returns its path."""
    rows = []
    for s in range(2):
        for m, modality in enumerate(MODALITIES):
            write_image(tmp_path / f"s{s}" / f"{modality}.nii.gz", seed=10 * s + m)
        cells = ",".join(f"s{s}/{modality}.nii.gz" for modality in MODALITIES)
        rows.append(f"v{s},{DAYS[s]},{TREATMENTS[s]},{cells}\n")
    path = tmp_path / "manifest.csv"
    path.write_text("session,day,treatment,t1,t1c,flair\n" + "".join(rows))
    return path


def findings(path, options=None, **kwargs):
    with pytest.raises(TadiffError) as caught:
        read_case(path, options, **kwargs)
    return [(e.code, f"{e.message} [{e.where}]") for e in caught.value.findings]


def test_a_bids_subject_is_read_with_days_treatments_and_voxels(bids):
    root, voxels = bids
    case = read_case(root / "sub-17")
    assert case.name == "sub-17"
    assert case.notes == ()
    assert [s.name for s in case.sessions] == ["ses-01", "ses-02", "ses-03", "ses-04"]
    assert tuple(s.day for s in case.sessions) == DAYS
    assert tuple(s.treatment for s in case.sessions) == TREATMENTS
    for (s, modality), data in voxels.items():
        np.testing.assert_array_equal(case.sessions[s].images[modality].data, data)
    assert all(s.mask is None for s in case.sessions)
    assert case.sessions[1].images["t1c"].label == (
        "sub-17/ses-02/anat/sub-17_ses-02_ce-gadolinium_T1w.nii.gz"
    )


def test_a_data_set_of_one_subject_is_that_subject(bids):
    root, _ = bids
    (root / "sub-readme.txt").write_text("a file, not a subject")
    assert read_case(root).name == "sub-17"


def test_the_current_folder_is_a_path_like_any_other(bids, monkeypatch):
    monkeypatch.chdir(bids[0] / "sub-17")
    assert read_case(".").name == "sub-17"


@pytest.mark.parametrize("relative", [True, False])
def test_dots_after_a_link_lead_where_the_system_says(bids, monkeypatch, relative):
    """Not to the subject of the same name beside the link, who is another patient."""
    root, _ = bids
    other = root / "elsewhere"
    bids_table(other, "sub-17", range(2))
    for s in range(2):
        for m, modality in enumerate(MODALITIES):
            write_image(image_path(other, f"ses-{s + 1:02}", modality), seed=90 + 10 * s + m)
    (root / "link").symlink_to(other / "sub-17", target_is_directory=True)
    monkeypatch.chdir(root)
    start = Path() if relative else root
    for path in ("link/../sub-17", "link/..", "link/../sub-17/ses-01/..", "link/../sub-17/."):
        case = read_case(start / path)
        assert (case.name, len(case.sessions)) == ("sub-17", 2), path
    assert len(read_case(start / "elsewhere" / ".." / "sub-17").sessions) == 4


def test_a_link_to_a_subject_keeps_its_own_name(bids):
    root, _ = bids
    (root / "links").mkdir()
    (root / "links" / "sub-99").symlink_to(root / "sub-17", target_is_directory=True)
    assert "sub-99/sub-99_sessions.tsv" in findings(root / "links" / "sub-99")[0][1]


def test_an_absolute_path_needs_no_current_folder(bids, tmp_path_factory, monkeypatch):
    gone = tmp_path_factory.mktemp("gone")
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert read_case(bids[0] / "sub-17").name == "sub-17"


def test_of_several_subjects_one_must_be_named(bids):
    root, _ = bids
    bids_table(root, "sub-02")
    with pytest.raises(UsageError, match="2 subjects: sub-02, sub-17") as caught:
        read_case(root)
    assert caught.value.code == "TD3002"


@pytest.mark.parametrize("label", ["GADOLINIUM", "Gd", "gadoterate"])
def test_any_contrast_agent_makes_t1c(bids, label):
    root, voxels = bids
    path = image_path(root, "ses-02", "t1c")
    path.rename(path.with_name(f"sub-17_ses-02_acq-3d_ce-{label}_T1w.nii.gz"))
    case = read_case(root)
    np.testing.assert_array_equal(case.sessions[1].images["t1c"].data, voxels[1, "t1c"])
    np.testing.assert_array_equal(case.sessions[1].images["t1"].data, voxels[1, "t1"])


def test_two_runs_are_not_chosen_between(bids):
    root, _ = bids
    first = image_path(root, "ses-02", "t1")
    write_image(first.with_name("sub-17_ses-02_run-2_T1w.nii.gz"), seed=1)
    ((code, message),) = findings(root)
    assert code == "TD3321"
    assert "sub-17_ses-02_T1w.nii.gz" in message
    assert "sub-17_ses-02_run-2_T1w.nii.gz" in message


def test_absent_images_are_all_reported_with_the_line_of_their_session(bids):
    """S20: session in the table, images absent."""
    root, _ = bids
    image_path(root, "ses-02", "flair").unlink()
    image_path(root, "ses-04", "t1").unlink()
    (first, one), (second, other) = findings(root)
    assert (first, second) == ("TD3316", "TD3316")
    assert "session ses-02 has no flair image" in one
    assert "sub-17_sessions.tsv, line 3]" in one
    assert "session ses-04 has no t1 image" in other


def test_images_without_a_row_are_reported(bids):
    """S20, S27: more image folders than rows; of ses-04 the day and treatment are unknown."""
    root, _ = bids
    bids_table(root, sessions=range(3))
    (root / "sub-17" / "ses-05" / "dwi").mkdir(parents=True)
    ((code, message),) = findings(root)
    assert code == "TD3317"
    assert "ses-04" in message
    assert "3 rows" in message


def test_images_of_another_subject_do_not_count(bids):
    root, _ = bids
    path = image_path(root, "ses-01", "t1")
    path.rename(path.with_name("sub-18_ses-01_T1w.nii.gz"))
    assert [code for code, _ in findings(root)] == ["TD3316"]


def test_problems_of_images_of_all_sessions_are_reported_together(bids):
    root, _ = bids
    image_path(root, "ses-01", "t1").write_bytes(b"")
    image_path(root, "ses-02", "t1c").unlink()
    image_path(root, "ses-03", "flair").write_bytes(b"<!DOCTYPE html>" * 100)
    codes = [code for code, _ in findings(root)]
    assert codes == ["TD3316", "TD3101", "TD3109"]


def test_grids_that_cannot_be_brought_together_are_reported_with_damaged_files(bids):
    """Only those: another voxel size is a matter of what the forecast is asked for."""
    root, voxels = bids
    image_path(root, "ses-01", "t1").write_bytes(b"")
    turn = np.diag([1.0, 1.5, 2.0, 1.0])
    turn[:2, :2] = [[0.8, -0.9], [0.6, 1.2]]
    finer = np.diag([0.5, 0.75, 1.0, 1.0])
    finer[:3, 3] = -5, 11.375, -4
    for session, affine in (("ses-02", turn), ("ses-03", finer)):
        data = voxels[int(session[-1]) - 1, "flair"]
        image = nib.Nifti1Image(data, affine)
        image.set_qform(affine, 1)
        image.set_sform(affine, 1)
        nib.save(image, image_path(root, session, "flair"))
    codes = [(code, message.split("[")[1]) for code, message in findings(root)]
    name = "sub-17/{0}/anat/sub-17_{0}_{1}.nii.gz]"
    assert codes == [
        ("TD3101", name.format("ses-01", "T1w")),
        ("TD3201", name.format("ses-02", "FLAIR")),
    ]


def test_a_session_id_without_its_prefix_is_refused(bids):
    root, _ = bids
    table = root / "sub-17" / "sub-17_sessions.tsv"
    table.write_text(table.read_text().replace("ses-02", "02"))
    codes = [code for code, _ in findings(root)]
    assert codes == ["TD3318", "TD3317"]


def test_masks_come_from_the_derivatives_desc_tumour_first(bids):
    root, _ = bids
    anat = root / "derivatives" / "raters" / "sub-17" / "ses-03" / "anat"
    tumour = write_image(anat / "sub-17_ses-03_desc-tumour_dseg.nii.gz", 5, np.uint8, high=2)
    write_image(anat / "sub-17_ses-03_desc-brain_dseg.nii.gz", 6, np.uint8, high=3)
    case = read_case(root)
    np.testing.assert_array_equal(case.sessions[2].mask.data, tumour)
    assert case.sessions[1].mask is None


@pytest.mark.parametrize("desc", [("a", "b"), ("tumour", "tumour")])
def test_ambiguous_masks_are_named(bids, desc):
    root, _ = bids
    for pipeline, name in zip(("one", "two"), desc, strict=True):
        anat = root / "derivatives" / pipeline / "sub-17" / "ses-03" / "anat"
        write_image(anat / f"sub-17_ses-03_desc-{name}_dseg.nii.gz", 5, np.uint8, high=3)
    ((code, message),) = findings(root)
    assert code == "TD3321"
    assert all(f"derivatives/{pipeline}/sub-17" in message for pipeline in ("one", "two"))


def test_a_predicted_mask_is_not_taken_for_a_raters(bids):
    root, _ = bids
    anat = root / "derivatives" / "tadiff" / "sub-17" / "ses-03" / "anat"
    write_image(anat / "sub-17_ses-03_desc-predicted_dseg.nii.gz", 5, np.uint8, high=3)
    assert read_case(root).sessions[2].mask is None


def test_last_reads_so_many_sessions_and_keeps_the_days_of_all(bids):
    root, voxels = bids
    image_path(root, "ses-01", "t1").write_bytes(b"never read")
    case = read_case(root, last=3)
    assert tuple(s.day for s in case.sessions) == DAYS
    assert [len(s.images) for s in case.sessions] == [0, 3, 3, 3]
    np.testing.assert_array_equal(case.sessions[3].images["flair"].data, voxels[3, "flair"])
    assert case.notes == ()  # the caller's choice; a forecast says which sessions it used


def test_last_still_misses_absent_images_of_earlier_sessions(bids):
    root, _ = bids
    image_path(root, "ses-01", "t1").unlink()
    assert [code for code, _ in findings(root, last=1)] == ["TD3316"]


def test_last_beyond_the_number_of_sessions_reads_all(bids):
    case = read_case(bids[0], last=9)
    assert [len(s.images) for s in case.sessions] == [3, 3, 3, 3]
    assert case.notes == ()


@pytest.mark.parametrize("last", [0, -1])
def test_last_must_be_positive(bids, last):
    with pytest.raises(UsageError, match="at least 1"):
        read_case(bids[0], last=last)


def test_options_reach_the_table_and_their_use_is_noted(bids):
    root, _ = bids
    table = root / "sub-17" / "sub-17_sessions.tsv"
    header, *rows = table.read_text().splitlines(keepends=True)
    table.write_text(header + "".join(reversed(rows)))
    assert [code for code, _ in findings(root)] == ["TD3310"]
    case = read_case(root, ReadOptions(sort=True))
    assert [s.name for s in case.sessions] == ["ses-01", "ses-02", "ses-03", "ses-04"]
    assert case.notes == ("sessions were sorted by day",)


def test_a_manifest_is_read_relative_to_its_folder(manifest, monkeypatch):
    monkeypatch.chdir("/")
    case = read_case(manifest)
    assert case.name == "manifest"
    assert [(s.name, s.day, s.treatment) for s in case.sessions] == [
        ("v0", 0, "CRT"),
        ("v1", 84, "TMZ"),
    ]
    expected = np.random.default_rng(12).integers(0, 100, (9, 10, 11))
    np.testing.assert_array_equal(case.sessions[1].images["flair"].data, expected)


def test_a_manifest_may_name_absolute_paths_and_masks(manifest):
    folder = manifest.parent
    mask = write_image(folder / "m.nii", 3, np.uint8, high=2)
    header, first, second = manifest.read_text().splitlines()
    second = second.replace("s1/t1.nii.gz", str(folder / "s1" / "t1.nii.gz"))
    manifest.write_text(f"{header},mask\n{first},\n{second},m.nii\n")
    case = read_case(manifest)
    assert case.sessions[0].mask is None
    np.testing.assert_array_equal(case.sessions[1].mask.data, mask)
    expected = np.random.default_rng(10).integers(0, 100, (9, 10, 11))
    np.testing.assert_array_equal(case.sessions[1].images["t1"].data, expected)


def test_an_empty_path_cell_and_a_missing_file_are_reported(manifest):
    text = manifest.read_text().replace("s0/t1c.nii.gz", "").replace("s1/t1.nii.gz", "no.nii")
    manifest.write_text(text)
    (first, one), (second, other) = findings(manifest)
    assert (first, second) == ("TD3316", "TD3122")
    assert "manifest.csv, line 2" in one
    assert "no.nii" in other


def test_a_missing_file_of_a_session_that_is_not_needed_is_reported(manifest):
    manifest.write_text(manifest.read_text().replace("s0/t1.nii.gz", "no.nii"))
    assert [code for code, _ in findings(manifest, last=1)] == ["TD3122"]


@pytest.mark.skipif(os.sep != "/", reason="paths of Windows are paths here")
@pytest.mark.parametrize("last", [1, 2])
def test_paths_copied_from_windows_are_told_how_to_be_written(manifest, last):
    manifest.write_text(manifest.read_text().replace("s0/", "s0\\").replace("v1,84", "v1,85"))
    with pytest.raises(TadiffError) as caught:
        read_case(manifest, last=last)
    assert [finding.code for finding in caught.value.findings] == ["TD3122"] * 3
    assert all("write / between folders" in finding.fix for finding in caught.value.findings)
    manifest.write_text(manifest.read_text().replace("\\", "/no-"))
    with pytest.raises(TadiffError) as caught:
        read_case(manifest, last=last)
    assert not any(finding.fix for finding in caught.value.findings)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (None, "TD3122"),
        ("session_id\tacq_time\n", "TD3301"),
        ("session_id\tacq_time\nses-01\tx\n", "TD3305"),
    ],
)
def test_a_bids_table_that_is_not_there_is_described(bids, text, code):
    subject = bids[0] / "sub-17"
    table = subject / "sub-17_sessions.tsv"
    table.unlink()
    if text is not None:
        table.write_text(text)
    with pytest.raises(TadiffError, match=code) as caught:
        read_case(subject)
    assert all(
        column in caught.value.fix
        for column in ("session_id", "days_from_baseline", "treatment (CRT, TMZ or none")
    )


@pytest.mark.parametrize("link", [False, True], ids=["same-name", "symbolic-link"])
def test_one_file_for_two_modalities_is_refused_unless_allowed(manifest, link):
    """A06."""
    if link:
        flair = manifest.parent / "s1" / "flair.nii.gz"
        flair.unlink()
        os.symlink("t1.nii.gz", flair)
    else:
        text = manifest.read_text()
        manifest.write_text(text.replace("s1/flair.nii.gz", "s1/../s1/t1.nii.gz"))
    with pytest.raises(
        UsageError, match="one file stands for t1 and flair of session v1"
    ) as caught:
        read_case(manifest)
    assert caught.value.code == "TD3001"
    case = read_case(manifest, ReadOptions(allow_same=True))
    assert case.notes == ("one file stands for t1 and flair of session v1",)
    images = case.sessions[1].images
    np.testing.assert_array_equal(images["t1"].data, images["flair"].data)


def test_a_table_with_problems_is_refused_before_any_image_is_read(manifest):
    for image in manifest.parent.glob("s*/*.nii.gz"):
        image.write_bytes(b"broken")
    manifest.write_text(manifest.read_text().replace(",84,", ",8.4,"))
    assert [code for code, _ in findings(manifest)] == ["TD3306"]


def test_paths_that_are_no_case_are_refused_by_kind(tmp_path):
    (tmp_path / "t1.nii.gz").write_bytes(b"")
    (tmp_path / "case.json").write_text('{"a": 1, "a": 2}')
    (tmp_path / "empty").mkdir()
    (tmp_path / "sub-01").mkdir()
    os.mkfifo(tmp_path / "fifo.csv")
    expected = {
        "absent": "TD3122",
        "x" * 5000: "TD3122",
        "t1.nii.gz": "TD3003",
        "case.json": "TD3003",  # S22, S23: JSON tables are not read, whatever they hold
        "empty": "TD3122",
        "sub-01": "TD3122",
        "fifo.csv": "TD3121",
    }
    codes = {name: findings(tmp_path / name)[0][0] for name in expected}
    assert codes == expected


@pytest.fixture
def without_root():
    """Root may read everything; the effective user decides."""
    euid = os.geteuid()
    if euid == 0:
        os.seteuid(65534)
    yield
    os.seteuid(euid)


@pytest.mark.parametrize("name", ["t.csv", "sub-01", "closed/t.csv"])
def test_what_may_not_be_read_is_refused(name, request):
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is closed to other users
        os.chmod(folder, 0o755)
        path = Path(folder, name)
        if path.parent.name == "closed":
            path.parent.mkdir(mode=0)
        elif path.suffix:
            path.touch(mode=0)
        else:
            path.mkdir(mode=0)
        request.getfixturevalue("without_root")
        assert [code for code, _ in findings(path)] == ["TD3123"]
        if os.getuid() == 0:
            os.seteuid(0)


def test_a_subject_whose_name_is_no_safe_file_name_is_refused(tmp_path):
    bids_table(tmp_path, "sub-0\u202e1")
    with pytest.raises(TableError) as caught:
        read_case(tmp_path)
    assert caught.value.code == "TD3318"
