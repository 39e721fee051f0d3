"""Published .npy arrays, from a faithful small copy: order of channels, counts, damaged files.

The copy is built as the published script builds its arrays: every volume on axes P, L, I and in
[0, 1], stacked modality by modality. Its heads are tissue maps, so that T1, T1c, FLAIR and T2 of
one session differ in contrast as scans do.
"""

import os
import resource
from importlib.resources import files
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tadiff_rt.case import MODALITIES, ReadOptions
from tadiff_rt.errors import TadiffError
from tadiff_rt.geometry import canonical_grid, to_canonical
from tadiff_rt.preprocess import DataContract, prepare
from tadiff_rt.readers import read_case
from tadiff_rt.readers.npy_grid import npy_affine
from tadiff_rt.report import without_names

SHAPE = (30, 26, 22)
DAYS = (0, 10, 34, 41, 56, 133)
CODES = (0, 0, 0, 0, 1, 2)
CONTRASTS = ((0.3, 0.6, 0.9), (0.35, 0.65, 0.85), (0.2, 0.8, 0.6), (0.9, 0.6, 0.4))
"""Intensity of fluid, grey and white matter in T1, T1c, FLAIR and T2."""
PUBLISHED = (229, 193, 193)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 51180254\n"


def scan(m: int, session: int, shift: int = 0) -> np.ndarray:
    """A head in [0, 1] on a background of 0: the same anatomy in every scan, noise of its own."""
    tissue = np.random.default_rng(5).standard_normal(SHAPE)
    for axis in range(3):
        tissue = sum(np.roll(tissue, k, axis) for k in (-2, -1, 0, 1, 2))
    classes = np.digitize(tissue, np.quantile(tissue, (0.3, 0.6)))
    noise = np.random.default_rng([m, session]).standard_normal(SHAPE)
    data = np.asarray(CONTRASTS[m])[classes] + 0.05 * noise
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    inside = sum(x * x for x in grid) < 0.9
    data = np.where(inside, data.clip(0.05, 1), 0)
    return np.roll(data, shift * (session % 3), axis=1).astype(np.float32)


def tumour(session: int) -> np.ndarray:
    label = np.zeros(SHAPE, np.int8)
    label[8 : 12 + session, 9:13, 7:12] = 1
    label[9:11, 10:12, 8:11] = 3
    return label


def stack(num_sessions: int, num_modalities: int = 4, shift: int = 0) -> np.ndarray:
    """(M * T, h, w, d), modality by modality."""
    return np.stack(
        [scan(m, s, shift) for m in range(num_modalities) for s in range(num_sessions)]
    )


