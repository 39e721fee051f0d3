"""`tadiff-train` as a user calls it: a cohort, a run, and every refusal with its code."""

import json
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tadiff_rt.console import run_app
from tadiff_train.checkpoint import SIDECAR, WEIGHTS, load_checkpoint
from tadiff_train.cli import app

SHAPE = (16, 20, 10)
ENDINGS = ("T1w", "ce-gadolinium_T1w", "FLAIR")
SMALL = ("--size", "32", "--channel-mult", "1", "--steps", "2", "--batch-size", "2", "-q")


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
            run_app(app, "tadiff-train", [str(a) for a in arguments])
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call


def write_volume(path: Path, data: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.diag([2.0, 2.0, 2.0, 1.0])), path)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """Two subjects of two sessions with tumour masks."""
    root = tmp_path_factory.mktemp("bids")
    rng = np.random.default_rng(0)
    mask = np.zeros(SHAPE, np.uint8)
    mask[6:9, 8:12, 4:6] = 1
    for name, gap in (("sub-01", 60), ("sub-02", 90)):
        for session in ("ses-01", "ses-02"):
            stem = f"{name}/{session}/anat/{name}_{session}"
            for ending in ENDINGS:
                data = np.zeros(SHAPE, np.int16)
                data[3:13, 3:17, 1:9] = rng.integers(300, 900, (10, 14, 8))
                write_volume(root / f"{stem}_{ending}.nii.gz", data)
            write_volume(root / "derivatives/manual" / f"{stem}_desc-tumour_dseg.nii.gz", mask)
        rows = ("session_id\tdays_from_baseline\ttreatment", "ses-01\t0\tCRT")
        table = "\n".join((*rows, f"ses-02\t{gap}\tTMZ")) + "\n"
        (root / name / f"{name}_sessions.tsv").write_text(table)
    return root


def test_fit_leaves_a_checkpoint_of_what_was_asked_for(run, cohort, tmp_path):
    out = tmp_path / "new" / "run"
    code, stdout, stderr = run(
        "fit", "--data", cohort, "-o", out, *SMALL, "--loss", "calibrated", "--threads", "1",
        "--seed", "11", "--name", "toy", "--trained-on", "two boxes", "--learning-rate", "1e-3",
    )  # fmt: skip
    assert (code, stderr) == (0, "")
    assert f"tadiff-export {out} -o toy.tadiff" in stdout
    net, sidecar = load_checkpoint(out)
    assert net.config.channel_mult == (1,)
    assert (net.config.model_channels, net.config.num_res_blocks, net.config.num_heads) == (
        32,
        1,
        1,
    )
    card = sidecar.card
    assert (card.name, card.trained_on) == ("toy", "two boxes")
    assert (card.data.size, card.data.spacing_mm) == (32, 2.0)
    assert card.treatments == {"CRT": 0, "TMZ": 1}
    assert (card.max_day, card.max_horizon_days) == (90, 90)
    asked = {"steps": 2, "batch_size": 2, "loss": "calibrated", "seed": 11, "learning_rate": 1e-3}
    assert {key: sidecar.training[key] for key in asked} == asked
    assert len(list((out / "cache").iterdir())) == 2


def test_progress_and_losses_go_to_stderr(run, cohort, tmp_path):
    code, stdout, stderr = run(
        "fit", "--data", cohort, "-o", tmp_path / "run", *SMALL[:-1], "--threads", "1"
    )
    assert code == 0
    assert "reading: 50 %" in stderr
    assert "training: 100 %" in stderr
    assert "step 2: loss " in stderr
    assert "noise_mse" in stderr
    assert len(stdout.splitlines()) == 1


