"""Problems of operators: which shapes, who competes, and that a wrong contestant is not timed."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import gpu_profile, kernel_problems
from benchmarks.device import Bench
from benchmarks.gpu_bundle import config_and_size
from benchmarks.gpu_kernels import PROBLEMS, judge, rows_of
from benchmarks.kernel_problems import Contestant, calls_of_an_evaluation
from benchmarks.network_cost import layers
from tests.benchmarks.test_gpu_floor import roofline_rows

WITHOUT_RIVALS = "sde_dpmpp_2m"
"""Plain PyTorch has no noise of ours."""


@pytest.fixture
def bench(tmp_path, monkeypatch) -> Bench:
    monkeypatch.setenv("QUICK", "1")
    monkeypatch.setenv("DEVICE", "cpu")
    bench = Bench.start(str(tmp_path))
    bench.rows.write_text("".join(json.dumps(row) + "\n" for row in roofline_rows()))
    return bench


@pytest.mark.parametrize(
    ("operator", "kind"), [("group_norm_silu", "norm"), ("attention", "attention")]
)
def test_shapes_are_those_of_the_network(operator, kind, bench, monkeypatch):
    """All calls together normalise, or attend to, what the published network does."""
    monkeypatch.setattr(kernel_problems, "MAIN_SHAPES", 1000)
    calls = calls_of_an_evaluation(bench, operator)
    expected = [layer for layer in layers(*config_and_size(True)) if layer.kind == kind]
    assert sum(n for _, n in calls) == len(expected)
    if kind == "norm":
        numbers = sum(
            n * torch.Size(image).numel()
            for (x, skip, *_), n in calls
            for image in (x, skip)
            if image
        )
        assert 2 * numbers == sum(layer.activations for layer in expected)
    else:
        flops = sum(4 * n * (x[1] ** 2) * x[2] / 3 for (x, _), n in calls)
        assert flops == sum(layer.flops for layer in expected)


def test_main_shapes_are_the_largest(bench):
    every = calls_of_an_evaluation(bench, "group_norm_silu")
    moved = [n * sum(torch.Size(s).numel() for s in shapes[:2] if s) for shapes, n in every]
    assert len(every) == kernel_problems.MAIN_SHAPES
    assert moved == sorted(moved, reverse=True)


@pytest.mark.parametrize("operator", PROBLEMS)
def test_all_contestants_compute_the_same_and_are_timed(operator, bench):
    problems = [next(PROBLEMS[operator](bench))]
    if operator == "solver_step":
        problems = list(PROBLEMS[operator](bench))[:2]
    for problem in problems:
        with torch.no_grad():
            rows = rows_of(bench, problem)
        rivals = ["ours"] if WITHOUT_RIVALS in problem.case else ["eager", "compiled", "ours"]
        assert [row["contestant"] for row in rows] == rivals
        for row in rows:
            assert row["case"].startswith(f"{operator}/")
            assert 0 <= row["error"] <= row["allowed_error"] < 0.01
            assert row["floor_ms"] > 0
            assert row["calls"] >= 1


def test_a_wrong_contestant_is_not_timed(bench):
    problem = next(PROBLEMS["conditioning"](bench))
    ours = problem.contestants["ours"]
    ran = []
    wrong = {
        "slightly wrong": Contestant(lambda: ran.append(1), lambda: ours.result() * 1.001),
        "not a number": Contestant(lambda: ran.append(2), lambda: ours.result() * torch.nan),
        "broken": Contestant(lambda: ran.append(3), lambda: [][0]),
    }
    rows = rows_of(bench, replace(problem, contestants={**wrong, "ours": ours}))
    said = {row["contestant"]: row.get("failed") for row in rows}
    assert said["ours"] is None
    assert "from float64" in said["slightly wrong"]
    assert "nan from float64" in said["not a number"]
    assert said["broken"].startswith("IndexError")
    assert ran == []


def test_an_operator_stays_from_one_and_a_half_times():
    def rows(compiled: float | None, ours: float) -> list[dict[str, object]]:
        found = [{"contestant": "ours", "ms": ours}, {"contestant": "eager", "ms": 9.0}]
        return found + ([{"contestant": "compiled", "ms": compiled}] if compiled else [])

    for compiled, stays in ((3.0, True), (2.99, False)):
        case = rows(compiled, 2.0)
        judge(case)
        assert case[0]["keep"] is stays
        assert case[0]["of_compiled"] == compiled / 2
        assert all("keep" not in row for row in case[1:])
    alone = rows(None, 1.0)
    judge(alone)
    assert "keep" not in alone[0]


def test_the_profiler_sees_what_takes_most_of_an_evaluation(tmp_path):
    rows = [
        {"case": "a", "contestant": "ours", "ms": 1.0, "calls": 2},
        {"case": "b", "contestant": "ours", "ms": 0.5, "calls": 10},
        {"case": "c", "contestant": "ours", "ms": 3.0, "calls": 1},
        {"case": "d", "contestant": "ours", "ms": 1.5, "calls": 1},
        {"case": "e", "contestant": "eager", "ms": 99.0, "calls": 1},
        {"case": "f", "contestant": "ours", "failed": "RuntimeError"},
        {"case": "network", "contestant": "ours", "ms": 99.0},
    ]
    file = tmp_path / "gpu.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert gpu_profile.heaviest(file) == ["b", "c", "a"]
