"""The corpus of bad and odd inputs through the real command line.

What one file or one table can hold is listed with the tests of its reader; here every case of
those lists, and cases of several images, must end `tadiff-rt predict` with exit code 3, its code
on stderr, nothing on stdout and nothing written. Ids (N11, G04, S15, ...) number the corpus.
"""

import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pytest

from tadiff_rt.cli import app
from tadiff_rt.console import run_app
from tests.conftest import AFFINE, SUFFIXES, head, save
from tests.rt.test_nifti import GOOD, deflated, patched
from tests.rt.test_nifti import REFUSED as BAD_FILES
from tests.rt.test_preprocess import REFUSED as BAD_SCANS
from tests.rt.test_preprocess import scan
from tests.rt.test_tables import REFUSED as BAD_TABLES

REQUEST = {"--day": "+90", "--treatment": "TMZ", "--slices": "5", "--samples": "1", "--steps": "1"}


class Ending(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def codes(self) -> list[str]:
        return re.findall(r"TD\d{4}", self.err)


@pytest.fixture
def predict(bundle: Path, tmp_path: Path, capsys) -> Callable[..., Ending]:
    """Runs `tadiff-rt predict` in this process; options override REQUEST."""
    (tmp_path / "out").mkdir()

    def run(case: Path, *flags: str, **options: str) -> Ending:
        chosen = REQUEST | {f"--{name}": value for name, value in options.items()}
        given = {flag.partition("=")[0] for flag in flags}
        chosen = {name: value for name, value in chosen.items() if name not in given}
        argv = ["predict", "--engine", str(bundle), "--case", str(case), "--threads", "1"]
        argv += ["-o", str(tmp_path / "out/forecast")]
        argv += [part for item in chosen.items() for part in item]
        with pytest.raises(SystemExit) as ended:
            run_app(app, "tadiff-rt", [*argv, *flags])
        return Ending(ended.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def data(case_folder: Path, tmp_path: Path) -> Path:
    """A copy of the data set of `case_folder`, to be spoilt."""
    return shutil.copytree(case_folder.parent, tmp_path / "data")


def listing(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Everything in a folder, files with their content; pipes and links are not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        regular = path.is_file() and not path.is_symlink()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if regular else ""
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_ino, digest)
    return found


def image(data: Path, session: int = 4, modality: str = "flair") -> Path:
    name = f"ses-{session:02d}"
    return data / f"sub-17/{name}/anat/sub-17_{name}_{SUFFIXES[modality]}.nii.gz"


def mask(data: Path, session: int = 4) -> Path:
    name = f"ses-{session:02d}"
    folder = data / f"derivatives/manual/sub-17/{name}/anat"
    return folder / f"sub-17_{name}_desc-tumour_dseg.nii.gz"


def table(data: Path) -> Path:
    return data / "sub-17/sub-17_sessions.tsv"


def images(data: Path, session: int = 0) -> list[Path]:
    sessions = [session] if session else [1, 2, 3, 4]
    return [image(data, s, m) for s in sessions for m in SUFFIXES]


def resave(path: Path, change: Callable = lambda voxels: voxels, affine=AFFINE) -> None:
    save(path, change(np.asarray(nibabel.load(path).dataobj)), affine)


def resave_all(data: Path, change: Callable = lambda voxels: voxels, affine=AFFINE) -> None:
    for path in [*images(data), *(mask(data, s) for s in (1, 2, 3, 4))]:
        resave(path, change, affine)


def shifted(mm: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += mm
    return affine


def spaced(*edges: float) -> np.ndarray:
    return np.diag([*edges, 1.0])


def all_heads(data: Path, shape: tuple[int, int, int]) -> None:
    for i, path in enumerate(images(data)):
        save(path, head(i, shape))
    for session in (1, 2, 3, 4):
        mask(data, session).unlink()


def instead(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def listen(path: Path) -> None:
    """A socket; a path of its own is too long for one."""
    here = os.getcwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(path.name)
    os.chdir(here)


def flip_bit(data: Path) -> None:
    packed = bytearray(gzip.compress(GOOD, 0))  # stored, not deflated: the flip is in a voxel
    packed[-100] ^= 4
    image(data).write_bytes(packed)


def add_row(data: Path, row: str) -> None:
    table(data).write_text(table(data).read_text() + row + "\n")


MIRRORED = AFFINE @ np.diag([-1.0, 1, 1, 1])
BOMB = patched(GOOD, dim={1: 1024, 2: 1024, 3: 512})

BAD_CASES: dict[str, tuple[list[str], Callable[[Path], object]]] = {
    "N06 one bit": (["TD3105"], flip_bit),
    "N11 bomb": (["TD3111"], lambda d: image(d).write_bytes(deflated(BOMB, 1 << 28))),
    "N13 tail": (["TD3106"], lambda d: image(d).write_bytes(deflated(GOOD, 1 << 28))),
    "N34 folder": (["TD3121"], lambda d: instead(image(d), Path.mkdir)),
    "N34 pipe": (["TD3121"], lambda d: instead(image(d), os.mkfifo)),
    "N34 socket": (["TD3121"], lambda d: instead(image(d), listen)),
    "N34 device": (["TD3121"], lambda d: instead(image(d), lambda p: p.symlink_to("/dev/zero"))),
    "N35 dangling link": (["TD3122"], lambda d: instead(image(d), lambda p: p.symlink_to("x"))),
    "G01 one voxel": (["TD3201"], lambda d: resave(image(d), affine=shifted(2))),
    "G02 other shape": (["TD3201"], lambda d: resave(image(d), lambda v: v[:-1])),
    "G04 mirrored": (["TD3202"], lambda d: resave(image(d), affine=MIRRORED)),
    "G14 slices of 6 mm": (["TD3207"], lambda d: resave_all(d, affine=spaced(0.5, 0.5, 6))),
    "G15 30 mm": (["TD3207"], lambda d: resave_all(d, affine=spaced(30, 30, 30))),
    "G15 0.01 mm": (["TD3207"], lambda d: resave_all(d, affine=spaced(0.01, 0.01, 0.01))),
    "G16 session elsewhere": (
        ["TD3201"] * 3,
        lambda d: [resave(path, affine=shifted(1)) for path in images(d, 3)],
    ),
    "G17 large brain": (["TD3211"], lambda d: all_heads(d, (24, 48, 10))),
    "G18 two slices": (["TD3208"], lambda d: all_heads(d, (24, 28, 2))),
    "G19 mask elsewhere": (["TD3201"], lambda d: resave(mask(d), affine=shifted(2))),
    "G19 labels": (["TD3209"], lambda d: resave(mask(d), lambda v: v * 255)),
    "S20 no image": (["TD3316"], lambda d: image(d).unlink()),
    "S20 no image of an early session": (["TD3316"], lambda d: image(d, 1).unlink()),
    "S20 no row": (
        ["TD3317"],
        lambda d: table(d).write_text(re.sub("ses-03.*\n", "", table(d).read_text())),
    ),
    "S20 row without images": (["TD3316"] * 3, lambda d: add_row(d, "ses-05\t200\tTMZ")),
    "no table": (["TD3122"], lambda d: table(d).unlink()),
    "table is a pipe": (["TD3121"], lambda d: instead(table(d), os.mkfifo)),
    "two T1": (
        ["TD3321"],
        lambda d: shutil.copy(
            image(d, 4, "t1"), str(image(d, 4, "t1")).replace("_T1w", "_run-2_T1w")
        ),
    ),
    "three problems at once": (
        ["TD3316", "TD3101", "TD3108"],
        lambda d: [
            image(d, 1).unlink(),
            image(d, 2).write_bytes(b""),
            image(d, 4).write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        ],
    ),
}


def spoilt_file(content: bytes) -> Callable[[Path], object]:
    return lambda data: image(data).write_bytes(content)


def spoilt_table(content: str | bytes) -> Callable[[Path], object]:
    content = content.encode() if isinstance(content, str) else content
    return lambda data: table(data).write_bytes(content)


BAD_CASES |= {name: ([code], spoilt_file(content)) for name, (code, content) in BAD_FILES.items()}
BAD_CASES |= {
    name: ([code], spoilt_table(content)) for name, (content, code, _) in BAD_TABLES.items()
}
# The same cell is no id either.
BAD_CASES["S24-cell-over-4096"][0].append("TD3318")


def assert_refused(ending: Ending, codes: list[str]) -> None:
    assert ending.code == 3, ending.err
    assert ending.codes == codes, ending.err
    assert ending.out == ""
    assert "Traceback" not in ending.err
    assert re.fullmatch(r"[\x20-\x7e\n]+", ending.err), "not plain ASCII"
    assert len(ending.err.splitlines()) <= 3 * len(ending.codes)


@pytest.mark.parametrize("name", BAD_CASES)
def test_a_bad_case_ends_with_its_code_and_leaves_nothing(name, data, predict, tmp_path):
    codes, spoil = BAD_CASES[name]
    spoil(data)
    before = listing(tmp_path)
    assert_refused(predict(data / "sub-17"), codes)
    assert listing(tmp_path) == before


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Three sessions on the grid of the corpus of scans."""
    root = tmp_path_factory.mktemp("scans")
    for s in (1, 2, 3):
        for m, modality in enumerate(SUFFIXES):
            save(image(root, s, modality), scan(3 * s + m))
    rows = "".join(f"ses-{s:02d}\t{30 * (s - 1)}\tTMZ\n" for s in (1, 2, 3))
    table(root).write_text("session_id\tdays_from_baseline\ttreatment\n" + rows)
    return root


@pytest.mark.parametrize("name", BAD_SCANS)
def test_a_bad_scan_ends_with_its_code_and_leaves_nothing(name, scans, predict, tmp_path):
    code, voxels = BAD_SCANS[name]
    data = shutil.copytree(scans, tmp_path / "data")
    save(image(data, 3, "t1c"), voxels.astype(np.float32))
    before = listing(tmp_path)
    assert_refused(predict(data / "sub-17"), [code])
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        ({"day": "160"}, ["TD3312"]),
        ({"day": "10"}, ["TD3312"]),
        ({"day": "561"}, ["TD3313"]),
        ({"day": "1101"}, ["TD3313", "TD3313"]),
        ({"day": "70000"}, ["TD3313", "TD3313"]),
        ({"treatment": "tmz"}, ["TD3314"]),
        ({"treatment": "7"}, ["TD3314"]),
        ({"day": "0", "treatment": ""}, ["TD3314"]),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else "",
)
def test_a_request_the_case_cannot_answer(options, codes, case_folder, predict, tmp_path):
    """S15, S16, S17."""
    before = listing(tmp_path)
    assert_refused(predict(case_folder, **options), codes)
    assert listing(tmp_path) == before


def test_optimised_python_refuses_the_same(data, bundle, tmp_path):
    """Nothing is validated with `assert`."""
    names = ["N01 empty", "N12 dims 32767", "G04 mirrored", "G11 no orientation", "S07-nan"]
    commands = []
    for i, name in enumerate(names):
        copy = shutil.copytree(data, tmp_path / f"copy-{i}")
        BAD_CASES[name][1](copy)
        argv = ["predict", "--engine", str(bundle), "--case", str(copy), "--threads", "1"]
        request = [part for item in REQUEST.items() for part in item]
        commands.append([*argv, "-o", str(tmp_path / "forecast"), *request])
    program = """
import json, sys
from tadiff_rt.cli import app
from tadiff_rt.console import run_app
for argv in json.load(sys.stdin):
    try:
        run_app(app, "tadiff-rt", argv)
    except SystemExit as ended:
        print(__debug__, ended.code)
"""
    done = subprocess.run(
        [sys.executable, "-O", "-c", program],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["False 3"] * len(names)
    assert re.findall(r"TD\d{4}", done.stderr) == [BAD_CASES[n][0][0] for n in names]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "forecast").exists()


# Odd, and fine.


def read_result(folder: Path) -> dict[str, bytes]:
    """The files of a complete result, checked against its manifest, without the manifest."""
    report = json.loads((folder / "forecast.json").read_text())
    paths = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    files = {name: path.read_bytes() for name, path in paths.items() if name != "forecast.json"}
    assert {n: hashlib.sha256(b).hexdigest() for n, b in files.items()} == {
        name: entry["sha256"] for name, entry in report["files"].items()
    }
    for name in files:
        if name.endswith(".nii.gz"):
            volume = nibabel.load(folder / name)
            assert np.isfinite(volume.get_fdata()).all()
    return files


@pytest.fixture(scope="module")
def clean(bundle, case_folder, tmp_path_factory) -> dict[str, bytes]:
    """The result for the case as it is."""
    out = tmp_path_factory.mktemp("clean") / "forecast"
    argv = ["predict", "--engine", str(bundle), "--case", str(case_folder), "--threads", "1"]
    request = [part for item in REQUEST.items() for part in item]
    with pytest.raises(SystemExit) as ended:
        run_app(app, "tadiff-rt", [*argv, "-o", str(out), *request])
    assert ended.value.code == 0
    return read_result(out)


def renamed(data: Path) -> None:
    for path in sorted(data.rglob("*sub-17*"), reverse=True):
        path.rename(path.with_name(path.name.replace("sub-17", "sub-x99")))


def big_endian(data: Path) -> None:
    old = nibabel.load(image(data))
    new = nibabel.Nifti1Image(np.asarray(old.dataobj), None, old.header.as_byteswapped(">"))
    nibabel.save(new, image(data))


def rewrite(data: Path, change: Callable[[str], str]) -> None:
    table(data).write_bytes(change(table(data).read_text()).encode())


def fifth_axis(data: Path) -> None:
    resave(image(data), lambda voxels: voxels[..., None, None])


SAME: dict[str, tuple[Callable[[Path], object], str]] = {
    "N10 plain named gz": (
        lambda d: image(d).write_bytes(gzip.decompress(image(d).read_bytes())),
        "W3110",
    ),
    "N19 five axes": (fifth_axis, "extra axes dropped"),
    "N31 big-endian": (big_endian, ""),
    "S03 byte-order mark": (lambda d: rewrite(d, lambda text: "\ufeff" + text), ""),
    "S28 line ends": (lambda d: rewrite(d, lambda text: text.replace("\n", "\r\n") + "\n"), ""),
    "X06 renamed": (renamed, ""),
}


@pytest.mark.parametrize("name", SAME)
def test_form_does_not_change_a_bit(name, data, predict, clean, tmp_path):
    change, note = SAME[name]
    change(data)
    ending = predict(data, subject="17")  # a data set of one subject
    assert (ending.code, ending.codes) == (0, []), ending.err
    assert note in ending.err
    assert read_result(tmp_path / "out/forecast") == clean


def manifest(data: Path, **cells: str) -> Path:
    rows = ["session,day,treatment,t1,t1c,flair,mask"]
    for s, (day, treatment) in enumerate(((0, "CRT"), (30, "CRT"), (75, "TMZ"), (160, "TMZ")), 1):
        files = {m: str(image(data, s, m).relative_to(data)) for m in SUFFIXES}
        files["mask"] = str(mask(data, s).relative_to(data))
        if s == 4:
            files |= cells
        rows.append(f"v{s},{day},{treatment}," + ",".join(files.values()))
    path = data / "manifest.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_manifest_gives_the_same_result_as_bids(data, predict, clean, tmp_path):
    assert predict(manifest(data), subject="17").code == 0
    assert read_result(tmp_path / "out/forecast") == clean


@pytest.mark.parametrize("label", ["sub-17", "a b", "x" * 33, "é"])
def test_a_subject_is_a_label(label, data, predict):
    ending = predict(data, subject=label)
    assert (ending.code, ending.codes) == (2, ["TD3069"])


def test_a_result_may_lie_beside_the_manifest(data, predict):
    assert predict(manifest(data), "-o", str(data / "forecast")).code == 0
    read_result(data / "forecast")


def test_one_file_for_two_modalities(data, predict, tmp_path):
    """A06, V21: a usage error unless it is asked for."""
    path = manifest(data, flair=str(image(data, 4, "t1")))
    ending = predict(path)
    assert (ending.code, ending.codes, ending.out) == (2, ["TD3001"], "")
    ending = predict(path, "--allow-same")
    assert ending.code == 0
    assert "W3130" in ending.err
    read_result(tmp_path / "out/forecast")


def hot_voxel(voxels: np.ndarray) -> np.ndarray:
    voxels = voxels.astype(np.float32)
    voxels[12, 14, 5] = 1e9
    return voxels


def not_a_number(voxels: np.ndarray) -> np.ndarray:
    voxels = voxels.astype(np.float32)
    voxels[12, 14, 5] = np.nan
    return voxels


def without_slice(voxels: np.ndarray) -> np.ndarray:
    voxels = voxels.copy()
    voxels[:, :, 4:6] = 0
    return voxels


def without_first(data: Path) -> None:
    shutil.rmtree(data / "sub-17/ses-01")
    rewrite(data, lambda text: re.sub("ses-01.*\n", "", text))


def two_sessions(data: Path) -> None:
    for s in (1, 2):
        shutil.rmtree(data / f"sub-17/ses-{s:02d}")
    rewrite(data, lambda text: re.sub("ses-0[12].*\n", "", text).replace("\t75\t", "\t0\t"))


ODD: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "V01 NaN to 0": (lambda d: resave(image(d), not_a_number), ["--nonfinite=zero"], "1 NaN"),
    "V10 hot voxel": (lambda d: resave(image(d), hot_voxel), [], ""),
    "V13 huge units": (lambda d: resave(image(d), lambda v: np.float32(1e30) * v), [], ""),
    "V13 tiny units": (lambda d: resave(image(d), lambda v: np.float32(1e-40) * v), [], ""),
    "V14 no tumour": (
        lambda d: [resave(mask(d, s), np.zeros_like) for s in (2, 3, 4)],
        [],
        "",
    ),
    "V15 all tumour": (lambda d: resave(mask(d), np.ones_like), [], "W3128"),
    "V16 two grey levels": (
        lambda d: resave(image(d), lambda v: np.where(v > 0, 1 + (v > 800), 0).astype("i2")),
        [],
        "",
    ),
    "V17 empty slices": (lambda d: resave_all(d, without_slice), [], ""),
    "V20 strong noise": (
        lambda d: resave(
            image(d),
            lambda v: v * (1 + np.random.default_rng(0).integers(0, 20, v.shape)).astype("i2"),
        ),
        [],
        "",
    ),
    "N32 float64": (lambda d: resave(image(d), lambda v: v / 7.0), [], "rounded"),
    "G12 one form named": (
        lambda d: image(d).write_bytes(gzip.compress(conflicting(image(d)))),
        ["--affine=sform"],
        "used, the other orientation ignored",
    ),
    "G13 oblique": (lambda d: resave_all(d, affine=oblique()), [], ""),
    "S13 unsorted": (
        lambda d: rewrite(d, lambda t: t.replace("ses-03\t75", "ses-03\t20")),
        ["--sort"],
        "sorted by day",
    ),
    "S14 rebased": (without_first, ["--rebase-days"], "30 subtracted"),
    "S16 extrapolated": (lambda d: None, ["--extrapolate", "--day=2000"], "beyond the trained"),
    "S18 two sessions": (two_sessions, [], "fewer than 3 sessions"),
}


def conflicting(path: Path) -> bytes:
    return patched(gzip.decompress(path.read_bytes()), quatern_b=0.0, quatern_c=0.0)


def oblique() -> np.ndarray:
    c, s = np.cos(0.35), np.sin(0.35)
    turn = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    return turn @ AFFINE


@pytest.mark.parametrize("name", ODD)
def test_an_odd_case_is_forecast_and_what_was_relaxed_is_said(name, data, predict, tmp_path):
    change, flags, note = ODD[name]
    change(data)
    expected = nibabel.load(image(data, 4, "t1"))
    ending = predict(data / "sub-17", *flags)
    assert (ending.code, ending.codes) == (0, []), ending.err
    assert note in ending.err
    read_result(tmp_path / "out/forecast")
    report = json.loads((tmp_path / "out/forecast/forecast.json").read_text())
    assert any(note in said for said in report["notes"])
    (path,) = (tmp_path / "out/forecast").rglob("*[0-9]_desc-predictedTMZ_T1w.nii.gz")
    result = nibabel.load(path)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result.affine, expected.affine, atol=1e-5)


def test_no_name_of_the_patient_is_in_any_output(data, predict, tmp_path):
    """T16: neither from paths and session names, nor from free text of the headers."""
    path = data / "Doe^Jane/T1 of Doe.nii"
    path.parent.mkdir()
    old = nibabel.load(image(data, 4, "t1"))
    header = old.header.copy()
    header["descrip"], header["intent_name"], header["aux_file"] = b"Doe^Jane", b"Doe", b"Doe"
    voxels = np.asarray(old.dataobj)[..., None]  # worth a note that names the file
    nibabel.save(nibabel.Nifti1Image(voxels, old.affine, header), path)
    table_path = manifest(data, t1="Doe^Jane/T1 of Doe.nii")
    table_path.write_text(table_path.read_text().replace("\nv", "\nDoe-"))
    doe = table_path.rename(data / "Doe.csv")

    ending = predict(doe)
    assert ending.code == 0
    assert "extra axes dropped" in ending.err
    files = read_result(tmp_path / "out/forecast")
    files["forecast.json"] = (tmp_path / "out/forecast/forecast.json").read_bytes()
    for name, content in files.items():
        plain = gzip.decompress(content) if name.endswith(".gz") else content
        assert b"Doe" not in plain, name
    assert b"t1 of day 160" in files["forecast.json"]


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """`run_app` takes signals over; the test run gets them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