def test_cache_may_lie_elsewhere(run, cohort, tmp_path):
    for name in ("a", "b"):
        arguments = ("--cache", tmp_path / "cache", "--threads", "1")
        assert run("fit", "--data", cohort, "-o", tmp_path / name, *SMALL, *arguments)[0] == 0
        held = {p.name for p in (tmp_path / name).iterdir()}
        assert {SIDECAR, WEIGHTS, "run.json"} <= held
        assert "cache" not in held
    assert len(list((tmp_path / "cache").iterdir())) == 2
    first, second = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("a", "b"))
    assert first == second


def test_an_existing_run_is_kept(run, cohort, tmp_path):
    assert run("fit", "--data", cohort, "-o", tmp_path, *SMALL)[0] == 0
    before = (tmp_path / WEIGHTS).read_bytes()
    code, _, stderr = run("fit", "--data", cohort, "-o", tmp_path, *SMALL, "--seed", "1")
    assert code == 8
    assert "error TD8001" in stderr
    assert (tmp_path / WEIGHTS).read_bytes() == before


@pytest.mark.parametrize(
    ("options", "code", "exit_code"),
    [
        (("--channel-mult", "1,x"), "TD3037", 2),
        (("--channel-mult", "1,0"), "TD3037", 2),
        (("--model-channels", "48"), "TD3037", 2),
        (("--num-heads", "5"), "TD3037", 2),
        (("--size", "33", "--channel-mult", "1,2"), "TD3052", 2),
        (("--loss", "dice"), "TD3034", 2),
        (("--target-slots", "all"), "TD3034", 2),
        (("--name", "my model"), "TD3038", 2),
        (("--steps", "0"), "TD3000", 2),
        (("--size", "0"), "TD3000", 2),
        (("--data", "nowhere"), "TD3030", 2),
        (("--spacing-mm", "1"), "TD3207", 3),
    ],
)
def test_fit_refuses(run, cohort, tmp_path, options, code, exit_code):
    """A later option of the same name wins, so `options` override the good ones."""
    arguments = ("--data", cohort, "-o", tmp_path / "run", *SMALL, *options)
    got, stdout, stderr = run("fit", *arguments, "--errors=json")
    errors = [json.loads(line) for line in stderr.splitlines()]
    assert (got, errors[0]["code"], errors[0]["exit"]) == (exit_code, code, exit_code)
    assert stdout == ""
    assert not (tmp_path / "run" / SIDECAR).exists()


def test_a_run_folder_that_cannot_be_made_is_refused_before_training(run, cohort, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        code, _, stderr = run("fit", "--data", cohort, "-o", out, *SMALL)
        assert code == 8
        assert "error TD80" in stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_phantom_of_another_size_is_refused(run, tmp_path):
    code, _, stderr = run("phantom", tmp_path / "bids", "--size", "128")
    assert code == 2
    assert "error TD3033: --size must be 96 (2 mm) or 192 (1 mm), got 128" in stderr
    assert not (tmp_path / "bids").exists()


@pytest.mark.slow
def test_phantom_writes_a_cohort_that_fit_reads(run, tmp_path):
    pytest.importorskip("nilearn", reason="the template maps are in nilearn")
    out = tmp_path / "bids"
    code, stdout, _ = run("phantom", out, "--patients", "1", "--size", "96", "--seed", "3", "-q")
    assert code == 0
    assert f"1 simulated patients in {out}" in stdout
    assert [p.name for p in out.glob("sub-*")] == ["sub-001"]
    image = nib.load(next(out.glob("sub-001/ses-01/anat/*_T1w.nii.gz")))
    np.testing.assert_allclose(image.header.get_zooms(), 2.0)
    arguments = ("--channel-mult", "1,1", "--steps", "1", "--batch-size", "1", "--threads", "1")
    assert run("fit", "--data", out, "-o", tmp_path / "run", *arguments, "-q")[0] == 0
    assert load_checkpoint(tmp_path / "run")[1].card.data.size == 96
    code, _, stderr = run("phantom", out, "--patients", "1", "-q")
    assert code == 8
    assert "error TD80" in stderr