def write(folder: Path, num_sessions: int = 6, name: str = "sub-17", **changed: object) -> Path:
    """The four arrays, some of them replaced; None leaves one out. Returns the image's path."""
    arrays = {
        "image": changed["image"] if "image" in changed else stack(num_sessions),
        "label": np.stack([tumour(s) for s in range(num_sessions)]),
        "days": np.array(DAYS[:num_sessions]),
        "treatment": np.array(CODES[:num_sessions]),
        **changed,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for key, array in arrays.items():
        path = folder / f"{name}_{key}.npy"
        if isinstance(array, bytes):
            path.write_bytes(array)
        elif array is not None:
            np.save(path, array)
    return folder / f"{name}_image.npy"


@pytest.fixture(scope="module")
def six() -> np.ndarray:
    return stack(6)


@pytest.fixture
def case_file(tmp_path: Path, six: np.ndarray) -> Path:
    return write(tmp_path / "sailor", image=six)


def read(path: Path, **options: object):
    last = options.pop("last", None)
    return read_case(path, ReadOptions(**{"npy_grid": "PLI:1", **options}), last=last)


def findings(path: Path, **options: object) -> list[tuple[str, str]]:
    with pytest.raises(TadiffError) as caught:
        read(path, **options)
    return [(e.code, f"{e.message} [{e.where}] {e.fix}") for e in caught.value.findings]


def codes(path: Path, **options: object) -> list[str]:
    return [code for code, _ in findings(path, **options)]


def test_a_case_is_read_with_days_treatments_and_voxels(case_file):
    case = read(case_file)
    assert case.name == "sub-17"
    assert [s.name for s in case.sessions] == [f"ses-{s:02}" for s in range(1, 7)]
    assert tuple(s.day for s in case.sessions) == DAYS
    assert [s.treatment for s in case.sessions] == ["CRT"] * 4 + ["TMZ", "none"]
    for s, session in enumerate(case.sessions):
        for m, modality in enumerate(MODALITIES):
            np.testing.assert_array_equal(session.images[modality].data, scan(m, s))
        np.testing.assert_array_equal(session.mask.data, tumour(s))
    labels = {v.label for s in case.sessions for v in (*s.images.values(), s.mask)}
    assert len(labels) == 24
    assert "sub-17_image.npy, t1c of ses-02" in labels


def test_a_folder_with_one_case_is_that_case(case_file, six):
    assert read(case_file.parent).name == "sub-17"
    write(case_file.parent, name="sub-02", image=six)
    ((code, text),) = findings(case_file.parent)
    assert code == "TD3002"
    assert "sub-02_image.npy, sub-17_image.npy" in text
    assert read(case_file).name == "sub-17"


def test_other_arrays_are_no_case(case_file):
    ((code, text),) = findings(case_file.with_name("sub-17_label.npy"))
    assert code == "TD3003"
    assert "NAME_image.npy" in text
    assert codes(case_file, layout="sailor") == ["TD3007"]


@pytest.mark.parametrize("sessions", [1, 2, 3, 4, 6])
def test_the_fourth_modality_may_be_missing(tmp_path, sessions):
    image = stack(sessions, 3)
    case = read(write(tmp_path, sessions, image=image))
    last = case.sessions[-1].images
    np.testing.assert_array_equal(last["flair"].data, scan(2, sessions - 1))


@pytest.mark.parametrize(
    ("sessions", "modalities", "shift"),
    [
        *((sessions, modalities, 0) for sessions in (2, 3, 4, 6) for modalities in (3, 4)),
        # Sessions up to 2 voxels apart; not 6 of 3 modalities, where that hides the order.
        *((sessions, 4, 1) for sessions in (2, 3, 4, 6)),
        *((sessions, 3, 1) for sessions in (2, 3, 4)),
    ],
)
def test_channels_by_session_are_refused_by_name(tmp_path, sessions, modalities, shift):
    right = stack(sessions, modalities, shift)
    wrong = right.reshape(modalities, sessions, *SHAPE).swapaxes(0, 1).reshape(right.shape)
    assert len(read(write(tmp_path / "right", sessions, image=right)).sessions) == sessions
    ((code, text),) = findings(write(tmp_path / "wrong", sessions, image=wrong))
    assert code == "TD3322"
    assert "ordered by session, expected by modality" in text
    h, w, d = SHAPE
    fix = text[text.index("save ") + 5 :].partition(";")[0]
    repaired = eval(fix, {"image": wrong, "h": h, "w": w, "d": d})  # what users will type
    np.testing.assert_array_equal(repaired, right)


def test_the_bundled_case_as_arrays_is_the_bundled_case(tmp_path):
    """Real sizes, anatomy of the simulated cohort; arrays made here, read there."""
    folder = files("tadiff_rt") / "data" / "demo_case"
    bids = read_case(str(folder))
    views = [
        [to_canonical(s.images[m].data, s.images[m].affine) for s in bids.sessions]
        for m in MODALITIES
    ]
    image = np.stack([view.data for row in views for view in row])
    path = write(
        tmp_path,
        image=image,
        label=np.stack(
            [to_canonical(s.mask.data, s.mask.affine).data for s in bids.sessions]
        ).astype(np.int8),
        days=np.array([s.day for s in bids.sessions]),
        treatment=np.array([{"CRT": 0, "TMZ": 1, "none": 2}[s.treatment] for s in bids.sessions]),
    )
    edge_mm = nib.affines.voxel_sizes(views[0][0].affine)[0]
    case = read(path, npy_grid=f"PLI:{edge_mm:g}")
    contract = DataContract(size=96, spacing_mm=float(edge_mm))
    got, expected = (prepare(c.sessions[-3:], contract) for c in (case, bids))
    np.testing.assert_array_equal(got.sources, expected.sources)
    np.testing.assert_array_equal(got.masks, expected.masks)
    sessions = [(s.name, s.day, s.treatment) for s in case.sessions]
    assert sessions == [(s.name, s.day, s.treatment) for s in bids.sessions]


def test_constant_channels_say_nothing_of_their_order(tmp_path):
    image = np.ones((8, *SHAPE), np.float32)
    case = read(write(tmp_path, 2, image=image))
    assert "the order of the channels of the arrays could not be checked" in case.notes[-2]
    assert case.notes[-1].startswith("tumour labels: published (1 oedema")


def test_the_published_grid_is_known_by_its_shape():
    """193 x 229 x 193 voxels of MNI152 2009c, as nibabel reorients them to P, L, I."""
    notes: list[str] = []
    affine = npy_affine(PUBLISHED, ReadOptions(), "a.npy", notes)
    template = nib.Nifti1Image(
        np.zeros((193, 229, 193), np.int8), nib.affines.from_matvec(np.eye(3), (-96, -132, -78))
    )
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(template.affine), nib.orientations.axcodes2ornt("PLI")
    )
    turned = template.as_reoriented(turn)
    assert turned.shape == PUBLISHED
    np.testing.assert_array_equal(affine, turned.affine)
    assert "MNI152 2009c" in notes[0]


