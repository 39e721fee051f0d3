"""The command line itself: arguments, streams, signals, surroundings, and what every ending says.

Ids A01 to A11 number the cases of the project's corpus of command lines.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from tadiff_rt import commands
from tadiff_rt.cli import app
from tadiff_rt.console import run_app
from tadiff_rt.derivatives import expected_bytes
from tadiff_rt.errors import TadiffError

COMMAND = (sys.executable, "-c", "from tadiff_rt.cli import main; main()")


class Ending(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def codes(self) -> list[str]:
        return re.findall(r"TD\d{4}", self.err)


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """`run_app` takes signals over; the test run gets them back.

    Meanwhile they have their usual effect, here and in child processes: a shell starts what it
    runs in the background with SIGINT ignored, and children inherit that.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def tadiff_rt(capsys) -> Callable[..., Ending]:
    """Runs the command in this process."""

    def run(*argv: str) -> Ending:
        with pytest.raises(SystemExit) as ended:
            run_app(app, "tadiff-rt", list(argv))
        return Ending(ended.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def argv(bundle: Path, case_folder: Path, tmp_path: Path) -> list[str]:
    """A forecast of one slice, to be added to: of an option given twice the last one counts."""
    (tmp_path / "out").mkdir()
    request = "--day +90 --treatment TMZ --slices 5 --samples 1 --steps 1 --threads 1"
    inputs = ["--engine", str(bundle), "--case", str(case_folder)]
    return ["predict", *inputs, *request.split(), "-o", str(tmp_path / "out/forecast")]


def scenario_of(folder: Path) -> dict:
    """The entry of the only scenario in a result's report."""
    (entry,) = json.loads((folder / "forecast.json").read_text())["scenarios"].values()
    return entry


def files_in(folder: Path) -> list[Path]:
    return [path for path in (folder / "out/forecast").rglob("*") if path.is_file()]


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# Arguments.


@pytest.mark.parametrize("line", ["", "--errors=json", "--debug"])
def test_no_arguments_print_the_help_and_are_an_error(line, tadiff_rt):  # A01
    ending = tadiff_rt(*line.split())
    assert (ending.code, ending.out, ending.codes) == (2, "", [])
    assert ending.err.startswith("Usage: tadiff-rt [OPTIONS] COMMAND")
    assert "\\n" not in ending.err
    for part in ("predict", "demo", "info", "--errors=json", "--debug"):
        assert part in ending.err


@pytest.mark.parametrize(
    ("line", "what", "usage"),
    [
        ("nonsense", "No such command", "tadiff-rt"),
        ("--nonsense", "No such option", "tadiff-rt"),
        ("predict --nonsense", "No such option", "tadiff-rt predict"),
        ("predict", "Missing option", "tadiff-rt predict"),
        ("predict --day", "requires an argument", "tadiff-rt"),
        ("info", "Missing argument", "tadiff-rt info"),
        ("info a b", "extra argument", "tadiff-rt info"),
        ("demo --threads 0", "greater than or equal to 1", "tadiff-rt demo"),
        ("demo --threads 1000000000", "less than or equal to 1024", "tadiff-rt demo"),
        ("demo --threads two", "a valid integer", "tadiff-rt demo"),
        ("demo --errors=xml", "No such option", "tadiff-rt demo"),
    ],
)
def test_arguments_that_cannot_be_parsed(line, what, usage, tadiff_rt):  # A01
    ending = tadiff_rt(*line.split())
    assert (ending.code, ending.out, ending.codes) == (2, "", ["TD3000"])
    assert what in ending.err
    assert f"see `{usage} --help`" in ending.err
    assert len(ending.err.splitlines()) <= 3


@pytest.mark.parametrize("line", ["--help", "predict --help", "demo --help", "info --help"])
def test_help_goes_to_stdout(line, tadiff_rt):  # A01
    ending = tadiff_rt(*line.split())
    assert (ending.code, ending.err) == (0, "")
    assert ending.out.startswith("Usage: tadiff-rt")


def test_the_help_names_every_way_to_sample(tadiff_rt):
    shown = tadiff_rt("predict", "--help").out
    for option in (
        *("samples", "volume-ci", "max-samples", "steps", "solver", "grid", "round-times"),
        *("coherence", "latin", "seed", "slices", "workers", "threads", "work"),
    ):
        assert f"--{option} " in shown
    for word in ("auto", "unipc_2", "optimised"):
        assert word in shown


def test_version(tadiff_rt):  # A01
    code, out, err = tadiff_rt("--version")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"tadiff \d+\.\d+\.\d+\n", out)


