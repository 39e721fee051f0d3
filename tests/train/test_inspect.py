"""What `tadiff-train inspect` says of a cohort: against the numbers it was built with."""

import io
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import typer
from matplotlib.image import imread

from tadiff_rt.case import ReadOptions
from tadiff_rt.console import run_app
from tadiff_rt.errors import TadiffError
from tadiff_rt.readers import read_case
from tadiff_train.commands import inspect as command
from tadiff_train.data import picture
from tadiff_train.data.inspect import Inspection, inspect_cohort
from tadiff_train.data.picture import Strip, strip_of, strips_png
from tadiff_train.data.split import split_of
from tests.train import layouts

ROOT = Path(__file__).parents[2]
VOXEL_ML = 8 / 1000


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("layouts")
    return {layout: write(base / layout) for layout, write in layouts.WRITERS.items()}


@pytest.fixture
def run(capsys):
    """Runs the command in this process; exit code, stdout, stderr."""
    app = typer.Typer()
    app.command("inspect")(command.inspect)
    app.callback()(lambda: None)
    handler = signal.getsignal(signal.SIGTERM)

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            run_app(app, "tadiff-train", ["inspect", *map(str, arguments)])
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    yield call
    signal.signal(signal.SIGTERM, handler)


def volume_ml(p: int, s: int) -> float:
    return float((layouts.tumour(p, s) > 0).sum()) * VOXEL_ML


def options_of(layout: str) -> ReadOptions:
    return ReadOptions(**layouts.OPTIONS.get(layout, {}))


@pytest.mark.parametrize("layout", layouts.WRITERS)
def test_a_row_says_what_the_subject_holds(roots, layout):
    told = []
    inspection = inspect_cohort(
        roots[layout], options_of(layout), progress=lambda *done: told.append(done)
    )
    assert told == [(1, 2), (2, 2)]
    assert inspection.findings == ()
    for row, (p, sessions) in zip(inspection.patients, layouts.COHORT.items(), strict=True):
        assert row.name == layouts.NAMES[layout][p - 1]
        assert (row.layout, row.part) == (layout, split_of(row.name))
        assert list(zip(row.days, row.treatments, strict=True)) == list(sessions)
        expected = [volume_ml(p, s) for s in range(len(sessions))]
        np.testing.assert_allclose(row.tumour_ml, expected, rtol=1e-6)
        assert row.shape == (24, 20, 12)  # on canonical axes, from 20 x 24 x 12
        assert row.spacing_mm == (2.0, 2.0, 2.0)
        assert row.brain == (18, 14)
        assert row.findings == ()


def test_totals_are_those_of_the_cohort(roots):
    assert inspect_cohort(roots["bids"]).totals() == {
        "patients": 2,
        "read": 2,
        "with_findings": 0,
        "sessions": 5,
        "treatments": {"CRT": 2, "TMZ": 2, "none": 1},
        "parts": {split_of("sub-01"): 2},
        "max_day": 77,
        "max_gap_days": 70,
        "spacings_mm": [(2.0, 2.0, 2.0)],
        "one_spacing_fits": True,
        "largest_brain": [18, 14],
    }


def test_bad_patients_hide_nobody(roots, tmp_path):
    """Found with the codes that training gives; data before usage."""
    root = Path(shutil.copytree(roots["bids"], tmp_path / "b"))
    next((root / "derivatives").rglob("sub-01_ses-02*")).unlink()
    (root / "sub-02/ses-01/anat/sub-02_ses-01_T1w.nii.gz").write_bytes(b"")
    inspection = inspect_cohort(root)
    assert [e.code for e in inspection.findings] == ["TD3101", "TD3031"]
    first, second = inspection.patients
    assert (first.findings, second.findings) == (("TD3031",), ("TD3101",))
    assert first.tumour_ml == pytest.approx((volume_ml(1, 0), None, volume_ml(1, 2)))
    assert (second.days, second.shape, second.brain) == ((), None, None)
    assert (inspection.totals()["read"], inspection.totals()["with_findings"]) == (1, 2)
    assert [strip.name for strip in inspection.strips] == ["sub-01"]


def rewrite(root: Path, name: str, data: np.ndarray, affine=layouts.RAS) -> None:
    layouts.save(root / f"sub-01/ses-02/anat/sub-01_ses-02_{name}.nii.gz", data, "RAS", affine)


