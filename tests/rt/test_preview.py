"""What the command line understands: words, presets, checks and estimates."""

import json
import re
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.peak import peak_of
from tadiff_rt import latin, noise, preview
from tadiff_rt.certify.analytic import STANDARD_DEVIATIONS, gaussian_run
from tadiff_rt.cli import app
from tadiff_rt.cli.words import spread, summary
from tadiff_rt.commands import DEMO_BUNDLE, DEMO_CASE
from tadiff_rt.forecast import Forecaster, make_ready
from tadiff_rt.html import report_html
from tadiff_rt.html.page import page_memory_bytes
from tadiff_rt.html.viewer import viewer_data
from tadiff_rt.presets import DEFAULT, PRESETS
from tadiff_rt.preview import duration, estimate, rows_of_last_batch
from tadiff_rt.readers import read_case
from tadiff_rt.request import PredictRequest
from tadiff_rt.schedule import NoiseSchedule
from tadiff_rt.solvers import make_plan
from tests.rt.comparisons import made_up_comparison


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--day +30 +90 -o x", "--day +30 --day +90 -o x"),
        ("--day=+30 +90 --treatment TMZ", "--day=+30 --day +90 --treatment TMZ"),
        ("--treatment TMZ CRT none", "--treatment TMZ --treatment CRT --treatment none"),
        ("--day +30 --day 90", "--day +30 --day 90"),
        ("--out x y --day 5", "--out x y --day 5"),
        ("--day -5 7", "--day -5 7"),
        ("--day", "--day"),
        ("", ""),
    ],
)
def test_an_option_takes_every_word_up_to_the_next(line, expected):
    assert spread(line.split()) == expected.split()


@pytest.mark.parametrize("name", PRESETS)
def test_what_a_preset_says_of_itself_is_true(name):
    """Closed form, from pure noise, at every deviation that a certificate tests."""
    preset = PRESETS[name]
    plan = make_plan(NoiseSchedule.linear(1000), preset.solver, preset.steps, "logsnr")
    kept = [100 * gaussian_run(plan, std).spread_ratio for std in STANDARD_DEVIATIONS]
    assert preset.spread_percent == (round(min(kept)), round(max(kept)))
    assert plan.nfe == preset.steps


def test_the_help_says_what_presets_are_worth():
    said = " ".join(CliRunner().invoke(app, ["predict", "--help"]).output.split())
    for preset in PRESETS.values():
        assert str(preset) in said


def settled(**fields):
    request = PredictRequest(days=["+9"], treatments=["TMZ"], **fields).settled(None)
    return request.steps, request.solver, request.grid


def test_a_preset_settles_what_is_left_open():
    assert settled() == settled(preset=DEFAULT) == (20, "dpmpp_2m", "logsnr")
    assert settled(preset="fast") == (8, "unipc_2", "logsnr")
    assert settled(preset="reference") == (50, "dpmpp_2m", "logsnr")
    assert settled(preset="fast", steps=12, solver="ddim") == (12, "ddim", "logsnr")


@pytest.fixture
def lines(bundle, case_folder, tmp_path):
    """Runs predict with these words; (exit code, stdout)."""
    said = ["predict", "--engine", str(bundle), "--case", str(case_folder), "--threads", "1"]

    def run(line):
        line = line.replace("OUT", str(tmp_path / "out")).replace("CASE", str(case_folder))
        words = line.split()
        ended = CliRunner().invoke(app, [*said, *words])
        return ended

    return run


REQUEST = "--day +30 +90 --treatment TMZ none --slices 4:6 --samples 2 --steps 2"


@pytest.mark.parametrize("more", ["", "-o OUT", "-o OUT --work OUT/../work"])
@pytest.mark.parametrize("stop", ["--check", "--dry-run"])
def test_nothing_is_written_that_was_not_asked_for(lines, tmp_path, stop, more):
    ended = lines(f"{REQUEST} {stop} {more}")
    assert ended.exit_code == 0, ended.output
    assert "nothing was written" in ended.output
    assert list(tmp_path.iterdir()) == []