USAGE = [
    *(("samples", value, "TD3015") for value in ("0", "-1", "1e9", "10001", "nan", "")),
    *(("steps", value, "TD3016") for value in ("0", "1001", "1000000000")),
    *(("seed", value, "TD3017") for value in ("-1", str(2**64), "abc")),
    *(("slices", value, "TD3018") for value in ("5:5", "-1", "half", "1:2:3")),
    ("slices", "10", "TD3019"),
    *(("day", value, "TD3011") for value in ("soon", "-5", "+1e3", "", "2026-01-01")),
    *(("samples", value, "TD3015") for value in ("Auto", "5.0")),
    *(("volume-ci", value, "TD3021") for value in ("10%", "0")),  # samples are fixed
    *(("solver", value, "TD3042") for value in ("euler", "")),
    *(("grid", value, "TD3041") for value in ("even", "logSNR")),
    ("grid", "optimised", "TD3056"),
    *(("coherence", value, "TD3048") for value in ("1", "-0.1", "nan")),
    *(("coherence", value, "TD3000") for value in ("half", "")),
    *(("workers", value, "TD3000") for value in ("0", "65", "two")),
    ("backend", "tpu", "TD3050"),
    ("nonfinite", "ignore", "TD3005"),
    ("affine", "both", "TD3005"),
    ("max-voxels", "0", "TD3000"),
    ("case", __file__, "TD3003"),
]


@pytest.mark.parametrize(("option", "value", "code"), USAGE)
def test_values_out_of_range_are_usage_errors(option, value, code, argv, tadiff_rt, tmp_path):
    """A02, A07: with the option and what it accepts."""
    ending = tadiff_rt(*argv, f"--{option}", value)
    assert (ending.code, ending.codes, ending.out) == (2, [code], "")
    assert "Traceback" not in ending.err
    assert f"--{option}" in ending.err or code in ("TD3003", "TD3048", "TD3050")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("line", "code", "what"),
    [
        ("--samples auto --volume-ci 0%", "TD3021", "0.1% to 100%, got '0%'"),
        ("--samples auto --volume-ci ten", "TD3021", "got 'ten'"),
        ("--samples auto --max-samples 0", "TD3015", "--max-samples must be a whole number"),
        ("--samples auto --latin", "TD3049", "--latin"),
        ("--samples 1 --latin", "TD3049", "--latin"),
        ("--samples 4 --latin --coherence 0.5", "TD3049", "cannot be combined"),
    ],
)
def test_options_that_do_not_fit_together(line, code, what, argv, tadiff_rt, tmp_path):
    ending = tadiff_rt(*argv, *line.split())
    assert (ending.code, ending.codes, ending.out) == (2, [code], "")
    assert what in ending.err
    assert names(tmp_path) == ["out"]


def test_a_range_is_named(argv, tadiff_rt):  # A02
    assert "from 1 to 10000, got '0'" in tadiff_rt(*argv, "--samples", "0").err
    assert "from 1 to 100000, got '0'" in tadiff_rt(*argv, "--steps", "0").err
    assert "from 1 to 1000, got '1001'" in tadiff_rt(*argv, "--steps", "1001").err
    assert "refuse, zero" in tadiff_rt(*argv, "--nonfinite", "none").err
    assert "agree, sform, qform" in tadiff_rt(*argv, "--affine", "").err


