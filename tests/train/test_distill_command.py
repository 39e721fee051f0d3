"""`tadiff-train distill` as it is typed: exit codes, what it leaves, what is exported of it."""

import json
import re
import signal

import numpy as np
import pytest
import torch
import typer

import tadiff_train.data
import tadiff_train.distill
from tadiff_rt.bundle import describe_bundle, open_bundle
from tadiff_rt.certify.distilled import CLOSER, RATIOS
from tadiff_rt.console import run_app
from tadiff_rt.errors import UsageError
from tadiff_rt.forecast import Forecaster
from tadiff_rt.readers import read_case
from tadiff_train.checkpoint import SIDECAR, WEIGHTS, load_checkpoint
from tadiff_train.commands.distill import REPORT, device_called, distill, table
from tadiff_train.data import CachedCase
from tadiff_train.distill import DistillConfig, Measured, course, measure
from tadiff_train.network import NetworkConfig, TaDiffNet
from tadiff_train.start import pass_noise_through
from tests.conftest import SIZE, export_small

SMALL = ("--evaluations", 2, "--substeps", 2, "--batch-size", 1, "--windows", 1, "--samples", 2)


def cases(size: int, count: int = 2) -> list[CachedCase]:
    """Patients with a disc of tumour that grows."""
    made = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:size, :size]
        radius = size / 16 * (np.arange(2, 6)[:, None, None] + rng.uniform(0, 1, (3, 1, 1, 1)))
        masks = (y - size / 2) ** 2 + (x - rng.uniform(0.4, 0.6) * size) ** 2 < radius**2
        level = np.array([0.3, 0.5, 0.4])[:, None, None]
        images = level + masks[:, :, None] * np.array([0.1, 0.4, 0.3])[:, None, None]
        made.append(
            CachedCase(f"sub-{seed}", (0, 40, 80, 120), (0, 0, 1, 1), np.float16(images), masks)
        )
    return made