def shifted() -> np.ndarray:
    affine = layouts.RAS.copy()
    affine[1, 3] += 1
    return affine


@pytest.mark.parametrize(
    ("name", "data", "affine", "code"),
    [
        ("T1w", layouts.scan(1, 1, 0) - 400, layouts.RAS, "TD3126"),
        ("FLAIR", layouts.scan(1, 1, 2) * 0, layouts.RAS, "TD3125"),
        ("FLAIR", layouts.scan(1, 1, 2), shifted(), "TD3201"),
    ],
)
def test_images_are_judged_as_training_will(roots, tmp_path, name, data, affine, code):
    root = Path(shutil.copytree(roots["bids"], tmp_path / "b"))
    rewrite(root, name, data, affine)
    inspection = inspect_cohort(root)
    assert [e.code for e in inspection.findings] == [code]
    assert "sub-01" in inspection.findings[0].where
    assert len(inspection.strips) == 2


@pytest.mark.parametrize(("edge", "bad"), [(2.4, False), (2.5, True)])
def test_voxels_that_no_network_takes_are_a_finding(tmp_path, edge, bad):
    """A network takes 10 % on either side of its own: at most a factor of 1.222."""
    affine = layouts.RAS @ np.diag([1, 1, edge / 2, 1])
    root = layouts.write_bids(tmp_path, {1: layouts.COHORT[2]})
    for path in root.rglob("*.nii.gz"):
        s = int("ses-02" in path.name)
        names = ("T1w", "ce-gad", "FLAIR")
        m = next((m for m in (1, 0, 2) if names[m] in path.name), None)
        data = layouts.whole(1, s) if m is None else layouts.scan(1, s, m)
        layouts.save(path, data, "RAS", affine)
    inspection = inspect_cohort(root)
    assert [e.code for e in inspection.findings] == (["TD3207"] if bad else [])
    (row,) = inspection.patients
    assert row.spacing_mm == pytest.approx((2, 2, edge))
    np.testing.assert_allclose(row.tumour_ml[0], volume_ml(1, 0) * edge / 2)


def notes_of(root: Path) -> dict[str, tuple[str, ...]]:
    return {p.name: p.notes for p in inspect_cohort(root).patients}


def test_a_cohort_without_oddities_has_no_remarks(run, roots):
    assert notes_of(roots["bids"]) == {"sub-01": (), "sub-02": ()}
    assert "remarks" not in run(roots["bids"], "-q")[1]


def test_patients_that_training_never_draws_are_remarked_on(run, tmp_path):
    one = layouts.COHORT[1][:1]
    root = layouts.write_bids(
        tmp_path, {1: layouts.COHORT[1], 2: layouts.COHORT[2], 3: one, 4: one}
    )
    for path in (root / "derivatives/manual/sub-01").rglob("*dseg*"):
        layouts.save(path, np.zeros(layouts.SHAPE, np.uint8))
    code, out, _ = run(root, "-q")
    assert code == 0
    assert out.split("remarks:\n")[1].splitlines() == [
        "  sub-01: W3132: no tumour in any session: training never draws this patient",
        "  sub-03, sub-04: W3131: one session: training never draws this patient",
    ]


def test_masks_that_do_not_belong_to_the_brain_are_remarked_on(tmp_path):
    root = layouts.write_bids(tmp_path, {1: layouts.COHORT[2]})
    first, second = sorted((root / "derivatives").rglob("*dseg*"))
    everywhere = np.ones(layouts.SHAPE, np.uint8)
    layouts.save(first, everywhere, "PIL")
    stray = layouts.whole(1, 1)
    stray[0, 0, 0] = 1
    layouts.save(second, stray)  # one voxel of many is what resampling leaves
    voxels, brain = everywhere.size, 14 * 18 * 10
    assert notes_of(root)["sub-01"] == (
        f"W3128: ses-01: tumour covers {voxels / brain:.0%} of the brain",
        f"W3133: ses-01: {voxels - brain} of {voxels} tumour voxels lie outside the brain",
    )