def test_a_check_says_what_was_understood(lines, case_folder):
    case = read_case(case_folder)
    output = lines(f"{REQUEST} --check").output
    rows = [line.split() for line in output.splitlines()[1 : 1 + len(case.sessions)]]
    assert [row[:3] for row in rows] == [[s.name, str(s.day), s.treatment] for s in case.sessions]
    assert [row[3] for row in rows] == ["no"] * (len(rows) - 3) + ["yes"] * 3
    masks = [s.mask for s in case.sessions[-3:]]
    assert output.count(" ml") == sum(mask is not None for mask in masks)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("--day 1", "TD3312"),
        ("--day +30 +30", "TD3067"),
        ("--treatment surgery", "TD3314"),
        ("--slices 900:901", "TD30"),
        ("-o /", "TD8005"),
        ("--fast --reference", "TD3068"),
        ("--samples 0", "TD3015"),
        ("--work CASE/work", "TD3055"),
        ("-o OUT --work OUT/work", "TD3055"),
        ("--backend none", "TD3050"),
        ("--backend onnxruntime:fp16", "TD3061"),
    ],
)
def test_a_check_finds_what_a_forecast_would(lines, change, code):
    ended = lines(f"{REQUEST} {change} --check")
    assert ended.exit_code != 0
    assert code in str(ended.exception)


def test_a_result_needs_a_place(lines):
    assert "TD3000" in str(lines(REQUEST).exception)


def test_a_dry_run_counts(lines):
    output = lines(f"{REQUEST} --dry-run").output
    assert "4 scenarios, 2 samples of 2 evaluations, 2 slices (4 to 5)" in output
    assert re.search(r"\n32 network evaluations, 4 at a time on onnxruntime", output)


def test_json_of_checks(lines, case_folder):
    found = json.loads(lines(f"{REQUEST} --check --json").output)
    assert [s["treatment"] for s in found["scenarios"]] == ["TMZ", "none"] * 2
    assert found["slices"] == [4, 5]
    assert "estimate" not in found
    costs = json.loads(lines(f"{REQUEST} --dry-run --json").output)["estimate"]
    assert costs["network_evaluations"] == 32
    assert costs["memory_bytes"] > 1e7
    assert case_folder.name not in json.dumps(found)


def test_json_of_a_result_is_its_report(lines, tmp_path):
    ended = lines(f"{REQUEST} -o OUT --json -q")
    printed = json.loads(ended.stdout)
    kept = json.loads((tmp_path / "out/forecast.json").read_text())
    kept.pop("files")
    assert printed == kept


def test_an_estimate_grows_as_the_work_does(bundle, case_folder):
    forecaster, case = Forecaster.load(bundle, threads=1), read_case(case_folder)

    def costs(**change):
        asked = {"days": ["+30"], "treatments": ["TMZ"], "slices": "4:6", "steps": 2, "samples": 4}
        ready = make_ready(forecaster.bundle, case, PredictRequest(**{**asked, **change}))
        return estimate(forecaster, ready, 10**6)

    one = costs()
    assert (one.network_evaluations, one.result_bytes, one.bucket) == (16, 10**6, 4)
    for change, factor in (
        ({"days": ["+30", "+60", "+90"]}, 3),
        ({"treatments": ["TMZ", "none"]}, 2),
        ({"samples": 8}, 2),
        ({"steps": 6}, 3),
        ({"slices": "4:8"}, 2),
    ):
        assert costs(**change).network_evaluations == factor * one.network_evaluations
    many = costs(days=["+30", "+60", "+90"], treatments=["TMZ", "CRT", "none"])
    voxels = np.prod(case.sessions[-1].images["t1"].data.shape)
    assert many.memory_bytes - one.memory_bytes >= 8 * 7 * 4 * voxels


@pytest.mark.parametrize(
    ("samples", "partial", "resumable", "batches"),
    # 6 rows a scenario are two batches of 4, not one and a half; 4 are one, if none is left out.
    [(3, False, False, 2), (3, True, False, 2), (2, True, True, 1), (2, False, True, 1)],
)
def test_batches_are_counted_by_scenario(
    bundle, case_folder, monkeypatch, samples, partial, resumable, batches
):
    monkeypatch.setattr(preview, "_seconds_a_call", lambda *given: 1.0)
    forecaster, case = Forecaster.load(bundle, threads=1), read_case(case_folder)
    asked = {"days": ["+30", "+60"], "treatments": ["TMZ"], "slices": "4:6", "steps": 5}
    ready = make_ready(forecaster.bundle, case, PredictRequest(**asked, samples=samples))
    forecaster.backend.partial = partial
    assert estimate(forecaster, ready, 0, resumable=resumable).seconds == batches * 2 * 5


