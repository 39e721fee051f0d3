"""The benchmark of memory: whole processes are counted, results checked, lines fitted."""

import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy.stats import linregress

from benchmarks import memory
from benchmarks.fits import Line
from benchmarks.harness import load, save
from benchmarks.memory import Asked
from benchmarks.network_cost import layers
from benchmarks.peak import peak_of
from tadiff_rt.bundle import open_bundle
from tadiff_train.network import NetworkConfig

VOXELS = 24 * 28 * 10
"""Of the fixture `case_folder`."""


@pytest.fixture
def start(bundle, case_folder) -> Asked:
    return Asked(bundle, case_folder, (4,))


def test_a_line_is_that_of_least_squares():
    x, y = [1, 2, 4, 8], [10.0, 21.0, 39.0, 82.0]
    line, wanted = Line.through(x, y), linregress(x, y)
    assert (line.slope, line.intercept) == pytest.approx((wanted.slope, wanted.intercept))
    assert line.r2 == pytest.approx(wanted.rvalue**2)
    apart = [abs(b - (wanted.slope * a + wanted.intercept)) / b for a, b in zip(x, y, strict=True)]
    assert line.largest_residual == pytest.approx(max(apart))


@pytest.mark.parametrize(("off", "linear"), [(0.04, True), (0.2, False)])
def test_a_line_is_linear_where_no_point_is_far_from_it(off, linear):
    y = [100.0, 200.0, 300.0, 400.0]
    y[0] *= 1 + off
    line = Line.through([1, 2, 3, 4], y)
    assert line.is_linear == line.columns("ms")["linear"] == linear
    assert line.columns("mb")["slope_mb"] == pytest.approx(line.slope, rel=1e-3)


def test_a_flat_line_explains_all():
    assert Line.through([1, 2, 3], [5.0, 5.0, 5.0]).r2 == 1


@pytest.mark.parametrize("x", [[1, 2], [3, 3, 3]])
def test_two_points_are_no_line(x):
    with pytest.raises(ValueError, match="three points"):
        Line.through(x, [1.0] * len(x))


def test_a_peak_is_that_of_the_process_alone(tmp_path):
    mine = np.ones(50_000_000)  # 400 MB: on Linux a child begins with its parent's peak
    words = [sys.executable, "-c"]
    nothing_mb, said = peak_of([*words, "print('two'); print('lines')"], tmp_path)
    assert said.split() == ["two", "lines"]
    filled_mb, _ = peak_of([*words, "bytearray(b'x' * 200_000_000)[:1]"], tmp_path)
    assert nothing_mb < mine.nbytes / 1e6 / 4
    assert 380 < filled_mb - nothing_mb < 450  # the bytes, and the array of them


def test_a_process_that_fails_has_no_peak(tmp_path):
    with pytest.raises(SystemExit, match="too bad"):
        peak_of([sys.executable, "-c", "raise ValueError('too bad')"], tmp_path)


def test_a_row_is_of_a_whole_forecast(start):
    row = memory.predict_row("slices/1", replace(start, samples=2, steps=1, more=("--report",)))
    assert (row["case"], row["contestant"]) == ("memory/slices/1", "predict --report")
    assert 60 < row["peak_mb"] <= row["bound_mb"]
    assert row["within"] is True
    assert 0 < row["floor_mb"] < row["peak_mb"]


def test_a_bound_that_is_passed_is_said(start, monkeypatch):
    said = {
        True: (1.0, '{"estimate": {"memory_bytes": 250000000}}'),
        False: (251.0, "{}"),
    }
    monkeypatch.setattr(memory, "peak_of", lambda words, folder: said["--dry-run" in words])
    monkeypatch.setattr(memory, "checked", lambda report, asked: "unread")
    row = memory.predict_row("slices/1", start)
    assert (row["peak_mb"], row["bound_mb"], row["within"]) == (251.0, 250.0, False)
    assert row["contestant"] == "predict"


def report(samples=4, slices=(4,), scenarios=1):
    one = {"volume_ml": {"samples": [1.0] * samples}, "sampling": {"slices": list(slices)}}
    return {"scenarios": {str(n): one for n in range(scenarios)}}


@pytest.mark.parametrize("other", [{"samples": 3}, {"slices": (5,)}, {"scenarios": 2}])
def test_the_memory_of_another_result_is_not_shown(start, other):
    assert "whole" in memory.checked(report(), start)
    with pytest.raises(SystemExit, match="gave"):
        memory.checked(report(**other), start)


