"""`tadiff-train fit` as a user calls it: presets, splits, ends, and what the documents say."""

import dataclasses
import inspect as signatures
import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

from tadiff_rt.case import ReadOptions
from tadiff_rt.console import run_app
from tadiff_rt.errors import UsageError
from tadiff_train.checkpoint import load_checkpoint
from tadiff_train.cli import app
from tadiff_train.commands.fit import fit as command
from tadiff_train.commands.fit_request import (
    SETTINGS,
    fractions_of,
    settings_of,
)
from tadiff_train.commands.reading import NAMES, read_options_of
from tadiff_train.data import split_of
from tadiff_train.fit import FitConfig, Interrupted, config_of
from tests.conftest import write_bids_case

DOCUMENT = Path(__file__).parents[2] / "docs" / "training.md"
SMALL = (
    "--size", "32", "--channel-mult", "1", "--steps", "2", "--batch-size", "2", "--device", "cpu",
    "--threads", "1", "--picture-every", "2",
)  # fmt: skip
ALL = ("--val-fraction", "0", "--test-fraction", "0")


@pytest.fixture(autouse=True)
def process_state():
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
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


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("cohort")
    write_bids_case(root)
    return root


def defaults() -> dict:
    """What the command gets when nothing but the folders is given."""
    parameters = signatures.signature(command).parameters.values()
    return {p.name: p.default for p in parameters}


def test_defaults_are_those_of_the_settings_and_the_readers():
    given = defaults()
    assert settings_of(given) == FitConfig()
    assert read_options_of(given) == ReadOptions()
    assert set(SETTINGS) == {f.name for f in dataclasses.fields(FitConfig)}
    assert {*NAMES, "leave_out"} == {f.name for f in dataclasses.fields(ReadOptions)}


def test_options_override_the_preset():
    given = defaults() | {"preset": "published", "loss": "calibrated", "steps": 9}
    expected = config_of("published", {"loss": "calibrated", "steps": 9})
    assert settings_of(given) == expected
    assert expected.target_slots == "published"


def test_the_split_is_that_of_evaluate():
    from tadiff_train.data.split import FRACTIONS, SALT

    given = defaults()
    assert fractions_of(given) == pytest.approx(dict(FRACTIONS))
    assert list(fractions_of(given)) == list(FRACTIONS)
    assert given["salt"] == SALT
    with pytest.raises(UsageError, match="TD3085"):
        fractions_of(given | {"val_fraction": 0.5, "test_fraction": 0.5})


def test_a_run_with_the_published_preset(run, cohort, tmp_path):
    out = tmp_path / "run"
    code, stdout, stderr = run(
        "fit", "--data", cohort, "-o", out, *SMALL, *ALL, "--preset", "published"
    )
    assert code == 0, stderr
    assert f"tadiff-export {out}" in stdout
    assert "patients: train 1, val 0, test 0" in stderr
    training = load_checkpoint(out)[1].training
    assert (training["loss"], training["ema_decay"]) == ("published", 0.0)
    assert [p.name for p in (out / "pictures").iterdir()] == ["step-0000002.png"]
    record = json.loads((out / "run.json").read_text())
    assert record["cohort"] == str(cohort)
    assert record["parts"] == {"train": ["sub-17"], "val": [], "test": []}
    assert record["command"]
    arguments = (
        "fit",
        "--data",
        cohort,
        "-o",
        out,
        *SMALL,
        *ALL,
        "--resume",
        "-q",
        "--errors=json",
    )
    assert run(*arguments, "--preset", "published")[0] == 0
    code, _, stderr = run(*arguments, "--errors=json")
    assert code == 2
    error = json.loads(stderr)
    assert error["code"] == "TD3084"
    assert "setting learning_rate" not in error["message"]
    assert "setting warmup_steps is 100, was 1000" in error["message"]


def test_nobody_to_train_on(run, cohort, tmp_path):
    halves = {"train": 0.5, "val": 0.5}  # a salt that takes the one patient for validation
    salt = next(k for k in range(40) if split_of("sub-17", halves, str(k)) == "val")
    options = ("--val-fraction", "0.5", "--test-fraction", "0", "--salt", salt, "-q")
    code, _, stderr = run("fit", "--data", cohort, "-o", tmp_path / "run", *SMALL, *options)
    assert code == 2
    assert "error TD3085: of 1 patients none is left to train on" in stderr


def test_a_folder_without_a_run_is_refused_before_anything_is_read(run, tmp_path):
    code, _, stderr = run(
        "fit", "--data", tmp_path / "nowhere", "-o", tmp_path, "--resume", *SMALL, "-q"
    )
    assert code == 4
    assert "error TD4019" in stderr


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_it_goes_on(
    run, cohort, tmp_path, monkeypatch, number, exit_code
):
    def interrupted(*arguments, **named):
        raise Interrupted(number, 7)

    monkeypatch.setattr("tadiff_train.fit.fit", interrupted)
    code, stdout, stderr = run("fit", "--data", cohort, "-o", tmp_path / "run", *SMALL, *ALL, "-q")
    assert (code, stdout) == (exit_code, "")
    assert stderr == (
        f"{number.name}: saved after step 7 of 2; go on with the same command and --resume\n"
    )


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--preset", "paper"), "TD3034"),
        (("--sources", "all"), "TD3034"),
        (("--target-slots", "paper"), "TD3080"),
        (("--device", "tpu"), "TD3081"),
        (("--precision", "fp16"), "TD3082"),
        (("--accumulate", "3"), "TD3039"),
        (("--val-fraction", "1"), "TD3000"),
    ],
)
def test_refusals(run, cohort, tmp_path, options, code):
    arguments = ("fit", "--data", cohort, "-o", tmp_path / "run", *SMALL, *ALL, "-q")
    got, _, stderr = run(*arguments, "--errors=json", *options)
    assert (got, json.loads(stderr)["code"]) == (2, code)


def command_lines() -> list[list[str]]:
    blocks = re.findall(r"^```\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [line for line in lines if "tadiff-train" in line and "fit" in line]


def test_command_lines_of_the_document_parse():
    """Parsed, not run."""
    lines = command_lines()
    assert len(lines) >= 3
    parser = typer.main.get_command(app)
    for line in lines:
        arguments = line[line.index("fit") + 1 :]
        with parser.commands["fit"].make_context("fit", arguments) as context:
            assert context.params["data"] == Path("cohort")
    text = DOCUMENT.read_text()
    known = {name for p in parser.commands["fit"].params for name in p.opts}
    named = set(re.findall(r"`(--[a-z-]+)", text))
    assert named <= known | {"--split"}


def test_the_table_of_presets_is_right():
    rows = re.findall(
        r"^\| `(--[a-z-]+)` \| (\S+) \| (\S+) \|", DOCUMENT.read_text(), re.MULTILINE
    )
    assert len(rows) == 8
    default, published = config_of("default", {}), config_of("published", {})
    for option, first, second in rows:
        name = option[2:].replace("-", "_")
        for config, cell in ((default, first), (published, second)):
            value = getattr(config, name)
            assert value == type(value)(cell), option


def test_help_does_not_load_torch():
    code = (
        "import sys\nfrom tadiff_train.cli import app\nfrom tadiff_rt.console import run_app\n"
        "try:\n    run_app(app, 'tadiff-train', ['fit', '--help'])\n"
        "except SystemExit:\n    pass\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--resume" in done.stdout
