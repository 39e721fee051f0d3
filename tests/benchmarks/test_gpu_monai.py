"""MONAI's helper as a contestant: checked before it counts, and absent without a fuss."""

import sys
from types import ModuleType

import pytest
import torch

from benchmarks import gpu_monai
from benchmarks.device import Bench
from benchmarks.gpu_bundle import config_and_size, network
from benchmarks.gpu_monai import MONAI, OURS, contestants, rows_of
from benchmarks.network_quality import Inputs


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setenv("QUICK", "1")
    return Bench.start(str(tmp_path))


def stand_in(monkeypatch, wrap) -> list[dict]:
    """monai.networks with a `trt_compile` that is `wrap(module)`; returns what it was given."""
    given = []

    def trt_compile(module, path, args):
        given.append(args)
        return wrap(module)

    package, networks = ModuleType("monai"), ModuleType("monai.networks")
    networks.trt_compile = trt_compile
    monkeypatch.setitem(sys.modules, "monai", package)
    monkeypatch.setitem(sys.modules, "monai.networks", networks)
    return given


def started(bench, tmp_path):
    config, size = config_and_size(True)
    with torch.no_grad():
        return contestants(bench, config, Inputs(bench, network(config), 2, size), tmp_path)


def test_without_a_gpu_the_row_says_so(bench):
    (row,) = rows_of(bench, 1)
    assert (row["case"], row["contestant"]) == ("monai/48/batch 1", MONAI)
    assert row["not_measured"] == "no GPU was available"


class Named(torch.nn.Module):
    """Answers by output name, as the helper does, `times` what is right."""

    def __init__(self, module, times: float = 1.0) -> None:
        super().__init__()
        self.module, self.times = module, times

    def forward(self, *inputs):
        eps, logits = self.module(*inputs)
        return {"eps": self.times * eps, "mask_logits": logits}


class Eagerly:
    """In place of a CUDA graph."""

    class Replay:
        def __init__(self, call) -> None:
            self.call = call

        def __call__(self) -> None:
            self.result = self.call()

    def __init__(self, denoise, held) -> None:
        self.replay = self.Replay(lambda: denoise(*held))


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(gpu_monai, "Graphed", Eagerly)
    monkeypatch.setattr(gpu_monai, "fuse", lambda net, dtype: gpu_monai.split(net)[1])


@pytest.mark.parametrize("wrap", [lambda module: module, Named])
def test_both_run_on_the_same_inputs(bench, monkeypatch, tmp_path, wrap, on_cpu):
    given = stand_in(monkeypatch, wrap)
    runs, quality = started(bench, tmp_path)
    assert set(runs) == {OURS, MONAI}
    theirs, _ = gpu_monai._pair(runs[MONAI]())
    runs[OURS]()
    torch.testing.assert_close(theirs, runs[OURS].result[0], rtol=1e-5, atol=1e-6)
    assert all(found["estimate_differs"] < 1e-4 for found in quality.values())
    assert given[0]["precision"] == "fp16"
    assert given[0]["fallback"] is False  # or PyTorch would be timed in its name


def test_an_engine_that_computes_something_else_is_not_timed(bench, monkeypatch, tmp_path, on_cpu):
    stand_in(monkeypatch, lambda module: Named(module, 1.2))
    runs, quality = started(bench, tmp_path)
    assert list(runs) == [OURS]
    assert "off by 0.2 of" in quality[MONAI]["not_measured"]


def test_without_monai_ours_runs_alone(bench, monkeypatch, tmp_path, on_cpu):
    monkeypatch.setitem(sys.modules, "monai", None)
    runs, quality = started(bench, tmp_path)
    assert list(runs) == [OURS]
    assert "monai" in quality[MONAI]["not_measured"]


def test_a_fault_of_ours_is_no_word_about_monai(bench, monkeypatch, tmp_path, on_cpu):
    wrong = lambda net, dtype: Named(gpu_monai.split(net)[1], 1.2)  # noqa: E731
    monkeypatch.setattr(gpu_monai, "fuse", wrong)
    stand_in(monkeypatch, Named)
    with pytest.raises(ArithmeticError):
        started(bench, tmp_path)