@pytest.mark.parametrize(("grid", "edge_mm"), [("PLI:1", 1), ("RAS:0.94", 0.94), ("SPR:2.5", 2.5)])
def test_a_stated_grid_is_taken_at_its_word(grid, edge_mm):
    notes: list[str] = []
    affine = npy_affine(SHAPE, ReadOptions(npy_grid=grid), "a.npy", notes)
    assert "".join(nib.aff2axcodes(affine)) == grid[:3]
    np.testing.assert_allclose(nib.affines.voxel_sizes(affine), edge_mm)
    centre = nib.affines.apply_affine(affine, (np.array(SHAPE) - 1) / 2)
    np.testing.assert_allclose(centre, 0, atol=1e-12)
    assert canonical_grid(SHAPE, affine, grid[:3]).order == (0, 1, 2)
    assert "as stated" in notes[0]


def test_any_other_grid_must_be_stated(case_file):
    ((code, text),) = findings(case_file, npy_grid="")
    assert code == "TD3205"
    assert "30 x 26 x 22 voxels are not the published grid of 229 x 193 x 193" in text
    assert "--npy-grid=PLI:1" in text
    image = np.load(case_file).reshape(4, 6, *SHAPE).swapaxes(0, 1).reshape(24, *SHAPE)
    np.save(case_file, image)
    assert codes(case_file, npy_grid="") == ["TD3205", "TD3322"]


@pytest.mark.parametrize(
    "grid", ["PLI", "PLI:0", "PPI:1", "PLI:-1", "pli:1", "PLI:1x1x1", "XYZ:1"]
)
def test_a_grid_that_is_none_is_refused(case_file, grid):
    assert codes(case_file, npy_grid=grid) == ["TD3005"]


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        # A patient of the published table: days and treatments of fewer sessions than images.
        ({"days": np.array(DAYS[:5]), "treatment": np.array(CODES[:5])}, ("24 channels", "label")),
        ({"days": np.array(DAYS[:2]), "treatment": np.array(CODES[:2])}, ("24 channels", "label")),
        ({"treatment": np.array(CODES[:5])}, ("5 entries in sub-17_treatment.npy",)),
        ({"label": np.zeros((5, *SHAPE), np.int8)}, ("5 entries in sub-17_label.npy",)),
        ({"image": np.zeros((23, *SHAPE), np.float32)}, ("23 channels", "4 or 3 a session")),
        ({"image": np.zeros((30, *SHAPE), np.float32)}, ("30 channels",)),
    ],
)
def test_counts_that_disagree_are_refused(tmp_path, six, changed, names):
    ((code, text),) = findings(write(tmp_path, **{"image": six, **changed}))
    assert code == "TD3319"
    assert all(name in text for name in names)


def test_only_so_many_sessions_are_read(tmp_path):
    """Channels are compared two by two, which 10,000 sessions of a few voxels would keep busy."""
    for num, expected in ((200, []), (201, ["TD3303"])):
        path = write(
            tmp_path,
            image=np.ones((4 * num, 1, 1, 1), np.float32),
            label=None,
            days=np.arange(num),
            treatment=np.zeros(num, np.int8),
        )
        if not expected:
            assert len(read(path).sessions) == num
            continue
        ((code, text),) = findings(path)
        assert code == "TD3303"
        assert "201 sessions, at most 200" in text
        assert "sub-17_days.npy" in text