def test_scans_that_are_there_twice_are_remarked_on(tmp_path):
    """A session copied into the next, and one person under two names."""
    root = layouts.write_bids(tmp_path, {1: layouts.COHORT[1], 2: layouts.COHORT[2]})
    names = ("T1w", "ce-gadolinium_T1w", "FLAIR")
    anat = "sub-{0:02}/ses-{1:02}/anat/sub-{0:02}_ses-{1:02}_{2}.nii.gz"
    for name in names:
        shutil.copy(root / anat.format(1, 3, name), root / anat.format(2, 1, name))
    for name in names[:2]:
        shutil.copy(root / anat.format(1, 1, name), root / anat.format(1, 2, name))
    assert notes_of(root) == {
        "sub-01": (
            "W3130: images with the same voxels: t1 of ses-01 = t1 of ses-02, "
            "t1c of ses-01 = t1c of ses-02",
        ),
        "sub-02": ("W3130: 3 images have the voxels of sub-01: one person under two names?",),
    }


def test_patients_of_voxels_that_no_one_network_takes(run, tmp_path):
    root = layouts.write_bids(tmp_path, layouts.COHORT)
    for path in root.rglob("*sub-02_*.nii.gz"):
        image = nib.load(path)
        layouts.save(path, np.asarray(image.dataobj), "RAS", layouts.RAS * [0.5, 0.5, 0.5, 1])
    code, out, _ = run(root, "-q")
    assert code == 0
    assert "voxels: 1 x 1 x 1 mm; 2 x 2 x 2 mm; no one --spacing-mm takes all of them" in out
    assert inspect_cohort(root).totals()["one_spacing_fits"] is False


def test_remarks_are_capped_and_say_so(run, roots, monkeypatch):
    monkeypatch.setattr(command, "MAX_REMARKS", 2)
    out = run(roots["npy"], "-q", "--npy-grid", "PLI:2")[1]
    assert "sub-01, sub-02: arrays have no affine" in out
    assert "sub-01, sub-02: tumour labels: published (1 oedema" in out
    assert "more" not in out
    monkeypatch.setattr(command, "MAX_REMARKS", 1)
    assert "  and 1 more; --json has all" in run(roots["npy"], "-q", "--npy-grid", "PLI:2")[1]


def test_a_narrow_picture_holds_its_heading(roots):
    """Nothing white touches the border."""
    inspection = inspect_cohort(roots["bids"])
    one = [Strip(s.name, s.panels[:1], 1) for s in inspection.strips]
    picture = imread(io.BytesIO(strips_png(one, inspection.heading())))[..., :3]
    assert picture[:, :4].max() == picture[:, -4:].max() == 0


def test_the_split_is_the_one_asked_for(roots):
    fractions = {"a": 0.5, "b": 0.5}
    parts = {
        row.part
        for salt in "xyz"
        for row in inspect_cohort(
            roots["npy"], options_of("npy"), fractions=fractions, salt=salt
        ).patients
    }
    assert parts == {"a", "b"}


def test_pictures_show_the_slice_with_most_tumour(roots):
    for layout in ("bids", "sailor", "lumiere"):
        first = inspect_cohort(roots[layout]).strips[0]
        assert [panel.day for panel in first.panels] == [0, 28, 77]
        for s, panel in enumerate(first.panels):
            raw = layouts.scan(1, s, 1).astype(float)
            low, high = np.percentile(raw[raw > 0], (0.2, 99.8))
            # Both slices hold as much; the first from superior is taken.
            plane = layouts.canonical(np.where(raw > 0, np.clip(raw, low, high) / high, 0))[..., 3]
            np.testing.assert_allclose(panel.image, plane, atol=1e-6)
            mask = layouts.canonical(layouts.tumour(1, s) > 0)[..., 3]
            np.testing.assert_array_equal(panel.mask, mask)
            assert panel.tumour_ml == pytest.approx(volume_ml(1, s))


def test_one_slice_serves_all_sessions_of_a_patient(roots, tmp_path):
    """The one with most tumour in all, not in each."""
    root = Path(shutil.copytree(roots["bids"], tmp_path / "b"))
    areas = ((3, 0, 4), (0, 6, 4))  # of three slices, in two sessions
    for s, area in enumerate(areas):
        mask = np.zeros(layouts.SHAPE, np.uint8)
        for k, count in enumerate(area):
            mask[5 : 5 + count, 9, 4 + k] = 1
        path = next((root / "derivatives").rglob(f"sub-02_ses-0{s + 1}*dseg.nii.gz"))
        layouts.save(path, mask)
    strip = strip_of(read_case(root / "sub-02"))
    assert [int(panel.mask.sum()) for panel in strip.panels] == [4, 4]