@pytest.fixture
def tadiff_train_distill(capsys, monkeypatch):
    """Runs the command on patients that need no reading; (code, out, err)."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(distill)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(tadiff_train.data, "cache_cases", lambda *args: cases(SIZE))

    def run(*argv: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            run_app(app, "tadiff-train", [str(a) for a in argv])
        return (ended.value.code, *capsys.readouterr())

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def measured(ratio: float = 0.98) -> Measured:
    near = {**dict.fromkeys(CLOSER, 0.01), **dict.fromkeys(RATIOS, ratio), "Dice": 0.9}
    far = {**dict.fromkeys(CLOSER, 0.02), **dict.fromkeys(RATIOS, 0.5), "Dice": 0.8}
    return Measured(near, far, far)


def test_a_student_that_learnt_nothing_is_kept_and_said_to_be_no_good(
    checkpoint, tmp_path, tadiff_train_distill
):
    out = tmp_path / "student"
    line = (checkpoint, "--data", tmp_path, "-o", out, "--steps", 1, "-q", *SMALL)
    code, told, err = tadiff_train_distill(*line)
    assert code == 6
    assert "TD6007: the student does not repeat its teacher: recorded: " in err
    assert "untrained" in told
    assert "FAIL  recorded: " in told
    net, sidecar = load_checkpoint(out)
    teacher, taught = load_checkpoint(checkpoint)
    assert not torch.equal(
        torch.cat([p.flatten() for p in net.parameters()]),
        torch.cat([p.flatten() for p in teacher.parameters()]),
    )
    sampler = sidecar.card.sampler
    assert sidecar.card.name == "tiny-2"
    assert sampler.teacher_sha256 == taught.weights_sha256 != sidecar.weights_sha256
    plan = course(sidecar.card.schedule.build(), None, 2, 2).student
    assert sampler.times == tuple(plan.t)
    report = json.loads((out / REPORT).read_text())
    assert report["passed"] is False
    assert report["distance_from_teacher"].keys() == {"student", "untrained", "other_noise"}
    for name, value in report["distance_from_teacher"]["student"].items():
        assert sampler.measured[name] == value
    assert report["measured_on"] == {"windows": 1, "samples": 2, "patients": 1}
    assert sidecar.training["evaluations"] == 2
    assert (out / WEIGHTS).is_file()


@pytest.fixture
def good(checkpoint, tmp_path, tadiff_train_distill, monkeypatch):
    """The run folder of a student that was measured to be near its teacher."""
    monkeypatch.setattr(tadiff_train.distill, "measure", lambda *a, **k: measured())
    out = tmp_path / "good"
    line = (checkpoint, "--data", tmp_path, "-o", out, "--steps", 1, *SMALL, "--name", "quick")
    code, told, err = tadiff_train_distill(*line)
    assert (code, re.findall(r"TD\d{4}", err)) == (0, [])
    assert f"tadiff-export {out} -o quick.tadiff" in told
    assert "step 1: loss " in err
    return out


@pytest.mark.slow
def test_its_bundle_says_what_it_is_and_runs_as_trained(good, tmp_path, case_folder):
    bundle = open_bundle(export_small(good, tmp_path / "quick.tadiff", batch=2))
    teacher = json.loads((good / SIDECAR).read_text())["card"]["sampler"]["teacher_sha256"]
    said = describe_bundle(bundle)
    assert f"distilled from weights {teacher[:12]}, 2 evaluations of ddim" in said
    assert "spread ratio 0.98" in said
    made = Forecaster.load(bundle.path, threads=1).predict(
        read_case(case_folder), day="+9", treatment="TMZ", samples=2, slices="5"
    )
    assert made.report["sampling"]["network_evaluations"] == 4
    assert made.report["sampling"]["grid"] == "distilled"


def test_a_student_is_not_distilled_again(good, tmp_path, tadiff_train_distill):
    line = (good, "--data", tmp_path, "-o", tmp_path / "again", "--steps", 1, "-q", *SMALL)
    code, _, err = tadiff_train_distill(*line)
    assert code == 2
    assert "TD3097" in err
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("extra", "code", "named"),
    [
        (("--evaluations", 9), 2, "TD3095"),
        (("--precision", "fp16"), 2, "TD3095"),
        (("--device", "tpu"), 2, "TD3098"),
        (("--name", "a/b"), 2, "TD3038"),
    ],
)
def test_what_cannot_be_asked(checkpoint, tmp_path, tadiff_train_distill, extra, code, named):
    line = (checkpoint, "--data", tmp_path, "-o", tmp_path / "new", *extra)
    ended, _, err = tadiff_train_distill(*line)
    assert (ended, re.findall(r"TD\d{4}", err)) == (code, [named])
    assert "Traceback" not in err
    assert not (tmp_path / "new").exists()


def test_a_run_is_not_overwritten(checkpoint, good, tmp_path, tadiff_train_distill):
    before = (good / WEIGHTS).read_bytes()
    code, _, err = tadiff_train_distill(checkpoint, "--data", tmp_path, "-o", good, *SMALL)
    assert (code, re.findall(r"TD\d{4}", err)) == (8, ["TD8001"])
    assert (good / WEIGHTS).read_bytes() == before


def test_the_device_is_one_that_is_there():
    assert device_called("cpu") == torch.device("cpu")
    assert device_called("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="TD3098"):
            device_called("cuda")


def test_the_table_has_a_column_for_every_comparison():
    lines = table(measured(), []).splitlines()
    assert lines[0].split() == ["student", "untrained", "other", "noise"]
    assert lines[1].split() == ["image", "0.0100", "0.0200", "0.0200"]
    assert len(lines) == 1 + len(measured().student)


@pytest.mark.slow
def test_a_network_learns_to_repeat_itself_in_two_evaluations():
    """In mean and in spread nearer to its teacher than the teacher's solver in as few."""
    from tadiff_rt.card import ModelCard
    from tadiff_rt.preprocess import DataContract

    contract = DataContract(size=8, spacing_mm=2.0)
    card = ModelCard(name="toy", trained_on="discs", data=contract, start_lam=-2.25)
    config = NetworkConfig(num_res_blocks=1, num_heads=1, channel_mult=(1,), attention_strides=())
    torch.manual_seed(0)
    teacher = TaDiffNet(config).eval()
    pass_noise_through(teacher)
    how = DistillConfig(
        evaluations=2, steps=150, learning_rate=3e-3, warmup_steps=10, ema_decay=0.97
    )
    discs = cases(8, 6)
    student = tadiff_train.distill.distill(teacher, card, discs[:4], how)
    found = measure(teacher, student, card, discs[4:], how, windows=4, samples=6)
    for name in ("image", "mean image", "spread"):
        assert found.student[name] < 0.7 * found.untrained[name], name
    assert abs(found.student["spread ratio"] - 1) < abs(found.untrained["spread ratio"] - 1)