def test_the_floor_counts_graphs_volumes_and_a_bucket(start):
    manifest = open_bundle(start.engine).manifest
    files = [*start.engine.glob("conditioner*.onnx"), *start.engine.glob("denoiser*.onnx")]
    network = NetworkConfig(**manifest.network)
    most = max(layer.activations for layer in layers(network, manifest.card.data.size))
    for change, rows, volumes in (
        ({}, 4, 7),
        ({"samples": 1}, 1, 4),
        ({"samples": 3, "slices": (4, 5)}, 4, 7),
        ({"samples": 2, "treatments": ("TMZ", "none")}, 2, 2 * 7 + 2),
        ({"days": ("+30", "+60"), "treatments": ("CRT", "TMZ", "none")}, 4, 6 * 7 + 4 * 2),
    ):
        found = memory.floor_mb(replace(start, **change))
        graphs = sum(file.stat().st_size for file in files)
        assert found == pytest.approx((graphs + 4 * (rows * most + volumes * VOXELS)) / 1e6)


def test_one_number_changes_at_a_time(start):
    axes = memory.axes(start)
    assert set(axes) == {"slices", "samples", "scenarios", "steps"}
    of = {
        "slices": lambda asked: len(asked.slices),
        "samples": lambda asked: asked.samples,
        "scenarios": lambda asked: asked.scenarios,
        "steps": lambda asked: asked.steps,
    }
    for name, points in axes.items():
        for other, number in of.items():
            found = {number(asked) for asked in points.values()}
            assert found == set(points) if other == name else len(found) == 1
        for asked in points.values():
            # A bucket that is not full has memory of its own: "last batch".
            assert name == "scenarios" or len(asked.slices) * asked.samples % 4 == 0
            kept = {key: asdict(asked)[key] for key in ("engine", "case", "more")}
            assert kept == {key: asdict(start)[key] for key in kept}


def test_words_ask_for_what_is_counted(start):
    asked = replace(start, slices=(4, 6), days=("+30", "+60"), treatments=("TMZ", "none"))
    words = " ".join(replace(asked, more=("--report",)).words())
    assert (
        "--day +30 +60 --treatment TMZ none --slices 4,6 --samples 4 --steps=2 --report" in words
    )
    assert asked.scenarios == 4


@pytest.mark.parametrize(
    ("peaks", "constant"),
    [
        ({1: 100.0, 2: 101.0, 12: 104.0}, True),
        ({1: 100.0, 2: 101.0, 12: 108.0}, False),
        ({1: 100.0, 2: 101.0, 12: 90.0}, False),
    ],
)
def test_growth_over_the_axis_decides_what_is_constant(peaks, constant):
    row = memory.line_row("slices", peaks)
    slope = linregress(list(peaks), list(peaks.values())).slope
    assert row["growth"] == pytest.approx(12 * slope / peaks[12], abs=1e-4)
    assert row["constant"] is constant
    assert "design" not in row["quality"]
    assert "design" in memory.line_row("scenarios", peaks)["quality"]


@pytest.mark.filterwarnings("error")
def test_all_rows_together_are_a_file(start, tmp_path, monkeypatch):
    requests = []

    def measured(asked):
        requests.append(asked)
        columns = {"peak_mb": 100.0, "bound_mb": 120.0, "within": True, "floor_mb": 50.0}
        return {**columns, "no_floor": memory.NO_FLOOR, "quality": "made up"}

    monkeypatch.setattr(memory, "measured", measured)
    monkeypatch.setattr(memory, "write_case", lambda folder, size, depth: folder)
    monkeypatch.setattr(memory, "peak_of", lambda words, folder: (50.0, ""))
    save("memory", memory.rows(start=start), tmp_path)
    names = {(row["case"], row["contestant"]) for row in load("memory", tmp_path)}
    assert {f"memory/slices/{n}" for n in (1, 2, 4, 8, 12)} <= {case for case, _ in names}
    assert {(f"memory/{axis}", "line") for axis in memory.axes(start)} <= names
    assert {("memory/large/4", "predict --report"), ("memory/large/1", "predict")} <= names
    assert {("memory/before", "info"), ("memory/last batch/7", "predict")} <= names
    pages = [asked for asked in requests if "--report" in asked.more]
    assert sorted(asked.scenarios for asked in pages) == [1, 1, 4, 4]
    assert sum("--resample" in asked.more for asked in requests) == 3