def test_without_tumour_the_widest_slice_is_shown(roots, tmp_path):
    root = Path(shutil.copytree(roots["bids"], tmp_path / "b"))
    shutil.rmtree(root / "derivatives")
    for path in (root / "sub-02").rglob("*T1w.nii.gz"):
        data = layouts.scan(2, 0, 1)
        data[:6, :, :4] = data[:6, :, 5:] = 0
        layouts.save(path, data)
    strip = strip_of(read_case(root / "sub-02"))
    for panel in strip.panels:
        assert panel.mask is None
        assert panel.tumour_ml is None
        assert panel.image[:, -4:].any()  # left of the patient is on the right: x < 6 is there


def test_pictures_are_capped_and_say_so(roots, tmp_path, monkeypatch):
    monkeypatch.setattr(picture, "MAX_SESSIONS_SHOWN", 2)
    inspection = inspect_cohort(roots["bids"], max_strips=1)
    (strip,) = inspection.strips
    assert (len(strip.panels), strip.num_sessions) == (2, 3)
    assert inspection.heading() == "T1c, 1 of 2 patients, 2 of 5 sessions"
    assert len(inspection.patients) == 2


def picture_of(inspection: Inspection) -> np.ndarray:
    return imread(io.BytesIO(strips_png(inspection.strips, inspection.heading())))


def test_the_picture_has_a_row_a_patient_and_an_outline(roots):
    one = picture_of(inspect_cohort(roots["bids"], max_strips=1))
    both = picture_of(inspect_cohort(roots["bids"]))
    assert both.shape[0] > 1.7 * one.shape[0]
    assert both.shape[1] == one.shape[1]
    # The outline is the only thing in colour: #5ad1ff.
    colour = np.array([0x5A, 0xD1, 0xFF]) / 255
    assert (np.abs(both[..., :3] - colour).max(axis=-1) < 0.02).sum() > 100
    assert np.ptp(both[..., :3].max(axis=-1)) > 0.9


def test_equal_cohorts_give_equal_bytes_whatever_the_users_style(roots):
    import matplotlib

    inspection = inspect_cohort(roots["bids"])
    once = strips_png(inspection.strips, "x")
    with matplotlib.rc_context({"image.origin": "lower", "font.size": 30}):
        assert strips_png(inspection.strips, "x") == once


def test_a_picture_of_nobody_can_be_drawn():
    assert strips_png((), "nobody").startswith(b"\x89PNG")


def test_the_command_prints_a_table_and_draws_a_picture(run, roots, tmp_path):
    code, out, err = run(roots["bids"], "-o", tmp_path / "new" / "seen")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == [
        "patient", "layout", "part", "days", "treatments", "tumour", "ml", "grid", "voxel", "mm",
        "findings",
    ]  # fmt: skip
    volumes = " ".join(f"{volume_ml(1, s):.2f}" for s in range(3))
    row = ("sub-01", "bids", "train", "0 28 77", "CRT TMZ none", volumes, "24 x 20 x 12")
    cells = [cell for cell in lines[1].split("  ") if cell.strip()]
    assert [cell.strip() for cell in cells] == [*row, "2 x 2 x 2", "none"]
    assert len(lines[2]) <= len(lines[1])
    assert "2 patients, 2 read, 0 with findings; 5 sessions" in lines
    assert "largest brain in plane: 18 x 14 voxels, what --size must hold" in lines
    assert f"picture in {tmp_path}/new/seen/inspect.png: T1c, 2 of 2 patients, 5 of 5" in out
    assert (tmp_path / "new/seen/inspect.png").read_bytes().startswith(b"\x89PNG")
    assert "reading: 100 %" in err
    assert "\x1b" not in out