def test_memory_that_does_not_suffice_is_an_error_of_ours(tmp_path):
    """Planes of 1 GiB, in a file with holes, of which the check of the order reads one first."""
    num, edge = 2, 1 << 14
    path = write(tmp_path, num, image=b"", label=None)
    with path.open("wb") as file:
        fields = {"descr": "<f4", "fortran_order": False, "shape": (3 * num, 1, edge, edge)}
        np.lib.format.write_array_header_1_0(file, fields)
        file.truncate(file.tell() + 3 * num * edge * edge * 4)
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 28), before[1]))
    try:
        found = codes(path, max_voxels=edge * edge)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert found == ["TD7001"]


def test_labels_lie_on_the_grid_of_the_images(tmp_path, six):
    label = np.zeros((6, 30, 26, 21), np.int8)
    ((code, text),) = findings(write(tmp_path, image=six, label=label))
    assert code == "TD3201"
    assert "(30, 26, 21)" in text


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        ((0, 10, 34, 41, 56, -133), ["TD3308"]),
        ((0, 10, 34, 41, 56, 100_000), ["TD3306"]),
        ((0, 10, 24, 7, 15, 77), ["TD3310"]),  # intervals, not running days
        ((0, 10, 10, 41, 56, 133), ["TD3309"]),
        ((3, 10, 34, 41, 56, 133), ["TD3311"]),
        ((3, -10, 34, 41, -56, 133), ["TD3308", "TD3308"]),
        ((0.0, 10, 34, 41, 56, 133), ["TD3115"]),
        (((0, 10, 34, 41, 56, 133),), ["TD3113"]),
    ],
)
def test_bad_days_are_refused(tmp_path, six, days, expected):
    found = findings(write(tmp_path, image=six, days=np.array(days)))
    assert [code for code, _ in found] == expected
    assert all("sub-17_days.npy" in text for _, text in found)


def test_days_may_be_sorted_and_rebased_with_their_channels(tmp_path, six):
    path = write(tmp_path, image=six, days=np.array((20, 10, 34, 41, 56, 133)))
    assert codes(path) == ["TD3310", "TD3311"]
    case = read(path, sort=True, rebase_days=True)
    assert [(s.name, s.day) for s in case.sessions[:2]] == [("ses-02", 0), ("ses-01", 10)]
    np.testing.assert_array_equal(case.sessions[0].images["t1c"].data, scan(1, 1))
    np.testing.assert_array_equal(case.sessions[1].mask.data, tumour(0))


def test_treatments_that_are_unknown_are_all_reported(tmp_path, six):
    """3 is "unknown" in the published script, which a network cannot be fed."""
    found = findings(write(tmp_path, image=six, treatment=np.array((0, 3, 0, 7, -1, 2), np.int8)))
    assert [code for code, _ in found] == ["TD3314"] * 3
    assert "treatment code 3 of ses-02" in found[0][1]
    assert "known are 0 CRT, 1 TMZ, 2 none" in found[0][1]


def test_the_labels_may_be_missing_and_nothing_else(tmp_path, six):
    assert all(s.mask is None for s in read(write(tmp_path / "a", image=six, label=None)).sessions)
    path = write(tmp_path / "b", image=six, days=None, treatment=None)
    found = findings(path)
    assert [code for code, _ in found] == ["TD3122", "TD3122"]
    assert "sub-17_days.npy" in found[0][1]
    assert "sub-17_treatment.npy" in found[1][1]


def test_pointers_of_git_lfs_are_all_named(tmp_path):
    """As a clone without Git LFS holds them; numpy would advise to unpickle them."""
    found = findings(
        write(tmp_path, image=POINTER, label=POINTER, days=POINTER, treatment=POINTER)
    )
    assert [code for code, _ in found] == ["TD3108"] * 4
    assert all("git lfs pull" in text for _, text in found)


