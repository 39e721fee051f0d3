"""The array work of the runtime against the formulas in float64; its rows against arithmetic."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import benchmarks.kernels as kernels
from benchmarks.array_problems import OTHERS, OURS, SOLVERS, Way, problems
from benchmarks.engines_cpu import ATTENTION_GFLOP, CONV_GFLOP
from benchmarks.floor import Roofline
from benchmarks.harness import load, save
from benchmarks.spelled_out import (
    spelled_out_noise,
    spelled_out_statistics,
    spelled_out_steps,
)
from tadiff_kernels.ahead import Resources
from tadiff_rt.noise import NoiseSource
from tadiff_rt.schedule import NoiseSchedule
from tadiff_rt.solvers import make_plan, solve

ROWS, SIZE = 3, 32
RATES = Roofline(1e9, {"fp32": 1e10})


@pytest.fixture(scope="module")
def every():
    return {problem.case: problem for problem in problems(ROWS, SIZE)}


def test_every_contestant_computes_the_same(every):
    assert list(every) == [
        *(f"kernels/solver step {solver}" for solver in SOLVERS),
        "kernels/noise",
        "kernels/mask fusion",
        "kernels/statistics",
    ]
    for problem in every.values():
        assert len(problem.ways) >= 3
        for name, way in problem.ways.items():
            assert problem.check(name, way.run()) <= max(problem.allowed, 0.05)


@pytest.mark.parametrize(
    "what", ["solver step sde_dpmpp_2m", "noise", "mask fusion", "statistics"]
)
def test_a_wrong_result_is_not_timed(what, every, monkeypatch):
    problem = every[f"kernels/{what}"]
    way = problem.ways[OURS]
    for wrong in (lambda v: way.result(v) * 1.01, lambda v: np.asarray(way.result(v))[:-1]):
        ways = problem.ways | {OURS: dataclasses.replace(way, result=wrong)}
        monkeypatch.setattr(kernels, "run_in_turns", lambda *_: pytest.fail("was timed"))
        with pytest.raises(ValueError, match=f"{problem.case}, {OURS}"):
            kernels.rows_of(dataclasses.replace(problem, ways=ways), 1.0, 1)


@pytest.mark.parametrize("wrong", [lambda v: v * 1.1, lambda v: v + 0.1, lambda v: v * np.nan])
def test_other_numbers_must_be_standard_normal(wrong, every):
    problem = every["kernels/noise"]
    (name, *_) = [name for name, way in problem.ways.items() if way.quality == OTHERS]
    way = Way(problem.ways[name].run, wrong, OTHERS)
    with pytest.raises(ValueError, match="is allowed"):
        dataclasses.replace(problem, ways={name: way}).check(name, way.run())


@pytest.mark.parametrize("solver", [*SOLVERS, "dpmpp_3m", "ddpm"])
def test_spelled_out_steps_are_those_of_the_loop(solver):
    """In float64, where only a wrong formula is left to differ."""
    plan = make_plan(NoiseSchedule.linear(), solver, 9)
    x, eps, noise = np.random.default_rng(3).standard_normal((3, 2, 3, 4, 4))
    ours, _ = solve(lambda x, t, i: (eps, None), x, plan, lambda i: noise, x0_range=(0, 1))
    np.testing.assert_allclose(spelled_out_steps(plan, x, eps, noise), ours, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 3, 3)])
def test_spelled_out_noise_is_the_definition(shape):
    keys, seed = [(7, 0), (2, 5), (2**32 - 1, 1)], 2**63 + 12345
    ours = NoiseSource(seed).step(keys, shape)(8)
    np.testing.assert_array_equal(spelled_out_noise(seed, keys, 9, shape), ours)


def test_spelled_out_statistics_by_hand():
    images = np.array([1.0, 4.0, 2.0]).reshape(3, 1, 1, 1)
    logits = np.log(np.array([[3.0, 3.0], [1 / 3, 3.0], [3.0, 3.0]])).reshape(3, 1, 2)
    mean, squares, pairs, probability, areas, overlaps = spelled_out_statistics(images, logits)
    assert mean.item() == pytest.approx(7 / 3)
    assert squares.item() == pytest.approx((16 + 25 + 1) / 9)
    assert pairs.item() == 5
    np.testing.assert_allclose(probability, [[1.75, 2.25]])
    assert (areas.tolist(), overlaps.tolist()) == ([2, 1, 2], [1, 1])


def test_bytes_are_every_input_and_output_once(every):
    image = 4 * 3 * SIZE**2
    moved = {case.removeprefix("kernels/"): p.work.bytes for case, p in every.items()}
    assert moved.pop("statistics") == SIZE**2 * (16 + 2 * 72 + 16 + 24 + 2)
    assert {name: value / image / ROWS for name, value in moved.items()} == {
        "solver step dpmpp_2m": 5,  # x, eps and one x0 in; x and x0 out
        "solver step unipc_2": 6,
        "solver step ddim": 3,
        "solver step sde_dpmpp_2m": 6,
        "noise": 1,
        "mask fusion": 4,  # 4 channels: logits and sum in, sum out
    }


@pytest.mark.parametrize(("numpy_s", "torch_s", "name"), [(2, 1, "torch"), (1, 2, "numpy")])
def test_the_floor_is_the_faster_copy(numpy_s, torch_s, name, every, monkeypatch):
    def in_turns(runs, repeats):
        assert repeats == 5
        copied = {"copy, numpy": numpy_s * 1e-3, "copy, torch": torch_s * 1e-3}
        return {run: [copied.get(run, 0.08)] * repeats for run in runs}

    monkeypatch.setattr(kernels, "run_in_turns", in_turns)
    problem = every["kernels/solver step unipc_2"]
    found = kernels.rows_of(problem, 50.0, 5)
    assert [row["contestant"] for row in found] == list(problem.ways)
    for row in found:
        assert row["ms"] == 4.0, "a run is of 20 steps"
        assert (row["floor_ms"], row["floor_kind"]) == (1.0, "bandwidth")
        assert row["roofline_fraction"] == 0.25
        assert row["floor_of"].startswith(f"copy, {name}")
        assert row["share_of_evaluation"] == pytest.approx(4 / (ROWS * 50), rel=5e-3)
        assert row["copy_bytes_per_s"] == pytest.approx(problem.work.bytes / 1e-3, rel=1e-3)


def test_a_copy_moves_what_it_says():
    ways = kernels.copies(8000.0)
    copied = ways["copy, torch"]()
    assert 2 * copied.nbytes == 8000
    assert (copied == 1).all()
    copied.zero_()
    ways["copy, numpy"]()
    assert (copied == 1).all(), "the same memory"


def test_a_whole_evaluation_is_its_arithmetic():
    rates = Roofline(1e30, {"fp32": 1e11})
    expected = (CONV_GFLOP + ATTENTION_GFLOP) / 100 * 1e3
    for batch in (1, 5):
        assert kernels.evaluation_floor_ms(rates, batch, 192) == pytest.approx(expected, rel=1e-3)
    moving = Roofline(1e9, {"fp32": 1e30})
    one, five = (kernels.evaluation_floor_ms(moving, batch, 192) for batch in (1, 5))
    assert five < one, "a batch reads the weights once"


def test_rows_are_complete(tmp_path):
    measured = kernels.rows(2, 32, RATES, repeats=2)
    save("kernels", [RATES.as_row(kernels.MACHINE), *measured], tmp_path)
    kept = load("kernels", tmp_path)
    assert len(kept) == 1 + 4 * 3 + 5 + 3 + 3
    assert all(row["n"] == 2 and row["per"] for row in kept[1:])


def test_compiled_kernels_are_rows_without_a_time(monkeypatch, tmp_path):
    def compiled(variants):
        return [Resources(v, arch, 40, 8, 512, "") for v in variants for arch in (80, 90)]

    monkeypatch.setattr(kernels, "compile_variants", compiled)
    monkeypatch.setattr(kernels.torch.cuda, "is_available", lambda: False)
    found = kernels.compiled_rows({"solver step": ["_step a", "_step b"], "norm": ["_whole"]})
    save("kernels", found, tmp_path)
    assert [(row["case"], row["contestant"]) for row in found[:3]] == [
        ("kernels/Triton _step a", "compiled for sm_80"),
        ("kernels/Triton _step a", "compiled for sm_90"),
        ("kernels/Triton _step b", "compiled for sm_80"),
    ]
    for row in found:
        assert (row["registers"], row["spilled_bytes"], row["shared_bytes"]) == (40, 8, 512)
        assert row["not_measured"] == "no GPU was available"
        assert "ms" not in row
    assert {row["computes"] for row in found} == {"solver step", "norm"}
    monkeypatch.setattr(kernels.torch.cuda, "is_available", lambda: True)
    (row, *_) = kernels.compiled_rows({"norm": ["_whole"]})
    assert row["not_measured"] == "see benchmarks.gpu_kernels"


UNRECORDED = {"_step fp16 history 1 noisy channels_last"}
"""Between two that the tests of the kernel hold to a record."""


def test_variants_are_those_whose_needs_are_recorded():
    tables = (Path(__file__).parents[1] / "kernels" / "resources").glob("*.json")
    recorded = {key for table in tables for key in json.loads(table.read_text())}
    variants = [v for some in kernels.main_variants().values() for v in some]
    names = [f"{v.kernel.split(':')[1]} {v.name}" for v in variants]
    assert len(set(names)) == len(names) == 12
    missing = {name for name in names if f"{name} sm_90" not in recorded}
    assert missing == UNRECORDED


@pytest.mark.slow
def test_compiles_what_the_record_says():
    (name, (variant, *_)) = next(
        (k, v) for k, v in kernels.main_variants().items() if k == "initial noise"
    )
    found = kernels.compiled_rows({name: [variant]})
    table = Path(__file__).parents[1] / "kernels" / "resources" / "solver_step.json"
    recorded = json.loads(table.read_text())
    assert len(found) == 3
    for row in found:
        arch = row["contestant"].removeprefix("compiled for ")
        assert row["spilled_bytes"] == 0
        needs = [row["registers"], row["shared_bytes"]]
        assert needs <= recorded[f"_start from noise {arch}"]