def test_as_many_calls_are_timed_at_once_as_a_forecast_makes(bundle, case_folder):
    forecaster, case = Forecaster.load(bundle, threads=1), read_case(case_folder)
    request = PredictRequest(days=["+9"], treatments=["TMZ"], samples=4)
    ready = make_ready(forecaster.bundle, case, request)
    together, denoise = threading.Barrier(3), forecaster.backend.denoise

    def meeting(*given):
        together.wait(timeout=20)
        return denoise(*given)

    forecaster.backend.denoise = meeting
    assert estimate(forecaster, ready, 0, workers=3).seconds > 0


@pytest.mark.parametrize(
    ("samples", "slices", "how", "resumable", "rows"),
    [
        (4, "4:7", {}, False, 0),
        (5, "4:6", {}, False, 2),
        (3, "4", {}, False, 3),
        (2, "4:6", {}, True, 2),  # one slice of two is left
        (5, "4:8", {}, True, 3),  # three of four
        ("auto", "4:6", {"volume_ci": "10%", "max_samples": 8}, False, 3),
    ],
)
def test_how_many_rows_the_last_batch_has_at_most(
    bundle, case_folder, samples, slices, how, resumable, rows
):
    asked = {"days": ["+9"], "treatments": ["TMZ"], "slices": slices, "samples": samples}
    forecaster, case = Forecaster.load(bundle, threads=1), read_case(case_folder)
    ready = make_ready(forecaster.bundle, case, PredictRequest(**asked, **how))
    assert rows_of_last_batch(ready, 4, resumable=resumable) == rows


@pytest.mark.parametrize(
    ("slices", "partial", "rows"),
    [("4:6", True, {4, 2}), ("4", True, {3}), ("4:8", True, {4}), ("4:6", False, {4})],
)
def test_batches_are_tried_as_a_forecast_has_them(bundle, case_folder, slices, partial, rows):
    """A batch that does not fill the bucket runs in a session of its own, with its own memory."""
    forecaster, case = Forecaster.load(bundle, threads=1), read_case(case_folder)
    request = PredictRequest(days=["+9"], treatments=["TMZ"], slices=slices, samples=3, steps=1)
    ready = make_ready(forecaster.bundle, case, request)
    denoise, tried = forecaster.backend.denoise, set()

    def noted(sources, x, shifts):
        assert len(sources) == len(x)
        tried.add(len(x))
        return denoise(sources, x, shifts)

    forecaster.backend.denoise, forecaster.backend.partial = noted, partial
    assert estimate(forecaster, ready, 0).seconds > 0
    assert tried == rows