class Evil:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_pickled_objects_are_refused_and_never_run(tmp_path, six):
    trace = tmp_path / "trace"
    path = write(tmp_path / "a", image=six)
    np.save(path.with_name("sub-17_days.npy"), np.array([Evil(trace)] * 6), allow_pickle=True)
    ((code, text),) = findings(path)
    assert code == "TD3115"
    assert "pickled objects are not read" in text
    assert not trace.exists()


def header(text: str, version: bytes = b"\x01\x00") -> bytes:
    data = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY" + version + len(data).to_bytes(2, "little") + data


FIELDS = "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }"
BAD_FILES = {
    "empty": (b"", "TD3101"),
    "web-page": (b"<!DOCTYPE html>" * 40, "TD3109"),
    "only-magic": (b"\x93NUMPY", "TD3102"),
    "version-9": (header(FIELDS % ("<f4", "24, 2, 2, 2"), b"\x09\x00"), "TD3102"),
    "cut-header": (header(FIELDS % ("<f4", "24, 2, 2, 2"))[:60], "TD3102"),
    "long-header": (b"\x93NUMPY\x01\x00\xff\xff" + 70_000 * b" ", "TD3102"),
    "no-shape": (header("{'descr': '<f4', 'fortran_order': False}"), "TD3102"),
    "code-in-shape": (header(FIELDS % ("<f4", "__import__('os').abort()")), "TD3102"),
    "deep-header": (header("(" * 5000), "TD3102"),
    "records": (
        header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (9,)}"),
        "TD3115",
    ),
    "text": (header(FIELDS % ("<U8", "24, 2, 2, 2")), "TD3115"),
    "dates": (header(FIELDS % ("<M8[ns]", "24, 2, 2, 2")), "TD3115"),
    "no-such-float": (header(FIELDS % ("<f3", "24, 2, 2, 2")), "TD3115"),
    "complex": (header(FIELDS % ("<c8", "24, 2, 2, 2")) + bytes(1536), "TD3115"),
    "integers": (header(FIELDS % ("<i2", "24, 2, 2, 2")) + bytes(384), "TD3115"),
    "scalar": (header(FIELDS % ("<f4", "")) + bytes(4), "TD3112"),
    "no-voxels": (header(FIELDS % ("<f4", "24, 2, 0, 2")), "TD3112"),
    "three-axes": (header(FIELDS % ("<f4", "24, 2, 2")) + bytes(384), "TD3113"),
    "cut-data": (header(FIELDS % ("<f4", "24, 2, 2, 2")) + bytes(767), "TD3103"),
    "terabytes": (header(FIELDS % ("<f4", "24, 99999, 99999, 99999")), "TD3103"),
    "more-data": (header(FIELDS % ("<f4", "24, 2, 2, 2")) + bytes(769), "TD3106"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_damaged_and_hostile_files_are_refused_by_kind(case_file, kind):
    data, expected = BAD_FILES[kind]
    case_file.write_bytes(data)
    ((code, text),) = findings(case_file)
    assert code == expected
    assert "sub-17_image.npy" in text


def test_arrays_in_fortran_order_are_refused(tmp_path, six):
    ((code, text),) = findings(write(tmp_path, image=np.asfortranarray(six)))
    assert code == "TD3115"
    assert "ascontiguousarray" in text


def test_header_version_2_other_bytes_and_double_precision_are_read(tmp_path, six):
    path = write(tmp_path, image=six.astype(">f8"), days=np.array(DAYS, ">i2"))
    with path.with_name("sub-17_label.npy").open("wb") as file:
        label = np.stack([tumour(s) > 0 for s in range(6)])
        np.lib.format.write_array(file, label, version=(2, 0))
    case = read(path)
    np.testing.assert_array_equal(case.sessions[4].images["flair"].data, scan(2, 4))
    np.testing.assert_array_equal(case.sessions[4].mask.data, tumour(4) > 0)
    assert tuple(s.day for s in case.sessions) == DAYS


def test_voxels_that_are_not_finite_are_counted(tmp_path, six):
    image = six.copy()
    image[1 * 6 + 2, 15, 13, 11] = np.nan
    image[2 * 6 + 3, 15, 13, 10:12] = np.inf
    found = findings(write(tmp_path, image=image))
    assert [code for code, _ in found] == ["TD3107", "TD3107"]
    assert "1 non-finite voxels (1 NaN, 0 Inf) of 17160" in found[0][1]
    assert "t1c of ses-03" in found[0][1]
    assert "(0 NaN, 2 Inf)" in found[1][1]
    case = read(tmp_path, nonfinite="zero")
    assert case.sessions[2].images["t1c"].data[15, 13, 11] == 0
    assert sum("set to 0" in note for note in case.notes) == 2
    assert not [n for n in without_names(case.notes, case) if "sub-" in n or "ses-" in n]


def test_voxels_beyond_single_precision_are_infinite_and_spoil_only_their_block(tmp_path):
    image = stack(2).astype(np.float64)
    wrong = image.reshape(4, 2, *SHAPE).swapaxes(0, 1).reshape(image.shape)
    for array, expected in ((image, "TD3107"), (wrong, "TD3322")):
        array[1, 15, 13, 11] = 1e300
        assert codes(write(tmp_path, 2, image=array)) == [expected]
    path = write(tmp_path, 2, image=1e300 * stack(2).astype(np.float64))
    assert codes(path) == ["TD3107"] * 2
    case = read(path, nonfinite="zero")
    assert "the order of the channels of the arrays could not be checked" in case.notes


def test_infinities_of_both_signs_in_one_block_are_counted(tmp_path):
    image = np.ones((6, 2, 48, 48), np.float32)  # blocks of 2 x 2
    image[3, 0, 0, :2] = np.inf, -np.inf
    ((code, text),) = findings(write(tmp_path, 2, image=image, label=None))
    assert code == "TD3107"
    assert "(0 NaN, 2 Inf)" in text


def test_labels_that_are_none_are_refused(tmp_path, six):
    label = np.stack([tumour(s) for s in range(6)])
    label[2, 0, 0, 0] = 5
    label[4, 0, 0, 0] = -1
    found = findings(write(tmp_path, image=six, label=label))
    assert [code for code, _ in found] == ["TD3209", "TD3209"]
    assert "sub-17_label.npy, ses-03" in found[0][1]


def test_volumes_beyond_the_limit_are_not_read(case_file):
    assert codes(case_file, max_voxels=30 * 26 * 22 - 1) == ["TD3111", "TD3111"]
    assert len(read(case_file, max_voxels=30 * 26 * 22).sessions) == 6


def test_last_reads_so_many_sessions_and_keeps_the_days_of_all(tmp_path, six):
    image = six.copy()
    image[0, 15, 13, 11] = np.nan  # T1 of the first session
    path = write(tmp_path, image=image)
    case = read(path, last=2)
    assert tuple(s.day for s in case.sessions) == DAYS
    assert [len(s.images) for s in case.sessions] == [0, 0, 0, 0, 3, 3]
    assert [s.mask is None for s in case.sessions] == [True] * 4 + [False] * 2
    np.testing.assert_array_equal(case.sessions[5].images["flair"].data, scan(2, 5))


def test_a_case_beside_folders_of_others_is_not_guessed_at(case_file):
    folder = case_file.parent
    (folder / "week-003").mkdir()
    ((code, text),) = findings(folder)
    assert code == "TD3006"
    assert "lumiere or npy" in text
    assert read(folder, layout="npy").name == "sub-17"
    (folder / "week-003").rename(folder / "sub-01")
    ((code, text),) = findings(folder)
    assert code == "TD3006"
    assert "is a npy case and holds the subjects sub-01" in text
    assert read(folder, layout="npy").name == "sub-17"


def test_files_that_are_none_are_refused(case_file):
    days = case_file.with_name("sub-17_days.npy")
    days.unlink()
    days.mkdir()
    assert codes(case_file) == ["TD3121"]
    days.rmdir()
    os.mkfifo(days)
    assert codes(case_file) == ["TD3121"]


def test_no_damage_of_a_header_escapes_as_another_error(case_file):
    """300 headers with a few random bytes: a case, or an error of ours."""
    good = case_file.read_bytes()
    rng = np.random.default_rng(3)
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(good[:128])
        for at in rng.integers(0, 128, rng.integers(1, 4)):
            damaged[at] = rng.integers(0, 256)
        with case_file.open("r+b") as file:
            file.write(damaged)
        try:
            read(case_file, last=1)
            outcomes.add("read")
        except TadiffError as error:
            outcomes.add(error.code)
    assert len(outcomes) > 5
