"""`tadiff-train evaluate` as a user calls it, with a network of random weights."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tadiff_rt.console import run_app
from tadiff_train.cli import app
from tadiff_train.commands.evaluate import subjects_of
from tadiff_train.commands.fit_request import fractions_of
from tadiff_train.data import split_of
from tests.conftest import write_bids_case

QUICK = ("--samples", "2", "--steps", "1", "--max-slices", "2", "--threads", "1", "-q")


@pytest.fixture(autouse=True)
def process_state():
    """Signals and threads as they were: a command owns its process, a test does not."""
    handler, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    yield
    signal.signal(signal.SIGTERM, handler)
    torch.set_num_threads(threads)


@pytest.fixture
def run(capsys):
    """Runs the command in this process; exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            run_app(app, "tadiff-train", ["evaluate", *map(str, arguments)])
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("bids")
    write_bids_case(root)
    return root


def test_table_json_and_figures_are_written_side_by_side(run, bundle, data, tmp_path):
    out = tmp_path / "results.md"
    code, stdout, stderr = run(
        "--engine", bundle, "--data", data, "-o", out, *QUICK, "--coherence", "0.5",
        "--population", "boxes in noise",
    )  # fmt: skip
    assert (code, stderr) == (0, "")
    table = out.read_text()
    assert stdout == table + "\n"
    assert "1 boxes in noise." in table
    assert "model tiny, weights " in table
    assert (
        "samples 2, steps 1, solver dpmpp_2m, seed 0, coherence 0.5, slices a patient at most 2, "
        "trained on " in table
    )
    assert "fitted growth |" in table
    content = json.loads((tmp_path / "results.json").read_text())
    (patient,) = content["patients"]
    assert patient["name"] == "sub-17"
    assert patient["growth"]["failure"] == ""
    assert patient["growth"]["fit"]["sessions"] == 3
    assert len(patient["slices"]) == 2
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 3


def test_growth_can_be_left_out(run, bundle, data, tmp_path):
    arguments = ("--engine", bundle, "--data", data, "-o", tmp_path / "r.md", *QUICK)
    code, stdout, _ = run(*arguments, "--no-growth")
    assert code == 0
    assert "was not run" in stdout
    assert json.loads((tmp_path / "r.json").read_text())["patients"][0]["growth"] is None


def test_a_part_of_the_cohort_is_evaluated_alone(run, bundle, data, tmp_path):
    part = split_of("sub-17")
    arguments = ("--engine", bundle, "--data", data, "-o", tmp_path / "r.md", *QUICK)
    code, stdout, _ = run(*arguments, "--no-growth", "--split", part)
    assert code == 0
    assert f", part {part}, salt tadiff, trained on " in stdout
    (empty,) = {"train", "val", "test"} - {part, "val"}
    for other in (empty, "everyone"):
        code, _, stderr = run(*arguments, "--split", other)
        assert code == 2
        assert f"error TD3077: --split {other} holds no patient" in stderr
        assert f"{part} with 1" in stderr


def test_the_parts_of_a_cohort_are_those_of_the_split(tmp_path):
    names = [f"sub-{i:02d}" for i in range(40)]
    for name in names:
        (tmp_path / name).mkdir()
    for part in ("train", "val", "test"):
        found = [subject.name for subject in subjects_of(tmp_path, part)]
        assert found == [name for name in names if split_of(name) == part]
        assert 0 < len(found) < 40
    assert len(subjects_of(tmp_path, None)) == 40


def test_the_parts_are_those_of_a_fit_with_other_fractions_and_salt(tmp_path):
    """With the default split, the test part would hold patients that were trained on."""
    names = [f"sub-{i:02d}" for i in range(40)]
    for name in names:
        (tmp_path / name).mkdir()
    fractions = fractions_of({"val_fraction": 0.2, "test_fraction": 0.3})
    found = [s.name for s in subjects_of(tmp_path, "test", fractions, "other")]
    assert found == [name for name in names if split_of(name, fractions, "other") == "test"]
    assert set(found) - {s.name for s in subjects_of(tmp_path, "test")}


def test_a_patient_that_cannot_be_used_is_told_first_and_left_out_if_wished(
    run, bundle, data, tmp_path
):
    cohort = tmp_path / "cohort"
    shutil.copytree(data, cohort)
    (cohort / "sub-99").mkdir()
    arguments = ("--engine", bundle, "--data", cohort, "-o", tmp_path / "r-0.5", *QUICK)
    code, stdout, stderr = run(*arguments, "--no-growth")
    assert (code != 0, stdout) == (True, "")
    assert "sub-99" in stderr
    code, stdout, _ = run(*arguments, "--no-growth", "--skip-bad", "--counterfactuals")
    assert code == 0
    assert "Left out, as they could not be used: sub-99 (TD" in stdout
    assert "other plans known of 0 of 1 patients" in stdout
    content = json.loads((tmp_path / "r-0.5.json").read_text())
    assert list(content["left_out"]) == ["sub-99"]


def test_nothing_is_claimed_of_what_the_model_has_seen(run, bundle, data, tmp_path):
    """The patient may have been trained on: nothing in the bundle says no."""
    arguments = ("--engine", bundle, "--data", data, "-o", tmp_path / "r.md", *QUICK)
    code, stdout, _ = run(*arguments, "--no-growth")
    assert code == 0
    assert stdout.startswith("Forecasts of the last session of 1 patients.")
    assert "not seen" not in stdout
    assert "trained on any of these patients is not checked" in stdout


@pytest.mark.parametrize(
    ("options", "code", "exit_code"),
    [
        (("-o", "{folder}/r.json"), "TD3076", 2),
        (("-o", "{folder}/R.PNG"), "TD3076", 2),
        (("-o", "{folder}/none/r.md"), "TD8003", 8),
        (("-o", "{folder}"), "TD8001", 8),
        (("--data", "{folder}/none"), "TD3030", 2),
        (("--coherence", "1"), "TD3000", 2),
        (("--steps", "0"), "TD3016", 2),
        (("--jobs", "0"), "TD3000", 2),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_forecast(
    run, data, tmp_path, options, code, exit_code
):
    """The bundle does not exist: to say so comes after. A later option of a name wins."""
    options = [option.format(folder=tmp_path) for option in options]
    arguments = ("--engine", tmp_path / "no.tadiff", "--data", data, "-o", tmp_path / "r.md")
    got, stdout, stderr = run(*arguments, *options, "--errors=json")
    found = json.loads(stderr.splitlines()[0])
    assert (got, found["code"], stdout) == (exit_code, code, "")


def test_help_loads_nothing_heavy():
    """torch and matplotlib come with the command's work."""
    probe = (
        "import sys, tadiff_train.commands.evaluate; "
        "print(*({'torch', 'matplotlib', 'onnxruntime'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert out.stdout.split() == []


def test_labels_of_masks_are_declared(run, bundle, tmp_path):
    write_bids_case(tmp_path / "data")
    for path in (tmp_path / "data").rglob("*_dseg.nii.gz"):
        mask = nib.load(path)
        labels = np.asarray(mask.dataobj).copy()
        labels[np.nonzero(labels)[0][:1]] *= 2
        nib.save(nib.Nifti1Image(labels, mask.affine), path)
    line = ("--engine", bundle, "--data", tmp_path / "data", "-o", tmp_path / "results.md", *QUICK)
    code, _, stderr = run(*line, "--no-growth")
    assert (code, "TD3209" in stderr, "--labels" in stderr) == (3, True, True)
    assert run(*line, "--no-growth", "--labels", "hdglio")[0] == 0
