"""The ladder: what its rungs compute, and what is said of their quality."""

import json

import pytest
import torch

from benchmarks import gpu_network
from benchmarks.device import Bench
from benchmarks.gpu_bundle import config_and_size, network
from benchmarks.gpu_network import Graphed, eager, rows_of
from benchmarks.network_quality import Inputs, ensemble, quality
from tadiff_export.split import split
from tadiff_train.network import GroupNorm32
from tests.benchmarks.test_gpu_floor import roofline_rows

CONFIG, SIZE = config_and_size(True)


@pytest.fixture
def bench(tmp_path, monkeypatch) -> Bench:
    monkeypatch.setenv("QUICK", "1")
    monkeypatch.setenv("DEVICE", "cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench.start(str(tmp_path))
    bench.rows.write_text("".join(json.dumps(row) + "\n" for row in roofline_rows()))
    return bench


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def test_weights_are_the_same_everywhere_and_nowhere_zero():
    one, other = network(CONFIG), network(CONFIG)
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name
        assert (p != 0).all(), name


def test_errors_are_those_that_were_added(bench):
    inputs = Inputs(bench, network(CONFIG), 2, SIZE)
    denoiser = split(network(CONFIG))[1].to(bench.device)
    expected = ensemble(denoiser, inputs, inputs.noise)

    def shifted(*args):
        eps, logits = denoiser(*args)
        signs = torch.tensor([1.0, -1.0, 1.0], device=bench.device)[:, None, None]
        return eps + 0.25 * signs, logits

    same = quality(denoiser, denoiser, inputs, expected)
    assert same.pop("ensemble_dice") == same.pop("ensemble_spread_ratio") == 1
    assert set(same.values()) == {0}
    other = quality(shifted, denoiser, inputs, expected)
    assert other["eps_max_error"] == other["eps_rms_error"] == pytest.approx(0.25, abs=1e-3)
    assert other["ensemble_mean"] > 0


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_an_ensemble_does_not_depend_on_the_batch_it_is_drawn_in(batch, bench):
    """Samples that fill no whole batch are drawn once, and none of the padding is counted."""
    net = network(CONFIG)
    denoiser = split(net)[1].double().to(bench.device)

    def exact(*args):
        return [y.float() for y in denoiser(*(x.double() for x in args))]

    drawn = [
        ensemble(exact, inputs, inputs.noise)
        for inputs in (Inputs(bench, network(CONFIG), b, SIZE) for b in (2, batch))
    ]
    assert len(drawn[1].voxels) == 2
    assert drawn[0].mean == pytest.approx(drawn[1].mean, abs=1e-5)
    assert drawn[0].std == pytest.approx(drawn[1].std, abs=1e-5)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_leaves_norms_in_fp32(dtype, bench):
    half = eager(network(CONFIG), dtype, torch.channels_last).to(bench.device)
    for module in half.modules():
        wanted = torch.float32 if isinstance(module, GroupNorm32) else half.dtype
        for p in module.parameters(recurse=False):
            assert p.dtype == wanted
            assert p.ndim < 4 or p.is_contiguous(memory_format=torch.channels_last)
    published = dict(network(CONFIG).named_parameters())
    norm = half.denoiser.net.out[0].weight
    assert torch.equal(norm.cpu(), published["out.0.weight"]), "not rounded on the way"
    held = Inputs(bench, network(CONFIG), 2, SIZE).held()
    eps, _ = half(*held)
    right, _ = split(network(CONFIG))[1].to(bench.device)(*held)
    assert eps.dtype == half.dtype
    assert 0 < (eps.float() - right).abs().max() < 0.2


def test_a_rung_that_fails_costs_only_itself_and_those_upon_it(bench, monkeypatch):
    steps = [("eager", "fp32"), ("fused, compiled", "fp32"), ("magic", "fp16"), ("fused", "fp32")]
    monkeypatch.setattr(gpu_network, "LADDER", steps)
    rows = rows_of(bench, CONFIG, SIZE, 2)
    said = {row["contestant"]: row for row in rows}
    assert said["fused, compiled fp32"]["failed"].startswith("KeyError")
    assert said["magic fp16"]["failed"] == "ValueError: no rung 'magic'"
    assert said["eager fp32"]["eps_max_error"] == 0
    assert 0 < said["fused fp32"]["eps_max_error"] < 1e-3
    assert said["fused fp32"]["ms_per_image"] == pytest.approx(
        said["fused fp32"]["ms"] / 2, rel=1e-3
    )
    assert said["other noise"]["ensemble_mean"] > 100 * said["fused fp32"]["ensemble_mean"]
    assert {row["case"] for row in rows} == {f"network/{SIZE}/batch 2"}


@pytest.mark.gpu
def test_a_graph_follows_its_inputs(bench):
    denoiser = split(network(CONFIG))[1].to(bench.device)
    inputs = Inputs(bench, network(CONFIG), 2, SIZE)
    graphed = Graphed(denoiser, inputs.held())
    sources, x, shifts = inputs.held()
    for noisy in (x, 2 * x):
        for got, right in zip(
            graphed(sources, noisy, shifts), denoiser(sources, noisy, shifts), strict=True
        ):
            assert torch.equal(got, right)