def test_no_picture_unless_it_is_asked_for(run, roots, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(roots["bids"], "-q")
    assert (code, err) == (0, "")
    assert "picture" not in out
    assert list(tmp_path.iterdir()) == []


def test_findings_end_with_the_code_of_bad_data_after_the_table(run, roots, tmp_path):
    root = Path(shutil.copytree(roots["sailor"], tmp_path / "s"))
    layouts.write_short_sailor(root)
    shutil.rmtree(root / "sub-15")
    code, out, err = run(root, "-q", "-o", tmp_path / "out")
    assert code == 3
    assert err.count("error TD3319") == 6
    assert "sub-25 has 11 sessions and 8 intervals" in err
    rows = {line.split()[0]: line for line in out.splitlines() if line.startswith("sub-")}
    assert len(rows) == 8
    assert rows["sub-25"].endswith("TD3319")
    assert rows["sub-01"].endswith("none")
    assert "8 patients, 2 read, 6 with findings; 5 sessions" in out
    assert (tmp_path / "out/inspect.png").exists()


def test_missing_masks_alone_end_with_the_code_of_usage(run, roots, tmp_path):
    root = Path(shutil.copytree(roots["npy"], tmp_path / "n"))
    (root / "sub-02_label.npy").unlink()
    code, out, err = run(root, "-q", "--npy-grid", "PLI:2")
    assert code == 2
    assert "error TD3031: sub-02 has 2 of 2 sessions without a tumour mask" in err
    assert "- -" in out


def test_json_is_the_table(run, roots):
    code, out, _ = run(roots["manifest"], "-q", "--json", "--split", "a=1", "--salt", "s")
    told = json.loads(out)
    assert code == 0
    assert [row["name"] for row in told["patients"]] == ["P01", "P02"]
    assert told["patients"][1]["days"] == [0, 70]
    assert told["totals"]["parts"] == {"a": 2}


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (("nowhere",), "TD3030", 2),
        (("--split", "a=2"), "TD3070", 2),
        (("--npy-grid", "PLI:1"), "TD3007", 2),
        (("--leave-out", "ses-77"), "TD3005", 2),
        (("-o", "file"), "TD8001", 8),
        (("-o", "file/below"), "TD8003", 8),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(
    run, roots, tmp_path, monkeypatch, arguments, code, exit_code
):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    data = () if arguments == ("nowhere",) else (roots["bids"],)
    got, out, err = run(*data, *arguments, "-q")
    assert (got, out) == (exit_code, "")
    assert f"error {code}" in err
    assert Path("file").read_text() == "mine"


def test_options_reach_the_readers(run, roots, tmp_path):
    root = Path(shutil.copytree(roots["lumiere"], tmp_path / "l"))
    patient = root / "Imaging" / "Patient-002"
    layouts.write_lumiere_week(patient / "week-005", 2, 0)
    for week in ("week-004", "week-011"):
        (root / f"Imaging/Patient-001/{week}/{layouts.LUMIERE_IMAGES[0]}.nii.gz").unlink()
    options = ("--skip-incomplete", "--leave-out", "Patient-002/week-005", "--layout", "lumiere")
    code, out, _ = run(root, "-q", "--json", *options, "--lumiere-images", "registered")
    assert code == 0
    assert [row["days"] for row in json.loads(out)["patients"]] == [[0], [0, 70]]
    code, out, _ = run(roots["sailor"], "-q", "--json", "--treatments", "published")
    assert json.loads(out)["patients"][0]["treatments"] == ["CRT"] * 3


def test_hostile_names_do_not_reach_the_terminal(run, tmp_path):
    for name in ("sub-\x1b[31mred", "sub-[bold]x"):
        (tmp_path / "b" / name).mkdir(parents=True)
    code, out, err = run(tmp_path / "b", "-q")
    assert code == 3
    assert "\x1b" not in out + err
    assert "sub-\\x1b[31mred" in out
    assert "sub-[bold]x" in out


def test_a_terminal_gets_a_table_of_its_width(roots):
    inspection = inspect_cohort(roots["bids"])
    for width in (60, 100):
        text = command.inspection_table(inspection, width=width)
        table, _, totals = text.partition("\n\n2 patients")
        assert max(map(len, table.splitlines())) <= width
        assert totals
    wide = command.inspection_table(inspection)
    assert len([line for line in wide.splitlines() if line.startswith("sub-01")]) == 1


def test_no_torch_is_needed(roots, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; from tadiff_rt.console import run_app;"
        "import typer; from tadiff_train.commands.inspect import inspect;"
        "app = typer.Typer(); app.command()(inspect);"
        f"run_app(app, 'inspect', [{str(roots['bids'])!r}, '-q', '-o', {str(tmp_path)!r}])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "inspect.png").exists()


def test_errors_that_are_not_about_a_patient_are_raised(roots, monkeypatch):
    with pytest.raises(TadiffError) as caught:
        inspect_cohort(roots["npy"], ReadOptions(npy_grid="PLI"))
    assert caught.value.code == "TD3005"