def test_noise_that_is_kept_is_counted(bundle, case_folder):
    forecaster, case = Forecaster.load(bundle, threads=1), read_case(case_folder)
    asked = {"days": ["+9"], "treatments": ["TMZ"], "samples": 100}
    needed = [
        preview._bytes_to_come(
            make_ready(forecaster.bundle, case, PredictRequest(**asked, **how)), 4, 1
        )
        for how in ({}, {"coherence": 0.9}, {"latin": True})
    ]
    kept = noise._cached_normal.cache_parameters()["maxsize"]
    assert needed[1] - needed[0] == kept * 3 * 32 * 32 * 4
    assert needed[2] - needed[0] >= latin._strata(0, 0, 100, 3 * 32 * 32 // 4).nbytes


CHILD = "import sys; sys.path[:0] = {path}; from tadiff_rt.preview import peak_bytes\n"


def own_peak_bytes(more: str) -> int:
    """What a process that did no more than `more` says of itself."""
    text = CHILD.format(path=sys.path) + more + "\nprint(peak_bytes())"
    return int(subprocess.check_output([sys.executable, "-c", text], text=True))


def test_the_peak_is_that_of_the_process_not_of_its_parent():
    mine = np.ones(50_000_000)  # 400 MB
    nothing = own_peak_bytes("")
    assert 20e6 < nothing < mine.nbytes
    filled = own_peak_bytes("import numpy; numpy.ones(20_000_000).sum()")  # and freed
    assert 150e6 < filled - nothing < 200e6


def traced_peak(work, *given) -> int:
    tracemalloc.start()
    try:
        work(*given)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_page_takes_no_more_memory_than_it_says():
    days = (84, 144, 234)
    comparison = made_up_comparison((72,) * 3, days=days, treatments=("TMZ", "none"), noise=0.3)
    report_html(comparison)  # what is loaded once
    said = page_memory_bytes(comparison.first.tumour_probability.size, len(days))
    assert traced_peak(report_html, comparison) <= said


def test_of_many_plans_a_page_keeps_no_voxels_but_one_a_day():
    one, three = (
        made_up_comparison((72,) * 3, days=(84,), treatments=plans, noise=0.3)
        for plans in (("none",), ("CRT", "TMZ", "none"))
    )
    budget = 10**9
    texts = [
        sum(len(entry["gzip"]) for entry in viewer_data(comparison, budget)["volumes"].values())
        for comparison in (one, three)
    ]
    more = traced_peak(viewer_data, three, budget) - traced_peak(viewer_data, one, budget)
    # 2 x 7 volumes of them, and 4 of differences, would be.
    assert more - (texts[1] - texts[0]) < one.first.tumour_probability.size


def test_a_page_is_counted_where_it_is_asked_for(bundle, case_folder, monkeypatch):
    monkeypatch.setattr(preview, "_seconds_a_call", lambda *given: 1.0)
    forecaster, case = Forecaster.load(bundle, threads=1), read_case(case_folder)
    request = PredictRequest(days=["+9", "+20"], treatments=["TMZ"], samples=4)
    ready = make_ready(forecaster.bundle, case, request)
    without, paged = (preview._bytes_to_come(ready, 4, 1, page=page) for page in (False, True))
    voxels = case.sessions[-1].images["t1"].data.size
    # A mapped and a written volume take 18 at most here, and are no more by then.
    assert 0 < page_memory_bytes(voxels, 2) - (paged - without) <= 40 * 4 * voxels
    said = [estimate(forecaster, ready, 0, page=page).memory_bytes for page in (False, True)]
    assert said[1] - said[0] >= paged - without


MEASURED = """
import sys
from pathlib import Path
from tadiff_rt.case import ReadOptions
from tadiff_rt.commands import Running, check_case, estimate_request, predict_to_folder
from tadiff_rt.request import PredictRequest

bundle, case, out = map(Path, sys.argv[1:4])
request = PredictRequest(
    days=["+30", "+60"], treatments=["TMZ", "none"], samples=sys.argv[4], steps=1, slices="4:7"
)
running = Running(threads=1, workers=2)
ready = check_case(bundle, case, None, request, ReadOptions(), running=running)
said = estimate_request(bundle, ready, request, running, report=True).memory_bytes
predict_to_folder(bundle, case, out, request, options=ReadOptions(), running=running, report=True)
print(said)
"""


@pytest.mark.parametrize(
    ("data", "samples"),
    [
        ("tiny", 4),
        pytest.param("demo", 4, marks=pytest.mark.slow),
        pytest.param("demo", 5, marks=pytest.mark.slow),  # a last batch of three rows
    ],
)
def test_a_forecast_takes_no_more_memory_than_was_said(
    bundle, case_folder, tmp_path, data, samples
):
    demo = Path(preview.__file__).parent / "data"
    engine, case = (
        (bundle, case_folder) if data == "tiny" else (demo / DEMO_BUNDLE, demo / DEMO_CASE)
    )
    words = [sys.executable, "-c", MEASURED, *map(str, (engine, case, tmp_path / "out", samples))]
    peak_mb, said = peak_of(words, tmp_path)
    assert peak_mb <= int(said) / 1e6 < 1.4 * peak_mb + 60


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (150, "2 min"), (7200, "2.0 h")]
)
def test_durations_are_for_people(seconds, text):
    assert duration(seconds) == text


def test_a_summary_without_spread():
    entry = {"request": {"day": 5, "treatment": "CRT"}, "volume_ml": {"mean": 2.04}}
    entry["volume_ml"].update(interval=[None, None], level=0.9, covers="2 forecast slices")
    difference = {"scenario": "day5-TMZ", "reference": "day5-CRT", "volume_ml": {}}
    difference["volume_ml"] = {"mean": 1.26, "interval": [-0.5, 3.0], "level": 0.9}
    first, second = summary({"scenarios": {"a": entry}, "differences": [difference]})
    assert (
        first
        == "day 5, CRT: tumour 2.0 ml in 2 forecast slices; predicted, not acquired, research use"
    )
    assert second.endswith("the same noise: +1.3 ml (90% interval -0.5 to +3.0)")