def test_a_refused_date_is_not_repeated(argv, tadiff_rt):
    assert "2026" not in tadiff_rt(*argv, "--day", "2026-03-01").err


def test_max_voxels_is_the_option_that_its_error_names(argv, tadiff_rt):
    """The images have 24 x 28 x 10 = 6720 voxels."""
    ending = tadiff_rt(*argv, "--max-voxels", "6719")
    assert ending.code == 3
    assert set(ending.codes) == {"TD3111"}
    assert "--max-voxels=N" in ending.err
    assert tadiff_rt(*argv, "--max-voxels=6720").code == 0


@pytest.mark.parametrize("engine", ["no/such.tadiff", "x" * 300, "", __file__])
def test_engines_that_are_none(engine, argv, tadiff_rt, tmp_path):  # A07
    for line in ([*argv, "--engine", engine], ["info", engine]):
        ending = tadiff_rt(*line)
        assert (ending.code, len(ending.codes), ending.out) == (5, 1, "")
    assert names(tmp_path) == ["out"]


def test_addresses_are_never_fetched(argv, tadiff_rt, tmp_path):
    for line in ([*argv, "--engine", "http://host/x.tadiff"], ["info", "https://host/x.tadiff"]):
        ending = tadiff_rt(*line)
        assert (ending.code, ending.codes, ending.out) == (2, ["TD3053"], "")
    assert names(tmp_path) == ["out"]


def never(*args: object, **options: object) -> None:
    raise AssertionError("this is too late to find it out")


def test_a_request_is_checked_before_anything_is_loaded(argv, tadiff_rt, tmp_path, monkeypatch):
    monkeypatch.setattr(commands.Forecaster, "load", never)
    monkeypatch.setattr(commands, "read_case", never)
    wrong = "--day soon --samples 0 --steps 100001 --seed -1 --slices x --treatment y"
    ending = tadiff_rt(*argv, *wrong.split())
    codes = ["TD3011", "TD3015", "TD3016", "TD3017", "TD3018", "TD3314"]
    assert (ending.code, ending.codes, ending.out) == (2, codes, "")
    assert names(tmp_path) == ["out"]


def test_what_draws_is_tried_before_anything_is_loaded(
    argv, demo_data, tadiff_rt, tmp_path, monkeypatch
):
    monkeypatch.setattr(commands.Forecaster, "load", never)
    monkeypatch.setattr(commands, "read_case", never)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for line in (argv, ["demo", "-o", str(tmp_path / "out/demo")]):
        ending = tadiff_rt(*line)
        assert (ending.code, ending.codes, ending.out) == (5, ["TD5008"], "")
        assert "tadiff[cpu]" in ending.err
    assert names(tmp_path / "out") == []


VOXELS = 24 * 28 * 10


@pytest.mark.parametrize("samples", ["1", "2"])
def test_a_result_that_cannot_fit_is_not_computed(samples, argv, tadiff_rt, tmp_path, monkeypatch):
    most = expected_bytes(VOXELS, 1, int(samples))
    free = most * 6 // 5
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    assert tadiff_rt(*argv, "--samples", samples).code == 0
    written = sum(path.stat().st_size for path in files_in(tmp_path))
    assert VOXELS < written < most
    shutil.rmtree(tmp_path / "out/forecast")

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free - 1))
    monkeypatch.setattr(commands.Forecaster, "compare", never)
    ending = tadiff_rt(*argv, "--samples", samples)
    assert (ending.code, ending.codes, ending.out) == (7, ["TD7002"], "")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(("samples", "most"), [("1", 1), ("auto", 64)])
