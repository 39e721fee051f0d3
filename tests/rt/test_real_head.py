"""A real head through the real command line, in whatever orientation its file is stored.

Colin27, skull-stripped (Holmes et al. 1998, doi 10.1097/00004728-199803000-00032), as Debian's
package mricron-data ships it. It is no part of this project: the test fetches the package once, or
skips.
"""

import json
import os
import shutil
import signal
import subprocess
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel import orientations
from scipy import ndimage

from tadiff_rt.case import ReadOptions
from tadiff_rt.console import run_app
from tadiff_rt.preprocess import DataContract, prepare
from tadiff_rt.readers import read_case

pytestmark = pytest.mark.slow

PACKAGE = "mricron-data"
TEMPLATE = "usr/share/mricron/templates/ch2bet.nii.gz"
SIZE = 192
ORIENTATIONS = ("RAS", "LPS", "PLI")
SLICES = "90:92"
DAY, TREATMENT = 90, "TMZ"
REQUEST = ("--day", f"+{DAY}", "--treatment", TREATMENT, "--samples", "2", "--steps", "2")
MANIFEST = "session,day,treatment,t1,t1c,flair\nses-01,0,CRT" + 3 * ",t1.nii.gz" + "\n"


def fetch(folder: Path) -> str:
    """Unpacks the Debian package into `folder`; returns what went wrong, or nothing."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        return "no apt-get and dpkg-deb"
    folder.mkdir(parents=True, exist_ok=True)

    def command(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=180)

    got = command("apt-get", "download", PACKAGE)
    if got.returncode:
        command("apt-get", "update")
        got = command("apt-get", "download", PACKAGE)
    archives = sorted(folder.glob(f"{PACKAGE}_*.deb"))
    if got.returncode or not archives:
        return f"apt-get download {PACKAGE}: {got.stderr.strip()[-200:]}"
    got = command("dpkg-deb", "-x", archives[-1].name, ".")
    for archive in archives:
        archive.unlink()
    return got.stderr.strip() if got.returncode else ""


@pytest.fixture(scope="module")
def template() -> nib.Nifti1Image:
    """181 x 217 x 181 voxels of 1 mm, uint8, background 0."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = Path(home) / "tadiff-tests"
    places = (Path("/") / TEMPLATE, cache / TEMPLATE)
    if not any(place.is_file() for place in places):
        try:
            problem = fetch(cache)
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = str(error)
        if problem:
            pytest.skip(f"no Colin27: {problem}")
    image = nib.load(next(place for place in places if place.is_file()))
    assert image.shape == (181, 217, 181)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    return image


