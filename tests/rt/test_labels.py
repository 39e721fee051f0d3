"""Labels of tumour masks: what is declared by whom, and what is refused until somebody does.

G19 is the number of the fault in the project's corpus.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tadiff_rt.case import MODALITIES, Case, ReadOptions, Volume
from tadiff_rt.errors import GeometryError, TadiffError, UsageError
from tadiff_rt.labels import CONVENTIONS, UNDECLARED, convention_named, tumour_masks
from tadiff_rt.readers import read_case
from tadiff_rt.readers.label_table import find_label_table, read_label_table, tissue_named
from tadiff_rt.readers.nifti import voxel_digest

SHAPE = (6, 7, 8)
SUFFIX = {"t1": "T1w", "t1c": "ce-gadolinium_T1w", "flair": "FLAIR"}

NUMBERS = {  # as the data sets number them; None is no tumour
    "binary": {1: "tumour"},
    "published": {1: "oedema", 2: "necrosis", 3: "enhancing tumour"},
    "brats2021": {1: "necrosis", 2: "oedema", 4: "enhancing tumour"},
    "brats2023": {1: "necrosis", 2: "oedema", 3: "enhancing tumour"},
    "brats2024": {1: "necrosis", 2: "oedema", 3: "enhancing tumour", 4: None},
    "hdglio": {1: "oedema", 2: "enhancing tumour"},
}


def labelled(**voxels: int) -> np.ndarray:
    """A mask with so many voxels of each label, named "l1" or "l0_5" for 0.5."""
    data = np.zeros(SHAPE, np.float32)
    at = 0
    for name, count in voxels.items():
        data.flat[at : at + count] = float(name[1:].replace("_", ".").replace("m", "-"))
        at += count
    return data


def mask(data: np.ndarray, label: str = "mask.nii") -> Volume:
    affine = np.eye(4)
    return Volume(data, affine, label, voxel_digest(data, affine))


def refused(*masks: Volume, labels: str = "") -> GeometryError:
    with pytest.raises(GeometryError) as caught:
        tumour_masks(masks, convention_named(labels), [])
    assert {finding.code for finding in caught.value.findings} == {"TD3209"}
    return caught.value


@pytest.mark.parametrize("name", NUMBERS)
def test_conventions_are_those_of_the_data_sets(name: str):
    assert set(CONVENTIONS) == set(NUMBERS)
    assert set(CONVENTIONS[name].meanings) == set(NUMBERS[name])
    for label, tissue in NUMBERS[name].items():
        data = labelled(**{f"l{label}": 9, "l1": 3})
        (got,) = tumour_masks([mask(data)], CONVENTIONS[name], [])
        expected = data == 1 if tissue is None else data > 0
        np.testing.assert_array_equal(got.data > 0, expected)
        if tissue:
            assert CONVENTIONS[name].meanings[label] == tissue


def test_zero_and_one_need_no_declaration():
    notes: list[str] = []
    masks = [mask(labelled(l1=5)), mask(labelled())]
    assert tumour_masks(masks, UNDECLARED, notes) == masks
    assert notes == []


def test_several_labels_need_one_and_fitting_conventions_are_offered():
    error = refused(
        mask(labelled(l1=5), "a"), mask(labelled(l1=7, l3=2), "b"), mask(labelled(l3=1), "c")
    )
    assert error.findings == (error,)  # one choice, one finding
    assert "labels 1 (12 voxels), 3 (3 voxels)" in error.message
    assert error.where == "b and 1 more"
    for name in NUMBERS:
        assert (f"{name} (" in error.fix) == ({1, 3} <= NUMBERS[name].keys())
    assert "--labels" in error.fix
    assert "brats2024 (1 necrosis, 2 oedema, 3 enhancing tumour, 4 resection cavity)" in error.fix


@pytest.mark.parametrize("label", [2, 3, 4])
def test_a_single_label_other_than_one_is_not_guessed(label: int):
    """4 is the resection cavity in one data set."""
    error = refused(mask(labelled(**{f"l{label}": 6})))
    assert f"label {label} (6 voxels)" in error.message
    offered = {name for name in NUMBERS if f"{name} (" in error.fix}
    assert offered == {name for name in NUMBERS if label in NUMBERS[name]}


@pytest.mark.parametrize("name", ["", *NUMBERS])
@pytest.mark.parametrize(
    ("strange", "shown"), [("l255", "255"), ("l0_5", "0.5"), ("lm1", "-1"), ("l5", "5")]
)
def test_labels_of_no_convention_are_refused_whatever_is_declared(name, strange, shown):  # G19
    error = refused(mask(labelled(l1=2, **{strange: 3})), labels=name)
    assert f"{shown} (3 voxels)" in error.message
    assert error.fix == "save the mask with 1 for tumour and 0 elsewhere"


def test_labels_outside_the_declared_convention_are_listed_for_every_mask():
    good, bad = mask(labelled(l1=5, l2=1, l3=4), "good"), mask(labelled(l1=2, l4=6), "bad")
    error = refused(bad, good, mask(labelled(l4=1), "worse"), labels="brats2023")
    assert [(f.where, f.message.split(",")[0]) for f in error.findings] == [
        ("bad", "the mask holds label 4 (6 voxels)"),
        ("worse", "the mask holds label 4 (1 voxels)"),
    ]
    assert "unknown to brats2023 (1 necrosis, 2 oedema, 3 enhancing tumour)" in error.message
    assert "brats2021" in error.fix


def test_many_labels_are_cut_short():
    error = refused(mask(np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE) / 4))
    assert "10 more" not in error.message
    assert f"2.5 (1 voxels) and {np.prod(SHAPE) - 11} more" in error.message


def test_the_resection_cavity_is_no_tumour_and_that_is_noted():
    notes: list[str] = []
    original = mask(labelled(l1=3, l4=9, l3=2))
    (got,) = tumour_masks([original], CONVENTIONS["brats2024"], notes)
    assert (got.data > 0).sum() == 5
    np.testing.assert_array_equal(got.data, np.where(original.data == 4, 0, original.data))
    assert got.data.dtype == np.float32
    assert got.sha256 == voxel_digest(got.data, got.affine) != original.sha256
    (note,) = notes
    assert note.startswith("tumour labels: brats2024 (1 necrosis, 2 oedema, ")
    assert note.endswith("the resection cavity is no tumour")


def test_an_unknown_convention_is_refused():
    with pytest.raises(UsageError, match=r"'brats' is unknown; known are binary, pub") as caught:
        convention_named("brats")
    assert caught.value.code == "TD3005"


# manifest.csv ------------------------------------------------------------------------------------


def save(path: Path, data: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, path)


def loose(folder: Path, *masks: np.ndarray) -> Path:
    rows = []
    for s, data in enumerate(masks):
        for m, modality in enumerate(MODALITIES):
            noise = np.random.default_rng([s, m]).random(SHAPE).astype(np.float32)
            save(folder / f"s{s}" / f"{modality}.nii", noise)
        save(folder / f"s{s}" / "mask.nii", data)
        files = ",".join(f"s{s}/{name}.nii" for name in (*MODALITIES, "mask"))
        rows.append(f"v{s},{30 * s},TMZ,{files}\n")
    table = folder / "manifest.csv"
    table.write_text("session,day,treatment,t1,t1c,flair,mask\n" + "".join(rows))
    return table


def findings(path: Path, **options: object) -> list[tuple[str, str]]:
    with pytest.raises(TadiffError) as caught:
        read_case(path, ReadOptions(**options))
    return [(e.code, f"{e.message} [{e.where}] {e.fix}") for e in caught.value.findings]


def tumours(case: Case) -> list[int]:
    return [int((s.mask.data > 0).sum()) for s in case.sessions]


def test_loose_masks_of_one_need_nothing(tmp_path):
    case = read_case(loose(tmp_path, labelled(l1=4), labelled()))
    assert tumours(case) == [4, 0]
    assert case.notes == ()


def test_loose_masks_of_several_labels_are_declared_by_name(tmp_path):
    table = loose(tmp_path, labelled(l1=4), labelled(l1=2, l3=3, l4=9))
    ((code, text),) = findings(table)
    assert code == "TD3209"
    assert "1 (6 voxels), 3 (3 voxels), 4 (9 voxels)" in text
    assert "[s1/mask.nii]" in text
    assert "brats2024" in text
    case = read_case(table, ReadOptions(labels="brats2024"))
    assert tumours(case) == [4, 5]
    assert len(case.notes) == 1
    ((code, text),) = findings(table, labels="brats2021")
    assert code == "TD3209"
    assert "label 3 (3 voxels), unknown to brats2021" in text


def test_labels_and_damaged_files_are_reported_together(tmp_path):
    table = loose(tmp_path, labelled(l1=4, l2=1), labelled(l1=2), labelled(l255=1))
    (tmp_path / "s1" / "t1.nii").write_bytes(b"")
    assert [code for code, _ in findings(table)] == ["TD3101", "TD3209"]


def test_an_unknown_name_is_refused_before_anything_is_read(tmp_path):
    table = loose(tmp_path, labelled(l1=4))
    (tmp_path / "s0" / "t1.nii").write_bytes(b"")
    ((code, text),) = findings(table, labels="BRATS2021")
    assert code == "TD3005"
    assert "[--labels]" in text


# BIDS --------------------------------------------------------------------------------------------


@pytest.fixture
def bids(tmp_path) -> Path:
    """One session with a mask of labels 1, 2 and 7; returns the folder of the pipeline."""
    subject = tmp_path / "sub-17"
    for m, modality in enumerate(MODALITIES):
        noise = np.random.default_rng(m).random(SHAPE).astype(np.float32)
        save(subject / "ses-01" / "anat" / f"sub-17_ses-01_{SUFFIX[modality]}.nii.gz", noise)
    (subject / "sub-17_sessions.tsv").write_text(
        "session_id\tdays_from_baseline\ttreatment\nses-01\t0\tTMZ\n"
    )
    pipeline = tmp_path / "derivatives" / "raters"
    name = "sub-17_ses-01_desc-tumour_dseg.nii.gz"
    save(pipeline / "sub-17" / "ses-01" / "anat" / name, labelled(l1=2, l2=3, l7=4))
    return pipeline


ANAT = Path("sub-17", "ses-01", "anat")
TABLE = "index\tname\n0\tbackground\n1\toedema\n2\tEnhancing Tumor\n7\tresection_cavity\n"


@pytest.mark.parametrize(
    "place",
    [
        "dseg.tsv",
        "desc-tumour_dseg.tsv",
        "sub-17/sub-17_desc-tumour_dseg.tsv",
        "sub-17/ses-01/sub-17_ses-01_dseg.tsv",
        "sub-17/ses-01/anat/sub-17_ses-01_desc-tumour_dseg.tsv",
    ],
)
def test_a_table_of_bids_says_what_labels_mean(bids, place):
    (bids / place).write_text(TABLE)
    case = read_case(bids.parents[1])
    assert tumours(case) == [5]
    # The name of the table may name the patient.
    assert case.notes == (
        "tumour labels: dseg.tsv (1 oedema, 2 enhancing tumour, 7 resection cavity); the "
        "resection cavity is no tumour",
    )


@pytest.mark.parametrize(
    "place",
    [
        "desc-brain_dseg.tsv",
        "sub-17/ses-01/anat/sub-17_ses-02_dseg.tsv",
        "sub-17/ses-01/anat/sub-17_ses-01_desc-tumour_probseg.tsv",
        "sub-17/ses-01/anat/xdseg.tsv",
        "../desc-tumour_dseg.tsv",
    ],
)
def test_tables_about_other_masks_say_nothing(bids, place):
    (bids / place).write_text(TABLE)
    assert [code for code, _ in findings(bids.parents[1])] == ["TD3209"]


def test_the_nearest_table_counts(bids):
    (bids / "dseg.tsv").write_text("index\tname\n1\twhite matter\n")
    (bids / ANAT / "dseg.tsv").write_text(TABLE)
    assert tumours(read_case(bids.parents[1])) == [5]


def test_two_tables_of_one_folder_are_not_chosen_between(bids):
    for name in ("dseg.tsv", "desc-tumour_dseg.tsv"):
        (bids / name).write_text(TABLE)
    ((code, text),) = findings(bids.parents[1])
    assert code == "TD3321"
    assert "desc-tumour_dseg.tsv, dseg.tsv" in text


def test_a_label_that_the_table_lacks_is_refused(bids):
    (bids / "dseg.tsv").write_text(TABLE.replace("7\t", "8\t"))
    ((code, text),) = findings(bids.parents[1])
    assert code == "TD3209"
    assert "label 7 (4 voxels), unknown to dseg.tsv (1 oedema, 2 enh" in text


def test_every_bad_line_of_a_table_is_reported_once(bids):
    (bids / "dseg.tsv").write_text(
        "index\tname\tcolor\n0\ttumour\t#f00\n1\tWhite matter\t#fff\n2\toedema\t#0f0\n"
        "2\toedema\t#0f0\n1.5\toedema\t\n3\tbackground\t\n4\toedema\n-1\toedema\t\n"
    )
    table = "derivatives/raters/dseg.tsv"
    got = {text.split("[")[1].split("]")[0]: code for code, text in findings(bids.parents[1])}
    assert got == {
        **{f"{table}, line {k}": "TD3209" for k in (2, 3, 5, 6, 7, 9)},
        f"{table}, line 8": "TD3304",
    }
    fix = next(text for _, text in findings(bids.parents[1]) if "White matter" in text)
    assert "use one of background, tumour, oedema, necrosis, enhancing, resection cavity" in fix


def test_a_table_for_all_sessions_is_complained_of_once(bids):
    root = bids.parents[1]
    for kind in ("sub-17", "derivatives/raters/sub-17"):
        (root / kind / "ses-02" / "anat").mkdir(parents=True)
        for path in (root / kind / "ses-01" / "anat").iterdir():
            copy = root / kind / "ses-02" / "anat" / path.name.replace("ses-01", "ses-02")
            copy.write_bytes(path.read_bytes())
    sessions = root / "sub-17" / "sub-17_sessions.tsv"
    sessions.write_text(sessions.read_text() + "ses-02\t30\tTMZ\n")
    (bids / "dseg.tsv").write_text("index\tname\n1\tthalamus\n")
    ((code, _),) = findings(root)
    assert code == "TD3209"


def test_a_declaration_must_agree_with_the_table(bids):
    (bids / "dseg.tsv").write_text("index\tname\n1\toedema\n2\tenhancing\n")
    mask_file = bids / ANAT / "sub-17_ses-01_desc-tumour_dseg.nii.gz"
    save(mask_file, labelled(l1=2, l2=3))
    root = bids.parents[1]
    assert tumours(read_case(root, ReadOptions(labels="hdglio"))) == [5]
    for other in ("published", "brats2023", "binary"):
        ((code, text),) = findings(root, labels=other)
        assert code == "TD3007"
        assert f"--labels names {other} (" in text
        assert "dseg.tsv (1 oedema, 2 enhancing tumour)" in text


@pytest.mark.parametrize(
    ("text", "code"),
    [("", "TD3301"), ("index\tname\n", "TD3301"), ("index,name\n1,et\n", "TD3302"),
     ("label\tname\n1\tet\n", "TD3305")],
)  # fmt: skip
def test_tables_that_cannot_be_read(bids, text, code):
    (bids / "dseg.tsv").write_text(text)
    ((got, _),) = findings(bids.parents[1])
    assert got == code


@pytest.mark.parametrize(
    ("name", "tissue"),
    [
        ("Edema", "oedema"),
        ("peritumoral_edema", "oedema"),
        ("NCR/NET", "necrosis"),
        ("Necrotic  Tumor Core", "necrosis"),
        ("ET", "enhancing tumour"),
        ("GD-enhancing tumor", "enhancing tumour"),
        ("Whole Tumor", "tumour"),
        ("RC", "resection cavity"),
        ("Background", "background"),
        ("thalamus", ""),
        ("", ""),
    ],
)
def test_names_are_known_in_their_usual_spellings(name, tissue):
    assert tissue_named(name) == tissue


def test_a_mask_without_a_table_has_none(tmp_path):
    (tmp_path / "derivatives" / "x").mkdir(parents=True)
    assert find_label_table(tmp_path, Path("derivatives/x/sub-1/anat/sub-1_dseg.nii.gz")) is None


def test_the_table_of_the_simulated_patients_is_read(tmp_path):
    (tmp_path / "t.tsv").write_text("index\tname\n1\toedema\n2\tnecrosis\n3\tenhancing\n")
    table = read_label_table(tmp_path / "t.tsv", "t.tsv")
    assert table.meanings == CONVENTIONS["published"].meanings


# Layouts that say it themselves ------------------------------------------------------------------


def test_sailor_has_the_published_labels(tmp_path):
    from tests.rt.test_sailor import write_patient

    patient = write_patient(tmp_path)
    plain = read_case(patient)
    declared = read_case(patient, ReadOptions(labels="published"))
    assert declared.notes == plain.notes
    ((code, text),) = findings(patient, labels="brats2021")
    assert code == "TD3007"
    assert "published (1 oedema" in text


@pytest.mark.parametrize(
    ("version", "own", "strange"), [("registered", "hdglio", 3), ("atlas", "", 4)]
)
def test_lumiere_has_the_labels_of_who_drew_the_masks(tmp_path, version, own, strange):
    from tests.rt.test_lumiere import MASKS, WEEKS, write_table, write_week

    patient = tmp_path / "Patient-042"
    for week in WEEKS[:2]:
        write_week(patient / week, ("raw", "registered", "atlas"))
    write_table(patient, WEEKS[:2])
    options = {"lumiere_images": version}
    assert read_case(patient, ReadOptions(**options)).sessions[0].mask.data.max() == 2
    if own:
        read_case(patient, ReadOptions(**options, labels=own))
    assert [code for code, _ in findings(patient, **options, labels="brats2023")] == ["TD3007"]
    save(patient / WEEKS[0] / f"{MASKS[version]}.nii.gz", np.full((9, 10, 11), strange, np.uint8))
    assert "TD3209" in [code for code, _ in findings(patient, **options)]


def test_npy_arrays_have_the_published_labels_unless_others_are_declared(tmp_path):
    from tests.rt.test_npy_reader import stack, tumour, write

    label = np.stack([np.where(tumour(s) == 3, 4, tumour(s)) for s in range(3)])
    image = write(tmp_path, 3, image=stack(3), label=label)
    options = {"npy_grid": "PLI:1"}
    found = findings(image, **options)
    assert [code for code, _ in found] == ["TD3209"] * 3
    assert "unknown to published" in found[0][1]
    case = read_case(image, ReadOptions(**options, labels="brats2024"))
    assert tumours(case) == [int((label[s] == 1).sum()) for s in range(3)]
    assert any("brats2024" in note for note in case.notes)