def test_a_demo_that_cannot_fit_is_not_computed(
    samples, most, demo_data, tadiff_rt, tmp_path, monkeypatch
):
    scenarios = len(commands.DEMO_DAYS) * len(commands.DEMO_TREATMENTS)
    free = (expected_bytes(VOXELS, scenarios, most) + commands.REPORT_BYTES) * 6 // 5
    out = ["-o", str(tmp_path / "demo"), "--samples", samples, "--threads", "1"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free - 1))
    ending = tadiff_rt("demo", *out)
    assert (ending.code, ending.codes) == (7, ["TD7002"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    monkeypatch.setattr(commands.Forecaster, "compare", never)
    assert tadiff_rt("demo", *out).code == 70


def test_which_sessions_are_used_is_said_once(argv, tadiff_rt, case_folder):
    """Four sessions."""
    said = [line for line in tadiff_rt(*argv).err.splitlines() if "of 4 sessions" in line]
    assert said == ["note: the last 3 of 4 sessions are used: day 30, day 75, day 160"]


# Results.


def test_one_sample_has_no_spread_and_says_why(argv, tadiff_rt, tmp_path):  # A03
    ending = tadiff_rt(*argv)
    assert ending.code == 0
    assert "interval" not in ending.out
    folder = tmp_path / "out/forecast"
    assert scenario_of(folder)["volume_ml"]["interval"] == [None, None]
    assert not [name for name in names(folder) if "std" in name]
    assert "nan" not in ending.out.lower() + (folder / "forecast.json").read_text().lower()


@pytest.mark.parametrize("inside", ["", "work"])
def test_a_work_folder_in_the_result_is_refused_before_anything_runs(
    inside, argv, tadiff_rt, tmp_path
):
    ending = tadiff_rt(*argv, "--work", str(tmp_path / "out/forecast" / inside))
    assert (ending.code, ending.codes) == (2, ["TD3055"])
    assert not (tmp_path / "out/forecast").exists()


def test_two_samples_have_a_spread(argv, tadiff_rt, tmp_path):
    ending = tadiff_rt(*argv, "--samples", "2", "-q")
    assert (ending.code, ending.err) == (0, "")
    assert "90% interval" in ending.out
    anat = tmp_path / "out/forecast/sub-17/ses-day250/anat"
    assert "sub-17_ses-day250_desc-predictedstdTMZ_FLAIR.nii.gz" in names(anat)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "--samples auto --volume-ci 0.1% --max-samples 7",
            {"samples": 7, "volume_ci": 0.001, "network_evaluations": 7},
        ),
        ("--samples auto --volume-ci 1", {"samples": 6, "volume_ci": 1.0}),
        ("--solver unipc_2 --steps 3", {"solver": "unipc_2", "steps": 3}),
        ("--solver dpmpp_2s --steps 3", {"solver": "dpmpp_2s", "network_evaluations": 3}),
        ("--solver ddpm --grid trailing --steps 2", {"grid": "trailing", "times": [1000, 500]}),
        ("--steps 4 --round-times", {"steps": 4}),
        ("--coherence 0.9", {"coherence": 0.9, "latin": False}),
        ("--samples 2 --latin", {"latin": True, "coherence": 0.0}),
        ("--samples 5 --workers 2", {"samples": 5, "batch": 4}),
    ],
)
def test_every_way_to_sample_ends_in_a_result(line, said, argv, tadiff_rt, tmp_path):
    ending = tadiff_rt(*argv, *line.split())
    assert ending.code == 0
    sampling = scenario_of(tmp_path / "out/forecast")["sampling"]
    assert sampling.items() >= said.items()
    if "--round-times" in line:
        times = sampling["times"]
        assert times == [round(t) for t in times]
        assert len(set(times)) == 4


def test_rounded_times_are_asked_for(argv, tadiff_rt, tmp_path):
    """Without the option they are fractional."""
    assert tadiff_rt(*argv, "--steps", "4").code == 0
    times = scenario_of(tmp_path / "out/forecast")["sampling"]["times"]
    assert times != [round(t) for t in times]