@pytest.fixture(scope="module")
def scan(template) -> nib.Nifti1Image:
    """int16 in scanner units, grey matter around 800, with undershoot outside the brain's edge.

    Interpolating a stripped image with splines leaves such a shell; it must not count as tissue.
    """
    raw = np.asarray(template.dataobj)
    brain = raw > 0
    data = raw.astype(np.int16) * 9
    shell = ndimage.binary_dilation(brain) & ~brain
    places = np.flatnonzero(shell)
    rng = np.random.default_rng(27)
    chosen = rng.choice(places, len(places) // 3, replace=False)
    data.flat[chosen] = -rng.integers(1, 137, len(chosen))
    assert data.min() == -136
    assert 700 < np.median(data[brain]) < 900
    # The head is lopsided: a flip or a transposed axis cannot go unnoticed.
    assert all((data != np.flip(data, axis)).mean() > 0.05 for axis in range(3))
    return nib.Nifti1Image(data, template.affine)


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Path:
    """A network of random weights, nowhere zero, that takes 192 x 192 voxels of 1 mm."""
    import torch

    from tadiff_export.certify.reference import Settings
    from tadiff_export.package import export
    from tadiff_rt.card import ModelCard
    from tadiff_rt.preprocess import DataContract
    from tadiff_train.checkpoint import save_checkpoint
    from tadiff_train.network import NetworkConfig, TaDiffNet

    rng = torch.Generator().manual_seed(27)
    net = TaDiffNet(
        NetworkConfig(
            channel_mult=(1, 1, 1, 1), num_res_blocks=1, num_heads=1, attention_strides=(8,)
        )
    )
    for p in net.parameters():
        noise = torch.randn(p.shape, generator=rng)
        p.data = noise / p[0].numel() ** 0.5 if p.ndim > 1 else p.data + 0.1 * noise
    folder = tmp_path_factory.mktemp("engine")
    card = ModelCard(
        name="random",
        trained_on="nothing: random weights",
        data=DataContract(size=SIZE, spacing_mm=1.0),
    )
    save_checkpoint(folder / "run", net, card, {"step": 0})
    little = Settings(samples=2, num_steps=1)
    export(folder / "run", folder / "random.tadiff", settings=little)
    return folder / "random.tadiff"


@dataclass
class Run:
    """What the command wrote and said."""

    code: int
    folder: Path
    stderr: str
    stored: nib.Nifti1Image

    def load(self, name: str) -> nib.Nifti1Image:
        (path,) = self.folder.rglob(f"sub-unnamed_ses-*{name}.nii.gz")
        return nib.load(path)

    @property
    def report(self) -> dict:
        return json.loads((self.folder / "forecast.json").read_text())


def stored_as(image: nib.Nifti1Image, axes: str) -> nib.Nifti1Image:
    """The same head with its voxel axes along `axes`, by nibabel."""
    change = orientations.ornt_transform(
        nib.io_orientation(image.affine), orientations.axcodes2ornt(tuple(axes))
    )
    return image.as_reoriented(change)


def predict(folder: Path, image: nib.Nifti1Image, engine: Path, *options: str) -> Path:
    """Runs `tadiff-rt predict` on a case of one session and one file; ends with SystemExit."""
    from tadiff_rt.cli import app

    folder.mkdir()
    nib.save(image, folder / "t1.nii.gz")
    (folder / "manifest.csv").write_text(MANIFEST)
    arguments = (
        "--engine",
        engine,
        "--case",
        folder / "manifest.csv",
        "-o",
        folder.parent / "out",
    )
    run_app(
        app,
        "tadiff-rt",
        [
            "predict",
            *map(str, arguments),
            *REQUEST,
            "--slices",
            SLICES,
            "--threads",
            "1",
            *options,
        ],
    )


@pytest.fixture(scope="module")
def runs(scan, engine, tmp_path_factory) -> dict[str, Run]:
    """One forecast for each orientation of the file."""
    handler = signal.getsignal(signal.SIGTERM)
    done = {}
    for axes in ORIENTATIONS:
        folder = tmp_path_factory.mktemp(axes)
        stored = stored_as(scan, axes)
        assert "".join(nib.aff2axcodes(stored.affine)) == axes
        with redirect_stderr(StringIO()) as stderr, pytest.raises(SystemExit) as ended:
            predict(folder / "case", stored, engine, "--allow-same")
        done[axes] = Run(ended.value.code, folder / "out", stderr.getvalue(), stored)
    signal.signal(signal.SIGTERM, handler)
    return done


def volumes() -> list[str]:
    """What the names of the images of a result end with."""
    kinds = ("_desc-predicted", "_desc-predictedstd")
    names = [f"{kind}{TREATMENT}_{ending}" for kind in kinds for ending in ("T1w", "FLAIR")]
    contrast = [f"_ce-gadolinium{kind}{TREATMENT}_T1w" for kind in kinds]
    tumour = [f"_label-L_desc-predicted{TREATMENT}_probseg", f"_desc-predicted{TREATMENT}_dseg"]
    return [*(f"day{DAY}{name}" for name in names), *contrast, *tumour]


def test_the_command_succeeds(runs):
    assert [(run.code, run.stderr) for run in runs.values() if run.code] == []
    for run in runs.values():
        images = [path.name for path in run.folder.rglob("*.nii.gz")]
        assert len(images) == len(volumes())
        assert all(sum(n.endswith(f"{v}.nii.gz") for n in images) == 1 for v in volumes())
        assert {"forecast.json", "overview.png"} <= {p.name for p in run.folder.iterdir()}


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_results_lie_on_the_grid_of_the_file(runs, axes):
    run = runs[axes]
    for name in volumes():
        image = run.load(name)
        assert image.shape == run.stored.shape
        np.testing.assert_allclose(image.affine, run.stored.affine, rtol=0, atol=1e-5)
        assert "".join(nib.aff2axcodes(image.affine)) == axes


@pytest.mark.parametrize("axes", ORIENTATIONS[1:])
@pytest.mark.parametrize("name", volumes())
def test_orientation_of_the_file_changes_no_bit(runs, axes, name):
    expected = runs["RAS"].load(name)
    back = stored_as(runs[axes].load(name), "RAS")
    np.testing.assert_allclose(back.affine, expected.affine, rtol=0, atol=1e-5)
    got, want = np.asarray(back.dataobj), np.asarray(expected.dataobj)
    assert got.dtype == want.dtype
    assert got.tobytes() == want.tobytes()


def test_forecast_fills_the_slices_asked_for(runs, scan):
    """Canonical slices count from superior: 90 and 91 of 181 are z = 90 and 89."""
    image = np.asarray(runs["RAS"].load(f"day{DAY}_desc-predicted{TREATMENT}_T1w").dataobj)
    assert np.flatnonzero(image.any(axis=(0, 1))).tolist() == [89, 90]
    assert np.asarray(runs["RAS"].load(f"_desc-predictedstd{TREATMENT}_FLAIR").dataobj).any()
    # In y the window is narrower than the image: centred on the brain's box, 6 voxels beyond it.
    brain = np.flatnonzero((np.asarray(scan.dataobj) > 0).any(axis=(0, 2)))
    assert len(range(brain[0], brain[-1] + 1)) == SIZE - 12
    held = np.flatnonzero(image.any(axis=(0, 2)))
    assert (held[0], held[-1]) == (brain[0] - 6, brain[-1] + 6)


def test_undershoot_is_no_tissue(scan, tmp_path):
    """clip(v, p0.2, p99.8) / p99.8 where v > 0, and 0 elsewhere; window around v > 0 alone."""
    nib.save(stored_as(scan, "LPS"), tmp_path / "t1.nii.gz")
    (tmp_path / "manifest.csv").write_text(MANIFEST)
    case = read_case(tmp_path / "manifest.csv", ReadOptions(allow_same=True))
    prepared = prepare(case.sessions, DataContract(size=SIZE, num_sources=1))
    canonical = np.asarray(stored_as(scan, "PLI").dataobj).astype(float)
    low, high = np.percentile(canonical[canonical > 0], (0.2, 99.8))
    scaled = np.where(canonical > 0, np.clip(canonical, low, high) / high, 0)
    rows, columns = (np.flatnonzero(scaled.any(axis=axes)) for axes in ((1, 2), (0, 2)))
    box = scaled[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    spare = [SIZE - n for n in box.shape[:2]]
    padded = np.pad(box, [*((n // 2, n - n // 2) for n in spare), (0, 0)])
    for modality in range(3):
        got = np.moveaxis(prepared.sources[:, modality], 0, 2)
        np.testing.assert_allclose(got, padded, rtol=0, atol=1e-6)
    np.testing.assert_allclose(prepared.intensity_scale, high)


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_what_was_assumed_is_said_and_recorded(runs, axes):
    run = runs[axes]
    notes = run.report["notes"]
    for words in (
        "fewer than 3 sessions; the first is repeated",
        "one file stands for t1 and t1c",
        "one file stands for t1c and flair",
        "several modalities hold the same voxels",
    ):
        assert sum(words in note for note in notes) == 1
        assert sum(words in line for line in run.stderr.splitlines()) == 1
    sources = run.report["sources"]
    assert [s["day"] for s in sources] == [0, 0, 0]
    assert len({digest for s in sources for digest in s["sha256"].values()}) == 1
    entry = run.report["scenarios"][f"day{DAY}-{TREATMENT}"]
    assert entry["request"] == {"day": DAY, "treatment": TREATMENT}
    assert entry["sampling"]["slices"] == [90, 91]


def test_volumes_are_equal_and_those_of_the_mask_files(runs):
    entries = [run.report["scenarios"][f"day{DAY}-{TREATMENT}"] for run in runs.values()]
    assert all(e["volume_ml"] == entries[0]["volume_ml"] for e in entries)
    assert len(entries[0]["volume_ml"]["samples"]) == 2
    masks = [np.asarray(run.load("_dseg").dataobj) for run in runs.values()]
    assert len({int(mask.sum()) for mask in masks}) == 1
    for run in runs.values():
        probability = np.asarray(run.load("_probseg").dataobj)
        mask = np.asarray(run.load("_dseg").dataobj)
        np.testing.assert_array_equal(mask, probability > 0.5)


def test_one_file_for_several_modalities_needs_asking(scan, engine, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        predict(tmp_path / "case", scan, engine)
    assert ended.value.code == 2
    assert "one file stands for t1 and t1c of session ses-01" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