def test_optimised_levels_are_taken_from_the_bundle(argv, bundle, tadiff_rt, tmp_path):
    held = tmp_path / "held.tadiff"
    shutil.copytree(bundle, held)
    manifest = json.loads((held / "manifest.json").read_text())
    found = {"distance": {}, "spread": {}, "searched_on": "nothing", "start_lam": None}
    manifest["optimised"] = [{"solver": "ddim", "times": [1000.0, 431.5, 3.25], **found}]
    (held / "manifest.json").write_text(json.dumps(manifest))
    line = [*argv, "--engine", str(held), "--grid", "optimised", "--solver", "ddim"]
    assert tadiff_rt(*line, "--steps", "3").code == 0
    sampling = scenario_of(tmp_path / "out/forecast")["sampling"]
    assert sampling["times"] == [1000.0, 431.5, 3.25]
    ending = tadiff_rt(*line, "--steps", "4", "--overwrite")
    assert (ending.code, ending.codes) == (2, ["TD3056"])
    assert "it holds ddim with 3 steps" in ending.err
    assert "certify BUNDLE --optimise --solver ddim --steps 4" in ending.err


def test_a_work_folder_is_used_and_removed(argv, tadiff_rt, tmp_path, monkeypatch):
    work = tmp_path / "work"
    held = []

    def write(*args: object, **options: object) -> dict:
        held.extend(names(work))
        return {}

    monkeypatch.setattr(commands, "write_comparison", write)
    assert tadiff_rt(*argv, "--work", str(work)).code == 0
    assert held == ["journal.json", "slice-0005.npz"]
    assert not work.exists()


@pytest.mark.parametrize(
    ("place", "code", "exit_code"),
    [
        ("file", "TD8001", 8),
        ("file/below", "TD8003", 8),
        ("mine", "TD3055", 2),
        ("x" * 300, "TD8006", 8),
        ("/proc/work", "TD8003", 8),
    ],
)
def test_places_where_no_work_can_be_kept(place, code, exit_code, argv, tadiff_rt, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.doc").touch()
    before = names(tmp_path)
    ending = tadiff_rt(*argv, "--work", str(tmp_path / place))
    assert (ending.code, ending.codes, ending.out) == (exit_code, [code], "")
    assert names(tmp_path) == before


def test_workers_share_the_cores(argv, tadiff_rt, tmp_path, monkeypatch):
    """Unless threads are asked for."""
    monkeypatch.setattr(commands, "available_cores", lambda: 5)
    unasked = argv[: argv.index("--threads")] + argv[argv.index("--threads") + 2 :]
    for line, threads in (
        ([*unasked, "--workers", "2"], 2),
        ([*unasked, "--workers", "8"], 1),
        ([*argv, "--workers", "2", "--threads", "3"], 3),
    ):
        assert tadiff_rt(*line, "--overwrite").code == 0
        report = json.loads((tmp_path / "out/forecast/forecast.json").read_text())
        assert report["model"]["backend"].endswith(f", {threads} threads")


def test_stdout_holds_the_result_and_stderr_the_rest(argv, tadiff_rt, tmp_path):
    ending = tadiff_rt(*argv)
    first, last = ending.out.splitlines()
    assert re.fullmatch(
        r"day 250, TMZ: tumour \d+\.\d ml in 1 forecast slice; predicted, not acquired, .*", first
    )
    assert last.endswith(f"start with {tmp_path}/out/forecast/overview.png")
    assert "forecast: 100 %" in ending.err
    assert "\r" not in ending.err + ending.out


@pytest.mark.parametrize(
    ("out", "code", "exit_code"),
    [
        ("{tmp}/file", "TD8004", 8),
        ("{tmp}/full", "TD8001", 8),
        ("{case}", "TD8005", 8),
        ("{case}/forecast", "TD8005", 8),
        ("{bundle}/forecast", "TD8005", 8),
        ("/", "TD8005", 8),
        (".", "TD8005", 8),
        ("{tmp}/missing/forecast", "TD8003", 8),
        ("{tmp}/file/forecast", "TD8003", 8),
        ("/proc/forecast", "TD8003", 8),
        ("{tmp}/" + "x" * 200, "TD8006", 8),
        ("{tmp}/" + "x/" * 2500, "TD8006", 8),
        ("-", "TD8006", 8),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_places_where_no_result_can_go(
    out, code, exit_code, argv, tadiff_rt, tmp_path, bundle, case_folder
):  # A04
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.doc").touch()
    before = names(tmp_path), names(case_folder), names(bundle)
    place = out.format(tmp=tmp_path, case=case_folder, bundle=bundle)
    for flag in ([], ["--overwrite"]):
        ending = tadiff_rt(*argv, "-o", place, *flag)
        assert (ending.code, ending.codes, ending.out) == (exit_code, [code], "")
        assert "Traceback" not in ending.err
    assert (names(tmp_path), names(case_folder), names(bundle)) == before


def test_relative_paths_and_a_trailing_slash(argv, tadiff_rt, tmp_path, case_folder, monkeypatch):
    monkeypatch.chdir(case_folder.parent)
    out = os.path.relpath(tmp_path / "out/forecast")
    assert tadiff_rt(*argv, "--case", "sub-17/", "-o", out + "/").code == 0
    assert "forecast.json" in names(tmp_path / "out/forecast")
    ending = tadiff_rt(*argv, "-o", out)
    assert (ending.code, ending.codes) == (8, ["TD8001"])
    assert tadiff_rt(*argv, "--seed", "1", "-o", out, "--overwrite").code == 0
    report = json.loads((tmp_path / "out/forecast/forecast.json").read_text())
    assert scenario_of(tmp_path / "out/forecast")["sampling"]["seed"] == 1
    files = ["forecast.json", *report["files"]]
    held = {p.relative_to(tmp_path / "out/forecast").as_posix() for p in files_in(tmp_path)}
    assert held == set(files)


def test_the_manifest_is_written_last(argv, tadiff_rt, tmp_path):
    assert tadiff_rt(*argv).code == 0
    written = {path.name: path.stat().st_mtime_ns for path in files_in(tmp_path)}
    assert max(written, key=lambda name: written[name]) == "forecast.json"


def test_info_describes_a_bundle(bundle, tadiff_rt):
    code, out, err = tadiff_rt("info", str(bundle))
    assert (code, err) == (0, "")
    assert "tiny: trained on nothing" in out
    manifest = json.loads(tadiff_rt("info", str(bundle), "--json").out)
    assert manifest["card"] == json.loads((bundle / "manifest.json").read_text())["card"]


@pytest.fixture
def demo_data(bundle: Path, case_folder: Path, tmp_path: Path, monkeypatch) -> Path:
    """The small bundle and case in the place of the installed ones, which take minutes."""
    package = tmp_path / "package"
    shutil.copytree(bundle, package / "data" / commands.DEMO_BUNDLE)
    shutil.copytree(case_folder.parent, package / "data" / commands.DEMO_CASE)
    monkeypatch.setattr(commands, "files", lambda name: package)
    return package / "data"


def test_the_demo_forecasts_two_treatments(demo_data, tadiff_rt, tmp_path):
    ending = tadiff_rt("demo", "-o", str(tmp_path / "demo"), "--samples", "1", "--threads", "1")
    assert ending.code == 0
    assert [line.split(":")[0] for line in ending.out.splitlines()[:4]] == [
        f"day {day}, {name}" for day in (220, 280) for name in commands.DEMO_TREATMENTS
    ]
    made = names(tmp_path / "demo")
    for name in ("overview.png", "forecast.json", "report.html", "volumes.tsv"):
        assert name in made
    again = tadiff_rt("demo", "-o", str(tmp_path / "demo"), "--samples", "1")
    assert (again.code, again.codes) == (8, ["TD8001"])


def test_a_demo_without_data_says_so(demo_data, tadiff_rt, tmp_path):
    shutil.rmtree(demo_data)
    ending = tadiff_rt("demo", "-o", str(tmp_path / "demo"))
    assert (ending.code, ending.codes, ending.out) == (5, ["TD5014"], "")
    assert not (tmp_path / "demo").exists()


# Errors.


def test_errors_as_json(argv, tadiff_rt, tmp_path):
    argv += ["--day", "1101", "--errors=json"]
    ending = tadiff_rt(*argv)
    found = [json.loads(line) for line in ending.err.splitlines()]
    assert [entry["code"] for entry in found] == ["TD3313", "TD3313"]
    assert [entry["exit"] for entry in found] == [3, 3] == [ending.code] * 2
    assert all(set(e) == {"code", "message", "exit", "where", "fix"} for e in found)
    assert json.loads(tadiff_rt("--errors=json", "nonsense").err)["code"] == "TD3000"


def test_debug_adds_a_traceback(argv, tadiff_rt):
    assert "Traceback" in tadiff_rt(*argv, "--day", "9", "--debug").err


def test_escapes_do_not_reach_the_terminal(argv, tadiff_rt, tmp_path):
    folder = tmp_path / "\x1b[2J\nsub-17"
    ending = tadiff_rt(*argv, "--case", str(folder))
    assert ending.codes == ["TD3122"]
    assert "\x1b" not in ending.err
    assert r"\x1b[2J\nsub-17" in ending.err


def test_a_bug_leaves_a_record_without_values(argv, tadiff_rt, tmp_path, monkeypatch):
    def fail(*args: object, **options: object) -> None:
        raise LookupError("Doe^Jane")

    monkeypatch.setattr(commands, "write_comparison", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ending = tadiff_rt(*argv)
    assert (ending.code, ending.codes, ending.out) == (70, ["TD7000"], "")
    assert "Traceback" not in ending.err
    (record,) = tmp_path.glob("tadiff-crash-*.txt")
    assert str(record) in ending.err
    assert "LookupError" in record.read_text()
    assert "in fail" in record.read_text()
    assert "Doe" not in ending.err + record.read_text()
    assert names(tmp_path / "out") == []

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    ending = tadiff_rt(*argv)
    assert (ending.code, ending.codes) == (70, ["TD7000"])
    assert "Doe" not in ending.err


@pytest.mark.parametrize("error", [MemoryError, RecursionError, TadiffError("TD9999", "x")])
def test_an_error_while_writing_removes_everything(error, argv, tadiff_rt, tmp_path, monkeypatch):
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("tadiff_rt.derivatives.comparison_png", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ending = tadiff_rt(*argv)
    assert ending.code == (7 if error is MemoryError else 70)
    assert names(tmp_path / "out") == []


# The process and its surroundings.


def started(argv: list[str], **options: object) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*COMMAND, *argv], **(pipes | options))


def run(argv: list[str], **options: object) -> Ending:
    process = started(argv, **options)
    out, err = process.communicate(timeout=120)
    return Ending(process.returncode, out or "", err or "")


def shell(line: str, argv: list[str]) -> Ending:
    """`line` of a shell in which `$@` is the command."""
    done = subprocess.run(
        ["bash", "-c", line, "bash", *COMMAND, *argv], capture_output=True, text=True, timeout=120
    )
    return Ending(done.returncode, done.stdout, done.stderr)


LONG = ["--samples", "40", "--steps", "100"]
"""Ten batches: a tenth is reached soon, and the end is far."""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
@pytest.mark.parametrize("moment", ["folder", "sampling"])
def test_a_signal_ends_the_run_and_leaves_nothing(moment, number, code, argv, tmp_path):  # A10
    process = started([*argv, *LONG])
    if moment == "folder":
        deadline = time.monotonic() + 60
        while not names(tmp_path / "out"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    else:
        assert process.stderr.readline().startswith("forecast: 10 %")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert "Traceback" not in err
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_that_a_library_turns_into_its_own_error(
    number, code, argv, tadiff_rt, tmp_path, monkeypatch
):
    """As onnxruntime does while it is imported."""

    def interrupted(*args: object, **options: object) -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    monkeypatch.setattr(commands, "write_comparison", interrupted)
    ending = tadiff_rt(*argv)
    assert (ending.code, ending.codes, ending.out) == (code, [], "")
    assert names(tmp_path / "out") == []


def test_a_killed_run_is_cleaned_up_by_the_next(argv, tmp_path):
    process = started([*argv, *LONG])
    deadline = time.monotonic() + 60
    while not names(tmp_path / "out"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert names(tmp_path / "out") != []
    assert run(argv).code == 0
    assert {name.split("/")[0] for name in names(tmp_path / "out")} == {"forecast"}


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('"$@" >&-', 0),
        ('"$@" 2>&-', 0),
        ('"$@" >&- 2>&- <&-', 0),
        ('"$@" | true; exit ${PIPESTATUS[0]}', 0),
        ('"$@" 2>&1 >/dev/null | true; exit ${PIPESTATUS[0]}', 0),
        ('"$@" 2>/dev/full', 0),
        ('"$@" >/dev/full', 8),
    ],
)
def test_a_result_does_not_need_its_streams(line, code, argv, tmp_path):  # A05
    ending = shell(line, argv)
    assert ending.code == code
    assert ending.codes == (["TD8009"] if code else [])
    assert "Traceback" not in ending.err
    assert "Exception ignored" not in ending.err
    assert "forecast.json" in names(tmp_path / "out/forecast")


@pytest.mark.parametrize("line", ["--help", "--version", "info {bundle} --json"])
def test_a_reader_that_has_gone_is_no_error(line, bundle):  # A05
    reader, writer = os.pipe()
    os.close(reader)
    ending = run(line.format(bundle=bundle).split(), stdout=writer)
    os.close(writer)
    assert (ending.code, ending.err) == (0, "")


@pytest.mark.parametrize(
    "changes",
    [
        {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "COLUMNS": "1", "TMPDIR": "/no/such"},
        {"HOME": None, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONOPTIMIZE": "2"},
        {"PYTHONWARNINGS": "error", "PYTHONIOENCODING": "latin-1:strict", "TERM": "dumb"},
    ],
    ids=["ascii", "no-home-optimised", "warnings-are-errors"],
)
def test_surroundings_do_not_matter(changes, argv, tmp_path):
    """A08, A09; the name of the result is not ASCII, and not UTF-8 either."""
    env = {**os.environ, **changes}
    env = {name: value for name, value in env.items() if value is not None}
    out = os.fsdecode(bytes(tmp_path / "out") + b"/\xc3\xa4 \xff")
    ending = run([*argv, "-o", out], env=env)
    assert ending.code == 0, ending.err
    assert "Traceback" not in ending.err
    assert (Path(out) / "forecast.json").is_file()
    assert "overview.png" in ending.out


def test_a_backend_that_matplotlib_does_not_know(argv, tmp_path):
    """Found before the bundle is looked at, which is none."""
    env = {**os.environ, "MPLBACKEND": "Qt9Agg"}
    ending = run([*argv, "--engine", str(tmp_path)], env=env)
    assert (ending.code, ending.codes, ending.out) == (2, ["TD3054"], "")
    assert "'Qt9Agg'" in ending.err
    assert "unset the environment variable MPLBACKEND" in ending.err
    assert run(argv, env={**env, "MPLBACKEND": "Agg"}).code == 0


def test_a_folder_that_is_gone_is_an_output_error(argv, tmp_path):  # A11
    gone = tmp_path / "gone"
    ending = shell(f'mkdir {gone}; cd {gone}; rmdir {gone}; "$@"', [*argv, "-o", "forecast"])
    assert (ending.code, ending.codes, ending.out) == (8, ["TD8003"], "")
    assert "Traceback" not in ending.err


def test_few_open_files_are_enough(argv, tmp_path):  # A11
    assert shell('ulimit -n 64; "$@"', argv).code == 0
